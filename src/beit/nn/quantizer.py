"""The codebook on the unit sphere: nearest code, moving average, k-means start, dead code revival.

BEiT v2, section 2.2. Nothing here calls a collective: training sums the ``statistics`` of all
processes, and calls ``update``. Everything is float32 under any autocast, because bfloat16
distances can collapse a codebook.

For ablations, codes need not have length 1 (Euclidean distances), can be learned by gradients, or
are the points of a fixed grid, as in finite scalar quantization.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CHUNK_ELEMENTS = 2**23  # similarities held in memory by a lookup: 32 MiB
CACHED_ELEMENTS = 2**19  # the same on a CPU, where 2 MiB stay in its cache
GROUP = 128  # similarities whose largest is looked up first
KMEANS_ITERATIONS = 10  # as published


def unit(vectors: Tensor) -> Tensor:
    """Return vectors (..., C) scaled to length 1, in float32."""
    return F.normalize(vectors.float(), dim=-1)


class Quantizer(nn.Module):
    """Codebook of K codes with C channels, learned by exponential moving averages by default.

    Args:
        decay: decay of the moving averages, in [0, 1)
        l2_normalised: codes have length 1 and the nearest code has the largest cosine; false: the
            nearest code has the smallest Euclidean distance
        levels: of each channel, for a fixed grid of codes (`scalar_codes`); () for learned codes

    Buffers:
        codebook: (K, C), unit rows with ``l2_normalised``; a parameter after ``use_gradients``
        counts: (K,) moving average of the number of vectors assigned to each code in a step
        initialised: () bool, False until the codebook is set from data or weights
    """

    codebook: Tensor
    counts: Tensor
    initialised: Tensor

    def __init__(
        self,
        num_codes: int,
        code_width: int,
        decay: float = 0.99,
        l2_normalised: bool = True,
        levels: tuple[int, ...] = (),
    ) -> None:
        super().__init__()
        if num_codes < 2 or code_width < 1:
            raise ValueError(
                f"a codebook needs 2 codes of 1 channel or more, got {num_codes} of {code_width}"
            )
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {decay}")
        check_levels(levels, num_codes, code_width, l2_normalised)
        self.decay, self.l2_normalised, self.fixed = decay, l2_normalised, bool(levels)
        if levels:
            codebook = scalar_codes(levels)
        elif l2_normalised:
            codebook = unit(torch.randn(num_codes, code_width))
        else:  # near the origin, as is usual for VQ-VAE: at first the direction decides
            codebook = torch.empty(num_codes, code_width).uniform_(-1 / num_codes, 1 / num_codes)
        self.register_buffer("codebook", codebook)
        self.register_buffer("counts", torch.zeros(num_codes))
        self.register_buffer("initialised", torch.tensor(self.fixed))

    def use_gradients(self) -> nn.Parameter:
        """Turn the codebook into a parameter, which keeps the values, and return it."""
        if self.fixed:
            raise ValueError("codes on a fixed grid of levels are not learned by gradients")
        codebook = nn.Parameter(self.codebook)
        del self.codebook  # the buffer of the same name
        self.codebook = codebook
        return codebook

    def project(self, vectors: Tensor) -> Tensor:
        """Return vectors (..., C) in float32, scaled to length 1 with ``l2_normalised``."""
        return unit(vectors) if self.l2_normalised else vectors.float()

    @torch.no_grad()
    def nearest(self, vectors: Tensor) -> Tensor:
        """Return the index (...) int64 of the code nearest to each vector (..., C), Eq. 1."""
        rows = vectors.reshape(-1, vectors.shape[-1]).float()
        nearest = nearest_rows(rows, self.codebook.float(), self.l2_normalised)
        return nearest.reshape(vectors.shape[:-1])

    @torch.no_grad()
    def scores(self, vectors: Tensor) -> Tensor:
        """Return the `closeness` of each vector to every code: (..., C) to (..., K) float32."""
        with torch.autocast(vectors.device.type, enabled=False):
            return closeness(self.project(vectors), self.codebook, self.l2_normalised)

    @torch.no_grad()
    def statistics(self, vectors: Tensor, codes: Tensor) -> Tensor:
        """Sum and count the vectors (..., C) assigned to each code, after ``project``.

        codes: (...) int64, from ``nearest``
        Returns: (K, C+1) float32: C columns of sums, then the counts. Add the statistics of all
            processes before ``update``.
        """
        rows = self.project(vectors).flatten(0, -2)
        return grouped_sums(rows, codes.flatten(), len(self.codebook))

    @torch.no_grad()
    def update(self, statistics: Tensor, kept: Tensor | None = None) -> None:
        """Move each code towards the mean direction of the vectors assigned to it.

        ``codebook <- unit(decay * codebook + (1 - decay) * unit(sum))``. Codes without vectors do
        not move. This is the published update: no smoothing, no weighting by counts. Without
        ``l2_normalised``, means replace the unit vectors. A codebook learned by gradients is only
        rescaled to length 1. A fixed grid does not change.

        Args:
            kept: () bool; nothing changes if it is False, as for statistics that are not finite
        """
        kept = torch.ones((), dtype=torch.bool, device=statistics.device) if kept is None else kept
        moved = self.codebook
        if not (self.fixed or isinstance(moved, nn.Parameter)):
            centroids = self._centroids(statistics, moved)
            moved = self.decay * moved + (1 - self.decay) * centroids
        if not self.fixed:
            self.codebook.copy_(self.project(moved).where(kept, self.codebook))
        counts = (self.decay * self.counts).add_(statistics[:, -1], alpha=1 - self.decay)
        self.counts.copy_(counts.where(kept, self.counts))

    @torch.no_grad()
    def start(self, vectors: Tensor, generator: torch.Generator) -> None:
        """Set the codebook to the k-means centroids of vectors (rows, C), gathered from all ranks.

        Spherical k-means, ordinary without ``l2_normalised``, from random rows (with replacement if
        there are fewer than K), ten iterations. A centroid without vectors does not move.
        """
        if self.fixed:
            raise ValueError("codes on a fixed grid of levels cannot be set from data")
        rows = self.project(vectors)
        means = rows[random_rows(len(rows), len(self.codebook), generator).to(rows.device)]
        for _ in range(KMEANS_ITERATIONS):
            nearest = nearest_rows(rows, means, self.l2_normalised)
            means = self._centroids(grouped_sums(rows, nearest, len(means)), means)
        self.codebook.copy_(means)
        self.initialised.fill_(True)

    @torch.no_grad()
    def revive(self, vectors: Tensor, dead: Tensor, generator: torch.Generator) -> Tensor:
        """Replace dead codes (K,) bool by distinct random rows of vectors (rows, C).

        Returns: (revived,) int64, indices of the replaced codes, at most as many as rows
        """
        if self.fixed:
            raise ValueError("codes on a fixed grid of levels cannot be revived")
        revived = dead.nonzero().squeeze(1)[: len(vectors)]
        rows = random_rows(len(vectors), len(revived), generator).to(vectors.device)
        self.codebook[revived] = self.project(vectors[rows])
        return revived

    def _centroids(self, statistics: Tensor, default: Tensor) -> Tensor:
        """Return the mean (K, C) of each code's vectors; the row of `default` if there are none."""
        sums, counts = statistics[:, :-1], statistics[:, -1:]
        means = unit(sums) if self.l2_normalised else sums / counts.clamp(min=1)
        return torch.where(counts > 0, means, default)


