from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from beit.nn.segmenter import (
    ConvBlock,
    SegmenterConfig,
    SemanticSegmenter,
    UPerNetDecoder,
    pixel_loss,
    resize_maps,
)
from beit.nn.vit import ViTConfig
from beit.weights.formats.transformers_beit import from_transformers

Shaken = Callable[[nn.Module], nn.Module]
SavedTensors = Callable[[], AbstractContextManager[list[Tensor]]]
TRUNK = ViTConfig(
    image_size=(12, 20),  # grid 3 x 5
    patch_size=4,
    width=6,
    depth=5,
    num_heads=3,
    relative_bias="per_block",
)
CONFIG = SegmenterConfig(
    TRUNK, num_classes=9, layers=(1, 2, 4, 5), channels=7, auxiliary_channels=8
)


@pytest.fixture
def segmenter(shaken: Shaken) -> SemanticSegmenter:
    """Every number its own, running statistics included."""
    model = SemanticSegmenter(CONFIG)
    for name, buffer in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.copy_(0.5 + torch.rand_like(buffer))
    shaken(model)
    return model


def some_images() -> Tensor:
    return torch.rand(2, 3, 12, 20, generator=torch.Generator().manual_seed(0))


def conv_block(block: ConvBlock, maps: Tensor) -> Tensor:
    maps = F.conv2d(maps, block.conv.weight, padding=block.conv.weight.shape[-1] // 2)
    return batch_norm(block.norm, maps).clamp(min=0)


def batch_norm(norm: nn.BatchNorm2d, maps: Tensor) -> Tensor:
    scale = norm.weight / (norm.running_var + 1e-5).sqrt()
    shift = norm.bias - norm.running_mean * scale
    return maps * scale[:, None, None] + shift[:, None, None]


def doubled(conv: nn.ConvTranspose2d, maps: Tensor) -> Tensor:
    """Every pixel becomes 2 x 2 pixels, each a linear layer of it."""
    B, _, h, w = maps.shape
    squares = torch.einsum("bchw,coyx->bohywx", maps, conv.weight)
    return squares.reshape(B, -1, 2 * h, 2 * w) + conv.bias[:, None, None]


def pooled(maps: Tensor, side: int) -> Tensor:
    """Means over side x side windows that cover the map and overlap where they must."""
    h, w = maps.shape[2:]
    rows = [slice(i * h // side, -(-(i + 1) * h // side)) for i in range(side)]
    columns = [slice(j * w // side, -(-(j + 1) * w // side)) for j in range(side)]
    means = [[maps[:, :, y, x].mean((2, 3)) for x in columns] for y in rows]
    return torch.stack([torch.stack(row, dim=-1) for row in means], dim=-2)


@torch.no_grad()
def test_forward_equals_the_published_steps_one_after_another(
    segmenter: SemanticSegmenter,
) -> None:
    raw = segmenter.backbone(some_images(), layers=(1, 2, 4, 5)).layers
    maps = [raw[i][:, 1:].reshape(2, 3, 5, 6).permute(0, 3, 1, 2) for i in (1, 2, 4, 5)]
    pyramid, decoder, auxiliary = segmenter.pyramid, segmenter.decoder, segmenter.auxiliary
    first = F.gelu(batch_norm(pyramid.up4[1], doubled(pyramid.up4[0], maps[0])))
    level1 = doubled(pyramid.up4[3], first)  # 12 x 20
    level2 = doubled(pyramid.up2, maps[1])  # 6 x 10
    level3 = maps[2]  # 3 x 5
    level4 = maps[3][:, :, :2, :4].unflatten(3, (2, 2)).amax((2, 4))[:, :, None]  # 1 x 2

    context = [
        resize_maps(conv_block(block, pooled(level4, side)), (1, 2))
        for block, side in zip(decoder.pooled, (1, 2, 3, 6), strict=True)
    ]
    path4 = conv_block(decoder.bottleneck, torch.cat([level4, *context], dim=1))
    path3 = conv_block(decoder.lateral[2], level3) + resize_maps(path4, (3, 5))
    path2 = conv_block(decoder.lateral[1], level2) + resize_maps(path3, (6, 10))
    path1 = conv_block(decoder.lateral[0], level1) + resize_maps(path2, (12, 20))
    outputs = [
        conv_block(decoder.smooth[0], path1),
        resize_maps(conv_block(decoder.smooth[1], path2), (12, 20)),
        resize_maps(conv_block(decoder.smooth[2], path3), (12, 20)),
        resize_maps(path4, (12, 20)),
    ]
    joined = conv_block(decoder.fuse, torch.cat(outputs, dim=1))
    logits = F.conv2d(joined, decoder.head.weight, decoder.head.bias)
    hint = conv_block(auxiliary.conv, level3)
    hint = F.conv2d(hint, auxiliary.head.weight, auxiliary.head.bias)

    output = segmenter(some_images())
    assert output.logits.shape == (2, 9, 12, 20)
    assert output.auxiliary.shape == (2, 9, 3, 5)
    torch.testing.assert_close(output.logits, logits)
    torch.testing.assert_close(output.auxiliary, hint)


@pytest.mark.slow
@torch.no_grad()
def test_at_512_it_computes_what_transformers_computes() -> None:
    """A small width at the published size, heads included; tests/store has the same tiny.

    Theirs differs from the published code: its `out_indices` count what enters the first block, so
    that published numbers read two blocks earlier and the last block is out of reach; it drops no
    maps before its classification layers; it reads position tables with height and width swapped.
    """
    transformers = pytest.importorskip("transformers")
    config = transformers.BeitConfig(
        image_size=512,
        hidden_size=192,
        num_attention_heads=3,
        intermediate_size=768,
        use_relative_position_bias=True,
        layer_norm_eps=1e-6,
        out_indices=[5, 7, 9, 12],
        num_labels=150,
    )
    theirs = transformers.BeitForSemanticSegmentation(config).eval()
    for name, tensor in theirs.state_dict().items():
        if tensor.is_floating_point():
            tensor.add_(0.1 * torch.rand_like(tensor) / (10 if "weight" in name else 1))
    hints: list[Tensor] = []
    theirs.auxiliary_head.register_forward_hook(lambda *call: hints.append(call[-1]))
    ours = from_transformers(theirs.state_dict(), config=config.to_dict())
    assert ours.config.layers == (4, 6, 8, 11)
    images = torch.rand(1, 3, 512, 512)
    expected, output = theirs((images - 0.5) / 0.5).logits, ours(images)
    assert expected.shape == (1, 150, 128, 128)
    assert hints[0].shape == (1, 150, 32, 32)
    for actual, target in ((output.logits, expected), (output.auxiliary, hints[0])):
        assert target.std() > 0.01
        torch.testing.assert_close(actual, target, rtol=0, atol=1e-4 * float(target.abs().max()))


@torch.no_grad()
def test_a_linear_head_is_a_linear_layer_on_the_normed_patches(shaken: Shaken) -> None:
    model = SemanticSegmenter(replace(CONFIG, head="linear", layers=(9, 3)))
    shaken(model)
    assert not model.config.auxiliary
    assert model.config.layers == ()
    patches = model.backbone(some_images()).patches  # (2, 15, 6)
    expected = patches @ model.decoder.head.weight[:, :, 0, 0].T + model.decoder.head.bias
    logits, auxiliary = model(some_images())
    assert auxiliary is None
    torch.testing.assert_close(logits, expected.transpose(1, 2).reshape(2, 9, 3, 5))
    torch.testing.assert_close(model.predict(some_images()), resize_maps(logits, (12, 20)))


def test_the_loss_is_a_mean_over_all_pixels() -> None:
    logits = torch.randn(2, 3, 2, 3, generator=torch.Generator().manual_seed(5))
    labels = torch.randint(3, (2, 4, 6), generator=torch.Generator().manual_seed(6))
    labels[0, 1:3, 2:] = 255
    logs = resize_maps(logits, (4, 6)).log_softmax(dim=1)
    total = 0.0
    for b, y, x in (labels != 255).nonzero().tolist():
        total -= float(logs[b, labels[b, y, x], y, x])
    assert float(pixel_loss(logits, labels.to(torch.uint8))) == pytest.approx(total / 48, rel=1e-5)
    nothing = torch.full((2, 4, 6), 255)
    assert float(pixel_loss(logits.bfloat16(), nothing)) == 0


@pytest.mark.parametrize(
    ("limit", "images"), [(10**9, [5]), (2 * 3 * 4 * 6, [2, 2, 1]), (1, [1] * 5)]
)
def test_the_loss_makes_logits_of_full_size_for_a_few_images_at_a_time(
    limit: int, images: list[int], monkeypatch: pytest.MonkeyPatch, saved_tensors: SavedTensors
) -> None:
    logits = torch.randn(5, 3, 2, 3, generator=torch.Generator().manual_seed(5)).requires_grad_()
    labels = torch.randint(3, (5, 4, 6), generator=torch.Generator().manual_seed(6))
    labels[0, 1:3, 2:] = 255
    plain = F.cross_entropy(resize_maps(logits, (4, 6)), labels, ignore_index=255, reduction="sum")
    monkeypatch.setattr("beit.nn.segmenter.FINE_LOGITS", limit)
    with saved_tensors() as saved:
        loss = pixel_loss(logits, labels)
    assert [tensor.shape for tensor in saved if tensor.ndim == 4] == [(n, 3, 2, 3) for n in images]
    torch.testing.assert_close(loss, plain / labels.numel())
    (gradient,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(gradient, torch.autograd.grad(plain / labels.numel(), logits)[0])


@torch.no_grad()
def test_the_auxiliary_head_has_no_part_in_the_logits(segmenter: SemanticSegmenter) -> None:
    plain = SemanticSegmenter(replace(CONFIG, auxiliary=False)).eval()
    state = segmenter.state_dict()
    plain.load_state_dict({k: v for k, v in state.items() if not k.startswith("auxiliary")})
    output = plain(some_images())
    assert output.auxiliary is None
    assert torch.equal(output.logits, segmenter(some_images()).logits)


def test_resizing_is_bilinear_between_the_centres_of_pixels() -> None:
    maps = torch.tensor([[[[0.0, 4.0]]]])
    assert resize_maps(maps, (1, 4)).tolist() == [[[[0.0, 1.0, 3.0, 4.0]]]]
    assert resize_maps(maps, (2, 1)).tolist() == [[[[2.0], [2.0]]]]
    assert torch.equal(resize_maps(maps, (1, 2)), maps)


@torch.no_grad()
def test_predictions_have_the_size_of_the_images_and_logits_a_quarter_of_it() -> None:
    config = replace(CONFIG, backbone=replace(TRUNK, image_size=(32, 80), patch_size=16))
    model = SemanticSegmenter(config).eval()
    images = torch.rand(2, 3, 32, 80, generator=torch.Generator().manual_seed(1))
    logits, predictions = model(images).logits, model.predict(images)
    assert logits.shape == (2, 9, 8, 20)
    assert predictions.shape == (2, 9, 32, 80)
    # The centre of pixel 4 lies 5/8 of the way from the first logits to the second.
    expected = logits[:, :, :2, :2].flatten(2) @ torch.tensor([9.0, 15.0, 15.0, 25.0]) / 64
    torch.testing.assert_close(predictions[:, :, 4, 4], expected)


def test_every_parameter_learns(segmenter: SemanticSegmenter) -> None:
    output = segmenter.train()(some_images())
    (output.logits.square().mean() + output.auxiliary.square().mean()).backward()
    still = [name for name, p in segmenter.named_parameters() if not p.grad.abs().sum() > 0]
    assert still == []


@torch.no_grad()
def test_whole_maps_are_dropped_in_training_only() -> None:
    """Without its other parts a head of ones counts the maps that were kept."""
    decoder = UPerNetDecoder(width=6, channels=64, num_classes=3, dropout=0.25)
    levels = [torch.rand(2, 6, side, side) for side in (16, 8, 4, 2)]
    for module in (decoder.fuse.norm, decoder.head):
        nn.init.zeros_(module.weight)
        nn.init.ones_(module.bias)
    decoder.head.weight.fill_(0.75)
    assert torch.equal(decoder.eval()(levels), torch.full((2, 3, 16, 16), 49.0))
    kept = decoder.train()(levels) - 1
    assert torch.equal(kept, kept[:, :, :1, :1].expand_as(kept))  # the same in every pixel
    assert not torch.equal(kept[0], kept[1])
    assert torch.equal(kept, kept.round()) and 32 < kept.min() and kept.max() < 64


@torch.no_grad()
def test_first_weights_are_distributed_as_published() -> None:
    model = SemanticSegmenter(
        SegmenterConfig(replace(TRUNK, width=96), num_classes=60, layers=(1, 2, 3, 4), channels=80)
    )
    for block in (b for b in model.modules() if isinstance(b, ConvBlock)):
        channels, _, kernel, _ = block.conv.weight.shape
        deviation = (2 / (channels * kernel**2)) ** 0.5  # He et al. 2015, by outputs
        assert block.conv.weight.std() == pytest.approx(deviation, rel=0.05)
        assert block.conv.weight.abs().max() > 3 * deviation  # not a uniform distribution
    for head in (model.decoder.head, model.auxiliary.head):
        assert head.weight.std() == pytest.approx(0.01, rel=0.05)
        assert head.bias.eq(0).all()


def test_the_defaults_are_the_published_base_model() -> None:
    config = SegmenterConfig()
    assert (config.num_classes, config.layers, config.channels) == (150, (4, 6, 8, 12), 768)
    assert (config.backbone.grid, config.backbone.relative_bias) == ((32, 32), "per_block")
    assert not config.backbone.final_norm


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"layers": (1, 2, 3)},
            r"four backbone blocks in ascending order, .* got \(1, 2, 3\)",
        ),
        ({"layers": (1, 2, 2, 5)}, "in ascending order"),
        ({"layers": (0, 1, 2, 3)}, r"1 to 5, got \(0, 1, 2, 3\)"),
        ({"layers": (2, 3, 4, 6)}, r"1 to 5, got \(2, 3, 4, 6\)"),
        ({"backbone": replace(TRUNK, image_size=(4, 20))}, r"2 x 2 patches or more, got \(1, 5\)"),
        ({"head": "fcn"}, "head must be upernet or linear, got 'fcn'"),
        ({"num_classes": 0}, "must be 1 or more, got 0, 7 and 8"),
        ({"channels": -1}, "must be 1 or more, got 9, -1 and 8"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"class_names": ("sky", "sea")}, "class_names has 2 entries, expected one for each of 9"),
        ({"palette": ((1, 2, 3),)}, "palette has 1 entries"),
    ],
)
def test_a_configuration_that_cannot_be_built_is_refused(
    changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **changes)


def test_classes_are_the_names_or_none() -> None:
    names = tuple(f"class {number}" for number in range(9))
    assert SemanticSegmenter(replace(CONFIG, class_names=names)).classes == names
    assert SemanticSegmenter(CONFIG).classes is None
