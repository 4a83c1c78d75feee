"""Options of a verb, made from its Config: parsing a command line, and `beit VERB --help`.

Presets, then configuration files, then options: later values override earlier ones.
"""

import json
import logging
import shlex
from argparse import SUPPRESS, ArgumentError
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, get_args, get_type_hints

from beit.command import presets
from beit.command.messages import did_you_mean, in_plain_words
from beit.command.verbs import VERBS

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

log = logging.getLogger(__name__)
C = TypeVar("C")
# Verbs whose settings can follow the data, and a field of the Config for which they can.
FOLLOWING = {"train-tokenizer": "codebook", "pretrain": "mask", "finetune": "mix"}
# The options that values are likely meant for, where a verb takes no positional ones.
NAMES = ("model", "data", "output")


class Layer(NamedTuple):
    """Values for a Config from one source, which errors name."""

    source: str
    values: Mapping[str, Any]


def parse(
    verb: str, config_class: type[C], arguments: Sequence[str], base: Layer | None = None
) -> C:
    """Build a verb's Config from presets, configuration files and options.

    Args:
        base: complete settings, which all others override

    Raises:
        SystemExit: after --help and --print_config, with code 0.
        ValueError: an unknown name, or a value that the Config refuses.
    """
    names = {field.name for field in fields(config_class)}  # type: ignore[arg-type]
    arguments = [*VERBS[verb].options, *in_fields(verb, name_positionals(verb, arguments))]
    layers, options = read_layers(verb, arguments, names)
    layers[:0] = [] if base is None else [base]
    if kind_only_chooses(verb, config_class):
        options = take(options, "--kind")[1]
        layers = [
            Layer(s, {n: v for n, v in values.items() if n != "kind"}) for s, values in layers
        ]
    parser = parser_of(verb, config_class)
    try:
        _check_names(parser, verb, layers, options)
        layers, options = squared(parser, layers, options)
        if FOLLOWING.get(verb) in names and not {"-h", "--help"} & {*options}:
            layers, options = with_following(verb, layers, options, base)
        if VERBS[verb].resumable and "run" in names and (used := take(arguments, "--preset")[0]):
            layers = [*layers, Layer("--preset", {"run": {"presets": used}})]
        settings = [f"--config={json.dumps(values, default=str)}" for _, values in layers if values]
        built = parser.instantiate(parser.parse_args([*settings, *options]))
    except (ArgumentError, ValueError) as error:  # of the parser; of a Config's own checks
        message = in_plain_words(str(error))
        absent = message.removeprefix("the following arguments are required: ")
        if absent != message:
            missing = as_spelled(verb, [f"--{name}" for name in absent.split(", ")])
            takes = " ".join(map(_metavar, VERBS[verb].positional))
            as_in = f", as in beit {verb} {takes}" if takes else ""
            message = f"{' and '.join(missing)} must be given{as_in}; see beit {verb} --help"
        raise ValueError(message) from error
    except RecursionError as error:
        sources = ", ".join([*(source for source, _ in layers), "the options"])
        raise ValueError(f"a value is nested too deep in one of: {sources}") from error
    return config_class(**{name: built[name] for name in names})


def with_following(
    verb: str, layers: Sequence[Layer], options: list[str], base: Layer | None
) -> tuple[list[Layer], list[str]]:
    """Add values that follow the data and the initial weights; files and options override them.

    Returns: the layers, and the options, with other training images if a part is held out
    """
    num_presets = sum(layer.source.startswith("preset ") for layer in layers)
    place = num_presets + (base is not None)
    weaker, files = [*layers[:place]], layers[place:]
    if base is not None:  # a run's settings followed both; presets do not override them
        groups = ("model", "codebook") if base.values.get("init") and verb != "finetune" else ()
        kept = {group: base.values[group] for group in groups if group in base.values}
        return [*weaker, Layer(base.source, kept), *files], options
    given = nested(options)
    if not files:
        weaker += following_data(verb, weaker, given)
    if weaker and not num_presets:  # a part may be held out of the training images
        options = [*options, f"--data.train={weaker[-1].values['data']['train']}"]
    return [*weaker, *following_init(verb, weaker, [*files, Layer("", given)]), *files], options


