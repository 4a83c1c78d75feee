"""The discrete VAE, BEiT v1's trainable tokenizer (BEiT, section 2.1; Ramesh et al. 2021)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from beit.nn.patches import Size, checked_codes, grid_of, per_channel, pixels_of

TEMPERATURE = 0.9  # default of the published code
MAX_LAYERS = 16  # one code for 65,536 x 65,536 pixels


@dataclass(frozen=True)
class DiscreteVAEConfig:
    """Configuration of a discrete VAE; defaults are the sizes with which BEiT v1 loads its weights.

    Attributes:
        image_size: height and width of the images, in pixels; other multiples of a patch work too
        num_codes: number of codes in the codebook (K)
        code_width: channels of a code (C)
        num_layers: times the encoder halves the resolution and the decoder doubles it
        hidden_width: channels of the hidden layers
        mean: per-channel mean of images in [0, 1]; null for no normalisation. One value, or equal
            ones, are for all channels
        std: per-channel standard deviation of images in [0, 1], likewise
        in_channels: channels of the images, 3 for RGB
    """

    image_size: Size = (112, 112)
    num_codes: int = 8192
    code_width: int = 512
    num_layers: int = 3
    hidden_width: int = 256
    mean: tuple[float, ...] | None = (0.5, 0.5, 0.5)
    std: tuple[float, ...] | None = (0.5, 0.5, 0.5)
    in_channels: int = 3

    def __post_init__(self) -> None:
        if not 1 <= self.num_layers <= MAX_LAYERS:
            raise ValueError(f"num_layers must be in 1..{MAX_LAYERS}, got {self.num_layers}")
        if min(self.num_codes, self.code_width, self.hidden_width) < 1:
            raise ValueError(
                "num_codes, code_width and hidden_width must be 1 or more, got "
                f"{self.num_codes}, {self.code_width} and {self.hidden_width}"
            )
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std go together: give both or neither")
        if self.in_channels < 2:
            raise ValueError(
                f"in_channels is {self.in_channels}; expected 3 for RGB and for grey, whose "
                "channels are equal, or the number of bands"
            )
        for name in ("mean", "std"):
            values = per_channel(name, getattr(self, name), self.in_channels)
            object.__setattr__(self, name, values)
        grid_of(self.image_size, self.patch_size)

    @property
    def patch_size(self) -> int:
        """Side of the square of pixels of one code."""
        return 1 << self.num_layers

    @property
    def grid(self) -> Size:
        """Grid of the codes (Gh, Gw)."""
        return grid_of(self.image_size, self.patch_size)


class DiscreteVAEOutput(NamedTuple):
    """Output of a discrete VAE in training.

    The KL divergence of softmax(logits) from the uniform distribution, () float32 in nats, is
    summed over grid and batch, as in the published code (its "batchmean" divides by 1). Divide by
    B * Gh * Gw for the mean.
    """

    logits: Tensor  # (B, K, Gh, Gw) float32, encoder output
    relaxed: Tensor  # (B, K, Gh, Gw) float32, Gumbel-softmax sample, sums to 1 over the codes
    decoded: Tensor  # (B, c, H, W) decoder output, normalised pixels
    pixels: Tensor  # (B, c, H, W) float32, the normalised images, the target of `decoded`
    kl: Tensor


class ResidualBlock(nn.Module):
    """Residual block: two 3x3 convolutions and a 1x1, added to the input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 1),
        )

    def forward(self, maps: Tensor) -> Tensor:
        """Refine maps (B, c, h, w)."""
        return self.net(maps) + maps  # type: ignore[no-any-return]


