from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from beit.nn.block import INIT_STD
from beit.nn.position import (
    resize_absolute,
    resize_relative_bias,
    resized,
    with_bias_per_block,
)
from beit.nn.vit import VisionTransformer, ViTConfig, vit_config

Shaken = Callable[[nn.Module], nn.Module]
CONFIG = ViTConfig(image_size=(6, 10), patch_size=2, width=12, depth=4, num_heads=3)  # grid 3 x 5


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some_images(seed: int = 0) -> Tensor:
    return torch.rand(2, 3, 6, 10, generator=seeded(seed))


def by_hand(vit: VisionTransformer, images: Tensor) -> list[Tensor]:
    """Tokens before the first block, then after each: (B, 1+N, D)."""
    mean, std = torch.tensor(vit.config.mean), torch.tensor(vit.config.std)
    pixels = (images - mean[:, None, None]) / std[:, None, None]
    proj = vit.patch_embed.proj
    patches = F.conv2d(pixels, proj.weight, proj.bias, stride=2).flatten(2).transpose(1, 2)
    tokens = torch.cat([vit.cls_token.repeat(len(images), 1, 1), patches], dim=1)
    if vit.pos_embed is not None:
        tokens = tokens + vit.pos_embed
    bias = None if vit.rel_pos_bias is None else vit.rel_pos_bias()
    outputs = [tokens]
    for block in vit.blocks:
        outputs.append(block(outputs[-1], bias))
    return outputs


@pytest.mark.parametrize("relative_bias", ["none", "shared", "per_block"])
@pytest.mark.parametrize("absolute_positions", [False, True])
@torch.no_grad()
def test_forward_equals_its_parts_one_after_another(
    shaken: Shaken, relative_bias: str, absolute_positions: bool
) -> None:
    config = replace(CONFIG, relative_bias=relative_bias, absolute_positions=absolute_positions)
    vit = VisionTransformer(config)
    assert (vit.pos_embed is not None) == absolute_positions
    assert (vit.rel_pos_bias is not None) == (relative_bias == "shared")
    tables = [
        name for name, _ in vit.named_parameters() if name.endswith("attn.rel_pos_bias.table")
    ]
    assert len(tables) == (4 if relative_bias == "per_block" else 0)
    shaken(vit)
    features = vit(some_images())
    expected = vit.norm(by_hand(vit, some_images())[-1])
    torch.testing.assert_close(features.cls, expected[:, 0])
    torch.testing.assert_close(features.patches, expected[:, 1:])
    assert features.grid == (3, 5)
    assert features.layers == {}


@torch.no_grad()
def test_layers_are_the_raw_outputs_of_the_blocks_from_one(shaken: Shaken) -> None:
    vit = VisionTransformer(CONFIG)
    shaken(vit)
    features = vit(some_images(), layers=(1, 4))
    expected = by_hand(vit, some_images())
    assert sorted(features.layers) == [1, 4]
    torch.testing.assert_close(features.layers[1], expected[1])
    torch.testing.assert_close(features.layers[4], expected[4])
    assert torch.equal(vit.norm(features.layers[4])[:, 1:], features.patches)
    assert not torch.allclose(features.layers[4][:, 1:], features.patches)


@torch.no_grad()
@pytest.mark.parametrize("layer", [-1, 5])
def test_layers_that_do_not_exist_are_refused(layer: int) -> None:
    vit = VisionTransformer(CONFIG)
    with pytest.raises(ValueError, match=rf"layers is \(2, {layer}\); .* from 1 to 4, or 0 for"):
        vit(some_images(), layers=(2, layer))
    for layers in (2, "all"):
        with pytest.raises(ValueError, match=f"layers is {layers!r}; expected a list of blocks"):
            vit(some_images(), layers=layers)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_a_model_of_another_dtype_takes_the_same_images(shaken: Shaken, dtype: torch.dtype) -> None:
    vit = shaken(VisionTransformer(CONFIG))
    images = (255 * some_images()).to(torch.uint8)
    expected = vit(images).patches
    for given in (images, images / 255):
        patches = vit.to(dtype)(given).patches
        assert patches.dtype == dtype
        torch.testing.assert_close(patches.float(), expected, atol=0.1, rtol=0.1)


def test_a_mask_without_its_token_is_refused() -> None:
    with pytest.raises(ValueError, match=r"masked needs mask_token \(1, 1, D\).*model\.mask_token"):
        VisionTransformer(CONFIG)(some_images(), torch.tensor([[1, 3], [0, 2]]))


