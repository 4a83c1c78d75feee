import logging
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

import beit
from beit import cli
from beit.command.verbs import VERBS, Verb
from beit.run.directory import RunDirectory


@dataclass(frozen=True)
class Config:
    """A toy.

    Args:
        size: height and width
    """

    size: int = 1


@pytest.fixture
def toy(monkeypatch) -> SimpleNamespace:
    """The module of a verb `toy`; `calls` lists the arguments of its run."""
    calls = []
    module = SimpleNamespace(
        VERB="toy", Config=Config, run=lambda *arguments: calls.append(arguments), calls=calls
    )
    monkeypatch.setitem(sys.modules, "toy_recipe", module)
    monkeypatch.setitem(VERBS, "toy", Verb("toy_recipe", "play with it", resumable=True))
    return module


def refused(capsys, *arguments: str) -> str:
    assert cli.main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("beit: error: ")
    assert printed.err.count("\n") == 1
    return printed.err


def test_a_verb_runs_with_its_config(toy):
    assert cli.main(["toy", "--size", "3"]) == 0
    assert toy.calls == [(Config(3),)]


@pytest.mark.parametrize(
    ("verb", "expected"),
    [
        ("pretrian", "unknown verb 'pretrian'; did you mean pretrain? See beit --help"),
        ("--hepl", "unknown option '--hepl'; did you mean --help?"),
        ("visualize", "unknown verb 'visualize'; did you mean visualise? See beit --help"),
        ("xyzzy", "unknown verb 'xyzzy'. See beit --help"),
    ],
)
def test_unknown_verbs_are_refused(capsys, verb, expected):
    assert expected in refused(capsys, verb)


def test_overview_and_version(capsys):
    assert cli.main(["--help"]) == 0
    overview = capsys.readouterr().out
    assert all(f"  {name} " in overview for name in VERBS)
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"beit {beit.__version__}\n"
    assert cli.main([]) == 2
    assert capsys.readouterr().err == overview


def test_a_verb_of_two_words(capsys):
    with pytest.raises(SystemExit):
        cli.main(["visualise", "explorer", "m", "d", "--print_config"])
    resolved = yaml.safe_load(capsys.readouterr().out)
    assert (resolved["model"], resolved["explorer"]) == ("m", True)
    for words, message in (
        (
            ["visualise"],
            "what? Expected codes, tokens, attention, features, explorer, embedding, got nothing.",
        ),
        (["visualise", "code"], "got code; did you mean codes?"),
        (
            ["visualise", "--help"],
            "Expected codes, tokens, attention, features, explorer, embedding, got --help",
        ),
    ):
        assert cli.main(words) == 2
        assert message in capsys.readouterr().err


# ── log and errors ──────────────────────────────────────────────────────────────────────────────


def test_log_messages_reach_standard_error(toy, capsys, monkeypatch):
    log = logging.getLogger("beit.somewhere")
    toy.run = lambda config: log.info("left out: x")
    assert cli.main(["toy"]) == 0
    assert capsys.readouterr().err == "left out: x\n"
    monkeypatch.setenv("RANK", "1")
    assert cli.main(["toy"]) == 0
    assert capsys.readouterr().err == ""


def test_a_task_of_srun_is_a_process_of_several(toy, capsys, monkeypatch):
    monkeypatch.setattr(os, "environ", dict(os.environ))
    task = {"STEP_ID": "0", "NTASKS": "2", "PROCID": "1", "LOCALID": "1", "NODEID": "0"}
    os.environ.update({f"SLURM_{name}": value for name, value in task.items()})
    found = {}
    toy.run = lambda config: found.update(os.environ)
    assert cli.main(["toy"]) == 0
    assert (found["RANK"], found["WORLD_SIZE"], found["LOCAL_WORLD_SIZE"]) == ("1", "2", "2")


def test_errors_of_a_recipe(toy, capsys, monkeypatch):
    def failing(error):
        def run(config):
            raise error

        toy.run = run

    failing(ValueError("two\nlines"))
    assert refused(capsys, "toy") == "beit: error: two lines\n"
    failing(FileNotFoundError("no folder x; expected images"))
    assert refused(capsys, "toy") == "beit: error: no folder x; expected images\n"
    failing(RuntimeError("a bug"))
    with pytest.raises(RuntimeError, match="a bug"):
        cli.main(["toy"])
    failing(KeyboardInterrupt())
    assert cli.main(["toy"]) == 130
    failing(ValueError("seen"))
    monkeypatch.setenv("BEIT_DEBUG", "1")
    assert cli.main(["toy"]) == 2
    printed = capsys.readouterr().err
    assert "Traceback" in printed
    assert printed.endswith("beit: error: seen\n")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "MemoryError"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried 9 GiB."), "CUDA out of memory. Tried 9"),
        (lambda: torch.empty(2**50), "can't allocate memory"),
        (lambda: np.empty(2**50), "Unable to allocate 8.00 PiB"),
    ],
)
def test_too_little_memory_is_one_line(toy, capsys, error, said):
    def run(config):
        if callable(error):
            error()
        raise error

    toy.run = run
    message = refused(capsys, "toy")
    assert message.startswith("beit: error: out of memory: ")
    assert said in message
    assert message.endswith("(smaller batches need less; BEIT_DEBUG=1 says where)\n")


def test_as_a_process():
    environment = {**os.environ, "PYTHONPATH": str(Path(beit.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-m", "beit", "presets", "--nam", "x"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert "did you mean --name?" in done.stderr


# ── resume ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("option", ["--resume RUN", "--resume=RUN"])
def test_resume_needs_only_the_run(toy, tmp_path, option):
    run = RunDirectory.create(tmp_path / "run", asdict(Config(5)), {"verb": "toy"})
    assert cli.main(["toy", *option.replace("RUN", str(run.path)).split()]) == 0
    ((config, directory, changed_ok),) = toy.calls
    assert (config, directory.path, changed_ok) == (Config(5), run.path, False)


@pytest.mark.parametrize(("value", "expected"), [("true", True), ("false", False)])
def test_resume_with_changed_data(toy, tmp_path, capsys, value, expected):
    run = RunDirectory.create(tmp_path / "run", asdict(Config(5)), {"verb": "toy"})
    assert cli.main(["toy", f"--accept_changed_data={value}", "--resume", str(run.path)]) == 0
    assert toy.calls[0][2] is expected
    message = refused(capsys, "toy", "--resume", str(run.path), "--accept_changed_data", "maybe")
    assert "--accept_changed_data is 'maybe'; expected true or false" in message
    assert "unknown option --accept" in refused(capsys, "toy", f"--accept_changed_data={value}")


def test_resume_refuses_other_options_and_other_runs(toy, capsys, tmp_path):
    own = RunDirectory.create(tmp_path / "own", asdict(Config(5)), {"verb": "toy"})
    message = refused(capsys, "toy", "--resume", str(own.path), "--size", "9")
    assert "size cannot be changed when a run resumes: its weights so far depend on it" in message
    assert "got a second --resume" in refused(capsys, "toy", "--resume=a", "--resume=b")
    assert "needs a value" in refused(capsys, "toy", "--resume")
    assert "nowhere is not a directory" in refused(capsys, "toy", "--resume", "nowhere")
    other = RunDirectory.create(tmp_path / "run", {}, {"verb": "other"})
    message = refused(capsys, "toy", "--resume", str(other.path))
    assert "is a run of beit other, not of beit toy" in message
    assert toy.calls == []
