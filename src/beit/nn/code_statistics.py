"""Statistics of a codebook on a stream of images (BEiT v2, section 3.4).

All statistics are sums of integers: those of two halves of a set, or of several processes, add up
in any order to those of the whole set, bit-identically. Memory does not grow with the images.
"""

import math
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from beit.nn import metrics
from beit.nn.channels import as_rgb
from beit.nn.dalle import DalleTokenizer
from beit.nn.dvae import DiscreteVAE
from beit.nn.masking import not_repeated
from beit.nn.patches import Size, patchify
from beit.nn.quantizer import unit
from beit.nn.reservoir import STEP, in_steps
from beit.nn.tokenizer import VQKD, Tokenizer

MEAN_SIDE = 16  # largest side of a mean patch in pixels
MAX_PAIR_CODES = 8192  # pairs are not counted for more codes; this table takes 256 MiB
CHUNK_ELEMENTS = 2**22  # temporary numbers at a time: 32 MiB of int64


@torch.no_grad()
def rated(tokenizer: Tokenizer, images: Tensor) -> tuple[Tensor, Tensor]:
    """Tokenize images (B, 3, H, W) and rate how close each patch is to its code.

    Returns: codes (B, N) int64, and scores (B, N) float32, larger for closer: the cosine of a
        patch's vector and its code, or minus their Euclidean distance if codes are not on the
        sphere; for a discrete VAE and DALL-E the code's logit
    """
    if isinstance(tokenizer, VQKD):
        vectors, quantizer = tokenizer.embed(images), tokenizer.quantizer
        codes = quantizer.nearest(vectors)
        with torch.autocast(vectors.device.type, enabled=False):
            placed, chosen = quantizer.project(vectors), quantizer.codebook[codes]
            if quantizer.l2_normalised:
                return codes, (placed * chosen).sum(-1)
            return codes, -(placed - chosen).norm(dim=-1)
    if isinstance(tokenizer, DiscreteVAE | DalleTokenizer):
        with torch.autocast(images.device.type, enabled=False):
            logits = tokenizer.logits(images).float().flatten(2)  # (B, K, N)
        codes = logits.argmax(1)
        return codes, logits.gather(1, codes[:, None])[:, 0]
    raise ValueError(
        f"a tokenizer of type {type(tokenizer).__name__} cannot rate how close a patch is to its "
        "code; expected a VQKD, DiscreteVAE or DalleTokenizer"
    )


def code_vectors(tokenizer: Tokenizer) -> Tensor:
    """Return the codebook (K, C) float32 on the CPU; for DALL-E its encoder's last weights."""
    if isinstance(tokenizer, VQKD):
        vectors = tokenizer.quantizer.codebook
    elif isinstance(tokenizer, DiscreteVAE):
        vectors = tokenizer.codebook.weight
    elif isinstance(tokenizer, DalleTokenizer):
        vectors = tokenizer.encoder.head.weight.flatten(1)
    else:
        raise ValueError(f"a tokenizer of type {type(tokenizer).__name__} has no code vectors")
    return vectors.detach().float().cpu()


