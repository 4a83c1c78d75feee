"""VQ-KD, the visual tokenizer (BEiT v2, section 2.2 and figure 2): encoder, codebook, decoder."""

from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from beit.nn.block import init_published
from beit.nn.patches import Size, checked_codes
from beit.nn.quantizer import Quantizer, bounded, check_levels
from beit.nn.vit import VisionTransformer, ViTConfig

NO_CUT = 2.0  # init_bound of the published tokenizers: 100 standard deviations, in effect none


@runtime_checkable
class Tokenizer(Protocol):
    """Interface of every visual tokenizer; all of them are ``nn.Module``s."""

    vocab_size: int  # number of codes (K)
    grid: Size  # (Gh, Gw) of the codes of an image; N = Gh * Gw
    image_size: Size  # (height, width) of the input images

    def encode(self, images: Tensor) -> Tensor:
        """Tokenize images (B, 3, H, W), uint8 or float in [0, 1]: codes (B, N) int64 in [0, K)."""

    def to(self, device: torch.device, /) -> Self:
        """Move the tokenizer to a device."""


def tokenizer_vit(image_size: Size = (224, 224), patch_size: int = 16) -> ViTConfig:
    """Return the published encoder configuration: ViT-B, absolute positions, pixels in [-1, 1]."""
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
    """Configuration of a VQ-KD tokenizer.

    Attributes:
        encoder: the ViT that encodes the image
        decoder_depth: number of decoder blocks; the decoder is as wide as the encoder
        num_codes: number of codes in the codebook (K)
        code_width: channels of a code (C)
        teacher_width: channels of the teacher's features (T); 0 takes them from the teacher
        decay: decay of the codebook's exponential moving average
        l2_normalised: vectors and codes have length 1, as published; false: the nearest code is
            that of the smallest Euclidean distance
        levels: levels of each channel for a fixed grid of codes (FSQ), for example 8, 8, 8, 4, 4
            for 8,192 codes; empty for learned codes
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
        """Configuration of the decoder: the encoder's ViT on the map of codes, one per patch."""
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
    """Output of a tokenizer in training.

    The commitment () is the mean squared distance of vectors to their codes (third term of Eq. 2),
    the attraction () the same with gradients for the codes instead (second term), for a codebook
    learned by gradients.
    """

    vectors: Tensor  # (B, N, C) float32, encoder output; of length 1 with ``l2_normalised``
    codes: Tensor  # (B, N) int64 in [0, K), the nearest codes
    features: Tensor  # (B, N, T) decoder output, the reconstruction of the teacher's features
    commitment: Tensor
    attraction: Tensor


class VQKD(nn.Module):
    """A `Tokenizer` that encodes images as codes, and decodes codes to a teacher's features."""

    def __init__(self, config: VQKDConfig) -> None:
        super().__init__()
        if config.teacher_width < 1:
            raise ValueError(f"teacher_width must be 1 or more, got {config.teacher_width}")
        self.config = config
        self.vocab_size, self.grid = config.num_codes, config.encoder.grid
        self.image_size = config.encoder.image_size
        D, C, T = config.encoder.width, config.code_width, config.teacher_width
        self.encoder = VisionTransformer(config.encoder)
        self.encode_task = nn.Sequential(nn.Linear(D, D), nn.Tanh(), nn.Linear(D, C))
        self.quantizer = Quantizer(
            config.num_codes, C, config.decay, config.l2_normalised, config.levels
        )
        self.decoder = VisionTransformer(config.decoder)
        self.decode_task = nn.Sequential(nn.Linear(D, D), nn.Tanh(), nn.Linear(D, T))
        for task in (self.encode_task, self.decode_task):
            init_published(task, config.encoder.init_bound)

    def embed(self, images: Tensor, positions: Tensor | None = None) -> Tensor:
        """Encode images (B, 3, H, W), uint8 or float in [0, 1], as vectors (B, N, C) float32.

        positions: (B, M) int64, the patches to encode, M instead of N; None for all
        """
        patches = self.encoder(images, positions=positions).patches  # (B, N, D)
        with torch.autocast(patches.device.type, enabled=False):
            patches = patches.to(self.encoder.cls_token.dtype)  # of the weights: float32, or half
            vectors: Tensor = self.encode_task(patches).float()  # (B, N, C)
            return bounded(vectors, self.config.levels) if self.config.levels else vectors

    def encode(self, images: Tensor, positions: Tensor | None = None) -> Tensor:
        """Tokenize images (B, 3, H, W), uint8 or float in [0, 1]: codes (B, N) int64 in [0, K).

        positions: (B, M) int64, the patches to tokenize, M instead of N; None for all
        """
        return self.quantizer.nearest(self.embed(images, positions))

    def decode(self, codes: Tensor) -> Tensor:
        """Decode codes (B, N) of any integer type, in [0, K), to teacher features (B, N, T)."""
        codes = checked_codes(codes, self.vocab_size)
        if codes.shape[1] != self.config.encoder.num_patches:
            Gh, Gw = self.grid
            raise ValueError(f"codes are {tuple(codes.shape)}, expected (B, N), N = {Gh} x {Gw}")
        return self.rebuild(self.quantizer.codebook[codes])

    def rebuild(self, quantized: Tensor) -> Tensor:
        """Decode code vectors (B, N, C) to teacher features (B, N, T)."""
        code_map = quantized.transpose(1, 2).unflatten(2, self.grid)  # (B, C, Gh, Gw)
        return self.decode_task(self.decoder(code_map).patches)  # type: ignore[no-any-return]

    def forward(self, images: Tensor, quantize: bool = True) -> VQKDOutput:
        """Encode, quantize and decode images (B, 3, H, W), uint8 or float in [0, 1].

        Gradients pass the quantizer by the straight-through estimator, from decoder input to
        encoder output. The codebook does not change: see ``Quantizer.update``.

        quantize: false decodes the vectors themselves; commitment and attraction are then zero
        """
        vectors = self.quantizer.project(self.embed(images))  # (B, N, C)
        codes = self.quantizer.nearest(vectors)  # (B, N)
        code_vectors = self.quantizer.codebook[codes]  # (B, N, C)
        quantized = code_vectors.detach()
        commitment = F.mse_loss(vectors, quantized)
        attraction = F.mse_loss(self.quantizer.project(code_vectors), vectors.detach())
        if not quantize:
            return VQKDOutput(vectors, codes, self.rebuild(vectors), commitment * 0, attraction * 0)
        features = self.rebuild(vectors + (quantized - vectors).detach())  # (B, N, T)
        return VQKDOutput(vectors, codes, features, commitment, attraction)
