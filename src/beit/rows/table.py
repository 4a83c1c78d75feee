"""A table with one row per image, computed in parts so that an interrupted run can resume.

Until it is complete, a table is a folder OUTPUT.parts with its settings (settings.json) and one
file per part. A part holds consecutive images in whole batches, so each image is always computed in
the same batch. A part's file is written whole or not at all, by any process. At the end all parts
are merged into one file in the order of the images; it is bit-identical for any number of processes
and interruptions.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from beit.data.source import Source
from beit.data.stamps import stamps
from beit.files import PARTIAL_SUFFIX, replacing, write_text
from beit.rows.files import SUFFIXES, TEXT, Array, Column, write_table
from beit.rows.lines import Line, json_lines, printable, write_csv
from beit.rows.part import Part, read_array
from beit.run.settings import first
from beit.wording import amount

TEXTS = (".jsonl", ".csv")
PART_BYTES = 1 << 28  # at most: a part must fit into memory several times


def smallest_unsigned(count: int) -> str:
    """Return the smallest unsigned integer type that holds `count` different values."""
    return next(name for name in ("uint8", "uint16", "uint32") if count <= 1 << int(name[4:]))


def check_output(output: str | Path) -> None:
    """Raise an error if the output exists or its name ends in no known format."""
    path = Path(output)
    if path.suffix not in (*TEXTS, *SUFFIXES):
        known = f"{', '.join(TEXTS)}, {' or '.join(SUFFIXES)}"
        raise ValueError(f"output is {str(output)!r}; expected a name that ends in {known}")
    if path.exists():
        parts = _parts_of(path)
        left = f". {parts} is left over and can be deleted" if parts.exists() else ""
        raise FileExistsError(f"{path} exists and is not overwritten; name another file{left}")


class RowTable:
    """A table while it is computed; `merge` makes it one file."""

    def __init__(
        self,
        output: str | Path,
        images: Source,
        columns: Sequence[Column],
        about: Mapping[str, Any],
        batch_size: int,
        part_size: int,
        compose: Callable[[Line], Line] = dict,
        seen: Callable[[Mapping[str, Array]], None] | None = None,
    ) -> None:
        """Prepare; nothing is written yet.

        Args:
            output: a new .parquet, .npz, .jsonl or .csv file
            images: one row each, except for unreadable ones
            columns: what is computed for each image, and texts for computed numbers
            about: what the values depend on, as plain values; kept in the file
            batch_size: images computed together
            part_size: images per part at most, rounded down to whole batches (at least one)
            compose: makes the object of a JSON line from a row's values, see `json_lines`
            seen: gets the columns and the `index` of every part, in order, when all are complete
        """
        if batch_size < 1 or part_size < 1:
            sizes = f"{batch_size} and {part_size}"
            raise ValueError(f"batch_size and part_size must be at least 1, got {sizes}")
        self.output, self.batch_size = Path(output), batch_size
        self.directory = _parts_of(self.output)
        self._settings_file = self.directory / "settings.json"
        self.images, self._columns, self._compose = images, tuple(columns), compose
        self._seen = seen
        self._about = dict(about) | {"batch_size": batch_size}
        computed = [column for column in columns if column.dtype != TEXT]
        self._names = ["index", "unreadable", *(column.name for column in computed)]  # of a part
        row_bytes = sum(column.size * np.dtype(column.dtype).itemsize for column in computed)
        self._part_batches = max(1, min(part_size, PART_BYTES // row_bytes) // batch_size)
        self._num_batches = -(-len(images) // batch_size)
        self.num_parts = -(-self._num_batches // self._part_batches)

    def batches(self, number: int) -> range:
        """Return the batches of a part."""
        start = number * self._part_batches
        return range(start, min(start + self._part_batches, self._num_batches))

    def indices(self, number: int) -> range:
        """Return the images of a part."""
        batches, size = self.batches(number), self.batch_size
        return range(batches.start * size, min(batches.stop * size, len(self.images)))

    def begin(self) -> list[int]:
        """Make the folder of parts, or resume from it. Returns: the parts to compute.

        Raises FileExistsError if the output exists, ValueError if the parts are of another table.
        """
        check_output(self.output)
        settings = self._about | {
            "images": len(self.images),
            "checksum_of_images": self._digest_of_images(),
            "columns": [asdict(column) for column in self._columns],
            "batches_a_part": self._part_batches,
        }
        if self._settings_file.is_file():
            self._compare(settings)
        elif self.directory.exists() and any(self.directory.glob("[!.]*")):
            raise ValueError(
                f"{self.directory} holds other files than the parts of a table; "
                "move it or choose another output"
            )
        else:
            self.directory.mkdir(parents=True, exist_ok=True)
            write_text(self._settings_file, json.dumps(settings, indent=2) + "\n")
        return [number for number in range(self.num_parts) if not self._file(number).exists()]

    def status(self, missing: Sequence[int]) -> str:
        """Describe what is to be computed."""
        num_done = self.num_parts - len(missing)
        done = f", {num_done} of them done before" if num_done else ""
        return f"{amount(len(self.images), 'image')} in {amount(self.num_parts, 'part')}{done}"

    @contextmanager
    def part(self, number: int) -> Iterator[Part]:
        """Yield a part to fill with its batches; written when the block ends without error."""
        part = Part(self._columns, self.images)
        yield part
        assert part.num_images == len(self.indices(number)), "only a complete part is written"
        with replacing(self._file(number)) as temporary, temporary.open("wb") as file:
            np.savez(file, **part.content())  # type: ignore[arg-type]  # names that it reserves

    def unreadable(self) -> list[str]:
        """Return the unreadable images of finished parts, "name: reason", each once."""
        files = map(self._file, range(self.num_parts))
        lists = (json.loads(str(read_array(file, "unreadable"))) for file in files if file.exists())
        return list(dict.fromkeys(name for names in lists for name in names))

    def merge(self) -> int:
        """Write the output from all parts, then remove them. Returns: its number of rows."""
        check_output(self.output)
        files = list(map(self._file, range(self.num_parts)))
        missing = [file.name for file in files if not file.exists()]
        if missing:
            raise ValueError(
                f"{self.directory} lacks {first(missing)}; all processes must see the same folder. "
                "Run the command again to compute the missing parts"
            )
        num_rows = sum(len(read_array(file, "index")) for file in files)
        about = self._about | {
            "images": len(self.images),
            "rows": num_rows,
            "unreadable": [printable(name) for name in self.unreadable()],
            "label_names": self.images.class_names,
        }
        labels = [] if self.images.labels is None else [Column("label", "int64")]
        columns = [Column("index", "int64"), Column("path", TEXT), *labels, *self._columns]
        suffix, text = self.output.suffix, json.dumps(about)
        with replacing(self.output) as temporary:
            if suffix == ".jsonl":
                with temporary.open("w", encoding="ascii") as file:
                    file.writelines(self._lines())
            elif suffix == ".csv":
                encoding = "utf-8" if self._is_ascii() else "utf-8-sig"  # Excel needs the mark
                with temporary.open("w", encoding=encoding, newline="") as file:
                    write_csv(file, self._lines())
            else:
                write_table(temporary, suffix, columns, self.num_parts, self._values, text)
        if self._seen:
            for number in range(self.num_parts):
                self._seen(self._content(number))
        left_over = self.directory.glob(f".*{PARTIAL_SUFFIX}")
        for path in (*files, self._settings_file, *left_over):
            path.unlink()
        if not any(self.directory.iterdir()):
            self.directory.rmdir()
        return num_rows

    def _values(self, number: int, column: Column) -> Array:
        """Return one part of a column of the file: (rows, *shape)."""
        file = self._file(number)
        if column.name == "path":
            indices = read_array(file, "index").tolist()
            return np.array([printable(self.images.name(i)) for i in indices], dtype=np.str_)
        if column.name == "label":
            assert self.images.labels is not None
            return self.images.labels.numpy()[read_array(file, "index")]
        if column.dtype == TEXT:
            return np.array(column.texts, dtype=np.str_)[read_array(file, column.numbers)]
        return read_array(file, column.name)

    def _lines(self) -> Iterator[str]:
        """Yield the JSON lines of all parts."""
        for number in range(self.num_parts):
            content, indices = self._content(number), self.indices(number)
            yield from json_lines(self.images, indices, self._columns, content, self._compose)

    def _content(self, number: int) -> dict[str, Array]:
        return {name: read_array(self._file(number), name) for name in self._names}

    def _is_ascii(self) -> bool:
        """Whether all texts of the table are ASCII."""
        names = map(self.images.name, range(len(self.images)))
        texts = [text for column in self._columns for text in column.texts or ()]
        every = chain(names, self.images.class_names or (), texts, self.unreadable())
        return all(printable(text).isascii() for text in every)

    def _file(self, number: int) -> Path:
        return self.directory / f"part-{number:06d}.npz"

    def _digest_of_images(self) -> str:
        """Digest names, sizes and labels: parts of images that have changed must not be mixed.

        Not times: a job may copy its images to a disk of its own each time.
        """
        digest = hashlib.blake2b(digest_size=8)
        for index, stamp in enumerate(stamps(self.images)):
            name, size = self.images.name(index), stamp.partition(" ")[0]
            digest.update(f"{name}\0{size}\0".encode(errors="surrogateescape"))
        if self.images.labels is not None:
            digest.update(self.images.labels.numpy().tobytes())
        return digest.hexdigest()

    def _compare(self, settings: Mapping[str, Any]) -> None:
        """Raise ValueError if the folder has parts of a table with other settings."""
        finish = "repeat the earlier command to finish that table"
        advice = f"{finish}, or delete {self.directory} to start again"
        try:
            before = dict(json.loads(self._settings_file.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{self._settings_file} cannot be read ({error}); {advice}") from error
        now = json.loads(json.dumps(settings))  # lists instead of tuples, as in the file
        pairs = [(name, before.get(name), now.get(name)) for name in now | before]
        differing = [f"{n} was {_brief(a)}, is now {_brief(b)}" for n, a, b in pairs if a != b]
        if differing:
            parts = f"{self.directory} holds parts of another table"
            raise ValueError(f"{parts}: {first(differing)}; {advice}")


def _parts_of(output: Path) -> Path:
    return output.with_name(f"{output.name}.parts")


def _brief(value: Any, length: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= length else f"{text[:length]}..."
