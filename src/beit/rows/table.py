"""Tables with a row an image, computed in parts: what a kill leaves is kept, and no bit differs.

While it is computed, a table is a folder OUTPUT.parts with what it is made of (settings.json) and
one file for each part: so many consecutive images in whole batches, so that every image is always
in the same company. A part is there whole or not at all, whoever computed it. Out of all of them
comes one file in the order of the images, the same whatever the processes and interruptions.
"""

import hashlib
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from beit.files import PARTIAL_SUFFIX, replacing, write_text
from beit.rows.files import SUFFIXES, TEXT, Array, Column, write_table
from beit.rows.lines import Images, Line, json_lines, printable
from beit.run.settings import first

LINES = ".jsonl"
PART_BYTES = 1 << 28  # wide rows make smaller parts: one must fit into memory several times


def smallest_unsigned(count: int) -> str:
    """Name the smallest unsigned integer type that tells `count` things apart."""
    return next(name for name in ("uint8", "uint16", "uint32") if count <= 1 << int(name[4:]))


def fingerprint(model: nn.Module) -> str:
    """Tell models apart by their weights: 16 hex digits."""
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def check_output(output: str | Path) -> None:
    """Refuse a file that is there already, or of a format that is not written."""
    path = Path(output)
    if path.suffix not in (*SUFFIXES, LINES):
        raise ValueError(
            f"output is {str(output)!r}; expected a name that ends in {LINES}, .parquet or .npz"
        )
    if path.exists():
        parts = _parts_of(path)
        left = f". {parts} is left of its making and can be deleted" if parts.exists() else ""
        raise FileExistsError(f"{path} exists and is not overwritten; name another file{left}")


