"""Relative position bias of attention (Swin's table with BEiT's [CLS] rows).

Bias tables and absolute positions can be resized to another grid, for other image sizes.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from beit.nn.patches import Size

CLS_ROWS = 3  # last rows of a table: [CLS] to patch, patch to [CLS], [CLS] to itself
MIN_RATIO, MAX_RATIO = 1.01, 1.5  # ratio of the geometric progression of offsets (published code)
RATIO_ERROR = 1e-6


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

    @torch.no_grad()
    def resized(self, old: Size, new: Size) -> "RelativePositionBias":
        """Return a copy for another grid; see ``resize_relative_bias``."""
        resized = RelativePositionBias(new, self.table.shape[1]).to(self.table)
        resized.table.copy_(resize_relative_bias(self.table, old, new))
        return resized


@torch.no_grad()
def resize_relative_bias(table: Tensor, old_grid: Size, new_grid: Size) -> Tensor:
    """Resize a table of position biases to another grid, as the published fine-tuning code does.

    Along each axis, the old offsets are placed at the distances of a geometric progression, of a
    ratio from 1.01 to 1.5. Offsets of one patch keep their bias, and the longest old offset becomes
    the longest new one. A bicubic spline through these points gives the biases at the new offsets;
    beyond the last point the outermost bias is repeated. The rows of [CLS] do not change. For a
    smaller grid, far offsets are in effect cut off. The published code supports square grids only:
    here each axis has its own progression, and an axis that keeps its length does not change.

    table: ((2Gh-1)(2Gw-1)+3, h) for ``old_grid``
    Returns: the table for ``new_grid``, of the same dtype; the same tensor for the same grid
    """
    sides = zip(old_grid, new_grid, strict=True)
    heights, widths = ((2 * old - 1, 2 * new - 1) for old, new in sides)
    rows = heights[0] * widths[0] + CLS_ROWS
    if table.ndim != 2 or len(table) != rows:
        raise ValueError(
            f"the table is {tuple(table.shape)}, expected ({rows}, heads) for a grid of "
            f"{old_grid[0]} x {old_grid[1]}"
        )
    if tuple(old_grid) == tuple(new_grid):
        return table
    biases = table[:-CLS_ROWS].cpu().double().view(heights[0], widths[0], -1)  # (2Gh-1, 2Gw-1, h)
    biases = torch.einsum("yi,ijh->yjh", resize_matrix(*heights), biases)
    biases = torch.einsum("xj,yjh->yxh", resize_matrix(*widths), biases)  # (2Gh'-1, 2Gw'-1, h)
    return torch.cat([biases.flatten(0, 1).to(table), table[-CLS_ROWS:]])


def resize_absolute(pos_embed: Tensor, old_grid: Size, new_grid: Size) -> Tensor:
    """Resize learned positions to another grid by bicubic interpolation; [CLS] keeps its own.

    pos_embed: (1, 1 + Gh*Gw, D) for ``old_grid``
    Returns: (1, 1 + Gh'*Gw', D); the same tensor for the same grid
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
    patches = F.interpolate(patches, new_grid, mode="bicubic", align_corners=False)
    return torch.cat([pos_embed[:, :1], patches.flatten(2).transpose(1, 2)], dim=1)


def resize_matrix(old: int, new: int) -> Tensor:
    """Return the matrix (new, old) float64 that resizes the biases of one axis; both are odd."""
    if old == new:
        return torch.eye(old, dtype=torch.float64)
    if old == 1:  # one patch per row: only offset 0 was learned
        return torch.ones(new, 1, dtype=torch.float64)
    longest = new // 2
    distances = geometric_distances(old // 2, longest)
    knots = torch.cat([-distances.flip(0), torch.zeros(1), distances])
    offsets = torch.arange(-longest, longest + 1, dtype=torch.float64)
    return cubic_spline(knots, offsets.clamp(knots[0], knots[-1]))


def geometric_distances(count: int, longest: int) -> Tensor:
    """Return 1, 1 + q, 1 + q + q^2, … (count,) float64, with ``longest`` as the last if possible.

    The ratio q is found by bisection within the bounds of the published code.
    """
    ratio, low, high = MIN_RATIO, MIN_RATIO, MAX_RATIO
    while high - low > RATIO_ERROR:
        ratio = (low + high) / 2
        if (1 - ratio**count) / (1 - ratio) > longest:
            high = ratio
        else:
            low = ratio
    return torch.pow(ratio, torch.arange(count, dtype=torch.float64)).cumsum(0)


def cubic_spline(knots: Tensor, points: Tensor) -> Tensor:
    """Return the matrix (m, n) from values at the knots to their cubic spline at the points.

    The boundary condition is "not-a-knot": the two outer pieces on each side are one cubic. Three
    knots give a parabola.

    Args:
        knots: (n,) float64, ascending, n >= 3
        points: (m,) float64, within the knots
    """
    n = len(knots)
    steps: Tensor = knots.diff()
    values = torch.eye(n, dtype=knots.dtype)
    slopes = values.diff(dim=0) / steps[:, None]  # (n-1, n)
    # The unknowns are the second derivatives at the knots. First derivatives agree at inner knots,
    system, right = torch.zeros(2, n, n, dtype=knots.dtype)
    inner = torch.arange(1, n - 1)
    system[inner, inner - 1] = steps[:-1]
    system[inner, inner] = 2 * (steps[:-1] + steps[1:])
    system[inner, inner + 1] = steps[1:]
    right[1:-1] = 6 * slopes.diff(dim=0)
    # third derivatives at the outermost inner knots; those of a parabola are zero.
    for row, (a, b, c) in ((0, (0, 1, 2)), (n - 1, (n - 1, n - 2, n - 3))):
        outer, inner_step = (knots[b] - knots[a]), (knots[c] - knots[b])
        if n == 3:
            system[row, a], system[row, b] = 1, -1
        else:
            system[row, a], system[row, b] = inner_step, -(outer + inner_step)
            system[row, c] = outer
    second = torch.linalg.solve(system, right)  # (n, n)

    piece = torch.searchsorted(knots, points, right=True).clamp(1, n - 1) - 1  # (m,)
    width = steps[piece][:, None]
    after: Tensor = (points - knots[piece])[:, None] / width  # position within the piece, 0 to 1
    before = 1 - after
    curved: Tensor = (before**3 - before) * second[piece] + (after**3 - after) * second[piece + 1]
    return before * values[piece] + after * values[piece + 1] + curved * width**2 / 6
