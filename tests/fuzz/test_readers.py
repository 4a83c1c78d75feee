"""Changed files are refused as documented: a ValueError or OSError that names them, or are read.

`python tests/fuzz/run.py` reads many more, each within limits of time and memory.
"""

import random
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings, strategies

sys.path.insert(0, str(Path(__file__).parent))  # run.py is a script too, so this is no package
from run import READERS, Fuzzed

INPUTS = 12


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", READERS)
def test_a_changed_file_is_refused_as_documented(name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        fuzzed = Fuzzed(name, Path(folder))

        @settings(
            max_examples=INPUTS,
            deadline=None,
            phases=(Phase.generate, Phase.shrink),
            database=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        )
        @given(strategies.randoms(use_true_random=False))
        def attempt(rng: random.Random) -> None:
            fuzzed.attempt(rng)

        attempt()