def test_a_mask_of_bools_is_refused() -> None:
    vit, hidden = (
        VisionTransformer(CONFIG),
        torch.tensor([[1, 0, 1, 0, 0] * 3, [0, 1, 1, 0, 0] * 3]),
    )
    with pytest.raises(ValueError, match=r"masked is bool.*give masked\.flatten\(1\)") as error:
        vit(some_images(), hidden.bool(), torch.zeros(1, 1, 12))
    code = str(error.value).partition("give ")[2].partition(", for M")[0]
    indices = eval(code, {"masked": hidden.bool().view(2, 3, 5), "B": 2, "M": 6})
    assert torch.equal(hidden.scatter(1, indices, 0), torch.zeros_like(hidden))
    vit(some_images(), indices, torch.zeros(1, 1, 12))


def test_without_final_norm_the_features_are_the_last_block(shaken: Shaken) -> None:
    vit = VisionTransformer(replace(CONFIG, final_norm=False))
    shaken(vit)
    features = vit(some_images(), layers=(4,))
    assert torch.equal(features.layers[4][:, 0], features.cls)


@torch.no_grad()
def test_uint8_and_float_images_give_the_same_features(shaken: Shaken) -> None:
    vit = shaken(VisionTransformer(CONFIG))
    levels = torch.randint(0, 256, (2, 3, 6, 10), generator=seeded(), dtype=torch.uint8)
    assert torch.equal(vit(levels).patches, vit(levels.float() / 255).patches)


