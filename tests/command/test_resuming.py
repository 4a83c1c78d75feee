"""`--resume auto` in its three states, and with other settings than those of the run."""

import signal
from dataclasses import replace
from pathlib import Path

import pytest

import beit
from beit import cli
from beit.command.resuming import refuse_others, run_found
from beit.run.directory import RunConfig, RunDirectory
from beit.run.progress import Progress

SHORT = [
    *("--preset", "shapes-tiny", "--target.kind", "pixels", "--data", "shapes://43?size=32"),
    *("--validation", "", "--check.every", "0", "--device.accelerator", "cpu"),
    *("--data.num_workers", "0", "--optim.batch_size", "8", "--optim.epochs", "2"),
]


@pytest.fixture
def words(tmp_path):
    return ["pretrain", *SHORT, "--resume", "auto", "--output", str(tmp_path / "run")]


def files(run: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in sorted(run.rglob("*")) if file.is_file()}


def test_it_starts_it_goes_on_it_is_finished(words, tmp_path, monkeypatch, capsys, same_bits):
    update, run = Progress.update, tmp_path / "run"

    def signalled(progress, step, *rest):
        if step == 3:
            signal.raise_signal(signal.SIGTERM)
        return update(progress, step, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(Progress, "update", signalled)
        assert cli.main(words) == 75
    assert f"there is no run in {run} yet, it starts" in capsys.readouterr().err
    assert cli.main(words) == 0
    assert f"{run}: resumes after step 3 of 10" in capsys.readouterr().err
    before = files(run)
    assert cli.main(words) == 0
    printed = capsys.readouterr()
    assert f"{run} is finished: nothing is left to train\n" in printed.err
    assert f"made    {run}, a pretrained backbone" in printed.out
    assert files(run) == before

    options = {"data": "shapes://43?size=32", "validation": "", "target.kind": "pixels"}
    options |= {"check.every": 0, "device.accelerator": "cpu", "data.num_workers": 0}
    options |= {"optim.batch_size": 8, "optim.epochs": 2, "preset": "shapes-tiny", "quiet": True}
    result = beit.pretrain(**options, output=run, resume="auto")
    assert (result.path, files(run)) == (run, before)
    beit.pretrain(**options, output=tmp_path / "other", resume="auto")
    same_bits(run, tmp_path / "other")

    continued = []
    monkeypatch.setattr(cli, "show", lambda _, presets: continued.extend(presets))
    assert cli.main(["pretrain", "--resume", str(run)]) == 0
    assert continued == ["shapes-tiny"]


@pytest.fixture
def begun(words, tmp_path):
    """A run that is there, without its training."""
    from dataclasses import asdict

    from beit.command.options import parse
    from beit.pretraining.config import Config

    config = parse("pretrain", Config, [*SHORT, "--output", str(tmp_path / "run")])

    def create(**changes):
        run = replace(config.run, **changes)
        return RunDirectory.create(
            run.output, asdict(replace(config, run=run)), {"verb": "pretrain"}
        )

    return create


def test_other_settings_are_refused_by_name(words, begun, capsys):
    run = begun()
    assert cli.main([*words, "--optim.epochs", "3", "--run.seed=4", "--run.log_every", "9"]) == 2
    assert capsys.readouterr().err == (
        f"beit: error: {run.path} has a run with other settings: optim.epochs 2 there, 3 given; "
        "run.seed 0 there, 4 given. Leave these options out to resume it, or name another "
        f"--output; a longer schedule: beit pretrain --resume {run.path} --optim.epochs NUMBER\n"
    )


def test_the_runs_own_settings_count_where_weights_do_not_depend(words, begun, caplog):
    run = begun()
    assert run_found("pretrain", [*words[1:], "--run.log_every=9"]).path == run.path
    (record,) = caplog.records
    before = RunConfig(**run.config()["run"]).log_every
    assert record.getMessage() == (
        f"{run.path} resumes with run.log_every {before}, as its config.yaml says, not 9"
    )


def test_what_beit_chose_may_be_given_again(words, begun, caplog):
    run = begun(fitted_to="30m")
    text = run.config_file.read_text().replace("  epochs: 2", "  epochs: 1.5", 1)
    run.config_file.write_text(text.replace("43?size=32", "43?size=32[:90%]"))
    options = [option for option in words[1:] if option not in ("--resume", "auto")]
    with pytest.raises(
        ValueError, match=r"data.train \S+ there, \S+ given; optim.epochs 1.5 there"
    ):
        refuse_others("pretrain", options, run)
    run.config_file.write_text(run.config_file.read_text().replace("chosen: []", "chosen: [part]"))
    refuse_others("pretrain", [*options, "--budget", "30m"], run)
    with pytest.raises(ValueError, match=r"settings: optim.epochs 1.5 there, 2 given"):
        refuse_others("pretrain", [*options, "--budget", "1h"], run)
    assert not caplog.records


def test_without_an_output_or_a_run_it_says_so(tmp_path, monkeypatch, capsys):
    assert cli.main(["pretrain", "--resume", "auto"]) == 2
    assert "--resume auto needs the run directory, as in --output" in capsys.readouterr().err
    (tmp_path / "mine").mkdir()
    assert cli.main(["pretrain", *SHORT, "--resume=auto", "--output", str(tmp_path / "mine")]) == 2
    assert "mine is not a run directory: it has no config.yaml" in capsys.readouterr().err
    RunDirectory.create(tmp_path / "run", {"kind": "dvae"}, {"verb": "train-tokenizer"})
    words = ["--resume=auto", f"--output={tmp_path}/run", "--preset=shapes-tiny"]
    assert cli.main(["train-tokenizer", *words]) == 2
    assert "run is a run of --kind dvae; give that kind" in capsys.readouterr().err
    assert cli.main(["pretrain", *words]) == 2
    assert "is a run of beit train-tokenizer, not of beit pretrain" in capsys.readouterr().err
