import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from beit.nn.dalle import DalleConfig, DalleTokenizer
from beit.nn.dvae import DiscreteVAE, DiscreteVAEConfig
from beit.nn.patches import patchify, take
from beit.nn.targets import (
    PATCH_EPS,
    FeatureTarget,
    PixelTarget,
    TokenTarget,
    unpatchify,
)
from beit.nn.tokenizer import VQKD, VQKDConfig
from beit.nn.vit import ViTConfig

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
IMAGES = torch.randint(256, (2, 3, 4, 6), generator=torch.Generator().manual_seed(0)).byte()
MASKED = torch.tensor([[0, 4], [2, 5]])


class ToyTeacher(nn.Module):
    """Gives the mean colour of each cell."""

    width = 3

    def features(self, images: Tensor, grid: tuple[int, int]) -> Tensor:
        maps = nn.functional.adaptive_avg_pool2d(images.float() / 255, grid)
        return maps.flatten(2).transpose(1, 2)


def vqkd() -> VQKD:
    encoder = ViTConfig((16, 24), 8, width=12, depth=1, num_heads=3, relative_bias="none")
    return VQKD(VQKDConfig(encoder, decoder_depth=1, num_codes=7, code_width=5, teacher_width=4))


# ── tokens ──────────────────────────────────────────────────────────────────────────────────────


@torch.no_grad()
def test_codes_of_images_of_any_size():
    target = TokenTarget(vqkd(), (2, 3))
    assert (target.width, target.image_size, target.lanczos) == (7, (16, 24), False)
    images = torch.randint(256, (2, 3, 16, 24), dtype=torch.uint8)
    assert torch.equal(target.of(images), target.tokenizer.encode(images))
    assert target.of(images[:, :, :9]).shape == (2, 6)


@torch.no_grad()
def test_v1s_tokenizers_see_what_gives_the_grid_by_lanczos():
    dalle = DalleTokenizer(DalleConfig((16, 24), 7, width=4, blocks_per_group=1, decoder=False))
    dvae = DiscreteVAE(DiscreteVAEConfig((8, 8), 7, 5, num_layers=2, hidden_width=6))
    image = torch.randint(256, (1, 3, 30, 50), dtype=torch.uint8)
    for tokenizer, size in ((dalle, (24, 40)), (dvae, (12, 20))):
        target = TokenTarget(tokenizer, (3, 5))
        assert (target.image_size, target.lanczos) == (size, True)
        pillow = Image.fromarray(image[0].permute(1, 2, 0).numpy())
        wide = pillow.resize((size[1], 30), Image.Resampling.LANCZOS)
        small = np.array(wide.resize(size[::-1], Image.Resampling.LANCZOS))
        expected = tokenizer.encode(torch.from_numpy(small).permute(2, 0, 1)[None])
        assert torch.equal(target.of(image), expected)
        assert expected.shape == (1, 15)


def test_published_sizes_of_v1():
    config = DalleConfig(num_codes=7, width=4, blocks_per_group=1, decoder=False)
    assert TokenTarget(DalleTokenizer(config), (14, 14)).image_size == (112, 112)


def test_another_grid_of_a_tokenizer_that_is_bound_to_its_own_is_refused():
    with pytest.raises(ValueError, match=r"grid is \(2, 3\), the backbone's \(3, 3\)"):
        TokenTarget(vqkd(), (3, 3))


@torch.no_grad()
def test_targets_at_positions_are_those_of_all_patches():
    images = torch.randint(256, (2, 3, 16, 24), dtype=torch.uint8)
    dvae = DiscreteVAE(DiscreteVAEConfig((8, 8), 7, 5, num_layers=2, hidden_width=6))
    targets = (
        TokenTarget(vqkd(), (2, 3)),
        TokenTarget(dvae, (2, 3)),
        PixelTarget((16, 24), 8, MEAN, STD),
        FeatureTarget(ToyTeacher(), (16, 24), (2, 3)),
    )
    for target in targets:
        torch.testing.assert_close(target.of(images, MASKED), take(target.of(images), MASKED))


# ── pixels ──────────────────────────────────────────────────────────────────────────────────────


