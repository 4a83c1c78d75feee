"""Where a patch is: the relative position bias of attention (Swin's table, BEiT's [CLS] rows).

Tables and absolute positions can be carried to another grid, so that a model sees larger images.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CLS_ROWS = 3  # [CLS] to patch, patch to [CLS], [CLS] to itself: the last rows of a table
MIN_RATIO, MAX_RATIO = 1.01, 1.5  # of the geometric spacing of offsets (published code)
RATIO_ERROR = 1e-6


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

    def resized(
        self, old_grid: tuple[int, int], new_grid: tuple[int, int]
    ) -> "RelativePositionBias":
        """Return a copy for another grid; see ``resize_relative_bias``."""
        other = RelativePositionBias(new_grid, self.table.shape[1]).to(self.table)
        with torch.no_grad():
            other.table.copy_(resize_relative_bias(self.table, old_grid, new_grid))
        return other


@torch.no_grad()
def resize_relative_bias(
    table: Tensor, old_grid: tuple[int, int], new_grid: tuple[int, int]
) -> Tensor:
    """Carry a table of position biases to another grid, as the published fine-tuning code does.

    Along each axis the old offsets are moved apart in a geometric progression, so that offsets of
    one patch keep their bias and the longest old offset becomes the longest new one; a bicubic
    spline through them is read at the new offsets. The rows of [CLS] are kept. The ratio of the
    progression stays within what the published code searches, 1.01 to 1.5: where more would be
    needed, the outermost bias is continued; to a smaller grid, the far offsets are in effect cut
    off. That code knows square grids only; here each axis has its own progression, and an axis
    whose length does not change is left alone.

    Args:
        table: ((2Gh-1)(2Gw-1)+3, h) for ``old_grid``
        old_grid: (Gh, Gw) that the table is for
        new_grid: (Gh, Gw) that it is wanted for

    Returns: the table for ``new_grid``, of the same dtype; the same tensor for the same grid.

    Raises:
        ValueError: the table is not one of the old grid.
    """
    heights, widths = (
        (2 * old - 1, 2 * new - 1) for old, new in zip(old_grid, new_grid, strict=True)
    )
    rows = heights[0] * widths[0] + CLS_ROWS
    if table.ndim != 2 or len(table) != rows:
        raise ValueError(
            f"the table is {tuple(table.shape)}, expected ({rows}, heads) for a grid of "
            f"{old_grid[0]} x {old_grid[1]}"
        )
    if tuple(old_grid) == tuple(new_grid):
        return table
    offsets = table[:-CLS_ROWS].cpu().double().view(heights[0], widths[0], -1)
    offsets = torch.einsum("yi,ijh->yjh", spread(*heights), offsets)
    offsets = torch.einsum("xj,yjh->yxh", spread(*widths), offsets)  # (2Gh'-1, 2Gw'-1, h)
    return torch.cat([offsets.flatten(0, 1).to(table), table[-CLS_ROWS:]])


def resize_absolute(
    pos_embed: Tensor, old_grid: tuple[int, int], new_grid: tuple[int, int]
) -> Tensor:
    """Carry learned positions to another grid by bicubic interpolation; that of [CLS] is kept.

    pos_embed: (1, 1 + Gh*Gw, D) for ``old_grid``
    Returns: (1, 1 + Gh'*Gw', D); the same tensor for the same grid.

    Raises:
        ValueError: the positions are not those of the old grid.
    """
    Gh, Gw = old_grid
    if pos_embed.ndim != 3 or pos_embed.shape[1] != 1 + Gh * Gw:
        raise ValueError(
            f"the positions are {tuple(pos_embed.shape)}, expected (1, {1 + Gh * Gw}, width) "
            f"for a grid of {Gh} x {Gw}"
        )
    if tuple(old_grid) == tuple(new_grid):
        return pos_embed
    patches = pos_embed[:, 1:].transpose(1, 2).unflatten(2, old_grid)  # (1, D, Gh, Gw)
    resized = F.interpolate(patches, new_grid, mode="bicubic", align_corners=False)
    return torch.cat([pos_embed[:, :1], resized.flatten(2).transpose(1, 2)], dim=1)


def spread(old: int, new: int) -> Tensor:
    """Weigh the biases at ``old`` offsets of one axis to get those at ``new`` ones.

    Both numbers are odd. Returns: (new, old) float64.
    """
    if old == new:
        return torch.eye(old, dtype=torch.float64)
    if old == 1:  # one patch a row: nothing but the offset 0 was learned
        return torch.ones(new, 1, dtype=torch.float64)
    reach = new // 2
    distances = geometric_distances(old // 2, reach)
    knots = torch.cat([-distances.flip(0), torch.zeros(1), distances])
    wanted = torch.arange(-reach, reach + 1, dtype=torch.float64)
    return cubic_spline(knots, wanted.clamp(knots[0], knots[-1]))


def geometric_distances(count: int, reach: int) -> Tensor:
    """Return 1, 1 + q, 1 + q + q^2, … (count,) float64, of which the last is ``reach``, if it can.

    The ratio q is found by bisection between the bounds that the published code has.
    """
    low, high = MIN_RATIO, MAX_RATIO
    ratio = low
    while high - low > RATIO_ERROR:
        ratio = (low + high) / 2
        if (1 - ratio**count) / (1 - ratio) > reach:
            high = ratio
        else:
            low = ratio
    powers = torch.arange(count, dtype=torch.float64)
    return torch.pow(ratio, powers).cumsum(0)


def cubic_spline(knots: Tensor, wanted: Tensor) -> Tensor:
    """Weigh values at the knots to get those of the cubic spline through them elsewhere.

    The ends are "not a knot": the outer two pieces on each side are one cubic. Three knots make a
    parabola.

    Args:
        knots: (n,) float64, ascending, n >= 3
        wanted: (m,) float64, within the knots

    Returns: (m, n) float64.
    """
    n = len(knots)
    steps: Tensor = knots.diff()
    values = torch.eye(n, dtype=knots.dtype)
    slopes = values.diff(dim=0) / steps[:, None]  # (n-1, n)
    # Unknown are the second derivatives at the knots. First derivatives agree at inner knots:
    system, right = torch.zeros(n, n, dtype=knots.dtype), torch.zeros(n, n, dtype=knots.dtype)
    inner = torch.arange(1, n - 1)
    system[inner, inner - 1] = steps[:-1]
    system[inner, inner] = 2 * (steps[:-1] + steps[1:])
    system[inner, inner + 1] = steps[1:]
    right[1:-1] = 6 * slopes.diff(dim=0)
    # and third derivatives at the outermost of them; a parabola has none.
    for row, (a, b, c) in ((0, (0, 1, 2)), (n - 1, (n - 1, n - 2, n - 3))):
        outer, next_one = (knots[b] - knots[a]), (knots[c] - knots[b])
        if n == 3:
            system[row, a], system[row, b] = 1, -1
        else:
            system[row, a], system[row, b] = next_one, -(outer + next_one)
            system[row, c] = outer
    second = torch.linalg.solve(system, right)  # (n, n)

    piece = torch.searchsorted(knots, wanted, right=True).clamp(1, n - 1) - 1  # (m,)
    width = steps[piece][:, None]
    after: Tensor = (wanted - knots[piece])[:, None] / width  # share of the piece that is passed
    before = 1 - after
    curved: Tensor = (before**3 - before) * second[piece] + (after**3 - after) * second[piece + 1]
    return before * values[piece] + after * values[piece + 1] + curved * width**2 / 6
