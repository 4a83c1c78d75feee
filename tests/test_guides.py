"""Guides with files and commands: all of it runs in order, the trainings made shorter.

A block of Python that begins with the name of a file is written to that file. Pages without
commands that belong to their Python are run by tests/test_blocks.py.
"""

import re
import shlex
import sys
from pathlib import Path

import pytest

from beit import cli

GUIDES = Path(__file__).parents[1] / "docs" / "guides"
BLOCK = re.compile(r"^```(python|sh)\n(.*?)^```$", re.M | re.S)
SHORT = {
    "train-tokenizer": ["--optim.epochs=1", "--data.limit=32", "--device.accelerator=cpu"],
    "pretrain": ["--optim.epochs=1", "--data.limit=32", "--check.every=0"],
    "embed": ["--limit=8"],
    "segment": ["--optim.steps=2", "--optim.warmup_steps=0", "--data.limit=8"],
}
REFUSED = "--resume runs/tokenizer"  # it names code, which the command does not


def run_guide(name):
    """Run a guide in the working directory. Returns: the exit code of each command."""
    codes = {}
    for language, code in BLOCK.findall((GUIDES / f"{name}.md").read_text("utf-8")):
        file = re.match(r"# (\w+\.py)\n", code)
        if file:
            Path(file[1]).write_text(code)
        elif language == "python":
            exec(compile(code, name, "exec"), {"__name__": name})
        else:
            for line in code.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                short = [] if "--resume" in words else SHORT.get(words[1], [])
                codes[line] = cli.main([*words[1:], *short])
    return codes


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    for module in set(sys.modules) - before:
        if module.startswith("my_"):
            del sys.modules[module]


def test_extending(capsys):
    codes = run_guide("extending")
    assert len(codes) == 5
    for line, code in codes.items():
        assert code == (2 if REFUSED in line else 0), line
    assert "allow it: BEIT_PYTHON=my_teacher" in capsys.readouterr().err
    assert Path("runs/tokenizer/weights.safetensors").exists()  # nothing was changed


@pytest.mark.slow
def test_segmentation_of_masks():
    codes = run_guide("segmentation-masks")
    assert codes and not any(codes.values())
    assert len(list(Path("maps/maps").glob("*.png"))) == 30
