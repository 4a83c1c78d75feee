"""Which patches are hidden: blocks as BEiT draws them, or patches at random; M of each image."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

MIN_ASPECT = 0.3  # height over width of a block is log-uniform in (0.3, 1 / 0.3) (published code)
ATTEMPTS = 10  # rectangles tried for one block before an image counts as full (published code)


def random_masks(
    batch: int, grid: tuple[int, int], count: int, generator: torch.Generator
) -> Tensor:
    """Draw masks in which every patch is hidden equally often, whatever its neighbours.

    Args:
        batch: masks to draw
        grid: (Gh, Gw) patches
        count: hidden patches M of each mask, 1 to Gh * Gw
        generator: source of all randomness; its device is the masks' device

    Returns: (B, M) int64, sorted patch indices in [0, N)
    """
    _check(grid, count)
    order = torch.rand(
        batch, grid[0] * grid[1], generator=generator, device=generator.device
    )  # (B, N)
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
    """Draw masks that hide rectangles of patches until M are hidden (BEiT, algorithm 1).

    An image gets one block after another until none of ten tries fits into what remains of M;
    single patches drawn at random then make up the rest, as in the published BEiT v2 code. A block
    is always smaller than the grid in both directions, so a grid of one row has single patches
    only. All images take their draws in step, so a batch costs a few dozen tensor operations; a
    mask does not depend on the others of its batch, only on the generator, the batch and its place.

    BEiT v1's code stops after the blocks: with `exact` False an image has M hidden patches or
    fewer, at least one, and repeats the last of them until its row of M is full. What is hidden is
    the same however often it is listed; `not_repeated` tells the repetitions apart, so that none
    counts twice in a loss.

    Args:
        batch: masks to draw
        grid: (Gh, Gw) patches
        count: hidden patches M of each mask, 1 to Gh * Gw
        generator: source of all randomness; its device is the masks' device
        min_block: smallest area aimed at, in patches; above M, M counts
        max_block: largest area, in patches; None for M
        exact: fill up to M with single patches (BEiT v2); else repeat the last (BEiT v1)

    Returns: (B, M) int64, sorted patch indices in [0, N), all different where exact
    """
    _check(grid, count)
    Gh, Gw = grid
    smallest = min(min_block, count)
    largest = count if max_block is None else min(max_block, count)
    if not 1 <= smallest <= largest:
        raise ValueError(
            f"blocks of {min_block} to {max_block} patches cannot be drawn; "
            "expected 1 <= min_block <= max_block"
        )
    device = generator.device
    rows, columns = torch.arange(Gh, device=device), torch.arange(Gw, device=device)
    single = torch.rand(batch, Gh * Gw, generator=generator, device=device)  # (B, N)
    hidden = torch.zeros(batch, Gh, Gw, dtype=torch.bool, device=device)
    growing = torch.arange(batch, device=device)  # (A,) images in which no block failed to fit yet

    while len(growing):
        draws = torch.rand(4, batch, ATTEMPTS, generator=generator, device=device)[:, growing]
        # Summed-area table of what is hidden: corner (y, x) holds the sum above and left of it.
        table = hidden[growing].int().cumsum(1, dtype=torch.int32).cumsum(2, dtype=torch.int32)
        corners = F.pad(table, (1, 0, 1, 0))  # (A, Gh + 1, Gw + 1)
        remaining = (count - corners[:, -1, -1, None]).clamp(max=largest)  # (A, 1)
        area = smallest + draws[0] * (remaining - smallest)  # the ends swap when remaining is less
        aspect = torch.exp(math.log(MIN_ASPECT) * (1 - 2 * draws[1]))
        height = (area * aspect).sqrt().round().long()  # (A, ATTEMPTS), as are the next
        width = (area / aspect).sqrt().round().long()
        fits = (height < Gh) & (width < Gw)
        height, width = height.clamp(max=Gh), width.clamp(max=Gw)
        top = (draws[2] * (Gh - height + 1)).long()
        left = (draws[3] * (Gw - width + 1)).long()

        upper, lower = top * (Gw + 1) + left, (top + height) * (Gw + 1) + left
        places = torch.cat([upper, upper + width, lower, lower + width], dim=1)
        a, b, c, d = corners.flatten(1).gather(1, places).chunk(4, dim=1)
        added = height * width - (d - b - c + a)
        accepted = fits & (added > 0) & (added <= remaining)

        grown = accepted.any(dim=1)  # (A,)
        first = accepted.int().argmax(dim=1)[grown, None]  # (A', 1) its first try that fits
        top, height, left, width = (x[grown].gather(1, first) for x in (top, height, left, width))
        growing = growing[grown]
        in_rows = (rows >= top) & (rows < top + height)  # (A', Gh)
        in_columns = (columns >= left) & (columns < left + width)  # (A', Gw)
        hidden[growing] |= in_rows[:, :, None] & in_columns[:, None, :]

    order = single + hidden.flatten(1)  # hidden ones first, then single patches at random
    if exact:
        return order.topk(count, dim=1, sorted=False).indices.sort(dim=1).values
    inside = hidden.flatten(1).scatter(1, order.argmax(dim=1, keepdim=True), True)  # one at least
    patches = torch.arange(Gh * Gw, device=device)
    first = torch.where(inside, patches, Gh * Gw).sort(dim=1).values[:, :count]  # (B, M)
    return torch.minimum(first, torch.where(inside, patches, -1).amax(dim=1, keepdim=True))


def not_repeated(masked: Tensor) -> Tensor:
    """Tell which indices of sorted masks (B, M) are not repetitions: (B, M) bool."""
    return F.pad(masked.diff(dim=1) > 0, (1, 0), value=True)


def _check(grid: tuple[int, int], count: int) -> None:
    num_patches = grid[0] * grid[1]
    if not 1 <= count <= num_patches:
        raise ValueError(
            f"{count} masked patches asked for on a grid of {grid[0]} x {grid[1]}; "
            f"expected 1 to {num_patches}"
        )


@dataclass(frozen=True)
class MaskConfig:
    """Which patches are hidden.

    Args:
        kind: blocks, as published, or random patches.
        count: patches hidden in an image (M).
        ratio: share of the patches that is hidden, instead of count; null: count says it.
        min_block: patches of the smallest block.
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
                "mask.exact false is for blocks, which may not fit; random masks always have "
                "their count: leave it out, or set mask.kind block"
            )

    def number(self, num_patches: int) -> int:
        """Return how many (M) of an image's patches are hidden."""
        return self.count if self.ratio is None else max(1, round(self.ratio * num_patches))


def draw_masks(
    mask: MaskConfig, batch: int, grid: tuple[int, int], generator: torch.Generator
) -> Tensor:
    """Draw masks (batch, M) int64, sorted patch indices in [0, N); see `block_masks` for v1's."""
    count = mask.number(grid[0] * grid[1])
    if mask.kind == "random":
        return random_masks(batch, grid, count, generator)
    return block_masks(batch, grid, count, generator, mask.min_block, exact=mask.exact)


def to_predict(
    masked: Tensor, grid: tuple[int, int], everywhere: bool, exact: bool
) -> tuple[Tensor, Tensor | None]:
    """Tell which patches are predicted, and how much each counts.

    Args:
        masked: (B, M) int64, the hidden ones
        everywhere: all patches are predicted, seen or hidden
        exact: no index of the masks is a repetition

    Returns: (B, M') int64, and (B, M') weights or None where all count alike
    """
    if everywhere:
        return torch.arange(grid[0] * grid[1], device=masked.device).expand(len(masked), -1), None
    return masked, None if exact else not_repeated(masked).float()
