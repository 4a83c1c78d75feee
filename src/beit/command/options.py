"""Options of a verb, made from its Config: parsing a command line, and `beit VERB --help`.

Presets, then configuration files, then options: later values override earlier ones.
"""

import json
from argparse import SUPPRESS, ArgumentError
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, TypeVar

from beit.command.layers import Layer, metavar, name_positionals, read_layers, take
from beit.command.messages import did_you_mean, in_plain_words
from beit.command.verbs import VERBS

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

C = TypeVar("C")


def parse(verb: str, config_class: type[C], arguments: Sequence[str]) -> C:
    """Build a verb's Config from presets, configuration files and options.

    Raises:
        SystemExit: after --help and --print_config, with code 0.
        ValueError: an unknown name, or a value that the Config refuses.
    """
    names = {field.name for field in fields(config_class)}  # type: ignore[arg-type]
    arguments = [*VERBS[verb].options, *name_positionals(verb, arguments)]
    layers, options = read_layers(verb, arguments, names)
    if _kind_is_no_field(verb, names):
        options = take(options, "--kind")[1]
        layers = [
            Layer(source, {name: value for name, value in values.items() if name != "kind"})
            for source, values in layers
        ]
    parser = _parser(verb, config_class, names)
    _check_names(parser, verb, layers, options)
    settings = [f"--config={json.dumps(values, default=str)}" for _, values in layers if values]
    try:
        built = parser.instantiate(parser.parse_args([*settings, *options]))
    except (ArgumentError, ValueError) as error:  # of the parser; of a Config's own checks
        raise ValueError(in_plain_words(str(error))) from error
    return config_class(**{name: built[name] for name in names})


def _kind_is_no_field(verb: str, names: set[str]) -> bool:
    """Tell whether `--kind` only chooses the Config, and is no field of it."""
    return bool(VERBS[verb].kinds) and "kind" not in names


def _parser(verb: str, config_class: type, names: set[str]) -> "ArgumentParser":
    from jsonargparse import ArgumentParser  # 0.3 s, too slow for `beit --help`

    entry = VERBS[verb]
    positional = "".join(f" [{metavar(name)}]" for name in entry.positional)
    parser = ArgumentParser(
        prog=f"beit {verb}",
        usage=f"beit {verb}{positional} [--preset NAME] [--config FILE] [--field.sub VALUE ...]",
        description=f"{entry.help[0].upper()}{entry.help[1:]}.",
        epilog="Preset, then configuration files, then options: later overrides earlier. "
        "Write lists as [1,2].",
        exit_on_error=False,
        allow_abbrev=False,
    )

    def for_help(option: str, value: str, text: str) -> None:
        """Show an option that is read before the parser runs."""
        parser.add_argument(option, metavar=value, default=SUPPRESS, help=text)

    for_help("--preset", "NAME", "start from a preset")
    parser.add_argument("--config", metavar="FILE", action="config", help="values from a YAML file")
    if entry.resumable:
        text = "resume this run from its last checkpoint; takes no other option"
        for_help("--resume", "RUN", text)
    if _kind_is_no_field(verb, names):
        text = f"one of {', '.join(entry.kinds)}; each has its own options, see --kind NAME --help"
        text += ". The model decides by default" if entry.segmenter_kind else ""
        for_help("--kind", "NAME", text)
    parser.add_class_arguments(config_class)
    for action in parser._actions:
        if getattr(action, "_typehint", None) is bool:
            action.nargs, action.const, action.metavar = "?", True, "BOOL"  # --flag: --flag true
        if type(action).__name__ == "_ActionConfigLoad" or action.dest.endswith(".help"):
            action.help = SUPPRESS  # --group FILE: possible, but noise in the help
    return parser


# ── unknown names ───────────────────────────────────────────────────────────────────────────────


def _check_names(
    parser: "ArgumentParser", verb: str, layers: Sequence[Layer], options: Sequence[str]
) -> None:
    """Refuse an option or field that the parser does not know, and suggest the nearest."""
    known = [option for action in parser._actions for option in action.option_strings]
    groups = {option.rpartition(".")[0] for option in known if not option.endswith(".help")}
    suggested = [option for option in known if option not in groups]
    for option in options:
        name = option.partition("=")[0]
        if name.startswith("--") and not _is_known(name, known):
            hint = did_you_mean(name, suggested)
            raise ValueError(f"unknown option {name}{hint} See beit {verb} --help")
    for source, values in layers:
        for name in _dotted_names(values, known):
            if not _is_known(f"--{name}", known):
                hint = did_you_mean(name, [option.removeprefix("--") for option in suggested])
                raise ValueError(f"{source} has an unknown field {name}{hint}")


def _is_known(option: str, known: Sequence[str]) -> bool:
    """Tell whether an option exists; the parser itself checks those of a group that may be null."""
    nullable = [name.removesuffix("help") for name in known if name.endswith(".help")]
    return option in known or option.startswith(tuple(nullable))


def _dotted_names(values: Mapping[str, Any], known: Sequence[str], prefix: str = "") -> list[str]:
    """List the dotted names of the fields that a layer sets."""
    names = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        if not any(o.startswith(f"--{name}.") and not o.endswith(".help") for o in known):
            names.append(name)
        elif isinstance(value, dict):
            names += _dotted_names(value, known, f"{name}.")
        else:
            raise ValueError(f"{name} is a group of fields, got {value!r}")
    return names
