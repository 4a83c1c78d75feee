import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.nn import functional as F

from beit.nn.patches import PatchEmbed, as_float, grid_of, patchify, per_channel, pixels_of


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_grid_is_rows_then_columns() -> None:
    assert grid_of((48, 80), 16) == (3, 5)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((225, 224), r"image size \(225, 224\) is not a multiple of patch size 16.*\(224, 224\)"),
        ((32, 40), r"image size \(32, 40\).*\(32, 32\)"),
        ((0, 16), r"image size \(0, 16\).*\(16, 16\)"),
        (("96", "96"), r"image size is \('96', '96'\); expected \(height, width\) in whole pixels"),
        ((96.0, 96), r"image size is \(96\.0, 96\); expected"),
        ((96,), r"image size is \(96,\); expected"),
    ],
)
def test_a_size_that_does_not_divide_is_refused_with_one_that_does(
    size: tuple[int, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        grid_of(size, 16)


def test_the_dtype_says_what_the_values_mean() -> None:
    levels = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    torch.testing.assert_close(as_float(levels).flatten(), torch.tensor([0.0, 0.2, 1.0]))
    # Ones of uint8 are almost black, ones of float are white: nothing is guessed from values.
    assert as_float(torch.ones(1, 3, 1, 1, dtype=torch.uint8)).max() < 0.01
    assert as_float(torch.ones(1, 3, 1, 1)).min() == 1


def test_patches_are_cut_row_by_row_channels_last() -> None:
    images = torch.randn(2, 4, 6, 10, generator=seeded())
    patches = patchify(images, 2)
    assert patches.shape == (2, 15, 16)
    for y in range(3):
        for x in range(5):
            tile = images[:, :, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2]  # (B, c, P, P)
            assert torch.equal(patches[:, 5 * y + x], tile.permute(0, 2, 3, 1).flatten(1))


def test_images_that_do_not_divide_are_not_cut() -> None:
    with pytest.raises(ValueError, match=r"image size \(6, 9\)"):
        patchify(torch.zeros(2, 4, 6, 9), 2)


def test_patch_embedding_is_the_strided_convolution() -> None:
    embed = PatchEmbed(in_channels=4, width=7, patch_size=2).double()
    images = torch.randn(2, 4, 6, 10, generator=seeded(), dtype=torch.float64)
    expected = F.conv2d(images, embed.proj.weight, embed.proj.bias, stride=2)  # (B, D, Gh, Gw)
    torch.testing.assert_close(embed(images), expected.flatten(2).transpose(1, 2))


def test_values_that_cannot_be_read_are_not_checked() -> None:
    images = torch.full((2, 3, 4, 6), 7.0)
    with FakeTensorMode() as mode:
        assert pixels_of(mode.from_tensor(images)).shape == (2, 3, 4, 6)
    with pytest.raises(ValueError, match="values from 7 to 7"):
        pixels_of(images)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_cuda_graph_is_captured() -> None:
    images, graph = torch.full((2, 3, 4, 6), 7.0, device="cuda"), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        doubled = pixels_of(images) * 2
    graph.replay()
    assert torch.equal(doubled, images * 2)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("mean", (123.675, 116.28, 103.53), r"mean is \(123.*images in \[0, 1\]: divide .* by 255"),
        ("std", (58.0, 57.0, 57.0), "std is .*divide"),
        ("std", (0.2, 0.0, 0.2), "std is .*; expected finite numbers, each above 0"),
        ("mean", (float("nan"),) * 3, "mean is .*; expected finite numbers$"),
    ],
)
def test_a_normalisation_is_of_images_between_0_and_1(
    name: str, values: tuple[float, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        per_channel(name, values, 3)
