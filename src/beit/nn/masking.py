"""Which patches are hidden: blocks as BEiT draws them, or random patches; M in each image."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from beit.nn.patches import Size

MIN_ASPECT = 0.3  # height over width of a block is log-uniform in (0.3, 1 / 0.3) (published code)
ATTEMPTS = 10  # rectangles tried for one block before an image counts as full (published code)


@dataclass(frozen=True)
class MaskConfig:
    """Which patches are hidden.

    Args:
        kind: blocks, as published, or random patches.
        count: hidden patches of an image (M).
        ratio: share of hidden patches, replaces count; null to use count.
        min_block: area of the smallest block, in patches.
        exact: false: stop when no further block fits, with count patches or fewer, as BEiT v1.
    """

    kind: Literal["block", "random"] = "block"
    count: int = 75
    ratio: float | None = None
    min_block: int = 16
    exact: bool = True

    def __post_init__(self) -> None:
        if self.min_block < 1:
            raise ValueError(f"mask.min_block is {self.min_block}; expected 1 patch or more")
        if self.ratio is not None and not 0 < self.ratio <= 1:
            raise ValueError(f"mask.ratio is {self.ratio}; expected above 0, to 1 for all patches")
        if not self.exact and self.kind == "random":
            raise ValueError(
                "mask.exact false is for blocks, random masks always have count patches: leave it "
                "out, or set mask.kind block"
            )

    def number(self, num_patches: int) -> int:
        """Return the number (M) of hidden patches of an image."""
        return self.count if self.ratio is None else max(1, round(self.ratio * num_patches))


def draw_masks(mask: MaskConfig, batch: int, grid: Size, generator: torch.Generator) -> Tensor:
    """Draw masks (B, M) int64: sorted patch indices in [0, N), repeated only without `exact`."""
    count = mask.number(grid[0] * grid[1])
    if mask.kind == "random":
        return random_masks(batch, grid, count, generator)
    return block_masks(batch, grid, count, generator, mask.min_block, exact=mask.exact)


def patches_to_predict(
    masked: Tensor, grid: Size, everywhere: bool, exact: bool
) -> tuple[Tensor, Tensor | None]:
    """Return the indices (B, M') int64 of the patches to predict, and their weights (B, M').

    Weights are for losses and metrics: 0 for repeated indices; None if all are equal.

    Args:
        masked: (B, M) int64, from `draw_masks`
        everywhere: predict all patches, visible or hidden
        exact: no index in ``masked`` is repeated
    """
    if everywhere:
        return torch.arange(grid[0] * grid[1], device=masked.device).expand(len(masked), -1), None
    return masked, None if exact else not_repeated(masked).float()


def not_repeated(masked: Tensor) -> Tensor:
    """Return False for repeated indices of sorted masks (B, M), True for all others: (B, M)."""
    return F.pad(masked.diff(dim=1) > 0, (1, 0), value=True)


def random_masks(batch: int, grid: Size, count: int, generator: torch.Generator) -> Tensor:
    """Draw masks of ``count`` independent patches, each equally likely; see `block_masks`."""
    _check(grid, count)
    N, device = grid[0] * grid[1], generator.device
    return _largest(torch.rand(batch, N, generator=generator, device=device), count)


def block_masks(
    batch: int,
    grid: Size,
    count: int,
    generator: torch.Generator,
    min_block: int = 16,
    max_block: int | None = None,
    exact: bool = True,
) -> Tensor:
    """Draw masks of rectangles of patches, until M patches are hidden (BEiT, algorithm 1).

    An image gets one block after another, until ten tries in a row do not fit into the rest of M.
    Random single patches fill up the rest, as in the published BEiT v2 code. A block is smaller
    than the grid in both directions, so a grid of one row gets single patches only. All images of
    a batch are drawn together. A mask depends on the generator, the batch size and its place in the
    batch, but not on the other masks.

    Args:
        batch: number of masks (B)
        grid: (Gh, Gw) patches
        count: hidden patches M of each mask, 1 to Gh * Gw
        generator: source of all randomness; its device is the masks' device
        min_block: smallest target area of a block, in patches; at most M is used
        max_block: largest area of a block, in patches; None for M
        exact: false: stop after the blocks, as BEiT v1's code, with 1 to M hidden patches; the last
            index is repeated to fill M columns (see `not_repeated`)

    Returns: (B, M) int64, sorted patch indices in [0, N), all different with ``exact``
    """
    _check(grid, count)
    smallest = min(min_block, count)
    largest = count if max_block is None else min(max_block, count)
    if not 1 <= smallest <= largest:
        raise ValueError(
            f"blocks of {min_block} to {max_block} patches cannot be drawn; "
            "expected 1 <= min_block <= max_block"
        )
    device, (Gh, Gw) = generator.device, grid
    single = torch.rand(batch, Gh * Gw, generator=generator, device=device)  # (B, N)
    hidden = torch.zeros(batch, Gh, Gw, dtype=torch.bool, device=device)
    growing = torch.arange(batch, device=device)  # (A,) images that are not full yet
    while len(growing):
        draws = torch.rand(4, batch, ATTEMPTS, generator=generator, device=device)[:, growing]
        room = (count - hidden[growing].sum(dim=(1, 2)))[:, None].clamp(max=largest)  # (A, 1)
        rows, columns, fits = _draw_blocks(draws, smallest, room, grid)
        visible = (~hidden[growing]).float()  # (A, Gh, Gw)
        added = ((rows.float() @ visible).float() * columns).sum(dim=2)  # (A, ATTEMPTS)
        accepted = fits & (added > 0) & (added <= room)
        grown = accepted.any(dim=1)  # (A,)
        first = accepted.int().argmax(dim=1)[grown]  # (A',) first accepted attempt
        growing = growing[grown]
        hidden[growing] |= rows[grown, first][:, :, None] & columns[grown, first][:, None, :]

    order = single + hidden.flatten(1)  # hidden patches first, then single ones at random
    if exact:
        return _largest(order, count)
    listed = hidden.flatten(1).scatter(1, order.argmax(dim=1, keepdim=True), True)  # at least one
    patches = torch.arange(Gh * Gw, device=device)
    indices = torch.where(listed, patches, Gh * Gw).sort(dim=1).values[:, :count]  # (B, M)
    return torch.minimum(indices, torch.where(listed, patches, -1).amax(dim=1, keepdim=True))


def _largest(values: Tensor, count: int) -> Tensor:
    """Return the sorted indices (B, M) of the ``count`` largest values of each row (B, N)."""
    return values.topk(count, dim=1, sorted=False).indices.sort(dim=1).values


def _draw_blocks(
    draws: Tensor, smallest: int, room: Tensor, grid: Size
) -> tuple[Tensor, Tensor, Tensor]:
    """Turn random numbers (4, A, n) in [0, 1) into blocks of `smallest` to `room` (A, 1) patches.

    Returns: (A, n, Gh), (A, n, Gw) bool, the rows and columns of each block; (A, n) bool, False
        for blocks as high or as wide as the grid
    """
    Gh, Gw = grid
    area = smallest + draws[0] * (room - smallest)  # if room < smallest, the ends swap
    aspect = torch.exp(math.log(MIN_ASPECT) * (1 - 2 * draws[1]))
    height, width = (x.sqrt().round().long() for x in (area * aspect, area / aspect))  # (A, n)
    fits = (height < Gh) & (width < Gw)
    height, width = height.clamp(max=Gh)[..., None], width.clamp(max=Gw)[..., None]  # (A, n, 1)
    top = (draws[2, ..., None] * (Gh - height + 1)).long()
    left = (draws[3, ..., None] * (Gw - width + 1)).long()
    rows, columns = (torch.arange(side, device=draws.device) for side in grid)
    in_rows = (rows >= top) & (rows < top + height)  # (A, n, Gh)
    in_columns = (columns >= left) & (columns < left + width)  # (A, n, Gw)
    return in_rows, in_columns, fits


def _check(grid: Size, count: int) -> None:
    (Gh, Gw), N = grid, grid[0] * grid[1]
    if not 1 <= count <= N:
        raise ValueError(
            f"{count} masked patches do not fit a grid of {Gh} x {Gw}; expected 1 to {N}"
        )
