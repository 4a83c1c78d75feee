"""Write rows to a stream as JSON lines, batch by batch; nothing is kept to resume from."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TextIO

from beit.data.sources import Source
from beit.rows.files import TEXT, Column
from beit.rows.lines import Line, json_lines
from beit.rows.part import Part


class LineStream:
    """The interface of `beit.rows.table.RowTable` for a stream; each part is one batch."""

    output = None  # no file

    def __init__(
        self,
        stream: TextIO,
        images: Source,
        columns: Sequence[Column],
        *,
        batch_size: int,
        compose: Callable[[Line], Line] = dict,
    ) -> None:
        """Prepare; nothing is written yet. For the arguments see `RowTable`."""
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.batch_size = batch_size
        self.num_parts = -(-len(images) // batch_size)
        self._stream, self.images, self._columns = stream, images, tuple(columns)
        self._computed = [column for column in columns if column.dtype != TEXT]
        self._compose, self._num_rows = compose, 0

    def batches(self, number: int) -> range:
        """Return the batches of a part: the one of its own number."""
        return range(number, number + 1)

    def num_images(self, number: int) -> int:
        """Count the images of a part."""
        return min(self.batch_size, len(self.images) - number * self.batch_size)

    def begin(self) -> list[int]:
        """Return the parts to compute: all."""
        return list(range(self.num_parts))

    def status(self, missing: Sequence[int]) -> str:
        """Describe what is to be computed."""
        return f"{len(self.images)} images"

    @contextmanager
    def part(self, number: int) -> Iterator[Part]:
        """Yield a part to fill with its batch; its lines are written when the block ends."""
        part = Part(self._computed, self.images)
        yield part
        start, content = number * self.batch_size, part.content()
        indices = range(start, start + self.num_images(number))
        lines = json_lines(self.images, indices, self._columns, content, self._compose)
        self._stream.writelines(lines)
        self._stream.flush()
        self._num_rows += len(content["index"])

    def unreadable(self) -> list[str]:
        """Return the unreadable images of parts computed before: none."""
        return []

    def merge(self) -> int:
        """Return the number of rows written."""
        return self._num_rows
