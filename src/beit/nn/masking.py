"""Which patches are hidden: blocks as BEiT draws them, or random patches; M in each image."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from beit.nn.patches import Size

MIN_ASPECT = 0.3  # height over width of a block is log-uniform in (0.3, 1 / 0.3) (published code)
ATTEMPTS = 10  # rectangles tried for one block before an image counts as full (published code)
# Elements of a tensor up to which PyTorch uses one thread. With several, each of many small
# operations waits for all threads, on a busy machine for a time slice of the system.
ONE_THREAD = 32_767


@dataclass(frozen=True)
class MaskConfig:
    """Which patches are hidden.

    Args:
        kind: blocks, as published, or random patches.
        count: hidden patches of an image (M).
        ratio: share of hidden patches, used instead of count; null to use count.
        min_block: area of the smallest block, in patches.
        exact: false: stop when no further block fits, as in BEiT v1, so that count or fewer patches
            are hidden.
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
    order = torch.rand(batch, N, generator=generator, device=device)
    return order.topk(count, dim=1, sorted=False).indices.sort(dim=1).values  # (B, M)


def block_masks(
    batch: int,
    grid: Size,
    count: int,
    generator: torch.Generator,
    min_block: int = 16,
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
        exact: false: stop after the blocks, as BEiT v1's code, with 1 to M hidden patches; the last
            index is repeated to fill M columns (see `not_repeated`)

    Returns: (B, M) int64, sorted patch indices in [0, N), all different with ``exact``

    Raises:
        ValueError: M is not in 1 to N, or `min_block` is below 1.
    """
    _check(grid, count)
    if min_block < 1:
        raise ValueError(f"min_block is {min_block}; expected 1 patch or more")
    (Gh, Gw), N, device = grid, grid[0] * grid[1], generator.device
    single = torch.rand(batch, N, generator=generator, device=device)  # (B, N)
    rounds: list[Tensor] = []  # (4, B, ATTEMPTS) random numbers for the next block of each image

    def draw(number: int) -> Tensor:
        if number == len(rounds):
            rounds.append(torch.rand(4, batch, ATTEMPTS, generator=generator, device=device))
        return rounds[number]

    hidden = torch.empty(Gh, Gw, batch, dtype=torch.int32, device=device)
    for images in _parts(torch.arange(batch, device=device), max(ATTEMPTS, Gh + 1, Gw + 1)):
        _grow_blocks(hidden, images, draw, count, min(min_block, count))
    rows = zip(_parts(hidden.view(N, batch).T, N), _parts(single, N), strict=True)
    return torch.cat([_listed(blocks.bool(), others, count, exact) for blocks, others in rows])


def _parts(rows: Tensor, elements: int) -> tuple[Tensor, ...]:
    """Split rows so that operations on `elements` for each take one thread."""
    most = ONE_THREAD // elements if rows.device.type == "cpu" else len(rows)
    parts: tuple[Tensor, ...] = rows.split(max(1, most))
    return parts


def _grow_blocks(
    hidden: Tensor, images: Tensor, draw: Callable[[int], Tensor], count: int, smallest: int
) -> None:
    """Hide one block after another until no further one fits.

    Images are the last dimension, and each row of patches is a tensor: whole grids of many images
    would exceed `ONE_THREAD`.

    Args:
        hidden: (Gh, Gw, B) int32, to fill with 0 for visible and 1 for hidden patches
        images: (b,) int64, the images to fill
        draw: returns the random numbers (4, B, ATTEMPTS) in [0, 1) of a round, counted from 0
        smallest: target area of the smallest block, in patches
    """
    Gh, Gw, _ = hidden.shape
    rows = torch.arange(Gh, dtype=torch.int32, device=images.device)[:, None]
    columns = torch.arange(Gw, dtype=torch.int32, device=images.device)[:, None]
    growing, number = torch.ones_like(images, dtype=torch.bool), 0  # images that are not full yet
    patches = [hidden.new_zeros(Gw, len(images)) for _ in range(Gh)]  # (Gw, b) of each row
    while num_growing := int(growing.sum()):
        if 2 * num_growing <= len(images):  # leave the full ones out
            _write_rows(hidden, images, patches)
            kept = growing.nonzero().squeeze(1)
            images, growing = images[kept], growing[kept]
            patches = [row.index_select(1, kept) for row in patches]
        sums = _sums(patches)
        room = count - sums[-1, -1]  # (b,)
        draws = [d.index_select(0, images).T.contiguous() for d in draw(number)]  # (ATTEMPTS, b)
        top, bottom, left, right, fits = _draw_blocks(draws, smallest, room, (Gh, Gw))
        covered = _sums_of_blocks(sums, top, bottom, left, right)
        added = (bottom - top) * (right - left) - covered  # (ATTEMPTS, b)
        accepted, first = (fits & (added > 0) & (added <= room)).max(dim=0, keepdim=True)  # (1, b)
        growing &= accepted[0]
        top, bottom, left, right = (side.gather(0, first) for side in (top, bottom, left, right))
        in_rows = ((rows >= top) & (rows < bottom) & growing).int()  # (Gh, b)
        in_columns = ((columns >= left) & (columns < right)).int()  # (Gw, b)
        for row, inside in zip(patches, in_rows, strict=True):
            row.bitwise_or_(in_columns & inside)
        number += 1
    _write_rows(hidden, images, patches)


def _write_rows(hidden: Tensor, images: Tensor, patches: list[Tensor]) -> None:
    for target, row in zip(hidden, patches, strict=True):
        target.index_copy_(1, images, row)


def _sums(patches: list[Tensor]) -> Tensor:
    """Sum all patches above and to the left of each: rows (Gw, b) to (Gh+1, Gw+1, b)."""
    Gw, b = patches[0].shape
    sums = patches[0].new_empty(len(patches) + 1, Gw + 1, b)
    sums[0].zero_()
    sums[:, 0].zero_()
    for row, (above, below) in zip(patches, pairwise(sums[:, 1:]), strict=True):
        torch.add(above, row, out=below)
    for left, column in pairwise(sums.unbind(1)):
        column.add_(left)
    return sums


def _sums_of_blocks(
    sums: Tensor, top: Tensor, bottom: Tensor, left: Tensor, right: Tensor
) -> Tensor:
    """Sum the patches of blocks (n, b), from the sums (Gh+1, Gw+1, b) above and to the left."""
    _, width, b = sums.shape
    top, bottom = top * (width * b), bottom * (width * b)
    images = torch.arange(b, dtype=torch.int32, device=sums.device)
    left, right = left * b + images, right * b + images
    corners = [
        sums.view(-1).index_select(0, (row + column).view(-1))
        for row, column in ((bottom, right), (top, left), (top, right), (bottom, left))
    ]
    return (corners[0] + corners[1] - corners[2] - corners[3]).view_as(top)


def _listed(hidden: Tensor, single: Tensor, count: int, exact: bool) -> Tensor:
    """List hidden patches (b, N) as (b, M) sorted indices; `single` (b, N) orders the others."""
    if exact:
        short = (hidden.sum(dim=1) < count).nonzero().squeeze(1)
        order = single[short] + hidden[short]  # hidden patches first, then single ones at random
        filled = order.topk(count, dim=1, sorted=False).indices
        hidden[short] = hidden[short].scatter(1, filled, True)
        return hidden.nonzero()[:, 1].view(len(hidden), count)
    N, first = hidden.shape[1], (single + hidden).argmax(dim=1, keepdim=True)
    listed = hidden.scatter(1, first, True)  # at least one
    patches = torch.arange(N, device=hidden.device)
    indices = torch.where(listed, patches, N).sort(dim=1).values[:, :count]  # (b, M)
    return torch.minimum(indices, torch.where(listed, patches, -1).amax(dim=1, keepdim=True))


def _draw_blocks(
    draws: Sequence[Tensor], smallest: int, room: Tensor, grid: Size
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Turn four random numbers (n, b) in [0, 1) into blocks of `smallest` to `room` (b,) patches.

    Returns: (n, b) int32 top, bottom, left and right of each block, bottom and right outside;
        (n, b) bool, False for blocks as high or as wide as the grid
    """
    Gh, Gw = grid
    area = smallest + draws[0] * (room - smallest)  # if room < smallest, the ends swap
    aspect = torch.exp(math.log(MIN_ASPECT) * (1 - 2 * draws[1]))
    height, width = (x.sqrt().round().int() for x in (area * aspect, area / aspect))  # (n, b)
    fits = (height < Gh) & (width < Gw)
    height, width = height.clamp(max=Gh), width.clamp(max=Gw)
    top = (draws[2] * (Gh - height + 1)).int()
    left = (draws[3] * (Gw - width + 1)).int()
    return top, top + height, left, left + width, fits


def _check(grid: Size, count: int) -> None:
    (Gh, Gw), N = grid, grid[0] * grid[1]
    if not 1 <= count <= N:
        raise ValueError(
            f"{count} masked patches do not fit a grid of {Gh} x {Gw}; expected 1 to {N}"
        )
