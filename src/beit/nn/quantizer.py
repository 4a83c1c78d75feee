"""The codebook on the sphere: nearest code, spherical EMA, k-means start, revival of dead codes.

BEiT v2, section 2.2. What depends on other processes is split in two, so that nothing here calls a
collective: ``statistics`` of this process's vectors, and ``update`` from the statistics summed over
all of them. Everything is float32 whatever the autocast: bfloat16 distances collapse a codebook.

For ablations codes may also lie anywhere (Euclidean distances), be learned by gradients, or be the
points of a fixed grid, which makes the codebook a finite scalar quantizer.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CHUNK_ELEMENTS = 2**23  # similarities held at once by a lookup: 32 MiB
KMEANS_ITERATIONS = 10  # as published


def unit(vectors: Tensor) -> Tensor:
    """Return vectors (..., C) scaled to length 1, in float32."""
    return F.normalize(vectors.float(), dim=-1)


class Quantizer(nn.Module):
    """K vectors of C channels, learned by exponential moving averages unless told otherwise.

    Args:
        num_codes: K
        code_width: C
        decay: of the moving averages, in [0, 1)
        l2_normalised: codes are of length 1 and the nearest is that in angle; else codes lie
            anywhere and the nearest is that in Euclidean distance
        levels: of each channel, for a fixed grid of codes (`scalar_codes`); () for learned codes

    Buffers:
        codebook: (K, C), unit rows with ``l2_normalised``; a parameter after ``use_gradients``
        counts: (K,) moving average of how many vectors of a step chose each code
        initialised: () bool, False until the codebook has seen data or weights
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
        self.decay = decay
        self.l2_normalised = l2_normalised
        self.fixed = bool(levels)
        if levels:
            codebook = scalar_codes(levels)
        elif l2_normalised:
            codebook = unit(torch.randn(num_codes, code_width))
        else:  # near the origin, as usual for VQ-VAE: at first the direction decides
            codebook = torch.empty(num_codes, code_width).uniform_(-1 / num_codes, 1 / num_codes)
        self.register_buffer("codebook", codebook)
        self.register_buffer("counts", torch.zeros(num_codes))
        self.register_buffer("initialised", torch.tensor(self.fixed))

    def use_gradients(self) -> nn.Parameter:
        """Make the codebook a parameter, for an optimiser, and return it; its values stay."""
        if self.fixed:
            raise ValueError("codes on a fixed grid of levels are not learned by gradients")
        codebook = nn.Parameter(self.codebook)
        del self.codebook  # the buffer of that name
        self.codebook = codebook
        return codebook

    def placed(self, vectors: Tensor) -> Tensor:
        """Return vectors (..., C) in float32 where codes lie: of length 1, or as they are."""
        return unit(vectors) if self.l2_normalised else vectors.float()

    @torch.no_grad()
    def nearest(self, vectors: Tensor) -> Tensor:
        """Return the code nearest to each vector (Eq. 1): (..., C) to (...) int64.

        Nearest in angle, or without ``l2_normalised`` in Euclidean distance. Looks up a chunk of
        rows at a time: memory does not grow with rows x K.
        """
        rows = vectors.reshape(-1, vectors.shape[-1]).float()
        nearest = nearest_rows(rows, self.codebook, self.l2_normalised)
        return nearest.reshape(vectors.shape[:-1])

    @torch.no_grad()
    def scores(self, vectors: Tensor) -> Tensor:
        """Rate every code for each vector: (..., C) to (..., K) float32, the nearest the highest.

        By cosine, or without ``l2_normalised`` by distance: see `closeness`.
        """
        with torch.autocast(vectors.device.type, enabled=False):
            return closeness(self.placed(vectors), self.codebook, self.l2_normalised)

    @torch.no_grad()
    def statistics(self, vectors: Tensor, codes: Tensor) -> Tensor:
        """Sum, for each code, the vectors that chose it (of length 1: `placed`), and count them.

        Args:
            vectors: (..., C)
            codes: (...) int64, from ``nearest``

        Returns: (K, C+1) float32, the sums and, last, the counts; add those of all processes.
        """
        rows = self.placed(vectors).flatten(0, -2)
        return grouped_sums(rows, codes.flatten(), len(self.codebook))

    @torch.no_grad()
    def update(self, statistics: Tensor) -> None:
        """Move each code towards the mean direction of the vectors that chose it.

        ``codebook <- unit(decay * codebook + (1 - decay) * unit(sum))``; codes that nothing chose
        stay. This is the published update: no smoothing, no weighting by counts. Without
        ``l2_normalised`` the same with means instead of unit vectors. A codebook that the optimiser
        has moved is only brought back to length 1; a grid stays.
        """
        counts = statistics[:, -1]
        if isinstance(self.codebook, nn.Parameter):
            self.codebook.copy_(self.placed(self.codebook))
        elif not self.fixed:
            centroids = self._centroids(statistics, self.codebook)
            moved = self.decay * self.codebook + (1 - self.decay) * centroids
            self.codebook.copy_(self.placed(moved))
        self.counts.mul_(self.decay).add_(counts, alpha=1 - self.decay)

    @torch.no_grad()
    def start(self, vectors: Tensor, generator: torch.Generator) -> None:
        """Set the codebook to the k-means of vectors (rows, C), gathered from all ranks.

        Spherical k-means, or without ``l2_normalised`` the ordinary one. Starts from a random
        choice of rows (with replacement when there are fewer than K), takes ten iterations; a mean
        that nothing is nearest to stays where it is.
        """
        if self.fixed:
            raise ValueError("codes on a fixed grid of levels do not start at data")
        rows = self.placed(vectors)
        means = rows[choose(len(rows), len(self.codebook), generator).to(rows.device)]
        for _ in range(KMEANS_ITERATIONS):
            nearest = nearest_rows(rows, means, self.l2_normalised)
            means = self._centroids(grouped_sums(rows, nearest, len(means)), means)
        self.codebook.copy_(means)
        self.initialised.fill_(True)

    @torch.no_grad()
    def revive(self, vectors: Tensor, dead: Tensor, generator: torch.Generator) -> Tensor:
        """Restart the dead codes (K,) bool at different, randomly chosen rows of vectors (rows, C).

        With fewer rows than dead codes only as many restart as there are rows.

        Returns: (restarted,) int64, the codes that did
        """
        if self.fixed:
            raise ValueError("codes on a fixed grid of levels are not revived")
        places = dead.nonzero().squeeze(1)[: len(vectors)]
        rows = choose(len(vectors), len(places), generator).to(vectors.device)
        self.codebook[places] = self.placed(vectors[rows])
        return places

    def _centroids(self, statistics: Tensor, empty: Tensor) -> Tensor:
        """Return the mean (K, C) of each code's vectors; where there are none, that of `empty`."""
        sums, counts = statistics[:, :-1], statistics[:, -1:]
        means = unit(sums) if self.l2_normalised else sums / counts.clamp(min=1)
        return torch.where(counts > 0, means, empty)


