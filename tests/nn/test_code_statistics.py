import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from beit.nn.code_statistics import (
    CodeStatistics,
    code_vectors,
    entropy,
    lift,
    measures,
    nearest_codes,
    rated,
)
from beit.nn.dalle import DalleConfig, DalleTokenizer
from beit.nn.dvae import DiscreteVAE, DiscreteVAEConfig
from beit.nn.tokenizer import VQKD, VQKDConfig
from beit.nn.vit import ViTConfig

K, GRID, P, Y, B = 7, (2, 3), 4, 3, 11
N = GRID[0] * GRID[1]


def data() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images, codes 0 to 5, scores and labels, some of them unknown; 5 only in unknown images."""
    generator = torch.Generator().manual_seed(4)
    images = torch.randint(0, 256, (B, 3, 2 * P, 3 * P), generator=generator, dtype=torch.uint8)
    codes = torch.randint(0, 5, (B, N), generator=generator)
    labels = torch.randint(0, Y, (B,), generator=generator)
    labels[[2, 9]] = -1
    codes[2, 1] = 5
    return images, codes, torch.rand(B, N, generator=generator), labels


def counted(rows: Tensor, batch_size: int = B) -> CodeStatistics:
    statistics = CodeStatistics(K, GRID, P, Y)
    for some in rows.split(batch_size):
        statistics.add(*(part[some] for part in data()))
    return statistics


def test_counts_are_those_of_a_loop() -> None:
    images, codes, scores, labels = data()
    positions, by_label = torch.zeros(N, K), torch.zeros(K, Y)
    held, pairs, pixels = torch.zeros(K), torch.zeros(K, K), torch.zeros(K, P, P, 3)
    for i in range(B):
        for n in range(N):
            code, (row, column) = int(codes[i, n]), divmod(n, 3)
            positions[n, code] += 1
            if labels[i] >= 0:
                by_label[code, labels[i]] += 1
            patch = images[i, :, row * P : (row + 1) * P, column * P : (column + 1) * P]
            pixels[code] += patch.permute(1, 2, 0)
        there = {int(code) for code in codes[i]}
        for one in there:
            held[one] += 1
            for other in there:
                pairs[one, other] += 1
    found = counted(torch.arange(B))
    assert found.positions.equal(positions.long())
    assert found.labels.equal(by_label.long())
    assert found.images.equal(held.long())
    assert found.pairs.equal(pairs.int())
    assert found.pixels.equal(pixels.long())
    assert found.total.tolist() == [B]
    means = pixels / positions.sum(0).clamp(min=1).view(-1, 1, 1, 1)
    assert (found.mean_patches() - means).abs().max() <= 0.5
    assert found.mean_patches()[6].sum() == 0
    closeness = measures(found).closeness
    for code in range(6):
        assert closeness[code] == pytest.approx(float(scores[codes == code].mean()), abs=2**-17)


def test_the_sum_of_halves_is_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = counted(torch.arange(B))
    mixed = torch.randperm(B, generator=torch.Generator().manual_seed(5))
    monkeypatch.setattr("beit.nn.code_statistics.CHUNK_ELEMENTS", 1)  # an image at a time
    one, other = counted(mixed[:4], 3), counted(mixed[4:])
    for a, b, expected in zip(one.tensors(), other.tensors(), whole.tensors(), strict=True):
        assert (a + b).equal(expected)


def test_purity_and_entropies_by_hand() -> None:
    statistics = CodeStatistics(3, (1, 2), 1, 3)
    codes = torch.tensor([[0, 0], [0, 1], [0, 0], [1, 0]])
    labels = torch.tensor([2, 2, 0, -1])
    statistics.add(torch.zeros(4, 3, 1, 2, dtype=torch.uint8), codes, torch.ones(4, 2), labels)
    found = measures(statistics)
    assert found.uses.tolist() == [6, 2, 0]
    assert found.images.tolist() == [4, 2, 0]
    assert found.label.tolist() == [2, 2, -1]
    assert found.purity[:2].tolist() == [3 / 5, 1]  # of 0: twice 2, once 2, twice 0
    assert found.purity[2].isnan()
    mixture = -(0.6 * math.log2(0.6) + 0.4 * math.log2(0.4))
    assert found.label_entropy[:2].tolist() == pytest.approx([mixture, 0])
    assert found.position_entropy[:2].tolist() == pytest.approx([1, 1])
    assert found.position_entropy[2].isnan()
    assert found.closeness[:2].tolist() == [1, 1]
    # 0 is in all four images, 1 in two of them: they know nothing of each other.
    assert lift(statistics, torch.tensor([0, 1])).nan_to_num(9).tolist() == [[9, 1], [1, 9]]


def test_no_labels_no_purity() -> None:
    statistics = CodeStatistics(K, GRID, P)
    statistics.add(*data())
    found = measures(statistics)
    assert found.purity.isnan().all()
    assert found.label.tolist() == [-1] * K


def test_entropy_of_nothing_is_zero() -> None:
    assert entropy(torch.tensor([[0, 0], [3, 0], [5, 5]])).tolist() == [0, 0, 1]
    assert not entropy(torch.tensor([4, 0])).signbit()


def test_large_patches_are_averaged_down() -> None:
    statistics = CodeStatistics(2, (1, 2), 32)
    image = torch.zeros(1, 3, 32, 64)
    image[..., 32:] = 1.0
    statistics.add(image, torch.tensor([[0, 1]]), torch.zeros(1, 2), torch.tensor([-1]))
    assert statistics.mean_patches().shape == (2, 16, 16, 3)
    assert statistics.mean_patches().flatten(1).unique(dim=1).tolist() == [[0], [255]]


def test_many_codes_have_no_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("beit.nn.code_statistics.MAX_PAIR_CODES", K - 1)
    statistics = counted(torch.arange(B))
    assert statistics.images.sum() > 0
    with pytest.raises(ValueError, match=r"more than 6 codes; this tokenizer has 7"):
        lift(statistics, torch.tensor([0, 1]))


def test_nearest_codes_are_those_of_a_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = torch.randn(9, 4)
    monkeypatch.setattr("beit.nn.code_statistics.CHUNK_ELEMENTS", 20)  # two rows at a time
    codes, cosines = nearest_codes(vectors, 3)
    for code in range(9):
        others = [other for other in range(9) if other != code]
        angle = {o: float(torch.cosine_similarity(vectors[code], vectors[o], 0)) for o in others}
        others.sort(key=lambda other: -angle[other])
        assert codes[code].tolist() == others[:3]
        assert cosines[code].tolist() == pytest.approx([angle[o] for o in others[:3]], abs=1e-6)
    assert nearest_codes(vectors, 99)[0].shape == (9, 8)


# ── every kind of tokenizer ─────────────────────────────────────────────────────────────────────


def vqkd(**changes: bool) -> VQKD:
    sizes = {"image_size": (16, 24), "patch_size": 8, "width": 12, "depth": 1, "num_heads": 3}
    encoder = ViTConfig(**sizes, absolute_positions=True, relative_bias="none")
    return VQKD(VQKDConfig(encoder, 1, num_codes=11, code_width=5, teacher_width=6, **changes))


DVAE = DiscreteVAEConfig((16, 24), num_codes=11, code_width=5, num_layers=3, hidden_width=6)
DALLE = DalleConfig((16, 24), num_codes=11, width=8, code_width=4, decoder=False)


@pytest.mark.parametrize(
    ("tokenizer", "width"),
    [
        (vqkd(), 5),
        (vqkd(l2_normalised=False), 5),
        (DiscreteVAE(DVAE), 5),
        (DalleTokenizer(DALLE), 64),
    ],
)
def test_rated_codes_are_those_of_encode(
    tokenizer: nn.Module, width: int, shaken: Callable[[nn.Module], nn.Module]
) -> None:
    tokenizer = shaken(tokenizer)
    images = torch.randint(0, 256, (2, 3, 16, 24), dtype=torch.uint8)
    codes, scores = rated(tokenizer, images)
    assert codes.equal(tokenizer.encode(images))
    assert scores.shape == (2, 6)
    assert code_vectors(tokenizer).shape == (11, width)
    if isinstance(tokenizer, VQKD):
        vectors, chosen = tokenizer.embed(images), tokenizer.quantizer.codebook[codes]
        distance = -(vectors - chosen).square().sum(-1).sqrt()
        angle = torch.cosine_similarity(vectors, chosen, dim=-1)
        on_sphere = tokenizer.quantizer.l2_normalised
        torch.testing.assert_close(scores, angle if on_sphere else distance)
    else:
        torch.testing.assert_close(scores, tokenizer.logits(images).flatten(2).amax(1))


def test_what_rates_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="a tokenizer of type Linear cannot rate how close"):
        rated(nn.Linear(2, 2), torch.zeros(1, 3, 8, 8))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"codes are \(2, 5\), expected 6 per image"):
        images = torch.zeros(2, 3, 8, 12)
        CodeStatistics(K, GRID, P).add(
            images, torch.zeros(2, 5).long(), torch.zeros(2, 5), torch.zeros(2).long()
        )
