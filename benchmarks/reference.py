"""The baseline: both training steps computed in the manner of the published code.

Written from the papers and from the known behaviour of that code. It reads the parameters of our
models, so that results can be compared number by number. Like the published code, and unlike ours:

- attention logits and their softmax are stored as tensors (B, h, n, n) in every block;
- patches are embedded by a strided convolution;
- masks are boolean maps, and tokens are selected by boolean indexing;
- squared distances of all vectors to all codes are stored, and assignments are a (B*N, K) one-hot
  matrix in int64, whose product with the vectors gives the sums per code, in the precision that
  autocast chooses, even if only the codes are needed;
- losses and accuracies are read back to the CPU at every step; AdamW loops over the weights.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from beit.nn.block import Attention, Block
from beit.nn.mim import MaskedImageModel
from beit.nn.quantizer import Quantizer
from beit.nn.tokenizer import VQKD
from beit.nn.vit import VisionTransformer


def attention(part: Attention, tokens: Tensor, bias: Tensor | None) -> Tensor:
    """Attend among tokens (B, n, D) with every logit written to memory."""
    B, n, D = tokens.shape
    h = part.num_heads
    zeros = torch.zeros_like(part.v_bias, requires_grad=False)
    qkv = F.linear(tokens, part.qkv.weight, torch.cat((part.q_bias, zeros, part.v_bias)))
    q, k, v = qkv.reshape(B, n, 3, h, D // h).permute(2, 0, 3, 1, 4)  # (B, h, n, D/h)
    logits = (q * (D // h) ** -0.5) @ k.transpose(-2, -1)  # (B, h, n, n)
    for term in (part.rel_pos_bias() if part.rel_pos_bias else None, bias):
        if term is not None:
            logits = logits + term
    weights = logits.softmax(dim=-1)
    return part.proj((weights @ v).transpose(1, 2).reshape(B, n, D))


def block(part: Block, tokens: Tensor, bias: Tensor | None) -> Tensor:
    """Transform tokens (B, n, D) by a block, without stochastic depth, which no benchmark uses."""
    branch = attention(part.attn, part.norm1(tokens), bias)
    tokens = tokens + (branch if part.gamma_1 is None else part.gamma_1 * branch)
    branch = part.mlp(part.norm2(tokens))
    return tokens + (branch if part.gamma_2 is None else part.gamma_2 * branch)


def embed_patches(vit: VisionTransformer, pixels: Tensor) -> Tensor:
    """Embed normalised pixels (B, c, H, W) as patches (B, N, D)."""
    return vit.patch_embed.proj(pixels).flatten(2).transpose(1, 2)


def encode(vit: VisionTransformer, pixels: Tensor) -> Tensor:
    """Return the normed patch tokens (B, N, D) of normalised pixels (B, c, H, W)."""
    tokens = with_cls(vit, embed_patches(vit, pixels))
    bias = vit.bias()
    for part in vit.blocks:
        tokens = block(part, tokens, bias)
    return vit.norm(tokens[:, 1:])


def with_cls(vit: VisionTransformer, patches: Tensor) -> Tensor:
    """Prepend [CLS] to the patches, and add absolute positions if the model has them."""
    tokens = torch.cat((vit.cls_token.expand(len(patches), -1, -1), patches), dim=1)
    return tokens if vit.pos_embed is None else tokens + vit.pos_embed


class Assignment(NamedTuple):
    """Output of the one-hot quantizer."""

    codes: Tensor  # (rows,) int64
    sums: Tensor  # (K, C) sums of the vectors assigned to each code
    counts: Tensor  # (K,)


def quantize(rows: Tensor, codebook: Tensor) -> Assignment:
    """Assign codes to unit rows (n, C) by squared distance, all pairs at once."""
    K = len(codebook)
    distances = (
        rows.pow(2).sum(dim=1, keepdim=True)
        + codebook.pow(2).sum(dim=1)
        - 2 * torch.einsum("nc,kc->nk", rows, codebook)
    )  # (n, K)
    codes = distances.argmin(dim=1)
    one_hot = F.one_hot(codes, K).type(rows.dtype)  # (n, K), converted from int64
    return Assignment(codes, one_hot.t() @ rows, one_hot.sum(dim=0))


@torch.no_grad()
def update(quantizer: Quantizer, assignment: Assignment) -> None:
    """Update the codebook by the spherical moving average, as ours."""
    empty = assignment.counts == 0
    centroids = assignment.sums / assignment.counts.masked_fill(empty, 1.0)[:, None]
    centroids = F.normalize(centroids.float(), dim=1)
    centroids = torch.where(empty[:, None], quantizer.codebook, centroids)
    decay = quantizer.decay
    moved = F.normalize(quantizer.codebook * decay + centroids * (1 - decay), dim=1)
    quantizer.codebook.copy_(moved)
    quantizer.counts.mul_(decay).add_(assignment.counts, alpha=1 - decay)


def to_pixels(images: Tensor) -> Tensor:
    """Map images (B, 3, H, W) to [-1, 1], guessing their range from the largest value."""
    if images.max() <= 1:
        images = images * 255
    return images / 127.5 - 1


def vectors_of(vqkd: VQKD, images: Tensor) -> Tensor:
    """Encode images (B, 3, H, W) in [0, 1] as unit vectors (B*N, C)."""
    patches = encode(vqkd.encoder, to_pixels(images))
    with torch.autocast(patches.device.type, enabled=False):
        return F.normalize(vqkd.encode_task(patches.float()).flatten(0, 1), dim=1)


@torch.no_grad()
def tokenize(vqkd: VQKD, images: Tensor) -> Tensor:
    """Return codes (B, N) of images (B, 3, H, W) in [0, 1]; usage is counted, too."""
    rows = vectors_of(vqkd, images)
    return quantize(rows, vqkd.quantizer.codebook).codes.view(len(images), -1)


class TokenizerOutput(NamedTuple):
    """Output of a forward pass of the tokenizer."""

    features: Tensor  # (B, N, T)
    commitment: Tensor  # ()
    assignment: Assignment


def tokenizer_forward(vqkd: VQKD, images: Tensor) -> TokenizerOutput:
    """Encode, quantize and decode images (B, 3, H, W) in [0, 1]."""
    rows = vectors_of(vqkd, images)
    with torch.no_grad():
        assignment = quantize(rows, vqkd.quantizer.codebook)
    quantized = F.embedding(assignment.codes, vqkd.quantizer.codebook)  # (B*N, C)
    commitment = F.mse_loss(quantized.detach(), rows)
    decoder_input = rows + (quantized - rows).detach()
    code_map = decoder_input.view(len(images), *vqkd.grid, -1).permute(0, 3, 1, 2).contiguous()
    return TokenizerOutput(vqkd.decode_task(encode(vqkd.decoder, code_map)), commitment, assignment)


def mim_forward(
    model: MaskedImageModel, pixels: Tensor, hidden: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Predict hidden patches (B, N) bool of normalised pixels: (B*M, K) twice, or once and None."""
    vit, early = model.backbone, model.config.early_layers
    patches = embed_patches(vit, pixels)
    weight = hidden[..., None].type_as(patches)
    patches = patches * (1 - weight) + model.mask_token.expand_as(patches) * weight
    tokens, early_tokens = with_cls(vit, patches), None
    bias = vit.bias()
    for number, part in enumerate(vit.blocks, 1):
        tokens = block(part, tokens, bias)
        if number == early:
            early_tokens = tokens[:, 1:]
    logits = model.head(vit.norm(tokens)[:, 1:][hidden])  # (B*M, K)
    if not model.aggregation:
        return logits, None
    tokens = torch.cat((tokens[:, :1], early_tokens), dim=1)
    bias = vit.bias()
    for part in model.aggregation:
        tokens = block(part, tokens, bias)
    norm = model.cls_norm or vit.norm
    head = model.cls_head or model.head
    return logits, head(norm(tokens)[:, 1:][hidden])


