"""Attention probabilities of a vision Transformer's blocks, with all its biases, and their rollout.

Images have the size of the model; `nn.position.resized` changes that size.
"""

from collections.abc import Collection, Iterable, Iterator

import torch
from torch import Tensor

from beit.nn.block import Attention, Block
from beit.nn.vit import VisionTransformer

RESIDUAL = 0.5  # share of the skip connection (Abnar and Zuidema 2020, section 3)


def probabilities(attention: Attention, tokens: Tensor, bias: Tensor | None) -> Tensor:
    """Return how much each token attends to each other token: the block's softmax.

    Args:
        tokens: (B, n, D), normalised by the block
        bias: (1, h, n, n) shared by all blocks, or None

    Returns: (B, h, n, n) float32, from query (third axis) to key; each row sums to 1
    """
    q, k, _, bias = attention.inputs(tokens, bias)
    with torch.autocast(tokens.device.type, enabled=False):
        logits = q.float() @ k.float().transpose(-2, -1) * q.shape[-1] ** -0.5  # (B, h, n, n)
        logits = logits if bias is None else logits + bias.float()
        return logits.softmax(dim=-1)  # type: ignore[no-any-return]


def attention_maps(
    vit: VisionTransformer, images: Tensor, layers: Collection[int] | None = None
) -> Iterator[tuple[int, Tensor]]:
    """Yield the number and the attention probabilities of each chosen block, one at a time.

    Args:
        vit: in eval mode
        images: (B, 3, H, W) uint8 or float in [0, 1], of the size of `vit`
        layers: numbers of blocks, from 1; None for all

    Yields: numbers in increasing order, with (B, h, 1+N, 1+N), [CLS] first, see `probabilities`

    Raises:
        ValueError: there is no such block, or the images do not fit.
    """
    if not isinstance(vit, VisionTransformer):
        raise TypeError(
            f"the model is of type {type(vit).__name__}, expected a vision Transformer: of most "
            "models model.backbone, of a VQ-KD tokenizer model.encoder"
        )
    depth = vit.config.depth
    chosen = sorted(range(1, depth + 1) if layers is None else set(layers))
    if invalid := [layer for layer in chosen if not 1 <= layer <= depth]:
        raise ValueError(f"there is no block {invalid[0]}; the model's blocks are 1 to {depth}")
    with torch.no_grad():
        inputs = vit(images, layers=[layer - 1 for layer in chosen]).layers
        bias = vit.bias()
    for layer in chosen:
        block = vit.blocks[layer - 1]
        assert isinstance(block, Block)
        with torch.no_grad():
            yield layer, probabilities(block.attn, block.norm1(inputs[layer - 1]), bias)


def rollout(maps: Iterable[Tensor], residual: float = RESIDUAL) -> Tensor:
    """Return the attention rollout through the blocks (Abnar and Zuidema 2020, section 3).

    Heads are averaged, the skip connection is added as attention of a token to itself, and the
    matrices of the blocks are multiplied.

    Args:
        maps: (B, h, n, n) of each block, the first block first
        residual: share of the skip connection, in [0, 1)

    Returns: (B, n, n), from the last block's output tokens to input tokens; each row sums to 1
    """
    if not 0 <= residual < 1:
        raise ValueError(f"residual must be in [0, 1), got {residual}")
    rolled: Tensor | None = None
    for attention in maps:
        mixed = (1 - residual) * attention.mean(dim=1)  # (B, n, n)
        mixed.diagonal(dim1=-2, dim2=-1).add_(residual)
        rolled = mixed if rolled is None else mixed @ rolled
    if rolled is None:
        raise ValueError("rollout needs the attention of at least one block, got none")
    return rolled


def top_mass(weights: Tensor, mass: float) -> Tensor:
    """Mark the patches that together hold the top share of attention, as the published tool does.

    The weights (..., N), not negative, are divided by their sum and accumulated from the smallest.
    Patches whose cumulative sum exceeds 1 - mass are marked, so they hold `mass`, a share in
    (0, 1], or slightly more. Returns: (..., N) bool
    """
    if not 0 < mass <= 1:
        raise ValueError(f"mass must be in (0, 1], got {mass}")
    values, order = weights.double().sort(dim=-1, stable=True)
    reached = (values / values.sum(dim=-1, keepdim=True)).cumsum(dim=-1)
    return torch.zeros_like(weights, dtype=torch.bool).scatter(-1, order, reached > 1 - mass)
