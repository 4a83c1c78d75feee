import math
from itertools import product

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from beit.nn import quantizer as quantizer_module
from beit.nn.quantizer import (
    GROUP,
    KMEANS_ITERATIONS,
    Quantizer,
    bounded,
    first_largest,
    grouped_sums,
    nearest_rows,
    random_rows,
    scalar_codes,
    unit,
)

K, C = 7, 3


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some_vectors(seed: int = 0, count: int = 15) -> Tensor:
    return 2 * torch.randn(2, count, C, generator=seeded(seed))


def naive_nearest(vector: Tensor, means: Tensor) -> int:
    cosines = [float(vector @ mean / (vector.norm() * mean.norm())) for mean in means]
    return cosines.index(max(cosines))


def snapshot(quantizer: Quantizer) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in quantizer.state_dict().items()}


def assert_same_state(quantizer: Quantizer, before: dict[str, Tensor]) -> None:
    for name, tensor in quantizer.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_unit_vectors_have_length_one_in_float32() -> None:
    vectors = torch.tensor([[3.0, 4.0], [0.0, 0.0]], dtype=torch.bfloat16)
    assert unit(vectors).dtype == torch.float32
    torch.testing.assert_close(unit(vectors), torch.tensor([[0.6, 0.8], [0.0, 0.0]]))


def test_nearest_is_the_largest_cosine() -> None:
    quantizer, vectors = Quantizer(K, C), some_vectors()
    codes = quantizer.nearest(vectors)
    assert codes.shape == (2, 15) and codes.dtype == torch.int64
    expected = [[naive_nearest(v, quantizer.codebook) for v in image] for image in vectors]
    assert codes.tolist() == expected
    assert torch.equal(quantizer.nearest(vectors * 5), codes)  # the angle counts, not the length


def test_lookup_in_chunks_equals_lookup_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, means = torch.randn(20, C, generator=seeded()), unit(torch.randn(K, C))
    at_once = nearest_rows(rows, means)
    for elements in (3 * K, 1):  # chunks of 3 rows, the last of 2; at least a row at a time
        monkeypatch.setattr(quantizer_module, "CACHED_ELEMENTS", elements)
        assert torch.equal(nearest_rows(rows, means), at_once)


@pytest.mark.parametrize("levels", [2**24, 3])  # 3: nearly all scores are ties
def test_the_first_of_the_largest_scores(levels: int) -> None:
    scores = torch.randint(levels, (50, 3 * GROUP), generator=seeded()).float()
    first = [row.index(max(row)) for row in scores.tolist()]
    assert first_largest(scores).tolist() == first
    assert first_largest(scores[:, 1:]).tolist() == [
        row.index(max(row)) for row in scores[:, 1:].tolist()
    ]
    assert first_largest(scores[:0]).shape == (0,)


def close_quarters() -> tuple[Quantizer, Tensor]:
    """Codes so near each other that bfloat16 cannot tell which is nearest."""
    quantizer = Quantizer(32, C)
    spread = torch.tensor([1.0, 0.0, 0.0]) + 0.01 * torch.randn(32, C, generator=seeded())
    quantizer.codebook.copy_(unit(spread))
    vectors = torch.tensor([1.0, 0.0, 0.0]) + 0.01 * torch.randn(40, C, generator=seeded(1))
    return quantizer, unit(vectors)


def test_distances_and_statistics_are_float32_under_autocast() -> None:
    quantizer, vectors = close_quarters()
    codes = quantizer.nearest(vectors)
    statistics = quantizer.statistics(vectors, codes)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        coarse = (vectors @ quantizer.codebook.T).argmax(dim=1)
        under_autocast = quantizer.nearest(vectors)
        assert torch.equal(quantizer.statistics(vectors, codes), statistics)
    assert not torch.equal(coarse, codes)  # what is avoided here does happen elsewhere
    assert torch.equal(under_autocast, codes)


def test_k_means_is_float32_under_autocast() -> None:
    vectors = close_quarters()[1]
    plain, under_autocast = Quantizer(5, C), Quantizer(5, C)
    plain.start(vectors, seeded())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast.start(vectors, seeded())
    assert torch.equal(plain.codebook, under_autocast.codebook)


