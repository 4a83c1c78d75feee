import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from PIL import Image
from torch import Tensor

from beit.data.decoding import UnreadableImage
from beit.data.sources import open_source
from beit.data.views import EvalView
from beit.nn.mim import MaskedImageModel, MaskedImageModelConfig
from beit.nn.pooling import Kind, kinds_of
from beit.nn.vit import VisionTransformer, ViTConfig
from beit.probing import probe
from beit.probing.features import FeatureReader
from beit.probing.frozen_model import FrozenModel, open_frozen_model
from beit.probing.grids import probe_features
from beit.probing.probe import Config
from beit.run.device import DeviceConfig
from beit.weights.file import save_weights


def clusters(count: int, spread: float, seed: int) -> tuple[Tensor, Tensor]:
    """Draw features (n, 5) around three corners, and the corner of each as its label."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (count,), generator=generator)
    noise = spread * torch.randn(count, 5, generator=generator)
    return torch.eye(3, 5)[labels] + noise, labels


CLS, MEAN = Kind(None, "cls"), Kind(None, "mean")

# ── the protocol on features ────────────────────────────────────────────────────────────────────


def config(**changes: object) -> Config:
    settings: dict[str, object] = {
        "model": "none",
        "train": "none",
        "test": "none",
        "rates": (0.3, 0.003, 0.03),
        "epochs": 4,
        "batch_size": 16,
        "num_workers": 0,
        "device": DeviceConfig(accelerator="cpu"),
    }
    return Config(**(settings | changes))  # type: ignore[arg-type]


def test_separable_classes_are_told_apart() -> None:
    kind = Kind(2, "mean")
    row = probe_features(
        kind, *clusters(90, 0.05, seed=0), *clusters(30, 0.05, seed=1), config(), 3
    )
    assert (row["features"], row["layer"], row["pooling"]) == ("mean@2", 2, "mean")
    assert row["linear"] == 1.0
    assert row["knn"] == 1.0
    assert len(row["held_out"]) == 3


def test_test_images_have_no_say_in_the_choice() -> None:
    train, train_labels = clusters(120, 1.0, seed=0)
    test, test_labels = clusters(60, 1.0, seed=1)
    row = probe_features(CLS, train, train_labels, test, test_labels, config(), 3)
    other = probe_features(CLS, train, train_labels, 100 * test, (test_labels + 1) % 3, config(), 3)
    assert (row["rate"], row["held_out"]) == (other["rate"], other["held_out"])
    # By rising rate, whatever the order they were given in.
    assert row["rate"] == [0.003, 0.03, 0.3][row["held_out"].index(max(row["held_out"]))]


def test_features_that_are_not_finite_are_refused() -> None:
    features, labels = clusters(40, 1.0, seed=0)
    broken = features.clone()
    broken[3, 1] = math.nan
    with pytest.raises(ValueError, match="features of the test images are not finite"):
        probe_features(CLS, features, labels, broken, labels, config(), 3)


def test_impossible_settings_are_refused() -> None:
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


@pytest.mark.parametrize("standardise", ["whole", "batch", "none"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_every_way_tells_separable_classes_apart(standardise: str, optimizer: str) -> None:
    settings = config(standardise=standardise, optimizer=optimizer, weight_decay=1e-4, epochs=8)
    train, test = clusters(90, 0.05, seed=0), clusters(30, 0.05, seed=1)
    assert probe_features(CLS, *train, *test, settings, 3)["linear"] == 1.0


def test_several_numbers_of_neighbours_have_a_figure_each() -> None:
    data = *clusters(90, 0.6, seed=0), *clusters(30, 0.6, seed=1)
    row = probe_features(CLS, *data, config(neighbours=(5, 1, 90)), 3)
    alone = [probe_features(CLS, *data, config(neighbours=k), 3)["knn"] for k in (5, 1, 90)]
    assert row["knn_each"] == alone
    assert row["knn"] == alone[0]


# ── features ────────────────────────────────────────────────────────────────────────────────────


class Grey:
    """Seven images, each of one grey value; the third cannot be read."""

    labels = torch.arange(7) % 2
    class_names = None

    def __len__(self) -> int:
        return 7

    def name(self, index: int) -> str:
        return f"grey {index}"

    def image(self, index: int) -> Tensor:
        if index == 2:
            raise UnreadableImage(self.name(index), "truncated")
        return torch.full((3, 6, 8), 10 * index, dtype=torch.uint8)


def test_unreadable_images_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    frozen = FrozenModel(lambda images, _: {MEAN: images[:, :2, 0, 0].float()}, (4, 4), width=2)
    settings = config(images_per_batch=3, max_unreadable=0.2)
    cached = FeatureReader(frozen, settings, Fabric(accelerator="cpu")).cache(
        [MEAN], Grey(), "test"
    )
    assert cached.labels.tolist() == [0, 1, 1, 0, 1, 0]
    assert cached.indices.tolist() == [0, 1, 3, 4, 5, 6]
    assert cached.unreadable == ["grey 2"]
    expected = [[value, value] for value in (0.0, 10.0, 30.0, 40.0, 50.0, 60.0)]
    assert torch.equal(cached.of(MEAN), torch.tensor(expected))
    assert "unreadable, left out: grey 2: truncated" in capsys.readouterr().err


# ── the whole command ───────────────────────────────────────────────────────────────────────────


@pytest.fixture
def weights(tmp_path: Path) -> str:
    torch.manual_seed(0)
    vit = ViTConfig(image_size=(8, 16), patch_size=4, width=12, depth=2, num_heads=3)
    path = tmp_path / "weights.safetensors"
    save_weights(path, VisionTransformer(vit))
    return str(path)


SHAPES = {"train": "shapes://40?size=16", "test": "shapes://20?size=16&seed=1"}


def test_run_writes_figures_and_report(
    weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
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
    with pytest.raises(FileExistsError, match="first exists and is not overwritten"):
        probe.run(settings)


def test_same_seed_same_figures(weights: str) -> None:
    first, second = (probe.run(config(model=weights, **SHAPES)) for _ in range(2))
    assert first == second


def test_one_pass_gives_every_layer_and_pooling(
    weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from beit.weights.open import load_backbone

    frozen = open_frozen_model(weights)
    shown = []

    def read(images: Tensor, kinds: list[Kind]) -> dict[Kind, Tensor]:
        shown.append(len(images))
        return frozen.read(images, kinds)

    kinds = kinds_of("all", ("both", "mean"), frozen.depth, True)
    source = open_source("shapes://7?size=16")
    settings = config(images_per_batch=4, crop_ratio=1.0, dtype="float16")
    reader = FeatureReader(frozen._replace(read=read), settings, Fabric(accelerator="cpu"))
    cached = reader.cache(kinds, source, "test")
    assert shown == [4, 3]
    view = EvalView((8, 16), 1.0)
    images = torch.stack([view(source.image(index)) for index in range(7)])
    with torch.no_grad():
        features = load_backbone(weights)(images, layers=(1, 2))
    for layer, tokens in features.layers.items():
        both = torch.cat([tokens[:, 0], tokens[:, 1:].mean(dim=1)], dim=1)
        stored = cached.of(Kind(layer, "both"))
        assert stored.dtype == torch.float16
        torch.testing.assert_close(stored.float(), both, rtol=1e-3, atol=1e-3)
        assert torch.equal(cached.of(Kind(layer, "mean")), stored[:, 12:])
    final = features.patches.mean(dim=1)
    torch.testing.assert_close(cached.of(MEAN).float(), final, rtol=1e-3, atol=1e-3)


def test_features_of_each_pass_are_those_of_new_views_without_the_held_out_part() -> None:
    def means(images: Tensor, kinds: list[Kind]) -> dict[Kind, Tensor]:
        return {MEAN: images.float().mean(dim=(2, 3))}

    source = open_source("shapes://10?size=16")
    frozen = FrozenModel(means, (8, 8), width=3)
    fabric = Fabric(accelerator="cpu")

    def drawn(**changes: object) -> list[Tensor]:
        settings = config(**{"batch_size": 5, "images_per_batch": 2, "augment": True} | changes)
        stream = FeatureReader(frozen, settings, fabric).stream_epochs([MEAN], source, 4)
        passes = [(features[MEAN], labels) for features, labels in stream]
        assert len(passes) == 4
        for part in (passes[:2], passes[2:]):  # every image once in each pass
            labels = torch.cat([truth for _, truth in part])
            assert labels.sort().values.tolist() == source.labels.sort().values.tolist()
        return [torch.cat([f for f, _ in part]).sort(0).values for part in (passes[:2], passes[2:])]

    first, second = drawn()
    assert not torch.allclose(first, second)
    assert all(map(torch.equal, drawn(), (first, second)))
    assert not torch.allclose(drawn(seed=1)[0], first)
    still, again = drawn(augment=False)
    assert torch.equal(still, again)
    cached = FeatureReader(frozen, config(), fabric).cache([MEAN], source, "test")
    torch.testing.assert_close(still, cached.of(MEAN).sort(0).values)


def test_a_command_with_everything(
    weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
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
    note = f"3 of 20 {set_name} images cannot be read and are left out: {', '.join(broken)}"
    assert result.notes == [note, *alone.notes]
    record = json.loads((tmp_path / "probe" / "probe.json").read_text())
    assert record["sizes"][option] == 17
    assert note in record["notes"]
    with pytest.raises(ValueError, match=r"3 of 20 images cannot be read, .* raise max_unr"):
        probe.run(replace(settings, **{option: str(whole), "max_unreadable": 0.14}))


def test_a_set_without_a_readable_image_is_refused(
    weights: str, pictures: Callable[[str, int], Path]
) -> None:
    train, test = pictures("train", 12), pictures("test", 2)
    for path in test.rglob("*.png"):
        path.write_bytes(b"no image")
    settings = config(model=weights, train=str(train), test=str(test), max_unreadable=1.0)
    with pytest.raises(ValueError, match="none of the 2 test images can be read"):
        probe.run(settings)


def test_the_row_that_the_paper_reads_is_marked(tmp_path: Path) -> None:
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


def test_layers_and_heads_that_the_model_lacks_are_refused(weights: str) -> None:
    with pytest.raises(ValueError, match="layers names block 3, but the model has blocks 1 to 2"):
        probe.run(config(model=weights, layers=(3,), **SHAPES))
    with pytest.raises(ValueError, match="attentive_heads is 5, but the model is 12 wide"):
        probe.run(config(model=weights, attentive=True, attentive_heads=5, **SHAPES))
    teacher = config(model="teacher:timm:test_vit.r160_in1k", untrained=True, image_size=32)
    with pytest.raises(ValueError, match=r"gives no \[CLS\] token; expected mean"):
        probe.run(replace(teacher, pooling=("cls",), **SHAPES))


def test_images_without_labels_are_refused(weights: str, tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for place in range(3):
        Image.new("RGB", (8, 8), (place, 0, 0)).save(flat / f"{place}.png")
    with pytest.raises(ValueError, match=r"test .*flat: images without a label"):
        probe.run(config(model=weights, train=SHAPES["train"], test=str(flat)))


def test_other_classes_in_the_test_set_are_refused(weights: str, tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "pets" / name / "0.png")
    with pytest.raises(ValueError, match="the classes of train and test differ"):
        probe.run(config(model=weights, train=SHAPES["train"], test=str(tmp_path / "pets")))


def test_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="probe runs in one process on one device, got 2"):
        probe.run(config())
