"""BEiT's pre-norm Transformer block: no key bias, layer scale, stochastic depth."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from beit.nn.patches import Size, take
from beit.nn.relative_bias import RelativePositionBias

NORM_EPS = 1e-6  # of every LayerNorm in the published models
PLAIN_UP_TO = {torch.float32: 64, torch.bfloat16: 256}  # tokens, for attention without a bias
View = tuple[torch.Size, tuple[int, ...], int]  # shape, strides and offset
INIT_STD = 0.02  # standard deviation of initial weights (published code)


class Attention(nn.Module):
    """Multi-head self-attention with a position bias; queries and values have biases, keys none."""

    def __init__(self, width: int, num_heads: int, grid: Size | None = None) -> None:
        """Build the layers; with ``grid``, the block has its own relative position table."""
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.rel_pos_bias = RelativePositionBias(grid, num_heads) if grid else None
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor, bias: Tensor | None, chosen: Tensor | None = None) -> Tensor:
        """Attend among tokens (B, n, D); ``bias`` (1, h, n, n) is added to the attention logits.

        Returns: (B, n, D), or (B, m, D) for the tokens at ``chosen`` (B, m) int64 alone
        """
        q, k, v, bias = self.inputs(tokens, bias, chosen)
        attended = attention(q, k, v, bias).transpose(1, 2)  # (B, m, h, D/h)
        if torch.compiler.is_exporting():
            # The memory layout depends on the attention kernel, which a graph does not know.
            attended = attended.clone(memory_format=torch.contiguous_format)
        return self.proj(attended.flatten(2))  # type: ignore[no-any-return]

    def inputs(
        self, tokens: Tensor, bias: Tensor | None, chosen: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Return queries (B, h, m, D/h), keys and values (B, h, n, D/h), and the whole bias.

        The bias is ``bias`` plus the block's own: (1, h, n, n), with ``chosen`` (B, h, m, n), or
        None.
        """
        D, weight, zeros = tokens.shape[2], self.qkv.weight, torch.zeros_like(self.v_bias)
        if self.rel_pos_bias is not None:
            own = self.rel_pos_bias()
            bias = own if bias is None else bias + own
        if chosen is None:
            qkv_bias = torch.cat([self.q_bias, zeros, self.v_bias])
            parts = F.linear(tokens, weight, qkv_bias).chunk(3, dim=2)  # (B, n, D) each
        else:
            queries = F.linear(take(tokens, chosen), weight[:D], self.q_bias)  # (B, m, D)
            keys_values = F.linear(tokens, weight[D:], torch.cat([zeros, self.v_bias]))
            parts = queries, *keys_values.chunk(2, dim=2)
            if bias is not None:
                rows = bias[0].transpose(0, 1).index_select(0, chosen.flatten())  # (B * m, h, n)
                bias = rows.unflatten(0, chosen.shape).transpose(1, 2)  # (B, h, m, n)
        q, k, v = (part.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for part in parts)
        return q, k, v, bias


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """Return softmax(q k^T / sqrt(d) + bias) v, (B, h, m, d); keys and values are (B, h, n, d).

    PyTorch's kernels, except in training on a CPU: there no fused one has a gradient of the bias,
    and for few tokens they are slower, in bfloat16 up to eight times (docs/performance.md).
    """
    trains = torch.is_grad_enabled() and q.requires_grad
    if trains and q.is_cpu and (bias is not None or k.shape[2] <= PLAIN_UP_TO.get(q.dtype, 0)):
        logits = (q * q.shape[3] ** -0.5) @ k.transpose(2, 3)  # (B, h, m, n)
        weights = (logits if bias is None else logits + bias).softmax(3, torch.float32)
        attended: Tensor = weights.to(v.dtype) @ v
        return attended
    return F.scaled_dot_product_attention(q, k, v, None if bias is None else bias.to(q.dtype))