def test_statistics_sum_and_count_unit_vectors() -> None:
    quantizer, vectors = Quantizer(K, C), some_vectors()
    codes = torch.randint(K - 1, (2, 15), generator=seeded())  # nothing chooses the last code
    expected = torch.zeros(K, C + 1)
    for image, image_codes in zip(vectors, codes, strict=True):
        for vector, code in zip(image, image_codes, strict=True):
            expected[code, :C] += vector / vector.norm()
            expected[code, C] += 1
    statistics = quantizer.statistics(vectors, codes)
    torch.testing.assert_close(statistics, expected)
    assert not statistics[-1].any()


def test_grouped_sums_by_hand() -> None:
    rows = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    sums = grouped_sums(rows, torch.tensor([2, 0, 2]), 4)
    assert sums.tolist() == [[3, 4, 1], [0, 0, 0], [6, 8, 2], [0, 0, 0]]


def test_update_by_hand() -> None:
    quantizer = Quantizer(3, 2, decay=0.75)
    quantizer.codebook.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]))
    quantizer.counts.fill_(8.0)
    # Code 0 was chosen by (.6, .8) and (-.6, .8), code 1 by nothing, code 2 by two that cancel.
    quantizer.update(torch.tensor([[0.0, 1.6, 2.0], [0.0, 0.0, 0.0], [0.0, 0.0, 2.0]]))
    length = math.hypot(0.75, 0.25)
    moved = torch.tensor([[0.75 / length, 0.25 / length], [0.0, 1.0], [-1.0, 0.0]])
    torch.testing.assert_close(quantizer.codebook, moved)
    torch.testing.assert_close(quantizer.counts, torch.tensor([6.5, 6.0, 6.5]))


def test_codes_that_nothing_chose_stay_even_without_memory() -> None:
    quantizer = Quantizer(K, C, decay=0.0)
    before = snapshot(quantizer)
    vectors = some_vectors()
    chosen = torch.zeros(2, 15, dtype=torch.int64)
    quantizer.update(quantizer.statistics(vectors, chosen))
    torch.testing.assert_close(quantizer.codebook[1:], before["codebook"][1:])
    mean = unit(unit(vectors).flatten(0, 1).sum(dim=0))
    torch.testing.assert_close(quantizer.codebook[0], mean)


def test_two_half_batches_update_the_codebook_as_one_whole_batch() -> None:
    whole, halves, one_after_another = (Quantizer(K, C, decay=0.5) for _ in range(3))
    halves.load_state_dict(whole.state_dict())
    one_after_another.load_state_dict(whole.state_dict())
    vectors = some_vectors(count=40)
    codes = whole.nearest(vectors)
    parts = [whole.statistics(v, c) for v, c in zip(vectors, codes, strict=True)]
    whole.update(whole.statistics(vectors, codes))
    halves.update(parts[0] + parts[1])
    for part in parts:
        one_after_another.update(part)
    torch.testing.assert_close(halves.codebook, whole.codebook)
    torch.testing.assert_close(halves.counts, whole.counts)
    assert not torch.allclose(one_after_another.codebook, whole.codebook, atol=1e-2)


def test_update_keeps_unit_length_and_does_not_weigh_by_counts() -> None:
    once, often = Quantizer(K, C), Quantizer(K, C)
    often.load_state_dict(once.state_dict())
    vectors = some_vectors()
    statistics = once.statistics(vectors, once.nearest(vectors))
    for _ in range(5):
        once.update(statistics)
        often.update(9 * statistics)
    torch.testing.assert_close(once.codebook, often.codebook)
    torch.testing.assert_close(once.codebook.norm(dim=1), torch.ones(K))


def naive_k_means(rows: Tensor, num_codes: int, generator: torch.Generator) -> Tensor:
    rows = rows / rows.norm(dim=1, keepdim=True)
    means = rows[random_rows(len(rows), num_codes, generator)].clone()
    for _ in range(KMEANS_ITERATIONS):
        nearest = [naive_nearest(row, means) for row in rows]
        for code in range(num_codes):
            members = [row for row, choice in zip(rows, nearest, strict=True) if choice == code]
            if members:
                total = torch.stack(members).sum(dim=0)
                means[code] = total / total.norm()
    return means


