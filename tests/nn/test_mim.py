from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from beit.nn import mim
from beit.nn.block import INIT_STD
from beit.nn.losses import masked_losses, prediction_loss, weighted_mean
from beit.nn.mim import MaskedImageModel, MaskedImageModelConfig, linear_cross_entropy
from beit.nn.patches import take
from beit.nn.vit import ViTConfig, vit_config

Shaken = Callable[[nn.Module], nn.Module]
BACKBONE = ViTConfig(image_size=(6, 10), patch_size=2, width=12, depth=4, num_heads=3)  # 3 x 5
CONFIG = MaskedImageModelConfig(BACKBONE, num_codes=11, early_layers=3, head_layers=2)
MASKED = torch.tensor([[0, 6, 7, 9], [2, 3, 8, 14]])  # neither hides patch 1


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some_images(seed: int = 0) -> Tensor:
    return torch.rand(2, 3, 6, 10, generator=seeded(seed))


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (MaskedImageModelConfig(), 106_143_056),
        (MaskedImageModelConfig(vit_config("L"), early_layers=21), 336_728_512),
        (MaskedImageModelConfig(head_layers=0), 91_965_776),
        (MaskedImageModelConfig(vit_config("L"), head_layers=0), 311_534_016),
    ],
)
def test_published_sizes(config: MaskedImageModelConfig, expected: int) -> None:
    with torch.device("meta"):
        model = MaskedImageModel(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == expected


def test_take_picks_the_masked_patches() -> None:
    patches = torch.randn(2, 15, 12, generator=seeded())
    taken = take(patches, MASKED)
    for b in range(2):
        for m in range(4):
            assert torch.equal(taken[b, m], patches[b, MASKED[b, m]])


@pytest.mark.parametrize("relative_bias", ["shared", "per_block"])
@pytest.mark.parametrize("shared_head", [True, False])
@torch.no_grad()
def test_forward_equals_its_parts_one_after_another(
    shaken: Shaken, shared_head: bool, relative_bias: str
) -> None:
    backbone = replace(BACKBONE, relative_bias=relative_bias)
    model = MaskedImageModel(replace(CONFIG, backbone=backbone, shared_head=shared_head))
    shaken(model)
    vit = model.backbone
    pixels = (some_images() - vit.mean) / vit.std
    patches = vit.patch_embed(pixels)
    for b in range(2):
        patches[b, MASKED[b]] = model.mask_token[0]
    tokens = torch.cat([vit.cls_token.expand(2, -1, -1), patches], dim=1)
    for number, block in enumerate(vit.blocks, 1):
        tokens = block(tokens, vit.bias())
        if number == 3:
            early = tokens
    aggregated = torch.cat([tokens[:, :1], early[:, 1:]], dim=1)
    for block in model.aggregation:
        aggregated = block(aggregated, vit.bias())
    cls_norm = vit.norm if shared_head else model.cls_norm
    cls_head = model.head if shared_head else model.cls_head

    prediction = model(some_images(), MASKED)
    assert prediction.logits.shape == prediction.cls_logits.shape == (2, 4, 11)
    for b in range(2):
        for m in range(4):
            place = 1 + MASKED[b, m]
            torch.testing.assert_close(
                prediction.logits[b, m], model.head(vit.norm(tokens[b, place]))
            )
            torch.testing.assert_close(
                prediction.cls_logits[b, m], cls_head(cls_norm(aggregated[b, place]))
            )


@pytest.mark.parametrize("shared_head", [True, False])
@torch.no_grad()
def test_pixels_under_the_mask_cannot_change_the_logits(shaken: Shaken, shared_head: bool) -> None:
    model = shaken(MaskedImageModel(replace(CONFIG, shared_head=shared_head)))
    images, others = some_images(), some_images()
    for image, hidden in zip(others, MASKED.tolist(), strict=True):
        for patch in hidden:
            y, x = 2 * (patch // 5), 2 * (patch % 5)
            image[:, y : y + 2, x : x + 2] = torch.rand(3, 2, 2, generator=seeded(patch))
    prediction, same = model(images, MASKED), model(others, MASKED)
    assert not torch.equal(images, others)
    assert torch.equal(prediction.logits, same.logits)
    assert torch.equal(prediction.cls_logits, same.cls_logits)
    others[:, :, 0, 2] += 0.5  # patch 1 shows
    changed = model(others, MASKED)
    assert not torch.equal(prediction.logits[0], changed.logits[0])
    assert not torch.equal(prediction.cls_logits[1], changed.cls_logits[1])


@torch.no_grad()
def test_hidden_patches_differ_by_position_only(shaken: Shaken) -> None:
    model = shaken(MaskedImageModel(CONFIG))
    everything = torch.arange(15).expand(2, -1)
    first, second = model(some_images(), everything).logits
    assert torch.equal(first, second)  # two images, of which nothing shows
    assert not torch.allclose(first[0], first[7])


@torch.no_grad()
def test_without_aggregation_there_is_one_prediction_and_it_is_the_same(shaken: Shaken) -> None:
    model = shaken(MaskedImageModel(CONFIG))
    plain = MaskedImageModel(replace(CONFIG, head_layers=0)).eval()
    left_out = plain.load_state_dict(model.state_dict(), strict=False)
    assert not left_out.missing_keys
    assert all(key.startswith("aggregation.") for key in left_out.unexpected_keys)
    prediction = plain(some_images(), MASKED)
    assert prediction.cls_logits is None
    assert torch.equal(prediction.logits, model(some_images(), MASKED).logits)


def test_the_second_loss_teaches_the_early_patches_and_the_last_cls(shaken: Shaken) -> None:
    model = shaken(MaskedImageModel(replace(CONFIG, shared_head=False)))
    outputs: list[Tensor] = []
    model.backbone.blocks[2].register_forward_hook(lambda *call: outputs.append(call[-1]))
    with torch.no_grad():
        model.backbone.blocks[3].gamma_1.zero_()  # no way from patches to [CLS] after block 3
    targets = torch.randint(11, (2, 4), generator=seeded())
    cls_loss = masked_losses(model(some_images(), MASKED), targets)[1]
    (gradient,) = torch.autograd.grad(cls_loss, outputs[0], retain_graph=True)  # (B, 1+N, D)
    assert (gradient.abs().amax(dim=2) > 0).all()
    cls_loss.backward()
    assert model.backbone.blocks[3].mlp.fc2.weight.grad.abs().max() > 0
    assert model.head.weight.grad is None and model.backbone.norm.weight.grad is None


def test_stochastic_depth_goes_on_into_the_aggregation() -> None:
    backbone = replace(BACKBONE, drop_path=0.4)
    longer = MaskedImageModel(replace(CONFIG, backbone=backbone))  # 3 + 2 blocks against 4
    assert [block.drop_rate for block in longer.aggregation] == pytest.approx([0.3, 0.4])
    inside = MaskedImageModel(replace(CONFIG, backbone=backbone, early_layers=1))
    assert [block.drop_rate for block in inside.aggregation] == pytest.approx([0.4 / 3, 0.8 / 3])


def test_initial_weights_of_heads_and_mask_token_are_truncated() -> None:
    backbone = replace(BACKBONE, width=96)
    model = MaskedImageModel(replace(CONFIG, backbone=backbone, shared_head=False))
    assert 0.8 * INIT_STD < model.mask_token.abs().max() <= INIT_STD
    for head in (model.head, model.cls_head):
        assert 0.98 * INIT_STD < head.weight.abs().max() <= INIT_STD
        assert not head.bias.any()


def test_aggregation_blocks_keep_the_default_initialisation() -> None:
    backbone = replace(BACKBONE, width=96)
    model = MaskedImageModel(replace(CONFIG, backbone=backbone))
    for layer, block in enumerate(model.aggregation, 4):  # numbered on from block 3
        residual = (2 * layer) ** 0.5
        for linear, factor in (
            (block.attn.qkv, 1),
            (block.mlp.fc1, 1),
            (block.attn.proj, residual),
            (block.mlp.fc2, residual),
        ):
            bound = linear.in_features**-0.5  # uniform within it: kaiming_uniform_(a=5**0.5)
            weight = linear.weight * factor
            assert 0.99 * bound < weight.abs().max() <= 1.0001 * bound
            assert abs(weight.std() / (bound / 3**0.5) - 1) < 0.05
            if linear.bias is not None:
                assert 0.8 * bound < linear.bias.abs().max() <= bound


@pytest.mark.parametrize("early_layers", [0, 5])
def test_a_block_that_does_not_exist_is_refused(early_layers: int) -> None:
    with pytest.raises(ValueError, match=f"1 to 4, got {early_layers}"):
        replace(CONFIG, early_layers=early_layers)


def test_a_vocabulary_size_of_0_is_refused() -> None:
    with pytest.raises(ValueError, match="num_codes must be 2 or more, got 0"):
        MaskedImageModel(replace(CONFIG, num_codes=0))


# ── other targets ───────────────────────────────────────────────────────────────────────────────

PIXELS = replace(CONFIG, num_codes=0, predicts="pixels", target_width=12, normalised=True)


@pytest.mark.parametrize("shared_head", [True, False])
def test_the_head_is_as_wide_as_its_target(shared_head: bool) -> None:
    config = replace(PIXELS, predicts="features", target_width=7, shared_head=shared_head)
    for changed, width in ((config, 7), (PIXELS, 12)):
        prediction = MaskedImageModel(changed)(some_images(), MASKED)
        assert prediction.logits.shape == prediction.cls_logits.shape == (2, 4, width)


@torch.no_grad()
def test_other_positions_are_predicted_under_the_same_mask(shaken: Shaken) -> None:
    model = shaken(MaskedImageModel(CONFIG))
    everything = torch.arange(15).expand(2, -1)
    prediction = model(some_images(), MASKED, everything)
    assert prediction.logits.shape == (2, 15, 11)
    masked_only = model(some_images(), MASKED)
    for actual, expected in zip(prediction, masked_only, strict=True):
        torch.testing.assert_close(take(actual, MASKED), expected)


@torch.no_grad()
def test_a_patch_listed_twice_is_hidden_once(shaken: Shaken) -> None:
    model = shaken(MaskedImageModel(CONFIG))
    once = model(some_images(), torch.tensor([[0, 6], [2, 3]]))
    twice = model(some_images(), torch.tensor([[0, 6, 6], [2, 3, 3]]))
    torch.testing.assert_close(twice.cls_logits[:, :2], once.cls_logits)
    assert torch.equal(twice.logits[:, 1], twice.logits[:, 2])


def test_codes_of_other_patches_than_the_hidden_ones_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"codes are \(2, 15\) .*; expected \(2, 4\) int64, .*gather"
    ):
        MaskedImageModel(CONFIG)(some_images(), MASKED, codes=torch.zeros(2, 15, dtype=torch.int64))
    with pytest.raises(
        ValueError, match=r"codes are \(2, 4\) torch\.float32; expected \(2, 4\) int64"
    ):
        MaskedImageModel(CONFIG)(some_images(), MASKED, codes=torch.zeros(2, 4))


def test_take_picks_codes() -> None:
    codes = torch.arange(30).view(2, 15)
    assert torch.equal(take(codes, MASKED), MASKED + torch.tensor([[0], [15]]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target_width": 0}, "target_width must be 1 or more, got 0"),
        ({"target_width": 11}, "target_width is 11, but a patch has 12 pixel values"),
        ({"num_codes": 5}, "num_codes is 5; expected 0 for pixels"),
        ({"predicts": "tokens", "num_codes": 5}, "target_width is 12; expected 0 for tokens"),
    ],
)
def test_a_head_that_contradicts_its_target_is_refused(
    changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        MaskedImageModel(replace(PIXELS, **changes))


@pytest.mark.parametrize(
    "config", [{}, {"shared_head": False}, {"head_layers": 0}, {"early_layers": 4}]
)
def test_losses_of_codes_are_those_of_the_logits(shaken: Shaken, config: dict[str, int]) -> None:
    model = shaken(MaskedImageModel(replace(CONFIG, **config))).train()
    codes = torch.randint(11, (2, 4), generator=seeded())
    weights = torch.rand(2, 4, generator=seeded(1))
    prediction = model(some_images(), MASKED)
    expected = masked_losses(prediction, codes, weights=weights)
    output = model(some_images(), MASKED, codes=codes, weights=weights)
    torch.testing.assert_close((output.patch_loss, output.cls_loss), expected)
    right = (prediction.logits.argmax(2) == codes).float()
    torch.testing.assert_close(output.accuracy, (right * weights).sum() / weights.sum())
    gradients = [
        torch.autograd.grad(sum(losses), list(model.parameters()), materialize_grads=True)
        for losses in (expected, (output.patch_loss, output.cls_loss))
    ]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rows", [2, 100])  # in chunks of two rows, and at once
@pytest.mark.parametrize("weighted", [True, False])
def test_the_loss_without_logits_equals_that_of_the_logits(
    rows: int, weighted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mim, "CHUNK_ELEMENTS", rows * 11)
    head = nn.Linear(6, 11)
    codes = torch.randint(11, (3, 5), generator=seeded(1))
    weights = torch.rand(3, 5, generator=seeded(2)) if weighted else None
    results = []
    for chunked in (False, True):
        features = torch.randn(3, 5, 6, generator=seeded()).requires_grad_()
        if chunked:
            loss, accuracy = linear_cross_entropy(head, features, codes, weights)
        else:
            logits = head(features)
            loss = prediction_loss(logits, codes, "cross-entropy", weights)
            accuracy = weighted_mean((logits.argmax(2) == codes).float(), weights)
        inputs = (features, head.weight, head.bias)
        results.append([loss, accuracy, *torch.autograd.grad(3 * loss, inputs)])
    torch.testing.assert_close(results[0], results[1])
    with torch.no_grad():
        assert torch.equal(linear_cross_entropy(head, features, codes, weights)[0], results[1][0])


def test_the_loss_without_logits_is_float32_under_autocast() -> None:
    head, features = nn.Linear(6, 11), torch.randn(3, 5, 6, generator=seeded(), requires_grad=True)
    codes = torch.randint(11, (3, 5), generator=seeded(1))
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = linear_cross_entropy(head, features.bfloat16(), codes)
    (gradient,) = torch.autograd.grad(loss, head.weight)
    expected = F.cross_entropy(head(features).flatten(0, 1), codes.flatten())
    assert loss.dtype == gradient.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=0.01, atol=0.01)
    (exact,) = torch.autograd.grad(expected, head.weight)
    torch.testing.assert_close(gradient, exact, rtol=0.02, atol=0.01)


@pytest.mark.parametrize(
    ("masked", "codes", "message"),
    [
        (
            MASKED[:1],
            None,
            r"masked is \(1, 4\) for 2 images; expected \(2, M\), as masked\.expand",
        ),
        (MASKED.float(), None, "masked is float32, expected indices"),
        (MASKED - 1, None, r"masked lists patches from -1 to 13; expected indices in \[0, 15\)"),
        (MASKED, MASKED - 7, r"codes are from -7 to 7; expected integers in \[0, 11\)"),
        (MASKED[:, :0], MASKED[:, :0], "there is no patch to predict"),
        (MASKED[:, [0, 1, 1]], MASKED[:, :3] % 11, "lists a patch of an image several times"),
    ],
)
def test_masks_and_codes_that_give_wrong_losses_are_refused(
    masked: Tensor, codes: Tensor | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        MaskedImageModel(CONFIG)(some_images(), masked, codes=codes)
