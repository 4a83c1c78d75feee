import io
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from beit.data.sources import open_images


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    names = [str(tmp_path / f"{number}.png") for number in range(3)]
    for name in names:
        Image.fromarray(np.zeros((4, 5, 3), dtype=np.uint8)).save(name)
    return names


@pytest.mark.parametrize("data", ["-", ["-"]])
def test_a_dash_reads_a_list_from_standard_input(
    data: str | list[str], files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [files[2], files[0], files[2]]
    for limit, count in ((None, 3), (2, 2)):
        stdin = SimpleNamespace(buffer=io.BytesIO("\n".join(names).encode()))
        monkeypatch.setattr(sys, "stdin", stdin)
        source = open_images(data, limit)
        assert len(source) == count
        if limit is None:
            assert [source.name(index) for index in range(count)] == names


def test_other_data_are_opened_as_everywhere(files: list[str]) -> None:
    assert open_images(files, None).name(1) == files[1]
    assert len(open_images("shapes://9?size=24", 4)) == 4


def test_an_empty_list_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"\n")))
    with pytest.raises(ValueError, match="standard input: the list is empty"):
        open_images("-", None)
