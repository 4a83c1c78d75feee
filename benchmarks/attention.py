"""Attention in training on a CPU, forward and backward, computed in five ways, in turn.

- ours: `beit.nn.block.attention`, the plain formula where PyTorch's kernel is slower
- kernel: `scaled_dot_product_attention`; if the bias learns, PyTorch takes its plain path itself
- kernel and slope: the fused kernel with the bias as a mask without gradient, whose gradient is
  computed by hand
- by hand: the plain formula as one function with its own backward pass, softmax in place
- flex: FlexAttention, compiled, where it has a backward pass for the CPU

    OMP_NUM_THREADS=1 python benchmarks/attention.py
"""

import argparse
from collections.abc import Callable
from typing import Any

import record
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import flex_attention

from beit.nn.block import attention

SEED = 0
SHAPES = ((8, 12, 197), (128, 3, 17))  # images, heads, tokens: ViT-B at 224, preset cifar10-cpu
Way = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    rows = []
    for shape in SHAPES:
        for dtype in (torch.float32, torch.bfloat16):
            for biased in (True, False):
                rows += measure(shape, dtype, biased, options.rounds)
    record.print_table(rows, ["tokens", "dtype", "bias", "way", "seconds", "ours_is_faster"])
    provenance = record.provenance("cpu", [SEED])
    record.write_results("attention-cpu", provenance | {"settings": vars(options), "rows": rows})


def measure(
    shape: tuple[int, int, int], dtype: torch.dtype, biased: bool, rounds: int
) -> list[dict[str, Any]]:
    """Time all ways for one shape, after comparing what they give with the kernel in float32."""
    B, h, n = shape
    torch.manual_seed(SEED)
    qkv = torch.randn(B, n, 3, h, 64).to(dtype).requires_grad_()
    bias = torch.randn(1, h, n, n, requires_grad=True) if biased else None
    slopes = torch.randn(B, h, n, 64).to(dtype)
    inputs = [qkv] if bias is None else [qkv, bias]

    def step(way: Way) -> list[Tensor]:
        output = way(*qkv.permute(2, 0, 3, 1, 4), bias)
        return [output, *torch.autograd.grad(output, inputs, slopes)]

    expected = step(kernel)
    ways: dict[str, Callable[[], object]] = {}
    for name, way in WAYS.items():
        try:
            results = step(way)
        except (RuntimeError, NotImplementedError) as error:
            print(f"{name}: left out: {str(error).splitlines()[0][:90]}")
            continue
        for ours, theirs in zip(results, expected, strict=True):
            error = (ours.float() - theirs.float()).abs().max() / theirs.float().abs().max()
            assert error < (1e-5 if dtype == torch.float32 else 0.05), f"{name}: {error:.2g}"
        ways[name] = lambda way=way: step(way)
    case = {"tokens": n, "dtype": str(dtype).removeprefix("torch."), "bias": biased}
    return [case | row for row in record.timing_rows(record.in_turn(ways, rounds))]


def kernel(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, None if bias is None else bias.to(q.dtype))


def weights_of(q: Tensor, k: Tensor, bias: Tensor | None) -> Tensor:
    """Return the attention probabilities (B, h, n, n)."""
    logits = (q * q.shape[3] ** -0.5) @ k.mT
    return (logits if bias is None else logits + bias).softmax(3, torch.float32).to(q.dtype)


class ByHand(torch.autograd.Function):
    """The plain formula; with a fused kernel, only the bias gets its gradient here."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        weights = weights_of(q, k, bias)
        ctx.save_for_backward(q, k, v, weights)
        ctx.biased = bias is not None
        return weights @ v

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, weights = ctx.saved_tensors
        scale = q.shape[3] ** -0.5
        logits = torch._softmax_backward_data(slope @ v.mT, weights, -1, weights.dtype)
        bias = logits.sum(0, keepdim=True, dtype=torch.float32) if ctx.biased else None
        return (logits @ k).mul_(scale), (logits.mT @ q).mul_(scale), weights.mT @ slope, bias


class Slope(torch.autograd.Function):
    """The identity, whose backward pass adds the gradient of the bias."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(q, k, v, bias)
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, bias = ctx.saved_tensors
        weights = weights_of(q, k, bias)
        logits = torch._softmax_backward_data(slope @ v.mT, weights, -1, weights.dtype)
        return slope, None, None, None, logits.sum(0, keepdim=True, dtype=torch.float32)


def kernel_and_slope(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    if bias is None:
        return kernel(q, k, v, None)
    output = kernel(q, k, v, bias.detach())
    return Slope.apply(output, q.detach(), k.detach(), v.detach(), bias)


compiled = torch.compile(flex_attention)


def flex(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    if bias is None:
        return compiled(q, k, v)
    return compiled(q, k, v, score_mod=lambda score, b, h, i, j: score + bias[0, h, i, j])


WAYS: dict[str, Way] = {
    "ours": attention,
    "kernel": kernel,
    "kernel and slope": kernel_and_slope,
    "by hand": ByHand.apply,
    "flex": flex,
}

if __name__ == "__main__":
    main()
