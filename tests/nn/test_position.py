from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from beit.nn.heads import ImageClassifier, ImageClassifierConfig
from beit.nn.mim import MaskedImageModel, MaskedImageModelConfig
from beit.nn.position import (
    CLS_ROWS,
    cubic_spline,
    geometric_distances,
    resize_absolute,
    resize_relative_bias,
    resized,
)
from beit.nn.relative_bias import RelativePositionBias, relative_position_index
from beit.nn.segmenter import SegmenterConfig, SemanticSegmenter
from beit.nn.vit import VisionTransformer, ViTConfig
from beit.weights.file import save
from beit.weights.open import load

GOLDEN = Path(__file__).parents[1] / "goldens/rel_pos_resize.safetensors"

GRID = (3, 5)


def naive_index(grid: tuple[int, int]) -> list[list[int]]:
    """The row of every pair, counted along the offsets of a query to its key."""
    Gh, Gw = grid
    offsets = [(dy, dx) for dy in range(-Gh + 1, Gh) for dx in range(-Gw + 1, Gw)]
    cells = [None] + [(y, x) for y in range(Gh) for x in range(Gw)]  # None is [CLS]
    index = []
    for query in cells:
        row = []
        for key in cells:
            if query is None and key is None:
                row.append(len(offsets) + 2)
            elif key is None:
                row.append(len(offsets) + 1)
            elif query is None:
                row.append(len(offsets))
            else:
                row.append(offsets.index((query[0] - key[0], query[1] - key[1])))
        index.append(row)
    return index


def test_index_equals_a_naive_double_loop() -> None:
    assert relative_position_index(GRID).tolist() == naive_index(GRID)


def test_every_row_of_the_table_is_used() -> None:
    table = RelativePositionBias(GRID, num_heads=3).table
    assert table.shape == (5 * 9 + CLS_ROWS, 3)
    assert relative_position_index(GRID).unique().tolist() == list(range(len(table)))


def test_the_published_grid_has_732_rows() -> None:
    assert RelativePositionBias((14, 14), num_heads=1).table.shape == (732, 1)


def test_bias_holds_the_table_entry_of_each_pair_and_head() -> None:
    position = RelativePositionBias(GRID, num_heads=3)
    assert not position().any()  # no preference at first
    with torch.no_grad():
        position.table.normal_()
    bias, index = position(), naive_index(GRID)
    assert bias.shape == (1, 3, 16, 16)
    for head in range(3):
        for i in range(16):
            for j in range(16):
                assert bias[0, head, i, j] == position.table[index[i][j], head]


def test_the_index_is_not_part_of_the_weights() -> None:
    assert list(RelativePositionBias(GRID, num_heads=3).state_dict()) == ["table"]


# ── tables on another grid ──────────────────────────────────────────────────────────────────────


def some_table(grid: tuple[int, int]) -> torch.Tensor:
    rows = (2 * grid[0] - 1) * (2 * grid[1] - 1) + CLS_ROWS
    return torch.randn(rows, 2, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("old", "new"), [(14, 24), (14, 32), (4, 6)])
def test_tables_are_resized_as_the_published_code_does(old: int, new: int) -> None:
    golden = load_file(GOLDEN)
    resized = resize_relative_bias(golden[f"{old}to{new}/in"], (old, old), (new, new))
    # Stated: 1e-3, for another spline. Ours has the same knots and the same ends.
    torch.testing.assert_close(resized, golden[f"{old}to{new}/out"], rtol=0, atol=1e-6)


