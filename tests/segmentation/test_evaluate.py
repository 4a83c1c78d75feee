import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from beit.nn.segmenter import SegmenterConfig, SemanticSegmenter
from beit.nn.sliding import MapViewConfig, window_starts
from beit.nn.vit import ViTConfig
from beit.run.device import DeviceConfig
from beit.run.directory import RunDirectory
from beit.segmentation import evaluate as evaluate_segments
from beit.segmentation.config import Config as SegmentConfig
from beit.segmentation.config import SegmentDataConfig
from beit.segmentation.evaluate import Config
from beit.segmentation.label_maps import open_label_maps, read_pair
from beit.weights.file import save_weights
from beit.weights.formats.published_segmentation import published_meta, to_published_segmentation

Vit = Callable[..., ViTConfig]
NAMES = ("sky", "sea", "sand")
CPU = DeviceConfig(accelerator="cpu")


@pytest.fixture
def segmenter(vit: Vit) -> SemanticSegmenter:
    """For windows of 16 x 16 pixels; it says different things of different pixels."""
    backbone = vit(image_size=(16, 16), depth=4, relative_bias="per_block", init_bound=2.0)
    numbers = SegmenterConfig(
        backbone, 3, (1, 2, 3, 4), channels=8, auxiliary_channels=8, class_names=NAMES
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = SemanticSegmenter(numbers)
        for parameter in model.parameters():
            parameter.data += 0.3 * torch.randn_like(parameter)
    return model.eval()


@pytest.fixture
def model(segmenter: SemanticSegmenter, tmp_path: Path) -> str:
    save_weights(tmp_path / "model.safetensors", segmenter)
    return str(tmp_path / "model.safetensors")


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """Three images of different sizes with maps of 0 to 2 and 255, and their list of classes."""
    generator = np.random.default_rng(5)
    for name in ("images", "masks"):
        (tmp_path / "set" / name).mkdir(parents=True)
    for number, (height, width) in enumerate([(16, 16), (21, 35), (33, 18)]):
        pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        labels = generator.choice(np.array([0, 1, 255], dtype=np.uint8), (height, width))
        Image.fromarray(pixels).save(tmp_path / "set" / "images" / f"{number}.png")
        Image.fromarray(labels).save(tmp_path / "set" / "masks" / f"{number}.png")
    (tmp_path / "names.txt").write_text("sky\nsea\nsand\n")
    return str(tmp_path / "set")


def config(model: str, folder: str, **changes: Any) -> Config:
    settings: dict[str, Any] = {"num_workers": 0, "device": CPU}
    settings["classes"] = str(Path(folder).parent / "names.txt")
    return Config(model, folder, **(settings | changes))


@torch.no_grad()
def labelled(segmenter: SemanticSegmenter, image: Tensor) -> Tensor:
    """Label an image through windows of 16 every 10 pixels, one after another."""
    _, H, W = image.shape
    total, times = torch.zeros(1, 3, H, W), torch.zeros(H, W)
    for top in window_starts(H, 16, 10):
        for left in window_starts(W, 16, 10):
            place = (..., slice(top, top + 16), slice(left, left + 16))
            total[place] += segmenter.predict(image[place][None])
            times[place] += 1
    return (total / times).argmax(dim=1)[0]


def test_figures_are_those_of_all_pixels_together(
    segmenter: SemanticSegmenter, model: str, folder: str, tmp_path: Path
) -> None:
    settings = {"views": MapViewConfig(short_side=0), "output": str(tmp_path / "out")}
    result = evaluate_segments.run(config(model, folder, **settings))
    source = open_label_maps(folder, classes=str(tmp_path / "names.txt"))
    counts = np.zeros((3, 3), dtype=np.int64)
    for index in range(3):
        image, truth = read_pair(source, index)
        guess = labelled(segmenter, image)
        for row, column in zip(truth.flatten().tolist(), guess.flatten().tolist(), strict=True):
            if row != 255:
                counts[row, column] += 1
    with np.load(tmp_path / "out" / "confusion.npz") as arrays:
        assert np.array_equal(arrays["confusion"], counts)
    right = counts.diagonal()
    iou = right / (counts.sum(0) + counts.sum(1) - right)
    figures = result.record["figures"]
    assert figures["miou"] == pytest.approx(np.nanmean(iou))
    assert figures["mean_accuracy"] == pytest.approx((right[:2] / counts.sum(1)[:2]).mean())
    assert figures["pixel_accuracy"] == pytest.approx(right.sum() / counts.sum())
    assert [row["name"] for row in result.record["classes"]] == list(NAMES)
    assert result.record["classes"][2]["accuracy"] is None  # no sand in the truth
    assert f"{100 * figures['miou']:.1f}" in result.table
    kept = json.loads((tmp_path / "out" / "evaluate.json").read_text())
    assert kept["figures"] == figures
    assert kept["config"]["views"]["mode"] == "slide"
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Class by class" in page
    assert "image, truth, prediction" in page
    with pytest.raises(FileExistsError, match="exists and is not overwritten"):
        evaluate_segments.run(config(model, folder, **settings))


@pytest.mark.parametrize("mode", ["slide", "whole"])
def test_scales_and_mirror_images(mode: Any, model: str, folder: str) -> None:
    scales = (0.5, 1.5) if mode == "slide" else (1.0,)
    views = MapViewConfig(mode, scales=scales, flip=True, batch_size=3)
    figures = evaluate_segments.run(config(model, folder, views=views)).record["figures"]
    assert 0 < figures["miou"] <= figures["pixel_accuracy"] < 1


@torch.no_grad()
def test_a_published_checkpoint(
    segmenter: SemanticSegmenter, model: str, folder: str, tmp_path: Path
) -> None:
    state, meta = to_published_segmentation(segmenter), published_meta(segmenter.config)
    torch.save({"state_dict": state, "meta": meta}, tmp_path / "published.pth")
    ours = evaluate_segments.run(config(model, folder)).record
    settings = {"image_size": 16, "num_heads": 3}
    with pytest.raises(ValueError, match="which four blocks feed the pyramid"):
        evaluate_segments.run(config(str(tmp_path / "published.pth"), folder, **settings))
    backbone = replace(segmenter.config.backbone, depth=12)
    numbers = replace(segmenter.config, backbone=backbone, layers=(4, 6, 8, 12))
    deep = SemanticSegmenter(numbers).eval()
    state, meta = to_published_segmentation(deep), published_meta(numbers)
    torch.save({"state_dict": state, "meta": meta}, tmp_path / "published.pth")
    save_weights(tmp_path / "deep.safetensors", deep)
    theirs = evaluate_segments.run(config(str(tmp_path / "published.pth"), folder, **settings))
    same = evaluate_segments.run(config(str(tmp_path / "deep.safetensors"), folder)).record
    assert theirs.record["figures"] == same["figures"]
    assert ours["classes"][0]["name"] == same["classes"][0]["name"] == "sky"


def test_metrics_are_those_of_the_readable_images_alone(
    model: str, folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generator = np.random.default_rng(7)
    for number in range(3, 20):
        pixels = generator.integers(0, 256, (18, 20, 3), dtype=np.uint8)
        labels = generator.integers(0, 3, (18, 20), dtype=np.uint8)
        Image.fromarray(pixels).save(Path(folder) / "images" / f"{number}.png")
        Image.fromarray(labels).save(Path(folder) / "masks" / f"{number}.png")
    readable = Path(shutil.copytree(folder, tmp_path / "readable"))
    for name in ("images/1.png", "masks/7.png", "images/19.png"):  # a map may be broken too
        (Path(folder) / name).write_bytes(b"no image")
        for kind in ("images", "masks"):
            (readable / kind / Path(name).name).unlink()
    result = evaluate_segments.run(config(model, folder, max_unreadable=0.15))
    err = capsys.readouterr().err
    assert [err.count(f"{name}: not an image") for name in ("1.png", "7.png", "19.png")] == [1] * 3
    alone = evaluate_segments.run(config(model, str(readable)))
    unreadable = [f"{number}.png" for number in sorted((1, 7, 19), key=str)]
    assert result.record["images"] == {"evaluated": 17, "unreadable": unreadable}
    assert alone.record["images"] == {"evaluated": 17, "unreadable": []}
    for name in ("figures", "classes"):
        assert result.record[name] == alone.record[name]
    lines = {line[:40].strip(): line[40:].strip() for line in result.table.splitlines()}
    assert lines["Images"] == "17"
    assert lines["Unreadable, left out"] == "3"
    with pytest.raises(ValueError, match=r"3 of 20 images cannot be read, .* raise max_unr"):
        evaluate_segments.run(config(model, folder, max_unreadable=0.14))


def test_a_class_of_which_no_pixel_is_right_is_named(
    segmenter: SemanticSegmenter, folder: str, tmp_path: Path
) -> None:
    segmenter.decoder.head.bias.data = torch.tensor([1e6, 0.0, 0.0])  # all is sky
    save_weights(tmp_path / "sky.safetensors", segmenter)
    settings = {"output": str(tmp_path / "out")}
    result = evaluate_segments.run(config(str(tmp_path / "sky.safetensors"), folder, **settings))
    (note,) = result.record["notes"]  # sand does not occur
    assert note.startswith("no pixel of sea is classified correctly (1 of 3 classes); ")
    assert result.table.endswith(note)
    assert "no pixel of sea" in (tmp_path / "out" / "report.html").read_text()


def test_images_of_the_training_are_counted(
    segmenter: SemanticSegmenter, folder: str, tmp_path: Path
) -> None:
    names = str(tmp_path / "names.txt")
    data = SegmentDataConfig(f"{folder}[:70%]", f"{folder}[70%:]", classes=names)
    run = RunDirectory.create(
        tmp_path / "run", asdict(SegmentConfig(data, "x")), {"verb": "segment"}
    )
    save_weights(run.weights_file, segmenter)
    maps = f"{folder}/images?maps={folder}/masks"  # the same files by another string
    (note,) = evaluate_segments.run(config(str(run.path), maps, classes=names)).record["notes"]
    assert note.startswith(f"{run.path} was trained on 2 of the 3 images, which it knows better")
    (note,) = evaluate_segments.run(config(str(run.path), f"{folder}[70%:]")).record["notes"]
    assert note.startswith(f"{run.path}: the best weights of the run were chosen on these images")


def test_a_set_without_a_readable_image_is_refused(model: str, folder: str) -> None:
    for path in (Path(folder) / "images").iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(ValueError, match="no image can be read"):
        evaluate_segments.run(config(model, folder, max_unreadable=1.0))


def test_what_does_not_fit_is_refused(
    segmenter: SemanticSegmenter, model: str, folder: str, tmp_path: Path
) -> None:
    save_weights(tmp_path / "vit.safetensors", segmenter.backbone)
    with pytest.raises(ValueError, match="holds a VisionTransformer, which names no classes of"):
        evaluate_segments.run(config(str(tmp_path / "vit.safetensors"), folder))
    (tmp_path / "names.txt").write_text("sky\nsea\nsnow\n")
    with pytest.raises(
        ValueError, match=r"1 of the 3 classes of the label maps are unknown .* snow"
    ):
        evaluate_segments.run(config(model, folder))
    nameless = SemanticSegmenter(replace(segmenter.config, class_names=None, num_classes=2))
    save_weights(tmp_path / "two.safetensors", nameless)
    with pytest.raises(ValueError, match=r"has 3 classes, but .* has 2"):
        evaluate_segments.run(config(str(tmp_path / "two.safetensors"), folder))
    with pytest.raises(ValueError, match="give a segmenter and its images: --model and --data"):
        evaluate_segments.run(config("", folder))
    for changes, said in (({"num_workers": -1}, "num_workers"), ({"pictures": -1}, "pictures")):
        with pytest.raises(ValueError, match=said):
            config(model, folder, **changes)


def test_shares_of_processes_add_up_to_the_whole(
    segmenter: SemanticSegmenter, model: str, folder: str
) -> None:
    class Part:
        """A fabric of some processes, as far as count_pixels needs one."""

        device, is_global_zero = torch.device("cpu"), False

        def __init__(self, rank: int, world_size: int) -> None:
            self.global_rank, self.world_size = rank, world_size

        def autocast(self) -> Any:
            return torch.autocast("cpu", enabled=False)

    asked = config(model, folder)
    source = evaluate_segments.open_maps(asked, segmenter)
    fabrics: list[Any] = [Part(0, 1), Part(0, 2), Part(1, 2)]
    whole, *parts = (evaluate_segments.count_pixels(f, segmenter, source, asked) for f in fabrics)
    assert [part.evaluated.tolist() for part in parts] == [[1, 0, 1], [0, 1, 0]]
    assert torch.equal(parts[0].confusion + parts[1].confusion, whole.confusion)
