import numpy as np
import torch

from beit.codebook.contents import Code
from beit.codebook.report import code_row, pairs_table, ranked, ranked_table, summary_figures
from beit.nn.code_statistics import CodeMeasures

NAN = float("nan")
MEASURES = CodeMeasures(
    uses=torch.tensor([5, 9, 0, 1, 9]),
    images=torch.tensor([4, 4, 0, 1, 3]),
    closeness=torch.tensor([0.5, 0.2, NAN, 0.9, 0.5]),
    purity=torch.tensor([0.6, 0.5, NAN, 1.0, 0.5]),
    label=torch.tensor([1, 0, -1, 1, 0]),
    label_entropy=torch.tensor([0.9, 1.0, NAN, 0.0, 1.0]),
    position_entropy=torch.tensor([2.0, 1.0, NAN, 0.0, 1.5]),
)


def test_codes_are_ranked() -> None:
    assert ranked(MEASURES, "use", 2).tolist() == [1, 4, 0]
    assert ranked(MEASURES, "purity", 2).tolist() == [
        0,
        1,
        4,
    ]  # ties: more uses, then smaller
    assert ranked(MEASURES, "purity", 1).tolist() == [3, 0, 1, 4]
    assert ranked(MEASURES, "label_entropy", 2).tolist() == [0, 1, 4]
    assert ranked(MEASURES, "position_entropy", 2).tolist() == [1, 4, 0]
    assert ranked(MEASURES, "closeness", 2).tolist() == [4, 0, 1]
    assert ranked(MEASURES, "purity", 99).tolist() == [3, 0, 1, 4]  # none is used so often: all


POSITIONS = np.full((3, 4), 1)


def code(index: int, purity: float | None, label: str | None) -> Code:
    return Code(index, 12, POSITIONS, 3, 0.25, purity, label, 0.5, 1.25, nearest=[(7, 0.5)])


def test_without_labels_there_are_no_columns_for_them() -> None:
    table = ranked_table([code(4, 0.625, "frog")], "purity")
    assert list(table.columns)[4:7] == ["Purity, %", "Label", "Labels, bits"]
    assert table.rows == [[4, 12, 3, "0.250", "62.5", "frog", "0.50", "1.25"]]
    table = ranked_table([code(4, None, None)], "use")
    assert table.rows == [[4, 12, 3, "0.250", "1.25"]]


def test_a_row_is_titled_with_uses_and_purity() -> None:
    assert code_row(code(4, 0.625, "frog"), []).notes == ["12 uses", "62% frog"]
    assert code_row(Code(2, 0, 0 * POSITIONS), []).notes == ["never used"]


def test_pairs_are_listed_once_and_only_those_of_enough_images() -> None:
    lifts = torch.tensor([[NAN, 2.0, 9.0], [2.0, NAN, 0.5], [9.0, 0.5, NAN]])
    both = torch.tensor([[30, 20, 3], [20, 30, 10], [3, 10, 30]])
    table = pairs_table(lifts, both, torch.tensor([7, 5, 1]))
    assert table.rows == [[7, 5, 20, "2.00"], [5, 1, 10, "0.50"]]


def test_the_whole_codebook() -> None:
    labels = torch.tensor([[2, 3], [1, 0], [0, 0], [0, 1], [4, 5]])
    figures = summary_figures(MEASURES.uses, labels)
    assert figures["of 5 codes are used"] == "4"
    # Of the second code's nine patches one is in an image with a label: it weighs as one.
    assert figures["mean purity of a patch's code (chance 56.2%)"] == f"{10 / 16:.1%}"
    assert len(summary_figures(MEASURES.uses, torch.zeros(5, 0, dtype=torch.int64))) == 2
