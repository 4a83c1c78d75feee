"""What is read of a frozen model's tokens for a whole image: which layer, and which of its tokens.

BEiT v2, section 3.2, reads [CLS] after pretraining with patch aggregation and else the mean of the
patches; BEiT v1's script both together, of every block.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Layer = int | None  # number of a block, from 1, for its raw output; None for the final features
Pooling = Literal["cls", "mean", "both", "attentive"]


class Kind(NamedTuple):
    """What one probe reads: a layer, and [CLS], the mean patch, both, or (attentive) all patches.

    Attributes:
        layer: of the model
        pooling: how its tokens are read
    """

    layer: Layer
    pooling: Pooling

    @property
    def name(self) -> str:
        """Its name in files: "cls", or "cls@3" of block 3."""
        return self.pooling if self.layer is None else f"{self.pooling}@{self.layer}"

    @property
    def parts(self) -> "list[Kind]":
        """The kinds that it is put together from: both is [CLS] and mean, others are themselves."""
        if self.pooling == "both":
            return [Kind(self.layer, "cls"), Kind(self.layer, "mean")]
        return [self]


class Tokens(NamedTuple):
    """What a layer makes of images.

    Attributes:
        cls: (B, D) the [CLS] token; None where the model has none
        patches: (B, N, D)
    """

    cls: Tensor | None
    patches: Tensor


def pooled(tokens: Tokens, pooling: Pooling) -> Tensor:
    """Read tokens in float32: (B, D); of both (B, 2D), [CLS] first; for attentive (B, N, D)."""
    if pooling == "attentive":
        return tokens.patches.float()
    if pooling == "mean":
        return tokens.patches.float().mean(dim=1)
    assert tokens.cls is not None  # `kinds_of` does not offer it then
    if pooling == "cls":
        return tokens.cls.float()
    return torch.cat([tokens.cls.float(), tokens.patches.float().mean(dim=1)], dim=1)


def kinds_of(
    layers: Literal["last", "all"] | Sequence[int],
    pooling: Sequence[Pooling] | None,
    depth: int,
    has_cls: bool,
) -> list[Kind]:
    """List what is to be probed, by depth, the final features last.

    Args:
        layers: last for the final features, numbers of blocks from 1, or all for both
        pooling: of each layer; None for [CLS], if there is one, and the mean
        depth: blocks of the model; 0 where they cannot be read
        has_cls: whether it has a [CLS] token

    Raises:
        ValueError: the model has no such block, or no [CLS].
    """
    known = f"has blocks 1 to {depth}" if depth else "gives its final features only"
    numbers: Sequence[Layer] = (None,)
    if layers == "all":
        if not depth:
            raise ValueError(f"layers is all, but the model {known}; leave layers out")
        numbers = (*range(1, depth + 1), None)
    elif not isinstance(layers, str):
        strange = [layer for layer in layers if not 1 <= layer <= depth]
        if strange:
            raise ValueError(f"layers names block {strange[0]}, but the model {known}")
        numbers = sorted(layers)
    ways: Sequence[Pooling] = pooling or (("cls", "mean") if has_cls else ("mean",))
    if not has_cls and set(ways) & {"cls", "both"}:
        raise ValueError(
            f"pooling is {', '.join(ways)}, but the model gives no [CLS] token; expected mean"
        )
    return [Kind(layer, way) for layer in numbers for way in ways]
