"""Attention maps against attention written out in loops, on models in the published layout."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from beit.nn.attention_maps import attention_maps, probabilities, rollout, top_mass
from beit.nn.heads import ImageClassifier, ImageClassifierConfig
from beit.nn.position import resized
from beit.nn.vit import VisionTransformer, ViTConfig
from beit.weights.formats.published import from_published
from beit.weights.open import backbone_of

GOLDENS = Path(__file__).parents[1] / "goldens"
Shaken = Callable[[nn.Module], nn.Module]
CONFIG = ViTConfig(image_size=(6, 10), patch_size=2, width=12, depth=3, num_heads=3)  # grid 3 x 5


def opened(name: str) -> tuple[dict[str, Tensor], VisionTransformer, Tensor]:
    """The published state of a golden, our backbone of it, and its images."""
    tensors = load_file(GOLDENS / f"{name}.safetensors")
    state = {k.removeprefix("state/"): v for k, v in tensors.items() if k.startswith("state/")}
    sizes = json.loads((GOLDENS / f"{name}.json").read_text())
    known = {key: sizes[key] for key in ("num_heads", "early_layers") if key in sizes}
    as_it_is = {"mean": (0,) * 3, "std": (1,) * 3}  # the golden's images are normalised already
    model = from_published(state, **known, **as_it_is)
    vit = backbone_of(model)
    assert vit is not None
    return state, vit, tensors["in/images"]


@torch.no_grad()
def by_hand(
    state: dict[str, Tensor], layer: int, tokens: Tensor, heads: int, table: Tensor | None
) -> Tensor:
    """Softmax attention (h, n, n) of one image's tokens (n, D), a number at a time."""
    name = f"blocks.{layer - 1}."
    n, D = tokens.shape
    d = D // heads
    scale, shift = state[f"{name}norm1.weight"], state[f"{name}norm1.bias"]
    normed = F.layer_norm(tokens, (D,), scale, shift, eps=1e-6)
    weight = state[f"{name}attn.qkv.weight"]
    queries = normed @ weight[:D].T + state[f"{name}attn.q_bias"]
    keys = normed @ weight[D : 2 * D].T  # they have no bias
    side = math.isqrt(n - 1)
    expected = torch.empty(heads, n, n)
    for head in range(heads):
        part = slice(head * d, (head + 1) * d)
        for i in range(n):
            row = []
            for j in range(n):
                logit = float(queries[i, part] @ keys[j, part]) / math.sqrt(d)
                if table is not None:
                    logit += float(table[row_of(i, j, side), head])
                row.append(logit)
            shifted = [math.exp(logit - max(row)) for logit in row]
            expected[head, i] = torch.tensor([value / sum(shifted) for value in shifted])
    return expected


def row_of(i: int, j: int, side: int) -> int:
    """The row for query i and key j (docs/reference/pretraining.md, "Relative bias index")."""
    last = (2 * side - 1) ** 2
    if i == 0 or j == 0:
        return last + (2 if i == j else 0 if i == 0 else 1)
    (y, x), (v, u) = divmod(i - 1, side), divmod(j - 1, side)
    return (y - v + side - 1) * (2 * side - 1) + x - u + side - 1


@pytest.mark.parametrize("name", ["mim_shared", "mim_unshared", "classifier_mean"])
def test_maps_of_published_models_are_those_of_plain_loops(name: str) -> None:
    """Shared tables, absolute positions, a table a block."""
    state, vit, images = opened(name)
    depth = vit.config.depth
    with torch.no_grad():
        tokens = vit(images[:1], layers=range(depth)).layers
    found = dict(attention_maps(vit, images[:1]))
    assert list(found) == list(range(1, depth + 1))
    for layer in (1, depth):
        shared = state.get("rel_pos_bias.relative_position_bias_table")
        own = f"blocks.{layer - 1}.attn.relative_position_bias_table"
        table = state.get(own, shared)
        assert (table is None) == (name == "mim_unshared")
        expected = by_hand(state, layer, tokens[layer - 1][0], vit.config.num_heads, table)
        torch.testing.assert_close(found[layer][0], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["mim_shared", "classifier_mean"])
