import pytest
import torch
from torch import Tensor

from beit.nn.reservoir import EMPTY, STEP, Reservoir, in_steps, random_keys

K, N, SIZE = 5, 6, 3


def patches(num_images: int = 40) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, scores with many ties, and places, (B, N) each; code 4 once, none of code 3."""
    generator = torch.Generator().manual_seed(1)
    codes = torch.randint(0, 3, (num_images, N), generator=generator)
    codes[7, 2] = 4
    scores = torch.randint(-4, 4, (num_images, N), generator=generator) / 8
    return codes, in_steps(scores), torch.arange(num_images * N).view(num_images, N)


def filled(rows: Tensor, batch_size: int, seed: int | None = None) -> Reservoir:
    """A reservoir of some images, in the order of `rows`, by score or by random numbers."""
    codes, scores, places = (part[rows] for part in patches())
    keys = scores if seed is None else random_keys(seed, places)
    reservoir = Reservoir(K, SIZE)
    for some in torch.arange(len(rows)).split(batch_size):
        reservoir.add(*(part[some].flatten() for part in (codes, keys, places, scores)))
    return reservoir


ALL = torch.arange(40)


def test_holds_the_closest_patches_and_of_equals_the_first() -> None:
    reservoir = filled(ALL, 7)
    codes, scores, places = (part.flatten().tolist() for part in patches())
    for code in range(K):
        mine = [(-s, p) for c, s, p in zip(codes, scores, places, strict=True) if c == code]
        best = sorted(mine)[:SIZE]
        held = [p for p in reservoir.places[code].tolist() if p != EMPTY]
        assert held == [place for _, place in best]
        rated = reservoir.scores[code, : len(held)].tolist()
        assert rated == [-score * STEP for score, _ in best]
    assert (reservoir.places[3] == EMPTY).all()
    assert reservoir.places[4].tolist() == [7 * N + 2, EMPTY, EMPTY]


@pytest.mark.parametrize("seed", [None, 3])
def test_neither_order_nor_batches_nor_processes_change_an_entry(seed: int | None) -> None:
    whole = filled(ALL, 40, seed).entries
    mixed = torch.randperm(40, generator=torch.Generator().manual_seed(2))
    assert filled(mixed, 7, seed).entries.equal(whole)
    one, other = filled(mixed[:13], 5, seed), filled(mixed[13:], 40, seed)
    one.merge(other.entries)
    assert one.entries.equal(whole)


def test_random_patches_are_of_the_seed_and_uniform() -> None:
    assert not filled(ALL, 7, 3).entries.equal(filled(ALL, 7, 4).entries)
    places = torch.arange(1000)
    counts = torch.zeros(1000)
    for seed in range(400):  # each place is drawn with chance 1/10: 40 times, standard deviation 6
        reservoir = Reservoir(1, 100)
        keys = random_keys(seed, places)
        reservoir.add(torch.zeros_like(places), keys, places, torch.zeros_like(places))
        counts[reservoir.places[0]] += 1
    assert counts.mean() == 40
    assert counts.var().item() == pytest.approx(36, rel=0.2)  # of 1000 draws: within 4.5%
    assert abs(torch.corrcoef(torch.stack([counts, places.float()]))[0, 1]) < 0.13  # 4 / sqrt(n)


def test_random_numbers_are_splitmix64() -> None:
    """In whole numbers without sign; from the state 0 the published generator gives the first."""

    def splitmix(state: int) -> int:
        z = (state + 1) * 0x9E3779B97F4A7C15 % 2**64
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        return z ^ (z >> 31)

    assert splitmix(0) == 0xE220A8397B1DCDAF
    found = random_keys(5, torch.tensor([0, 6, 10**12]))
    assert [key % 2**64 for key in found.tolist()] == [
        splitmix((place + splitmix(5)) % 2**64) for place in (0, 6, 10**12)
    ]


def test_refuses_what_it_cannot_hold() -> None:
    with pytest.raises(ValueError, match="got 0 for 5"):
        Reservoir(5, 0)
    with pytest.raises(ValueError, match=r"\(5, 2, 3\), expected \(5, 3, 3\)"):
        Reservoir(5, 3).merge(Reservoir(5, 2).entries)
    with pytest.raises(ValueError, match="NaN or infinity"):
        in_steps(torch.tensor([0.5, float("nan")]))
