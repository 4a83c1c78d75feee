"""One pass over a set of images, which measures each: arrays of a few bytes per image."""

import hashlib
import math
from collections import Counter
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from beit.data.folders.image_files import FileSource
from beit.data.pixels.decoding import BROKEN, extensions, read_header
from beit.data.source import PartSource, Source, UnreadableImage, file_of
from beit.data.views import resized
from beit.data.workers import computed_each
from beit.nn.patches import LUMA
from beit.run.progress import Progress

SIDE = 32  # pixels of the picture from which a perceptual hash is computed
LOW = 8  # lowest frequencies of each side of it
SAMPLED = 1 << 16  # pixels of an image by which colours are measured, about
FAINT = 2.0  # standard deviation of each channel, of 255, below which an image is nearly flat
TASK = 16  # images that a worker reads at a time
HEADER = 1 << 16  # bytes of a file in which the format is looked for


class Facts(NamedTuple):
    """What a pass found; the arrays have a value for each of n images.

    Attributes:
        height, width: (n,) int32 pixels; 0 for an unreadable image
        digests: (n,) uint64, of the pixels
        hashes: (n,) uint64, perceptual: similar images differ in few bits
        flat: (n,) bool, whether all pixels are equal; JPEG keeps such images as they are
        faint: (n,) bool, whether the image has nearly one colour; of flat ones too
        grey: (n,) bool, whether its channels are equal
        reasons: of the unreadable images, by index
        formats: numbers of images by format, mode and bits, as "JPEG RGB, 8 bits"; files only
        sums: (5, c) float64, of values in [0, 1], their squares, the shares of those at 0 and at 1,
            and the highest value; each image counts as one
    """

    height: NDArray[np.int32]
    width: NDArray[np.int32]
    digests: NDArray[np.uint64]
    hashes: NDArray[np.uint64]
    flat: NDArray[np.bool_]
    faint: NDArray[np.bool_]
    grey: NDArray[np.bool_]
    reasons: dict[int, str]
    formats: Counter[str]
    sums: NDArray[np.float64]

    @property
    def readable(self) -> NDArray[np.bool_]:
        """Which images can be read (n,)."""
        return self.height > 0

    def colours(self) -> tuple[list[float], list[float]]:
        """Return the mean and the standard deviation of each channel, in [0, 1]."""
        mean, square, *_ = self._means()
        return mean.tolist(), np.sqrt(np.maximum(square - mean**2, 0)).tolist()

    def ends(self) -> tuple[list[float], list[float]]:
        """Return the share of values of each channel that are 0, and that are 255."""
        _, _, low, high, _ = self._means()
        return low.tolist(), high.tolist()

    def bright(self) -> list[float]:
        """Return the highest value of each channel, the mean over the images."""
        return list(self._means()[4])

    def _means(self) -> NDArray[np.float64]:
        return self.sums / max(1, int(self.readable.sum()))


class _ImageFacts(NamedTuple):
    """The facts of one image, columns of `Facts`; a reason alone if it cannot be read."""

    height: int = 0
    width: int = 0
    digest: int = 0
    hash: int = 0
    flat: bool = False
    faint: bool = False
    grey: bool = False
    reason: str = ""
    format: str = ""
    sums: tuple[float, ...] = ()


def scan(source: Source, num_workers: int, what: str, channels: int = 3) -> Facts:
    """Read every image of a set once, `what` says which; they have so many `channels`."""
    count = len(source)
    height, width = np.zeros((2, count), np.int32)
    digests, hashes = np.zeros((2, count), np.uint64)
    flat, faint, grey = np.zeros((3, count), np.bool_)
    sums, formats, reasons = np.zeros((5, channels)), Counter[str](), dict[int, str]()
    facts = Facts(height, width, digests, hashes, flat, faint, grey, reasons, formats, sums)
    with Progress(count) as progress:
        progress.message(f"reading {count} {what}")
        measure = partial(measured, source)
        images = computed_each(measure, range(count), num_workers, TASK, source.name)
        for index, image in enumerate(images):
            progress.update(index + 1, {}, 1, 0.0)
            if image.reason:
                reasons[index] = image.reason
                continue
            height[index], width[index] = image.height, image.width
            digests[index], hashes[index] = image.digest, image.hash
            flat[index], faint[index], grey[index] = image.flat, image.faint, image.grey
            formats.update([image.format] if image.format else [])
            sums += np.reshape(image.sums, (5, channels))
    return facts


