"""Which patches are hidden: blocks as BEiT draws them, or random patches; M in each image."""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

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
                "mask.exact false is for blocks; random masks always have count patches: leave it "
                "out, or set mask.kind block"
            )

    def number(self, num_patches: int) -> int:
        """Return the number (M) of hidden patches of an image."""
        return self.count if self.ratio is None else max(1, round(self.ratio * num_patches))


def draw_masks(
    mask: MaskConfig, batch: int, grid: tuple[int, int], generator: torch.Generator
) -> Tensor:
    """Draw masks (B, M) int64, sorted patch indices in [0, N).

    Indices repeat only without ``mask.exact``, see `block_masks`.
    """
    count = mask.number(grid[0] * grid[1])
    if mask.kind == "random":
        return random_masks(batch, grid, count, generator)
    return block_masks(batch, grid, count, generator, mask.min_block, exact=mask.exact)


def patches_to_predict(
    masked: Tensor, grid: tuple[int, int], everywhere: bool, exact: bool
) -> tuple[Tensor, Tensor | None]:
    """Return the indices of the patches to predict, and their weights in losses and metrics.

    Args:
        masked: (B, M) int64, from `draw_masks`
        everywhere: predict all patches, visible or hidden
        exact: no index in ``masked`` is repeated

    Returns: (B, M') int64, and (B, M') weights, or None for equal weights; repeated indices have
        weight 0
    """
    if everywhere:
        return torch.arange(grid[0] * grid[1], device=masked.device).expand(len(masked), -1), None
    return masked, None if exact else not_repeated(masked).float()


def not_repeated(masked: Tensor) -> Tensor:
    """Return False for repeated indices of sorted masks (B, M), True for all others: (B, M)."""
    return F.pad(masked.diff(dim=1) > 0, (1, 0), value=True)


def random_masks(
    batch: int, grid: tuple[int, int], count: int, generator: torch.Generator
) -> Tensor:
    """Draw masks of independent patches, each hidden with the same probability.

    Args:
        batch: number of masks (B)
        grid: (Gh, Gw) patches
        count: hidden patches M of each mask, 1 to Gh * Gw
        generator: source of all randomness; its device is the masks' device

    Returns: (B, M) int64, sorted patch indices in [0, N)
    """
    _check(grid, count)
    N, device = grid[0] * grid[1], generator.device
    order = torch.rand(batch, N, generator=generator, device=device)  # (B, N)
    return order.topk(count, dim=1, sorted=False).indices.sort(dim=1).values


def block_masks(
    batch: int,
    grid: tuple[int, int],
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
    a batch are drawn together, in a few dozen tensor operations. A mask depends on the generator,
    the batch size and its place in the batch, but not on the other masks.

    BEiT v1's code stops after the blocks. With ``exact`` False an image has M hidden patches or
    fewer, at least one, and its last index is repeated to fill M columns. Use `not_repeated` to
    count no patch twice in a loss.

    Args:
        batch: number of masks (B)
        grid: (Gh, Gw) patches
        count: hidden patches M of each mask, 1 to Gh * Gw
        generator: source of all randomness; its device is the masks' device
        min_block: smallest target area of a block, in patches; at most M is used
        max_block: largest area of a block, in patches; None for M
        exact: fill up to M with single patches (BEiT v2); false: repeat the last one (BEiT v1)

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
        sums = _summed_area(hidden[growing])  # (A, Gh + 1, Gw + 1)
        room = (count - sums[:, -1, -1, None]).clamp(max=largest)  # (A, 1)
        blocks, fits = _draw_blocks(draws, smallest, room, grid)
        added = blocks.height * blocks.width - _hidden_inside(sums, blocks)  # (A, ATTEMPTS)
        accepted = fits & (added > 0) & (added <= room)
        grown = accepted.any(dim=1)  # (A,)
        first = accepted.int().argmax(dim=1)[grown, None]  # (A', 1) first accepted attempt
        growing = growing[grown]
        hidden[growing] |= _inside(Blocks(*(x[grown].gather(1, first) for x in blocks)), grid)

    order = single + hidden.flatten(1)  # hidden patches first, then single ones at random
    if exact:
        return order.topk(count, dim=1, sorted=False).indices.sort(dim=1).values
    listed = hidden.flatten(1).scatter(1, order.argmax(dim=1, keepdim=True), True)  # at least one
    patches = torch.arange(Gh * Gw, device=device)
    indices = torch.where(listed, patches, Gh * Gw).sort(dim=1).values[:, :count]  # (B, M)
    return torch.minimum(indices, torch.where(listed, patches, -1).amax(dim=1, keepdim=True))


class Blocks(NamedTuple):
    """Rectangles of patches, (A, n) int64 each, n for each of A images."""

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor


def _draw_blocks(
    draws: Tensor, smallest: int, room: Tensor, grid: tuple[int, int]
) -> tuple[Blocks, Tensor]:
    """Turn random numbers (4, A, n) in [0, 1) into blocks of `smallest` to `room` (A, 1) patches.

    Returns: blocks, clipped to the grid; (A, n) bool, False for blocks as large as the grid
    """
    Gh, Gw = grid
    area = smallest + draws[0] * (room - smallest)  # if room < smallest, the ends swap
    aspect = torch.exp(math.log(MIN_ASPECT) * (1 - 2 * draws[1]))
    height = (area * aspect).sqrt().round().long()  # (A, n)
    width = (area / aspect).sqrt().round().long()  # (A, n)
    fits = (height < Gh) & (width < Gw)
    height, width = height.clamp(max=Gh), width.clamp(max=Gw)
    top = (draws[2] * (Gh - height + 1)).long()
    left = (draws[3] * (Gw - width + 1)).long()
    return Blocks(top, left, height, width), fits


def _summed_area(hidden: Tensor) -> Tensor:
    """Count the hidden patches (A, Gh, Gw) bool above and left of each corner of the grid.

    Returns: (A, Gh + 1, Gw + 1) int32
    """
    sums = hidden.int().cumsum(1, dtype=torch.int32).cumsum(2, dtype=torch.int32)
    return F.pad(sums, (1, 0, 1, 0))


def _hidden_inside(sums: Tensor, blocks: Blocks) -> Tensor:
    """Count the hidden patches inside blocks (A, n), from `_summed_area`."""
    columns = sums.shape[2]
    upper = blocks.top * columns + blocks.left
    lower = (blocks.top + blocks.height) * columns + blocks.left
    corners = torch.cat([upper, upper + blocks.width, lower, lower + blocks.width], dim=1)
    a, b, c, d = sums.flatten(1).gather(1, corners).chunk(4, dim=1)  # (A, n) each
    return d - b - c + a


def _inside(blocks: Blocks, grid: tuple[int, int]) -> Tensor:
    """Return the patches of one block (A, 1) of each image: (A, Gh, Gw) bool."""
    rows, columns = (torch.arange(side, device=blocks.top.device) for side in grid)
    in_rows = (rows >= blocks.top) & (rows < blocks.top + blocks.height)  # (A, Gh)
    in_columns = (columns >= blocks.left) & (columns < blocks.left + blocks.width)  # (A, Gw)
    return in_rows[:, :, None] & in_columns[:, None, :]


def _check(grid: tuple[int, int], count: int) -> None:
    num_patches = grid[0] * grid[1]
    if not 1 <= count <= num_patches:
        raise ValueError(
            f"{count} masked patches do not fit a grid of {grid[0]} x {grid[1]}; "
            f"expected 1 to {num_patches}"
        )
