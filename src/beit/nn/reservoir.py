"""Reservoirs of a stream of images: the few closest patches of every code, or a random sample.

The entries are a pure function of the set of patches. They do not depend on batch size, order or
the number of processes whose reservoirs are merged.
"""

import torch
from torch import Tensor

STEP = 2**-16  # scores are stored and compared in multiples of it
EMPTY = torch.iinfo(torch.int64).max  # the place of an empty entry
_LOWEST = torch.iinfo(torch.int64).min
_KEY, _PLACE, _SCORE = range(3)
# SplitMix64's increment and factors, as signed numbers
_STEP, _FIRST, _SECOND = (
    word - 2**64 for word in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)


def in_steps(scores: Tensor) -> Tensor:
    """Round finite scores to multiples of `STEP`: int64 of the same shape.

    The last bits of a float differ between batch sizes and devices; after rounding they seldom
    decide which of two patches is closer.
    """
    if not bool(scores.isfinite().all()):
        raise ValueError("scores contain NaN or infinity; the tokenizer cannot rate its patches")
    return (scores.float() / STEP).round().long()


def random_keys(seed: int, places: Tensor) -> Tensor:
    """Return a random int64 number for every place int64, in the same shape.

    These are the outputs of SplitMix64 (Steele, Lea and Flood 2014) at `places`, from a start by
    the seed. The patches with the largest numbers are a uniform sample without replacement.
    """
    start = _mixed(torch.tensor([seed % 2**63])).to(places.device)
    return _mixed(places + start)


def _mixed(numbers: Tensor) -> Tensor:
    """Mix the bits of int64 numbers; their products wrap around like unsigned ones."""
    z = (numbers + 1) * _STEP
    z = (z ^ _shifted(z, 30)) * _FIRST
    z = (z ^ _shifted(z, 27)) * _SECOND
    return z ^ _shifted(z, 31)


def _shifted(z: Tensor, bits: int) -> Tensor:
    """Shift right logically: zeros enter from the left for any sign."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


class Reservoir:
    """The n patches of each code with the largest keys; the smaller place wins ties.

    A place is `image * N + position`, unique for each patch. Add each patch only once.

    Attributes:
        entries: (K, n, 3) int64, best first: key, place (`EMPTY` for an empty entry) and score in
            `STEP`s
    """

    def __init__(self, num_codes: int, size: int, device: torch.device | str | None = None) -> None:
        if num_codes < 1 or size < 1:
            raise ValueError(
                f"a reservoir needs 1 patch or more for 1 code or more, got {size} for {num_codes}"
            )
        empty = torch.tensor([_LOWEST, EMPTY, 0], device=device)
        self.entries = empty.expand(num_codes, size, 3).clone()

    @property
    def places(self) -> Tensor:
        """(K, n) int64, best first, `EMPTY` for empty entries."""
        return self.entries[..., _PLACE]

    @property
    def scores(self) -> Tensor:
        """(K, n) float32, in the order of `places`, 0 for empty entries."""
        return self.entries[..., _SCORE] * STEP

    def add(self, codes: Tensor, keys: Tensor, places: Tensor, scores: Tensor) -> None:
        """Add patches; all arguments are (m,) int64.

        Args:
            keys: larger is better; above the smallest int64
            places: distinct, below `EMPTY`
            scores: in `STEP`s
        """
        n = self.entries.shape[1]
        worst_keys, worst_places, _ = self.entries[codes, -1].unbind(dim=1)  # (m,) each
        better = (keys > worst_keys) | ((keys == worst_keys) & (places < worst_places))
        codes = codes[better]
        entries = torch.stack([keys, places, scores], dim=-1)[better]  # (m', 3)
        if not len(codes):
            return
        order = _order(entries)
        order = order[codes[order].argsort(stable=True)]
        codes, entries = codes[order], entries[order]
        rank = torch.arange(len(codes), device=codes.device) - torch.searchsorted(codes, codes)
        codes, entries, rank = codes[rank < n], entries[rank < n], rank[rank < n]
        touched, row = codes.unique_consecutive(return_inverse=True)
        new = Reservoir(len(touched), n, codes.device).entries
        new[row, rank] = entries
        self.entries[touched] = _best(self.entries[touched], new)

    def merge(self, entries: Tensor) -> None:
        """Add the entries (K, n, 3) of another reservoir, whose patches are different ones."""
        if entries.shape != self.entries.shape:
            raise ValueError(
                f"entries are {tuple(entries.shape)}, expected {tuple(self.entries.shape)}; merge "
                "reservoirs of the same codes and size"
            )
        self.entries = _best(self.entries, entries)


def _order(entries: Tensor) -> Tensor:
    """Return the indices that sort entries (..., m, 3) best first: (..., m)."""
    order = entries[..., _PLACE].argsort(stable=True)
    keys = entries[..., _KEY].gather(-1, order)
    return order.gather(-1, keys.argsort(dim=-1, descending=True, stable=True))


def _best(one: Tensor, other: Tensor) -> Tensor:
    """Return the better half of the entries of two reservoirs (k, n, 3)."""
    both = torch.cat([one, other], dim=1)  # (k, 2n, 3)
    return both.gather(1, _order(both)[:, : one.shape[1], None].expand(-1, -1, 3))
