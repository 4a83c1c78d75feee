"""Images laid out in two dimensions, near ones together, and grouped into clusters."""

import math

import torch
from torch import Tensor

from beit.nn.quantizer import Quantizer

NEIGHBOURS = 15  # nearest images that attract each image
STEPS, EARLY = 400, 100  # of the layout, and the first of them, with exaggerated attraction
EXAGGERATION = 12.0
_ROWS = 128  # of distances computed at once, few enough for the CPU cache
_STARTS = 4  # of k-means, of which the best is kept
_SHUFFLES = 20  # of labels, to measure chance


def layout(vectors: Tensor, rows: Tensor, cosines: Tensor) -> Tensor:
    """Lay out vectors (n, D) of length 1: (n, 2) float32, the longer side 1, centred on 0.

    A t-SNE (van der Maaten and Hinton 2008): the pull comes from the nearest neighbours only, each
    image's with the weights of one perplexity, and the push from all images. It starts at the
    principal components and draws no random numbers.

    Args:
        rows: (n, k) int64, nearest neighbours of each, without itself
        cosines: (n, k) with them
    """
    places = principal_plane(vectors)
    n, k = rows.shape
    if n < 5:
        return _fitted(places)
    k = min(k, NEIGHBOURS)
    weights = _weights(2 - 2 * cosines[:, :k], math.log(max(2.0, k / 2)))  # (n, k), rows sum to 1
    first = torch.arange(n).repeat_interleave(k)
    second, pull = rows[:, :k].flatten(), weights.flatten() / (2 * n)
    first, second = torch.cat([first, second]), torch.cat([second, first])
    pull = torch.cat([pull, pull])  # symmetric, sums to 1
    places = places / places[:, 0].std().clamp(min=1e-12) * 1e-4
    rate, speed, gain = max(50.0, n / EXAGGERATION), torch.zeros(n, 2), torch.ones(n, 2)
    for step in range(STEPS):
        strength = EXAGGERATION if step < EARLY else 1.0
        apart = places[first] - places[second]  # (edges, 2)
        force = pull * strength / (1 + apart.square().sum(dim=1))
        gradient = torch.zeros(n, 2).index_add_(0, first, force[:, None] * apart) - _push(places)
        same = (gradient > 0) == (speed > 0)
        gain = torch.where(same, gain * 0.8, gain + 0.2).clamp(min=0.01)
        speed = (0.5 if step < EARLY else 0.8) * speed - 4 * rate * gain * gradient
        places = places + speed
    return _fitted(without_outliers(places))


def _push(places: Tensor) -> Tensor:
    """Return the normalised push of all images on each: (n, 2)."""
    total, push = torch.zeros(()), torch.empty_like(places)
    squares = places.square().sum(dim=1)
    for start in range(0, len(places), _ROWS):
        part = places[start : start + _ROWS]
        distance = part @ places.T
        distance.mul_(-2).add_(squares).add_(squares[start : start + _ROWS, None]).clamp_(min=0)
        near = distance.add_(1).reciprocal_()  # (b, n)
        total = total + near.sum()
        near.square_()
        push[start : start + _ROWS] = near.sum(dim=1, keepdim=True) * part - near @ places
    return push / (total - len(places))


def _weights(distances: Tensor, entropy: float) -> Tensor:
    """Weigh neighbours by exp(-distance / scale), each row's scale found for this entropy."""
    low, high = torch.full((len(distances), 1), -20.0), torch.full((len(distances), 1), 20.0)
    relative = distances - distances[:, :1]
    for _ in range(40):  # log of the scale, by bisection
        middle = (low + high) / 2
        logs = torch.log_softmax(-relative / middle.exp(), dim=1)
        flat = -(logs.exp() * logs).sum(dim=1, keepdim=True) > entropy
        low, high = torch.where(flat, low, middle), torch.where(flat, middle, high)
    weights: Tensor = torch.softmax(-relative / high.exp(), dim=1)
    return weights


def principal_plane(vectors: Tensor) -> Tensor:
    """Project vectors (n, D) on their first two principal components: (n, 2) float32."""
    rows = vectors.double() - vectors.double().mean(dim=0)
    _, axes = torch.linalg.eigh(rows.T @ rows)
    axes = axes[:, -2:].flip(1)
    largest = axes.gather(0, axes.abs().argmax(dim=0, keepdim=True))
    plane: Tensor = rows @ (axes * largest.sign())
    return plane.float()


def without_outliers(places: Tensor) -> Tensor:
    """Move places (n, 2) that are far outside the middle 90% of an axis to half its width away.

    Otherwise the other images would share a small part of a map.
    """
    low, high = places.quantile(torch.tensor([0.05, 0.95]), dim=0)
    reach = (high - low) / 2
    return places.clamp(low - reach, high + reach)


def _fitted(places: Tensor) -> Tensor:
    low, high = places.amin(dim=0), places.amax(dim=0)
    return (places - (low + high) / 2) / (high - low).max().clamp(min=1e-12)


def num_clusters(count: int) -> int:
    """Choose a number of clusters for a number of images."""
    return max(1, min(40, round(math.sqrt(count / 5))))


def clusters(vectors: Tensor, count: int, seed: int) -> Tensor:
    """Group vectors (n, D) of length 1 by spherical k-means, the best of a few starts.

    Returns: (n,) int64, numbered by size, the largest first; empty clusters have no number
    """
    if count < 2:
        return torch.zeros(len(vectors), dtype=torch.int64)
    generator, best = torch.Generator().manual_seed(seed), -math.inf
    found = torch.zeros(0, dtype=torch.int64)
    for _ in range(_STARTS):
        means = Quantizer(count, vectors.shape[1])
        means.start(vectors, generator)
        groups = means.nearest(vectors)
        closeness = float((vectors * means.codebook[groups]).sum())
        if closeness > best:
            best, found = closeness, groups
    sizes = found.bincount(minlength=count)
    order = sizes.argsort(descending=True, stable=True)
    return order.argsort()[found]


def purity(groups: Tensor, labels: Tensor, seed: int) -> tuple[float, float]:
    """Return the share of labelled images (n,) with their group's most frequent label, and chance.

    Chance is the mean with shuffled labels: small groups are pure by chance.
    """
    known = labels >= 0
    groups, labels = groups[known], labels[known]

    def share(labels: Tensor) -> float:
        table = torch.zeros(int(groups.max()) + 1, int(labels.max()) + 1)
        table.index_put_((groups, labels), torch.ones(len(labels)), accumulate=True)
        return float(table.amax(dim=1).sum()) / len(labels)

    generator = torch.Generator().manual_seed(seed)
    shuffled = [labels[torch.randperm(len(labels), generator=generator)] for _ in range(_SHUFFLES)]
    return share(labels), sum(map(share, shuffled)) / _SHUFFLES
