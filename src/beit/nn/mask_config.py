"""Which patches a step of pretraining hides, and which it asks for."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from beit.nn.masking import block_masks, not_repeated, random_masks


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
