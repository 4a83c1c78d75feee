"""Paths in a run's settings are found from any folder."""

from pathlib import Path

import pytest

from beit.run.directory import RunDirectory
from beit.run.found import found, with_found_paths


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDirectory:
    """The run work/runs/pre, begun in `work`, seen from `elsewhere`."""
    for folder in ("work/runs/tok", "work/photos", "tok2", "elsewhere/runs/tok"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work")
    settings = {"tokenizer": "runs/tok", "data": {"train": "photos[:90%]"}}
    RunDirectory.create("runs/pre", {**settings, "run": {"output": "runs/pre"}}, {"verb": "x"})
    monkeypatch.chdir(tmp_path / "elsewhere")
    return RunDirectory(Path("../work/runs/pre"))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("runs/tok", "work/runs/tok"),  # not the folder of that name that is here
        ("photos[:90%]", "work/photos[:90%]"),
        ("photos?label=x", "work/photos?label=x"),
        ("../tok2", "tok2"),
        ("gone", "gone"),
        ("x" * 300, "x" * 300),  # longer than a name of a file may be
        ("shapes://10", "shapes://10"),
        ("published:beitv2", "published:beitv2"),
        ("", ""),
    ],
)
def test_a_path_is_found_from_where_the_run_began(
    run: RunDirectory, tmp_path: Path, name: str, expected: str
) -> None:
    path = found(run, name)
    moved = path != name
    assert (str(Path(path).resolve()) if moved else path) == (
        str(tmp_path / expected) if moved else expected
    )
    assert moved == (name != expected)


def test_from_where_it_began_nothing_changes(
    run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = with_found_paths(run, run.config())
    assert Path(changed["tokenizer"]).resolve() == tmp_path / "work/runs/tok"
    assert Path(changed["data"]["train"]).parent.resolve() == tmp_path / "work"
    monkeypatch.chdir(tmp_path / "work")
    here = RunDirectory(Path("runs/pre"))
    assert with_found_paths(here, here.config()) == here.config()


def test_a_path_beside_the_run_is_found_if_it_began_in_its_folder(tmp_path: Path) -> None:
    (tmp_path / "tokenizer").mkdir()
    run = RunDirectory.create(tmp_path / "pre", {"tokenizer": "../tokenizer"}, {"verb": "x"})
    assert Path(found(run, "../tokenizer")).resolve() == tmp_path / "tokenizer"
