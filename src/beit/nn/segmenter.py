"""Semantic segmentation: UPerNet (Xiao et al. 2018) on four blocks of a ViT, or a linear head.

A plain ViT has one resolution. A pyramid resamples its maps to four, the decoder combines them from
coarse to fine, and an auxiliary head on the third supports training (BEiT v2, section 3.3).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from beit.nn.patches import Size
from beit.nn.vit import VisionTransformer, ViTConfig

LAYERS = {12: (4, 6, 8, 12), 24: (8, 12, 16, 24)}  # by depth, of the published base, large models
POOL_SIDES = (1, 2, 3, 6)  # sides of the grids to which the coarsest map is pooled (PSPNet)
AUXILIARY_LEVEL = 2  # pyramid level of the auxiliary head, from 0: that of the patch grid
IGNORED = 255  # label of ignored pixels (mmsegmentation)
FINE_LOGITS = 2**26  # full-size logits at a time in the loss: 256 MiB, one image of ADE20K
HEAD_STD = 0.01  # standard deviation of a classification layer's initial weights (mmsegmentation)


@dataclass(frozen=True)
class SegmenterConfig:
    """Configuration of a segmentation model; defaults are those of the published base model.

    Attributes:
        backbone: the ViT that encodes the image; `final_norm` is set: true for a linear head only
        num_classes: number of classes (Y)
        layers: numbers, from 1, of the four blocks whose raw outputs enter the pyramid; empty for a
            linear head, which uses the last block after the final norm
        channels: channels of the decoder; 0, and with a linear head always, the backbone's width
        auxiliary: add an auxiliary head; never with a linear head
        auxiliary_channels: channels of the auxiliary head
        dropout: rate at which whole channels are dropped before a classification layer
        class_names: name of each class
        palette: colour of each class, red, green and blue in 0..255
        head: the published UPerNet with its pyramid, or one linear layer on each patch
    """

    backbone: ViTConfig = field(
        default_factory=lambda: ViTConfig(image_size=(512, 512), relative_bias="per_block")
    )
    num_classes: int = 150
    layers: tuple[int, ...] = LAYERS[12]
    channels: int = 0
    auxiliary: bool = True
    auxiliary_channels: int = 256
    dropout: float = 0.1
    class_names: tuple[str, ...] | None = None
    palette: tuple[tuple[int, int, int], ...] | None = None
    head: Literal["upernet", "linear"] = "upernet"

    def __post_init__(self) -> None:
        if self.head not in ("upernet", "linear"):
            raise ValueError(f"head must be upernet or linear, got {self.head!r}")
        linear, width = self.head == "linear", self.backbone.width
        fixed: dict[str, object] = {"backbone": replace(self.backbone, final_norm=linear)}
        fixed["channels"] = self.channels or width
        if linear:
            fixed |= {"layers": (), "channels": width, "auxiliary": False}
        for name, value in fixed.items():
            object.__setattr__(self, name, value)
        if min(self.backbone.grid) < 2:
            raise ValueError(
                f"a segmenter needs a grid of 2 x 2 patches or more, got {self.backbone.grid}; "
                "use larger images or smaller patches"
            )
        layers, depth = self.layers, self.backbone.depth
        ascending = len(layers) == 4 and list(layers) == sorted(set(layers))
        if not linear and not (ascending and 1 <= layers[0] <= layers[-1] <= depth):
            raise ValueError(
                f"layers are four backbone blocks in ascending order, 1 to {depth}, got {layers}"
            )
        if self.num_classes < 1 or self.channels < 1 or self.auxiliary_channels < 1:
            raise ValueError(
                "num_classes, channels and auxiliary_channels must be 1 or more, got "
                f"{self.num_classes}, {self.channels} and {self.auxiliary_channels}"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")
        for name in ("class_names", "palette"):
            values = getattr(self, name)
            if values is not None and len(values) != self.num_classes:
                raise ValueError(
                    f"{name} has {len(values)} entries, expected one for each of "
                    f"{self.num_classes} classes"
                )


class SegmenterOutput(NamedTuple):
    """Logits over the classes."""

    logits: Tensor  # (B, Y, 4 Gh, 4 Gw); (B, Y, Gh, Gw) for a linear head
    auxiliary: Tensor | None  # (B, Y, Gh, Gw) of the auxiliary head, None without it


def resize_maps(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Resize maps (B, c, h, w) to (height, width) bilinearly, without aligned corners."""
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)


