"""No test runs most of the benchmarks; the names that they import must exist."""

import ast
from importlib import import_module
from importlib.util import find_spec


def test_benchmarks_import_what_there_is(benchmarks):
    for script in sorted(benchmarks.glob("*.py")):
        for node in ast.walk(ast.parse(script.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("beit."):
                module = import_module(node.module)
                for name in (alias.name for alias in node.names):
                    where = f"{script.name}: {node.module}.{name}"
                    assert hasattr(module, name) or find_spec(f"{node.module}.{name}"), where
