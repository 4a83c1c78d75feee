import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from beit.nn.mim import MaskedImageModel, MaskedImageModelConfig
from beit.nn.vit import ViTConfig
from beit.probing import probe
from beit.weights.file import save_weights


def test_impossible_settings_are_refused(config: Any) -> None:
    with pytest.raises(ValueError, match="rates must be one or more positive numbers"):
        config(rates=(0.1, -1.0))
    with pytest.raises(ValueError, match="attentive_rates must be one or more positive numbers"):
        config(attentive_rates=())
    with pytest.raises(ValueError, match="epochs must be at least 1, got 0"):
        config(epochs=0)
    with pytest.raises(ValueError, match=r"neighbours must be at least 1, got \(20, 0\)"):
        config(neighbours=(20, 0))
    with pytest.raises(ValueError, match=r"layers must name one or more, each once, got \(2, 2\)"):
        config(layers=(2, 2))
    with pytest.raises(ValueError, match=r"pooling must name one or more, each once, got \(\)"):
        config(pooling=())
    with pytest.raises(ValueError, match="weight_decay must be 0 or more, got -1"):
        config(weight_decay=-1.0)


SHAPES = {"train": "shapes://40?size=16", "test": "shapes://20?size=16&seed=1"}


def test_run_writes_figures_and_report(
    weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], config: Any
) -> None:
    output = tmp_path / "probes" / "first"
    settings = config(model=weights, output=str(output), **SHAPES)
    result = probe.run(settings)
    assert [row["features"] for row in result.rows] == ["cls", "mean"]
    assert all(0 <= row[key] <= 1 for row in result.rows for key in ("linear", "knn"))  # type: ignore[literal-required]
    assert result.table in capsys.readouterr().out
    record = json.loads((output / "probe.json").read_text())
    assert record["rows"] == result.rows
    assert record["rates"] == [0.003, 0.03, 0.3]
    assert record["sizes"] == {"train": 40, "test": 20, "classes": 10, "width": 12}
    assert record["config"]["model"] == weights
    assert "[CLS]" in (output / "report.html").read_text()
    assert not [note for note in record["notes"] if "say little about new" in note]
    same = probe.run(replace(settings, output=None, test=settings.train))
    assert same.notes[0].startswith(
        "40 of the 40 images of --test shapes://40?size=16 are in --data"
    )
    with pytest.raises(FileExistsError, match="first exists and is not overwritten"):
        probe.run(settings)
    with pytest.raises(ValueError, match="a probe does not draw by weight; name one set"):
        probe.run(replace(settings, output=None, train="{photos: 1, more: 2}"))


def test_without_test_images_the_data_are_divided(
    weights: str, tmp_path: Path, config: Any, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(60):
        split, name = ("train", "val")[number >= 40], "ab"[number % 2]
        (tmp_path / "data" / split / name).mkdir(parents=True, exist_ok=True)
        image = Image.new("RGB", (16, 16), (4 * number, 0, 250 * (number % 2)))
        image.save(tmp_path / "data" / split / name / f"{number}.png")

    def sizes(train: str) -> tuple[int, int]:
        output = tmp_path / f"probe of {Path(train).name}"
        probe.run(config(model=weights, train=train, test=None, output=str(output)))
        record = json.loads((output / "probe.json").read_text())
        return record["sizes"]["train"], record["sizes"]["test"]

    with caplog.at_level("INFO", logger="beit"):
        assert sizes(f"{tmp_path}/data") == (40, 20)
        assert f"test images: the split of {tmp_path}/data for testing" in caplog.text
        assert sizes(f"{tmp_path}/data/train") == (32, 8)
        assert "train[80%:], as there is no split for them; training: " in caplog.text


def test_same_seed_same_figures(weights: str, config: Any) -> None:
    first, second = (probe.run(config(model=weights, **SHAPES)) for _ in range(2))
    assert first == second


def test_a_command_with_everything(
    weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], config: Any
) -> None:
    settings = config(
        model=weights,
        layers="all",
        pooling=("cls", "both"),
        augment=True,
        attentive=True,
        attentive_heads=4,
        attentive_rates=(1e-2, 1e-3),
        standardise="batch",
        optimizer="adamw",
        neighbours=(5, 10),
        epochs=2,
        output=str(tmp_path / "probe"),
        **SHAPES,
    )
    result = probe.run(settings)
    names = ["cls@1", "both@1", "cls@2", "both@2", "cls", "both"]
    assert [row["features"] for row in result.rows] == names
    names = ["attentive@1", "attentive@2", "attentive"]
    assert [row["features"] for row in result.attentive] == names
    record = json.loads((tmp_path / "probe" / "probe.json").read_text())
    assert record["attentive"] == result.attentive
    assert all(
        len(row["held_out"]) == 2 and row["rate"] in (1e-2, 1e-3) for row in result.attentive
    )
    page = (tmp_path / "probe" / "report.html").read_text()
    assert "raw outputs of blocks" in page
    out = capsys.readouterr().out
    assert "attentive, block 2" in out and "10-NN" in out
    assert probe.run(replace(settings, output=None)) == result


