"""What a network takes from another one: all weights that fit, positions resized, the rest told."""

from dataclasses import replace

import pytest
import torch
from tests.conftest import TRUNK, scrambled

from beit.nn.position import resized
from beit.nn.vit import VisionTransformer
from beit.weights.file import save_weights
from beit.weights.formats.published import to_published
from beit.weights.start import carry_network, check_fit, load_init

SMALL = replace(TRUNK, layer_scale=0.5)


def features(vit, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(2, 3, *vit.config.image_size, generator=generator)
    with torch.no_grad():
        return vit(images).patches


def carried(source, **changes):
    """A new network that started from `source`; notes as lines."""
    target = VisionTransformer(replace(source.config, **changes)).eval()
    return target, [f"{kind}: {text}" for kind, text in carry_network(source, target, "trunk")]


def test_the_same_network_computes_the_same():
    source = scrambled(VisionTransformer(replace(SMALL, absolute_positions=True)))
    target, notes = carried(source)
    assert torch.equal(features(target), features(source))
    text = "taken: trunk of 3 blocks, 24 wide, 2 heads, with absolute positions, relative bias"
    assert notes == [f"{text}, final norm"]


def test_positions_are_resized():
    source = scrambled(VisionTransformer(replace(SMALL, absolute_positions=True)))
    target, notes = carried(source, image_size=(12, 24))
    assert torch.equal(features(target), features(resized(source, (12, 24))))
    grids = "from a grid of 4 x 4 to 3 x 6"
    assert notes[1:] == [
        f"resized: absolute positions of the trunk, {grids}",
        f"resized: relative bias of the trunk, {grids}",
    ]


def test_a_shared_bias_is_copied_to_each_block_and_a_missing_one_changes_nothing():
    shared = scrambled(VisionTransformer(SMALL))
    target, notes = carried(shared, relative_bias="per_block")
    torch.testing.assert_close(features(target), features(shared))
    assert notes == ["taken: trunk of 3 blocks, 24 wide, 2 heads, with relative bias, final norm"]
    none = scrambled(VisionTransformer(replace(SMALL, relative_bias="none")))
    target, notes = carried(none, relative_bias="shared")
    torch.testing.assert_close(features(target), features(none))
    assert "new: relative bias of the trunk (the source has none)" in notes
    per_block = scrambled(VisionTransformer(replace(SMALL, relative_bias="per_block")))
    notes = carried(per_block, relative_bias="shared", final_norm=False, mean=None, std=None)[1]
    assert notes[1:3] == [
        "new: relative bias of the trunk (the source has one for each block)",
        "left out: final norm of the trunk (the model has none)",
    ]
    assert notes[3].startswith("differs: images are normalised by mean None and std None, for the")


def test_a_network_that_cannot_fit_is_refused_with_the_options_that_make_it_fit():
    other = replace(SMALL, width=36, num_heads=3, layer_scale=None)
    check_fit(SMALL, replace(SMALL, image_size=(8, 8), relative_bias="none"), "runs/a", "x")
    with pytest.raises(
        ValueError, match="runs/a has a ViT of width 24, num_heads 2, layer"
    ) as raised:
        check_fit(SMALL, other, "runs/a", "model.backbone")
    assert (
        "--model.backbone.width 24 --model.backbone.num_heads 2 --model.backbone.layer_scale 0.5,"
        in str(raised.value)
    )


def test_heads_are_those_of_the_settings_only_if_the_file_does_not_say(tmp_path):
    plain = scrambled(
        VisionTransformer(replace(SMALL, relative_bias="none", absolute_positions=True))
    )
    torch.save(to_published(plain), tmp_path / "plain.pth")
    save_weights(tmp_path / "ours.safetensors", plain)
    for name, heads in (("plain.pth", 3), ("ours.safetensors", 2)):
        assert load_init(tmp_path / name, (16, 16), num_heads=3).config.num_heads == heads
