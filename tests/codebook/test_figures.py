import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
import torch

from beit.codebook import style
from beit.codebook.figures import _similarity_order, pairs_figure, position_figure, usage_figure
from beit.codebook.style import SavedFigure
from beit.nn.code_statistics import entropy


@pytest.fixture(autouse=True)
def _coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(style._STYLE, "savefig.dpi", 40)


def words(drawn: SavedFigure) -> list[str]:
    texts = (part.text or "" for part in ElementTree.fromstring(drawn.drawing.svg).iter())
    return [text for text in texts if text.strip()]


def test_usage_counts_codes_by_number_of_uses() -> None:
    drawn = usage_figure(torch.tensor([0, 1, 2, 3, 9, 0, 12, 100]))
    assert drawn.alt.startswith("6 of 8 codes are used; perplexity ")
    text = words(drawn)
    # never 2, once 1, 2-3 2, 4-7 0, 8-15 2, 16-31 0, 32-63 0, 64-127 1
    names = ["never", "once", "2–3", "4–7", "8–15", "16–31", "32–63", "64–127"]
    start = text.index("never")
    assert text[start : start + 8] == names
    assert [word for word in text if word in "012"][-8:] == ["2", "1", "2", "0", "2", "0", "0", "1"]
    assert {"uses of a code", "codes", "uniform use"} <= set(text)


def test_usage_of_one_code_alone() -> None:
    assert usage_figure(torch.tensor([5])).alt.startswith("1 of 1 codes are used")


def test_positions() -> None:
    positions = torch.tensor([[4, 0, 1], [0, 4, 1], [0, 0, 1], [0, 0, 1], [0, 0, 1], [0, 0, 1]])
    bits = entropy(positions.T)
    drawn = position_figure(positions, (2, 3), bits, torch.tensor([0, 1]))
    assert {"0: 0.00 bits", "1: 0.00 bits", "uniform (2.58 bits)"} <= set(words(drawn))
    assert "median 0.00 of at most 2.58 bits" in drawn.alt
    position_figure(torch.tensor([[3]]), (1, 1), torch.zeros(1), torch.tensor([], dtype=torch.long))


def test_co_occurring_codes_are_adjacent() -> None:
    lifts = torch.full((6, 6), 0.25)
    for group in ([0, 2, 4], [1, 3, 5]):
        for one in group:
            lifts[one, group] = 4.0
    lifts.fill_diagonal_(float("nan"))
    order = _similarity_order(lifts.log2()).tolist()
    assert {code % 2 for code in order[:3]} != {code % 2 for code in order[3:]}
    assert len({code % 2 for code in order[:3]}) == 1
    patches = np.zeros((6, 2, 2, 3), np.uint8)
    drawn = pairs_figure(lifts, torch.arange(10, 16), patches)
    assert {"10", "15", "Which of the 6 most used codes share an image"} <= set(words(drawn))
