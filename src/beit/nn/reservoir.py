"""The best few patches of every code, kept while images stream by: the closest, or a random sample.

What is kept is a pure function of the set of patches seen. Batches of any size in any order, and
reservoirs of several processes merged, end at the same entries.
"""

import torch
from torch import Tensor

STEP = 2**-16  # scores are kept and compared in multiples of it
EMPTY = torch.iinfo(torch.int64).max  # the place of an entry that holds no patch
_LOWEST = torch.iinfo(torch.int64).min
_KEY, _PLACE, _SCORE = range(3)
_WORD = 2**64


def in_steps(scores: Tensor) -> Tensor:
    """Round scores to multiples of `STEP`: int64 of the same shape.

    So that the last bits of a float, which differ between batch sizes and devices, seldom decide
    which of two patches is closer.

    Raises:
        ValueError: a score is not finite.
    """
    if not bool(scores.isfinite().all()):
        raise ValueError("scores hold NaN or infinity; the tokenizer does not rate its patches")
    return (scores.float() / STEP).round().long()


def random_keys(seed: int, places: Tensor) -> Tensor:
    """Give every place, int64, a random number of its own, int64 of the same shape.

    SplitMix64 (Steele, Lea and Flood 2014) at `places`, from a start that the seed gives. The
    patches with the largest numbers are a uniform sample without replacement.
    """
    start = _mixed(torch.tensor([seed % 2**63])).to(places.device)
    return _mixed(places + start)


def _mixed(numbers: Tensor) -> Tensor:
    """Scatter the bits of int64 numbers, whose products wrap around as unsigned ones do."""
    z = (numbers + 1) * _signed(0x9E3779B97F4A7C15)
    z = (z ^ _shifted(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _shifted(z, 27)) * _signed(0x94D049BB133111EB)
    return z ^ _shifted(z, 31)


def _signed(word: int) -> int:
    return word - _WORD if word >= _WORD // 2 else word


def _shifted(z: Tensor, bits: int) -> Tensor:
    """Shift right, with zeros from the left whatever the sign."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


class Reservoir:
    """The n patches of each code with the largest keys; of equal keys the smaller place first.

    A place is `image * N + position`, so that no two patches share one. Each patch may be added
    once.

    Attributes:
        entries: (K, n, 3) int64, best first: key, place (`EMPTY` where there is no patch) and score
            in `STEP`s
    """

    def __init__(self, num_codes: int, size: int, device: torch.device | str | None = None) -> None:
        if num_codes < 1 or size < 1:
            raise ValueError(
                f"a reservoir holds 1 patch or more for 1 code or more, got {size} for {num_codes}"
            )
        empty = torch.tensor([_LOWEST, EMPTY, 0], device=device)
        self.entries = empty.expand(num_codes, size, 3).clone()

    @property
    def places(self) -> Tensor:
        """(K, n) int64, the best first, `EMPTY` where there is no patch."""
        return self.entries[..., _PLACE]

    @property
    def scores(self) -> Tensor:
        """(K, n) float32, in the order of `places`, 0 where there is no patch."""
        return self.entries[..., _SCORE] * STEP

    def add(self, codes: Tensor, keys: Tensor, places: Tensor, scores: Tensor) -> None:
        """Take in patches, each of the same length (m,) int64.

        Args:
            codes: in [0, K)
            keys: the larger, the better; above the smallest int64
            places: distinct, below `EMPTY`
            scores: in `STEP`s
        """
        n = self.entries.shape[1]
        worst = self.entries[codes, -1]  # (m, 3)
        worst_key, worst_place = worst[:, _KEY], worst[:, _PLACE]
        better = (keys > worst_key) | ((keys == worst_key) & (places < worst_place))
        codes = codes[better]
        found = torch.stack([keys, places, scores], dim=-1)[better]  # (m', 3)
        if not len(codes):
            return
        order = _order(found)
        order = order[codes[order].argsort(stable=True)]
        codes, found = codes[order], found[order]
        rank = torch.arange(len(codes), device=codes.device) - torch.searchsorted(codes, codes)
        codes, found, rank = codes[rank < n], found[rank < n], rank[rank < n]
        touched, row = codes.unique_consecutive(return_inverse=True)
        news = Reservoir(len(touched), n, codes.device).entries
        news[row, rank] = found
        self.entries[touched] = _best(self.entries[touched], news)

    def merge(self, entries: Tensor) -> None:
        """Take in the entries (K, n, 3) of another reservoir, which has seen other patches."""
        if entries.shape != self.entries.shape:
            raise ValueError(
                f"entries are {tuple(entries.shape)}, expected {tuple(self.entries.shape)}; merge "
                "reservoirs of the same codes and size"
            )
        self.entries = _best(self.entries, entries)


def _order(entries: Tensor) -> Tensor:
    """Sort entries (..., m, 3), the best first: their numbers (..., m)."""
    order = entries[..., _PLACE].argsort(stable=True)
    keys = entries[..., _KEY].gather(-1, order)
    return order.gather(-1, keys.argsort(dim=-1, descending=True, stable=True))


def _best(one: Tensor, other: Tensor) -> Tensor:
    """Keep the better half of two reservoirs' entries (k, n, 3)."""
    both = torch.cat([one, other], dim=1)  # (k, 2n, 3)
    best = _order(both)[:, : one.shape[1], None]
    return both.gather(1, best.expand(-1, -1, 3))
