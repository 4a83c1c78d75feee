"""Feature maps of images, computed once by `beit.rows.compute` and kept in a folder."""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from beit.data.source import Source, UnreadableImage
from beit.files import replacing, user_path, write_text
from beit.run.settings import first

PART_BYTES = 1 << 28  # of a part at most, unless one batch is larger
LAYOUT = 1  # of the files; part of the key
_SAMPLED = 32  # images whose pixels are part of the key


class FeatureMaps:
    """One array (*shape) bfloat16 for each image, in memory-mapped files: FOLDER/KEY/part-*.

    KEY is a digest of all that the arrays depend on, which is also written to about.json: arrays of
    another model or of other images are in another folder and never mixed up. Images are known by
    their names and some of their pixels. The interface is that of `beit.rows.table.RowTable`, for
    `compute_table`; each array is the column `maps`. Unreadable images have NaN.

    Attributes:
        output: FOLDER/KEY
        gigabytes: size of all files
    """

    def __init__(
        self,
        folder: str | Path,
        images: Source,
        shape: tuple[int, ...],
        about: Mapping[str, Any],
        batch_size: int = 64,
        part_size: int = 1024,
    ) -> None:
        """Write nothing yet.

        Args:
            about: what the arrays depend on, as plain values
            batch_size: images computed together
            part_size: images per part at most; an interrupted computation repeats one part
        """
        self.images, self.batch_size, self._shape = images, batch_size, shape
        image_bytes = 2 * torch.Size(shape).numel()
        self._image_bytes = image_bytes
        self._part_batches = max(1, min(part_size, PART_BYTES // image_bytes) // batch_size)
        self._part_size = self._part_batches * batch_size
        settings = dict(about) | {
            "images": len(images),
            "checksum_of_images": _checksum(images),
            "shape": shape,
            "dtype": "bfloat16",
            "batch_size": batch_size,
            "part_size": self._part_size,
            "layout": LAYOUT,
        }
        self._about = json.dumps(settings, indent=2) + "\n"
        key = hashlib.blake2b(self._about.encode(), digest_size=8).hexdigest()
        self.output = user_path(folder) / key
        self.gigabytes = len(images) * image_bytes / 1e9
        self._parts: list[Tensor] = []
        self._without: set[int] = set()  # unreadable images

    def batches(self, number: int) -> range:
        """Return the batches of a part."""
        count = -(-len(self.images) // self.batch_size)
        return range(count)[number * self._part_batches :][: self._part_batches]

    def indices(self, number: int) -> range:
        """Return the images of a part."""
        return range(len(self.images))[number * self._part_size :][: self._part_size]

    def begin(self) -> list[int]:
        """Make the folder, or resume from it. Returns: the parts to compute.

        Raises OSError if the disk has not enough space for them.
        """
        self.output.mkdir(parents=True, exist_ok=True)
        about = self.output / "about.json"
        if not about.exists():
            write_text(about, self._about)
        missing = [number for number, file in enumerate(self._files()) if not file.exists()]
        needed = sum(len(self.indices(number)) for number in missing) * self._image_bytes
        free = shutil.disk_usage(self.output).free
        if needed > free:
            raise OSError(
                f"{self.output}: the feature maps of {len(self.images)} images take "
                f"{self.gigabytes:.2f} GB, {needed / 1e9:.2f} GB of them still to be computed, but "
                f"the disk has {free / 1e9:.2f} GB free; choose a folder on a larger disk"
            )
        return missing

    def status(self, missing: Sequence[int]) -> str:
        """Describe what is to be computed."""
        done = sum(len(self.indices(number)) for number in range(len(self._files())))
        done -= sum(len(self.indices(number)) for number in missing)
        size = f"feature maps of {len(self.images)} images, {self.gigabytes:.2f} GB"
        return f"{size}" + (f", {done} of them computed before" if done else "")

    @contextmanager
    def part(self, number: int) -> Iterator["MapsPart"]:
        """Yield a part to fill with its batches; written when the block ends without error."""
        part = MapsPart(self.indices(number), self._shape)
        yield part
        with replacing(self._files()[number]) as temporary:
            save_file({"maps": part.maps}, temporary, {"unreadable": json.dumps(part.unreadable)})

    def unreadable(self) -> list[str]:
        """Return the unreadable images of finished parts, "name: reason"."""
        files = [file for file in self._files() if file.exists()]
        return [name for file in files for name in self._read(file)[1]]

    def merge(self) -> int:
        """Check that all parts are there. Returns: the number of readable images."""
        self.open()
        return len(self.images) - len(self.unreadable())

    def open(self) -> None:
        """Map all parts into memory, for `rows`."""
        missing = [file.name for file in self._files() if not file.exists()]
        if missing:
            raise ValueError(
                f"{self.output} lacks {first(missing)}; all processes must see the same folder. "
                "Run the command again to compute the missing parts"
            )
        self._parts, self._without = [], set()
        for number, file in enumerate(self._files()):
            maps, unreadable = self._read(file)
            self._parts.append(maps)
            if unreadable:
                rows = maps.flatten(1)[:, 0].isnan().nonzero().flatten().tolist()
                self._without |= {self.indices(number)[row] for row in rows}

    def rows(self, indices: Sequence[int]) -> Iterator[Tensor]:
        """Yield the array of each image, (*shape) bfloat16; after `open`.

        Raises ValueError for an image that was unreadable.
        """
        for index in indices:
            number, row = divmod(index, self._part_size)
            if index in self._without:
                raise ValueError(
                    f"{self.images.name(index)} has no feature map: it could not be read when they "
                    f"were computed; delete {self._files()[number]} to compute its part again"
                )
            yield self._parts[number][row]

    def _files(self) -> list[Path]:
        count = -(-len(self.images) // self._part_size)
        return [self.output / f"part-{number:06d}.safetensors" for number in range(count)]

    def _read(self, file: Path) -> tuple[Tensor, list[str]]:
        """Map a part into memory. Returns: its arrays (images, *shape); its unreadable images."""
        try:
            with safe_open(file, "pt") as opened:
                maps, unreadable = opened.get_tensor("maps"), opened.metadata()["unreadable"]
            return maps, json.loads(unreadable)
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            advice = "delete it and run the command again"
            raise ValueError(f"{file} is damaged ({error}); {advice}") from error


def _checksum(images: Source) -> str:
    """Digest all names and, since another set can have the same names, a few images' pixels."""
    digest = hashlib.blake2b(digest_size=8)
    for index in range(len(images)):
        digest.update(images.name(index).encode(errors="surrogateescape") + b"\0")
    for index in range(0, len(images), -(-len(images) // _SAMPLED)):
        with suppress(UnreadableImage):
            digest.update(images.image(index).contiguous().numpy().tobytes())
    return digest.hexdigest()


class MapsPart:
    """The arrays of consecutive images in memory."""

    def __init__(self, indices: range, shape: tuple[int, ...]) -> None:
        self.maps = torch.full((len(indices), *shape), torch.nan, dtype=torch.bfloat16)
        self.unreadable, self._first = list[str](), indices.start

    def add(
        self, indices: Tensor, values: Mapping[str, Tensor], unreadable: Sequence[str] = ()
    ) -> None:
        """Add the next batch: `maps` (B, *shape) of images (B,) int64."""
        self.unreadable += unreadable
        if len(indices):
            self.maps[indices.cpu() - self._first] = values["maps"].to("cpu", torch.bfloat16)