def test_pixels_are_what_the_backbone_sees():
    target = PixelTarget((4, 6), 2, MEAN, STD, normalised=False)
    actual = target.of(IMAGES)
    assert actual.shape == (2, 6, 12) and target.width == 12
    for y, x, c in ((0, 0, 0), (3, 5, 2), (2, 1, 1)):
        place = (y // 2) * 3 + x // 2, ((y % 2) * 2 + x % 2) * 3 + c
        expected = (IMAGES[1, c, y, x] / 255 - MEAN[c]) / STD[c]
        assert actual[1, *place] == pytest.approx(float(expected), rel=1e-5)
    assert torch.equal(actual, target.of(IMAGES.float() / 255))


def test_normalised_pixels_have_mean_0_and_deviation_1_in_each_patch():
    actual = PixelTarget((4, 6), 2, MEAN, STD).of(IMAGES)
    raw = PixelTarget((4, 6), 2, MEAN, STD, normalised=False).of(IMAGES)
    for b in range(2):
        for n in range(6):
            deviation = (raw[b, n].var() + PATCH_EPS).sqrt()
            torch.testing.assert_close(actual[b, n], (raw[b, n] - raw[b, n].mean()) / deviation)
    flat = PixelTarget((4, 6), 2, None, None).of(torch.full((1, 3, 4, 6), 90, dtype=torch.uint8))
    assert flat.abs().max() < 1e-3


@pytest.mark.parametrize("normalised", [True, False])
def test_painting_the_target_restores_the_image(normalised):
    target = PixelTarget((4, 6), 2, MEAN, STD, normalised)
    target_patches = target.of(IMAGES).gather(1, MASKED[..., None].expand(-1, -1, 12))
    painted = target.paint(IMAGES, MASKED, target_patches)
    torch.testing.assert_close(painted, IMAGES / 255, rtol=0, atol=1e-6)
    grey = target.paint(IMAGES, MASKED, torch.zeros_like(target_patches))
    changed = (grey - IMAGES / 255).abs().amax(dim=1) > 1e-3  # (B, H, W)
    assert not changed[0, 2:4, 4:6].any() and changed[0, 0:2, 0:2].any()
    if normalised:
        assert grey[0, :, 0:2, 0:2].mean() == pytest.approx(0.5, abs=0.4)


def test_unpatchify_is_the_inverse():
    images = torch.rand(2, 3, 4, 6)
    assert torch.equal(unpatchify(patchify(images, 2), (4, 6), 2), images)


# ── features ────────────────────────────────────────────────────────────────────────────────────


def test_features_are_the_teachers():
    teacher = ToyTeacher()
    target = FeatureTarget(teacher, (4, 6), (2, 3))
    expected = teacher.features(IMAGES, (2, 3))
    assert (target.width, target.loss) == (3, "cosine")
    assert torch.equal(target.of(IMAGES), expected)
    normed = FeatureTarget(teacher, (4, 6), (2, 3), normalised=True).of(IMAGES)
    centred = expected - expected.mean(-1, keepdim=True)
    deviation = (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(normed, centred / deviation)


# ── metrics ─────────────────────────────────────────────────────────────────────────────────────


def test_metrics_by_hand():
    tokens, pixels = TokenTarget(vqkd(), (2, 3)), PixelTarget((4, 6), 2, MEAN, STD)
    features = FeatureTarget(ToyTeacher(), (4, 6), (2, 3))
    predicted = torch.tensor([[[0.0, 1.0], [3.0, 1.0], [2.0, 1.0]]])
    codes, values = torch.tensor([[1, 1, 0]]), torch.tensor([[[0.0, 2.0], [1.0, 1.0], [1.0, 0.0]]])
    expected = {
        "accuracy": [1, 0, 1],
        "error": [1 / 2, 4 / 2, 2 / 2],
        "spread": [4 / 2, 2 / 2, 1 / 2],
        "cosine": [1, 4 / 20**0.5, 2 / 5**0.5],
    }
    for target, truth in (tokens, codes), (pixels, values), (features, values):
        measured = target.measure(predicted, truth)
        assert tuple(measured) == target.metrics
        for name, of_patches in measured.items():
            assert of_patches[0].tolist() == pytest.approx(expected[name])