def random_rows(num_rows: int, count: int, generator: torch.Generator) -> Tensor:
    """Draw row numbers (count,) int64, without replacement if there are enough rows."""
    if count <= num_rows:
        return torch.randperm(num_rows, generator=generator)[:count]
    return torch.randint(num_rows, (count,), generator=generator)


def closeness(rows: Tensor, means: Tensor, l2_normalised: bool = True) -> Tensor:
    """Score each row (..., C) against the means (K, C): (..., K), highest for the nearest mean.

    ``row . mean`` for means of length 1; otherwise ``row . mean - |mean|^2 / 2``, half the negative
    squared distance up to a term that depends on the row alone.
    """
    products = rows @ means.T
    return products if l2_normalised else products - means.square().sum(dim=1) / 2


def nearest_rows(rows: Tensor, means: Tensor, l2_normalised: bool = True) -> Tensor:
    """Return the index (n,) int64 of the mean (K, C) nearest to each row (n, C), in chunks."""
    with torch.autocast(rows.device.type, enabled=False):
        if torch.compiler.is_exporting():  # a loop over chunks would fix the batch size
            return closeness(rows, means, l2_normalised).argmax(dim=1)
        cached = rows.device.type == "cpu" and not torch.compiler.is_compiling()
        size = max(1, (CACHED_ELEMENTS if cached else CHUNK_ELEMENTS) // len(means))
        nearest = rows.new_empty(len(rows), dtype=torch.int64)  # kept parts would split up memory
        for part, target in zip(rows.split(size), nearest.split(size), strict=True):
            target.copy_(first_largest(closeness(part, means, l2_normalised)))
        return nearest


def first_largest(scores: Tensor) -> Tensor:
    """Return ``scores.argmax(dim=1)`` (n,) of (n, K), on a CPU by `amax`, many times as fast."""
    if scores.device.type != "cpu" or scores.shape[1] % GROUP:
        return scores.argmax(dim=1)
    groups = scores.view(-1, scores.shape[1] // GROUP, GROUP)  # (n, K / GROUP, GROUP)
    group = groups.amax(dim=2).argmax(dim=1)
    return group * GROUP + groups[torch.arange(len(group)), group].argmax(dim=1)


def grouped_sums(rows: Tensor, groups: Tensor, num_groups: int) -> Tensor:
    """Sum and count the rows (n, C) of each group: (num_groups, C+1) float32."""
    sums = rows.new_zeros(num_groups, rows.shape[1] + 1)
    sums[:, :-1].index_add_(0, groups, rows)
    # Not bincount, which waits for the GPU.
    sums[:, -1] = rows.new_zeros(num_groups).scatter_add_(0, groups, rows.new_ones(len(rows)))
    return sums


def check_levels(levels: tuple[int, ...], num_codes: int, width: int, l2_normalised: bool) -> None:
    """Raise ValueError if levels contradict the other numbers of a codebook; () is valid."""
    if levels and min(levels) < 2:
        raise ValueError(f"levels are {levels}; expected 2 or more for each channel of a code")
    if levels and (math.prod(levels), len(levels)) != (num_codes, width):
        raise ValueError(
            f"levels {levels} make {math.prod(levels)} codes of {len(levels)} channels, but "
            f"num_codes is {num_codes} and code_width {width}; give those numbers"
        )
    if levels and l2_normalised:
        raise ValueError("a grid of levels does not lie on the sphere; set l2_normalised to false")


def scalar_codes(levels: tuple[int, ...]) -> Tensor:
    """Return all points of the grid (K, C) in [-1, 1] of FSQ (Mentzer et al. 2024).

    The L levels of a channel are ``i / (L // 2)`` for integers i from -(L // 2); the last channel
    changes fastest.
    """
    channels = [(torch.arange(L) - L // 2) / (L // 2) for L in levels]
    return torch.cartesian_prod(*channels).reshape(-1, len(levels))


def bounded(vectors: Tensor, levels: tuple[int, ...]) -> Tensor:
    """Squash each channel of vectors (..., C) to the range of `scalar_codes`; zero stays zero.

    The range ends at the outer levels, whose cells are half as wide as the others.
    """
    L = vectors.new_tensor(levels)
    half = (L - 1) * (1.001 / 2)  # as published; 1 / 2 would make the shift of two levels infinite
    offset = 0.5 * (L % 2 == 0)  # even L: one level more below zero than above
    shift = (offset / half).atanh()
    return ((vectors + shift).tanh() * half - offset) / L.div(2, rounding_mode="floor")
