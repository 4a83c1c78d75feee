from pathlib import Path

import pytest

from beit.files import replacing, write_text
from beit.run.directory import RunConfig, RunDirectory


def test_config_comes_back_and_tuples_as_lists(tmp_path):
    config = {"data": {"train": Path("images"), "limit": None}, "betas": (0.9, 0.98), "rate": 1e-5}
    RunDirectory.create(tmp_path / "runs" / "a", config, {"verb": "pretrain"})
    run = RunDirectory.open(tmp_path / "runs" / "a")
    assert run.config() == {
        "data": {"train": "images", "limit": None},
        "betas": [0.9, 0.98],
        "rate": 1e-5,
    }
    assert run.verb() == "pretrain"
    assert run.checkpoints.is_dir()
    assert {file.name for file in run.path.iterdir()} == {
        "config.yaml",
        "environment.json",
        "checkpoints",
    }


def test_existing_directory_is_not_touched(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"not overwritten; name another directory$"):
        RunDirectory.create(tmp_path, {}, {"verb": "pretrain"})
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]


def test_refuses_what_is_no_run_directory(tmp_path):
    with pytest.raises(ValueError, match="--output"):
        RunDirectory.create("", {}, {"verb": "pretrain"})
    with pytest.raises(FileNotFoundError, match=r"no config\.yaml"):
        RunDirectory.open(tmp_path)
    with pytest.raises(FileNotFoundError, match="absent"):
        RunDirectory.open(tmp_path / "absent")


@pytest.mark.parametrize("name", ["log_every", "checkpoint_every", "keep_last", "stop_after"])
def test_run_config_refuses_zero(name):
    with pytest.raises(ValueError, match=rf"run\.{name} is 0"):
        RunConfig(**{name: 0})


def test_interrupted_writing_leaves_the_old_file_alone(tmp_path):
    path = tmp_path / "report.html"
    write_text(path, "old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as temporary:
        temporary.write_text("half of the n")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("text", ["[]", "{}", '"pretrain"'])
def test_environment_without_a_command_is_refused(tmp_path, text):
    run = RunDirectory.create(tmp_path / "a", {}, {"verb": "pretrain"})
    run.environment_file.write_text(text)
    with pytest.raises(ValueError, match=r"environment\.json does not name the command"):
        RunDirectory.open(run.path, "pretrain")


DEEP = "[" * 3000 + "]" * 3000


@pytest.mark.parametrize(
    "content", [b"", b"[1, 2]", b"\xff\xfe", f"a: {DEEP}".encode(), b"a: 2020-13-45", b"a: [", b"a"]
)
def test_a_configuration_that_is_none_is_refused_by_name(tmp_path, content):
    run = RunDirectory.create(tmp_path / "a", {"seed": 1}, {"verb": "pretrain"})
    run.config_file.write_bytes(content)
    with pytest.raises(ValueError, match=r"config\.yaml (is not valid YAML|does not hold)"):
        run.config()


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"{", b"[" * 100_000])
def test_an_environment_that_is_no_json_is_refused_by_name(tmp_path, content):
    run = RunDirectory.create(tmp_path / "a", {"seed": 1}, {"verb": "pretrain"})
    run.environment_file.write_bytes(content)
    with pytest.raises(ValueError, match=r"environment\.json is not valid JSON"):
        run.verb()