class Mlp(nn.Module):
    """Two linear layers around an exact GELU."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, tokens: Tensor, again: bool = False) -> Tensor:
        """Map each token of (B, n, D) on its own; see ``computed``."""
        with computed(F.gelu, self.fc1(tokens), again) as hidden:  # (B, n, 4D)
            return self.fc2(hidden)  # type: ignore[no-any-return]


@contextmanager
def computed(
    function: Callable[[Tensor], Tensor], argument: Tensor, again: bool
) -> Iterator[Tensor]:
    """Yield function(argument); with ``again``, the backward pass of the context computes it again.

    So nothing in the context keeps it: for functions that cost less than their memory. Compiled
    graphs choose themselves what to keep, and functional transforms cannot be hooked.
    """
    value, kind = function(argument), argument.device.type
    if torch.is_autocast_enabled(kind):  # as linear layers do, which would keep what they cast
        value = value.to(torch.get_autocast_dtype(kind))
    again = again and value.requires_grad and torch._C._functorch.maybe_current_level() is None
    if not again or torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore
        yield value
        return
    memory, dtype, kept = value.untyped_storage()._cdata, value.dtype, argument.detach()

    def pack(saved: Tensor) -> Tensor | View:
        if saved.untyped_storage()._cdata != memory:
            return saved
        return saved.shape, saved.stride(), int(saved.storage_offset())

    def unpack(packed: Tensor | View) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        return function(kept).to(dtype).as_strided(*packed)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield value


def drop_path(branch: Tensor, rate: float, training: bool) -> Tensor:
    """Zero the branch (B, n, D) of whole images at ``rate`` and scale the others by 1/(1-rate).

    Draws from torch's default generator, which a recipe seeds at every step.
    """
    if rate == 0.0 or not training:
        return branch
    kept = torch.empty(len(branch), 1, 1, dtype=branch.dtype, device=branch.device)
    return branch * kept.bernoulli_(1 - rate) / (1 - rate)


class Block(nn.Module):
    """x + gamma_1 * attention(norm x), then x + gamma_2 * mlp(norm x).

    Attributes:
        gradient_checkpointing: keep only the block's input and recompute the rest in the backward
            pass (Chen et al. 2016): less memory, more time, the same gradients
    """

    gradient_checkpointing = False

    def __init__(
        self,
        width: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        layer_scale: float | None = None,
        drop_rate: float = 0.0,
        bias_grid: Size | None = None,
    ) -> None:
        super().__init__()
        self.drop_rate = drop_rate
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = Attention(width, num_heads, bias_grid)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = Mlp(width, int(width * mlp_ratio))
        scale = None if layer_scale is None else torch.full((width,), layer_scale)
        self.gamma_1 = None if scale is None else nn.Parameter(scale)
        self.gamma_2 = None if scale is None else nn.Parameter(scale.clone())

    def forward(
        self, tokens: Tensor, bias: Tensor | None = None, chosen: Tensor | None = None
    ) -> Tensor:
        """Transform tokens (B, n, D); ``bias`` (1, h, n, n) is the shared position bias.

        Returns: (B, n, D), or (B, m, D) for the tokens at ``chosen`` (B, m) int64 alone, without
            computing the others
        """
        if self.gradient_checkpointing and torch.is_grad_enabled():
            output: Tensor = checkpoint(self._forward, tokens, bias, chosen, use_reentrant=False)
            return output
        return self._forward(tokens, bias, chosen)

    def _forward(self, tokens: Tensor, bias: Tensor | None, chosen: Tensor | None) -> Tensor:
        again = not self.gradient_checkpointing  # which computes the whole block again
        with computed(self.norm1, tokens, again) as normed:
            branch = self.attn(normed, bias, chosen)
        tokens = tokens if chosen is None else take(tokens, chosen)
        tokens = self._added(tokens, branch, self.gamma_1)
        with computed(self.norm2, tokens, again) as normed:
            branch = self.mlp(normed, again)
        return self._added(tokens, branch, self.gamma_2)

    def _added(self, tokens: Tensor, branch: Tensor, scale: Tensor | None) -> Tensor:
        """Return tokens + scale * branch, with stochastic depth."""
        branch = drop_path(branch, self.drop_rate, self.training)
        return tokens + branch if scale is None else torch.addcmul(tokens, branch, scale)


@torch.no_grad()
def trunc_normal_(tensor: Tensor, bound: float) -> None:
    """Fill a tensor from a normal distribution of std 0.02 truncated at +-bound.

    Inverts the cumulative distribution function: for a ViT-L, `nn.init.trunc_normal_` takes half a
    minute, because it rejects draws until all fit.
    """
    limit = math.erf(bound / INIT_STD / 2**0.5)
    if limit == 1.0:
        tensor.normal_(std=INIT_STD)
    else:
        tensor.uniform_(-limit, limit).erfinv_().mul_(INIT_STD * 2**0.5).clamp_(-bound, bound)


def init_published(module: nn.Module, bound: float) -> None:
    """Draw linear and convolution weights by ``trunc_normal_``; their biases are 0.

    The published bound is 0.02 for pretraining models, one standard deviation. For tokenizers it is
    2.0, in effect none, because timm's bound is absolute.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            trunc_normal_(layer.weight, bound)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


@torch.no_grad()
def rescale_residual(block: nn.Module, layer: int) -> None:
    """Divide the output weights of both branches of block ``layer`` (from 1) by sqrt(2 layer)."""
    assert isinstance(block, Block)
    for output in (block.attn.proj, block.mlp.fc2):
        output.weight.div_((2.0 * layer) ** 0.5)
