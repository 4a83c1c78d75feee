"""Where a patch is: the relative position bias of attention (Swin's table, BEiT's [CLS] rows)."""

import torch
from torch import Tensor, nn

CLS_ROWS = 3  # [CLS] to patch, patch to [CLS], [CLS] to itself: the last rows of a table


def relative_position_index(grid: tuple[int, int]) -> Tensor:
    """Number the table row that query i uses for key j, [CLS] first.

    Rows 0 .. (2Gh-1)(2Gw-1)-1 are ``(dy + Gh - 1) * (2Gw - 1) + dx + Gw - 1`` with the offset of
    query minus key; then [CLS] to patch, patch to [CLS], [CLS] to [CLS].

    Returns: (1+N, 1+N) int64.
    """
    Gh, Gw = grid
    rows, columns = torch.meshgrid(torch.arange(Gh), torch.arange(Gw), indexing="ij")
    rows, columns = rows.flatten(), columns.flatten()
    dy = rows[:, None] - rows[None, :] + Gh - 1
    dx = columns[:, None] - columns[None, :] + Gw - 1
    offsets = (2 * Gh - 1) * (2 * Gw - 1)
    index = torch.empty(1 + Gh * Gw, 1 + Gh * Gw, dtype=torch.int64)
    index[1:, 1:] = dy * (2 * Gw - 1) + dx
    index[0, :] = offsets
    index[:, 0] = offsets + 1
    index[0, 0] = offsets + 2
    return index


class RelativePositionBias(nn.Module):
    """A learned number for every head and every offset between two patches, zero at first."""

    index: Tensor

    def __init__(self, grid: tuple[int, int], num_heads: int) -> None:
        super().__init__()
        Gh, Gw = grid
        self.table = nn.Parameter(torch.zeros((2 * Gh - 1) * (2 * Gw - 1) + CLS_ROWS, num_heads))
        self.register_buffer("index", relative_position_index(grid), persistent=False)

    def forward(self) -> Tensor:
        """Return the bias (1, h, 1+N, 1+N) that is added to the attention logits."""
        return self.table[self.index].permute(2, 0, 1)[None]  # (1, h, 1+N, 1+N)
