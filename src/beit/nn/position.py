"""Positions for other image sizes: bias tables and absolute positions on another grid."""

import copy
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from beit.nn.block import Attention
from beit.nn.patches import Size
from beit.nn.relative_bias import CLS_ROWS, RelativePositionBias
from beit.nn.vit import VisionTransformer

MIN_RATIO, MAX_RATIO = 1.01, 1.5  # ratio of the geometric progression of offsets (published code)
RATIO_ERROR = 1e-6
Model = TypeVar("Model", bound=nn.Module)


def resized(model: Model, image_size: int | Size) -> Model:
    """Return a copy for another image size (height, width), with its positions resized.

    See ``resize_relative_bias`` and ``resize_absolute``. For the same grid, the model itself.

    Args:
        model: a vision Transformer, or a model with one as its ``backbone``
        image_size: (height, width), or one side, in multiples of the patch size

    Raises:
        TypeError: the model has no backbone, as a tokenizer.
        ValueError: the size is not in multiples of the patch size.
    """
    size = image_size if isinstance(image_size, tuple | list) else (image_size, image_size)
    old, new = _vit_of(model).config.grid, replace(_vit_of(model).config, image_size=size).grid
    if old == new:
        return model
    model = copy.deepcopy(model)
    vit = _vit_of(model)
    vit.config = replace(vit.config, image_size=size)
    if vit is not model:
        model.config = replace(model.config, backbone=vit.config)  # type: ignore[type-var]
    for part in (vit, model):
        if "image_size" in vars(part):  # of the others it is a property
            part.image_size = size
    if vit.pos_embed is not None:
        positions = resize_absolute(vit.pos_embed.detach(), old, new)
        vit.pos_embed = nn.Parameter(positions, vit.pos_embed.requires_grad)
    for module in model.modules():
        if isinstance(module, VisionTransformer | Attention) and module.rel_pos_bias is not None:
            bias = module.rel_pos_bias
            module.rel_pos_bias = RelativePositionBias(new, bias.table.shape[1]).to(bias.table)
            table = resize_relative_bias(bias.table, old, new)
            module.rel_pos_bias.table = nn.Parameter(table.detach(), bias.table.requires_grad)
    return model


def _vit_of(model: nn.Module) -> VisionTransformer:
    vit = model if isinstance(model, VisionTransformer) else getattr(model, "backbone", None)
    if not isinstance(vit, VisionTransformer):
        raise TypeError(
            f"a model of type {type(model).__name__} has no backbone to resize; expected a vision "
            "Transformer or a model with one as its backbone, such as a classifier"
        )
    return vit


def with_bias_per_block(vit: VisionTransformer) -> VisionTransformer:
    """Return a copy in which every block has its own copy of the shared relative bias.

    For fine-tuning (docs/reference/finetuning.md, "Model"). A model with one bias per block is
    returned unchanged. ValueError: the model has no relative bias.
    """
    if vit.config.relative_bias == "per_block":
        return vit
    if vit.rel_pos_bias is None:
        raise ValueError("the model has no shared relative position bias to copy to its blocks")
    vit = copy.deepcopy(vit)
    vit.config = replace(vit.config, relative_bias="per_block")
    for module in vit.modules():
        if isinstance(module, Attention):
            module.rel_pos_bias = copy.deepcopy(vit.rel_pos_bias)
    vit.rel_pos_bias = None
    return vit


@torch.no_grad()
def resize_relative_bias(table: Tensor, old_grid: Size, new_grid: Size) -> Tensor:
    """Resize a table of position biases to another grid, as the published fine-tuning code does.

    Along each axis, the old offsets are placed at the distances of a geometric progression, of a
    ratio from 1.01 to 1.5. Offsets of one patch keep their bias, and the longest old offset becomes
    the longest new one. A bicubic spline through these points gives the biases at the new offsets;
    beyond the last point the outermost bias is repeated. The rows of [CLS] do not change. For a
    smaller grid, far offsets are in effect cut off. The published code supports square grids only:
    here each axis has its own progression, and an axis that keeps its length does not change.

    table: ((2Gh-1)(2Gw-1)+3, h) for ``old_grid``
    Returns: the table for ``new_grid``, of the same dtype; the same tensor for the same grid

    Raises:
        ValueError: the table is not of ``old_grid``.
    """
    sides = zip(old_grid, new_grid, strict=True)
    heights, widths = ((2 * old - 1, 2 * new - 1) for old, new in sides)
    rows = heights[0] * widths[0] + CLS_ROWS
    if table.ndim != 2 or len(table) != rows:
        raise ValueError(
            f"the table is {tuple(table.shape)}, expected ({rows}, heads) for a grid of "
            f"{old_grid[0]} x {old_grid[1]}"
        )
    if tuple(old_grid) == tuple(new_grid):
        return table
    biases = table[:-CLS_ROWS].cpu().double().view(heights[0], widths[0], -1)  # (2Gh-1, 2Gw-1, h)
    biases = torch.einsum("yi,ijh->yjh", resize_matrix(*heights), biases)
    biases = torch.einsum("xj,yjh->yxh", resize_matrix(*widths), biases)  # (2Gh'-1, 2Gw'-1, h)
    return torch.cat([biases.flatten(0, 1).to(table), table[-CLS_ROWS:]])