class DiscreteVAE(nn.Module):
    """A `Tokenizer` that also decodes codes to images; normalises its images itself."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: DiscreteVAEConfig) -> None:
        super().__init__()
        self.config = config
        self.vocab_size, self.grid = config.num_codes, config.grid
        self.image_size = config.image_size
        width = config.hidden_width
        for name, values in (("mean", config.mean), ("std", config.std)):
            buffer = None if values is None else torch.tensor(values).view(-1, 1, 1)
            self.register_buffer(name, buffer, persistent=False)
        self.codebook = nn.Embedding(config.num_codes, config.code_width)
        self.encoder, self.decoder = nn.Sequential(), nn.Sequential()
        for layer in range(config.num_layers):
            channels = (width, width) if layer else (config.in_channels, config.code_width)
            halve = nn.Conv2d(channels[0], width, 4, stride=2, padding=1)
            double = nn.ConvTranspose2d(channels[1], width, 4, stride=2, padding=1)
            self.encoder.extend([nn.Sequential(halve, nn.ReLU()), ResidualBlock(width)])
            self.decoder.extend([nn.Sequential(double, nn.ReLU()), ResidualBlock(width)])
        self.encoder.append(nn.Conv2d(width, config.num_codes, 1))
        self.decoder.append(nn.Conv2d(width, config.in_channels, 1))

    def normalised(self, images: Tensor) -> Tensor:
        """Normalise images (B, c, H, W), uint8 or float in [0, 1], to float32."""
        pixels = pixels_of(images, channels=self.config.in_channels).float()
        grid_of((images.shape[2], images.shape[3]), self.config.patch_size)
        return pixels if self.config.mean is None else (pixels - self.mean) / self.std

    def logits(self, images: Tensor) -> Tensor:
        """Return the logits of the codes (B, K, Gh, Gw) of images (B, 3, H, W)."""
        return self.encoder(self.normalised(images))  # type: ignore[no-any-return]

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Tokenize images (B, 3, H, W), uint8 or float in [0, 1]: codes (B, N) int64 in [0, K).

        Runs in float32 under any autocast. H and W can be any multiples of the patch side.
        """
        pixels = self.normalised(images)
        with torch.autocast(pixels.device.type, enabled=False):
            return self.encoder(pixels).argmax(1).flatten(1)  # type: ignore[no-any-return]  # (B, N)

    def decode_images(self, codes: Tensor, grid: Size | None = None) -> Tensor:
        """Decode codes (B, N) on a grid (see `code_map`) to images (B, 3, H, W) in [0, 1].

        The codes are in [0, K), of any integer type.
        """
        codes = checked_codes(codes, self.vocab_size)
        quantized = self.codebook(code_map(codes, self.grid, grid))  # (B, Gh, Gw, C)
        pixels = self.decode(quantized.permute(0, 3, 1, 2)).float()
        if self.config.mean is not None:
            pixels = pixels * self.std + self.mean
        return pixels.clamp(0, 1)

    def decode(self, quantized: Tensor) -> Tensor:
        """Decode code vectors (B, C, Gh, Gw) to normalised pixels (B, 3, H, W)."""
        return self.decoder(quantized)  # type: ignore[no-any-return]

    def forward(
        self,
        images: Tensor,
        generator: torch.Generator | None = None,
        temperature: float = TEMPERATURE,
        hard: bool = False,
        noise: Tensor | None = None,
    ) -> DiscreteVAEOutput:
        """Encode images (B, 3, H, W), uint8 or float in [0, 1], sample codes and decode them.

        Args:
            generator: draws the Gumbel noise, on the images' device; None for the default generator
            temperature, hard: see `gumbel_softmax`
            noise: (B, K, Gh, Gw) float32 from `gumbel_noise`, used instead of the generator
        """
        pixels = self.normalised(images)
        logits = self.encoder(pixels).float()  # (B, K, Gh, Gw)
        if noise is None:
            noise = gumbel_noise(logits.shape, generator, logits.device)
        relaxed = gumbel_softmax(logits, noise, temperature, hard)
        quantized = torch.einsum("bkhw,kc->bchw", relaxed, self.codebook.weight)  # (B, C, Gh, Gw)
        log_probabilities = logits.log_softmax(1)
        kl = (log_probabilities.exp() * (log_probabilities + math.log(self.vocab_size))).sum()
        return DiscreteVAEOutput(logits, relaxed, self.decode(quantized), pixels, kl)


def reconstruction_loss(output: DiscreteVAEOutput, smooth: bool = False) -> Tensor:
    """Return the mean squared or smooth L1 distance () of decoded to normalised pixels.

    The published loss adds a weight times `output.kl`.
    """
    distance = F.smooth_l1_loss if smooth else F.mse_loss
    return distance(output.decoded.float(), output.pixels)


def gumbel_noise(
    shape: Sequence[int], generator: torch.Generator | None, device: torch.device | str = "cpu"
) -> Tensor:
    """Draw float32 Gumbel variates; the generator is on `device`, None for the default one."""
    # -log(x) of an exponential variate x is a Gumbel variate; x is never 0.
    return torch.empty(*shape, device=device).exponential_(generator=generator).log_().neg_()


def gumbel_softmax(logits: Tensor, noise: Tensor, temperature: float, hard: bool = False) -> Tensor:
    """Draw a relaxed sample (B, K, ...) float32 of softmax(logits) (Jang et al. 2017, Eq. 2).

    Args:
        logits: (B, K, ...) float32
        noise: of the same shape, from `gumbel_noise`
        temperature: above 0; samples approach one-hot values as it approaches 0
        hard: return one-hot values with the gradient of the relaxed ones (straight-through)
    """
    if temperature <= 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    if noise.shape != logits.shape:
        raise ValueError(f"noise is {tuple(noise.shape)}, expected {tuple(logits.shape)}")
    soft = ((logits + noise) / temperature).softmax(1)
    if not hard:
        return soft
    one_hot = torch.zeros_like(soft).scatter_(1, soft.argmax(1, keepdim=True), 1)
    return one_hot + soft - soft.detach()


def code_map(codes: Tensor, default: Size, grid: Size | None) -> Tensor:
    """Reshape codes (B, N) to a map (B, Gh, Gw).

    Without `grid`, this is the `default`, the tokenizer's grid, if it has N codes, else a square.
    """
    N, side = codes.shape[1], math.isqrt(codes.shape[1])
    if grid is None:
        grid = (side, side) if side**2 == N != math.prod(default) else default
    if math.prod(grid) != N:
        raise ValueError(
            f"{N} codes do not fill a grid of {grid[0]} x {grid[1]}; give grid=(Gh, Gw)"
        )
    return codes.reshape(len(codes), *grid)
