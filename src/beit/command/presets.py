"""Named runs: the YAML files of `beit/presets`, listed, printed and read.

A preset's top-level keys are verbs; under each stands that verb's Config. So one file serves one
command or a whole chain. Its first comment line says what it is for.
"""

import re
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import yaml

FOLDER = Path(__file__).parents[1] / "presets"


@dataclass(frozen=True)
class Config:
    """What `beit presets` shows.

    Args:
        name: print this preset's file; without a name, list all presets
    """

    name: str | None = None


def run(config: Config) -> None:
    """Print the preset asked for, or one line for each: name, verbs, what it is for."""
    if config.name is not None:
        print(path_of(config.name).read_text(encoding="utf-8"), end="")
        return
    width = max(map(len, names()), default=0)
    for name in names():
        verbs = ", ".join(read_yaml(path_of(name)))
        print(f"{name:<{width}}  {headline(name)}\n{'':<{width}}  {verbs}")


def names() -> list[str]:
    """List the presets there are."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def path_of(name: str) -> Path:
    """Find a preset's file by its name."""
    if name not in names():
        near = get_close_matches(name, names(), n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]}?" if near else "."
        raise ValueError(f"there is no preset {name!r}{hint} `beit presets` lists them")
    return FOLDER / f"{name}.yaml"


def headline(name: str) -> str:
    """Read the first line of a preset's head comment."""
    for line in path_of(name).read_text(encoding="utf-8").splitlines():
        if line.startswith("#") and line.strip("# "):
            return line.strip("# ")
        if line.strip("# "):
            break
    return ""


def read_yaml(path: Path) -> dict[str, object]:
    """Read a mapping from a YAML file; only plain values, and 1e-3 is a number."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_PlainLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ValueError(
            f"{path} does not hold a configuration; expected lines such as `key: value`"
        )
    return content


class _PlainLoader(yaml.SafeLoader):
    """YAML 1.1 takes 1e-3 for a string, for want of a point and a sign."""


_PlainLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)
