"""Images, patches, codes and the grid between them (BEiT v2, section 2.1)."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import is_fake

Size = tuple[int, int]  # (height, width), of images in pixels or of grids in patches

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
LUMA = (0.299, 0.587, 0.114)  # weights of red, green and blue (ITU-R BT.601, Pillow's mode L)
OVERSHOOT = 0.5  # of values outside [0, 1]: a bicubic filter gives -0.45 to 1.45 at sharp edges
UNIT_LIMIT = 2  # of the mean and std of images in [0, 1]; those of 0..255 are above it
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

WAYS = {  # to (B, c, H, W), by the number of axes and whether the last has c entries
    (3, False): "; for one image give images[None]",
    (3, True): "; for one image with channels last give images.permute(2, 0, 1)[None]",
    (4, True): "; channels are last: give images.permute(0, 3, 1, 2)",
}

_unchecked: ContextVar[bool] = ContextVar("unchecked", default=False)


def grid_of(image_size: Size, patch_size: int) -> Size:
    """Return the patch grid (Gh, Gw) of an image (height, width) in multiples of the patch."""
    if len(image_size) != 2 or not all(hasattr(side, "__index__") for side in image_size):
        raise ValueError(f"image size is {image_size!r}; expected (height, width) in whole pixels")
    height, width = image_size
    if height < patch_size or width < patch_size or height % patch_size or width % patch_size:
        near = tuple(max(patch_size, side // patch_size * patch_size) for side in image_size)
        raise ValueError(
            f"image size ({height}, {width}) is not a multiple of patch size {patch_size}; "
            f"resize or crop to {near}, or choose a patch size that divides it"
        )
    return height // patch_size, width // patch_size


def as_float(images: Tensor) -> Tensor:
    """Convert uint8 images in 0..255 to float in [0, 1]; float images are returned as they are."""
    return images.float() / 255 if images.dtype == torch.uint8 else images


def pixels_of(images: Tensor, any_values: bool = False, channels: int = 3) -> Tensor:
    """Check images (B, c, H, W), uint8 or float in [0, 1], and convert them to float in [0, 1].

    Every model calls this first, with its number of `channels` (c). Values of floats may be outside
    by up to `OVERSHOOT`, or anything finite with `any_values`; reading them waits for a GPU (see
    `unchecked`). float64 becomes float32.

    Raises:
        TypeError, ValueError: not such images; says what was found and what to give
    """
    if not isinstance(images, Tensor):
        raise TypeError(
            f"images are of type {type(images).__name__}, expected a tensor (B, {channels}, H, W); "
            "for files and PIL images give beit.open_image(images, size=model), for a NumPy "
            f"array (B, H, W, {channels}) torch.from_numpy(images).permute(0, 3, 1, 2)"
        )
    if images.ndim != 4 or images.shape[1] != channels:
        way = WAYS.get((images.ndim, images.shape[-1:] == (channels,)), "")
        if images.ndim == 5 and images.shape[1] == 1:  # a DataLoader of what open_image returns
            way = "; give images.flatten(0, 1)"
        if not way and images.ndim == 4:
            example = "SOURCE?bands=3,2,1" if channels == 3 else f"SOURCE?bands=1-{channels}"
            way = f"; of files with other bands give {channels}, as in {example}"
            if images.shape[1] == 1 and channels == 3:
                way = "; for grey images give images.expand(-1, 3, -1, -1)"
        expected = f"{'RGB ' * (channels == 3)}(B, {channels}, H, W)"
        raise ValueError(f"images are {tuple(images.shape)}, expected {expected}{way}")
    if images.dtype not in (torch.uint8, *FLOATS):
        raise ValueError(
            f"images are {images.dtype}, expected uint8 or float in [0, 1]; if they hold 0 to 255, "
            "give images.to(torch.uint8)"
        )
    if images.is_floating_point() and (limits := _range(images)):
        low, high = limits
        if not math.isfinite(high - low):
            raise ValueError("images hold values that are NaN or infinite")
        if not any_values and (low < -OVERSHOOT or high > 1 + OVERSHOOT):
            raise ValueError(
                f"images are float with values from {low:.4g} to {high:.4g}; models normalise "
                "themselves: pass values in [0, 1], or 0 to 255 as uint8"
            )
    return images.float() if images.dtype == torch.float64 else as_float(images)


def per_channel(
    name: str, values: tuple[float, ...] | None, channels: int
) -> tuple[float, ...] | None:
    """Return a mean or std for so many channels; equal values are for any number of them.

    One channel, a grey one, takes the average of three.

    Raises:
        ValueError: there is another number of different values, or they are not those of images
            in [0, 1].
    """
    if values is None:
        return None
    if not all(math.isfinite(value) and (name == "mean" or value > 0) for value in values):
        least = "" if name == "mean" else ", each above 0"
        raise ValueError(f"{name} is {values}; expected finite numbers{least}")
    if max(values, default=0) > UNIT_LIMIT:
        raise ValueError(
            f"{name} is {values}; expected that of images in [0, 1]: divide that of 0..255 by 255"
        )
    if len(values) == channels:
        return values
    if len({*values}) == 1 or (channels == 1 and len(values) == 3):
        return (fmean(values),) * channels
    raise ValueError(
        f"{name} has {len(values)} values for {channels} channels; give one for each, as "
        "`beit doctor DATA` measures them, or one for all"
    )


@contextmanager
def unchecked() -> Iterator[None]:
    """Skip the check of values, which waits for a GPU; for loops that have made the values."""
    token = _unchecked.set(True)
    try:
        yield
    finally:
        _unchecked.reset(token)


def can_be_read(tensor: Tensor) -> bool:
    """Return whether there are values to check.

    They cannot be read in traced graphs, under vmap and while a CUDA graph is captured.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined,no-untyped-call]
        return False
    transformed = torch._C._functorch.maybe_current_level() is not None
    captured = tensor.is_cuda and torch.cuda.is_current_stream_capturing()
    absent = tensor.is_meta or is_fake(tensor) or not tensor.numel()
    return not (transformed or captured or absent or _unchecked.get())


