"""Splitting a command line: values by position, presets and configuration files, other options."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from beit.command import presets
from beit.command.verbs import VERBS


class Layer(NamedTuple):
    """Values for a Config from one source, which errors name."""

    source: str
    values: Mapping[str, Any]


def read_layers(
    verb: str, arguments: Iterable[str], fields: Iterable[str] = ()
) -> tuple[list[Layer], list[str]]:
    """Read the presets, then the configuration files; return them and the other options.

    A file holds a Config, as in a run directory, or has verbs at its top level, like a preset.

    Args:
        fields: of the verb's Config; a file with no other names holds a Config
    """
    preset_names, options = take(arguments, "--preset")
    files, options = take(options, "--config")
    layers = [_preset_layer(name, verb) for name in preset_names]
    for file in files:
        content = presets.read_yaml(Path(file))
        is_preset = VERBS.keys() >= content.keys() and not set(fields) >= content.keys()
        layers.append(_part(file, content, verb) if is_preset else Layer(file, content))
    return layers, options


def _preset_layer(name: str, verb: str) -> Layer:
    """Read a verb's part of a preset."""
    content = presets.read_yaml(presets.path_of(name))
    unknown = [key for key in content if key not in VERBS]
    if unknown:
        raise ValueError(
            f"preset {name} has {unknown[0]!r} at its top level; expected verbs: see beit --help"
        )
    return _part(f"preset {name}", content, verb)


def _part(source: str, content: Mapping[str, Any], verb: str) -> Layer:
    if verb not in content:
        parts = ", ".join(content) or "none"
        raise ValueError(f"{source} has no part for {verb}; it has: {parts}")
    values = content[verb]
    if not isinstance(values, dict | None):
        raise ValueError(f"{source}: expected fields under {verb}, got {values!r}")
    return Layer(source, values or {})


def take(arguments: Iterable[str], option: str) -> tuple[list[str], list[str]]:
    """Split off every `option VALUE` and `option=VALUE`: return the values, and the rest."""
    values, rest = [], []
    remaining = iter(arguments)
    for argument in remaining:
        if argument == option:
            value = next(remaining, None)
            if value is None or value.startswith("--"):
                raise ValueError(f"{option} needs a value")
            values.append(value)
        elif argument.startswith(f"{option}="):
            values.append(argument.partition("=")[2])
        else:
            rest.append(argument)
    return values, rest


def name_positionals(verb: str, arguments: Iterable[str]) -> list[str]:
    """Turn leading values into options: `fetch cifar10 DIR` → `--name=cifar10 --directory=DIR`."""
    values, options = [], list(arguments)
    while options and (options[0] == "-" or not options[0].startswith("-")):
        values.append(options.pop(0))
    names = VERBS[verb].positional
    if names and names[-1].endswith("+"):  # a list: each value is appended
        names += names[-1:] * (len(values) - len(names))
    if len(values) > len(names):
        raise ValueError(
            f"unexpected argument {values[len(names)]!r}: beit {verb} takes "
            f"{' '.join(map(metavar, names)) or 'only options'}; see beit {verb} --help"
        )
    return [f"--{name}={value}" for name, value in zip(names, values, strict=False)] + options


def metavar(positional: str) -> str:
    """Write a positional argument for the usage line: DATA, or DATA ... for a list."""
    return positional.upper().replace("+", " ...")
