"""Python code of the user's own, named python:MODULE:NAME: a teacher, or a set of images.

Such a name runs code. So only the user may give one: as an option, as a keyword of a call, or in
the environment variable BEIT_PYTHON, which lists modules. One that comes from a file, such as a
run's settings or a plan, is refused otherwise (docs/security.md).
"""

import importlib
import inspect
import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from beit.wording import nearest

OWN = "python:"
VARIABLE = "BEIT_PYTHON"
_NAME = re.compile(rf"{OWN}(?P<module>[^\W\d][\w.]*):(?P<name>[^\W\d]\w*)")
_GUIDE = "see docs/guides/extending.md"
_named: ContextVar[frozenset[str] | None] = ContextVar("named", default=None)


@contextmanager
def named_by(words: Iterable[str]) -> Iterator[None]:
    """Within this context run code only of modules that these words of the user name.

    Outside of such a context everything is allowed: names are then those of the user's own program.
    """
    modules = (match["module"] for word in words for match in _NAME.finditer(word))
    token = _named.set(frozenset(modules))
    try:
        yield
    finally:
        _named.reset(token)


def passed_on() -> dict[str, str]:
    """Return what another process needs in its environment to allow the same modules."""
    return {VARIABLE: " ".join(sorted(_allowed() | (_named.get() or frozenset())))}


def refuse_unnamed(words: Iterable[str]) -> None:
    """Raise ValueError if words of a file name code that the user has not named."""
    for word in words:
        for match in _NAME.finditer(word):
            _check(match)


def call(spec: str) -> Any:
    """Import the module that python:MODULE:NAME names, and return what the function returns.

    Modules are looked for as Python does, and in the working directory.

    Raises:
        ValueError: no such module or function, one that takes arguments, or one that the user has
            not named.
    """
    match = _NAME.fullmatch(spec)
    if match is None:
        raise ValueError(
            f"{spec}: expected {OWN}MODULE:NAME, a function without arguments in a module, as in "
            f"{OWN}my_code:teacher for one in my_code.py; {_GUIDE}"
        )
    _check(match)
    module, name = match["module"], match["name"]
    if (here := os.getcwd()) not in sys.path:
        sys.path.append(here)  # last, so that no file here replaces an installed module
    try:
        imported = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if not f"{module}.".startswith(f"{error.name}."):
            raise  # of an import in that module
        raise ValueError(
            f"{spec}: there is no module {error.name}; it is looked for in {here}, in PYTHONPATH "
            "and among the installed packages"
        ) from error
    function: Any = getattr(imported, name, None)
    file = getattr(imported, "__file__", None) or module
    where = f"{spec}: expected a function without arguments in {file}"
    if function is None:
        raise ValueError(f"{where}, which has no {name}{nearest(name, [*vars(imported)])}")
    try:
        inspect.signature(function).bind()
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}, but its {name} needs arguments or is no function") from error
    return function()


def refuse_file(source: str) -> None:
    """Raise ValueError for the file of a module, which people give instead of a name."""
    file, _, name = source.partition(":")
    if file.endswith(".py"):
        module = os.path.basename(file).removesuffix(".py")
        raise ValueError(
            f"{source} is Python code; name a function in it, from the folder of the file, as in "
            f"{OWN}{module}:{name or 'NAME'}; {_GUIDE}"
        )


def _allowed() -> frozenset[str]:
    return frozenset(re.split(r"[\s,]+", os.environ.get(VARIABLE, "")))


def _check(match: re.Match[str]) -> None:
    named, module = _named.get(), match["module"]
    if named is not None and module not in named | _allowed():
        raise ValueError(
            f"{match[0]} runs code, and a file names it, not your command. If you know what is in "
            f"the module {module}, allow it: {VARIABLE}={module} before the command, or in the "
            f"environment; {_GUIDE}"
        )
