import io
import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from beit.nn.segmenter import SegmenterConfig, SemanticSegmenter
from beit.nn.sliding import MapViewConfig
from beit.nn.vit import ViTConfig
from beit.run.device import DeviceConfig
from beit.segmentation import predict as predict_maps
from beit.segmentation.pictures import overlay
from beit.segmentation.predict import Config, map_names
from beit.weights.file import save_weights

PALETTE = ((0, 0, 200), (9, 99, 255), (240, 220, 30))
SIZES = {"a.png": (16, 16), "b/c.png": (20, 33), "b/d.png": (17, 12)}


@pytest.fixture
def segmenter(vit: Callable[..., ViTConfig]) -> SemanticSegmenter:
    backbone = vit(image_size=(16, 16), depth=4, relative_bias="per_block", init_bound=2.0)
    numbers = SegmenterConfig(
        *(backbone, 3, (1, 2, 3, 4)),
        channels=8,
        auxiliary_channels=8,
        class_names=("sky", "sea", "sand"),
        palette=PALETTE,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = SemanticSegmenter(numbers)
        for parameter in model.parameters():
            parameter.data += 0.3 * torch.randn_like(parameter)
    return model.eval()


@pytest.fixture
def config(segmenter: SemanticSegmenter, tmp_path: Path) -> Callable[..., Config]:
    save_weights(tmp_path / "model.safetensors", segmenter)
    generator = np.random.default_rng(5)
    for name, size in SIZES.items():
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)

    def make(**changes: Any) -> Config:
        settings: dict[str, Any] = {
            "model": str(tmp_path / "model.safetensors"),
            "data": str(tmp_path / "images"),
            "output": str(tmp_path / "out"),
            "num_workers": 0,
            "device": DeviceConfig(accelerator="cpu"),
        }
        return Config(**(settings | changes))

    return make


