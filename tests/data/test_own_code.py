import sys

import pytest

from beit import cli
from beit.comparison.plan import unfold
from beit.comparison.planned_runs import planned_chains
from beit.data.own_code import call, named_by, passed_on, refuse_file, refuse_unnamed

CODE = """
from pathlib import Path

Path("ran").touch()
number = 7


def seven():
    return number


def takes(argument):
    return argument
"""


@pytest.fixture(autouse=True)
def _module(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delenv("BEIT_PYTHON", raising=False)
    (tmp_path / "own_sevens.py").write_text(CODE)
    yield
    sys.modules.pop("own_sevens", None)


def test_a_function_in_the_working_directory_is_called():
    assert call("python:own_sevens:seven") == 7


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("python:own_sevens", "expected python:MODULE:NAME, a function without arguments"),
        ("python:own_sevens.py:seven", "no module own_sevens.py"),
        ("python:own/sevens:seven", "expected python:MODULE:NAME"),
        ("python:own_sevens:__import__('os')", "expected python:MODULE:NAME"),
        ("python:own_eights:seven", "no module own_eights; it is looked for in .*PYTHONPATH"),
        ("python:own_sevens:sevens", r"own_sevens\.py, which has no sevens; did you mean seven\?"),
        ("python:own_sevens:takes", r"own_sevens\.py, but its takes needs arguments"),
        ("python:own_sevens:number", "its number needs arguments or is no function"),
    ],
)
def test_what_cannot_be_called_is_refused(spec, message):
    with pytest.raises(ValueError, match=message):
        call(spec)


def test_an_import_that_fails_inside_the_module_shows_its_own_error(tmp_path):
    (tmp_path / "own_sevens.py").write_text("import missing_package")
    with pytest.raises(ModuleNotFoundError, match="missing_package"):
        call("python:own_sevens:seven")


def test_a_file_is_answered_with_the_name_to_give():
    with pytest.raises(ValueError, match="as in python:code:NAME"):
        refuse_file("some/code.py")
    with pytest.raises(ValueError, match="as in python:code:teacher"):
        refuse_file("code.py:teacher")
    refuse_file("some/code.pyx")


def test_only_modules_that_words_of_the_user_name_are_run(tmp_path, monkeypatch):
    with named_by(["--data={python:own_sevens:takes[:90%]: 2, photos: 1}", "--config=a.yaml"]):
        assert call("python:own_sevens:seven") == 7  # a module is allowed as a whole
        assert passed_on()["BEIT_PYTHON"].split() == ["own_sevens"]
        with pytest.raises(
            ValueError, match=r"a file names it, not your command.*BEIT_PYTHON=json"
        ):
            call("python:json:loads")
    sys.modules.pop("own_sevens")
    (tmp_path / "ran").unlink()
    with named_by([]):
        with pytest.raises(ValueError, match="allow it: BEIT_PYTHON=own_sevens"):
            call("python:own_sevens:seven")
        assert not (tmp_path / "ran").exists()
        monkeypatch.setenv("BEIT_PYTHON", "other, own_sevens")
        assert call("python:own_sevens:seven") == 7


FILES = {
    "teacher": ["train-tokenizer", "--config=given.yaml", "--output=run", "--preset=shapes-tiny"],
    "model": ["embed", "--config=given.yaml", "--output=out.npz"],
    "data": ["embed", "--model=beit:cifar10-small", "--config=given.yaml", "--output=out.npz"],
}
SETTINGS = {
    "teacher": "teacher: {source: 'python:own_sevens:seven', pretrained: true}",
    "model": "{model: 'teacher:python:own_sevens:seven', data: 'shapes://2'}",
    "data": "data: python:own_sevens:seven",
}


@pytest.mark.parametrize("what", FILES)
def test_a_file_of_settings_runs_no_code(what, tmp_path, capsys, monkeypatch):
    (tmp_path / "given.yaml").write_text(SETTINGS[what])
    assert cli.main(FILES[what]) == 2
    assert "BEIT_PYTHON=own_sevens" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()
    monkeypatch.setenv("BEIT_PYTHON", "own_sevens")
    assert cli.main(FILES[what]) == 2  # it is 7
    assert (tmp_path / "ran").exists()


def test_a_plan_runs_no_code(monkeypatch):
    """Its values become words of commands, where they would count as the user's."""
    teacher = {"source": "python:own_sevens:seven", "pretrained": True}
    stage = {"verb": "train-tokenizer", "preset": "shapes-tiny", "teacher": teacher}
    content = {"stages": {"tok": stage}, "cells": {"a": {}}, "figures": {"loss": "tok.loss"}}
    with named_by(["plan.yaml"]), pytest.raises(ValueError, match="BEIT_PYTHON=own_sevens"):
        planned_chains(unfold(content, "plan.yaml", {}))
    with named_by([f"--set.tok.teacher.source={teacher['source']}"]):
        assert planned_chains(unfold(content, "plan.yaml", {}))
    refuse_unnamed(["python:own_sevens:seven"])  # outside of a command
