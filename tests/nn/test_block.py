import math
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
from torch import Tensor, nn

from beit.nn.block import (
    INIT_STD,
    Attention,
    Block,
    Mlp,
    attention,
    computed,
    drop_path,
    init_published,
    rescale_residual,
    trunc_normal_,
)
from beit.nn.patches import take

Shaken = Callable[[nn.Module], nn.Module]
SavedTensors = Callable[[], AbstractContextManager[list[Tensor]]]
WIDTH, HEADS, GRID = 12, 3, (3, 5)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some_tokens(seed: int = 0) -> Tensor:
    return torch.randn(2, 16, WIDTH, generator=seeded(seed))


def naive_attention(attention: Attention, tokens: Tensor, bias: Tensor | None) -> Tensor:
    """One query of one head of one image at a time, softmax written out. bias: (h, n, n)."""
    B, n, D = tokens.shape
    C = D // HEADS
    query, key, value = attention.qkv.weight.chunk(3)
    q = tokens @ query.T + attention.q_bias
    k = tokens @ key.T
    v = tokens @ value.T + attention.v_bias
    mixed = torch.empty_like(tokens)
    for b in range(B):
        for head in range(HEADS):
            part = slice(head * C, (head + 1) * C)
            for i in range(n):
                logits = k[b, :, part] @ q[b, i, part] * C**-0.5  # (n,)
                if bias is not None:
                    logits = logits + bias[head, i]
                weights = logits.exp() / logits.exp().sum()
                mixed[b, i, part] = weights @ v[b, :, part]
    return mixed @ attention.proj.weight.T + attention.proj.bias


def test_exported_attention_equals_eager_whatever_the_batch(shaken: Shaken) -> None:
    attention = Attention(WIDTH, HEADS, GRID).eval()
    shaken(attention)
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(
        attention, (some_tokens(), None), dynamic_shapes=({0: batch}, None)
    )
    # Without a copy the graph fits one kernel's order in memory, and does not become ONNX.
    assert torch.ops.aten.clone.default in {node.target for node in program.graph.nodes}
    tokens = torch.randn(5, 16, WIDTH, generator=seeded(4))
    torch.testing.assert_close(program.module()(tokens, None), attention(tokens, None))


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("shared", [False, True])
@torch.no_grad()
def test_attention_equals_its_definition(shaken: Shaken, own: bool, shared: bool) -> None:
    attention = Attention(WIDTH, HEADS, GRID if own else None)
    shaken(attention)
    shared_bias = torch.randn(1, HEADS, 16, 16, generator=seeded(1)) if shared else None
    bias = torch.zeros(HEADS, 16, 16)
    if attention.rel_pos_bias is not None:
        bias += attention.rel_pos_bias()[0]
    if shared_bias is not None:
        bias += shared_bias[0]
    expected = naive_attention(attention, some_tokens(), bias if own or shared else None)
    torch.testing.assert_close(attention(some_tokens(), shared_bias), expected)


def test_attention_has_no_key_bias() -> None:
    biases = [name for name, _ in Attention(WIDTH, HEADS).named_parameters() if "bias" in name]
    assert biases == ["q_bias", "v_bias", "proj.bias"]


@torch.no_grad()
def test_mlp_is_an_exact_gelu_between_two_layers() -> None:
    mlp = Mlp(1, 1)
    for parameter, value in zip(mlp.parameters(), (2.0, 1.0, 3.0, -5.0), strict=True):
        parameter.fill_(value)
    hidden = 2.0 * 0.7 + 1.0
    gelu = hidden * 0.5 * (1 + math.erf(hidden / math.sqrt(2)))
    assert math.isclose(mlp(torch.tensor([[0.7]])).item(), 3.0 * gelu - 5.0, rel_tol=1e-6)


def test_drop_path_drops_whole_images_and_keeps_the_expectation() -> None:
    branch = torch.rand(20_000, 2, 3, generator=seeded()) + 1
    dropped = drop_path(branch, 0.3, training=True)
    kept = dropped[:, 0, 0] != 0
    assert not dropped[~kept].any()
    torch.testing.assert_close(dropped[kept], branch[kept] / 0.7)
    # The share kept has a deviation of sqrt(.3 * .7 / 20,000) = .0032; four of them.
    assert abs(kept.float().mean() - 0.7) < 0.013


def test_drop_path_is_the_identity_without_rate_or_training() -> None:
    branch = some_tokens()
    assert torch.equal(drop_path(branch, 0.9, training=False), branch)
    assert torch.equal(drop_path(branch, 0.0, training=True), branch)