def _range(tensor: Tensor) -> list[Any] | None:
    """Return the least and the greatest value; None if they cannot be read."""
    if not can_be_read(tensor):
        return None
    return torch.stack(tensor.detach().aminmax()).tolist()  # one copy from a GPU, not two


def grey(images: Tensor) -> Tensor:
    """Return the luma (B, 1, H, W) of float images (B, 3, H, W)."""
    return LUMA[0] * images[:, :1] + LUMA[1] * images[:, 1:2] + LUMA[2] * images[:, 2:]


def checked_codes(codes: Tensor, num_codes: int) -> Tensor:
    """Return codes (B, N), of any integer type in [0, num_codes), as int64; ValueError if not."""
    expected = f"expected a tensor (B, N) of integers in [0, {num_codes})"
    if not isinstance(codes, Tensor):
        raise ValueError(f"codes are of type {type(codes).__name__}, {expected}")
    if codes.ndim != 2 or codes.dtype in (torch.bool, *FLOATS):
        raise ValueError(f"codes are {tuple(codes.shape)} {codes.dtype}, {expected}")
    codes = codes.long()
    if (limits := _range(codes)) and not 0 <= limits[0] <= limits[1] < num_codes:
        raise ValueError(f"codes are {limits[0]} to {limits[1]}, {expected}")
    return codes


def check_indices(name: str, indices: object, num_images: int, num_patches: int) -> None:
    """Check indices (B, M) int64 in [0, N), or int32, of the patches of B images.

    Their values are checked on a CPU only, because reading them would wait for a GPU.

    Raises:
        TypeError, ValueError: not such indices; says what was found and what to give
    """
    B, N = num_images, num_patches
    if not isinstance(indices, Tensor):
        found = type(indices).__name__
        raise TypeError(f"{name} is of type {found}, expected a tensor of indices (B, M) int64")
    if indices.dtype not in (torch.int64, torch.int32):
        give = f"{name}.long(), if it holds indices"
        if indices.dtype == torch.bool:
            give = f"{name}.flatten(1).nonzero()[:, 1].view(B, M), for M hidden patches in each"
        kind = str(indices.dtype).removeprefix("torch.")
        raise ValueError(f"{name} is {kind}, expected indices (B, M) int64: give {give}")
    if indices.ndim != 2 or indices.shape[0] != B:
        way = f", as {name}.expand({B}, -1)" if indices.ndim == 1 or indices.shape[0] == 1 else ""
        images = "1 image" if B == 1 else f"{B} images"
        shape = tuple(indices.shape)
        raise ValueError(f"{name} is {shape} for {images}; expected ({B}, M){way}")
    limits = _range(indices) if indices.is_cpu else None
    if limits and not 0 <= limits[0] <= limits[1] < N:
        raise ValueError(
            f"{name} lists patches from {limits[0]} to {limits[1]}; expected indices in [0, {N})"
        )


def take(patches: Tensor, positions: Tensor) -> Tensor:
    """Gather patches (B, N, D) or codes (B, N) at positions (B, M): (B, M, D) or (B, M)."""
    if patches.ndim == 3:
        positions = positions[..., None].expand(-1, -1, patches.shape[-1])
    return patches.gather(1, positions)


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """Cut images (B, c, H, W) into patches (B, N, P*P*c), row by row."""
    B, c, H, W = images.shape
    P, (Gh, Gw) = patch_size, grid_of((H, W), patch_size)
    tiles = images.reshape(B, c, Gh, P, Gw, P).permute(0, 2, 4, 3, 5, 1)  # (B, Gh, Gw, P, P, c)
    return tiles.reshape(B, Gh * Gw, P * P * c)  # (B, N, P*P*c)


class PatchEmbed(nn.Module):
    """Linear embedding of patches; its weight is stored as the published strided convolution."""

    def __init__(self, in_channels: int, width: int, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_channels, width, patch_size, stride=patch_size)

    def forward(self, images: Tensor) -> Tensor:
        """Embed images (B, c, H, W) as patches (B, N, D).

        One matrix product gives the same sums as the convolution, several times as fast on CPUs.
        """
        if self.patch_size == 1:  # nothing to reorder: gradients keep the strides of the weight
            pixels = images.flatten(2).transpose(1, 2)  # (B, N, c)
            return nn.functional.linear(pixels, self.proj.weight.flatten(1), self.proj.bias)
        patches = patchify(images, self.patch_size)  # (B, N, P*P*c)
        weight = self.proj.weight.permute(0, 2, 3, 1).flatten(1)  # (D, P*P*c)
        return nn.functional.linear(patches, weight, self.proj.bias)
