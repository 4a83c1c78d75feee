"""Where a vision Transformer looks: attention probabilities of its blocks, and their rollout.

For every kind of model and position: q and v biases, relative bias shared or per block, at the size
that the model is built for; ``resized`` of ``nn.vit`` carries one to another size.
"""

from collections.abc import Collection, Iterable, Iterator

import torch
from torch import Tensor

from beit.nn.block import Attention, Block
from beit.nn.vit import VisionTransformer

RESIDUAL = 0.5  # share of the skip connection (Abnar and Zuidema 2020, section 3)


def probabilities(attention: Attention, tokens: Tensor, bias: Tensor | None) -> Tensor:
    """Return how much each token attends to each, as the block's softmax has it.

    Args:
        attention: of one block
        tokens: (B, n, D), normed, as the block gives them to it
        bias: (1, h, n, n) shared by all blocks, or None

    Returns: (B, h, n, n) float32, from query (third axis) to key; each row sums to 1
    """
    q, k, _, bias = attention.inputs(tokens, bias)
    with torch.autocast(tokens.device.type, enabled=False):
        logits = q.float() @ k.float().transpose(-2, -1) * q.shape[-1] ** -0.5  # (B, h, n, n)
        if bias is not None:
            logits = logits + bias.float()
        weights: Tensor = logits.softmax(dim=-1)
        return weights


def attention_maps(
    vit: VisionTransformer, images: Tensor, layers: Collection[int] | None = None
) -> Iterator[tuple[int, Tensor]]:
    """Yield the number of each block asked for and its attention probabilities, one at a time.

    Args:
        vit: in eval mode
        images: (B, 3, H, W) uint8 in 0..255 or float in [0, 1], of the size that ``vit`` takes
        layers: numbers of blocks, from 1; None: all of them

    Yields: rising numbers, with (B, h, 1+N, 1+N) float32, [CLS] first, from query to key

    Raises:
        ValueError: there is no such block.
    """
    depth = vit.config.depth
    wanted = sorted(range(1, depth + 1) if layers is None else set(layers))
    if strange := [layer for layer in wanted if not 1 <= layer <= depth]:
        raise ValueError(f"there is no block {strange[0]}; the model's blocks are 1 to {depth}")
    with torch.no_grad():
        inputs = vit(images, layers=[layer - 1 for layer in wanted]).layers
        bias = vit.bias()
    for layer in wanted:
        block = vit.blocks[layer - 1]
        assert isinstance(block, Block)
        with torch.no_grad():
            yield layer, probabilities(block.attn, block.norm1(inputs[layer - 1]), bias)


def rollout(maps: Iterable[Tensor], residual: float = RESIDUAL) -> Tensor:
    """Follow attention through the blocks down to the input (Abnar and Zuidema 2020, section 3).

    Heads are averaged, the skip connection counts as attention of a token to itself, and the blocks
    are multiplied.

    Args:
        maps: (B, h, n, n) of each block, from the first to the last that counts
        residual: share of the skip connection, in [0, 1)

    Returns: (B, n, n), from a token after the last block to the tokens that entered the first; each
        row sums to 1

    Raises:
        ValueError: there is no map, or ``residual`` is no such share.
    """
    if not 0 <= residual < 1:
        raise ValueError(f"residual must be in [0, 1), got {residual}")
    joint: Tensor | None = None
    for attention in maps:
        mixed = (1 - residual) * attention.mean(dim=1)  # (B, n, n)
        mixed.diagonal(dim1=-2, dim2=-1).add_(residual)
        joint = mixed if joint is None else mixed @ joint
    if joint is None:
        raise ValueError("rollout needs the attention of at least one block, got none")
    return joint


def top_mass(weights: Tensor, mass: float) -> Tensor:
    """Tell which patches together hold the top share of attention, as the published tool does.

    The weights of a row are divided by their sum and added up from the smallest on; the patches at
    which the sum exceeds 1 - mass are taken, so they hold ``mass`` or a little more.

    Args:
        weights: (..., N), none negative, in each row one positive
        mass: share in (0, 1]

    Returns: (..., N) bool
    """
    if not 0 < mass <= 1:
        raise ValueError(f"mass must be in (0, 1], got {mass}")
    rising, order = weights.double().sort(dim=-1, stable=True)
    reached = (rising / rising.sum(dim=-1, keepdim=True)).cumsum(dim=-1)
    return torch.zeros_like(weights, dtype=torch.bool).scatter(-1, order, reached > 1 - mass)
