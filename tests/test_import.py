import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import beit

SOURCES = str(Path(beit.__file__).parents[1])


def fresh(code: str) -> str:
    """What a new interpreter prints."""
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {SOURCES!r})\n{code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_import_brings_no_torch():
    code = "import beit, beit.cli; print('torch' in sys.modules, 'jsonargparse' in sys.modules)"
    assert fresh(code) == "False False"


def test_help_brings_no_torch():
    code = "from beit.cli import main; main(['--help']); print('torch' in sys.modules)"
    assert fresh(code).endswith("False")


def test_public_names_are_the_defining_modules_own():
    for name, module in beit._DEFINED_IN.items():
        assert getattr(beit, name) is getattr(importlib.import_module(module), name)


def test_all_names_are_listed():
    assert set(beit.__all__) <= set(dir(beit))
    assert set(beit.__all__) == {"__version__", *beit._DEFINED_IN}


def test_unknown_name_is_refused():
    with pytest.raises(AttributeError, match="module 'beit' has no attribute 'lod'"):
        beit.lod  # noqa: B018
    with pytest.raises(AttributeError, match=r"'pretrian'; did you mean beit\.pretrain\?"):
        beit.pretrian  # noqa: B018