def test_the_spacing_reaches_the_longest_new_offset() -> None:
    """From 14 x 14 to the grids of larger images.

    The ratios are in docs/reference/finetuning.md, "Resizing the relative bias".
    """
    for side, ratio in ((384, 1.090307), (512, 1.134918), (640, 1.168504)):
        distances = geometric_distances(13, side // 16 - 1)
        assert distances[0] == 1
        assert float(distances[1] - 1) == pytest.approx(ratio, abs=2e-6)
        assert float(distances[-1]) == pytest.approx(side // 16 - 1, abs=1e-3)


def test_a_table_resized_to_its_own_grid_is_unchanged() -> None:
    table = some_table(GRID)
    assert resize_relative_bias(table, GRID, GRID) is table


@pytest.mark.parametrize("new", [(3, 8), (6, 5), (7, 9), (2, 3), (1, 1)])
def test_each_axis_has_its_own_spacing(new: tuple[int, int]) -> None:
    """A table that is a sum over rows and columns stays one: axes do not mix."""
    generator = torch.Generator().manual_seed(0)
    by_row, by_column = (
        torch.randn(5, 1, generator=generator),
        torch.randn(1, 9, generator=generator),
    )
    table = torch.cat([(by_row + by_column).flatten(), torch.tensor([7.0, 8.0, 9.0])])[:, None]
    resized = resize_relative_bias(table, GRID, new)
    assert resized.shape == ((2 * new[0] - 1) * (2 * new[1] - 1) + CLS_ROWS, 1)
    assert resized[-CLS_ROWS:].flatten().tolist() == [7, 8, 9]
    cells = resized[:-CLS_ROWS].view(2 * new[0] - 1, 2 * new[1] - 1)
    middle = cells[new[0] - 1, new[1] - 1]  # no offset: where the old middle was
    torch.testing.assert_close(middle, by_row[2, 0] + by_column[0, 4])
    rows, columns = cells[:, new[1] - 1, None], cells[None, new[0] - 1]
    torch.testing.assert_close(cells, rows + columns - middle)
    if new[0] == 3:
        torch.testing.assert_close(rows, by_row + by_column[0, 4])


def test_offsets_of_one_patch_keep_their_bias() -> None:
    table = some_table((4, 6))
    for new in ((9, 11), (3, 4)):
        resized = resize_relative_bias(table, (4, 6), new)
        old_cells, cells = (
            table[:-3].view(7, 11, 2),
            resized[:-3].unflatten(0, (-1, 2 * new[1] - 1)),
        )
        near = cells[new[0] - 2 : new[0] + 1, new[1] - 2 : new[1] + 1]
        torch.testing.assert_close(near, old_cells[2:5, 4:7])


def test_small_grids_have_what_can_be_had() -> None:
    constant = resize_relative_bias(some_table((1, 1)), (1, 1), (2, 3))
    assert (constant[:-CLS_ROWS] == some_table((1, 1))[0]).all()
    assert resize_relative_bias(some_table((2, 2)), (2, 2), (3, 4)).shape == (5 * 7 + 3, 2)


def test_half_precision_stays() -> None:
    assert resize_relative_bias(some_table(GRID).half(), GRID, (4, 7)).dtype == torch.float16


@pytest.mark.parametrize(("knots", "degree"), [(3, 2), (4, 3), (5, 3), (9, 3)])
def test_the_spline_is_exact_for_polynomials(knots: int, degree: int) -> None:
    generator = torch.Generator().manual_seed(0)
    places = torch.rand(knots, generator=generator, dtype=torch.float64).cumsum(0)
    points = torch.linspace(float(places[0]), float(places[-1]), 23, dtype=torch.float64)
    coefficients = torch.randn(degree + 1, generator=generator, dtype=torch.float64)

    def polynomial(x: torch.Tensor) -> torch.Tensor:
        return sum(c * x**power for power, c in enumerate(coefficients))

    weights = cubic_spline(places, points)
    torch.testing.assert_close(weights @ polynomial(places), polynomial(points))
    torch.testing.assert_close(cubic_spline(places, places), torch.eye(knots).double())


def test_tables_of_another_grid_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"table is \(48, 2\), expected \(66, heads\) for a grid of 4"
    ):
        resize_relative_bias(some_table(GRID), (4, 5), (6, 6))


# ── absolute positions on another grid ──────────────────────────────────────────────────────────


def test_absolute_positions_are_interpolated_and_cls_is_kept() -> None:
    positions = torch.randn(1, 16, 7, generator=torch.Generator().manual_seed(0))
    assert resize_absolute(positions, GRID, GRID) is positions
    resized = resize_absolute(positions, GRID, (4, 9))
    assert resized.shape == (1, 37, 7)
    assert torch.equal(resized[:, 0], positions[:, 0])
    # Bicubic, pixel centres at halves: the weights of a doubled axis by Keys' kernel, a = -0.75.
    line = torch.tensor([[0.0, 0, 0, 1, 0, 0, 0]])
    doubled = resize_absolute(torch.cat([torch.zeros(1, 1), line], 1)[..., None], (1, 7), (1, 14))
    inner = [-0.03515625, -0.10546875, 0.26171875, 0.87890625]
    expected = [0.0] * 3 + inner + inner[::-1] + [0.0] * 3
    assert doubled[0, 1:, 0].tolist() == pytest.approx(expected)


def test_a_constant_position_stays_constant() -> None:
    positions = torch.ones(1, 16, 2)
    torch.testing.assert_close(resize_absolute(positions, GRID, (7, 4)), torch.ones(1, 29, 2))


def test_positions_of_another_grid_are_refused() -> None:
    with pytest.raises(ValueError, match=r"positions are \(1, 16, 2\), expected \(1, 21, width\)"):
        resize_absolute(torch.ones(1, 16, 2), (4, 5), (5, 5))


def models(vit: ViTConfig) -> dict[str, nn.Module]:
    return {
        "classifier": ImageClassifier(ImageClassifierConfig(vit, 5)),
        "mim": MaskedImageModel(MaskedImageModelConfig(vit, 7, early_layers=2, head_layers=1)),
        "segmenter": SemanticSegmenter(SegmenterConfig(vit, 5, (1, 2, 3, 4), auxiliary=False)),
    }


@pytest.mark.parametrize("name", ["classifier", "mim", "segmenter"])
@torch.no_grad()
def test_a_model_with_a_backbone_is_resized_with_its_configuration(
    name: str, tmp_path: Path
) -> None:
    vit = ViTConfig((16, 24), 4, width=12, depth=4, num_heads=3, relative_bias="per_block")
    model = models(vit)[name].eval()
    other = resized(model, (24, 20))
    assert other.image_size == other.backbone.image_size == (24, 20)
    assert model.image_size == model.config.backbone.image_size == (16, 24)
    save(other, tmp_path / "other.safetensors")
    read, images = load(tmp_path / "other.safetensors"), torch.rand(2, 3, 24, 20)
    extra = (torch.tensor([[3], [4]]),) if name == "mim" else ()
    assert torch.equal(read(images, *extra)[0], other(images, *extra)[0])
    assert resized(model.backbone, 24)(torch.rand(1, 3, 24, 24)).grid == (6, 6)


def test_absolute_positions_of_a_model_are_resized() -> None:
    vit = VisionTransformer(
        ViTConfig((16, 24), 4, width=12, depth=1, num_heads=3, absolute_positions=True)
    )
    other = resized(vit, (24, 20))
    assert torch.equal(other.pos_embed, resize_absolute(vit.pos_embed, (4, 6), (6, 5)))


def test_frozen_positions_stay_frozen() -> None:
    config = ViTConfig((16, 24), 4, width=12, depth=1, num_heads=3, absolute_positions=True)
    vit = VisionTransformer(config).requires_grad_(False)
    assert not any(parameter.requires_grad for parameter in resized(vit, (24, 20)).parameters())


def test_only_models_with_a_backbone_are_resized() -> None:
    with pytest.raises(TypeError, match="a model of type Linear has no backbone to resize"):
        resized(nn.Linear(2, 3), 16)
