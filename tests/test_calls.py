"""The functions of the verbs. `python tests/test_calls.py` writes `beit/__init__.pyi` again."""

import copy
import html
import inspect
import json
import logging
import multiprocessing
import re
import textwrap
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import beit
from beit import calls
from beit.command.options import parse
from beit.command.verbs import VERBS
from beit.data.sources import open_source
from beit.draw.canvas import png
from beit.pretraining import pretrain
from beit.result import Result
from beit.run.journal import Result as Trained
from beit.run.watching import watched_by, watchers
from beit.segmentation import segment
from beit.tokenizer import vqkd

IMAGES, OTHERS = "shapes://43?size=24", "shapes://13?size=24&seed=1"
STUB = Path(beit.__file__).with_suffix(".pyi")

# ── the stub ────────────────────────────────────────────────────────────────────────────────────


def stub() -> str:
    """The text of `__init__.pyi`: every function of a verb, with its options by name."""
    defined = {**beit._DEFINED_IN, "Result": "beit.result"}
    ordered = sorted(defined, key=lambda name: (defined[name], name))
    imports = [f"from {defined[name]} import {name} as {name}" for name in ordered]
    about = "The public names for editors and type checkers; written by tests/test_calls.py."
    head = [f'"""{about}"""', "", "# fmt: off", "from typing import Any", ""]
    head += [*imports, "", "__version__: str", ""]
    return "\n".join([*head, *(line for name in calls.VERB_OF for line in declaration(name))])


def declaration(name: str) -> list[str]:
    listed = inspect.signature(getattr(beit, name)).parameters
    first = calls.positionals(name)
    words = [f"{option}: Any = ..." for option in listed if option in first]
    words += ["*"]
    words += [f"{o}: Any = ..." for o in listed if o not in (*first, "options")]
    text = ", ".join(word.replace(" ", "\0") for word in [*words, "**options: Any"])
    body = [f"    {line}".replace("\0", " ") for line in textwrap.wrap(text, 94)]
    about = VERBS[calls.VERB_OF[name]].help
    doc = f'    """{about[0].upper()}{about[1:]}; options: help(beit.{name})."""'
    return [f"def {name}(", *body, ") -> Result:", doc, ""]


def test_editors_see_every_verb_and_its_options() -> None:
    assert STUB.read_text() == stub(), "run: python tests/test_calls.py"


def test_no_module_has_the_name_of_a_call() -> None:
    """Importing a module `beit.x` would replace the function."""
    modules = {path.stem for path in STUB.parent.glob("*.py")}
    modules |= {path.parent.name for path in STUB.parent.glob("*/__init__.py")}
    assert not modules & {*calls.VERB_OF, *beit._DEFINED_IN}


def test_all_verbs_are_listed_and_documented() -> None:
    assert {"train_tokenizer", "visualise_codes", "resume"} <= set(dir(beit))
    assert set(calls.VERB_OF) <= set(dir(beit))
    text = inspect.getdoc(beit.embed)
    assert text is not None
    assert "layer: number of a block" in text
    assert "null" not in text
    assert str(inspect.signature(beit.fetch)).startswith("(name=")
    assert str(inspect.signature(beit.embed)).startswith("(model, data, *, output=None")
    probed = inspect.signature(beit.probe).parameters
    assert [probed[name].default for name in ("data", "train")] == [None, None]  # one of them
    assert "on_step" in inspect.signature(beit.pretrain).parameters
    assert "output: short for run.output" in str(inspect.getdoc(beit.pretrain))


# ── options ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "module", "preset"),
    [
        ("pretrain", pretrain, "beit2-b16-300e"),
        ("train_tokenizer", vqkd, "cifar10-cpu"),
        ("segment", segment, "upernet-b16-ade20k"),
    ],
)
def test_options_pass_without_loss(name: str, module: Any, preset: str, tmp_path: Path) -> None:
    verb = calls.VERB_OF[name]
    words = ["--init=runs/a b"] if name == "segment" else []
    config = parse(verb, module.Config, [f"--preset={preset}", *words])
    assert config != parse(verb, module.Config, words)
    # With a file, settings do not follow the data.
    (tmp_path / "none.yaml").write_text("{}")
    again = [f"--config={tmp_path / 'none.yaml'}", *calls.words_of(name, asdict(config))]
    assert parse(verb, module.Config, again) == config


