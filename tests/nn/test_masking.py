import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from beit.nn.masking import (
    ATTEMPTS,
    MIN_ASPECT,
    MaskConfig,
    block_masks,
    draw_masks,
    not_repeated,
    patches_to_predict,
    random_masks,
)

GOLDENS = Path(__file__).parents[1] / "goldens"


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def as_maps(masked: Tensor, grid: tuple[int, int]) -> Tensor:
    """Turn indices (B, M) into maps (B, Gh, Gw) of 0 and 1."""
    flat = torch.zeros(len(masked), grid[0] * grid[1])
    return flat.scatter_(1, masked, 1.0).view(-1, *grid)


def naive_block_masks(
    batch: int, grid: tuple[int, int], count: int, generator: torch.Generator, min_block: int
) -> Tensor:
    """The same masks one image, one try and one patch at a time."""
    Gh, Gw = grid
    single = torch.rand(batch, Gh * Gw, generator=generator)
    hidden: list[set[int]] = [set() for _ in range(batch)]
    growing = set(range(batch))
    while growing:
        draws = torch.rand(4, batch, ATTEMPTS, generator=generator)
        for image in sorted(growing):
            room = count - len(hidden[image])
            for area_draw, aspect_draw, top_draw, left_draw in draws[:, image].T:
                area = min_block + area_draw * (room - min_block)
                aspect = torch.exp(math.log(MIN_ASPECT) * (1 - 2 * aspect_draw))
                height = round(math.sqrt(area * aspect))
                width = round(math.sqrt(area / aspect))
                if height >= Gh or width >= Gw:
                    continue
                top = int(top_draw * (Gh - height + 1))
                left = int(left_draw * (Gw - width + 1))
                rows, columns = range(top, top + height), range(left, left + width)
                block = {y * Gw + x for y in rows for x in columns} - hidden[image]
                if 0 < len(block) <= room:
                    hidden[image] |= block
                    break
            else:
                growing.remove(image)
    for image, inside in enumerate(hidden):
        rest = sorted(set(range(Gh * Gw)) - inside, key=lambda i: -float(single[image, i]))
        inside.update(rest[: count - len(inside)])
    return torch.tensor([sorted(inside) for inside in hidden])


def test_block_masks_equal_those_of_a_naive_loop() -> None:
    masked = block_masks(29, (7, 9), 25, seeded(3), min_block=6)
    assert torch.equal(masked, naive_block_masks(29, (7, 9), 25, seeded(3), min_block=6))


def test_block_masks_are_the_same_in_small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    generators = seeded(4), seeded(4)
    whole = block_masks(23, (7, 9), 25, generators[0], min_block=6)
    monkeypatch.setattr("beit.nn.masking.ONE_THREAD", 50)  # 5 images, then one by one
    assert torch.equal(whole, block_masks(23, (7, 9), 25, generators[1], min_block=6))
    assert torch.equal(generators[0].get_state(), generators[1].get_state())
    assert block_masks(0, (7, 9), 25, seeded()).shape == (0, 25)


def test_block_masks_are_spread_as_the_published_ones() -> None:
    golden = json.loads((GOLDENS / "mask_statistics.json").read_text())
    grid = tuple(golden["window"])
    masked = block_masks(golden["samples"], grid, golden["num_masked"], seeded())
    maps = as_maps(masked, grid)
    # The tolerances are the goldens' own; 20,000 masks leave marginals an error of about 0.004.
    torch.testing.assert_close(maps.mean(0), torch.tensor(golden["marginal"]), rtol=0, atol=0.02)
    across = (maps[:, :, 1:] == maps[:, :, :-1]).float().mean().item()
    down = (maps[:, 1:] == maps[:, :-1]).float().mean().item()
    assert across == pytest.approx(golden["neighbour_agreement_horizontal"], abs=0.01)
    assert down == pytest.approx(golden["neighbour_agreement_vertical"], abs=0.01)


@pytest.mark.parametrize("draw", [block_masks, random_masks])
@pytest.mark.parametrize(
    ("grid", "count"), [((14, 14), 75), ((8, 8), 25), ((3, 5), 1), ((3, 5), 15), ((1, 6), 2)]
)
def test_a_mask_has_exactly_count_patches(draw, grid, count) -> None:  # type: ignore[no-untyped-def]
    masked = draw(37, grid, count, seeded())
    assert masked.shape == (37, count)
    assert masked.dtype == torch.int64
    assert masked.min() >= 0
    assert masked.max() < grid[0] * grid[1]
    assert (masked.diff(dim=1) > 0).all()  # sorted, none twice


@pytest.mark.parametrize("draw", [block_masks, random_masks])
def test_masks_depend_on_the_generator_alone(draw) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(1)
    first = draw(5, (8, 8), 25, seeded(7))
    state = torch.get_rng_state()
    assert torch.equal(first, draw(5, (8, 8), 25, seeded(7)))
    assert torch.equal(state, torch.get_rng_state())
    assert not torch.equal(first, draw(5, (8, 8), 25, seeded(8)))


def test_random_masks_hide_each_patch_equally_often() -> None:
    maps = as_maps(random_masks(4000, (3, 5), 6, seeded()), (3, 5))
    assert maps.mean(0).sub(6 / 15).abs().max() < 0.03  # four standard errors


