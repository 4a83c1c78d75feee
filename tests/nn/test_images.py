"""Images and codes as callers give them to each kind of model: the checks of `nn.patches`."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from beit.nn.dalle import DalleConfig, DalleTokenizer
from beit.nn.dvae import DiscreteVAE, DiscreteVAEConfig
from beit.nn.heads import ImageClassifier, ImageClassifierConfig
from beit.nn.mim import MaskedImageModel, MaskedImageModelConfig
from beit.nn.patches import checked_codes, grey, pixels_of, unchecked
from beit.nn.segmenter import SegmenterConfig, SemanticSegmenter
from beit.nn.tokenizer import VQKD, VQKDConfig
from beit.nn.vit import VisionTransformer, ViTConfig

SIZE = (16, 24)  # grid 4 x 6 for patches of 4
VIT = ViTConfig(image_size=SIZE, patch_size=4, width=12, depth=4, num_heads=3)
Shaken = Callable[[nn.Module], nn.Module]


def bytes_drawn(count: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randint(256, (count, 3, *SIZE), dtype=torch.uint8, generator=generator)


def models() -> dict[str, nn.Module]:
    return {
        "vit": VisionTransformer(VIT),
        "vqkd": VQKD(VQKDConfig(VIT, 1, num_codes=7, code_width=3, teacher_width=5)),
        "fsq": VQKD(VQKDConfig(VIT, 1, 8, 3, 5, l2_normalised=False, levels=(2,) * 3)),
        "dvae": DiscreteVAE(DiscreteVAEConfig(SIZE, 7, 5, num_layers=2, hidden_width=4)),
        "dalle": DalleTokenizer(DalleConfig(SIZE, 7, width=4, blocks_per_group=1, code_width=3)),
        "classifier": ImageClassifier(ImageClassifierConfig(VIT, 5)),
        "segmenter": SemanticSegmenter(SegmenterConfig(VIT, 5, (1, 2, 3, 4), auxiliary=False)),
        "mim": MaskedImageModel(MaskedImageModelConfig(VIT, 7, early_layers=2, head_layers=1)),
    }


def result(name: str, model: Any, images: Any) -> Tensor:
    """What the model's entry for users returns."""
    if name == "vit":
        return model(images).patches
    if name == "mim":
        return model(images, torch.zeros(len(images), 3, dtype=torch.int64)).logits
    entry = {"classifier": "forward", "segmenter": "predict"}.get(name, "encode")
    return getattr(model, entry)(images)


NAMES = ["vit", "vqkd", "fsq", "dvae", "dalle", "classifier", "segmenter", "mim"]


@pytest.mark.parametrize("name", NAMES)
def test_every_model_states_the_image_size_that_errors_speak_of(name: str, model: Any) -> None:
    assert model.image_size == SIZE


