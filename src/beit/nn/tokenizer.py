"""VQ-KD, the visual tokenizer (BEiT v2, section 2.2 and figure 2): encoder, codebook, decoder."""

from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from beit.nn.block import init_published
from beit.nn.quantizer import Quantizer, bounded, check_levels
from beit.nn.vit import VisionTransformer, ViTConfig

NO_CUT = 2.0  # the published tokenizers cut their initial weights at +-2.0, a hundred deviations


@runtime_checkable
class Tokenizer(Protocol):
    """What pretraining asks of a visual tokenizer, which is an ``nn.Module`` besides."""

    @property
    def vocab_size(self) -> int:
        """K."""

    @property
    def grid(self) -> tuple[int, int]:
        """(Gh, Gw), the codes of an image; N = Gh * Gw."""

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the images it takes."""

    def encode(self, images: Tensor) -> Tensor:
        """Tokenize images (B, 3, H, W), uint8 or float in [0, 1]: codes (B, N) int64 in [0, K)."""

    def to(self, device: torch.device, /) -> Self:
        """Move it."""


def tokenizer_vit(image_size: tuple[int, int] = (224, 224), patch_size: int = 16) -> ViTConfig:
    """Return the published tokenizer's encoder: ViT-B, absolute positions, pixels in [-1, 1]."""
    return ViTConfig(
        image_size=image_size,
        patch_size=patch_size,
        absolute_positions=True,
        relative_bias="none",
        layer_scale=None,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        init_bound=NO_CUT,
    )


@dataclass(frozen=True)
class VQKDConfig:
    """The numbers of a VQ-KD tokenizer.

    Attributes:
        encoder: the ViT that sees the image
        decoder_depth: blocks of the decoder, as wide as the encoder
        num_codes: codes in the codebook (K)
        code_width: channels of a code (C)
        teacher_width: channels of the teacher's features (T); 0 takes them from the teacher
        decay: of the codebook's moving average
        l2_normalised: vectors and codes have length 1, as published; else codes are nearest in
            Euclidean distance
        levels: of each channel of a code: codes are the points of this grid instead of learned
            (FSQ; 8, 8, 8, 4, 4 make 8,192 codes of 5 channels); none by default
    """

    encoder: ViTConfig = field(default_factory=tokenizer_vit)
    decoder_depth: int = 3
    num_codes: int = 8192
    code_width: int = 32
    teacher_width: int = 512
    decay: float = 0.99
    l2_normalised: bool = True
    levels: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.decoder_depth < 1 or self.code_width < 1 or self.teacher_width < 0:
            raise ValueError(
                "decoder_depth and code_width must be 1 or more and teacher_width 0 or more, got "
                f"{self.decoder_depth}, {self.code_width} and {self.teacher_width}"
            )
        check_levels(self.levels, self.num_codes, self.code_width, self.l2_normalised)

    @property
    def decoder(self) -> ViTConfig:
        """The decoder: the encoder's ViT over the map of codes, one code a patch."""
        return replace(
            self.encoder,
            image_size=self.encoder.grid,
            patch_size=1,
            in_channels=self.code_width,
            depth=self.decoder_depth,
            mean=None,
            std=None,
        )


class VQKDOutput(NamedTuple):
    """What a tokenizer gives while it learns.

    Attributes:
        vectors: (B, N, C) float32, unit length with ``l2_normalised``, what the encoder says of
            each patch
        codes: (B, N) int64 in [0, K), the nearest codes
        features: (B, N, T) what the decoder rebuilds of the teacher's features
        commitment: () mean squared distance of vectors to their codes (third term of Eq. 2)
        attraction: () the same distance, whose gradient moves the codes and not the vectors (second
            term of Eq. 2); for a codebook that learns by gradients
    """

    vectors: Tensor
    codes: Tensor
    features: Tensor
    commitment: Tensor
    attraction: Tensor


class VQKD(nn.Module):
    """Images to codes, and codes to a teacher's features."""

    def __init__(self, config: VQKDConfig) -> None:
        super().__init__()
        if config.teacher_width < 1:
            raise ValueError(f"teacher_width must be 1 or more, got {config.teacher_width}")
        self.config = config
        D = config.encoder.width
        self.encoder = VisionTransformer(config.encoder)
        self.encode_task = nn.Sequential(
            nn.Linear(D, D), nn.Tanh(), nn.Linear(D, config.code_width)
        )
        self.quantizer = Quantizer(
            config.num_codes, config.code_width, config.decay, config.l2_normalised, config.levels
        )
        self.decoder = VisionTransformer(config.decoder)
        self.decode_task = nn.Sequential(
            nn.Linear(D, D), nn.Tanh(), nn.Linear(D, config.teacher_width)
        )
        for task in (self.encode_task, self.decode_task):
            init_published(task, config.encoder.init_bound)

    @property
    def vocab_size(self) -> int:
        """K."""
        return self.config.num_codes

    @property
    def grid(self) -> tuple[int, int]:
        """(Gh, Gw)."""
        return self.config.encoder.grid

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of its images."""
        return self.config.encoder.image_size

    def embed(self, images: Tensor) -> Tensor:
        """Encode images (B, 3, H, W), uint8 or float in [0, 1], as vectors (B, N, C) float32."""
        patches = self.encoder(images).patches
        with torch.autocast(patches.device.type, enabled=False):
            vectors: Tensor = self.encode_task(patches.float())
            return bounded(vectors, self.config.levels) if self.config.levels else vectors

    def encode(self, images: Tensor) -> Tensor:
        """Tokenize images (B, 3, H, W), uint8 or float in [0, 1]: codes (B, N) int64 in [0, K)."""
        return self.quantizer.nearest(self.embed(images))

    def decode(self, codes: Tensor) -> Tensor:
        """Rebuild the teacher's features (B, N, T) from codes (B, N) int64."""
        return self.rebuild(self.quantizer.codebook[codes])

    def rebuild(self, quantized: Tensor) -> Tensor:
        """Decode code vectors (B, N, C) to teacher features (B, N, T)."""
        Gh, Gw = self.grid
        code_map = quantized.transpose(1, 2).unflatten(2, (Gh, Gw))  # (B, C, Gh, Gw)
        return self.decode_task(self.decoder(code_map).patches)  # type: ignore[no-any-return]

    def forward(self, images: Tensor) -> VQKDOutput:
        """Encode, quantize and rebuild images (B, 3, H, W), uint8 or float in [0, 1].

        Gradients pass the codebook straight through (from decoder input to encoder output). The
        codebook itself is left as it is: see ``Quantizer.statistics`` and ``Quantizer.update``.
        """
        vectors = self.quantizer.placed(self.embed(images))  # (B, N, C)
        codes = self.quantizer.nearest(vectors)
        chosen = self.quantizer.codebook[codes]  # (B, N, C)
        quantized = chosen.detach()
        commitment = F.mse_loss(vectors, quantized)
        attraction = F.mse_loss(self.quantizer.placed(chosen), vectors.detach())
        features = self.rebuild(vectors + (quantized - vectors).detach())
        return VQKDOutput(vectors, codes, features, commitment, attraction)