def cosine_loss(features: Tensor, targets: Tensor) -> Tensor:
    """Return the mean of 1 - cosine over all patches."""
    features = features / features.norm(dim=-1, keepdim=True)
    targets = targets / targets.norm(dim=-1, keepdim=True)
    return (1 - (features * targets).sum(dim=-1)).mean()


def pretraining_step(
    model: MaskedImageModel,
    vqkd: VQKD,
    optimizer: torch.optim.Optimizer,
    pixels: Tensor,
    images: Tensor,
    hidden: Tensor,
    autocast: torch.autocast,
) -> dict[str, float]:
    """Take one step; pixels are normalised, and the tokenizer gets images in [0, 1]."""
    with torch.no_grad(), autocast:
        targets = tokenize(vqkd, images)[hidden]  # (B*M,)
    with autocast:
        logits, cls_logits = mim_forward(model, pixels, hidden)
        loss = F.cross_entropy(logits, targets)
        if cls_logits is not None:
            loss = loss + F.cross_entropy(cls_logits, targets)
    value = loss.item()
    optimizer.zero_grad()
    loss.backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), 3.0, foreach=False)
    optimizer.step()
    for scores in (logits, cls_logits):
        if scores is not None:
            (scores.argmax(dim=-1) == targets).float().mean().item()
    wait(pixels)
    return {"loss": value, "grad_norm": norm.item()}


def tokenizer_step(
    vqkd: VQKD,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    targets: Tensor,
    autocast: torch.autocast,
) -> dict[str, float]:
    """Take one step; targets (B, N, T) replace the teacher's features."""
    with autocast:
        output = tokenizer_forward(vqkd, images)
        reconstruction = cosine_loss(output.features, targets)
        loss = reconstruction + output.commitment
    update(vqkd.quantizer, output.assignment)
    value = loss.item()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    for metric in (reconstruction, output.commitment):
        metric.item()
    wait(images)
    return {"loss": value}


def weight_by_weight(
    groups: Iterable[dict[str, Any]], rate: float, betas: tuple[float, float]
) -> torch.optim.AdamW:
    """Return AdamW with a Python loop over the weights of parameter groups."""
    return torch.optim.AdamW(groups, lr=rate, betas=betas, foreach=False, fused=False)


def wait(tensor: Tensor) -> None:
    """Wait for the device, as the published loop does at every step."""
    if tensor.is_cuda:
        torch.cuda.synchronize()
