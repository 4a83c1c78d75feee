"""BEiT's pre-norm Transformer block: no key bias, layer scale, stochastic depth."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from beit.nn.patches import Size
from beit.nn.position import RelativePositionBias

NORM_EPS = 1e-6  # of every LayerNorm in the published models
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

    def forward(self, tokens: Tensor, bias: Tensor | None) -> Tensor:
        """Attend among tokens (B, n, D); ``bias`` (1, h, n, n) is added to the attention logits."""
        B, n, D = tokens.shape
        q, k, v, bias = self.inputs(tokens, bias)
        mask = None if bias is None else bias.to(q.dtype)
        attended = F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2)  # (B, n, h, D/h)
        if torch.compiler.is_exporting():
            # The memory layout depends on the attention kernel, which a graph does not know.
            attended = attended.clone(memory_format=torch.contiguous_format)
        return self.proj(attended.reshape(B, n, D))  # type: ignore[no-any-return]

    def inputs(
        self, tokens: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Return queries, keys, values (B, h, n, D/h); ``bias`` plus the block's own, or None."""
        B, n, D = tokens.shape
        if self.rel_pos_bias is not None:
            own = self.rel_pos_bias()
            bias = own if bias is None else bias + own
        qkv_bias = torch.cat([self.q_bias, torch.zeros_like(self.v_bias), self.v_bias])
        qkv = F.linear(tokens, self.qkv.weight, qkv_bias)  # (B, n, 3D)
        heads = qkv.reshape(B, n, 3, self.num_heads, D // self.num_heads)
        q, k, v = heads.permute(2, 0, 3, 1, 4)  # (B, h, n, D/h)
        return q, k, v, bias


class Mlp(nn.Module):
    """Two linear layers around an exact GELU."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map each token of (B, n, D) on its own."""
        return self.fc2(F.gelu(self.fc1(tokens)))  # type: ignore[no-any-return]


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

    def forward(self, tokens: Tensor, bias: Tensor | None = None) -> Tensor:
        """Transform tokens (B, n, D); ``bias`` (1, h, n, n) is the shared position bias."""
        if self.gradient_checkpointing and torch.is_grad_enabled():
            output: Tensor = checkpoint(self._forward, tokens, bias, use_reentrant=False)
            return output
        return self._forward(tokens, bias)

    def _forward(self, tokens: Tensor, bias: Tensor | None) -> Tensor:
        branch = self.attn(self.norm1(tokens), bias)
        branch = branch if self.gamma_1 is None else self.gamma_1 * branch
        tokens = tokens + drop_path(branch, self.drop_rate, self.training)
        branch = self.mlp(self.norm2(tokens))
        branch = branch if self.gamma_2 is None else self.gamma_2 * branch
        return tokens + drop_path(branch, self.drop_rate, self.training)


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
