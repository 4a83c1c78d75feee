"""A model is read with the crop of its training unless told."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

import beit
from beit.nn.vit import VisionTransformer
from beit.run.directory import RunDirectory
from beit.weights.crop import crop_ratio, stated_crop
from beit.weights.file import save_weights
from beit.weights.manifest import published_files
from beit.weights.open import load


def test_a_weights_file_carries_its_crop(
    tmp_path: Path, backbone: VisionTransformer, caplog: pytest.LogCaptureFixture
) -> None:
    file = str(tmp_path / "weights.safetensors")
    save_weights(file, backbone, 1.0)
    load(file)  # other readers ignore it
    with caplog.at_level("INFO", logger="beit"):
        assert crop_ratio(file, None) == 1.0
    assert not caplog.messages
    assert crop_ratio(file, 0.9) == 0.9


@pytest.mark.parametrize(("default", "expected"), [(0.875, 0.875), (1.0, 1.0)])
def test_an_old_file_has_the_default(
    tmp_path: Path,
    backbone: VisionTransformer,
    caplog: pytest.LogCaptureFixture,
    default: float,
    expected: float,
) -> None:
    file = str(tmp_path / "old.safetensors")
    save_weights(file, backbone)
    with caplog.at_level("INFO", logger="beit"):
        assert crop_ratio(file, None, default) == expected
    assert "the default: the model has none of its own" in caplog.text
    assert stated_crop("teacher:efficientnet-lite0") is None


def test_published_classifiers_of_large_images_see_all_of_them(tmp_path: Path) -> None:
    large, small = "beit_base_patch16_384_pt22k_ft22kto1k", "beit_base_patch16_224_pt22k_ft22kto1k"
    note = "as published for images from 384 pixels on"
    for name, expected in ((large, (1.0, note)), (small, None), ("beitv2_base", None)):
        assert stated_crop(f"published:{name}") == expected
        file = tmp_path / f"{name}.pth"
        file.touch()
        assert stated_crop(str(file)) == expected
    segmenter = "beit_base_patch16_640_pt22k_ft22ktoade20k"
    assert published_files()[segmenter].shapes["image"] == 640
    assert stated_crop(f"published:{segmenter}") is None


def test_an_old_run_says_it_in_its_settings(tmp_path: Path, backbone: VisionTransformer) -> None:
    run = RunDirectory.create(tmp_path / "run", {"crop_ratio": 0.95}, {"verb": "x"})
    save_weights(run.weights_file, backbone)
    assert stated_crop(str(run.path)) == (0.95, "")
    save_weights(run.weights_file, backbone, 1.0)
    assert stated_crop(str(run.path)) == (1.0, "")


@pytest.mark.parametrize(
    ("processor", "expected"),
    [
        ({"do_center_crop": True, "crop_size": 224, "size": {"shortest_edge": 256}}, 0.875),
        ({"do_center_crop": True, "crop_size": {"height": 9}, "size": {"height": 10}}, 0.9),
        ({"do_center_crop": True, "crop_size": 224, "size": 256, "do_resize": False}, None),
        ({"do_center_crop": False, "crop_size": 224, "size": 256}, 1.0),
        ({"do_center_crop": True, "crop_size": 256, "size": 224}, None),
        ([], None),
    ],
)
def test_an_image_processor_of_transformers_says_it_too(
    tmp_path: Path, backbone: VisionTransformer, processor: object, expected: float | None
) -> None:
    save_weights(tmp_path / "model.safetensors", backbone)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    stated = stated_crop(str(tmp_path))
    assert (stated and stated[0]) == expected
    assert stated is None or "transformers stretches" in stated[1]


def test_a_folder_for_timm_says_it_too(tmp_path: Path, backbone: VisionTransformer) -> None:
    save_weights(tmp_path / "model.safetensors", backbone)
    (tmp_path / "config.json").write_text(json.dumps({"pretrained_cfg": {"crop_pct": 0.9}}))
    assert stated_crop(str(tmp_path)) == (0.9, "")
    for wrong in ('{"pretrained_cfg": {"crop_pct": 90}}', "[", '{"pretrained_cfg": []}'):
        (tmp_path / "config.json").write_text(wrong)
        assert stated_crop(str(tmp_path)) is None


def test_a_loaded_model_knows_how_its_images_are_opened(
    tmp_path: Path, backbone: VisionTransformer
) -> None:
    file, again, photo = tmp_path / "a.safetensors", tmp_path / "b.safetensors", tmp_path / "c.png"
    noise = torch.randint(256, (40, 50, 3), generator=torch.Generator().manual_seed(0))
    Image.fromarray(noise.byte().numpy()).save(photo)
    beit.save(backbone, file, crop_ratio=0.7)
    model = beit.load_backbone(file)
    expected = beit.open_image(photo, size=model.image_size, crop_ratio=0.7)
    assert torch.equal(beit.open_image(photo, size=model), expected)
    assert not torch.equal(beit.open_image(photo, size=model, crop_ratio=1.0), expected)
    beit.save(model, again)
    assert beit.load(again).crop_ratio == 0.7
    beit.save(backbone, file)
    assert beit.load(file).crop_ratio is None
    default = beit.open_image(photo, size=model.image_size)
    assert torch.equal(beit.open_image(photo, size=beit.load(file)), default)