def test_words_of_options() -> None:
    options = {
        "data": Path("a b"),
        "optim": {"epochs": 2, "betas": (0.9, 0.5)},
        "optim.clip": None,
        "layers": [Path("x"), np.int64(3)],
        "flag": True,
        "text": "null",
    }
    assert calls.words_of("pretrain", options) == [
        "--data=a b",
        "--optim.epochs=2",
        "--optim.betas=[0.9, 0.5]",
        "--optim.clip=null",
        '--layers=["x", 3]',
        "--flag=true",
        "--text=null",
    ]


def test_one_value_of_a_list_is_a_list() -> None:
    assert calls.words_of("similar", {"photos": "a.jpg"}) == ["--photos+=a.jpg"]
    assert calls.words_of("similar", {"photos": ["a.jpg"]}) == ['--photos=["a.jpg"]']
    assert calls.words_of("predict", {"data": "folder"}) == ["--data=folder"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modle": "x"}, r"unknown option modle; did you mean model\? See help\(beit.embed\)"),
        ({"model": object()}, "model is an object; expected a number, text"),
        (
            {"data": ["a", object()]},
            "data is a list with an object; .* models and images in memory",
        ),
        ({"data": np.zeros((2, 32, 32, 3))}, "^data is a ndarray; expected a number, text"),
        ({"data": torch.zeros(3, 32, 32)}, "^data is a Tensor; expected a number, text"),
        ({"resume": "runs/a"}, r"takes no 'resume'; use beit.resume\(run\)"),
        ({"print_config": True}, "takes no 'print_config'$"),
        ({"help": True}, r"use help\(beit.embed\)"),
        ({"on_step": print}, "on_step is for trainings: train_tokenizer, pretrain, "),
        ({"preset": "cifar10"}, "there is no preset 'cifar10'; did you mean cifar10-"),
    ],
)
def test_refusals(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        beit.embed(**options)


def test_refusals_of_positions() -> None:
    with pytest.raises(TypeError, match="takes name and directory by position, got 3 values"):
        beit.fetch("cifar10", "x", "y")
    with pytest.raises(TypeError, match="got name by position and by name"):
        beit.fetch("cifar10", name="cifar10")
    with pytest.raises(TypeError, match=r"as in beit\.pretrain\(data='photos'\)"):
        beit.pretrain("photos")


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("turn it off with --check.every 0", "turn it off with check.every 0"),
        ("resume that run with --resume runs/a", 'resume that run with beit.resume("runs/a")'),
        (
            "beit pretrain --resume a/b --accept_changed_data true",
            'beit.resume("a/b", accept_changed_data=True)',
        ),
        ("See beit visualise codes --help", "See help(beit.visualise_codes)"),
        ("'torchrun --nproc_per_node 8 -m beit'", "'torchrun --nproc_per_node 8 -m beit'"),
        ("a--b, x --", "a--b, x --"),
        (
            "(beit doctor DATA --write a.csv, then --data a.csv)",
            "(beit doctor DATA --write a.csv, then data a.csv)",
        ),
    ],
)
def test_errors_name_what_python_takes(message: str, expected: str) -> None:
    assert calls.in_python(message) == expected


# ── a chain of calls ────────────────────────────────────────────────────────────────────────────

TRAINING: dict[str, Any] = {
    "data": {"train": IMAGES, "validation": OTHERS, "num_workers": 0},
    "optim": {"batch_size": 8, "epochs": 2, "warmup_epochs": 1},
    "device": {"accelerator": "cpu"},
    "quiet": True,
}
RUN = {"log_every": 3, "checkpoint_every": 4}
VIT = {"image_size": [16, 24], "patch_size": 8, "width": 12, "depth": 2, "num_heads": 3}
SMALL: dict[str, Any] = {
    "model": {"backbone": VIT, "num_codes": 0, "early_layers": 1, "head_layers": 1},
    "mask": {"count": 2, "min_block": 1},
}
TABLE: dict[str, Any] = {"data": OTHERS, "num_workers": 0, "quiet": True}