def measured(source: Source, index: int) -> _ImageFacts:
    """Read one image of a set and measure it."""
    try:
        image = source.image(index)
    except UnreadableImage as error:
        return _ImageFacts(reason=error.reason)
    _, height, width = image.shape
    step = max(1, math.isqrt(height * width // SAMPLED))
    sample = image[:, ::step, ::step].flatten(1).double() / 255  # (c, pixels)
    square = sample.square().mean(1)
    mean = sample.mean(1)
    deviation = (square - mean.square()).clamp(min=0).sqrt()
    faint = bool((deviation < FAINT / 255).all())
    ends = torch.stack([(sample == end).double().mean(1) for end in (0, 1)])  # (2, c)
    pixels = hashlib.sha1(f"{height} {width} ".encode(), usedforsecurity=False)
    pixels.update(image.contiguous().numpy().data)
    return _ImageFacts(
        *(height, width, int.from_bytes(pixels.digest()[:8], "little")),
        perceptual_hash(image),
        flat=faint and bool((image == image[:, :1, :1]).all()),
        faint=faint,
        grey=bool((sample == sample[:1]).all()),
        format=_format_of(source, index),
        sums=(*mean.tolist(), *square.tolist(), *ends.flatten().tolist(), *sample.amax(1).tolist()),
    )


def perceptual_hash(image: torch.Tensor) -> int:
    """Return 64 bits of (c, H, W) uint8 that change little with size, compression and brightness.

    They say which of the lowest frequencies of a small grey picture are above their median (pHash).
    It is the luma of RGB, the mean of other channels.
    """
    small = resized(image[None], (SIDE, SIDE))[0].double()
    weights = LUMA if len(image) == 3 else [1 / len(image)] * len(image)
    grey = torch.tensor(weights, dtype=torch.float64) @ small.flatten(1)
    low = (_COSINES @ grey.view(SIDE, SIDE) @ _COSINES.T).flatten()
    bits = low > low[1:].median()  # the first one is the mean brightness
    return int.from_bytes(np.packbits(bits.numpy()).tobytes(), "big")


_COSINES = torch.cos(  # (LOW, SIDE), the discrete cosine transform
    math.pi / SIDE * torch.outer(torch.arange(LOW).double(), torch.arange(SIDE).double() + 0.5)
)


def file_of_image(source: Source, index: int) -> Path | None:
    """Return the file that is an image; None for one in a table or an archive, or drawn."""
    if isinstance(source, PartSource):
        return file_of_image(source._source, int(source._indices[index]))
    path = file_of(source, index)
    is_image = path is not None and path.suffix.lower() in extensions()  # as in a mixture
    return path if is_image or isinstance(source, FileSource) else None


def _format_of(source: Source, index: int) -> str:
    """Return format, mode and bits of a file's channels, as its header has them; empty if none."""
    path = file_of_image(source, index)
    if path is None:
        return ""
    try:
        with path.open("rb") as file:
            data = file.read(HEADER)
        header = read_header(data, "")
    except (UnreadableImage, *BROKEN):
        return path.suffix.lower().removeprefix(".").upper()  # as TIFF, whose header may be its end
    return f"{header.format} {header.mode}, {_bits(header, data)} bits"


def _bits(header: Image.Image, data: bytes) -> int:
    if header.format == "PNG" and len(data) > 24:
        return data[24]  # Pillow shows 16 bits of colours as 8
    return {"1": 1, "I": 32, "F": 32}.get(header.mode, 16 if ";16" in header.mode else 8)