@pytest.mark.parametrize("draw", [block_masks, random_masks])
@pytest.mark.parametrize("count", [0, 16])
def test_more_patches_than_there_are_is_refused(draw, count) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=rf"{count} masked patches .* 3 x 5; expected 1 to 15"):
        draw(2, (3, 5), count, seeded())


def test_blocks_without_patches_are_refused() -> None:
    with pytest.raises(ValueError, match="min_block is 0; expected 1 patch or more"):
        block_masks(2, (3, 5), 6, seeded(), min_block=0)
    assert block_masks(2, (3, 5), 6, seeded(), min_block=1).shape == (2, 6)


# ── BEiT v1: no more than the blocks ─────────────────────────────────────────────────────────


def test_inexact_masks_number_as_those_of_beit_v1() -> None:
    masked = block_masks(4000, (14, 14), 75, seeded(), exact=False)
    numbers = not_repeated(masked).sum(dim=1)
    # docs/reference/pretraining.md, "Masks", from 20,000 draws. Standard errors here: 0.007 of the
    # share, 0.015 of the mean.
    assert (numbers == 75).float().mean().item() == pytest.approx(0.666, abs=0.03)
    assert numbers.float().mean().item() == pytest.approx(74.47, abs=0.06)
    assert 60 <= numbers.min() <= 70 and numbers.max() == 75


def test_inexact_masks_are_the_blocks_of_exact_ones() -> None:
    exact = block_masks(50, (7, 9), 25, seeded(5), min_block=6)
    fewer = block_masks(50, (7, 9), 25, seeded(5), min_block=6, exact=False)
    assert fewer.shape == exact.shape and (fewer.diff(dim=1) >= 0).all()
    assert (as_maps(fewer, (7, 9)) <= as_maps(exact, (7, 9))).all()
    numbers = not_repeated(fewer).sum(dim=1)
    assert torch.equal(numbers, as_maps(fewer, (7, 9)).sum(dim=(1, 2)).long())
    full = numbers == 25
    assert full.any() and not full.all()
    assert torch.equal(fewer[full], exact[full])


def test_where_no_block_fits_one_patch_is_hidden() -> None:
    masked = block_masks(60, (1, 6), 3, seeded(), exact=False)
    assert (not_repeated(masked).sum(dim=1) == 1).all()
    assert (masked == masked[:, :1]).all()
    assert set(masked[:, 0].tolist()) == set(range(6))


def test_not_repeated_by_hand() -> None:
    masked = torch.tensor([[0, 2, 2, 2], [1, 3, 4, 5]])
    expected = [[True, True, False, False], [True] * 4]
    assert not_repeated(masked).tolist() == expected


# ── configuration ───────────────────────────────────────────────────────────────────────────────


def drawn(config: MaskConfig) -> Tensor:
    return draw_masks(config, 5, (4, 6), seeded())


@pytest.mark.parametrize("kind", ["block", "random"])
def test_the_ratio_replaces_the_count(kind) -> None:  # type: ignore[no-untyped-def]
    assert drawn(MaskConfig(kind, count=7, min_block=2)).shape == (5, 7)
    assert drawn(MaskConfig(kind, count=7, ratio=0.4, min_block=2)).shape == (5, 10)
    assert MaskConfig(ratio=0.4).number(196) == 78
    assert MaskConfig(ratio=0.01).number(24) == 1


def test_patches_to_predict_and_their_weights() -> None:
    masked = torch.tensor([[0, 2, 2], [1, 3, 5]])
    positions, weights = patches_to_predict(masked, (2, 3), everywhere=False, exact=True)
    assert positions is masked and weights is None
    positions, weights = patches_to_predict(masked, (2, 3), everywhere=False, exact=False)
    assert positions is masked and weights is not None
    assert weights.tolist() == [[1, 1, 0], [1, 1, 1]]
    positions, weights = patches_to_predict(masked, (2, 3), everywhere=True, exact=False)
    assert positions.tolist() == [[0, 1, 2, 3, 4, 5]] * 2 and weights is None
    elsewhere = patches_to_predict(masked.to("meta"), (2, 3), everywhere=True, exact=False)[0]
    assert elsewhere.device.type == "meta"


def test_each_kind_is_drawn_by_its_function() -> None:
    assert torch.equal(drawn(MaskConfig("random", count=7)), random_masks(5, (4, 6), 7, seeded()))
    for exact in (True, False):
        blocks = block_masks(5, (4, 6), 7, seeded(), min_block=2, exact=exact)
        assert torch.equal(drawn(MaskConfig(count=7, min_block=2, exact=exact)), blocks)
    row = draw_masks(MaskConfig(count=3, exact=False), 5, (1, 6), seeded())  # no block fits
    assert (not_repeated(row).sum(dim=1) == 1).all()


def test_options_at_their_limits_are_taken() -> None:
    assert MaskConfig(ratio=1, min_block=1).number(24) == 24


def test_contradictory_options_are_refused() -> None:
    with pytest.raises(ValueError, match=r"mask\.ratio is 0; expected above 0"):
        MaskConfig(ratio=0)
    with pytest.raises(ValueError, match=r"mask\.ratio is 1\.5; expected above 0, to 1"):
        MaskConfig(ratio=1.5)
    with pytest.raises(ValueError, match=r"mask\.min_block is 0; expected 1 patch or more"):
        MaskConfig(min_block=0)
    with pytest.raises(ValueError, match=r"mask\.exact false is for blocks"):
        MaskConfig("random", exact=False)