class Table:
    """A table on its way to becoming one file."""

    def __init__(
        self,
        output: str | Path,
        images: Images,
        columns: Sequence[Column],
        about: Mapping[str, Any],
        *,
        batch_size: int,
        part_size: int,
        compose: Callable[[Line], Line] = dict,
    ) -> None:
        """Lay the table out; nothing is written yet.

        Args:
            output: a new .parquet, .npz or .jsonl file
            images: one row each, but for those that cannot be read
            columns: what is computed for each image; and texts for what is computed
            about: what the values depend on, plain values; kept in the file
            batch_size: images that are computed together
            part_size: images a part at most, as far as whole batches allow
            compose: the object of a JSON line out of a row's values, see `json_lines`
        """
        if batch_size < 1 or part_size < 1:
            raise ValueError(
                f"batch_size and part_size must be at least 1, got {batch_size} and {part_size}"
            )
        self.output = Path(output)
        self.directory = _parts_of(self.output)
        self._images, self._columns = images, tuple(columns)
        self._computed = [column for column in columns if column.dtype != TEXT]
        self._about = dict(about) | {"batch_size": batch_size}
        self._batch_size, self._compose = batch_size, compose
        row_bytes = sum(c.size * np.dtype(c.dtype).itemsize for c in self._computed)
        self._part_batches = max(1, min(part_size, PART_BYTES // row_bytes) // batch_size)
        self._num_batches = -(-len(images) // batch_size)
        self.num_parts = -(-self._num_batches // self._part_batches)

    def batches(self, number: int) -> range:
        """Number the batches of a part; batch i holds images i * batch_size to the next one's."""
        start = number * self._part_batches
        return range(start, min(start + self._part_batches, self._num_batches))

    def num_images(self, number: int) -> int:
        """Count the images of a part."""
        batches = self.batches(number)
        end = min(batches.stop * self._batch_size, len(self._images))
        return end - batches.start * self._batch_size

    def begin(self) -> list[int]:
        """Make the folder of parts, or go on with the one there. Returns: the parts to compute.

        Raises:
            FileExistsError: the output is there.
            ValueError: the parts there are of another table; the message names what differs.
        """
        check_output(self.output)
        settings = self._about | {
            "images": len(self._images),
            "checksum_of_names_and_labels": self._digest_of_images(),
            "columns": [asdict(column) for column in self._columns],
            "batches_a_part": self._part_batches,
        }
        if self._settings_file.is_file():
            self._compare(settings)
        elif self.directory.exists() and any(self.directory.glob("[!.]*")):
            raise ValueError(
                f"{self.directory} holds something else than the parts of a table; "
                "move it away or name another output"
            )
        else:
            self.directory.mkdir(parents=True, exist_ok=True)
            write_text(self._settings_file, json.dumps(settings, indent=2) + "\n")
        return [number for number in range(self.num_parts) if not self._file(number).exists()]

    def state(self, missing: Sequence[int]) -> str:
        """Tell a person what there is to do."""
        before = self.num_parts - len(missing)
        going_on = f", {before} of them done before" if before else ""
        return f"{len(self._images)} images in {self.num_parts} parts{going_on}"

    def summary(self, rows: int, missing: Sequence[int], seconds: float) -> str:
        """Tell a person what there is now, and how fast the missing parts were computed."""
        parts = [f"{rows} rows in {self.output}"]
        if rows < len(self._images):
            parts.append(f"{len(self._images) - rows} images left out")
        if missing:
            parts.append(f"{sum(map(self.num_images, missing)) / seconds:.0f} images/s")
        return ", ".join(parts)

    @contextmanager
    def part(self, number: int) -> Iterator["Part"]:
        """Give a part to fill with its batches; it is written when the block ends without error."""
        part = Part(self._computed, self.batches(number).start * self._batch_size, self._images)
        yield part
        assert part.seen == self.num_images(number), "a part is written when all of it is there"
        with replacing(self._file(number)) as temporary, temporary.open("wb") as file:
            np.savez(file, **part.content())  # type: ignore[arg-type]  # names that it reserves

    def unreadable(self) -> list[str]:
        """List the images left out of the parts there, "name: reason", each once."""
        files = (self._file(number) for number in range(self.num_parts))
        lists = (json.loads(str(_read(file, "unreadable"))) for file in files if file.exists())
        return list(dict.fromkeys(name for names in lists for name in names))

    def merge(self) -> int:
        """Write the output out of all parts, then remove them. Returns: how many rows it has."""
        check_output(self.output)
        files = [self._file(number) for number in range(self.num_parts)]
        missing = [file.name for file in files if not file.exists()]
        if missing:
            raise ValueError(
                f"{self.directory} lacks {first(missing)}; all processes must see the same folder. "
                "Run the command again to compute what is missing"
            )
        num_rows = sum(len(_read(file, "index")) for file in files)
        about = self._about | {
            "images": len(self._images),
            "rows": num_rows,
            "unreadable": [printable(name) for name in self.unreadable()],
            "label_names": self._images.class_names,
        }
        columns, suffix = self._file_columns(), self.output.suffix
        with replacing(self.output) as temporary:
            if suffix == LINES:
                with temporary.open("w", encoding="ascii") as text:
                    text.writelines(self._lines())
            else:
                about_text = json.dumps(about)
                write_table(temporary, suffix, columns, self.num_parts, self._values, about_text)
        left_by_killed = self.directory.glob(f".*{PARTIAL_SUFFIX}")
        for file in (*files, self._settings_file, *left_by_killed):
            file.unlink()
        if not any(self.directory.iterdir()):
            self.directory.rmdir()
        return num_rows

    # ── what the file holds ─────────────────────────────────────────────────────────────────────

    def _file_columns(self) -> list[Column]:
        """List the columns of the file: which image each row is, then what was computed."""
        labelled = [] if self._images.labels is None else [Column("label", "int64")]
        return [Column("index", "int64"), Column("path", TEXT), *labelled, *self._columns]

    def _values(self, number: int, column: Column) -> Array:
        """Give a column of the file, as far as a part goes: (rows, *shape)."""
        file = self._file(number)
        if column.name == "path":
            indices = _read(file, "index").tolist()
            return np.array([printable(self._images.name(i)) for i in indices], dtype=np.str_)
        if column.name == "label":
            assert self._images.labels is not None
            return self._images.labels.numpy()[_read(file, "index")]
        if column.dtype == TEXT:
            return np.array(column.texts, dtype=np.str_)[_read(file, column.numbers)]
        return _read(file, column.name)

    def _lines(self) -> Iterator[str]:
        """Give the JSON lines of all parts."""
        names = ["index", "unreadable", *(column.name for column in self._computed)]
        for number in range(self.num_parts):
            content = {name: _read(self._file(number), name) for name in names}
            start = self.batches(number).start * self._batch_size
            places = range(start, start + self.num_images(number))
            yield from json_lines(self._images, places, self._columns, content, self._compose)

    # ── the folder of parts ─────────────────────────────────────────────────────────────────────

    @property
    def _settings_file(self) -> Path:
        return self.directory / "settings.json"

    def _file(self, number: int) -> Path:
        return self.directory / f"part-{number:06d}.npz"

    def _digest_of_images(self) -> str:
        """Tell lists of images apart: one that changed must not be mixed with what it was."""
        digest = hashlib.blake2b(digest_size=8)
        for index in range(len(self._images)):
            digest.update(self._images.name(index).encode(errors="surrogateescape") + b"\0")
        if self._images.labels is not None:
            digest.update(self._images.labels.numpy().tobytes())
        return digest.hexdigest()

    def _compare(self, settings: Mapping[str, Any]) -> None:
        """Raise ValueError if the parts there are of a table with other settings."""
        advice = f"repeat its command to finish it, or delete {self.directory} to begin anew"
        try:
            there = dict(json.loads(self._settings_file.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{self._settings_file} cannot be read ({error}); {advice}") from error
        here = json.loads(json.dumps(settings))  # with lists for tuples, as there
        differing = [
            f"{name} is {_brief(there.get(name))} there, {_brief(here.get(name))} here"
            for name in here | there
            if there.get(name) != here.get(name)
        ]
        if differing:
            raise ValueError(
                f"{self.directory} holds the beginning of another table: {first(differing)}; "
                f"{advice}"
            )


class Part:
    """The rows of one part, batch after batch."""

    def __init__(self, columns: Sequence[Column], start: int, images: Images) -> None:
        self.seen = 0  # images so far, those left out among them
        self._columns, self._start, self._images = columns, start, images
        self._indices: list[Array] = []
        self._values: dict[str, list[Array]] = {column.name: [] for column in columns}
        self._unreadable: list[str] = []

    def add(
        self, indices: Tensor, values: Mapping[str, Tensor], unreadable: Sequence[str] = ()
    ) -> None:
        """Take in the next batch, as `EvalBatches` gives it.

        Args:
            indices: (B,) int64, the image of each row
            values: (B, *shape) by column, of any dtype that holds the column's; for B = 0 not read
            unreadable: "name: reason" of the batch's images that have no row

        Raises:
            ValueError: a number is not finite in its column's type.
        """
        rows_of = indices.cpu()
        self.seen += len(indices) + len(unreadable)
        self._indices.append(rows_of.numpy())
        self._unreadable += unreadable
        for column in self._columns if len(indices) else ():
            dtype = getattr(torch, column.dtype)
            rows = values[column.name].detach()
            rows = rows.to(dtype) if rows.is_floating_point() else rows  # less to carry over
            rows = rows.cpu().to(dtype)
            assert rows.shape[1:] == column.shape, f"{column.name}: {tuple(rows.shape)}"
            if rows.is_floating_point() and not bool(rows.isfinite().all()):
                bad = int((~rows.flatten(1).isfinite()).any(dim=1).nonzero()[0])
                raise ValueError(
                    f"{column.name} of {self._images.name(int(rows_of[bad]))} is not finite in "
                    f"{column.dtype}; the type or device.precision may be too low, or the weights "
                    "broken"
                )
            self._values[column.name].append(rows.numpy())

    def content(self) -> dict[str, Array]:
        """Give the arrays to keep, by name."""
        columns = {
            column.name: np.concatenate(
                [np.empty((0, *column.shape), column.dtype), *self._values[column.name]]
            )
            for column in self._columns
        }
        unreadable = np.array(json.dumps(list(dict.fromkeys(self._unreadable))))
        return {"index": np.concatenate(self._indices), "unreadable": unreadable} | columns


def _parts_of(output: Path) -> Path:
    return output.with_name(f"{output.name}.parts")


def _read(file: Path, name: str) -> Array:
    """Read one array of a part, and nothing else of it."""
    try:
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as part:
            return np.asarray(part[name])
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{file} is damaged ({error}); delete it and run the command again"
        ) from error


def _brief(value: Any, length: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= length else f"{text[:length]}..."