@pytest.fixture
def model(request: pytest.FixtureRequest, shaken: Shaken) -> nn.Module:
    return shaken(models()[request.getfixturevalue("name")])


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_every_entry_takes_images_and_refuses_everything_else(name: str, model: nn.Module) -> None:
    images = bytes_drawn()
    unit = images.float() / 255
    expected = result(name, model, images)
    assert torch.equal(result(name, model, unit), expected)
    assert torch.equal(result(name, model, images.double() / 255), expected)
    empty = result(name, model, images[:0])
    assert (empty.shape, empty.dtype) == ((0, *expected.shape[1:]), expected.dtype)
    overshot = result(name, model, unit * 1.08 - 0.04)
    assert overshot.shape == expected.shape
    mean, std = unit.mean((0, 2, 3), keepdim=True), unit.std((0, 2, 3), keepdim=True)
    for given in (images.float(), unit * 2 - 1, (unit - mean) / std, unit.half() * 255):
        with pytest.raises(ValueError, match=r"values from .* to .*; models normalise themselves"):
            result(name, model, given)
    for kind in (torch.int64, torch.int32, torch.int16, torch.bool):
        with pytest.raises(ValueError, match=rf"images are {kind}, expected uint8 or float in"):
            result(name, model, images.to(kind))
    with pytest.raises(ValueError, match=r"\(3, 16, 24\), expected RGB \(B, 3, H, W\).*images\[N"):
        result(name, model, images[0])
    with pytest.raises(ValueError, match=r"\(2, 16, 24, 3\), expected .*permute\(0, 3, 1, 2\)"):
        result(name, model, images.permute(0, 2, 3, 1))
    with pytest.raises(TypeError, match=r"images are of type ndarray, expected a tensor \(B, 3, H"):
        result(name, model, images.numpy())
    with pytest.raises(ValueError, match=r"18 x 24.* takes 16 x 24|\(18, 24\).* to \(16, 24\)"):
        result(name, model, torch.zeros(2, 3, 18, 24))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.zeros(16, 24, 3), r"for one image with channels last.*permute\(2, 0, 1\)\[None\]"),
        (
            torch.zeros(2, 4, 16, 24),
            r"\(2, 4, 16, 24\), expected RGB \(B, 3, H, W\); of files with other bands give 3",
        ),
        (torch.zeros(2, 1, 16, 24), r"for grey images give images\.expand\(-1, 3, -1, -1\)"),
        (torch.zeros(16, 24), r"\(16, 24\), expected RGB"),
        (torch.full((1, 3, 2, 2), torch.nan), "NaN or infinite"),
        (torch.full((1, 3, 2, 2), torch.inf), "NaN or infinite"),
        (torch.full((1, 3, 2, 2), -0.6), r"values from -0\.6 to -0\.6"),
        (torch.full((1, 3, 2, 2), 1.6), r"values from 1\.6 to 1\.6"),
        (torch.zeros(1, 3, 2, 2, dtype=torch.complex64), "complex64"),
    ],
)
def test_messages_say_what_was_found_and_what_to_give(given: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pixels_of(given)


@pytest.mark.parametrize("given", [[1.0], None, Image.new("RGB", (4, 4))])
def test_only_tensors_are_images(given: Any) -> None:
    with pytest.raises(TypeError, match=rf"of type {type(given).__name__}, expected a tensor"):
        pixels_of(given)


def test_floats_keep_their_type_except_float64() -> None:
    for kind in (torch.float16, torch.bfloat16, torch.float32):
        assert pixels_of(torch.zeros(1, 3, 2, 2, dtype=kind)).dtype == kind
    assert pixels_of(torch.zeros(1, 3, 2, 2, dtype=torch.float64)).dtype == torch.float32


def test_sharp_edges_resized_by_a_bicubic_filter_are_images() -> None:
    edges = bytes_drawn() // 128 * 255
    for antialias in (False, True):
        resized = nn.functional.interpolate(
            edges.float() / 255, (37, 51), mode="bicubic", antialias=antialias
        )
        assert resized.min() < -0.1 and pixels_of(resized) is resized


def test_a_model_that_does_not_normalise_takes_what_its_caller_has_normalised() -> None:
    given = bytes_drawn().float() / 50 - 2
    for mean, std in (((0.0,) * 3, (1.0,) * 3), (None, None)):
        vit = VisionTransformer(
            ViTConfig(SIZE, 4, width=12, depth=1, num_heads=3, mean=mean, std=std)
        )
        assert vit(given).cls.isfinite().all()
        with pytest.raises(ValueError, match="NaN or infinite"):
            vit(given * torch.nan)


def test_our_own_loops_do_not_read_values() -> None:
    given = torch.full((1, 3, 2, 2), 9.0)
    with unchecked():
        assert pixels_of(given) is given
    with pytest.raises(ValueError, match="values from 9 to 9"):
        pixels_of(given)


def test_gradients_reach_the_images_and_traced_graphs_have_no_check(shaken: Shaken) -> None:
    vit = shaken(VisionTransformer(VIT)).requires_grad_(False)
    images = (bytes_drawn() / 255).requires_grad_()
    vit(images).cls[:, 0].sum().backward()
    assert images.grad is not None and images.grad.abs().sum() > 0
    compiled = torch.compile(pixels_of, backend="eager", fullgraph=True)
    assert torch.equal(compiled(images), images)
    each = torch.func.vmap(lambda image: pixels_of(image[None]).sum())(images.detach())
    assert each.shape == (2,)
    assert pixels_of(torch.zeros(1, 3, 2, 2, device="meta")).is_meta


# ── grey ────────────────────────────────────────────────────────────────────────────────────────


def test_grey_is_pillows() -> None:
    images = bytes_drawn()
    for image, luma in zip(images, grey(images / 255)[:, 0] * 255, strict=True):
        pillow = np.array(Image.fromarray(image.permute(1, 2, 0).numpy()).convert("L"))
        assert (luma - torch.from_numpy(pillow)).abs().max() < 0.51


@torch.no_grad()
def test_a_model_of_one_channel_sees_the_luma_of_rgb_images(shaken: Shaken) -> None:
    config = ViTConfig(SIZE, 4, in_channels=1, width=12, depth=2, num_heads=3)
    assert config.mean == pytest.approx((0.449,)) and config.std == pytest.approx((0.226,))
    vit = shaken(VisionTransformer(config))
    images = bytes_drawn()
    luma = (images / 255 * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)
    conv = vit.patch_embed.proj
    patches = nn.functional.conv2d((luma - 0.449) / 0.226, conv.weight, conv.bias, stride=4)
    found = vit(images, layers=[0]).layers[0][:, 1:]
    torch.testing.assert_close(found, patches.flatten(2).transpose(1, 2))
    same = vit(luma.expand(-1, 3, -1, -1))
    torch.testing.assert_close(same.patches, vit(images).patches)
    with pytest.raises(ValueError, match=r"\(2, 1, 16, 24\), expected RGB \(B, 3, H, W\)"):
        vit(luma)


def test_models_of_one_channel_train() -> None:
    config = ViTConfig(SIZE, 4, in_channels=1, width=12, depth=2, num_heads=3)
    vqkd = VQKD(VQKDConfig(config, 1, num_codes=7, code_width=1, teacher_width=5))
    vqkd(bytes_drawn()).features.sum().backward()
    assert vqkd.encoder.patch_embed.proj.weight.grad.abs().sum() > 0
    # Pixels are those of RGB images, whatever the student sees of them.
    head = {"early_layers": 1, "predicts": "pixels", "num_codes": 0}
    mim = MaskedImageModel(MaskedImageModelConfig(config, **head, target_width=48))
    assert mim(bytes_drawn(), torch.tensor([[0, 5], [2, 9]])).logits.shape == (2, 2, 48)
    with pytest.raises(ValueError, match="target_width is 16, but a patch has 48 pixel values"):
        MaskedImageModel(MaskedImageModelConfig(config, **head, target_width=16))


def test_other_numbers_of_channels_need_a_mean_and_std_for_each() -> None:
    with pytest.raises(ValueError, match="in_channels is 0; expected 3 for RGB"):
        ViTConfig(in_channels=0, mean=None, std=None)
    with pytest.raises(ValueError, match="mean has 3 values for 5 channels; give one for each"):
        ViTConfig(in_channels=5)
    assert ViTConfig(in_channels=5, mean=None, std=None).image_channels == 5
    assert ViTConfig(in_channels=5, mean=(0.5,) * 3, std=(0.25,)).std == (0.25,) * 5


def test_a_value_for_each_channel() -> None:
    assert ViTConfig(mean=(0.5,), std=(0.25,)).mean == (0.5, 0.5, 0.5)
    assert ViTConfig(in_channels=1, mean=(0.2,), std=(0.3,)).mean == (0.2,)
    with pytest.raises(ValueError, match="std has 2 values for 3 channels"):
        ViTConfig(mean=(0.5,), std=(0.1, 0.2))


# ── codes ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["vqkd", "fsq", "dvae", "dalle"])
@torch.no_grad()
def test_codes_that_cannot_be_decoded_are_refused(name: str, model: Any) -> None:
    decode = model.decode_images if hasattr(model, "decode_images") else model.decode
    K = model.vocab_size
    codes = model.encode(bytes_drawn())
    expected = decode(codes)
    for kind in (torch.int32, torch.uint8, torch.uint16):
        assert torch.equal(decode(codes.to(kind)), expected)
    assert decode(codes[:0]).shape == (0, *expected.shape[1:])
    whole = rf"expected a tensor \(B, N\) of integers in \[0, {K}\)"
    for wrong, message in (
        (codes - codes.min() - 1, rf"codes are -1 to .*, {whole}"),
        (codes - codes.max() + K, rf"codes are .* to {K}, {whole}"),
        (codes.float(), rf"torch\.float32, {whole}"),
        (codes > 1, rf"torch\.bool, {whole}"),
        (codes[0], rf"codes are \(\d+,\) torch\.int64, {whole}"),
        (codes.numpy(), rf"codes are of type ndarray, {whole}"),
        (codes[:, :5], r"\(2, 5\), expected \(B, N\), N = 4 x 6|5 codes do not fill a grid"),
    ):
        with pytest.raises(ValueError, match=message):
            decode(wrong)


def test_codes_become_int64() -> None:
    assert torch.equal(
        checked_codes(torch.tensor([[0, 6]], dtype=torch.int16), 7), torch.tensor([[0, 6]])
    )


def test_a_stacked_batch_of_opened_images_is_refused_with_the_remedy() -> None:
    stacked = bytes_drawn()[:, None]  # as a DataLoader stacks what open_image returns
    with pytest.raises(ValueError, match=r"images are \(2, 1, 3, .*; give images\.flatten\(0, 1\)"):
        pixels_of(stacked)
    assert torch.equal(pixels_of(stacked.flatten(0, 1)), pixels_of(bytes_drawn()))
