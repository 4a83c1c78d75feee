"""Size of the code behind the training loops: files and lines, by following imports.

Imports inside functions count. `beit.x.y` counts its own file, not the `__init__.py` of its folder.
"""

import ast
import sys
from pathlib import Path

import pytest

import beit

ROOT = Path(beit.__file__).parents[1]


def file_of(module: str) -> Path | None:
    """Find the file of a module of ours; None for folders and for other packages."""
    path = ROOT.joinpath(*module.split(".")).with_suffix(".py")
    return path if path.is_file() else None


def imports(path: Path) -> set[str]:
    """List the modules of ours that a file imports, wherever the import stands."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            modules |= {node.module, *(f"{node.module}.{name.name}" for name in node.names)}
        elif isinstance(node, ast.Import):
            modules |= {name.name for name in node.names}
    return {name for name in modules if name.startswith("beit.") and file_of(name)}


def reach(module: str) -> dict[str, int]:
    """Follow the imports of a module. Returns: lines by module, its own among them."""
    lines: dict[str, int] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        path = file_of(name)
        if name in lines or path is None:
            continue
        lines[name] = len(path.read_text(encoding="utf-8").splitlines())
        waiting += sorted(imports(path))
    return lines


@pytest.mark.parametrize(
    ("module", "files", "lines"),
    [
        ("beit.pretraining.loop", 26, 3500),
        ("beit.tokenizer.vqkd_loop", 26, 3475),
    ],
)
def test_a_loop_is_little_to_read(module: str, files: int, lines: int) -> None:
    behind = reach(module)
    assert len(behind) <= files, sorted(behind)
    assert sum(behind.values()) <= lines


def test_loops_know_no_formats_no_hub_and_no_drawing() -> None:
    for capability in ("pretraining", "finetuning", "segmentation"):
        wings = {name.split(".")[1] for name in reach(f"beit.{capability}.loop")}
        assert not wings & {"weights", "draw", "rows", "command"}


CORE = {"nn", "data", "run", "weights", "rows", "draw", "command"}
DOOR = {"cli", "demonstration", "calls", "result"}


def test_capabilities_stand_alone() -> None:
    """No folder imports a capability but itself: also one that no contract lists yet."""
    folders = {path.parent.name for path in (ROOT / "beit").glob("*/__init__.py")} - DOOR
    capabilities = folders - CORE
    assert len(capabilities) >= 12
    for folder in folders:
        for path in (ROOT / "beit" / folder).rglob("*.py"):
            wings = {name.split(".")[1] for name in imports(path)}
            assert not wings & (capabilities | DOOR) - {folder}, path


if __name__ == "__main__":
    for module in sys.argv[1:] or [
        "beit.pretraining.loop",
        "beit.pretraining.pretrain",
        "beit.tokenizer.vqkd_loop",
        "beit.tokenizer.vqkd",
    ]:
        behind = reach(module)
        print(f"{module}: {len(behind)} files, {sum(behind.values())} lines")
