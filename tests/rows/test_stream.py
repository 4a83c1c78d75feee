import io

import pytest
import torch

from beit.rows.files import Column
from beit.rows.stream import LineStream


class Named:
    """Five images."""

    labels: torch.Tensor | None = None
    class_names = None

    def __len__(self) -> int:
        return 5

    def name(self, index: int) -> str:
        return f"{index}.png"


def stream_to(stream: io.StringIO, batch_size: int) -> LineStream:
    return LineStream(stream, Named(), [Column("score", "float32")], batch_size=batch_size)


def test_lines_appear_when_their_batch_is_done() -> None:
    stream = io.StringIO()
    with stream_to(stream, 2).part(0) as part:
        part.add(torch.tensor([0, 1]), {"score": torch.tensor([0.5, 2.0])})
        assert stream.getvalue() == ""
    assert len(stream.getvalue().splitlines()) == 2


def test_a_part_is_a_batch() -> None:
    table = stream_to(io.StringIO(), 2)
    assert [[*table.batches(number)] for number in table.begin()] == [[0], [1], [2]]
    assert [table.num_images(number) for number in table.begin()] == [2, 2, 1]
    assert table.status(table.begin()) == "5 images"


def test_an_empty_batch_size_is_refused() -> None:
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        stream_to(io.StringIO(), 0)
