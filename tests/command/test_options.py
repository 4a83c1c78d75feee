import sys
from dataclasses import dataclass, field, fields
from importlib import import_module
from types import SimpleNamespace
from typing import Literal

import pytest
import yaml

from beit import cli
from beit.command import presets
from beit.command.options import as_spelled, in_fields, parse, renamed
from beit.command.verbs import VERBS, Verb
from beit.finetuning import finetune
from beit.pretraining import pretrain
from beit.probing import probe
from beit.segmentation import segment
from beit.tables import predict


@pytest.fixture(autouse=True)
def _no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of data here are made up; tests of settings that follow them are in another file."""
    monkeypatch.setattr("beit.command.options.following_data", lambda *_: [])


DEEP = "[" * 3000 + "]" * 3000


@dataclass(frozen=True)
class Optim:
    """How the weights move.

    Args:
        epochs: passes over the images
        learning_rate: the peak
    """

    epochs: int = 3
    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.98)
    clip: float | None = None

    def __post_init__(self) -> None:
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate is {self.learning_rate} - expected above 0")


@dataclass(frozen=True)
class Erase:
    """Random erasing, or none.

    Args:
        share: of the images
    """

    share: float = 0.25


@dataclass(frozen=True)
class Config:
    """A toy of a recipe.

    Args:
        name: what it is called
        size: height and width
    """

    name: str = "toy"
    size: tuple[int, int] | None = None
    kind: Literal["plain", "fancy"] = "plain"
    rates: tuple[float, ...] = (0.1, 0.2)
    untrained: bool = False
    optim: Optim = field(default_factory=lambda: Optim(epochs=7))
    erase: Erase | None = None

    def __post_init__(self) -> None:
        if self.kind == "fancy" and self.size is None:
            raise ValueError("kind fancy needs a size")


@pytest.fixture
def ran(monkeypatch, tmp_path):
    """A verb `toy` and the presets `tiny` and `other`; returns the list of what was run."""
    calls = []
    module = SimpleNamespace(Config=Config, run=calls.append)
    monkeypatch.setitem(sys.modules, "toy_recipe", module)
    toy = Verb("toy_recipe", "play with it", positional=("name",), resumable=True)
    monkeypatch.setitem(VERBS, "toy", toy)
    monkeypatch.setattr(presets, "FOLDER", tmp_path)
    (tmp_path / "tiny.yaml").write_text(
        "# A toy in a second.\n# beit toy --preset tiny\n"
        "toy:\n  size: [4, 6]\n  optim: {epochs: 20, learning_rate: 1e-4}\n"
        "probe:\n  model: here\n"
    )
    (tmp_path / "other.yaml").write_text("# Only probes.\nprobe:\n  model: here\n")
    return calls


def refused(capsys, *arguments: str) -> str:
    assert cli.main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("beit: error: ")
    assert printed.err.count("\n") == 1
    return printed.err


def test_defaults_are_the_configs(ran):
    assert cli.main(["toy"]) == 0
    assert ran == [Config()]


def test_options_of_every_kind(ran):
    options = "--size=[3,5] --rates [1e-3,2] --kind fancy --untrained --optim.betas=[0.5,0.6]"
    options += " --optim.clip 3 --optim.epochs 2 --erase.share 0.5 --name 2026"
    assert cli.main(["toy", *options.split()]) == 0
    assert ran == [
        Config(
            name="2026",
            size=(3, 5),
            kind="fancy",
            rates=(1e-3, 2.0),
            untrained=True,
            optim=Optim(epochs=2, betas=(0.5, 0.6), clip=3.0),
            erase=Erase(0.5),
        )
    ]
    assert isinstance(ran[0].size, tuple)
    assert isinstance(ran[0].optim.clip, float)


def test_null_and_false_override_a_file(ran, tmp_path):
    (tmp_path / "c.yaml").write_text("untrained: true\nsize: [1, 2]\n")
    options = ["--config", str(tmp_path / "c.yaml"), "--size", "null", "--untrained", "false"]
    assert cli.main(["toy", *options]) == 0
    assert ran == [Config()]


def test_preset_under_file_under_options_in_any_order(ran, tmp_path):
    file = tmp_path / "mine.yml"
    file.write_text("optim:\n  epochs: 30\n  clip: 1.0\nerase: {share: 0.75}\n")
    arguments = ["toy", "--optim.clip", "2", "--config", str(file), "--preset=tiny"]
    assert cli.main(arguments) == 0
    expected = Optim(epochs=30, learning_rate=1e-4, clip=2.0)
    assert ran == [Config(size=(4, 6), optim=expected, erase=Erase(0.75))]


def test_a_file_may_be_a_preset_of_ones_own(ran, tmp_path):
    assert cli.main(["toy", "--config", str(tmp_path / "tiny.yaml")]) == 0
    assert ran[0].optim.epochs == 20


def test_positional_arguments(ran):
    assert cli.main(["toy", "blocks", "--optim.epochs", "1"]) == 0
    assert ran == [Config(name="blocks", optim=Optim(epochs=1))]


@pytest.mark.parametrize("values", [["a.jpg"], ["a.jpg", "b.jpg"], ["-"]])
def test_the_last_positional_argument_may_be_many(values):
    config = parse("predict", predict.Config, ["runs/ft", *values, "--top_k", "3"])
    assert (config.model, list(config.data), config.top_k) == ("runs/ft", values, 3)


def test_print_config_can_be_run_again(ran, capsys, tmp_path):
    with pytest.raises(SystemExit) as stop:
        cli.main(["toy", "--preset", "tiny", "--erase.share", "0.5", "--print_config"])
    assert stop.value.code == 0
    resolved = capsys.readouterr().out
    content = yaml.safe_load(resolved)
    assert content["size"] == [4, 6]
    assert content.keys() == {"name", "size", "kind", "rates", "untrained", "optim", "erase"}
    (tmp_path / "again.yaml").write_text(resolved)
    assert cli.main(["toy", "--config", str(tmp_path / "again.yaml")]) == 0
    assert cli.main(["toy", "--preset", "tiny", "--erase.share", "0.5"]) == 0
    assert ran[0] == ran[1]


def test_help_of_a_verb(ran, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["toy", "--help"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "--optim.epochs EPOCHS passes over the images (type: int, default: 7)" in text
    assert "--resume RUN" in text
    assert "--preset NAME" in text
    assert "beit toy [NAME] [--preset NAME]" in text
    assert "--optim CONFIG" not in text


# ── refusals ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("toy --optim.epoch 3", "unknown option --optim.epoch; did you mean --optim.epochs?"),
        ("toy --epochs=3", "unknown option --epochs; did you mean --optim.epochs?"),
        ("toy --optim.lr=3", "unknown option --optim.lr; did you mean --optim.learning_rate?"),
        ("toy --learnin_rate 1", "did you mean --optim.learning_rate?"),
        ("toy --prest tiny", "unknown option --prest; did you mean --preset?"),
        ("toy --xyzzy 1", "unknown option --xyzzy. See beit toy --help"),
        ("toy --preset tyni", "there is no preset 'tyni'; did you mean tiny?"),
        ("toy --preset other", "preset other has no part for toy; it has: probe"),
        ("toy --preset", "--preset needs a value"),
        ("toy --config nowhere.yaml", "nowhere.yaml: No such file or directory"),
        ("toy --optim.epochs many", "optim.epochs: Expected int. Got value: many"),
        ("toy --optim.epochs", "--optim.epochs: expected one argument"),
        ("toy --kind odd", "kind: Expected one of ['plain', 'fancy']. Got value: odd"),
        ("toy --size [3]", "size: Expected a tuple with 2 elements (got [3])"),
        ("toy --rates 0.5", "rates: expected a list, as in [0.5]"),
        ("toy --erase.shar 1", "erase: Option 'shar' is not accepted (got shar=1)"),
        ("toy --optim.learning_rate -1", "error: learning_rate is -1.0 - expected above 0"),
        ("toy --kind fancy", "error: kind fancy needs a size"),
        ("toy one two", "unexpected argument 'two': beit toy takes NAME"),
        ("toy --untrained true two", "unrecognized arguments: two"),
        ("probe here", "beit probe takes only options, as in --data here; see beit"),
        ("probe a&b", "takes only options, as in --data 'a&b'; see beit probe"),
        ("pretrain photos", "only options, as in --data photos; see beit pretrain --help"),
        ("finetune photos", "only options, as in --data photos; see beit finetune --help"),
        ("finetune run photos", "only options, as in --model run --data photos; see"),
    ],
)
def test_mistakes_are_explained_in_one_line(ran, capsys, monkeypatch, arguments, expected):
    monkeypatch.setitem(
        sys.modules, "beit.probing.probe", SimpleNamespace(Config=Config, run=ran.append)
    )
    assert expected in refused(capsys, *arguments.split())
    assert ran == []


def test_a_value_that_is_nested_too_deep_is_refused(ran, capsys):
    message = refused(capsys, "toy", "--size", DEEP)
    of_oldest = "size: Expected tuple"  # jsonargparse 4.51 reads any depth
    assert "a value is nested too deep in one of: the options" in message or of_oldest in message
    assert ran == []


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("optim: {epoch: 3}", "has an unknown field optim.epoch; did you mean optim.epochs?"),
        ("sizes: [2, 3]", "has an unknown field sizes; did you mean size?"),
        ("erase: {shar: 3}", "erase: Option 'shar' is not accepted"),
        ("optim: 3", "optim is a group of fields, got 3"),
        ("optim: [", "is not valid YAML"),
        (f"optim: {DEEP}", "mine.yml is not valid YAML"),
        ("- 1", "does not hold a configuration"),
        ("optim: {learning_rate: fast}", "optim.learning_rate: Expected float. Got value: fast"),
        ("probe: {model: here}", "has no part for toy; it has: probe"),
        ("toy: 3", "expected fields under toy, got 3"),
    ],
)
def test_mistakes_in_files_name_the_file_and_field(ran, capsys, tmp_path, content, expected):
    file = tmp_path / "mine.yml"
    file.write_text(content)
    assert expected in refused(capsys, "toy", "--config", str(file))
    assert ran == []


def test_a_preset_with_an_unknown_verb_is_refused(ran, capsys, tmp_path):
    (tmp_path / "odd.yaml").write_text("toyy: {}\n")
    assert "preset odd has 'toyy' at its top level" in refused(capsys, "toy", "--preset", "odd")


# ── one spelling in every verb ──────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("verb", ["train-tokenizer", "pretrain", "finetune", "segment"])
def test_data_model_and_output_are_the_fields_of_a_training(verb):
    module = import_module(VERBS[verb].module)
    words = ["--data", "photos", "--validation=held", "--data.num_workers", "1", "--output=runs/x"]
    words += ["--model", "runs/mine"] if verb in ("finetune", "segment") else []
    config = parse(verb, module.Config, words)
    assert (config.data.train, config.data.validation) == ("photos", "held")
    assert (config.data.num_workers, config.run.output) == (1, "runs/x")
    assert config.init == ("runs/mine" if "--model" in words else None)
    assert as_spelled(verb, in_fields(verb, words)) == words


@pytest.mark.parametrize(
    ("verb", "words", "field", "value"),
    [
        ("probe", ["--model=m", "--data=a", "--test=b"], "train", "a"),
        ("export", ["--model=m", "--output=o", "--format=timm"], "source", "m"),
        ("push", ["--model=m", "--repository=a/b"], "source", "m"),
        ("fetch", ["--name=cifar10", "--output=d"], "directory", "d"),
        ("evaluate", ["--model=m", "--data=a", "--output=o"], "data", "a"),
        ("visualise explorer", ["--model=m", "--data=a", "--output=o"], "output", "o"),
    ],
)
def test_the_others_take_them_too(verb, words, field, value):
    assert getattr(parse(verb, import_module(VERBS[verb].module).Config, words), field) == value


def test_every_verb_that_takes_a_model_or_data_calls_them_so():
    own = {"demo", "report", "replay", "ablate", "presets", "fetch"}
    own |= {"pretrain", "train-tokenizer"}
    for name, verb in VERBS.items():
        for module in {verb.module, *verb.kinds.values()}:
            taken = {field.name for field in fields(import_module(module).Config)}
            taken |= set(verb.spellings)
            assert name in own | {"doctor", "pack"} or "model" in taken, name
            assert name in own | {"export", "push"} or "data" in taken, name
            assert name in ("presets", "push", "replay") or "output" in taken, name


def test_an_old_spelling_has_one_hint_and_a_new_one_none(monkeypatch, capsys):
    old = ["--data.train=p", "--run.output", "runs/x", "--init=m"]
    expected = "--data.train is now --data, --run.output is now --output, --init is now --model; "
    assert renamed("finetune", old) == f"{expected}the old spelling works in this release only"
    assert renamed("finetune", as_spelled("finetune", old)) == ""
    monkeypatch.setattr(pretrain, "run", lambda config: None)
    monkeypatch.setattr(pretrain, "ending", lambda config, result: None)
    for words, lines in (("--data.train=p --run.output=o", 1), ("--data=p --output=o", 0)):
        assert cli.main(["pretrain", *words.split()]) == 0
        assert capsys.readouterr().err.count("is now --output") == lines


def test_missing_options_are_named_as_users_write_them():
    for words, message in (
        (["--test=x"], "--model and --data must be given; see beit probe --help"),
        (["--model=x"], "--data must be given; see beit probe --help"),
    ):
        with pytest.raises(ValueError, match=f"^{message}$"):
            parse("probe", probe.Config, words)


def test_help_and_suggestions_have_the_spellings(capsys):
    with pytest.raises(SystemExit):
        parse("finetune", finetune.Config, ["--help"])
    shown = capsys.readouterr().out
    for option in ("--data DATA", "--validation VALIDATION", "--output OUTPUT", "--model MODEL"):
        assert f"  {option}" in shown
    assert "required" not in shown and "null with init" not in shown
    with pytest.raises(SystemExit):
        parse("segment", segment.Config, ["--help"])
    assert "--optim.steps NUMBER" in " ".join(capsys.readouterr().out.split())
    for option in ("--data.train", "--run.output", "--init "):
        assert f"  {option}" not in shown
    for wrong, right in (("--ouput", "--output"), ("--dat", "--data"), ("--modl", "--model")):
        with pytest.raises(ValueError, match=f"did you mean {right}\\?"):
            parse("finetune", finetune.Config, [wrong, "x"])
