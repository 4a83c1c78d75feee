"""What turns features into classes: the fine-tuned image classifier, and linear probes.

Fine-tuning: BEiT v2, section 3.2. Linear probing: section 3.3; the published code has none for v2.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from beit.nn.block import NORM_EPS, init_published
from beit.nn.vit import VisionTransformer, ViTConfig

# A dimension whose deviation is under this share of its largest value holds float32 rounding only.
_CONSTANT = 1e-6


@dataclass(frozen=True)
class ImageClassifierConfig:
    """The numbers of an image classifier.

    Attributes:
        backbone: the ViT that sees the image; `final_norm` is set to what the pooling needs
        num_classes: Y
        pooling: the head reads the mean of the last block's patches, which it normalises itself,
            or the [CLS] token after the backbone's final norm
        class_names: one a class
    """

    backbone: ViTConfig
    num_classes: int
    pooling: Literal["mean", "cls"] = "mean"
    class_names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.num_classes < 1:
            raise ValueError(f"num_classes must be 1 or more, got {self.num_classes}")
        if self.pooling not in ("mean", "cls"):
            raise ValueError(f"pooling must be mean or cls, got {self.pooling!r}")
        if self.class_names is not None and len(self.class_names) != self.num_classes:
            raise ValueError(
                f"there are {len(self.class_names)} class_names for {self.num_classes} classes; "
                "give one a class, or none"
            )
        backbone = replace(self.backbone, final_norm=self.pooling == "cls")
        object.__setattr__(self, "backbone", backbone)


class ImageClassifier(nn.Module):
    """A backbone, one vector of it for the whole image, and a linear layer."""

    def __init__(self, config: ImageClassifierConfig, init_scale: float = 0.001) -> None:
        """Build it; the head starts as drawn times ``init_scale``, as published: near zero."""
        super().__init__()
        self.config = config
        D = config.backbone.width
        self.backbone = VisionTransformer(config.backbone)
        self.fc_norm = nn.LayerNorm(D, eps=NORM_EPS) if config.pooling == "mean" else None
        self.head = nn.Linear(D, config.num_classes)
        init_published(self.head, config.backbone.init_bound)
        with torch.no_grad():
            self.head.weight.mul_(init_scale)

    def forward(self, images: Tensor) -> Tensor:
        """Score images.

        images: (B, 3, H, W) uint8 in 0..255 or float in [0, 1], of the configured size
        Returns: (B, Y) logits
        """
        features = self.backbone(images)
        if self.fc_norm is None:
            return self.head(features.cls)  # type: ignore[no-any-return]
        return self.head(self.fc_norm(features.patches.mean(dim=1)))  # type: ignore[no-any-return]


class LinearProbes(nn.Module):
    """Standardisation by stored statistics, then `R` linear classifiers that all start at zero.

    All read the same features and each has its own weight and bias, so a whole grid of learning
    rates is trained in one pass, with one matrix product a step. Logistic regression is convex: a
    start at zero needs no random numbers and loses nothing.
    """

    mean: Tensor
    inverse_std: Tensor

    def __init__(self, num_rates: int, width: int, num_classes: int) -> None:
        super().__init__()
        for name, value in (
            ("num_rates", num_rates),
            ("width", width),
            ("num_classes", num_classes),
        ):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.weight = nn.Parameter(torch.zeros(num_rates, num_classes, width))  # (R, Y, D)
        self.bias = nn.Parameter(torch.zeros(num_rates, num_classes))  # (R, Y)
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("inverse_std", torch.ones(width))

    @torch.no_grad()
    def standardise_by(self, features: Tensor) -> None:
        """Take the mean and deviation of each dimension from `features` (n, D), the training part.

        What a batch normalisation without scale and shift does, with the statistics of the whole
        part instead of a batch's. Constant dimensions are switched off.
        """
        std, mean = torch.std_mean(features, dim=0, correction=0)
        constant = std <= _CONSTANT * features.abs().amax(dim=0)
        self.mean.copy_(mean)
        self.inverse_std.copy_(torch.where(constant, 0.0, 1.0 / std))

    def forward(self, features: Tensor) -> Tensor:
        """Give the logits of every probe.

        features: (B, D)
        Returns: (R, B, Y) logits
        """
        R, Y, D = self.weight.shape
        B = features.shape[0]
        standardised = (features - self.mean) * self.inverse_std  # (B, D)
        logits = F.linear(standardised, self.weight.view(R * Y, D), self.bias.view(R * Y))
        return logits.view(B, R, Y).transpose(0, 1)  # (R, B, Y)