def test_at_another_resolution_tables_are_resized_and_maps_still_those_of_loops(name: str) -> None:
    state, vit, images = opened(name)
    old = vit.config.grid
    size = (vit.config.image_size[0] + 2 * vit.config.patch_size,) * 2
    larger = resized(vit, size)
    assert larger.config.grid == (old[0] + 2, old[1] + 2)
    shown = F.interpolate(images[:1], size, mode="bilinear")
    with torch.no_grad():
        tokens = larger(shown, layers=(0, 1)).layers
        owner = larger if larger.rel_pos_bias is not None else larger.blocks[1].attn
        table = owner.rel_pos_bias.table
    assert len(table) == (2 * old[0] + 3) ** 2 + 3
    [(layer, found)] = attention_maps(larger, shown, [2])
    expected = by_hand(state, 2, tokens[1][0], vit.config.num_heads, table)
    assert layer == 2
    torch.testing.assert_close(found[0], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("relative_bias", ["none", "shared", "per_block"])
@torch.no_grad()
def test_probabilities_times_values_are_what_the_block_computes(
    shaken: Shaken, relative_bias: str
) -> None:
    vit = shaken(VisionTransformer(replace(CONFIG, relative_bias=relative_bias)))
    tokens, bias = torch.randn(2, 16, 12), vit.bias()
    attention = vit.blocks[1].attn
    weights = probabilities(attention, tokens, bias)
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2, 3, 16))
    values = attention.inputs(tokens, bias)[2]
    mixed = (weights @ values).transpose(1, 2).reshape(2, 16, 12)
    torch.testing.assert_close(attention.proj(mixed), attention(tokens, bias))


def test_blocks_that_do_not_exist_are_refused() -> None:
    vit = VisionTransformer(CONFIG).eval()
    images = torch.rand(1, 3, 6, 10)
    assert [layer for layer, _ in attention_maps(vit, images, [3, 1])] == [1, 3]
    for layer in (0, 4, -1):
        with pytest.raises(ValueError, match=f"no block {layer}; the model's blocks are 1 to 3"):
            list(attention_maps(vit, images, [layer]))
    with pytest.raises(TypeError, match=r"type ImageClassifier, expected .* model\.backbone"):
        list(attention_maps(ImageClassifier(ImageClassifierConfig(CONFIG, 2)), images))


def test_rollout_by_hand_and_its_laws() -> None:
    first = torch.tensor([[[[1.0, 0.0], [0.5, 0.5]], [[0.0, 1.0], [0.5, 0.5]]]])  # (1, 2, 2, 2)
    second = torch.tensor([[[[0.0, 1.0], [1.0, 0.0]]]])
    # means with half of themselves: [[.75, .25], [.25, .75]], then [[.5, .5], [.5, .5]]
    torch.testing.assert_close(rollout([first]), torch.tensor([[[0.75, 0.25], [0.25, 0.75]]]))
    torch.testing.assert_close(rollout([first, second]), torch.full((1, 2, 2), 0.5))
    order = [torch.rand(2, 3, 5, 5).softmax(-1) for _ in range(3)]
    a, b, c = (0.5 * one.mean(1) + 0.5 * torch.eye(5) for one in order)
    torch.testing.assert_close(rollout(order), c @ b @ a)
    torch.testing.assert_close(rollout(order).sum(-1), torch.ones(2, 5))
    with pytest.raises(ValueError, match="at least one block"):
        rollout([])
    with pytest.raises(ValueError, match=r"residual must be in \[0, 1\), got 1"):
        rollout(order, residual=1.0)


def test_top_mass_takes_the_largest_patches_and_no_more_than_needed() -> None:
    weights = torch.tensor([[1.0, 4.0, 1.0, 2.0], [4.0, 2.0, 3.0, 1.0]])
    taken = top_mass(weights, 0.6).nonzero().tolist()
    assert taken == [[0, 1], [0, 3], [1, 0], [1, 2]]
    assert top_mass(weights, 0.5)[0].tolist() == [False, True, False, False]  # half, exactly
    assert top_mass(weights, 1.0).all()
    rows = torch.rand(7, 13)
    taken = top_mass(rows, 0.6)
    share = (rows * taken).sum(-1) / rows.sum(-1)
    smallest = rows.masked_fill(~taken, 9).amin(-1) / rows.sum(-1)
    assert (share >= 0.6 - 1e-6).all()
    assert (share - smallest <= 0.6 + 1e-6).all()
    with pytest.raises(ValueError, match=r"mass must be in \(0, 1\], got 0"):
        top_mass(rows, 0)