@torch.no_grad()
def test_the_model_normalises_its_images_itself(shaken: Shaken) -> None:
    config = replace(CONFIG, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    vit = shaken(VisionTransformer(config))
    plain = VisionTransformer(replace(config, mean=None, std=None)).eval()
    plain.load_state_dict(vit.state_dict())  # the buffers are no part of the weights
    images = some_images()
    normalised = torch.stack(
        [
            (images[:, 0] - 0.1) / 0.4,
            (images[:, 1] - 0.2) / 0.5,
            (images[:, 2] - 0.3) / 0.6,
        ],
        dim=1,
    )
    torch.testing.assert_close(vit(images).patches, plain(normalised).patches)


@pytest.mark.parametrize("height_and_width", [(10, 6), (6, 12), (12, 20)])
def test_images_of_another_size_are_refused(height_and_width: tuple[int, int]) -> None:
    height, width = height_and_width
    with pytest.raises(ValueError, match=f"images are {height} x {width}, the model takes 6 x 10"):
        VisionTransformer(CONFIG)(torch.rand(2, 3, height, width))


@torch.no_grad()
def test_hidden_pixels_cannot_change_anything_and_visible_ones_do(shaken: Shaken) -> None:
    vit = shaken(VisionTransformer(CONFIG))
    mask_token = torch.randn(1, 1, 12, generator=seeded(1))
    masked = torch.tensor([[0, 7, 9], [2, 3, 14]])
    images, others = some_images(), some_images()
    for image, hidden in zip(others, masked.tolist(), strict=True):
        for patch in hidden:
            y, x = 2 * (patch // 5), 2 * (patch % 5)
            image[:, y : y + 2, x : x + 2] = 0.5
    assert not torch.equal(images, others)
    features, same = vit(images, masked, mask_token), vit(others, masked, mask_token)
    assert torch.equal(features.patches, same.patches) and torch.equal(features.cls, same.cls)
    others[:, :, 0, 2] += 0.5  # patch 1, which both images show
    assert not torch.equal(vit(others, masked, mask_token).cls, features.cls)
    assert not torch.equal(vit(images, masked, mask_token + 1).cls, features.cls)


def test_stochastic_depth_grows_linearly_from_zero() -> None:
    vit = VisionTransformer(replace(CONFIG, drop_path=0.3))
    assert [block.drop_rate for block in vit.blocks] == pytest.approx([0.0, 0.1, 0.2, 0.3])


def test_first_weights_are_cut_and_rescaled_by_layer() -> None:
    vit = VisionTransformer(replace(CONFIG, width=96, absolute_positions=True))
    for tensor in (vit.cls_token, vit.pos_embed, vit.patch_embed.proj.weight):
        assert 0.8 * INIT_STD < tensor.abs().max() <= INIT_STD
    for layer, block in enumerate(vit.blocks, 1):
        bound = INIT_STD / (2 * layer) ** 0.5
        assert 0.99 * bound < block.mlp.fc2.weight.abs().max() <= bound * 1.0001
        assert 0.99 * bound < block.attn.proj.weight.abs().max() <= bound * 1.0001
        assert 0.99 * INIT_STD < block.mlp.fc1.weight.abs().max() <= INIT_STD


def test_named_sizes() -> None:
    large = vit_config("L", image_size=(64, 96), patch_size=8, relative_bias="none", drop_path=0.2)
    assert (large.width, large.depth, large.num_heads, large.layer_scale) == (1024, 24, 16, 1e-5)
    assert (large.grid, large.num_patches, large.drop_path) == ((8, 12), 96, 0.2)
    assert vit_config("B") == ViTConfig()
    with pytest.raises(ValueError, match="no ViT size 'XL'; sizes are Ti, S, B, L, H"):
        vit_config("XL")  # type: ignore[arg-type]


@pytest.mark.parametrize("relative_bias", ["none", "shared", "per_block"])
@torch.no_grad()
def test_a_model_is_carried_to_images_of_another_size(shaken: Shaken, relative_bias: str) -> None:
    config = replace(CONFIG, relative_bias=relative_bias, absolute_positions=True)
    vit = shaken(VisionTransformer(config))
    before = {name: tensor.clone() for name, tensor in vit.state_dict().items()}
    assert resized(vit, (6, 10)) is vit
    larger = resized(vit, (8, 18))
    assert larger.config == replace(config, image_size=(8, 18))
    assert not larger.training
    fresh = VisionTransformer(larger.config).eval()
    fresh.load_state_dict(larger.state_dict())
    images = torch.rand(2, 3, 8, 18, generator=seeded())
    assert torch.equal(larger(images).patches, fresh(images).patches)
    assert larger(images).grid == (4, 9)
    old, new = (3, 5), (4, 9)
    for name, tensor in larger.state_dict().items():
        expected = before[name]
        if name == "pos_embed":
            expected = resize_absolute(expected, old, new)
        elif name.endswith("table"):
            expected = resize_relative_bias(expected, old, new)
        assert torch.equal(tensor, expected), name
    assert all(torch.equal(vit.state_dict()[name], before[name]) for name in before)
    assert all(parameter.requires_grad for parameter in larger.parameters())
    with pytest.raises(ValueError, match=r"image size \(8, 17\)"):
        resized(vit, (8, 17))


def test_a_model_states_its_image_size() -> None:
    vit = VisionTransformer(CONFIG)
    assert vit.image_size == (6, 10)
    assert resized(vit, (8, 4)).image_size == (8, 4)


@torch.no_grad()
def test_a_shared_bias_given_to_every_block_changes_nothing(shaken: Shaken) -> None:
    vit = shaken(VisionTransformer(CONFIG))
    own = with_bias_per_block(vit)
    assert own.config == replace(CONFIG, relative_bias="per_block")
    assert vit.config.relative_bias == "shared"
    assert torch.equal(own(some_images()).patches, vit(some_images()).patches)
    own.blocks[1].attn.rel_pos_bias.table.zero_()  # it is that block's alone
    assert own.blocks[0].attn.rel_pos_bias.table.any()
    assert vit.rel_pos_bias.table.any()
    assert not torch.equal(own(some_images()).patches, vit(some_images()).patches)
    assert with_bias_per_block(own) is own
    with pytest.raises(ValueError, match="no shared relative position bias"):
        with_bias_per_block(VisionTransformer(replace(CONFIG, relative_bias="none")))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": (6, 9)}, r"image size \(6, 9\)"),
        ({"num_heads": 5}, "width 12 is not a multiple of num_heads 5"),
        ({"mean": None}, "mean and std go together"),
        ({"drop_path": 1.0}, r"drop_path must be in \[0, 1\), got 1.0"),
    ],
)
def test_a_configuration_that_cannot_be_built_is_refused(
    changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **changes)


def test_the_remedy_for_another_size_of_images_works(shaken: Shaken) -> None:
    vit = shaken(VisionTransformer(CONFIG))
    images = torch.rand(1, 3, 12, 8)
    with pytest.raises(ValueError, match=r"position\.resized\(model, \(12, 8\)\)$") as refused:
        vit(images)
    remedy = str(refused.value).split(": ")[-1].removeprefix("beit.nn.position.")
    assert eval(remedy, {"resized": resized, "model": vit})(images).grid == (6, 4)
    odd = torch.rand(1, 3, 13, 8)
    with pytest.raises(ValueError, match=r", or F\.interpolate.*antialias=True\)$") as refused:
        vit(odd)  # no multiple of the patch: no model takes it
    remedy = str(refused.value).partition(", or ")[2]
    assert vit(eval(remedy, {"F": torch.nn.functional, "images": odd})).grid == (3, 5)
