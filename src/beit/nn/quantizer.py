"""The codebook on the sphere: nearest code, spherical EMA, k-means start, revival of dead codes.

BEiT v2, section 2.2. What depends on other processes is split in two, so that nothing here calls a
collective: ``statistics`` of this process's vectors, and ``update`` from the statistics summed over
all of them. Everything is float32 whatever the autocast: bfloat16 distances collapse a codebook.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CHUNK_ELEMENTS = 2**23  # similarities held at once by a lookup: 32 MiB
KMEANS_ITERATIONS = 10  # as published


def unit(vectors: Tensor) -> Tensor:
    """Return vectors (..., C) scaled to length 1, in float32."""
    return F.normalize(vectors.float(), dim=-1)


class Quantizer(nn.Module):
    """K unit vectors of C channels, learned by exponential moving averages, not by gradients.

    Buffers:
        codebook: (K, C) unit rows
        counts: (K,) moving average of how many vectors of a step chose each code
        initialised: () bool, False until the codebook has seen data or weights
    """

    codebook: Tensor
    counts: Tensor
    initialised: Tensor

    def __init__(self, num_codes: int, code_width: int, decay: float = 0.99) -> None:
        super().__init__()
        if num_codes < 2 or code_width < 1:
            raise ValueError(
                f"a codebook needs 2 codes of 1 channel or more, got {num_codes} of {code_width}"
            )
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {decay}")
        self.decay = decay
        self.register_buffer("codebook", unit(torch.randn(num_codes, code_width)))
        self.register_buffer("counts", torch.zeros(num_codes))
        self.register_buffer("initialised", torch.tensor(False))

    @torch.no_grad()
    def nearest(self, vectors: Tensor) -> Tensor:
        """Return the code nearest in angle to each vector (Eq. 1): (..., C) to (...) int64.

        Looks up a chunk of rows at a time: memory does not grow with rows x K.
        """
        rows = vectors.reshape(-1, vectors.shape[-1]).float()
        return nearest_rows(rows, self.codebook).reshape(vectors.shape[:-1])

    @torch.no_grad()
    def statistics(self, vectors: Tensor, codes: Tensor) -> Tensor:
        """Sum, for each code, the unit vectors that chose it, and count them.

        Args:
            vectors: (..., C)
            codes: (...) int64, from ``nearest``

        Returns: (K, C+1) float32, the sums and, last, the counts; add those of all processes.
        """
        return grouped_sums(unit(vectors).flatten(0, -2), codes.flatten(), len(self.codebook))

    @torch.no_grad()
    def update(self, statistics: Tensor) -> None:
        """Move each code towards the mean direction of the vectors that chose it.

        ``codebook <- unit(decay * codebook + (1 - decay) * unit(sum))``; codes that nothing chose
        stay. This is the published update: no smoothing, no weighting by counts.
        """
        sums, counts = statistics[:, :-1], statistics[:, -1]
        centroids = torch.where(counts[:, None] > 0, unit(sums), self.codebook)
        self.codebook.copy_(unit(self.decay * self.codebook + (1 - self.decay) * centroids))
        self.counts.mul_(self.decay).add_(counts, alpha=1 - self.decay)

    @torch.no_grad()
    def start(self, vectors: Tensor, generator: torch.Generator) -> None:
        """Set the codebook to the spherical k-means of vectors (rows, C), gathered from all ranks.

        Starts from a random choice of rows (with replacement when there are fewer than K), takes
        ten iterations; a mean that nothing is nearest to stays where it is.
        """
        rows = unit(vectors)
        means = rows[choose(len(rows), len(self.codebook), generator).to(rows.device)]
        for _ in range(KMEANS_ITERATIONS):
            sums = grouped_sums(rows, nearest_rows(rows, means), len(means))
            means = torch.where(sums[:, -1:] > 0, unit(sums[:, :-1]), means)
        self.codebook.copy_(means)
        self.initialised.fill_(True)

    @torch.no_grad()
    def revive(self, vectors: Tensor, dead: Tensor, generator: torch.Generator) -> None:
        """Restart the dead codes (K,) bool at different, randomly chosen rows of vectors (rows, C).

        With fewer rows than dead codes only as many restart as there are rows.
        """
        places = dead.nonzero().squeeze(1)[: len(vectors)]
        rows = choose(len(vectors), len(places), generator).to(vectors.device)
        self.codebook[places] = unit(vectors[rows])


def choose(rows: int, wanted: int, generator: torch.Generator) -> Tensor:
    """Return (wanted,) int64 row numbers: distinct if there are enough, else with replacement."""
    if wanted <= rows:
        return torch.randperm(rows, generator=generator)[:wanted]
    return torch.randint(rows, (wanted,), generator=generator)


def nearest_rows(rows: Tensor, means: Tensor) -> Tensor:
    """Return the mean (K, C), of unit length, nearest in angle to each row (n, C): (n,) int64."""
    size = max(1, CHUNK_ELEMENTS // len(means))
    with torch.autocast(rows.device.type, enabled=False):
        if torch.compiler.is_exporting():  # in a graph a loop over chunks would fix the batch
            return (rows @ means.T).argmax(dim=1)
        return torch.cat([(chunk @ means.T).argmax(dim=1) for chunk in rows.split(size)])


def grouped_sums(rows: Tensor, groups: Tensor, num_groups: int) -> Tensor:
    """Sum the rows (n, C) of each group, and count them: (num_groups, C+1) float32."""
    sums = rows.new_zeros(num_groups, rows.shape[1] + 1)
    sums[:, :-1].index_add_(0, groups, rows)
    sums[:, -1] = torch.bincount(groups, minlength=num_groups)
    return sums
