import math

import pytest
import torch
from torch import Tensor
from torchmetrics.image.fid import _compute_fid

from beit.tokenizer.image_metrics import FrechetSums, Moments, frechet_distance, psnr, ssim


def some_images(number: int, height: int = 12, width: int = 17) -> Tensor:
    return torch.rand(number, 3, height, width, generator=torch.Generator().manual_seed(number))


def test_psnr_of_each_image() -> None:
    images = some_images(3) * 0.8
    painted = images + torch.tensor([0.1, 0.01, 0.0]).view(3, 1, 1, 1)
    torch.testing.assert_close(psnr(painted, images), torch.tensor([20.0, 40.0, 100.0]))


def test_ssim_of_each_image() -> None:
    images = some_images(2)
    same, other = ssim(torch.stack([images[0], 1 - images[1]]), images).tolist()
    assert same == pytest.approx(1)
    assert other < 0
    flat = [torch.full((1, 3, 12, 17), value) for value in (0.25, 0.75)]
    # Without variance only the means are compared: (2ab + c) / (a^2 + b^2 + c), c = 0.01^2.
    expected = (2 * 0.25 * 0.75 + 1e-4) / (0.25**2 + 0.75**2 + 1e-4)
    assert ssim(*flat).item() == pytest.approx(expected, rel=1e-3)  # float32 variances


def test_frechet_distance_by_hand() -> None:
    """Of normal distributions with diagonal covariances: sum of (m - n)^2 + (s - t)^2."""
    first = Moments(
        torch.tensor([1.0, 2.0]).double(), torch.diag(torch.tensor([4.0, 9.0])).double()
    )
    second = Moments(torch.zeros(2).double(), torch.diag(torch.tensor([1.0, 16.0])).double())
    assert frechet_distance(first, second) == pytest.approx(1 + 4 + 1 + 1)
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-12)


def pooled(images: Tensor) -> Tensor:
    return torch.cat([images.mean((2, 3)), images.amax((2, 3))], 1)  # (B, 6)


def test_sums_over_batches_and_processes_are_those_of_all_images() -> None:
    images, painted = some_images(40), some_images(41)[:40] * 0.7
    parts = [FrechetSums(pooled, 6, torch.device("cpu")) for _ in range(2)]
    parts[0].add(images[:25], painted[:25])
    parts[0].add(images[:0], painted[:0])
    parts[1].add(images[25:], painted[25:])
    first, second = parts[0].moments(lambda sums: sums + parts[1].sums)
    for moments, pixels in ((first, images), (second, painted)):
        features = pooled(pixels).double()
        torch.testing.assert_close(moments.mean, features.mean(0))
        torch.testing.assert_close(moments.covariance, features.T.cov())
    theirs = _compute_fid(first.mean, first.covariance, second.mean, second.covariance)
    assert frechet_distance(first, second) == pytest.approx(theirs.item(), rel=1e-6)
    assert math.isfinite(frechet_distance(first, second))


def test_one_image_has_no_distribution() -> None:
    sums = FrechetSums(pooled, 6, torch.device("cpu"))
    sums.add(some_images(1), some_images(1))
    with pytest.raises(ValueError, match="needs 2 images or more, got 1"):
        sums.moments(lambda sums: sums)