def choose(rows: int, wanted: int, generator: torch.Generator) -> Tensor:
    """Return (wanted,) int64 row numbers: distinct if there are enough, else with replacement."""
    if wanted <= rows:
        return torch.randperm(rows, generator=generator)[:wanted]
    return torch.randint(rows, (wanted,), generator=generator)


def closeness(rows: Tensor, means: Tensor, l2_normalised: bool = True) -> Tensor:
    """Rate the means (K, C) for each row (..., C), the nearest the highest: (..., K).

    In angle, for means of length 1: ``row . mean``. In distance: ``row . mean - |mean|^2 / 2``,
    which is half the negative squared distance but for the row's own length.
    """
    products = rows @ means.T
    return products if l2_normalised else products - means.square().sum(dim=1) / 2


def nearest_rows(rows: Tensor, means: Tensor, l2_normalised: bool = True) -> Tensor:
    """Return the mean (K, C) nearest to each row (n, C), by `closeness`: (n,) int64."""
    size = max(1, CHUNK_ELEMENTS // len(means))
    with torch.autocast(rows.device.type, enabled=False):
        if torch.compiler.is_exporting():  # in a graph a loop over chunks would fix the batch
            return closeness(rows, means, l2_normalised).argmax(dim=1)
        chunks = rows.split(size)
        return torch.cat([closeness(chunk, means, l2_normalised).argmax(dim=1) for chunk in chunks])


def grouped_sums(rows: Tensor, groups: Tensor, num_groups: int) -> Tensor:
    """Sum the rows (n, C) of each group, and count them: (num_groups, C+1) float32."""
    sums = rows.new_zeros(num_groups, rows.shape[1] + 1)
    sums[:, :-1].index_add_(0, groups, rows)
    sums[:, -1] = torch.bincount(groups, minlength=num_groups)
    return sums


# ── finite scalar quantization (Mentzer et al. 2024): the codebook is a grid in a box ───────────


def check_levels(
    levels: tuple[int, ...], num_codes: int, code_width: int, l2_normalised: bool
) -> None:
    """Raise ValueError unless there are no levels, or they agree with the rest of a codebook."""
    if not levels:
        return
    if min(levels) < 2:
        raise ValueError(f"levels are {levels}; expected 2 or more for each channel of a code")
    if (math.prod(levels), len(levels)) != (num_codes, code_width):
        raise ValueError(
            f"levels {levels} make {math.prod(levels)} codes of {len(levels)} channels, but "
            f"num_codes is {num_codes} and code_width {code_width}; give those numbers"
        )
    if l2_normalised:
        raise ValueError("a grid of levels does not lie on the sphere; set l2_normalised to false")


def scalar_codes(levels: tuple[int, ...]) -> Tensor:
    """Return every point of the grid with L levels a channel: (K, C) in [-1, 1].

    ``i / (L // 2)`` for whole numbers i, from -(L // 2); the last channel changes fastest.
    """
    channels = [(torch.arange(L) - L // 2) / (L // 2) for L in levels]
    return torch.cartesian_prod(*channels).reshape(-1, len(levels))


def bounded(vectors: Tensor, levels: tuple[int, ...]) -> Tensor:
    """Squash vectors (..., C) into the box of `scalar_codes`, channel by channel.

    Zero stays zero, and the box ends at its outer levels, whose cells are half as wide as others.
    """
    L = vectors.new_tensor(levels)
    half = (L - 1) * (1.001 / 2)  # as published; at 1 / 2 the shift of two levels is infinite
    offset = 0.5 * (L % 2 == 0)  # an even number has one level more below zero than above
    shift = (offset / half).atanh()
    return ((vectors + shift).tanh() * half - offset) / L.div(2, rounding_mode="floor")
