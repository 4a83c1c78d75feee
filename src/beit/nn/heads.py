"""The image classifier for fine-tuning (BEiT v2, section 3.2); probes are in `beit.nn.probes`."""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from beit.nn.block import NORM_EPS, init_published
from beit.nn.patches import Size
from beit.nn.vit import VisionTransformer, ViTConfig


@dataclass(frozen=True)
class ImageClassifierConfig:
    """Configuration of an image classifier.

    Attributes:
        backbone: the ViT that encodes the image; `final_norm` is set to what the pooling needs
        num_classes: number of classes (Y)
        pooling: input of the head: the mean of the last block's patches, after a LayerNorm of its
            own, or the [CLS] token after the backbone's final norm
        class_names: name of each class
    """

    backbone: ViTConfig
    num_classes: int
    pooling: Literal["mean", "cls"] = "mean"
    class_names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if not hasattr(self.num_classes, "__index__") or self.num_classes < 1:
            raise ValueError(f"num_classes must be an integer from 1 on, got {self.num_classes!r}")
        if self.pooling not in ("mean", "cls"):
            raise ValueError(f"pooling must be mean or cls, got {self.pooling!r}")
        if self.class_names is not None and len(self.class_names) != self.num_classes:
            raise ValueError(
                f"there are {len(self.class_names)} class_names for {self.num_classes} classes; "
                "give one for each class, or none"
            )
        vit = replace(self.backbone, final_norm=self.pooling == "cls")
        object.__setattr__(self, "backbone", vit)


class ImageClassifier(nn.Module):
    """Backbone, pooling to one vector per image, and a linear layer."""

    def __init__(self, config: ImageClassifierConfig, init_scale: float = 0.001) -> None:
        """Build the model with new weights.

        Args:
            init_scale: factor of the head's initial weights, as published; 1 for those of the rest
        """
        super().__init__()
        self.config = config
        D = config.backbone.width
        self.backbone = VisionTransformer(config.backbone)
        self.fc_norm = nn.LayerNorm(D, eps=NORM_EPS) if config.pooling == "mean" else None
        self.head = nn.Linear(D, config.num_classes)
        init_published(self.head, config.backbone.init_bound)
        with torch.no_grad():
            self.head.weight.mul_(init_scale)

    @property
    def image_size(self) -> Size:
        """Height and width of the images."""
        return self.backbone.image_size

    @property
    def classes(self) -> tuple[str, ...] | None:
        """The name of each class, in the order of the logits; None if the weights have no names."""
        return self.config.class_names

    def forward(self, images: Tensor) -> Tensor:
        """Classify images (B, 3, H, W), uint8 or float in [0, 1]: (B, Y) logits."""
        features = self.backbone(images)
        norm = self.fc_norm
        pooled = features.cls if norm is None else norm(features.patches.mean(dim=1))  # (B, D)
        return self.head(pooled)  # type: ignore[no-any-return]