def test_start_equals_naive_k_means() -> None:
    quantizer, rows = Quantizer(K, C), some_vectors(count=30).flatten(0, 1)
    assert not quantizer.initialised
    quantizer.start(rows, seeded(1))
    assert quantizer.initialised
    torch.testing.assert_close(quantizer.codebook, naive_k_means(rows, K, seeded(1)))


def test_start_depends_on_the_generator_alone() -> None:
    first, same, other = (Quantizer(K, C) for _ in range(3))
    rows = some_vectors(count=30).flatten(0, 1)
    first.start(rows, seeded(1))
    torch.rand(3)  # the global generator does not matter
    same.start(rows, seeded(1))
    other.start(rows, seeded(2))
    assert torch.equal(first.codebook, same.codebook)
    assert not torch.allclose(first.codebook, other.codebook)


def test_empty_clusters_keep_their_mean() -> None:
    quantizer = Quantizer(3, 2)
    # All three means start at the same row: the first takes every vector, two stay empty.
    rows = torch.tensor([[5.0, 0.0]] * 6)
    quantizer.start(rows, seeded())
    torch.testing.assert_close(quantizer.codebook, torch.tensor([[1.0, 0.0]] * 3))


def test_start_works_with_fewer_vectors_than_codes() -> None:
    quantizer = Quantizer(30, C)
    rows = some_vectors(count=2).flatten(0, 1)  # 4 vectors
    quantizer.start(rows, seeded())
    # Drawn 30 times, each of 4 vectors has been drawn: then every code is one of them.
    cosines = quantizer.codebook @ unit(rows).T  # (30, 4)
    torch.testing.assert_close(cosines.amax(dim=1), torch.ones(30))
    assert cosines.argmax(dim=1).unique().tolist() == [0, 1, 2, 3]


def test_revive_touches_only_dead_codes() -> None:
    quantizer, rows = Quantizer(K, C), some_vectors().flatten(0, 1)
    before = snapshot(quantizer)
    dead = torch.tensor([False, True, True, False, False, True, False])
    quantizer.revive(rows, dead, seeded())
    assert torch.equal(quantizer.codebook[~dead], before["codebook"][~dead])
    cosines = quantizer.codebook[dead] @ unit(rows).T  # (3, rows)
    torch.testing.assert_close(cosines.amax(dim=1), torch.ones(3))
    assert len(cosines.argmax(dim=1).unique()) == 3  # each at a row of its own
    assert torch.equal(quantizer.counts, before["counts"])


def test_revive_with_fewer_rows_than_dead_codes_restarts_as_many_as_there_are_rows() -> None:
    quantizer = Quantizer(K, C)
    before = snapshot(quantizer)
    quantizer.revive(some_vectors(count=1).flatten(0, 1), torch.ones(K, dtype=torch.bool), seeded())
    changed = (quantizer.codebook != before["codebook"]).any(dim=1)
    assert changed.tolist() == [True] * 2 + [False] * (K - 2)


def test_revive_without_dead_codes_changes_nothing() -> None:
    quantizer = Quantizer(K, C)
    before = snapshot(quantizer)
    quantizer.revive(some_vectors()[0], torch.zeros(K, dtype=torch.bool), seeded())
    assert_same_state(quantizer, before)


def test_looking_up_and_counting_change_no_state() -> None:
    quantizer = Quantizer(K, C).train()
    before = snapshot(quantizer)
    vectors = some_vectors().requires_grad_()
    statistics = quantizer.statistics(vectors, quantizer.nearest(vectors))
    assert_same_state(quantizer, before)
    assert not statistics.requires_grad
    assert sorted(before) == ["codebook", "counts", "initialised"]
    assert not list(quantizer.parameters())  # nothing for an optimiser to move