@pytest.mark.parametrize("layer_scale", [None, 0.1])
@torch.no_grad()
def test_block_adds_two_branches_to_the_residual(shaken: Shaken, layer_scale: float | None) -> None:
    block = Block(WIDTH, HEADS, mlp_ratio=1.5, layer_scale=layer_scale, drop_rate=0.5)
    shaken(block)
    assert block.mlp.fc1.out_features == 18
    bias = torch.randn(1, HEADS, 16, 16, generator=seeded(1))
    gamma_1 = 1 if block.gamma_1 is None else block.gamma_1
    gamma_2 = 1 if block.gamma_2 is None else block.gamma_2
    tokens = some_tokens()
    middle = tokens + gamma_1 * block.attn(block.norm1(tokens), bias)
    expected = middle + gamma_2 * block.mlp(block.norm2(middle))
    torch.testing.assert_close(block(tokens, bias), expected)


@torch.no_grad()
def test_a_layer_scale_of_zero_makes_the_block_the_identity(shaken: Shaken) -> None:
    block = Block(WIDTH, HEADS, layer_scale=0.0)
    assert torch.equal(block(some_tokens()), some_tokens())
    assert not torch.equal(shaken(block)(some_tokens()), some_tokens())


@torch.no_grad()
def test_both_branches_are_dropped_on_their_own_in_training(shaken: Shaken) -> None:
    block = Block(WIDTH, HEADS, drop_rate=0.5)
    shaken(block).train()
    outcomes = block(some_tokens()[:1].expand(64, -1, -1)).round(decimals=3)  # all images alike
    # Neither, one, the other or both dropped; 64 images miss one of four with 4 * 0.75**64.
    assert len(outcomes.flatten(1).unique(dim=0)) == 4


def test_gradient_checkpointing_keeps_what_goes_in_and_nothing_else(
    shaken: Shaken, saved_tensors: SavedTensors
) -> None:
    block = Block(WIDTH, HEADS, drop_rate=0.5, bias_grid=GRID)
    shaken(block).train()
    results, kept = [], 0
    for thrifty in (False, True):
        block.gradient_checkpointing = thrifty
        tokens = some_tokens().requires_grad_()
        shared = torch.zeros(1, HEADS, 16, 16, requires_grad=True)
        torch.manual_seed(3)  # drops one branch of four; drawn anew, others would be dropped
        with saved_tensors() as saved:
            output = block(tokens, shared)
        kept = sum(tensor.numel() for tensor in saved)
        drawn_next = torch.rand(())
        inputs = (tokens, shared, *block.parameters())
        results.append([output, drawn_next, *torch.autograd.grad(output.square().sum(), inputs)])
    for plain, again in zip(*results, strict=True):
        assert torch.equal(plain, again)
    assert kept <= 2 * 16 * WIDTH + HEADS * 16 * 16
    with torch.no_grad():
        checkpointed = block.eval()(some_tokens())
        block.gradient_checkpointing = False
        assert torch.equal(checkpointed, block(some_tokens()))


def test_trunc_normal_at_one_deviation() -> None:
    drawn = torch.empty(300, 400)
    trunc_normal_(drawn, INIT_STD)
    # Of a normal cut at one deviation: density phi(1) = .24197, mass within .68269.
    expected = INIT_STD * math.sqrt(1 - 2 * 0.24197 / 0.68269)
    assert abs(drawn.mean()) < 5 * expected / drawn.numel() ** 0.5
    assert abs(drawn.std() / expected - 1) < 5 / (2 * drawn.numel()) ** 0.5
    assert 0.999 * INIT_STD < drawn.max() <= INIT_STD
    assert -INIT_STD <= drawn.min() < -0.999 * INIT_STD
    within_half = (drawn.abs() < INIT_STD / 2).float().mean()
    assert abs(within_half - 0.38292 / 0.68269) < 5 * 0.5 / drawn.numel() ** 0.5


def test_trunc_normal_at_a_hundred_deviations_is_not_cut() -> None:
    drawn = torch.empty(300, 400)
    trunc_normal_(drawn, 2.0)
    assert abs(drawn.std() / INIT_STD - 1) < 5 / (2 * drawn.numel()) ** 0.5
    assert drawn.abs().max() > 4 * INIT_STD  # expected of 120,000 draws: 7.6 beyond
    assert drawn.isfinite().all()