def following_data(verb: str, chosen: Sequence[Layer], given: Mapping[str, Any]) -> list[Layer]:
    """Return values that follow the data, for trainings but those of dVAEs and segmenters.

    Without a chosen preset these are all settings. With one, a k-NN check is left out that the
    images cannot have, unless the given options ask for it.
    """
    data = given.get("data", {})
    if not chosen:
        if not (data.get("train") or given.get("tokenizer") or given.get("init")):
            return []
        from beit.command.automatic import settings  # imports torch

        preset, values = settings(verb, given)
        return [Layer("preset photos", preset), Layer("settings that follow the data", values)]
    kept = chosen[-1].values.get("data", {}).get("validation")
    if data.get("train") and "validation" not in data and kept:
        log.info(
            "validation images: %s, of %s; for others --data '%s[:90%%]' --validation '%s[90%%:]', "
            "for none --validation ''",
            *(kept, chosen[-1].source, data["train"], data["train"]),
        )
    if verb != "pretrain":
        return []
    from beit.command.automatic import without_check

    return [Layer("what the images lack", without_check(chosen[-1].values, given))]


def following_init(verb: str, weaker: Sequence[Layer], stronger: Sequence[Layer]) -> list[Layer]:
    """Return the network of the model that pretraining, or a tokenizer, starts from."""
    before, after = ([layer.values for layer in layers] for layers in (weaker, stronger))
    given = [values["init"] for values in (*before, *after) if values.get("init")]
    if not given or verb == "finetune":
        return []
    from beit.command.automatic import network  # imports torch

    return [Layer(f"the network of {given[-1]}", network(verb, given[-1], before, after))]


def nested(options: Sequence[str]) -> dict[str, Any]:
    """Read options as nested values, as a configuration file has them."""
    given: dict[str, Any] = {}
    for word, following in zip(options, [*options[1:], "--"], strict=False):
        name, equals, text = word.partition("=")
        if not name.startswith("--"):
            continue
        if not equals:  # `--name value`, or `--flag` alone
            text = "true" if following.startswith("--") else following
        *groups, last = name.removeprefix("--").split(".")
        inner = given
        for group in groups:
            inner = inner.setdefault(group, {})
        inner[last] = text if last in ("train", "validation") else presets.plain(text)
    return given


def squared(
    parser: "ArgumentParser", layers: Sequence[Layer], options: Sequence[str]
) -> tuple[list[Layer], list[str]]:
    """Write sizes that are one number as (height, width): `--image_size 96` → `[96,96]`."""
    sizes = [action.dest for action in parser._actions if _is_size(action)]
    words = list(options)
    for place, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name.removeprefix("--") not in sizes:
            continue
        if equals and value.isdecimal():
            words[place] = f"{name}=[{value},{value}]"
        elif not equals and place + 1 < len(words) and words[place + 1].isdecimal():
            words[place + 1] = "[{0},{0}]".format(words[place + 1])
    return [Layer(source, _with_squares(values, sizes)) for source, values in layers], words


def _is_size(action: Any) -> bool:
    hint = getattr(action, "_typehint", None)
    options = get_args(hint)  # of a union
    return hint == tuple[int, int] or (tuple[int, int] in options and int not in options)


def _with_squares(values: Mapping[str, Any], sizes: Sequence[str], prefix: str = "") -> Any:
    changed = dict(values)
    for name, value in values.items():
        if isinstance(value, dict):
            changed[name] = _with_squares(value, sizes, f"{prefix}{name}.")
        elif type(value) is int and f"{prefix}{name}" in sizes:
            changed[name] = [value, value]
    return changed


# ── splitting a command line ────────────────────────────────────────────────────────────────────


