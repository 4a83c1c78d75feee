"""The vision Transformer: every model's backbone, and the tokenizer's encoder and decoder."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from beit.nn.block import NORM_EPS, Block, init_published, rescale_residual, trunc_normal_
from beit.nn.patches import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    PatchEmbed,
    Size,
    check_indices,
    grey,
    grid_of,
    per_channel,
    pixels_of,
)
from beit.nn.relative_bias import RelativePositionBias

SIZES = {  # width, depth, heads (Touvron et al. 2021 for Ti and S, Dosovitskiy et al. 2021)
    "Ti": (192, 12, 3),
    "S": (384, 12, 6),
    "B": (768, 12, 12),
    "L": (1024, 24, 16),
    "H": (1280, 32, 16),
}


@dataclass(frozen=True)
class ViTConfig:
    """Configuration of a vision Transformer.

    Attributes:
        image_size: height and width of the images, in pixels
        patch_size: side of a patch, in pixels
        in_channels: 3 for RGB, 1 for a model that reduces its RGB images to grey, or any number of
            bands (docs/data.md)
        width: channels of a token (D)
        depth: number of blocks
        num_heads: attention heads (h)
        mlp_ratio: hidden width of the MLP, as a multiple of D
        absolute_positions: add a learned position vector to every token
        relative_bias: relative position bias: none, one table for all blocks, or one per_block
        layer_scale: initial per-channel scale of both branches; null for no scale
        drop_path: stochastic depth rate of the last block; rates grow linearly from 0
        final_norm: apply a LayerNorm after the last block
        mean: per-channel mean of images in [0, 1]; null for no normalisation. One value, or equal
            ones, are for all channels, and a grey model takes the average of three
        std: per-channel standard deviation of images in [0, 1], likewise
        init_bound: initial weights are normal with std 0.02, truncated at +- this bound
    """

    image_size: Size = (224, 224)
    patch_size: int = 16
    in_channels: int = 3
    width: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    absolute_positions: bool = False
    relative_bias: Literal["none", "shared", "per_block"] = "shared"
    layer_scale: float | None = 0.1
    drop_path: float = 0.0
    final_norm: bool = True
    mean: tuple[float, ...] | None = IMAGENET_MEAN
    std: tuple[float, ...] | None = IMAGENET_STD
    init_bound: float = 0.02

    def __post_init__(self) -> None:
        grid_of(self.image_size, self.patch_size)
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} is not a multiple of num_heads {self.num_heads}")
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std go together: give both or neither")
        if self.in_channels < 1:
            raise ValueError(f"in_channels is {self.in_channels}; expected 3 for RGB, or 1 or more")
        for name in ("mean", "std"):
            values = per_channel(name, getattr(self, name), self.in_channels)
            object.__setattr__(self, name, values)
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"drop_path must be in [0, 1), got {self.drop_path}")

    @property
    def grid(self) -> Size:
        """Patch grid (Gh, Gw)."""
        return grid_of(self.image_size, self.patch_size)

    @property
    def image_channels(self) -> int:
        """Channels of the images (c): a grey model takes RGB."""
        return 3 if self.in_channels == 1 and not self.of_codes else self.in_channels

    @property
    def of_codes(self) -> bool:
        """Whether patches are vectors of codes, not of images: in a tokenizer's decoder."""
        return self.patch_size == 1 and self.mean is None

    @property
    def normalises(self) -> bool:
        """Whether mean and std change the images; if not, the caller may have normalised them."""
        return self.mean is not None and (any(self.mean) or set(self.std or ()) != {1})

    @property
    def num_patches(self) -> int:
        """Number of patches, N = Gh * Gw."""
        return self.grid[0] * self.grid[1]


def vit_config(size: Literal["Ti", "S", "B", "L", "H"], **options: Any) -> ViTConfig:
    """Return the pretraining configuration of a named size, with other options of `ViTConfig`.

    The layer scale is 1e-5 for L and H.
    """
    if size not in SIZES:
        raise ValueError(f"no ViT size {size!r}; sizes are {', '.join(SIZES)}")
    width, depth, num_heads = SIZES[size]
    scale = 0.1 if depth < 24 else 1e-5
    return ViTConfig(width=width, depth=depth, num_heads=num_heads, layer_scale=scale, **options)


def new_block(vit: ViTConfig, drop_rate: float) -> Block:
    """Build one block of a ViT, with its own rate of stochastic depth."""
    grid = vit.grid if vit.relative_bias == "per_block" else None
    return Block(vit.width, vit.num_heads, vit.mlp_ratio, vit.layer_scale, drop_rate, grid)


class Features(NamedTuple):
    """Output of a ViT.

    Attributes:
        cls: (B, D) [CLS] after the final norm, if there is one
        patches: (B, N, D), likewise; (B, M, D) at ``positions``
        grid: (Gh, Gw), N = Gh * Gw
        layers: {i: (B, 1+N, D)} raw output of block i, from 1; of 0, the input of the first block
    """

    cls: Tensor
    patches: Tensor
    grid: Size
    layers: dict[int, Tensor]