def resize_absolute(pos_embed: Tensor, old_grid: Size, new_grid: Size) -> Tensor:
    """Resize learned positions to another grid by bicubic interpolation; [CLS] keeps its own.

    pos_embed: (1, 1 + Gh*Gw, D) for ``old_grid``
    Returns: (1, 1 + Gh'*Gw', D); the same tensor for the same grid
    """
    Gh, Gw = old_grid
    if pos_embed.ndim != 3 or pos_embed.shape[1] != 1 + Gh * Gw:
        raise ValueError(
            f"the positions are {tuple(pos_embed.shape)}, expected (1, {1 + Gh * Gw}, width) "
            f"for a grid of {Gh} x {Gw}"
        )
    if tuple(old_grid) == tuple(new_grid):
        return pos_embed
    patches = pos_embed[:, 1:].transpose(1, 2).unflatten(2, old_grid)  # (1, D, Gh, Gw)
    patches = F.interpolate(patches, new_grid, mode="bicubic", align_corners=False)
    return torch.cat([pos_embed[:, :1], patches.flatten(2).transpose(1, 2)], dim=1)


def resize_matrix(old: int, new: int) -> Tensor:
    """Return the matrix (new, old) float64 that resizes the biases of one axis; both are odd."""
    if old == new:
        return torch.eye(old, dtype=torch.float64)
    if old == 1:  # one patch per row: only offset 0 was learned
        return torch.ones(new, 1, dtype=torch.float64)
    longest = new // 2
    distances = geometric_distances(old // 2, longest)
    knots = torch.cat([-distances.flip(0), torch.zeros(1), distances])
    offsets = torch.arange(-longest, longest + 1, dtype=torch.float64)
    return cubic_spline(knots, offsets.clamp(knots[0], knots[-1]))


def geometric_distances(count: int, longest: int) -> Tensor:
    """Return 1, 1 + q, 1 + q + q^2, … (count,) float64, with ``longest`` as the last if possible.

    The ratio q is found by bisection within the bounds of the published code.
    """
    ratio, low, high = MIN_RATIO, MIN_RATIO, MAX_RATIO
    while high - low > RATIO_ERROR:
        ratio = (low + high) / 2
        if (1 - ratio**count) / (1 - ratio) > longest:
            high = ratio
        else:
            low = ratio
    return torch.pow(ratio, torch.arange(count, dtype=torch.float64)).cumsum(0)


def cubic_spline(knots: Tensor, points: Tensor) -> Tensor:
    """Return the matrix (m, n) from values at the knots to their cubic spline at the points.

    The boundary condition is "not-a-knot": the two outer pieces on each side are one cubic. Three
    knots give a parabola.

    Args:
        knots: (n,) float64, ascending, n >= 3
        points: (m,) float64, within the knots
    """
    n = len(knots)
    steps: Tensor = knots.diff()
    values = torch.eye(n, dtype=knots.dtype)
    slopes = values.diff(dim=0) / steps[:, None]  # (n-1, n)
    # The unknowns are the second derivatives at the knots. First derivatives agree at inner knots,
    system, right = torch.zeros(2, n, n, dtype=knots.dtype)
    inner = torch.arange(1, n - 1)
    system[inner, inner - 1] = steps[:-1]
    system[inner, inner] = 2 * (steps[:-1] + steps[1:])
    system[inner, inner + 1] = steps[1:]
    right[1:-1] = 6 * slopes.diff(dim=0)
    # third derivatives at the outermost inner knots; those of a parabola are zero.
    for row, (a, b, c) in ((0, (0, 1, 2)), (n - 1, (n - 1, n - 2, n - 3))):
        outer, inner_step = (knots[b] - knots[a]), (knots[c] - knots[b])
        if n == 3:
            system[row, a], system[row, b] = 1, -1
        else:
            system[row, a], system[row, b] = inner_step, -(outer + inner_step)
            system[row, c] = outer
    second = torch.linalg.solve(system, right)  # (n, n)

    piece = torch.searchsorted(knots, points, right=True).clamp(1, n - 1) - 1  # (m,)
    width = steps[piece][:, None]
    after: Tensor = (points - knots[piece])[:, None] / width  # position within the piece, 0 to 1
    before = 1 - after
    curved: Tensor = (before**3 - before) * second[piece] + (after**3 - after) * second[piece + 1]
    return before * values[piece] + after * values[piece + 1] + curved * width**2 / 6
