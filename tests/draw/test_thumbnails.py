import numpy as np

from beit.draw.thumbnails import tiled


def test_cells_are_laid_out_row_by_row():
    cells = np.arange(1, 4, dtype=np.uint8)[:, None, None, None].repeat(2, 1).repeat(3, 3)
    sheet = tiled(cells, 2, 2, fill=9)  # of cells 2 x 1
    assert sheet.shape == (4, 2, 3)
    assert sheet[..., 0].tolist() == [[1, 2], [1, 2], [3, 9], [3, 9]]