def test_an_exported_lookup_takes_any_number_of_vectors() -> None:
    class Lookup(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.quantizer = Quantizer(K, C)

        def forward(self, vectors: Tensor) -> Tensor:
            return self.quantizer.nearest(vectors)

    lookup = Lookup()
    vectors = torch.randn(6, 5, C, generator=seeded(2))
    sizes = ({0: torch.export.Dim("batch", min=1)},)
    exported = torch.export.export(lookup, (vectors[:2],), dynamic_shapes=sizes).module()
    for batch in (1, 6):
        assert torch.equal(exported(vectors[:batch]), lookup(vectors[:batch]))


def test_choose_is_distinct_while_it_can_be() -> None:
    assert random_rows(6, 6, seeded()).sort().values.tolist() == list(range(6))
    assert len(random_rows(6, 4, seeded()).unique()) == 4
    drawn = random_rows(6, 200, seeded())
    assert len(drawn) == 200 and drawn.unique().tolist() == list(range(6))
    assert torch.equal(random_rows(6, 200, seeded()), drawn)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1, 3), "needs 2 codes of 1 channel or more, got 1 of 3"),
        ((7, 0), "needs 2 codes of 1 channel or more, got 7 of 0"),
        ((7, 3, 1.0), r"decay must be in \[0, 1\), got 1.0"),
    ],
)
def test_a_codebook_that_cannot_learn_is_refused(arguments: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Quantizer(*arguments)
    assert Quantizer(2, 1).codebook.shape == (2, 1)  # the smallest


def test_a_fresh_codebook_lies_on_the_sphere() -> None:
    codebook = Quantizer(50, C).codebook
    torch.testing.assert_close(codebook, F.normalize(codebook))
    assert codebook.mean(dim=0).norm() < 0.5  # on all sides of it


# ── codes anywhere: no l2 ───────────────────────────────────────────────────────────────────────


def euclidean(num_codes: int = K, decay: float = 0.75) -> Quantizer:
    quantizer = Quantizer(num_codes, C, decay, l2_normalised=False)
    quantizer.codebook.copy_(2 * torch.randn(num_codes, C, generator=seeded(9)))
    return quantizer


def closest(vector: Tensor, means: Tensor) -> int:
    distances = [float(((vector - mean) ** 2).sum()) for mean in means]
    return distances.index(min(distances))


def test_without_l2_nearest_is_the_smallest_distance(monkeypatch: pytest.MonkeyPatch) -> None:
    quantizer, vectors = euclidean(), some_vectors()
    codes = quantizer.nearest(vectors)
    assert codes.tolist() == [[closest(v, quantizer.codebook) for v in image] for image in vectors]
    assert not torch.equal(codes, quantizer.nearest(0.01 * vectors))  # lengths count
    assert torch.equal(quantizer.scores(vectors).argmax(dim=-1), codes)
    monkeypatch.setattr(quantizer_module, "CACHED_ELEMENTS", 4 * K)
    assert torch.equal(quantizer.nearest(vectors), codes)


def test_scores_tell_cosines_and_distances() -> None:
    sphere, space, vectors = Quantizer(K, C), euclidean(), some_vectors()
    cosines = [[v @ c / v.norm() for c in sphere.codebook] for v in vectors[0]]
    torch.testing.assert_close(sphere.scores(vectors)[0], torch.tensor(cosines))
    distances = torch.tensor([[(v - c).square().sum() for c in space.codebook] for v in vectors[0]])
    actual = vectors[0].square().sum(dim=1, keepdim=True) - 2 * space.scores(vectors)[0]
    torch.testing.assert_close(actual, distances, rtol=1e-4, atol=1e-4)


def test_without_l2_distances_are_float32_under_autocast() -> None:
    quantizer, vectors = euclidean(), some_vectors()
    codes = quantizer.nearest(vectors)
    statistics = quantizer.statistics(vectors, codes)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(quantizer.nearest(vectors), codes)
        assert torch.equal(quantizer.statistics(vectors, codes), statistics)


def test_without_l2_update_by_hand() -> None:
    quantizer = Quantizer(3, 2, decay=0.75, l2_normalised=False)
    quantizer.codebook.copy_(torch.tensor([[4.0, 0.0], [0.0, 8.0], [-1.0, 0.0]]))
    # Code 0 was chosen by (2, 6) and (6, -2), code 1 by nothing, code 2 by (3, 4).
    statistics = quantizer.statistics(
        torch.tensor([[2.0, 6.0], [6.0, -2.0], [3.0, 4.0]]), torch.tensor([0, 0, 2])
    )
    assert statistics.tolist() == [[8, 4, 2], [0, 0, 0], [3, 4, 1]]  # not of length 1
    quantizer.update(statistics)
    assert quantizer.codebook.tolist() == [[4, 0.5], [0, 8], [0, 1]]
    assert quantizer.counts.tolist() == [0.5, 0, 0.25]


def test_without_l2_two_half_batches_update_the_codebook_as_one_whole_batch() -> None:
    whole, halves = euclidean(), euclidean()
    vectors = some_vectors(count=40)
    codes = whole.nearest(vectors)
    parts = [whole.statistics(v, c) for v, c in zip(vectors, codes, strict=True)]
    whole.update(whole.statistics(vectors, codes))
    halves.update(parts[0] + parts[1])
    assert not torch.equal(whole.codebook, euclidean().codebook)
    torch.testing.assert_close(halves.codebook, whole.codebook)
    torch.testing.assert_close(halves.counts, whole.counts)


def test_without_l2_start_equals_naive_k_means() -> None:
    quantizer, rows = euclidean(), some_vectors(count=30).flatten(0, 1)
    quantizer.start(rows, seeded(1))
    means = rows[random_rows(len(rows), K, seeded(1))].clone()
    for _ in range(KMEANS_ITERATIONS):
        nearest = torch.tensor([closest(row, means) for row in rows])
        for code in nearest.unique():
            means[code] = rows[nearest == code].mean(dim=0)
    torch.testing.assert_close(quantizer.codebook, means)


def test_without_l2_revived_codes_are_vectors_as_they_are() -> None:
    quantizer, rows = euclidean(), some_vectors().flatten(0, 1)
    before = quantizer.codebook.clone()
    dead = torch.tensor([False, True, True, False, False, True, False])
    assert quantizer.revive(rows, dead, seeded()).tolist() == [1, 2, 5]
    assert torch.equal(quantizer.codebook[~dead], before[~dead])
    assert all((code == rows).all(dim=1).any() for code in quantizer.codebook[dead])


def test_without_l2_a_fresh_codebook_is_small_and_not_of_one_length() -> None:
    codebook = Quantizer(50, C, l2_normalised=False).codebook
    assert codebook.abs().max() <= 1 / 50
    assert codebook.norm(dim=1).std() > 0.001
    assert codebook.mean(dim=0).abs().max() < 0.3 / 50  # on all sides of the origin


# ── learned by gradients ────────────────────────────────────────────────────────────────────────


def test_a_codebook_for_gradients_keeps_its_name_and_values() -> None:
    quantizer = Quantizer(K, C)
    before = snapshot(quantizer)
    learned = quantizer.use_gradients()
    assert [learned is p for p in quantizer.parameters()] == [True]
    assert_same_state(quantizer, before)
    buffered = Quantizer(K, C)
    buffered.load_state_dict(quantizer.state_dict())  # a file cannot tell the two apart
    assert torch.equal(buffered.codebook, learned)


@pytest.mark.parametrize("l2_normalised", [True, False])
def test_after_a_step_of_the_optimiser_an_update_only_brings_codes_back(
    l2_normalised: bool,
) -> None:
    quantizer = Quantizer(K, C, 0.75, l2_normalised)
    codebook = quantizer.use_gradients()
    moved = torch.randn(K, C, generator=seeded(3))
    with torch.no_grad():
        codebook.copy_(moved)
    vectors = some_vectors()
    statistics = quantizer.statistics(vectors, quantizer.nearest(vectors))
    quantizer.update(statistics)
    assert torch.equal(codebook, unit(moved) if l2_normalised else moved)
    torch.testing.assert_close(quantizer.counts, 0.25 * statistics[:, -1])
    assert codebook.is_leaf and codebook.requires_grad


def test_a_codebook_for_gradients_starts_and_revives_in_place() -> None:
    quantizer, rows = Quantizer(K, C), some_vectors(count=30).flatten(0, 1)
    codebook = quantizer.use_gradients()
    quantizer.start(rows, seeded(1))
    torch.testing.assert_close(codebook.detach(), naive_k_means(rows, K, seeded(1)))
    before = codebook.detach().clone()
    dead = torch.arange(K) == 4
    assert quantizer.revive(rows, dead, seeded()).tolist() == [4]
    assert (codebook != before).any(dim=1).tolist() == dead.tolist()
    assert quantizer.codebook is codebook


# ── a grid of levels ────────────────────────────────────────────────────────────────────────────


def test_scalar_codes_by_hand() -> None:
    assert scalar_codes((3,)).tolist() == [[-1], [0], [1]]
    first, second = (-1.0, -0.5, 0.0, 0.5), (-1.0, 0.0, 1.0)
    assert scalar_codes((4, 3)).tolist() == [list(pair) for pair in product(first, second)]
    assert len(scalar_codes((8, 8, 8, 4, 4)).unique(dim=0)) == 8192


def test_the_nearest_scalar_code_is_each_channel_rounded() -> None:
    levels = (4, 3, 5)
    quantizer = Quantizer(60, 3, l2_normalised=False, levels=levels)
    vectors = bounded(2 * torch.randn(200, 3, generator=seeded()), levels)
    codes = quantizer.nearest(vectors)
    assert len(codes.unique()) > 40
    for vector, code in zip(vectors, codes, strict=True):
        rounded = [round(float(v) * (L // 2)) for v, L in zip(vector, levels, strict=True)]
        places = [i + L // 2 for i, L in zip(rounded, levels, strict=True)]
        assert int(code) == (places[0] * 3 + places[1]) * 5 + places[2]


def test_bounded_vectors_reach_the_outer_levels_and_no_further() -> None:
    far, levels = torch.tensor([[-1e3] * 3, [0.0] * 3, [1e3] * 3]), (2, 5, 8)
    actual = bounded(far, levels)
    # Even levels end above zero one cell short of one; 1.001 leaves half a thousandth a level.
    outer = torch.tensor([[-1.0, -1, -1], [0, 0, 0], [0, 1, 0.75]])
    torch.testing.assert_close(actual, outer, rtol=0, atol=2e-3)
    grid = torch.linspace(-3, 3, 50)[:, None].expand(-1, 3)
    assert (bounded(grid, levels).diff(dim=0) > 0).all()


def test_a_grid_stays_where_it_is() -> None:
    quantizer = Quantizer(12, 2, decay=0.0, l2_normalised=False, levels=(4, 3))
    assert quantizer.initialised
    vectors = torch.rand(30, 2, generator=seeded())
    statistics = quantizer.statistics(vectors, quantizer.nearest(vectors))
    quantizer.update(statistics)
    assert torch.equal(quantizer.codebook, scalar_codes((4, 3)))
    assert torch.equal(quantizer.counts, statistics[:, -1])  # bookkeeping goes on
    with pytest.raises(ValueError, match="levels are not learned by gradients"):
        quantizer.use_gradients()
    with pytest.raises(ValueError, match="levels cannot be set from data"):
        quantizer.start(vectors, seeded())
    with pytest.raises(ValueError, match="levels cannot be revived"):
        quantizer.revive(vectors, torch.ones(12, dtype=torch.bool), seeded())


@pytest.mark.parametrize(
    ("levels", "l2_normalised", "message"),
    [
        ((4, 1), False, r"levels are \(4, 1\); expected 2 or more"),
        ((4, 3, 2), False, "make 24 codes of 3 channels, but num_codes is 12 and code_width 2"),
        ((4, 3), True, "does not lie on the sphere; set l2_normalised to false"),
    ],
)
def test_levels_that_contradict_the_codebook_are_refused(
    levels: tuple[int, ...], l2_normalised: bool, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Quantizer(12, 2, l2_normalised=l2_normalised, levels=levels)
