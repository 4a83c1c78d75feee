"""Three of twenty images cannot be read: each verb that evaluates gives the figures of the 17.

Every command runs twice: on a set of which three files are broken, and on the other 17 alone. What
it measures must be the same; it names the three, and says 17 (or 3) beside its figures. Above
`max_unreadable` it stops.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from beit.cli import main
from beit.nn.heads import ImageClassifier, ImageClassifierConfig
from beit.nn.segmenter import SegmenterConfig, SemanticSegmenter
from beit.nn.vit import ViTConfig
from beit.weights.file import save_weights

sys.path.insert(0, str(Path(__file__).parent))
from record import ASSETS
from runs import CHECK, DVAE, FINETUNE, ON_CPU, PRETRAIN, SEGMENT, SIZE, TEACHER_OPTIONS, VQKD

COUNT, CLASSES = 20, ("ant", "bee", "cow")
STARTS = ASSETS / "starts"


class Sets(NamedTuple):
    """Folders of images: with three broken files, and without these."""

    holed: Path
    sound: Path


def _folders(root: Path, broken: tuple[int, ...]) -> Sets:
    """Write 20 pictures of three classes, and their label maps beside them."""
    generator = np.random.default_rng(0)
    for number in range(COUNT):
        pixels = generator.integers(256, size=(32, 32, 3), dtype=np.uint8)
        labels = generator.integers(10, size=(32, 32), dtype=np.uint8)
        name = f"{number:02}.png"
        folder = CLASSES[number * len(CLASSES) // COUNT]
        for kind in ("holed", "sound"):
            if kind == "sound" and number in broken:
                continue
            for part in (f"{kind}/{folder}", f"{kind}-pairs/images", f"{kind}-pairs/masks"):
                (root / part).mkdir(parents=True, exist_ok=True)
            files = [root / kind / folder / name, root / f"{kind}-pairs/images/{name}"]
            for file in files:
                if number in broken:
                    file.write_bytes(b"broken")
                else:
                    Image.fromarray(pixels).save(file)
            Image.fromarray(labels).save(root / f"{kind}-pairs/masks/{name}")
    return Sets(root / "holed", root / "sound")


SCATTERED = (3, 8, 19)
# The mask of an image depends on its place in the set: only at its end nothing moves.
LAST = (17, 18, 19)


@pytest.fixture(scope="module")
def scattered(tmp_path_factory) -> Sets:
    return _folders(tmp_path_factory.mktemp("scattered"), SCATTERED)


@pytest.fixture(scope="module")
def last(tmp_path_factory) -> Sets:
    return _folders(tmp_path_factory.mktemp("last"), LAST)


def pairs(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}-pairs")


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def words(options: dict[str, object]) -> list[str]:
    return [f"--{name}={value}" for name, value in options.items()]


def close(first: object, second: object) -> bool:
    """Compare figures; 17 images fall into other batches than 17 of 20 do."""
    if isinstance(first, dict):
        assert isinstance(second, dict)
        assert first.keys() == second.keys()
        return all(close(first[name], second[name]) for name in first)
    if isinstance(first, list):
        return len(first) == len(second) and all(map(close, first, second))
    return first == (pytest.approx(second, rel=1e-4) if isinstance(first, float) else second)


def metrics_of(run: Path) -> dict[str, object]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return {k: v for r in lines for k, v in r.items() if k.startswith(("val", "knn"))}


# ── trainings: the validation of their last step ────────────────────────────────────────────────

TEACHER = {f"teacher.{name}": value for name, value in TEACHER_OPTIONS.items()}
TRAININGS = {
    "train-tokenizer": {**VQKD, **TEACHER},
    "train-tokenizer dvae": DVAE,
    "pretrain": {**PRETRAIN, **CHECK, "tokenizer": "starts/tokenizer.safetensors"},
    "finetune": {**FINETUNE, "init": "starts/pretrained.safetensors", "num_heads": 2},
    "segment": {
        **SEGMENT,
        "init": "starts/pretrained.safetensors",
        "num_heads": 2,
        "head.kind": "linear",
    },
}


@pytest.mark.parametrize("name", TRAININGS)
def test_validation(name, tmp_path, monkeypatch, scattered, last, capsys):
    (tmp_path / "starts").symlink_to(STARTS)
    monkeypatch.chdir(tmp_path)
    Path("as_given.yaml").write_text("{}")  # with a file, settings do not follow the data
    sets = last if name == "pretrain" else scattered
    options = {
        "config": "as_given.yaml",
        **TRAININGS[name],
        "run.stop_after": 1,
        "data.num_workers": 0,
    }
    if name == "finetune":  # the classes of the folders; the model's own training images
        options["data.train"] = str(sets.sound)
    if name == "segment":
        sets = Sets(*map(pairs, sets))
        options["data.train"] = str(sets.sound)
    if name == "pretrain":  # the classes of the k-NN check
        options["check.train"] = str(sets.sound)
    metrics = {}
    for kind, folder in sets._asdict().items():
        run = tmp_path / kind
        given = {**options, "data.validation": str(folder), "data.max_unreadable": 0.15}
        assert main([name.split()[0], *words(given), f"--run.output={run}"]) == 0
        said = capsys.readouterr().err
        metrics[kind] = metrics_of(run)
        if kind == "holed":
            broken = LAST if sets is last else SCATTERED
            assert [f"{n:02}.png: not an image" in said for n in broken] == [True] * 3
    counts = {"val_images": 17, "val_unreadable": 3}
    assert {key: metrics["holed"].pop(key) for key in counts} == counts
    if name == "pretrain":
        assert metrics["holed"].pop("knn_images") == 17
    assert close(metrics["holed"], metrics["sound"])
    too_few = {**options, "data.validation": str(sets.holed), "data.max_unreadable": 0.1}
    few, resume = tmp_path / "few", [name.split()[0], "--resume", str(tmp_path / "few")]
    assert main([name.split()[0], *words(too_few), f"--run.output={few}"]) == 2
    said = capsys.readouterr().err
    assert "3 of 20 images cannot be read" in said
    after = 0 if name == "pretrain" else 1  # its k-NN check reads them before the first step
    assert f"Then resume after step {after}: beit {' '.join(resume)} (" in said
    # The step was not lost: with another limit the run goes on, unless the images have changed.
    settings = (few / "config.yaml").read_text()
    (few / "config.yaml").write_text(settings.replace("_unreadable: 0.1\n", "_unreadable: 0.15\n"))
    broken = next(sets.holed.rglob("19.png"))
    broken.rename(tmp_path / "19.png")
    assert main(resume) == 2
    assert "data.validation: 20 images then, 19 now, 1 gone" in capsys.readouterr().err
    (tmp_path / "19.png").rename(broken)
    assert main(resume) == 0
    assert metrics_of(few) == metrics_of(tmp_path / "holed")


# ── verbs that evaluate and verbs that write rows ───────────────────────────────────────────────

SHARE = "--max_unreadable=0.15"
MODELS = {
    "evaluate": "classifier",
    "predict": "classifier",
    "evaluate maps": "segmenter",
    "probe": "pretrained",
    "tokenize": "tokenizer",
    "embed": "pretrained",
}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """A folder of weights: tokenizer, pretrained, and a classifier and a segmenter afresh."""
    folder = tmp_path_factory.mktemp("models")
    for file in STARTS.glob("*.safetensors"):
        shutil.copy(file, folder)
    torch.manual_seed(0)
    vit = ViTConfig((16, 16), patch_size=4, width=8, depth=4, num_heads=2)
    classifier = ImageClassifier(ImageClassifierConfig(vit, 3, class_names=CLASSES), 1.0)
    names = tuple(map(str, range(10)))
    segmenter = SegmenterConfig(vit, 10, (4,), head="linear", class_names=names, auxiliary=False)
    save_weights(folder / "classifier.safetensors", classifier)
    save_weights(folder / "segmenter.safetensors", SemanticSegmenter(segmenter))
    return folder


@pytest.mark.parametrize("name", ["evaluate", "evaluate maps", "probe"])
def test_evaluation(name, tmp_path, scattered, models, capsys):
    file = "probe.json" if name == "probe" else "evaluate.json"
    options = [f"--model={models}/{MODELS[name]}.safetensors"]
    results = {}
    for kind, folder in scattered._asdict().items():
        output = tmp_path / kind
        folder = pairs(folder) if name == "evaluate maps" else folder
        data = [f"--data={folder}"]
        size = SIZE
        if name == "probe":
            data = [f"--train={folder}", f"--test={folder}", "--epochs=2", "--batch_size=16"]
        if name == "evaluate maps":
            size = [*ON_CPU, "--classes=10"]
        arguments = [name.split()[0], *options, *data, *size, SHARE, f"--output={output}"]
        assert main(arguments) == 0, capsys.readouterr().err
        said = capsys.readouterr()
        results[kind] = json.loads((output / file).read_text())
        if kind == "holed":
            assert [f"{n:02}.png: not an image" in said.err for n in SCATTERED] == [True] * 3
            assert "17" in said.out + said.err
    if name == "probe":
        assert close(results["holed"]["rows"], results["sound"]["rows"])
        assert any("17" in note for note in results["holed"]["notes"])
        return
    assert close(results["holed"]["figures"], results["sound"]["figures"])
    images = results["holed"]["images"]
    assert (images["evaluated"], len(images["unreadable"])) == (17, 3)
    strict = [argument for argument in arguments if argument != SHARE]
    strict = [a.replace(str(scattered.sound), str(scattered.holed)) for a in strict]
    assert main([*strict, f"--output={tmp_path / 'few'}"]) == 2
    assert "of 20 images cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["tokenize", "embed", "predict"])
def test_rows(verb, tmp_path, scattered, models, capsys):
    rows, model = {}, f"--model={models}/{MODELS[verb]}.safetensors"
    for kind, folder in scattered._asdict().items():
        output = tmp_path / f"{kind}.parquet"
        arguments = [verb, model, f"--data={folder}", *SIZE, SHARE, f"--output={output}"]
        assert main([*arguments, "--batch_size=4"]) == 0, capsys.readouterr().err
        said = capsys.readouterr()
        table = pq.read_table(output)
        rows[kind] = table.drop_columns(["index"]).to_pylist()
        if kind == "holed":
            assert [f"{n:02}.png: not an image" in said.err for n in SCATTERED] == [True] * 3
            assert "17 rows" in said.err
    assert close(rows["holed"], rows["sound"])
    output = tmp_path / "few.parquet"
    arguments = [verb, model, f"--data={scattered.holed}", *SIZE, f"--output={output}"]
    assert main(arguments) == 2
    assert "of 20 images cannot be read" in capsys.readouterr().err


def test_label_maps(tmp_path, scattered, models, capsys):
    for folder in map(pairs, scattered):
        output = tmp_path / folder.name
        data = [
            "predict",
            f"{models}/segmenter.safetensors",
            str(folder / "images"),
            f"--output={output}",
            SHARE,
        ]
        assert main([*data, *ON_CPU]) == 0, capsys.readouterr().err
        said = capsys.readouterr()
        assert len(list((output / "maps").rglob("*.png"))) == 17
        assert "17 images" in said.out
    holed, sound = ({p.name: p.read_bytes() for p in (tmp_path / f.name / "maps").rglob("*.png")}
                    for f in map(pairs, scattered))  # fmt: skip
    assert holed == sound


def test_codes(tmp_path, scattered, models, capsys):
    results = {}
    for kind, folder in scattered._asdict().items():
        output = tmp_path / kind
        arguments = ["visualise", "codes", f"{models}/tokenizer.safetensors", str(folder)]
        assert main([*arguments, *SIZE, SHARE, f"--output={output}"]) == 0
        said = capsys.readouterr()
        results[kind] = json.loads((output / "codes.json").read_text())
        if kind == "holed":
            assert [f"{n:02}.png: not an image" in said.err for n in SCATTERED] == [True] * 3
            assert "17 images" in said.out
    counts = [[code["uses"] for code in r["codes"]] for r in results.values()]
    assert counts[0] == counts[1]