class ConvBlock(nn.Module):
    """Convolution that keeps the size, batch normalisation, ReLU."""

    def __init__(self, in_channels: int, channels: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, kernel, padding=kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")  # mmcv's

    def forward(self, maps: Tensor) -> Tensor:
        """Map (B, c, h, w) to non-negative (B, channels, h, w)."""
        return F.relu(self.norm(self.conv(maps)))


def pixel_head(channels: int, num_classes: int) -> nn.Conv2d:
    """Build the layer that classifies each pixel: (B, channels, h, w) to (B, Y, h, w)."""
    head = nn.Conv2d(channels, num_classes, 1)
    nn.init.normal_(head.weight, std=HEAD_STD)
    assert head.bias is not None
    nn.init.zeros_(head.bias)
    return head


class Pyramid(nn.Module):
    """Resamples four maps by factors of 4, 2, 1 and 1/2.

    Transposed convolutions keep PyTorch's default initialisation, as in the published code.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up4 = nn.Sequential(
            nn.ConvTranspose2d(width, width, 2, stride=2),
            nn.BatchNorm2d(width),
            nn.GELU(),
            nn.ConvTranspose2d(width, width, 2, stride=2),
        )
        self.up2 = nn.ConvTranspose2d(width, width, 2, stride=2)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Resample four maps (B, D, Gh, Gw); halving drops an odd last row or column.

        Returns: (B, D, 4 Gh, 4 Gw), (B, D, 2 Gh, 2 Gw), (B, D, Gh, Gw), (B, D, Gh // 2, Gw // 2)
        """
        first, second, third, fourth = maps
        return [self.up4(first), self.up2(second), third, F.max_pool2d(fourth, 2)]


class UPerNetDecoder(nn.Module):
    """Pools the coarsest map over the whole image, adds it to the finer maps, and fuses all."""

    def __init__(self, width: int, channels: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.pooled = nn.ModuleList(ConvBlock(width, channels, 1) for _ in POOL_SIDES)
        self.bottleneck = ConvBlock(width + len(POOL_SIDES) * channels, channels, 3)
        self.lateral = nn.ModuleList(ConvBlock(width, channels, 1) for _ in range(3))
        self.smooth = nn.ModuleList(ConvBlock(channels, channels, 3) for _ in range(3))
        self.fuse = ConvBlock(4 * channels, channels, 3)
        self.dropout = nn.Dropout2d(dropout)
        self.head = pixel_head(channels, num_classes)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Classify four maps (B, D, h, w), finest first: (B, Y, h, w) logits of the finest size."""
        *fine, coarsest = levels
        size = coarsest.shape[2:]
        context = [
            resize_maps(block(F.adaptive_avg_pool2d(coarsest, side)), size)
            for side, block in zip(POOL_SIDES, self.pooled, strict=True)
        ]
        above = self.bottleneck(torch.cat([coarsest, *context], dim=1))  # (B, c, h4, w4)
        outputs = [above]
        stages = list(zip(fine, self.lateral, self.smooth, strict=True))
        for level, lateral, smooth in reversed(stages):
            above = lateral(level) + resize_maps(above, level.shape[2:])  # (B, c, h, w)
            outputs.insert(0, smooth(above))
        size = outputs[0].shape[2:]
        fused = torch.cat([resize_maps(output, size) for output in outputs], dim=1)  # (B, 4c, h, w)
        return self.head(self.dropout(self.fuse(fused)))  # type: ignore[no-any-return]


class MapHead(nn.Module):
    """Classifies a map alone, after a convolution (auxiliary head) or without (linear head)."""

    def __init__(self, width: int, channels: int, num_classes: int, dropout: float) -> None:
        """Build the layers; ``channels`` 0 for no convolution."""
        super().__init__()
        self.conv = ConvBlock(width, channels, 3) if channels else nn.Identity()
        self.dropout = nn.Dropout2d(dropout)
        self.head = pixel_head(channels or width, num_classes)

    def forward(self, maps: Tensor) -> Tensor:
        """Classify a map (B, D, h, w): (B, Y, h, w) logits."""
        return self.head(self.dropout(self.conv(maps)))  # type: ignore[no-any-return]


class SemanticSegmenter(nn.Module):
    """Segmentation model: backbone, pyramid, decoder, auxiliary head."""

    def __init__(self, config: SegmenterConfig) -> None:
        super().__init__()
        self.config = config
        D, Y, rate = config.backbone.width, config.num_classes, config.dropout
        self.backbone = VisionTransformer(config.backbone)
        upernet = config.head == "upernet"
        self.pyramid = Pyramid(D) if upernet else None
        self.decoder = (
            UPerNetDecoder(D, config.channels, Y, rate) if upernet else MapHead(D, 0, Y, rate)
        )
        width = config.auxiliary_channels
        self.auxiliary = MapHead(D, width, Y, rate) if config.auxiliary else None

    @property
    def image_size(self) -> Size:
        """Height and width of the images; larger ones are segmented in windows of this size."""
        return self.backbone.image_size

    @property
    def classes(self) -> tuple[str, ...] | None:
        """The name of each class, in the order of the logits; None if the weights have no names."""
        return self.config.class_names

    def forward(self, images: Tensor) -> SegmenterOutput:
        """Classify images (B, 3, H, W), uint8 or float in [0, 1], at the decoder's resolution."""
        features = self.backbone(images, layers=self.config.layers)
        tokens = [features.layers[layer][:, 1:] for layer in self.config.layers]  # (B, N, D) each
        maps = [
            patches.transpose(1, 2).unflatten(2, features.grid)
            for patches in tokens or [features.patches]
        ]  # (B, D, Gh, Gw) each
        if self.pyramid is None:
            return SegmenterOutput(self.decoder(maps[0]), None)
        levels = self.pyramid(maps)
        auxiliary = None if self.auxiliary is None else self.auxiliary(levels[AUXILIARY_LEVEL])
        return SegmenterOutput(self.decoder(levels), auxiliary)

    def predict(self, images: Tensor) -> Tensor:
        """Classify every pixel of images (B, 3, H, W), uint8 or float in [0, 1].

        Returns: (B, Y, H, W) logits; their ``argmax(dim=1)`` is the label map
        """
        return resize_maps(self(images).logits, images.shape[2:])


def pixel_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy () over pixels, in float32, at the size of the labels.

    As published, the mean is over all pixels, with 0 for ignored ones: images with few labelled
    pixels have less weight.

    logits: (B, Y, h, w), resized to (H, W)
    labels: (B, H, W) of any integer type, classes in [0, Y) or IGNORED
    """
    # Full-size logits take gigabytes: compute them for a few images at a time, and again for the
    # gradients.
    images = max(1, FINE_LOGITS // (logits.shape[1] * labels[0].numel()))
    sums = [
        checkpoint(_summed_cross_entropy, *part, use_reentrant=False)
        for part in zip(logits.split(images), labels.split(images), strict=True)
    ]
    return torch.stack(sums).sum() / labels.numel()


def _summed_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    fine = resize_maps(logits.float(), labels.shape[1:])
    return F.cross_entropy(fine, labels.long(), ignore_index=IGNORED, reduction="sum")
