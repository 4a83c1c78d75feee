"""Shell completion: one script for all verbs, made by shtab from their parsers."""

import re
from argparse import SUPPRESS, Action, ArgumentParser
from importlib import import_module
from typing import Any, get_args

from beit.command import presets
from beit.command.messages import did_you_mean
from beit.command.options import parser_of
from beit.command.verbs import VERBS


def script(shell: str) -> str:
    """Write the completion of verbs, options, choices, presets and files for a shell.

    The script is static: it imports nothing when it completes, and is as old as the release.
    """
    import shtab

    if shell not in shtab.SUPPORTED_SHELLS:
        expected = ", ".join(shtab.SUPPORTED_SHELLS)
        hint = did_you_mean(shell, shtab.SUPPORTED_SHELLS)
        raise ValueError(f"no completion for {shell!r}{hint} Expected one of {expected}")
    command = ArgumentParser(prog="beit")
    command.add_argument("--version", action="store_true", help="print the version")
    command.add_argument("--print_completion", choices=shtab.SUPPORTED_SHELLS, help="this script")
    places = {"": command.add_subparsers()}
    for verb, entry in VERBS.items():
        group, _, name = verb.rpartition(" ")
        if group not in places:
            parser = places[""].add_parser(group, help=f"{group} what")
            places[group] = parser.add_subparsers()
        add_options(places[group].add_parser(name, help=entry.help, add_help=False), verb)
    return shtab.complete(command, shell)


def add_options(parser: ArgumentParser, verb: str) -> None:
    """Add the options of a verb, those of all its kinds, and what it takes by position."""
    import shtab

    entry, actions = VERBS[verb], dict[str, Action]()
    for module in (entry.module, *entry.kinds.values()):
        config = import_module(module).Config
        for action in parser_of(verb, config)._actions:
            if action.help != SUPPRESS:
                actions.setdefault(action.dest, action)
    spelled = {field: [f"--{name}"] for name, field in entry.spellings.items()}
    positional = {name.rstrip("+"): "*" if name.endswith("+") else "?" for name in entry.positional}
    for field, action in actions.items():
        values = values_of(verb, action)
        about = first_sentence(action.help or "")
        takes: dict[str, Any] = {"help": about, "choices": values or None}
        if action.nargs == 0 or field == "print_config":
            takes = {"help": about, "action": "store_true"}
        options = spelled.get(field, [o for o in action.option_strings if o[-1] != "+"])
        added = [parser.add_argument(*options, **takes)]
        if field in positional:
            takes |= {"nargs": positional[field], "metavar": field.upper()}
            added.append(parser.add_argument(f"{field}_", **takes))
        for each in added if takes_files(action) and not values else []:
            each.complete = shtab.FILE  # type: ignore[attr-defined]


def first_sentence(about: str) -> str:
    """Shorten a description to what fits beside an option; argparse formats it with %."""
    return re.split(r"[;:(\n]| \(", about)[0].strip().replace("%", "%%")


def values_of(verb: str, action: Action) -> list[str]:
    """List the values of an option that have names; numbers may be possible besides."""
    if action.dest == "preset":
        return [
            name for name in presets.names() if verb in presets.read_yaml(presets.path_of(name))
        ]
    if action.dest == "kind" and VERBS[verb].kinds:
        return [*VERBS[verb].kinds]
    if (verb, action.dest) == ("presets", "name"):
        return presets.names()
    if (hint := getattr(action, "_typehint", None)) is bool:
        return ["true", "false"]
    options = [inner for option in get_args(hint) for inner in (get_args(option) or [option])]
    return [str(option) for option in options if isinstance(option, str | int)]


def takes_files(action: Action) -> bool:
    """Tell whether an option takes text, which may be the name of a file."""
    hint = getattr(action, "_typehint", None)
    return action.dest in ("config", "resume") or str in (hint, *get_args(hint))