def files_of(directory: Path) -> dict[str, bytes]:
    files = (path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


def test_every_image_has_its_map_and_picture(
    config: Callable[..., Config], segmenter: SemanticSegmenter, tmp_path: Path
) -> None:
    result = predict_maps.run(config())
    assert result == (tmp_path / "out", 3)
    files = files_of(tmp_path / "out")
    pictures = [f"{kind}/{name}" for kind in ("maps", "overlays") for name in SIZES]
    assert set(files) == {*pictures, "legend.png", "predict.json"}
    for name, size in SIZES.items():
        with Image.open(tmp_path / "out" / "maps" / name) as image:
            assert image.mode == "P"
            assert (image.height, image.width) == size
            assert image.getpalette()[:9] == [level for colour in PALETTE for level in colour]
            assert np.asarray(image).max() < 3
    labels = np.asarray(Image.open(tmp_path / "out" / "maps" / "a.png"))
    pixels = np.array(Image.open(tmp_path / "images" / "a.png"))
    image = torch.from_numpy(pixels).permute(2, 0, 1)
    with torch.no_grad():
        expected = segmenter.predict(image[None]).argmax(dim=1)[0]
    assert np.array_equal(labels, expected.numpy())
    assert len(np.unique(labels)) > 1
    drawn = np.asarray(Image.open(tmp_path / "out" / "overlays" / "a.png"))
    assert np.array_equal(drawn[:16, :16], overlay(image, expected, PALETTE))
    about = json.loads(files["predict.json"])
    assert about["classes"][2] == {"index": 2, "name": "sand", "colour": [240, 220, 30]}
    assert about["window"] == [16, 16]


def test_an_interrupted_run_is_resumed(
    config: Callable[..., Config], segmenter: SemanticSegmenter, tmp_path: Path
) -> None:
    predict_maps.run(config())
    before = files_of(tmp_path / "out")
    (tmp_path / "out" / "maps" / "b" / "c.png").unlink()
    stamp = (tmp_path / "out" / "maps" / "a.png").stat().st_mtime_ns
    assert predict_maps.run(config(views=MapViewConfig(batch_size=2))).images == 3
    assert files_of(tmp_path / "out") == before
    assert (tmp_path / "out" / "maps" / "a.png").stat().st_mtime_ns == stamp
    with pytest.raises(FileExistsError, match="begun with another views; name another"):
        predict_maps.run(config(views=MapViewConfig(flip=True)))
    vit = replace(segmenter.config.backbone, mean=(0.1, 0.2, 0.3))
    segmenter.config = replace(segmenter.config, backbone=vit)
    save_weights(tmp_path / "model.safetensors", segmenter)
    with pytest.raises(FileExistsError, match="begun with another weights; name another"):
        predict_maps.run(config())
    (tmp_path / "other").mkdir()
    with pytest.raises(FileExistsError, match="other exists and is not overwritten"):
        predict_maps.run(config(output=str(tmp_path / "other")))


def test_a_replaced_image_is_labelled_again(config: Callable[..., Config], tmp_path: Path) -> None:
    predict_maps.run(config())
    image, map_of = tmp_path / "images" / "b" / "c.png", tmp_path / "out" / "maps" / "b" / "c.png"
    other = (tmp_path / "out" / "maps" / "a.png").stat().st_mtime_ns
    Image.fromarray(np.zeros((18, 25, 3), dtype=np.uint8)).save(image)
    later = map_of.stat().st_mtime_ns + 10**9
    os.utime(image, ns=(later, later))
    predict_maps.run(config())
    with Image.open(map_of) as labels:
        assert (labels.height, labels.width) == (18, 25)
    assert (tmp_path / "out" / "maps" / "a.png").stat().st_mtime_ns == other


def test_workers_do_not_change_a_byte(config: Callable[..., Config], tmp_path: Path) -> None:
    for workers in (0, 2):
        predict_maps.run(config(output=str(tmp_path / f"{workers}"), num_workers=workers))
    assert files_of(tmp_path / "0") == files_of(tmp_path / "2")


def test_images_by_a_list_and_without_pictures(
    config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = f"{tmp_path}/images/a.png\n{tmp_path}/images/b/d.png\n".encode()
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(listed)))
    assert predict_maps.run(config(data="-", overlays=False)).images == 2
    names = set(files_of(tmp_path / "out"))
    assert names == {"maps/000000-a.png", "maps/000001-d.png", "legend.png", "predict.json"}
    (tmp_path / "else").mkdir()
    (tmp_path / "images" / "a.png").rename(tmp_path / "else" / "a.png")  # also number 0, stem a
    listed = listed.replace(b"images/a.png", b"else/a.png")
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(listed)))
    with pytest.raises(FileExistsError, match="begun with another list_of_images; name another"):
        predict_maps.run(config(data="-", overlays=False))


def test_an_unreadable_image_is_reported_and_left_out(
    config: Callable[..., Config], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "images" / "b" / "c.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"1 of 3 images cannot be read"):
        predict_maps.run(config())
    assert predict_maps.run(config(max_unreadable=0.5)).images == 2
    shown = capsys.readouterr()
    assert "unreadable, left out: b/c.png: " in shown.err
    assert "step 2/2" in shown.err  # a.png was done before


def test_names_stay_below_the_directory_and_apart() -> None:
    assert map_names(["x/a.jpg", "x/b.jpg"]) == ["x/a.png", "x/b.png"]
    assert map_names(["x/a.jpg", "x/a.png", "y.jpg"]) == ["x/a.jpg.png", "x/a.png.png", "y.png"]
    files = map_names(["/etc/a.jpg", "../b.jpg", "shapes://3?size=8x8&seed=0", "c.jpg"])
    assert files == ["000000-a.png", "000001-b.png", "000002.png", "c.png"]
    assert map_names(["a.jpg", "a.jpg"]) == ["000000-a.png", "000001-a.png"]


def test_other_models_are_refused(
    config: Callable[..., Config], segmenter: SemanticSegmenter, tmp_path: Path
) -> None:
    save_weights(tmp_path / "vit.safetensors", segmenter.backbone)
    with pytest.raises(ValueError, match="holds a VisionTransformer, which names no classes of"):
        predict_maps.run(config(model=str(tmp_path / "vit.safetensors")))
    with pytest.raises(ValueError, match="num_workers is -1; expected 0 or more"):
        config(num_workers=-1)
