"""Relative position bias of attention (Swin's table with BEiT's [CLS] rows)."""

import torch
from torch import Tensor, nn

from beit.nn.patches import Size

CLS_ROWS = 3  # last rows of a table: [CLS] to patch, patch to [CLS], [CLS] to itself


def relative_position_index(grid: Size) -> Tensor:
    """Return the table row for each query i and key j, [CLS] first: (1+N, 1+N) int64.

    The row of two patches is ``(dy + Gh - 1) * (2Gw - 1) + dx + Gw - 1``, where (dy, dx) is the
    offset of query minus key. The last three are [CLS] to patch, patch to [CLS], [CLS] to itself.
    """
    Gh, Gw = grid
    rows, columns = torch.meshgrid(torch.arange(Gh), torch.arange(Gw), indexing="ij")
    rows, columns = rows.flatten(), columns.flatten()
    dy = rows[:, None] - rows[None, :] + Gh - 1  # (N, N)
    dx = columns[:, None] - columns[None, :] + Gw - 1  # (N, N)
    offsets = (2 * Gh - 1) * (2 * Gw - 1)
    index = torch.empty(1 + Gh * Gw, 1 + Gh * Gw, dtype=torch.int64)
    index[1:, 1:] = dy * (2 * Gw - 1) + dx
    index[0, :] = offsets
    index[:, 0] = offsets + 1
    index[0, 0] = offsets + 2
    return index


class RelativePositionBias(nn.Module):
    """Learned bias for each head and each offset between two patches, initialised to zero."""

    index: Tensor

    def __init__(self, grid: Size, num_heads: int) -> None:
        super().__init__()
        Gh, Gw = grid
        self.table = nn.Parameter(torch.zeros((2 * Gh - 1) * (2 * Gw - 1) + CLS_ROWS, num_heads))
        self.register_buffer("index", relative_position_index(grid), persistent=False)

    def forward(self) -> Tensor:
        """Return the bias (1, h, 1+N, 1+N) of the attention logits."""
        return self.table[self.index].permute(2, 0, 1)[None]  # (1, h, 1+N, 1+N)