@pytest.fixture
def pictures(tmp_path: Path) -> Callable[[str, int], Path]:
    """Writes COUNT images of noise in two class folders; the folder of them."""

    def make(name: str, count: int) -> Path:
        generator = np.random.default_rng(len(name))
        for number in range(count):
            path = tmp_path / name / "ab"[number % 2] / f"{number:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = generator.integers(256, size=(16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels // 2 + 128 * (number % 2)).save(path)
        return tmp_path / name

    return make


@pytest.mark.parametrize(
    "changes", [{}, {"augment": True, "attentive": True, "attentive_heads": 4}]
)
@pytest.mark.parametrize("option", ["train", "test"])
def test_accuracies_are_those_of_the_readable_images_alone(
    option: str,
    changes: dict[str, object],
    weights: str,
    pictures: Callable[[str, int], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    config: Any,
) -> None:
    whole, other = pictures("whole", 20), pictures("other", 12)
    readable = Path(shutil.copytree(whole, tmp_path / "readable"))
    broken = ["a/04.png", "b/01.png", "b/19.png"]
    for name in broken:
        (whole / name).write_bytes(b"no image")
        (readable / name).unlink()
    fixed = {"train": str(other), "test": str(other), "epochs": 2, "neighbours": (1, 3)}
    settings = config(model=weights, images_per_batch=4, batch_size=4, **(fixed | changes))
    output = str(tmp_path / "probe")
    result = probe.run(
        replace(settings, **{option: str(whole), "max_unreadable": 0.15, "output": output})
    )
    err = capsys.readouterr().err
    assert [err.count(name) for name in broken] == [1, 1, 1]
    alone = probe.run(replace(settings, **{option: str(readable)}))
    assert result.rows == alone.rows
    assert result.attentive == alone.attentive
    assert len(result.attentive) == bool(changes)
    assert result.table == alone.table
    set_name = {"train": "training", "test": "test"}[option]
    note = f"17 of 20 {set_name} images; 3 cannot be read: {', '.join(broken)}"
    assert result.notes == [note, *alone.notes]
    record = json.loads((tmp_path / "probe" / "probe.json").read_text())
    assert record["sizes"][option] == 17
    assert note in record["notes"]
    with pytest.raises(ValueError, match=r"3 of 20 images cannot be read, .* raise max_unr"):
        probe.run(replace(settings, **{option: str(whole), "max_unreadable": 0.14}))


def test_a_set_without_a_readable_image_is_refused(
    weights: str, pictures: Callable[[str, int], Path], config: Any
) -> None:
    train, test = pictures("train", 12), pictures("test", 2)
    for path in test.rglob("*.png"):
        path.write_bytes(b"no image")
    settings = config(model=weights, train=str(train), test=str(test), max_unreadable=1.0)
    with pytest.raises(ValueError, match="none of the 2 test images can be read"):
        probe.run(settings)


def test_the_row_that_the_paper_reads_is_marked(tmp_path: Path, config: Any) -> None:
    vit = ViTConfig(image_size=(8, 8), patch_size=4, width=12, depth=1, num_heads=3)
    read = {}
    for head_layers in (0, 1):
        path = tmp_path / f"{head_layers}.safetensors"
        numbers = MaskedImageModelConfig(vit, 5, early_layers=1, head_layers=head_layers)
        save_weights(path, MaskedImageModel(numbers))
        result = probe.run(config(model=str(path), layers="all", **SHAPES))
        read[head_layers] = [row["features"] for row in result.rows if row["paper"]]
        with_or_out = "with" if head_layers else "without"
        assert any(f"pretrained {with_or_out} patch" in note for note in result.notes)
    assert read == {0: ["mean"], 1: ["cls"]}


def test_layers_and_heads_that_the_model_lacks_are_refused(weights: str, config: Any) -> None:
    with pytest.raises(ValueError, match="layers names block 3, but the model has blocks 1 to 2"):
        probe.run(config(model=weights, layers=(3,), **SHAPES))
    with pytest.raises(ValueError, match="attentive_heads is 5, but the model is 12 wide"):
        probe.run(config(model=weights, attentive=True, attentive_heads=5, **SHAPES))
    teacher = config(model="teacher:timm:test_vit.r160_in1k", untrained=True, image_size=32)
    with pytest.raises(ValueError, match=r"gives no \[CLS\] token; expected mean"):
        probe.run(replace(teacher, pooling=("cls",), **SHAPES))


def test_images_without_labels_are_refused(weights: str, tmp_path: Path, config: Any) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for place in range(3):
        Image.new("RGB", (8, 8), (place, 0, 0)).save(flat / f"{place}.png")
    with pytest.raises(ValueError, match=r"--test .*flat: images without a label"):
        probe.run(config(model=weights, train=SHAPES["train"], test=str(flat)))


def test_other_classes_in_the_test_set_are_refused(
    weights: str, tmp_path: Path, config: Any
) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "pets" / name / "0.png")
    with pytest.raises(ValueError, match=r"--test .*pets and --data .* have no class in common"):
        probe.run(config(model=weights, train=SHAPES["train"], test=str(tmp_path / "pets")))


def test_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch, config: Any) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="probe runs in one process on one device, got 2"):
        probe.run(config())
