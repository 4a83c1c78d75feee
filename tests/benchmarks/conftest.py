"""Makes the benchmarks importable, as their own folder does when one of them is run."""

import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    names = [script.stem for script in BENCHMARKS.glob("*.py")]
    others = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    yield
    for name in names:
        sys.modules.pop(name, None)
    sys.modules.update(others)  # modules of the same names, of other tests


@pytest.fixture
def benchmarks():
    """The folder of the benchmarks."""
    return BENCHMARKS
