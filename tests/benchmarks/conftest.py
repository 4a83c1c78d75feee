"""Makes the benchmarks importable, as their own folder does when one of them is run."""

from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.fixture
def benchmarks():
    """The folder of the benchmarks."""
    return BENCHMARKS
