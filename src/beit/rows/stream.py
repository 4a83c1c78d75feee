"""A table that is told and not kept: JSON lines, written batch by batch as they are computed."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TextIO

from beit.rows.files import TEXT, Column
from beit.rows.lines import Images, Line, json_lines
from beit.rows.table import Part


class LineStream:
    """What `beit.rows.table.Table` is to a recipe, for a stream: a part is a batch."""

    def __init__(
        self,
        stream: TextIO,
        images: Images,
        columns: Sequence[Column],
        *,
        batch_size: int,
        compose: Callable[[Line], Line] = dict,
    ) -> None:
        """Lay the lines out; nothing is written yet. The arguments are those of a `Table`."""
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self._stream, self._images, self._columns = stream, images, tuple(columns)
        self._computed = [column for column in columns if column.dtype != TEXT]
        self._batch_size, self._compose = batch_size, compose
        self._rows = 0
        self.num_parts = -(-len(images) // batch_size)

    def batches(self, number: int) -> range:
        """Number the batches of a part: its own."""
        return range(number, number + 1)

    def begin(self) -> list[int]:
        """Give the parts to compute: all."""
        return list(range(self.num_parts))

    def state(self, missing: Sequence[int]) -> str:
        """Tell a person what there is to do."""
        return f"{len(self._images)} images"

    @contextmanager
    def part(self, number: int) -> Iterator[Part]:
        """Give a part to fill with its batch; its lines are written when the block ends."""
        start = number * self._batch_size
        part = Part(self._computed, start, self._images)
        yield part
        places, content = range(start, start + part.seen), part.content()
        lines = json_lines(self._images, places, self._columns, content, self._compose)
        self._stream.writelines(lines)
        self._stream.flush()
        self._rows += len(content["index"])

    def unreadable(self) -> list[str]:
        """List the images left out before this process began: none."""
        return []

    def merge(self) -> int:
        """Return how many rows were written."""
        return self._rows

    def summary(self, rows: int, missing: Sequence[int], seconds: float) -> str:
        """Tell a person what was written, and how fast."""
        left_out = len(self._images) - rows
        lost = [f"{left_out} cannot be read"] if left_out else []
        rate = f"{len(self._images) / seconds:.0f} images/s"
        return ", ".join([f"{rows} rows", *lost, rate])