def read_layers(
    verb: str, arguments: Iterable[str], fields: Iterable[str] = ()
) -> tuple[list[Layer], list[str]]:
    """Read the presets, then the configuration files; return them and the other options.

    A file has verbs at its top level, like a preset, or holds a Config, as in a run directory; it
    holds a Config if all its names are `fields`.
    """
    preset_names, options = take(arguments, "--preset")
    files, options = take(options, "--config")
    layers = []
    for name in preset_names:
        content = presets.read_yaml(presets.path_of(name))
        if unknown := [key for key in content if key not in VERBS]:
            where = f"preset {name} has {unknown[0]!r} at its top level"
            raise ValueError(f"{where}; expected verbs: see beit --help")
        layers.append(_part(f"preset {name}", content, verb))
    for file in files:
        content = presets.read_yaml(Path(file))
        is_preset = VERBS.keys() >= content.keys() and not set(fields) >= content.keys()
        layers.append(_part(file, content, verb) if is_preset else Layer(file, content))
    return layers, options


def _part(source: str, content: Mapping[str, Any], verb: str) -> Layer:
    if verb not in content:
        parts = ", ".join(content) or "none"
        raise ValueError(f"{source} has no part for {verb}; it has: {parts}")
    if not isinstance(content[verb], dict | None):
        raise ValueError(f"{source}: expected fields under {verb}, got {content[verb]!r}")
    return Layer(source, content[verb] or {})


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
        takes = " ".join(map(_metavar, names)) or "only options"
        if not names and (pairs := named_values(verb, values)):
            takes += ", as in " + " ".join(f"--{name} {shlex.quote(v)}" for name, v in pairs)
        raise ValueError(
            f"unexpected argument {values[len(names)]!r}: beit {verb} takes {takes}; see beit "
            f"{verb} --help"
        )
    return [f"--{name}={value}" for name, value in zip(names, values, strict=False)] + options


def named_values(verb: str, values: Iterable[Any]) -> list[tuple[str, Any]]:
    """Pair values with the options that they are likely meant for: model, data, output.

    A single value of a training is its data.
    """
    values = list(values)
    fields = get_type_hints(import_module(VERBS[verb].module).Config)
    texts = {name for name, kind in fields.items() if str in (kind, *get_args(kind))}
    names = [name for name in NAMES if name in texts | set(VERBS[verb].spellings)]
    if VERBS[verb].resumable and len(values) == 1 and "model" in names:
        names.remove("model")
    return list(zip(names, values, strict=False))


def in_fields(verb: str, arguments: Iterable[str]) -> list[str]:
    """Write options by the fields of the verb's Config: `--data photos` → `--data.train photos`."""
    spellings = VERBS[verb].spellings.items()
    return _replaced({f"--{name}": f"--{field}" for name, field in spellings}, arguments)


def as_spelled(verb: str, arguments: Iterable[str]) -> list[str]:
    """Write options by their spellings: the inverse of `in_fields`."""
    spellings = VERBS[verb].spellings.items()
    return _replaced({f"--{field}": f"--{name}" for name, field in spellings}, arguments)


def _replaced(options: Mapping[str, str], arguments: Iterable[str]) -> list[str]:
    parts = (argument.partition("=") for argument in arguments)
    return [options.get(name, name) + equals + value for name, equals, value in parts]


def renamed(verb: str, arguments: Iterable[str]) -> str:
    """Name the new spelling of options in an old one, which this release still reads."""
    given = {argument.partition("=")[0] for argument in arguments}
    pairs = VERBS[verb].spellings.items()
    new = [f"--{field} is now --{name}" for name, field in pairs if f"--{field}" in given]
    return f"{', '.join(new)}; the old spelling works in this release only" if new else ""


def _metavar(positional: str) -> str:
    """Write a positional argument for the usage line: DATA, or DATA ... for a list."""
    return positional.upper().replace("+", " ...")


# ── the parser ──────────────────────────────────────────────────────────────────────────────────


def kind_only_chooses(verb: str, config_class: type) -> bool:
    """Tell whether `--kind` is no field of the Config, but what it was chosen by."""
    return bool(VERBS[verb].kinds) and "kind" not in {f.name for f in fields(config_class)}


