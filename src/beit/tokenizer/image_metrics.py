"""Quality of reconstructed images: PSNR, SSIM, and a Fréchet distance of network features."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

PERFECT = 100.0  # dB, for an image without error


class Moments(NamedTuple):
    """Mean (T,) and covariance (T, T) of features, float64."""

    mean: Tensor
    covariance: Tensor


def psnr(reconstructed: Tensor, images: Tensor) -> Tensor:
    """Return each image's peak signal-to-noise ratio (B,) in dB, at most 100.

    Args:
        reconstructed: (B, 3, H, W) in [0, 1]
        images: likewise
    """
    from torchmetrics.functional.image import peak_signal_noise_ratio  # slow to import

    dims = (1, 2, 3)
    ratio = peak_signal_noise_ratio(
        reconstructed, images, data_range=1.0, reduction="none", dim=dims
    )
    return ratio.clamp(max=PERFECT)


def ssim(reconstructed: Tensor, images: Tensor) -> Tensor:
    """Return each image's structural similarity (B,), at most 1 (Wang et al. 2004).

    It uses Gaussian windows of 11 pixels, the smallest size of an image.

    Args:
        reconstructed: (B, 3, H, W) in [0, 1]
        images: likewise
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    similarity = structural_similarity_index_measure(
        reconstructed, images, data_range=1.0, reduction="none"
    )
    assert isinstance(similarity, Tensor)  # a tuple only with return_full_image
    return similarity


class FrechetSums:
    """Sums over the features of images and of their reconstructions, for all processes.

    Args:
        features: maps images (B, 3, H, W) in [0, 1] to (B, T)
        width: T
        device: of the sums
    """

    def __init__(
        self, features: Callable[[Tensor], Tensor], width: int, device: torch.device
    ) -> None:
        self.features = features
        # For images and reconstructions: T + 1 columns, the last for the count. MPS has no float64.
        dtype = torch.float32 if device.type == "mps" else torch.float64
        self.sums = torch.zeros(2, width + 1, width + 1, dtype=dtype, device=device)

    def add(self, images: Tensor, reconstructed: Tensor) -> None:
        """Add images and their reconstructions, (B, 3, H, W) in [0, 1]; B may be 0."""
        if not len(images):
            return
        for sums, pixels in zip(self.sums, (images, reconstructed), strict=True):
            rows = self.features(pixels).to(sums.dtype)
            rows = torch.cat([rows, rows.new_ones(len(rows), 1)], 1)  # (B, T + 1)
            sums += rows.T @ rows

    def moments(self, reduce: Callable[[Tensor], Tensor]) -> tuple[Moments, Moments]:
        """Return the moments of images and reconstructions; `reduce` sums over processes."""
        of_images, of_reconstructed = reduce(self.sums).double().cpu()
        return _moments(of_images), _moments(of_reconstructed)


def _moments(sums: Tensor) -> Moments:
    count, total, products = sums[-1, -1], sums[-1, :-1], sums[:-1, :-1]
    if count < 2:
        raise ValueError(f"a Fréchet distance needs 2 images or more, got {int(count)}")
    mean = total / count
    return Moments(mean, (products - count * torch.outer(mean, mean)) / (count - 1))


def frechet_distance(first: Moments, second: Moments) -> float:
    """Return the squared Fréchet distance of two normal distributions (Dowson and Landau 1982)."""
    values, vectors = torch.linalg.eigh(first.covariance)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    # The trace of (S1 S2)^(1/2) is that of the symmetric (S1^(1/2) S2 S1^(1/2))^(1/2).
    crossed = torch.linalg.eigvalsh(root @ second.covariance @ root).clamp(min=0).sqrt().sum()
    spread = first.covariance.trace() + second.covariance.trace() - 2 * crossed
    return max(0.0, float((first.mean - second.mean).square().sum() + spread))
