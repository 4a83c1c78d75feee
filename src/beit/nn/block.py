"""One pre-norm Transformer block as BEiT has it: no key bias, layer scale, stochastic depth."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from beit.nn.position import RelativePositionBias

NORM_EPS = 1e-6  # of every LayerNorm in the published models


class Attention(nn.Module):
    """Multi-head self-attention with query and value biases, none for keys, and a position bias."""

    def __init__(self, width: int, num_heads: int, grid: tuple[int, int] | None = None) -> None:
        """Build it; with ``grid`` given it has a relative position table of its own."""
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.rel_pos_bias = RelativePositionBias(grid, num_heads) if grid else None
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor, bias: Tensor | None) -> Tensor:
        """Attend among tokens (B, n, D); ``bias`` (1, h, n, n) is added to the logits."""
        B, n, D = tokens.shape
        q, k, v, bias = self.inputs(tokens, bias)
        if bias is not None:
            bias = bias.to(q.dtype)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)  # (B, h, n, D/h)
        mixed = mixed.transpose(1, 2)  # (B, n, h, D/h)
        if torch.compiler.is_exporting():
            # Which kernel runs, and so the result's order in memory, is not known in a graph.
            mixed = mixed.clone(memory_format=torch.contiguous_format)
        mixed = mixed.reshape(B, n, D)
        return self.proj(mixed)  # type: ignore[no-any-return]

    def inputs(
        self, tokens: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Return queries, keys, values (B, h, n, D/h), and what is added to the logits.

        The bias (1, h, n, n) is the one given plus the block's own; None where there is neither.
        """
        B, n, _ = tokens.shape
        if self.rel_pos_bias is not None:
            own = self.rel_pos_bias()
            bias = own if bias is None else bias + own
        qkv_bias = torch.cat([self.q_bias, torch.zeros_like(self.v_bias), self.v_bias])
        qkv = F.linear(tokens, self.qkv.weight, qkv_bias)
        q, k, v = qkv.reshape(B, n, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)  # (B, h, n, D/h)
        return q, k, v, bias


class Mlp(nn.Module):
    """Two linear layers around an exact GELU."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (B, n, D) one by one to (B, n, D)."""
        return self.fc2(F.gelu(self.fc1(tokens)))  # type: ignore[no-any-return]


def drop_path(branch: Tensor, rate: float, training: bool) -> Tensor:
    """Zero the whole branch (B, n, D) of an image at ``rate``, scale the others up by 1/(1-rate).

    Draws from torch's default generator, which a recipe seeds at every step.
    """
    if rate == 0.0 or not training:
        return branch
    kept = torch.empty(len(branch), 1, 1, dtype=branch.dtype, device=branch.device)
    return branch * kept.bernoulli_(1 - rate) / (1 - rate)


class Block(nn.Module):
    """x + gamma_1 * attention(norm x), then x + gamma_2 * mlp(norm x).

    Attributes:
        gradient_checkpointing: keep only what goes in, and compute the rest again when gradients
            are taken (Chen et al. 2016): less memory, more time, the same gradients
    """

    gradient_checkpointing = False

    def __init__(
        self,
        width: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        layer_scale: float | None = None,
        drop_rate: float = 0.0,
        bias_grid: tuple[int, int] | None = None,
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
        """Pass tokens (B, n, D) through; ``bias`` (1, h, n, n) is the shared position bias."""
        if self.gradient_checkpointing and torch.is_grad_enabled():
            passed: Tensor = checkpoint(self._passed, tokens, bias, use_reentrant=False)
            return passed
        return self._passed(tokens, bias)

    def _passed(self, tokens: Tensor, bias: Tensor | None) -> Tensor:
        mixed = self.attn(self.norm1(tokens), bias)
        mixed = mixed if self.gamma_1 is None else self.gamma_1 * mixed
        tokens = tokens + drop_path(mixed, self.drop_rate, self.training)
        changed = self.mlp(self.norm2(tokens))
        changed = changed if self.gamma_2 is None else self.gamma_2 * changed
        return tokens + drop_path(changed, self.drop_rate, self.training)


INIT_STD = 0.02


@torch.no_grad()
def cut_normal_(tensor: Tensor, bound: float) -> None:
    """Fill a tensor from a normal of deviation 0.02 cut at +-bound, by inverting its distribution.

    torch's own rejects draws until all fit, which takes half a minute for a ViT-L.
    """
    reach = math.erf(bound / INIT_STD / 2**0.5)
    if reach == 1.0:
        tensor.normal_(std=INIT_STD)
    else:
        tensor.uniform_(-reach, reach).erfinv_().mul_(INIT_STD * 2**0.5).clamp_(-bound, bound)


def init_published(module: nn.Module, bound: float) -> None:
    """Draw weights from a normal of deviation 0.02 cut at +-bound; biases 0, norms 1 and 0.

    The published code cuts at one deviation (``bound=0.02``) for pretraining models, and, since
    timm's cut is absolute, at 2.0 for tokenizers: that is, nowhere.
    """
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv2d):
            cut_normal_(part.weight, bound)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


def rescale_residual(block: Block, layer: int) -> None:
    """Divide what block number ``layer`` (from 1) writes into the residual by sqrt(2 layer)."""
    with torch.no_grad():
        block.attn.proj.weight.div_((2.0 * layer) ** 0.5)
        block.mlp.fc2.weight.div_((2.0 * layer) ** 0.5)
