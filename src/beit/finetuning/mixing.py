"""Mixup and CutMix of a batch (docs/reference/finetuning.md, "Recipes")."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from torch import Tensor

Mixer = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class MixConfig:
    """Mixup and CutMix of a batch; the defaults are the published ones.

    Args:
        mixup: alpha of mixup's Beta distribution; 0 for no mixup
        cutmix: alpha of CutMix's Beta distribution; 0 for no CutMix
        probability: probability of mixing a batch
        switch: probability of CutMix if both are on
        smoothing: label smoothing in training, with and without mixing
    """

    mixup: float = 0.8
    cutmix: float = 1.0
    probability: float = 1.0
    switch: float = 0.5
    smoothing: float = 0.1

    def __post_init__(self) -> None:
        for name in ("mixup", "cutmix"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"mix.{name} is {getattr(self, name)}; expected 0 (off) or more")
        for name in ("probability", "switch"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"mix.{name} is {getattr(self, name)}; expected 0 to 1")
        if not 0 <= self.smoothing < 1:
            raise ValueError(f"mix.smoothing is {self.smoothing}; expected 0 or more and below 1")

    @property
    def on(self) -> bool:
        """Whether batches are mixed."""
        return self.probability > 0 and (self.mixup > 0 or self.cutmix > 0)


def build_mixer(mix: MixConfig, num_classes: int, batch_size: int) -> Mixer | None:
    """Return timm's mixer, which mixes a batch with its reverse; None if mixing is off.

    It maps images (B, 3, H, W) float, possibly in place, and labels (B,) int64 to images and
    smoothed targets (B, Y), and draws from NumPy's global random state.

    Raises:
        ValueError: the batch size is odd.
    """
    if not mix.on:
        return None
    from timm.data.mixup import Mixup  # slow to import

    if batch_size % 2:
        raise ValueError(
            f"mixing pairs the images of a batch, but a process has {batch_size} in a micro-step; "
            "choose an even number with optim.batch_size, or turn mixing off with "
            "--mix.probability 0"
        )
    mixer = Mixup(
        mixup_alpha=mix.mixup,
        cutmix_alpha=mix.cutmix,
        prob=mix.probability,
        switch_prob=mix.switch,
        label_smoothing=mix.smoothing,
        num_classes=num_classes,
    )
    return cast(Mixer, mixer)