class CodeStatistics:
    """Sums over the patches of images.

    Attributes:
        positions: (N, K) int64, uses of each code at each position
        labels: (K, Y) int64, uses of each code in images of each label; Y = 0 without labels
        images: (K,) int64, images that contain each code
        pairs: (K, K) int32, images that contain both codes; (0, 0) for more codes than
            `MAX_PAIR_CODES`
        closeness: (K,) int64, the scores in `STEP`s
        pixels: (K, p, p, 3) int64, the pixels 0..255 of the patches, of side p <= `MEAN_SIDE`
        total: (1,) int64, number of images
    """

    def __init__(
        self,
        num_codes: int,
        grid: Size,
        patch_size: int,
        num_labels: int = 0,
        device: torch.device | str | None = None,
    ) -> None:
        K, side, zeros = num_codes, min(patch_size, MEAN_SIDE), partial(torch.zeros, device=device)
        num_paired = K if K <= MAX_PAIR_CODES else 0
        self.patch_size = patch_size
        self.positions = zeros(grid[0] * grid[1], K, dtype=torch.int64)
        self.labels = zeros(K, num_labels, dtype=torch.int64)
        self.images = zeros(K, dtype=torch.int64)
        self.pairs = zeros(num_paired, num_paired, dtype=torch.int32)
        self.closeness = zeros(K, dtype=torch.int64)
        self.pixels = zeros(K, side, side, 3, dtype=torch.int64)
        self.total = zeros(1, dtype=torch.int64)

    def tensors(self) -> list[Tensor]:
        """Return all sums; add those of several processes in place to combine them."""
        return [value for value in vars(self).values() if isinstance(value, Tensor)]

    @property
    def uses(self) -> Tensor:
        """(K,) int64, number of patches with each code."""
        return self.positions.sum(0)

    def add(self, images: Tensor, codes: Tensor, scores: Tensor, labels: Tensor) -> None:
        """Add a batch of images.

        Args:
            images: (B, c, H, W) uint8 or [0, 1], as the tokenizer sees them; `pixels` are of
                `as_rgb`
            codes: (B, N) int64
            scores: (B, N), finite
            labels: (B,) int64, negative where unknown
        """
        K, N = len(self.images), len(self.positions)
        if codes.shape[1] != N:
            raise ValueError(f"codes are {tuple(codes.shape)}, expected {N} per image")
        self.total += len(codes)
        self.positions += metrics.position_counts(codes, K)
        self.closeness.index_add_(0, codes.flatten(), in_steps(scores).flatten())
        Y = self.labels.shape[1]
        known = (labels >= 0) & (labels < Y)
        if Y:
            cells = codes[known] * Y + labels[known, None]
            self.labels.view(-1).index_add_(0, cells.flatten(), torch.ones_like(cells.flatten()))
        size = max(1, CHUNK_ELEMENTS // (N * max(N, self.pixels[0].numel())))
        for some_images, some_codes in zip(images.split(size), codes.split(size), strict=True):
            self._add_pairs(some_codes)
            self._add_pixels(some_images, some_codes)

    def _add_pairs(self, codes: Tensor) -> None:
        """Count each image of codes (b, N) once for every code and pair of codes in it."""
        K = len(self.images)
        ordered = codes.sort(dim=1).values
        first = not_repeated(ordered)
        distinct = ordered[first]
        self.images.index_add_(0, distinct, torch.ones_like(distinct))
        if len(self.pairs):
            cells = ordered[:, :, None] * K + ordered[:, None, :]  # (b, N, N)
            cells = cells[first[:, :, None] & first[:, None, :]]
            ones = torch.ones_like(cells, dtype=torch.int32)
            self.pairs.view(-1).index_add_(0, cells, ones)

    def _add_pixels(self, images: Tensor, codes: Tensor) -> None:
        side, images = self.pixels.shape[1], as_rgb(images)
        if images.dtype != torch.uint8:
            images = (images.float().clamp(0, 1) * 255).round()
        if side < self.patch_size:
            _, _, H, W = images.shape
            size = (H // self.patch_size * side, W // self.patch_size * side)
            images = F.adaptive_avg_pool2d(images.float(), size).round()
        patches = patchify(images, side).long()  # (b, N, p*p*3)
        self.pixels.flatten(1).index_add_(0, codes.flatten(), patches.flatten(0, 1))

    def mean_patches(self) -> Tensor:
        """Return the mean of all patches of each code: (K, p, p, 3) uint8; black if unused."""
        uses = self.uses.clamp(min=1).view(-1, 1, 1, 1)
        return ((self.pixels + uses // 2) // uses).to(torch.uint8)


class CodeMeasures(NamedTuple):
    """Measures of each code, (K,) each; NaN or -1 where undefined."""

    uses: Tensor  # int64, number of patches
    images: Tensor  # int64, number of images that contain it
    closeness: Tensor  # float64, mean score of its patches
    purity: Tensor  # float64 in (0, 1], share of its most frequent label among labelled patches
    label: Tensor  # int64, that label, the smaller one of ties; -1 without labels
    label_entropy: Tensor  # float64, bits, over its labels
    position_entropy: Tensor  # float64, bits, over positions in the grid; log2 N if uniform


def measures(statistics: CodeStatistics) -> CodeMeasures:
    """Compute the measures of every code, on the CPU."""
    uses, labels, nan = statistics.uses.cpu(), statistics.labels.cpu(), float("nan")
    unused, labelled = uses == 0, labels.sum(1)  # (K,)
    if labels.shape[1]:
        most, label = labels.max(1).values, labels.argmax(1)  # argmax: the first of ties
    else:
        most, label = torch.zeros_like(uses), torch.full_like(uses, -1)
    closeness = statistics.closeness.cpu().double() * STEP / uses
    return CodeMeasures(
        uses=uses,
        images=statistics.images.cpu(),
        closeness=closeness.masked_fill(unused, nan),
        purity=most.double() / labelled,  # 0 / 0 is NaN
        label=label.masked_fill(labelled == 0, -1),
        label_entropy=entropy(labels).masked_fill(labelled == 0, nan),
        position_entropy=entropy(statistics.positions.cpu().T).masked_fill(unused, nan),
    )


def entropy(counts: Tensor) -> Tensor:
    """Return the entropy in bits of counts (..., n) along the last dimension: (...) float64."""
    return metrics.entropy(counts) / math.log(2)


def lift(statistics: CodeStatistics, codes: Tensor, prior: float = 0.0) -> Tensor:
    """Return how much more often than by chance two codes share an image: (k, k) float64.

    This is P(both) / (P(one) P(other)) over images: 1 for independent codes, NaN on the diagonal.

    Args:
        codes: (k,) int64, used codes
        prior: added to the numbers of images with both codes and expected by chance, so that rare
            pairs have little effect
    """
    if not len(statistics.pairs):
        raise ValueError(
            f"pairs are not counted for more than {MAX_PAIR_CODES} codes; "
            f"this tokenizer has {len(statistics.images)}"
        )
    both = statistics.pairs[codes][:, codes].double().cpu()
    single = statistics.images[codes].double().cpu()
    expected = single[:, None] * single[None, :] / float(statistics.total)
    return ((both + prior) / (expected + prior)).fill_diagonal_(float("nan"))


def nearest_codes(vectors: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the k = ``count`` other codes nearest to each vector (K, C) by cosine, nearest first.

    Returns: codes (K, k) int64; cosines (K, k) float32; k is at most K - 1
    """
    rows, K, codes, values = unit(vectors), len(vectors), [], []
    for chunk in torch.arange(K).split(max(1, CHUNK_ELEMENTS // K)):
        cosines = rows[chunk] @ rows.T
        cosines[torch.arange(len(chunk)), chunk] = -2.0  # itself: below any cosine
        order = cosines.sort(dim=1, descending=True, stable=True)
        codes.append(order.indices[:, : min(count, K - 1)])
        values.append(order.values[:, : min(count, K - 1)])
    return torch.cat(codes), torch.cat(values)
