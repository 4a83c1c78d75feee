"""A verb of several kinds: options, files, presets, runs or the model choose the module."""

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import yaml

from beit import cli
from beit.command import presets
from beit.command.modules import find_module, module_of_run
from beit.command.options import parse
from beit.command.verbs import VERBS, Verb
from beit.nn.segmenter import SegmenterConfig, SemanticSegmenter
from beit.nn.vit import VisionTransformer, ViTConfig
from beit.run.directory import RunDirectory
from beit.tokenizer import dvae as train_dvae
from beit.tokenizer import vqkd as train_tokenizer
from beit.weights.file import save_weights


@dataclass(frozen=True)
class Plain:
    """The first kind, which had the verb to itself.

    Args:
        size: of it
    """

    size: int = 1


@dataclass(frozen=True)
class Fancy:
    """The other kind.

    Args:
        kind: fancy
        colour: of it
    """

    kind: Literal["fancy"] = "fancy"
    colour: str = "red"


@pytest.fixture
def ran(monkeypatch, tmp_path) -> list[tuple[str, Any]]:
    """A verb `toy` of two kinds, and its presets; lists kind and configuration of each run."""
    calls: list[tuple[str, Any]] = []
    for name, config in (("plain", Plain), ("fancy", Fancy)):

        def run(settings: Any, *directory: Any, name: str = name) -> None:
            calls.append((name, settings))

        module = SimpleNamespace(VERB="toy", Config=config, run=run)
        monkeypatch.setitem(sys.modules, f"toy_{name}", module)
    kinds = {"plain": "toy_plain", "fancy": "toy_fancy"}
    toy = Verb("toy_plain", "play with it", resumable=True, kinds=kinds)
    monkeypatch.setitem(VERBS, "toy", toy)
    monkeypatch.setattr(presets, "FOLDER", tmp_path)
    (tmp_path / "blue.yaml").write_text("# Blue.\ntoy: {kind: fancy, colour: blue}\n")
    (tmp_path / "large.yaml").write_text("# Large.\ntoy: {size: 9}\n")
    (tmp_path / "marked.yaml").write_text("# Large, with its kind.\ntoy: {kind: plain, size: 9}\n")
    (tmp_path / "own.yml").write_text("kind: fancy\ncolour: green\n")
    return calls


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("", ("plain", Plain())),
        ("--size 3", ("plain", Plain(3))),
        ("--kind plain --size 3", ("plain", Plain(3))),
        ("--kind fancy", ("fancy", Fancy())),
        ("--colour grey --kind=fancy", ("fancy", Fancy(colour="grey"))),
        ("--preset blue", ("fancy", Fancy(colour="blue"))),
        ("--preset blue --colour grey", ("fancy", Fancy(colour="grey"))),
        ("--preset=large --kind plain", ("plain", Plain(9))),
        ("--preset marked --size 4", ("plain", Plain(4))),
        ("--config FOLDER/own.yml", ("fancy", Fancy(colour="green"))),
        ("--config FOLDER/blue.yaml", ("fancy", Fancy(colour="blue"))),
        ("--preset blue --config FOLDER/own.yml", ("fancy", Fancy(colour="green"))),
    ],
)
def test_any_source_may_set_the_kind(ran, tmp_path, arguments, expected) -> None:
    assert cli.main(["toy", *arguments.replace("FOLDER", str(tmp_path)).split()]) == 0
    assert ran == [expected]


@pytest.mark.parametrize(("config", "kind"), [(Plain(3), "plain"), (Fancy(), "fancy")])
def test_a_run_is_resumed_by_the_module_of_its_kind(ran, tmp_path, config, kind) -> None:
    RunDirectory.create(tmp_path / "run", asdict(config), {"verb": "toy"})
    assert cli.main(["toy", "--resume", str(tmp_path / "run")]) == 0
    assert ran == [(kind, config)]
    assert module_of_run("toy", Path("nowhere")) == "toy_plain"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("--kind fanzy", "unknown kind 'fanzy', expected one of plain, fancy; did you mean fancy?"),
        ("--kind", "--kind needs a value"),
        ("--kind fancy --size 3", "unknown option --size"),
        ("--preset large --kind fancy", "preset large has an unknown field size"),
        ("--resume runs/a runs/b", "--resume takes one run and options, got runs/b"),
        ("--resume runs/a --kind", "--kind needs a value"),
    ],
)
def test_mistakes(ran, capsys, arguments, expected) -> None:
    assert cli.main(["toy", *arguments.split()]) == 2
    assert expected in capsys.readouterr().err
    assert ran == []


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "--kind NAME one of plain, fancy; each has its own options"),
        (["--kind", "fancy"], "--colour COLOUR of it (type: str, default: red)"),
    ],
)
def test_help_of_either_kind(ran, capsys, arguments, expected) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["toy", *arguments, "--help"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert expected in text
    assert "--kind" in text


@pytest.mark.parametrize("arguments", [["--size", "3"], ["--preset", "blue"]])
def test_print_config_of_either_kind_can_be_run_again(ran, capsys, tmp_path, arguments) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["toy", *arguments, "--print_config"])
    assert stop.value.code == 0
    (tmp_path / "again.yml").write_text(capsys.readouterr().out)
    assert cli.main(["toy", "--config", str(tmp_path / "again.yml")]) == 0
    assert cli.main(["toy", *arguments]) == 0
    assert ran[0] == ran[1]


def test_the_tokenizers_are_two_kinds(capsys) -> None:
    """The shipped verb has two kinds, and its preset prints the right one."""
    kinds = VERBS["train-tokenizer"].kinds
    assert kinds == {"vqkd": train_tokenizer.__name__, "dvae": train_dvae.__name__}
    with pytest.raises(SystemExit):
        cli.main(["train-tokenizer", "--preset", "dvae-cifar10-cpu", "--print_config"])
    content = yaml.safe_load(capsys.readouterr().out)
    assert content["kind"] == "dvae"
    assert content["model"]["num_codes"] == 512
    config = parse("train-tokenizer", train_dvae.Config, ["--preset", "dvae-cifar10-cpu"])
    assert config.model.grid == (8, 8)


def test_the_model_chooses_between_classes_and_maps(tmp_path: Path) -> None:
    backbone = ViTConfig((16, 16), patch_size=4, width=6, depth=4, num_heads=2)
    segmenter = SemanticSegmenter(SegmenterConfig(backbone, 3, (1, 2, 3, 4), channels=4))
    maps, other = str(tmp_path / "maps.safetensors"), str(tmp_path / "vit.safetensors")
    save_weights(maps, segmenter)
    save_weights(other, VisionTransformer(backbone))
    for verb, folder in (("evaluate", "evaluation"), ("predict", "tables")):
        of_classes = f"beit.{folder}.{verb}"
        assert find_module(verb, ["--model", maps]) == f"beit.segmentation.{verb}"
        assert find_module(verb, ["--model", other]) == of_classes
        assert find_module(verb, ["--model", maps, "--kind", "classes"]) == of_classes
        assert find_module(verb, []) == of_classes
    assert find_module("predict", [maps, "cat.jpg"]) == "beit.segmentation.predict"