@pytest.fixture(scope="module")
def backbone(trained_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Result:
    return pretrained(trained_tokenizer, tmp_path_factory.mktemp("calls") / "backbone")


def pretrained(tokenizer: Path, output: Path, run: Any = None, **more: Any) -> Result:
    settings = {**TRAINING, **SMALL, "run": {**RUN, "output": output, **(run or {})}}
    return beit.pretrain(tokenizer=tokenizer, **(settings | more))


@pytest.fixture(scope="module")
def classifier(backbone: Result, tmp_path_factory: pytest.TempPathFactory) -> Result:
    output = tmp_path_factory.mktemp("calls") / "classifier"
    return beit.finetune(init=backbone.path, run={"output": output}, **TRAINING)


def test_figures_are_of_the_weights_that_were_kept(tmp_path: Path) -> None:
    lines = ['{"step": 5, "val_top1": 0.9}', '{"step": 9, "loss": 2.0}']
    (tmp_path / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 9, "val_top1": 0.5}', ""]))
    result = Result("finetune", None, Trained(tmp_path, {"val_top1": 0.9}, []))
    assert result.figures == {"val_top1": 0.9, "loss": 2.0}


def test_a_training_returns_path_figures_pictures_and_model(backbone: Result) -> None:
    assert backbone.path == backbone.directory
    assert backbone.figures.keys() >= {"loss", "val_loss", "val_accuracy"}
    assert backbone.figures | backbone.metrics == backbone.figures
    assert not {"step", "epoch"} & backbone.figures.keys()
    assert "val_loss" in repr(backbone)
    assert backbone.summary in repr(backbone).splitlines()[0]
    assert type(backbone.model).__name__ == "MaskedImageModel"
    page = backbone._repr_html_()
    assert "<svg" in page
    assert "Top: the image, and the masked image that the model sees." in page
    assert not re.search(r"(src|href)=.https?:", page)
    assert json.loads(json.dumps(backbone.figures))
    assert copy.copy(backbone).path == backbone.path
    with pytest.raises(AttributeError, match="no 'nothing'"):
        backbone.nothing  # noqa: B018
    with pytest.raises(ValueError, match="has made no table"):
        backbone.arrays  # noqa: B018


def test_classes_of_models(classifier: Result) -> None:
    assert classifier.model.classes == classifier.model.config.class_names
    assert len(classifier.model.classes) == classifier.model.config.num_classes > 1
    anonymous = beit.load(classifier.path, num_classes=3)
    assert anonymous.classes is None


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_rows_of_a_table_with_and_without_a_file(
    suffix: str, backbone: Result, tmp_path: Path
) -> None:
    file = tmp_path / f"features{suffix}"
    kept = beit.embed(model=backbone.path, output=file, features=["cls", "patches"], **TABLE)
    assert (kept.path, kept.figures) == (file, {"rows": 13})
    assert kept.arrays["patches"].shape == (13, 6, 12)
    features = {"features": ["cls", "patches"], "output": None}
    only = beit.embed(model=backbone.path, **features, **TABLE)
    assert only.path is None
    assert only.about == kept.about
    assert len(only.about["label_names"]) > only.arrays["label"].max()
    assert only.arrays.keys() == kept.arrays.keys() == {"index", "path", "label", "cls", "patches"}
    for name, column in only.arrays.items():
        assert np.array_equal(column, kept.arrays[name])


def test_a_list_of_files_is_embedded(backbone: Result, tmp_path: Path) -> None:
    files = [str(tmp_path / f"{name}.png") for name in "ab"]
    for file in files:
        Image.new("RGB", (30, 20)).save(file)
    rows = beit.embed(model=backbone.path, data=files, quiet=True).arrays
    assert rows["path"].tolist() == files


def test_notes_are_printed_unless_the_caller_shows_logs(
    backbone: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def errors_of(folder: str, **options: Any) -> str:
        for name in "ab":
            (tmp_path / folder / name).mkdir(parents=True)
            Image.new("RGB", (30, 20)).save(tmp_path / folder / name / "1.png")
        beit.embed(model=backbone.path, data=tmp_path / folder, num_workers=0, **options)
        return str(capsys.readouterr().err)

    note = "2 images; classes: 2 (a, b)"
    assert note not in errors_of("first")  # pytest takes logs
    monkeypatch.setattr(logging.getLogger("beit"), "propagate", False)
    assert errors_of("second", quiet=True) == ""
    assert note in errors_of("third")
    assert logging.getLogger("beit").handlers == []


def test_rows_of_lines_are_refused(backbone: Result, tmp_path: Path) -> None:
    lines = beit.embed(model=backbone.path, output=tmp_path / "x.jsonl", **TABLE)
    with pytest.raises(ValueError, match=r"x.jsonl holds no arrays; expected .* .parquet or .npz"):
        lines.arrays  # noqa: B018


def test_predict_evaluate_and_probe(
    classifier: Result, backbone: Result, tmp_path: Path, capsys: Any
) -> None:
    picture = tmp_path / "grid.png"
    predicted = beit.predict(classifier.path, picture=picture, top_k=2, **TABLE)
    assert predicted.arrays["class_name"].shape == (13, 2)
    assert "data:image/png;base64" in predicted._repr_html_()
    evaluated = beit.evaluate(model=classifier.path, **TABLE)
    assert 0 <= evaluated.figures["top1"] <= 1
    assert evaluated.path is None
    output = tmp_path / "probe"
    settings = {"rates": [0.1], "epochs": 1, "num_workers": 0, "quiet": True, "output": output}
    with torch.no_grad():  # as a notebook may have it everywhere
        sets = {"train": IMAGES, "test": OTHERS}
        probed = beit.probe(model=backbone.path, neighbours=2, **sets, **settings)
    assert probed.path == output
    assert probed.figures.keys() == {"linear_cls", "knn_cls", "linear_mean", "knn_mean"}
    assert all(name in repr(probed) for name in probed.figures)
    assert capsys.readouterr() == ("", "")


def test_a_notebook_shows_pictures_in_files_and_pages(
    backbone: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"num_workers": 0, "index": tmp_path / "index.npz", "quiet": True}
    output, photo = tmp_path / "near.png", str(tmp_path / "photo.png")
    Image.new("RGB", (30, 20)).save(photo)
    near = beit.similar(backbone.path, [photo], data=OTHERS, neighbours=2, output=output, **options)
    assert [picture.data for picture in near.pictures] == [output.read_bytes()]
    tokens = beit.visualise_tokens(
        backbone.path, OTHERS, output=tmp_path / "tokens", limit=2, quiet=True
    )
    assert [picture.alt for picture in tokens.pictures] == ["tokens", "predictions", "features"]
    assert "<img style='max-width:100%;height:auto' class=" in tokens._repr_html_()
    page = beit.visualise_embedding(backbone.path, OTHERS, output=tmp_path / "map.html", **options)
    text = (tmp_path / "map.html").read_text()
    framed = text.replace("<head>", "<head><base href='about:srcdoc'>")
    assert html.escape(framed) in page._repr_html_()
    monkeypatch.setattr("beit.result.LARGEST_PAGE", len(text.encode()) - 1)
    assert "<iframe" not in page._repr_html_()
    assert "map.html" in page._repr_html_()


def test_pages_exports_and_presets(backbone: Result, tmp_path: Path, capsys: Any) -> None:
    page = beit.report([backbone.path], output=tmp_path / "compared", quiet=True)
    assert page.path == tmp_path / "compared" / "report.html"
    drawn = beit.visualise_attention(
        backbone.path, OTHERS, output=tmp_path / "attention", limit=2, quiet=True
    )
    assert drawn.figures == {"figures": 2}
    assert capsys.readouterr() == ("", "")
    beit.export(backbone.path, output=tmp_path / "mine.safetensors", format="safetensors")
    assert "is now" not in capsys.readouterr().err  # a value by position has no old spelling
    assert "cifar10-cpu" in beit.presets().value
    assert "cifar10-cpu" in capsys.readouterr().out


def readme_example(part: str) -> str:
    """Return the first Python block of the README with this text in it."""
    text = (Path(__file__).parents[1] / "README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    return next(str(block) for block in blocks if part in block)


def test_the_example_of_the_readme_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    """From a folder of photos to neighbours, with small settings and as written otherwise."""
    example = readme_example("beit.train_tokenizer")
    assert len(example.split("\n")) <= 15
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    drawn = open_source("shapes://24?size=32")
    for number in range(len(drawn)):
        pixels = drawn.image(number).permute(1, 2, 0).numpy()
        Path(f"photos/{number}.png").write_bytes(png(pixels))
    small = {"optim": TRAINING["optim"], "data.num_workers": 0, "quiet": True}
    model = {"encoder": {**VIT, "relative_bias": "none", "absolute_positions": True}}
    teacher = {"source": "timm:test_efficientnet", "image_size": 32, "pretrained": False}
    smaller = {"decoder_depth": 1, "num_codes": 11, "teacher_width": 0}
    monkeypatch.setattr(
        beit,
        "train_tokenizer",
        partial(beit.train_tokenizer, model=model | smaller, teacher=teacher, **small),
    )
    monkeypatch.setattr(beit, "pretrain", partial(beit.pretrain, **SMALL, **small))
    exec(example, {})
    lines = capsys.readouterr().out.splitlines()
    assert len([line for line in lines if "looks like" in line]) == 24


def test_the_readmes_example_of_shipped_weights_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    example = readme_example("beit:cifar10-small")
    monkeypatch.chdir(tmp_path)
    for name in ("cat.jpg", "dog.jpg"):
        Image.new("RGB", (50, 40), "teal").save(name)
    exec(example, {})
    assert capsys.readouterr().out == "torch.Size([2, 192]) torch.Size([2, 16])\n"


# ── callbacks, resuming, and what is left behind ────────────────────────────────────────────────


def test_on_step_sees_every_step_and_what_was_logged(
    trained_tokenizer: Path, tmp_path: Path, records: Any
) -> None:
    seen: dict[int, dict[str, float]] = {}
    pretrained(trained_tokenizer, tmp_path / "run", on_step=seen.__setitem__)
    logged: dict[int, dict[str, float]] = {step: {} for step in range(1, 11)}
    for record in records(tmp_path / "run"):
        step = record.pop("step")
        if step == 0:  # the check before the first step
            continue
        del record["epoch"]
        logged[step] |= record
    assert seen == logged
    assert "val_loss" in seen[5]
    assert seen[7] == {}
    assert watchers() == []


def test_on_step_does_not_see_the_trial_of_a_budget(
    trained_tokenizer: Path, tmp_path: Path
) -> None:
    seen: list[int] = []
    watch = {"on_step": lambda step, figures: seen.append(step)}
    pretrained(trained_tokenizer, tmp_path / "run", {"budget": "10m"}, **watch)
    assert seen == list(range(1, 11))


def test_on_step_ends_a_run_as_stop_after_does(
    trained_tokenizer: Path, tmp_path: Path, same_bits: Any, backbone: Result
) -> None:
    ended = pretrained(trained_tokenizer, tmp_path / "a", on_step=lambda step, _: step < 6)
    pretrained(trained_tokenizer, tmp_path / "b", {"stop_after": 7})
    same_bits(tmp_path / "a", tmp_path / "b")
    assert ended.metrics
    resumed = beit.resume(tmp_path / "a", quiet=True)
    assert resumed.figures.keys() == backbone.figures.keys()
    whole, again = backbone.model.state_dict(), resumed.model.state_dict()
    assert all(torch.equal(whole[name], again[name]) for name in whole)


@pytest.mark.parametrize(
    ("world_size", "logs", "ends"), [(1, False, 4), (2, False, 9), (2, True, 4)]
)
def test_several_processes_agree_when_they_log(world_size: int, logs: bool, ends: int) -> None:
    fabric = SimpleNamespace(is_global_zero=True, world_size=world_size, broadcast=lambda x: x)
    journal = SimpleNamespace(
        fabric=fabric, step=3, last_step=9, recorded={}, logs=logs, message=lambda text: None
    )
    with watched_by(lambda step, figures: False):
        (watcher,) = watchers()
    watcher.after_step(journal)
    assert journal.last_step == ends


def test_an_interrupted_cell_leaves_nothing_behind(
    trained_tokenizer: Path, tmp_path: Path, same_bits: Any, backbone: Result
) -> None:
    def interrupt(step: int, figures: dict[str, float]) -> None:
        if step == 5:
            raise KeyboardInterrupt

    before = torch.get_rng_state()
    data = {"data": {**TRAINING["data"], "num_workers": 2}}
    with pytest.raises(KeyboardInterrupt) as stopped:
        pretrained(trained_tokenizer, tmp_path / "run", on_step=interrupt, **data)
    assert multiprocessing.active_children() == []  # though a notebook keeps the traceback
    assert stopped.tb
    assert watchers() == []
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(FileExistsError, match=r'resume that run with beit.resume\(".*run"\)'):
        pretrained(trained_tokenizer, tmp_path / "run")
    beit.resume(tmp_path / "run", quiet=True)
    assert backbone.path is not None
    same_bits(tmp_path / "run", backbone.path)
    assert torch.equal(torch.get_rng_state(), before)


def test_resume_refuses_what_is_no_training(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is not a directory; expected a run directory"):
        beit.resume(tmp_path / "nothing")


if __name__ == "__main__":
    STUB.write_text(stub())
