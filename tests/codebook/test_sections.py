import torch

from beit.codebook.book import CodeEntry
from beit.codebook.report import code_row, overall, pairs_table, ranked, ranked_table
from beit.nn.code_statistics import CodeMeasures

NAN = float("nan")
FOUND = CodeMeasures(
    uses=torch.tensor([5, 9, 0, 1, 9]),
    images=torch.tensor([4, 4, 0, 1, 3]),
    closeness=torch.tensor([0.5, 0.2, NAN, 0.9, 0.5]),
    purity=torch.tensor([0.6, 0.5, NAN, 1.0, 0.5]),
    label=torch.tensor([1, 0, -1, 1, 0]),
    label_entropy=torch.tensor([0.9, 1.0, NAN, 0.0, 1.0]),
    position_entropy=torch.tensor([2.0, 1.0, NAN, 0.0, 1.5]),
)


def test_codes_in_order() -> None:
    assert ranked(FOUND, "use", 2).tolist() == [1, 4, 0]
    assert ranked(FOUND, "purity", 2).tolist() == [0, 1, 4]  # of equals the more used, the smaller
    assert ranked(FOUND, "purity", 1).tolist() == [3, 0, 1, 4]
    assert ranked(FOUND, "label_entropy", 2).tolist() == [0, 1, 4]
    assert ranked(FOUND, "position_entropy", 2).tolist() == [1, 4, 0]
    assert ranked(FOUND, "closeness", 2).tolist() == [4, 0, 1]
    assert ranked(FOUND, "purity", 99).tolist() == [3, 0, 1, 4]  # none is used so often: all


def entry(code: int, purity: float | None, label: str | None) -> CodeEntry:
    return CodeEntry(code, 12, 3, 0.25, purity, label, 0.5, 1.25, nearest=[(7, 0.5)])


def test_without_labels_there_are_no_columns_for_them() -> None:
    table = ranked_table({4: entry(4, 0.625, "frog")}, [4], "purity")
    assert list(table.columns)[4:7] == ["Purity, %", "Label", "Labels, bits"]
    assert table.rows == [[4, 12, 3, "0.250", "62.5", "frog", "0.50", "1.25"]]
    table = ranked_table({4: entry(4, None, None)}, [4], "use")
    assert table.rows == [[4, 12, 3, "0.250", "1.25"]]


def test_a_row_is_titled_with_what_is_known() -> None:
    assert code_row(entry(4, 0.625, "frog"), []).notes == ["12 uses", "62% frog"]
    unused = CodeEntry(2, 0, 0, None, None, None, None, None)
    assert code_row(unused, []).notes == ["never used"]


def test_pairs_are_listed_once_and_only_those_of_enough_images() -> None:
    lifts = torch.tensor([[NAN, 2.0, 9.0], [2.0, NAN, 0.5], [9.0, 0.5, NAN]])
    both = torch.tensor([[30, 20, 3], [20, 30, 10], [3, 10, 30]])
    table = pairs_table(lifts, both, torch.tensor([7, 5, 1]))
    assert table.rows == [[7, 5, 20, "2.00"], [5, 1, 10, "0.50"]]


def test_the_whole_codebook() -> None:
    said = overall(FOUND, torch.tensor([0.75, 0.25]))
    assert said["of 5 codes are used"] == "4"
    mean = (5 * 0.6 + 9 * 0.5 + 1 + 9 * 0.5) / 24
    assert said["mean purity of a patch's code (chance 75.0%)"] == f"{mean:.1%}"
    assert len(overall(FOUND, None)) == 2
