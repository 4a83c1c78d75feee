"""Features of a whole image from a frozen model: which layer, and which of its tokens.

BEiT v2, section 3.2, reads [CLS] after pretraining with patch aggregation, else the mean of the
patches. BEiT v1's script reads both together, from every block.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Layer = int | None  # number of a block, from 1, for its raw output; None for the final features
Pooling = Literal["cls", "mean", "both", "attentive"]


class Kind(NamedTuple):
    """The features of one probe: a layer's [CLS], mean patch, both, or (attentive) all patches."""

    layer: Layer
    pooling: Pooling

    @property
    def name(self) -> str:
        """Its name in files: "cls", or "cls@3" for block 3."""
        return self.pooling if self.layer is None else f"{self.pooling}@{self.layer}"

    @property
    def parts(self) -> "list[Kind]":
        """The kinds that it concatenates: [CLS] and mean for both, else the kind itself."""
        if self.pooling == "both":
            return [Kind(self.layer, "cls"), Kind(self.layer, "mean")]
        return [self]


class Tokens(NamedTuple):
    """Output tokens of a layer."""

    cls: Tensor | None  # (B, D)
    patches: Tensor  # (B, N, D)


def pooled(tokens: Tokens, pooling: Pooling) -> Tensor:
    """Pool tokens in float32: (B, D); both is (B, 2D), [CLS] first; attentive is (B, N, D)."""
    patches = tokens.patches.float()
    if pooling == "attentive":
        return patches
    if pooling == "mean":
        return patches.mean(dim=1)
    assert tokens.cls is not None  # checked by `kinds_of`
    cls = tokens.cls.float()
    return cls if pooling == "cls" else torch.cat([cls, patches.mean(dim=1)], dim=1)


def kinds_of(
    layers: Literal["last", "all"] | Sequence[int],
    pooling: Sequence[Pooling] | None,
    depth: int,
    has_cls: bool,
) -> list[Kind]:
    """List the kinds of features to probe, by depth, the final features last.

    Args:
        layers: last for the final features, numbers of blocks from 1, or all for both
        pooling: of each layer; None for [CLS] (if the model has it) and the mean
        depth: blocks of the model; 0 if their outputs are not available
        has_cls: whether it has a [CLS] token
    """
    available = f"has blocks 1 to {depth}" if depth else "gives its final features only"
    numbers: Sequence[Layer] = (None,)
    if layers == "all":
        if not depth:
            raise ValueError(f"layers is all, but the model {available}; leave layers out")
        numbers = (*range(1, depth + 1), None)
    elif not isinstance(layers, str):
        unknown = [layer for layer in layers if not 1 <= layer <= depth]
        if unknown:
            raise ValueError(f"layers names block {unknown[0]}, but the model {available}")
        numbers = sorted(layers)
    poolings: Sequence[Pooling] = pooling or (("cls", "mean") if has_cls else ("mean",))
    if not has_cls and set(poolings) & {"cls", "both"}:
        raise ValueError(
            f"pooling is {', '.join(poolings)}, but the model gives no [CLS] token; expected mean"
        )
    return [Kind(layer, pooling) for layer in numbers for pooling in poolings]
