"""Presets, the YAML files of `beit/presets`: list, print and read them.

A preset maps verbs to values of their Configs, so that one file serves one command or a chain of
them. Its first comment line says what it is for.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from beit.command.messages import did_you_mean

MAX_VALUES = 1_000_000  # of a file, once its aliases are written out
# What PyYAML raises; most of them for a tag with a value that it does not fit, as in !!bool x.
YAML_ERRORS = (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError)
LONGEST = 400  # letters of an error that are shown; it may quote the file
FOLDER = Path(__file__).parents[1] / "presets"


@dataclass(frozen=True)
class Config:
    """Settings of `beit presets`.

    Args:
        name: print this preset's file; without a name, list all presets
    """

    name: str | None = None


def run(config: Config) -> dict[str, str]:
    """Print one preset, or the name, purpose and verbs of each. Returns: text, purposes by name."""
    if config.name is not None:
        text = path_of(config.name).read_text(encoding="utf-8")
        print(text, end="")
        return {config.name: text}
    width = max(map(len, names()), default=0)
    for name in names():
        verbs = ", ".join(read_yaml(path_of(name)))
        print(f"{name:<{width}}  {headline(name)}\n{'':<{width}}  {verbs}")
    return {name: headline(name) for name in names()}


def names() -> list[str]:
    """List the names of all presets."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def path_of(name: str) -> Path:
    """Find a preset's file by its name."""
    if name not in names():
        hint = did_you_mean(name, names(), cutoff=0.4)
        raise ValueError(f"there is no preset {name!r}{hint} `beit presets` lists them")
    return FOLDER / f"{name}.yaml"


def headline(name: str) -> str:
    """Return the first line of a preset's head comment."""
    lines = path_of(name).read_text(encoding="utf-8").splitlines()
    first = next((line for line in lines if line.strip("# ")), "")
    return first.strip("# ") if first.startswith("#") else ""


def read_yaml(path: Path) -> dict[str, object]:
    """Read a mapping of plain values from a YAML file; 1e-3 is a number."""
    content = parsed(path)
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ValueError(f"{path} does not hold a configuration; expected lines of `key: value`")
    return _with_mixtures(content)


def _with_mixtures(values: dict[str, Any]) -> dict[str, Any]:
    """Write mixtures as strings: `train: {photos: 0.7, more: 0.3}` needs no quotes in YAML."""
    for name, value in values.items():
        if name == "train" and isinstance(value, dict):
            values[name] = f"{{{', '.join(f'{source}: {w}' for source, w in value.items())}}}"
        elif isinstance(value, dict):
            _with_mixtures(value)
    return values


def parsed(path: Path) -> Any:
    """Read any values from a YAML file; ValueError, in a few lines, if that is impossible."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8-sig"), Loader=_PlainLoader)
    except YAML_ERRORS as error:
        text = str(error).replace('in "<unicode string>", ', "in ")
        reason = re.sub(r"\S{60,}", lambda word: f"{word[0][:40]}…", text)[:LONGEST]
        raise ValueError(f"{path} is not valid YAML: {reason}") from error
    _refuse_expanding(content, path)
    return content


def _refuse_expanding(content: object, path: Path) -> None:
    """Refuse YAML whose aliases (*name) make it endless, or huge once it is written out."""
    sizes: dict[int, int] = {}

    def size(value: object) -> int:
        if not isinstance(value, dict | list):
            return 1
        if id(value) not in sizes:
            sizes[id(value)] = MAX_VALUES  # of what contains itself
            inner = value.values() if isinstance(value, dict) else value
            sizes[id(value)] = 1 + sum(map(size, inner))
        return sizes[id(value)]

    try:
        fits = size(content) < MAX_VALUES
    except RecursionError:
        fits = False
    if not fits:
        raise ValueError(
            f"{path} is nested too deep, or has more than {MAX_VALUES} values once its aliases "
            "are written out"
        )


def plain(text: str) -> Any:
    """Read one value, as in a YAML file; the text itself if it is none."""
    try:
        return yaml.load(text, Loader=_PlainLoader) if text else ""
    except YAML_ERRORS:
        return text


class _PlainLoader(yaml.SafeLoader):
    """Reads 1e-3 as a number; YAML 1.1 takes it for a string, as it has no point and no sign."""


_PlainLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)
