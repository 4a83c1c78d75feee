import torch

from beit.nn.position import CLS_ROWS, RelativePositionBias, relative_position_index

GRID = (3, 5)


def naive_index(grid: tuple[int, int]) -> list[list[int]]:
    """The row of every pair, counted along the offsets of a query to its key."""
    Gh, Gw = grid
    offsets = [(dy, dx) for dy in range(-Gh + 1, Gh) for dx in range(-Gw + 1, Gw)]
    cells = [None] + [(y, x) for y in range(Gh) for x in range(Gw)]  # None is [CLS]
    index = []
    for query in cells:
        row = []
        for key in cells:
            if query is None and key is None:
                row.append(len(offsets) + 2)
            elif key is None:
                row.append(len(offsets) + 1)
            elif query is None:
                row.append(len(offsets))
            else:
                row.append(offsets.index((query[0] - key[0], query[1] - key[1])))
        index.append(row)
    return index


def test_index_equals_a_naive_double_loop() -> None:
    assert relative_position_index(GRID).tolist() == naive_index(GRID)


def test_every_row_of_the_table_is_used() -> None:
    table = RelativePositionBias(GRID, num_heads=3).table
    assert table.shape == (5 * 9 + CLS_ROWS, 3)
    assert relative_position_index(GRID).unique().tolist() == list(range(len(table)))


def test_the_published_grid_has_732_rows() -> None:
    assert RelativePositionBias((14, 14), num_heads=1).table.shape == (732, 1)


def test_bias_holds_the_table_entry_of_each_pair_and_head() -> None:
    position = RelativePositionBias(GRID, num_heads=3)
    assert not position().any()  # no preference at first
    with torch.no_grad():
        position.table.normal_()
    bias, index = position(), naive_index(GRID)
    assert bias.shape == (1, 3, 16, 16)
    for head in range(3):
        for i in range(16):
            for j in range(16):
                assert bias[0, head, i, j] == position.table[index[i][j], head]


def test_the_index_is_not_part_of_the_weights() -> None:
    assert list(RelativePositionBias(GRID, num_heads=3).state_dict()) == ["table"]