class VisionTransformer(nn.Module):
    """Patch embedding, [CLS], blocks, final norm; normalises its images itself."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config, self.image_size = config, config.image_size
        D = config.width
        for name, values in (("mean", config.mean), ("std", config.std)):
            buffer = None if values is None else torch.tensor(values).view(-1, 1, 1)
            self.register_buffer(name, buffer, persistent=False)
        self.patch_embed = PatchEmbed(config.in_channels, D, config.patch_size)
        self.cls_token = nn.Parameter(torch.empty(1, 1, D))
        positions = torch.empty(1, 1 + config.num_patches, D) if config.absolute_positions else None
        self.pos_embed = None if positions is None else nn.Parameter(positions)
        shared = config.relative_bias == "shared"
        self.rel_pos_bias = RelativePositionBias(config.grid, config.num_heads) if shared else None
        self.blocks = nn.ModuleList(
            new_block(config, config.drop_path * i / max(config.depth - 1, 1))
            for i in range(config.depth)
        )
        self.norm = nn.LayerNorm(D, eps=NORM_EPS) if config.final_norm else nn.Identity()

        init_published(self, config.init_bound)
        for token in (self.cls_token, self.pos_embed):
            if token is not None:
                trunc_normal_(token, config.init_bound)
        for layer, block in enumerate(self.blocks, 1):
            rescale_residual(block, layer)

    def bias(self) -> Tensor | None:
        """Return the relative position bias (1, h, 1+N, 1+N) shared by all blocks, or None."""
        return None if self.rel_pos_bias is None else self.rel_pos_bias()

    def normalised(self, images: Tensor) -> Tensor:
        """Check images (B, c, H, W), uint8 or float in [0, 1], and normalise them to float."""
        config, pixels = self.config, images
        if not config.of_codes:
            pixels = pixels_of(images, not config.normalises, config.image_channels)
        H, W = images.shape[2:]
        if (H, W) != tuple(config.image_size):
            size, way = tuple(config.image_size), "resize them: beit.open_image(files, size=model),"
            way += f" or F.interpolate(images, {size}, mode='bicubic', antialias=True)"
            if not (H % config.patch_size or W % config.patch_size):
                way += f"; or a model with a backbone: beit.nn.position.resized(model, ({H}, {W}))"
            raise ValueError(f"images are {H} x {W}, the model takes {size[0]} x {size[1]}; {way}")
        if config.in_channels == 1 and not config.of_codes:
            pixels = grey(pixels)
        return pixels if config.mean is None else (pixels - self.mean) / self.std

    def forward(
        self,
        images: Tensor,
        masked: Tensor | None = None,
        mask_token: Tensor | None = None,
        layers: Collection[int] = (),
        positions: Tensor | None = None,
    ) -> Features:
        """Encode images (B, c, H, W), uint8 or float in [0, 1], of the configured size.

        Args:
            masked: (B, M) int64, indices in [0, N) of the patches hidden from the model; each is
                replaced by ``mask_token`` before the first block (BEiT v2, section 2.3)
            mask_token: (1, 1, D), required with ``masked``
            layers: blocks, from 1, whose raw outputs to return; 0 for the input of the first block
            positions: (B, M) int64, the patches to return, also of the last block in ``layers``,
                M instead of N; the last block computes only these and [CLS]. None for all

        Raises:
            TypeError, ValueError: images, ``layers``, ``masked`` or ``positions`` are other than
                described; values of indices are checked on a CPU only.
        """
        pixels = self.normalised(images)
        if isinstance(layers, int | str) or not set(layers) <= set(range(len(self.blocks) + 1)):
            raise ValueError(
                f"layers is {layers!r}; expected a list of blocks, from 1 to {len(self.blocks)}, "
                "or 0 for the input of the first"
            )
        patches = self.patch_embed(pixels.to(self.cls_token.dtype))  # (B, N, D)
        if masked is not None:
            if mask_token is None:
                give = "that of the pretraining model: backbone(images, masked, model.mask_token)"
                raise ValueError(f"masked needs mask_token (1, 1, D); give {give}")
            check_indices("masked", masked, *patches.shape[:2])
            hidden = masked.new_zeros(patches.shape[:2]).scatter_(1, masked, 1).bool()  # (B, N)
            patches = torch.where(hidden[..., None], mask_token, patches)
        cls = self.cls_token.expand(images.shape[0], -1, -1)  # (B, 1, D)
        tokens = torch.cat([cls, patches], dim=1)  # (B, 1+N, D)
        if self.pos_embed is not None:
            tokens = tokens + self.pos_embed
        if positions is not None and positions is not masked:
            check_indices("positions", positions, *patches.shape[:2])
        chosen = None if positions is None else F.pad(1 + positions, (1, 0))  # (B, 1+M)
        bias, outputs = self.bias(), {0: tokens} if 0 in layers else {}
        for layer, block in enumerate(self.blocks, 1):
            tokens = block(tokens, bias, chosen if layer == len(self.blocks) else None)
            if layer in layers:
                outputs[layer] = tokens
        normed = self.norm(tokens)  # (B, 1+N, D), or (B, 1+M, D)
        return Features(normed[:, 0], normed[:, 1:], self.config.grid, outputs)
