"""Images no larger than their views need, and a folder that keeps them for the next runs."""

import functools
import math
import os
import struct
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from beit.data.kept import KeptBytes, cache_folder
from beit.files import user_path

_FORMAT = 2  # raise it when shrunk images change
_SIZE = struct.Struct("<II")  # height, width
_OPTION = "--data.shrink_gigabytes"


class Need(NamedTuple):
    """The least size of an image from which a view loses nothing: area and both sides."""

    area: int
    height: int
    width: int

    def size_for(self, height: int, width: int) -> tuple[int, int]:
        """Return the (height, width) to which an image shrinks; its own if it is small enough."""
        if self.height * width >= self.width * height:  # as `EvalView.scaled`
            size = self.height, max(self.width, self.height * width // height)
        else:
            size = max(self.height, self.width * height // width), self.width
        if size[0] * size[1] < self.area:
            share = math.sqrt(self.area / (height * width))
            size = math.ceil(height * share), math.ceil(width * share)
        return size if size[0] < height and size[1] < width else (height, width)


class ShrunkImages:
    """Shrunk images of files in a folder of at most about `gigabytes`, which several runs share.

    An image is found by its file's path, size and time of change, by how it was read and by what
    was needed of it; so one that was changed is decoded anew. `KeptBytes` says what is deleted.
    """

    def __init__(self, folder: str, gigabytes: float) -> None:
        self.folder = user_path(folder) if folder else cache_folder("images")
        full = f"the images beyond {gigabytes:.1f} GB are decoded for every view; raise {_OPTION}"
        try:
            self._kept = KeptBytes(self.folder, gigabytes, "shrunk images", full)
        except OSError as error:
            raise ValueError(
                f"{self.folder}: no folder for shrunk images ({error.strerror}); give another one, "
                f"as in --data.shrink_cache FOLDER, or keep none on disk: {_OPTION} 0"
            ) from error

    def place(self, file: Path, found: os.stat_result, how: object) -> Path:
        """Return the path under which the image of a file is kept that is read in this way."""
        name = os.path.abspath(file)
        return self._kept.place(_FORMAT, _decoders(), name, found.st_size, found.st_mtime_ns, how)

    def read(self, path: Path) -> Tensor | None:
        """Read an image (c, H, W) uint8; None if it is not there."""
        content = self._kept.read(path)
        if content is None:
            return None
        height, width = _SIZE.unpack_from(content) if len(content) > _SIZE.size else (0, 0)
        channels, rest = divmod(len(content) - _SIZE.size, max(1, height * width))
        if not height * width or not channels or rest:
            return None
        pixels = torch.frombuffer(content, dtype=torch.uint8, offset=_SIZE.size)
        return pixels.view(height, width, channels).permute(2, 0, 1)

    def write(self, path: Path, image: Tensor) -> None:
        """Keep an image (c, H, W) uint8, if there is room."""
        _, height, width = image.shape
        pixels = image.permute(1, 2, 0).contiguous().numpy().tobytes()
        self._kept.write(path, _SIZE.pack(height, width) + pixels)


class Shrinking(NamedTuple):
    """How a source shrinks its images, and where it keeps those of files; None for nowhere."""

    need: Need
    images: ShrunkImages | None = None


@functools.cache
def _decoders() -> list[str]:
    """Return the versions of the libraries that make the pixels."""
    found = []
    for name in ("pillow", "torch", "torchcodec"):
        try:
            found.append(version(name))
        except PackageNotFoundError:
            found.append("")
    return found