def parser_of(verb: str, config_class: type) -> "ArgumentParser":
    """Make the parser of a verb's options, with the help that `beit VERB --help` prints."""
    from jsonargparse import ArgumentParser  # 0.3 s, too slow for `beit --help`

    entry = VERBS[verb]
    positional = "".join(f" [{_metavar(name)}]" for name in entry.positional)
    epilog = "Preset, then configuration files, then options: later overrides earlier."
    if FOLLOWING.get(verb) in {field.name for field in fields(config_class)}:
        epilog += " Without preset and file, defaults that depend on the images, the machine and "
        epilog += "--budget are chosen and printed."
    parser = ArgumentParser(
        prog=f"beit {verb}",
        usage=f"beit {verb}{positional} [--preset NAME] [--config FILE] [--field.sub VALUE ...]",
        description=f"{entry.help[0].upper()}{entry.help[1:].removesuffix('.')}.",
        epilog=f"{epilog} Write lists as [1,2].",
        exit_on_error=False,
        allow_abbrev=False,
    )

    def for_help(option: str, value: str, text: str) -> None:
        """Show an option that is read before the parser runs."""
        parser.add_argument(option, metavar=value, default=SUPPRESS, help=text)

    for_help("--preset", "NAME", "start from a preset; beit presets lists them")
    parser.add_argument("--config", metavar="FILE", action="config", help="values from a YAML file")
    if entry.resumable:
        text = "resume this run from its last checkpoint, with its own settings; if its images "
        text += "have changed, only with --accept_changed_data true; for a longer schedule, with "
        text += f"--optim.{'steps' if verb == 'segment' else 'epochs'} NUMBER. auto: the run in "
        text += "--output, or start it"
        for_help("--resume", "RUN", text)
    if kind_only_chooses(verb, config_class):
        text = f"one of {', '.join(entry.kinds)}; each has its own options, see --kind NAME --help"
        text += ". The model decides by default" if entry.segmenter_kind else ""
        for_help("--kind", "NAME", text)
    parser.add_class_arguments(config_class)
    for action in parser._actions:
        action.required &= action.default is None  # the Config has a default for the whole group
        if getattr(action, "_typehint", None) is bool:
            action.nargs, action.const, action.metavar = "?", True, "BOOL"  # --flag: --flag true
        if type(action).__name__ == "_ActionConfigLoad" or action.dest.endswith(".help"):
            action.help = SUPPRESS  # --group FILE: possible, but noise in the help
    format_help = parser.format_help

    def with_spellings() -> str:
        """Show options as users write them; the parser itself reads the fields."""
        shown = {field: name for name, field in entry.spellings.items()}
        for action in parser._actions:
            options = [option for option in action.option_strings if not option.endswith("+")]
            if name := shown.get(action.dest):
                options, action.metavar = [f"--{name}"], name.upper()
            action.option_strings = options
        return format_help()

    parser.format_help = with_spellings  # type: ignore[method-assign, assignment]
    return parser


def _check_names(
    parser: "ArgumentParser", verb: str, layers: Iterable[Layer], options: Iterable[str]
) -> None:
    """Refuse an option or field that the parser does not know, and suggest the nearest."""
    known = [option for action in parser._actions for option in action.option_strings]
    # The parser itself checks the fields of a group that may be null.
    nullable = tuple(name.removesuffix("help") for name in known if name.endswith(".help"))
    old = [f"--{field}" for field in VERBS[verb].spellings.values()]
    groups = {option.rpartition(".")[0] for option in known if not option.endswith(".help")}
    fields = [option for option in known if option not in groups]
    suggested = [option for option in fields if option not in old]
    suggested += [f"--{name}" for name in VERBS[verb].spellings]
    for option in options:
        name = option.partition("=")[0]
        if name.startswith("--") and name not in known and not name.startswith(nullable):
            hint = did_you_mean(name, suggested)
            raise ValueError(f"unknown option {name}{hint} See beit {verb} --help")
    for source, values in layers:
        for name in _dotted_names(values, known):
            if f"--{name}" not in known and not f"--{name}".startswith(nullable):
                hint = did_you_mean(name, [option.removeprefix("--") for option in fields])
                raise ValueError(f"{source} has an unknown field {name}{hint}")


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
