"""DALL-E's frozen image tokenizer, the target of BEiT v1 (Ramesh et al. 2021, appendix A.2)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from beit.nn.dvae import code_map
from beit.nn.patches import Size, checked_codes, grid_of, pixels_of

PATCH_SIZE = 8  # three halvings
GROUPS = (1, 2, 4, 8)  # width of each group of blocks, as a multiple of the first
MARGIN = 0.1  # pixels in [0, 1] are mapped to [0.1, 0.9]


@dataclass(frozen=True)
class DalleConfig:
    """Configuration of DALL-E's tokenizer.

    Attributes:
        image_size: height and width of the images, in pixels; other multiples of 8 work too. BEiT
            v1 uses half the side of the backbone's images: 14 x 14 codes
        num_codes: number of codes (K)
        width: channels after the encoder's stem and before the decoder's last layer
        blocks_per_group: residual blocks in each of the four groups
        code_width: channels of the decoder's input
        decoder: include the decoder, which decodes codes to images
    """

    image_size: Size = (112, 112)
    num_codes: int = 8192
    width: int = 256
    blocks_per_group: int = 2
    code_width: int = 128
    decoder: bool = True

    def __post_init__(self) -> None:
        if min(self.num_codes, self.blocks_per_group, self.code_width) < 1:
            raise ValueError(
                "num_codes, blocks_per_group and code_width must be 1 or more, got "
                f"{self.num_codes}, {self.blocks_per_group} and {self.code_width}"
            )
        if self.width < 4 or self.width % 4:
            raise ValueError(f"width must be a multiple of 4, got {self.width}")
        grid_of(self.image_size, PATCH_SIZE)

    @property
    def grid(self) -> Size:
        """Grid of the codes (Gh, Gw)."""
        return grid_of(self.image_size, PATCH_SIZE)


class DalleBlock(nn.Module):
    """Residual block: a bottleneck of four convolutions, scaled down and added to the input."""

    def __init__(
        self, in_channels: int, width: int, kernels: tuple[int, int, int, int], scale: float
    ) -> None:
        super().__init__()
        self.scale = scale
        self.shortcut = nn.Identity() if in_channels == width else nn.Conv2d(in_channels, width, 1)
        channels = pairwise((in_channels, *[width // 4] * 3, width))
        self.convs = nn.ModuleList(
            nn.Conv2d(*pair, kernel, padding=kernel // 2)
            for pair, kernel in zip(channels, kernels, strict=True)
        )

    def forward(self, maps: Tensor) -> Tensor:
        """Refine maps (B, c, h, w) to (B, width, h, w)."""
        branch = maps
        for conv in self.convs:
            branch = conv(branch.relu())
        return self.shortcut(maps) + self.scale * branch  # type: ignore[no-any-return]


class DalleNetwork(nn.Module):
    """Stem, four groups of blocks with resampling between them, and a 1x1 convolution."""

    def __init__(
        self,
        stem: nn.Conv2d,
        widths: Sequence[int],
        blocks: int,
        kernels: tuple[int, int, int, int],
        out_channels: int,
        resample: Callable[[Tensor], Tensor],
    ) -> None:
        super().__init__()
        self.resample, self.stem, self.groups = resample, stem, nn.ModuleList()
        channels, scale = stem.out_channels, 1 / (len(widths) * blocks) ** 2
        for width in widths:
            inputs = [channels] + [width] * (blocks - 1)
            group = (DalleBlock(channels, width, kernels, scale) for channels in inputs)
            self.groups.append(nn.Sequential(*group))
            channels = width
        self.head = nn.Conv2d(channels, out_channels, 1)

    def forward(self, maps: Tensor) -> Tensor:
        """Map the output of the stem (B, stem, h, w) to (B, out_channels, h', w')."""
        for number, group in enumerate(self.groups):
            maps = group(self.resample(maps) if number else maps)
        return self.head(maps.relu())  # type: ignore[no-any-return]


class DalleTokenizer(nn.Module):
    """A `Tokenizer` that with its decoder also decodes codes to images; frozen, float32."""

    def __init__(self, config: DalleConfig) -> None:
        super().__init__()
        self.config = config
        self.vocab_size, self.grid = config.num_codes, config.grid
        self.image_size = config.image_size
        K, blocks = config.num_codes, config.blocks_per_group
        widths = [config.width * times for times in GROUPS]
        halve = partial(F.max_pool2d, kernel_size=2)
        double = partial(F.interpolate, scale_factor=2.0)
        stem = nn.Conv2d(3, config.width, 7, padding=3)
        self.encoder = DalleNetwork(stem, widths, blocks, (3, 3, 3, 1), K, halve)
        self.decoder = None
        if config.decoder:
            stem = nn.Conv2d(K, config.code_width, 1)
            # 6 outputs: three means and three scales of a distribution of pixels
            self.decoder = DalleNetwork(stem, widths[::-1], blocks, (1, 3, 3, 3), 6, double)
        self.requires_grad_(False)

    def logits(self, images: Tensor) -> Tensor:
        """Return the logits of the codes (B, K, Gh, Gw) of images (B, 3, H, W), in float32."""
        pixels = pixels_of(images).float() * (1 - 2 * MARGIN) + MARGIN
        grid_of((images.shape[2], images.shape[3]), PATCH_SIZE)
        with torch.autocast(images.device.type, enabled=False):
            return self.encoder(self.encoder.stem(pixels))  # type: ignore[no-any-return]

    def encode(self, images: Tensor) -> Tensor:
        """Tokenize images (B, 3, H, W), uint8 or float in [0, 1]: codes (B, N) int64 in [0, K).

        Runs in float32 under any autocast. H and W can be any multiples of 8.
        """
        return self.logits(images).argmax(1).flatten(1)  # (B, N)

    def decode_images(self, codes: Tensor, grid: Size | None = None) -> Tensor:
        """Decode codes (B, N) on a grid (see `code_map`) to images (B, 3, H, W) in [0, 1].

        The codes are in [0, K), of any integer type.
        """
        if self.decoder is None:
            raise ValueError(
                "this DALL-E tokenizer has an encoder only and cannot decode images; load it with "
                "its decoder: decoder='decoder.pkl', or the folder of both"
            )
        codes = code_map(checked_codes(codes, self.vocab_size), self.grid, grid)  # (B, Gh, Gw)
        with torch.autocast(codes.device.type, enabled=False):
            # The stem is a 1x1 convolution of one-hot codes: it selects columns of its weight.
            stem = self.decoder.stem
            assert stem.bias is not None
            maps = F.embedding(codes, stem.weight.flatten(1).T) + stem.bias  # (B, Gh, Gw, c)
            pixels = self.decoder(maps.permute(0, 3, 1, 2))[:, :3].sigmoid()
        return ((pixels - MARGIN) / (1 - 2 * MARGIN)).clamp(0, 1)  # type: ignore[no-any-return]
