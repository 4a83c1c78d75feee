"""ImageNet-C's 15 kinds × 5 severities of corruption, made on the fly, and their mean errors.

Hendrycks & Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations", ICLR 2019. docs/corruptions.md compares each kind with the published code.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from beit.data.order import step_generator
from beit.evaluation.corruptions import blur, digital, noise, weather
from beit.wording import nearest

# The function of each kind, and AlexNet's top-1 error on it in ImageNet-C, a mean of the five
# severities. Table 1 of the paper rounds these errors; the digits are those of imagenet.py of
# github.com/google-research/augmix, which took them from github.com/hendrycks/robustness.
_CORRUPTIONS: dict[str, tuple[Callable[..., Tensor], float]] = {
    "gaussian_noise": (noise.gaussian_noise, 0.886428),
    "shot_noise": (noise.shot_noise, 0.894468),
    "impulse_noise": (noise.impulse_noise, 0.922640),
    "defocus_blur": (blur.defocus_blur, 0.819880),
    "glass_blur": (blur.glass_blur, 0.826268),
    "motion_blur": (blur.motion_blur, 0.785948),
    "zoom_blur": (blur.zoom_blur, 0.798360),
    "snow": (weather.snow, 0.866816),
    "frost": (weather.frost, 0.826572),
    "fog": (weather.fog, 0.819324),
    "brightness": (weather.brightness, 0.564592),
    "contrast": (digital.contrast, 0.853204),
    "elastic_transform": (digital.elastic_transform, 0.646056),
    "pixelate": (digital.pixelate, 0.717840),
    "jpeg_compression": (digital.jpeg_compression, 0.606500),
}
KINDS = tuple(_CORRUPTIONS)
ALEXNET_ERRORS = {kind: error for kind, (_, error) in _CORRUPTIONS.items()}  # of published mCE
SEVERITIES = (1, 2, 3, 4, 5)
PARAMETERS = noise.PARAMETERS | blur.PARAMETERS | weather.PARAMETERS | digital.PARAMETERS

_CHUNK = 2**19  # values processed at once, few enough for the CPU cache


def corrupt(
    images: Tensor, kind: str, severity: int, *, seed: int, indices: Sequence[int] | Tensor
) -> Tensor:
    """Corrupt images as in ImageNet-C (or CIFAR-10-C).

    The result depends on the image and on (seed, kind, index) only, not on the batch. The
    severities of a kind share their random numbers: the same flakes, denser.

    Args:
        images: (B, 3, H, W) uint8, on the CPU, each side 8 or more
        kind: one of `KINDS`
        severity: 1 to 5
        indices: (B,), the number of each image in its set

    Returns: (B, 3, H, W) uint8, a new tensor

    Raises:
        ValueError: other images, an unknown kind or severity, or not one index for each image.
    """
    indices = [int(index) for index in indices]
    _check(images, kind, severity, len(indices))
    values = PARAMETERS[kind][published_side(*images.shape[-2:])][severity - 1]
    function, _ = _CORRUPTIONS[kind]
    count = max(1, _CHUNK // images[0].numel()) if len(images) else 1
    corrupted = torch.empty_like(images, memory_format=torch.contiguous_format)
    for start in range(0, len(images), count):
        part = slice(start, start + count)
        generators = [step_generator(seed, index, kind) for index in indices[part]]
        floats = images[part].to(torch.float32, memory_format=torch.contiguous_format)
        corrupted[part] = blur.truncated(function(floats, generators, *values))
    return corrupted


def published_side(height: int, width: int) -> int:
    """Return which published list applies: 32 (CIFAR-10-C) or 224 (ImageNet-C).

    The one nearer in ratio to the shorter side: 32 up to 84 pixels. The lists are not scaled.
    """
    return 32 if min(height, width) ** 2 < 32 * 224 else 224


def mean_corruption_error(
    errors: Mapping[tuple[str, int], float], baseline: Mapping[str, float] | None = None
) -> float:
    """Average top-1 errors in [0, 1] over severities (the same for each kind), then over kinds.

    With `baseline`, each kind's mean is first divided by another classifier's (`kind_errors` of it,
    or `ALEXNET_ERRORS`); published mCE does so over all fifteen kinds and five severities.

    Raises:
        ValueError: errors outside [0, 1], severities that differ, or kinds that `baseline` lacks.
    """
    means = kind_errors(errors)
    if baseline is None:
        return sum(means.values()) / len(means)
    if missing := [kind for kind in means if not baseline.get(kind, 0) > 0]:
        raise ValueError(f"baseline must have an error above 0 for each kind; see {missing}")
    severities = sorted({severity for _, severity in errors})
    if severities != list(SEVERITIES):
        message = f"errors have severities {severities}; a baseline is a mean over 1 to 5"
        raise ValueError(f"{message}: measure all five, or give no baseline")
    return sum(mean / baseline[kind] for kind, mean in means.items()) / len(means)


def kind_errors(errors: Mapping[tuple[str, int], float]) -> dict[str, float]:
    """Average errors by (kind, severity) over severities. Returns: mean error by kind."""
    if not errors:
        raise ValueError("errors are empty; expected a top-1 error for each (kind, severity)")
    by_kind: dict[str, dict[int, float]] = {}
    for (kind, severity), error in errors.items():
        _check_severity(kind, severity)
        if not 0 <= error <= 1:
            raise ValueError(f"error of {kind} at severity {severity} is {error}; expected 0 to 1")
        by_kind.setdefault(kind, {})[severity] = error
    severities = {severity for _, severity in errors}
    for kind, by_severity in by_kind.items():
        if missing := sorted(severities - set(by_severity)):
            message = f"{kind} has no error for severities {missing}, which other kinds have"
            raise ValueError(f"{message}; measure the same severities for all")
    return {kind: sum(of_kind.values()) / len(of_kind) for kind, of_kind in by_kind.items()}


def check_kind(kind: str) -> None:
    """Raise ValueError, with the nearest known name, unless `kind` is one of `KINDS`."""
    if kind not in KINDS:
        hint = nearest(kind, KINDS) or f"; known kinds: {', '.join(KINDS)}"
        raise ValueError(f"corruptions: unknown kind {kind!r}{hint}")


def _check(images: Tensor, kind: str, severity: int, num_indices: int) -> None:
    _check_severity(kind, severity)
    if images.dtype != torch.uint8 or images.device.type != "cpu":
        raise ValueError(
            f"images must be uint8 on the CPU, got {images.dtype} on {images.device}; corrupt "
            "them before any scaling or normalisation"
        )
    if images.ndim != 4 or images.shape[1] != 3:
        got = tuple(images.shape)
        raise ValueError(f"images are {got}, expected RGB (B, 3, H, W): corruptions are of colours")
    if min(images.shape[-2:]) < 8:
        size = tuple(images.shape[-2:])
        raise ValueError(f"images of {size} pixels are too small; expected 8 or more on each side")
    if num_indices != len(images):
        raise ValueError(f"expected an index per image, got {num_indices} for {len(images)} images")


def _check_severity(kind: str, severity: int) -> None:
    check_kind(kind)
    if severity not in SEVERITIES:
        raise ValueError(f"severity must be 1, 2, 3, 4 or 5, got {severity}")