def test_published_start_of_linear_convolution_and_norm() -> None:
    linear, convolution, norm = nn.Linear(30, 40), nn.Conv2d(5, 6, 7), nn.LayerNorm(30)
    nn.init.constant_(norm.bias, 3.0)
    init_published(nn.Sequential(linear, convolution, norm), INIT_STD)
    for part in (linear, convolution):
        assert not part.bias.any()
        assert 0.95 * INIT_STD < part.weight.abs().max() <= INIT_STD
        assert abs(part.weight.std() / 0.01079 - 1) < 0.1
    assert norm.weight.eq(1).all() and norm.bias.eq(3).all()


def test_residual_weights_are_divided_by_the_root_of_twice_the_layer() -> None:
    block = Block(WIDTH, HEADS)
    before = {name: tensor.clone() for name, tensor in block.state_dict().items()}
    rescale_residual(block, 8)
    for name, tensor in block.state_dict().items():
        factor = 4.0 if name in ("attn.proj.weight", "mlp.fc2.weight") else 1.0
        assert torch.equal(tensor, before[name] / factor), name


# ── what is not computed, and what is computed again ────────────────────────────────────────────


@pytest.mark.parametrize("own_bias", [True, False])
def test_the_tokens_asked_for_are_those_of_the_whole_block(shaken: Shaken, own_bias: bool) -> None:
    block = Block(WIDTH, HEADS, 4.0, 0.1, 0.5, GRID if own_bias else None)
    shaken(block).train()
    chosen = torch.tensor([[0, 7, 3], [15, 15, 1]])  # twice the same one: gradients add up
    results = []
    for part in (False, True):
        tokens = some_tokens().requires_grad_()
        shared = torch.randn(1, HEADS, 16, 16, generator=seeded(1)).requires_grad_()
        torch.manual_seed(3)  # drops the same branches
        if part:
            output = block(tokens, shared, chosen)
        else:
            output = take(block(tokens, shared), chosen)
        inputs = (tokens, shared, *block.parameters())
        results.append([output, *torch.autograd.grad(output.square().sum(), inputs)])
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("biased", [True, False])
def test_attention_in_training_equals_the_kernels_of_inference(biased: bool) -> None:
    q, k, v = torch.randn(3, 2, HEADS, 16, 4, generator=seeded()).requires_grad_()
    bias = torch.randn(2, HEADS, 16, 16, generator=seeded(1)) if biased else None
    with torch.no_grad():
        expected = attention(q, k, v, bias)
    torch.testing.assert_close(attention(q, k, v, bias), expected)


def test_attention_of_bfloat16_in_training_is_near_that_of_float32() -> None:
    q, k, v = torch.randn(3, 2, HEADS, 16, 4, generator=seeded()).requires_grad_()
    bias = torch.randn(1, HEADS, 16, 16, generator=seeded(1))
    half = [part.bfloat16() for part in (q, k, v)]
    attended = attention(*half, bias)
    assert attended.dtype == torch.bfloat16
    torch.testing.assert_close(attended.float(), attention(q, k, v, bias), rtol=0.02, atol=0.03)


def test_what_is_computed_again_is_not_kept_and_gives_the_same_gradients() -> None:
    linear, gradients = nn.Linear(WIDTH, 5), []
    for again in (False, True):
        tokens = some_tokens().requires_grad_()
        with computed(torch.sin, 2 * tokens, again) as value:
            output = linear(value) + linear(value.transpose(1, 0)).transpose(1, 0)
            output = output + linear(value[:, 1:2])
        kept = weakref.ref(value.untyped_storage())
        del value
        assert (kept() is None) == again
        gradients.append(torch.autograd.grad(output.square().sum(), (tokens, linear.weight)))
    assert all(map(torch.equal, *gradients))


def test_a_norm_computed_again_is_not_kept_under_autocast() -> None:
    norm, linear = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 5)
    with torch.autocast("cpu", torch.bfloat16):
        with computed(norm, some_tokens().requires_grad_(), again=True) as value:
            output = linear(value)
        expected = linear(norm(some_tokens()))
    kept = weakref.ref(value.untyped_storage())
    del value
    assert kept() is None and torch.equal(output, expected)


def test_functional_transforms_of_a_block(shaken: Shaken) -> None:
    block = shaken(Block(WIDTH, HEADS)).eval()
    tokens = some_tokens()

    def loss(weights: dict[str, Tensor], tokens: Tensor) -> Tensor:
        return torch.func.functional_call(block, weights, (tokens[None],)).square().sum()

    weights = {name: weight.detach() for name, weight in block.named_parameters()}
    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(weights, tokens)
    block(tokens).square().sum().backward()
    for name, weight in block.named_parameters():
        torch.testing.assert_close(each[name].sum(0), weight.grad, rtol=1e-4, atol=1e-5)
