"""The command `beit VERB`: a static table of verbs, and options made from each recipe's Config.

Preset, then configuration files, then options: later beats earlier. A verb's module is imported
only when the verb is asked for, so that `beit --help` imports no torch.
"""

import importlib
import json
import logging
import os
import re
import sys
import traceback
from argparse import SUPPRESS, ArgumentError
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import beit

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

C = TypeVar("C")


@dataclass(frozen=True)
class Verb:
    """One command: the module with its Config and run, and how it is called.

    The last positional name may end in +: it then takes as many values as there are.

    Attributes:
        given: options that it always has, before those of the caller
        kinds: modules by the name that `--kind` gives them; `module` is that of the first
        segmenters: the kind for models that are segmenters, where `--kind` does not say another
    """

    module: str
    help: str
    positional: tuple[str, ...] = ()
    resumable: bool = False
    given: tuple[str, ...] = ()
    kinds: Mapping[str, str] = field(default_factory=dict)
    segmenters: str = ""


VERBS = {
    "demo": Verb("beit.demo", "the whole job in minutes on two CPU cores, ending in report.html"),
    "fetch": Verb(
        "beit.fetching.fetch",
        "get a public data set: beit fetch cifar10 DIR",
        positional=("name", "directory"),
    ),
    "train-tokenizer": Verb(
        "beit.tokenizer.vqkd",
        "train a visual tokenizer: from a teacher (VQ-KD), or --kind dvae, a discrete VAE",
        resumable=True,
        kinds={"vqkd": "beit.tokenizer.vqkd", "dvae": "beit.tokenizer.dvae"},
    ),
    "pretrain": Verb(
        "beit.pretraining.pretrain",
        "train a ViT to predict the tokens of masked patches",
        resumable=True,
    ),
    "finetune": Verb(
        "beit.finetuning.finetune",
        "train a classifier, all of it, from a pretrained backbone",
        resumable=True,
    ),
    "segment": Verb(
        "beit.segmentation.segment",
        "train a semantic segmenter from a pretrained backbone",
        resumable=True,
    ),
    "probe": Verb("beit.probing.probe", "linear probe and k-NN on frozen features"),
    "ablate": Verb(
        "beit.comparison.ablate", "a plan's grid of runs, and one table of them", ("plan",)
    ),
    "evaluate": Verb(
        "beit.evaluation.evaluate",
        "how good and how robust a classifier is, or how good a segmenter",
        kinds={"classes": "beit.evaluation.evaluate", "maps": "beit.segmentation.evaluate"},
        segmenters="maps",
    ),
    "tokenize": Verb("beit.tables.tokenize", "the codes of images, to Parquet or NPZ"),
    "embed": Verb("beit.tables.embed", "the features of images, to Parquet or NPZ"),
    "predict": Verb(
        "beit.tables.predict",
        "the classes of images, or label maps by a segmenter: beit predict MODEL IMAGE ...",
        ("model", "data+"),
        kinds={"classes": "beit.tables.predict", "maps": "beit.segmentation.predict"},
        segmenters="maps",
    ),
    "visualise codes": Verb(
        "beit.codebook.visualise",
        "what each code of a tokenizer stands for",
        ("model", "data"),
    ),
    "visualise tokens": Verb(
        "beit.pictures.tokens",
        "images as tokens, true and predicted: beit visualise tokens MODEL IMAGE ...",
        ("model", "data+"),
    ),
    "visualise attention": Verb(
        "beit.pictures.attention",
        "where a backbone looks: beit visualise attention MODEL IMAGE ...",
        ("model", "data+"),
    ),
    "visualise explorer": Verb(
        "beit.codebook.visualise",
        "a page to walk through a codebook: beit visualise explorer OUTPUT --model M --data D",
        ("output",),
        given=("--explorer=true",),
    ),
    "report": Verb(
        "beit.comparison.report", "runs side by side: curves, settings, figures", ("runs+",)
    ),
    "export": Verb(
        "beit.exporting.export",
        "a model as safetensors, published, timm, transformers, ONNX or torch.export",
        ("source",),
    ),
    "push": Verb(
        "beit.exporting.push",
        "put a run or an export into the Hugging Face hub: beit push RUN OWNER/NAME",
        ("source", "repository"),
    ),
    "presets": Verb("beit.command.presets", "list the named runs, or print one", ("name",)),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run `beit` with these arguments and return its exit code.

    0: done; 2: the caller's mistake, told in one line; 130: stopped by Ctrl-C.
    """
    try:
        with _log_shown():
            code = _run(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print("beit: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `beit presets | head`: nobody reads on, which is not an error
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError) as error:
        if os.environ.get("BEIT_DEBUG") == "1":
            traceback.print_exc()
        print(f"beit: error: {_one_line(error)}", file=sys.stderr)
        return 2


@contextmanager
def _log_shown() -> Iterator[None]:
    """Show on standard error what beit logs, as what a loaded file holds; once under torchrun."""
    log, handler = logging.getLogger("beit"), logging.StreamHandler()
    before = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO if os.environ.get("RANK", "0") == "0" else logging.WARNING)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(before)


def _run(arguments: list[str]) -> int:
    if not arguments:
        print(_overview(), file=sys.stderr)
        return 2
    name, *options = arguments
    if name in ("-h", "--help"):
        print(_overview())
        return 0
    if name == "--version":
        print(f"beit {beit.__version__}")
        return 0
    if any(verb.startswith(f"{name} ") for verb in VERBS):
        name, options = _of_two_words(name, options)
    if name not in VERBS:
        what = "unknown option" if name.startswith("-") else "unknown verb"
        known = ["--help", "--version"] if name.startswith("-") else list(VERBS)
        raise ValueError(f"{what} {name!r}{_did_you_mean(name, known)} See beit --help")
    verb = VERBS[name]
    run_to_resume = _run_to_resume(name, options) if verb.resumable else None
    module = importlib.import_module(module_name(name, options, run_to_resume))
    if run_to_resume is not None:
        from beit.run.resume import resume

        resume(module, run_to_resume)
    else:
        module.run(parse(name, module.Config, options))
    return 0


def _of_two_words(name: str, options: list[str]) -> tuple[str, list[str]]:
    """Join the first word of a verb with the second, which is the first of its options."""
    seconds = [verb.removeprefix(f"{name} ") for verb in VERBS if verb.startswith(f"{name} ")]
    if not options or options[0] not in seconds:
        what = options[0] if options else ""
        near = _did_you_mean(what, seconds)
        raise ValueError(
            f"beit {name} what? Expected {', '.join(seconds)}, got {what or 'nothing'}{near}"
        )
    return f"{name} {options[0]}", options[1:]


def _overview() -> str:
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {name:<{width}}  {verb.help}" for name, verb in VERBS.items())
    return (
        "usage: beit VERB [--preset NAME] [--config FILE] [--field.sub VALUE ...]\n\n"
        "Self-supervised visual pretraining with semantic tokens.\n\n"
        f"verbs:\n{verbs}\n\n"
        "beit VERB --help lists a verb's options, beit VERB --print_config its resolved\n"
        "configuration; beit --version tells the version. BEIT_DEBUG=1 shows tracebacks."
    )


def module_name(name: str, options: Sequence[str], run_to_resume: Path | None) -> str:
    """Find a verb's recipe: of the kind that the options name, else the files, else the preset.

    Where none of them does, the model decides between classifiers and segmenters.
    """
    verb = VERBS[name]
    if not verb.kinds:
        return verb.module
    from beit.command import presets

    # Of those that say a kind, the last one counts.
    layers: list[tuple[str, Mapping[str, object]]] = []
    if run_to_resume is not None and (run_to_resume / "config.yaml").is_file():
        layers.append((str(run_to_resume), presets.read_yaml(run_to_resume / "config.yaml")))
    preset_names, rest = _take(list(options), "--preset")
    files, rest = _take(rest, "--config")
    layers += [(f"preset {preset}", _preset_part(preset, name)) for preset in preset_names]
    for file in files:
        content = presets.read_yaml(Path(file))
        layers.append((file, _part(file, content, name) if name in content else content))
    kinds, rest = _take(rest, "--kind")
    layers += [("--kind", {"kind": kind}) for kind in kinds]
    module = verb.module
    if verb.segmenters and not any("kind" in layer for _, layer in layers):
        named = _take(_name_positionals(name, rest), "--model")[0]
        models = [layer["model"] for _, layer in layers if "model" in layer] + named
        if models and _is_segmenter(str(models[-1])):
            return verb.kinds[verb.segmenters]
    for source, layer in layers:
        if "kind" not in layer:
            continue
        kind = layer["kind"]
        if not isinstance(kind, str) or kind not in verb.kinds:
            near = _did_you_mean(str(kind), verb.kinds)
            known = ", ".join(verb.kinds)
            raise ValueError(f"{source}: unknown kind {kind!r}, expected one of {known}{near}")
        module = verb.kinds[kind]
    return module


def _is_segmenter(model: str) -> bool:
    from beit.weights.open import holds_segmenter

    return holds_segmenter(model)


# ── from arguments to a Config ──────────────────────────────────────────────────────────────────


def parse(verb: str, config_class: type[C], arguments: Sequence[str]) -> C:
    """Build a verb's Config from its preset, configuration files and options.

    Prints and leaves with SystemExit(0) on --help and --print_config; raises ValueError on anything
    that the Config does not know or does not take.
    """
    options = [*VERBS[verb].given, *_name_positionals(verb, list(arguments))]
    preset_names, options = _take(options, "--preset")
    files, options = _take(options, "--config")
    # `--kind` chose this Config; only one that has such a field takes it.
    chosen_before = bool(VERBS[verb].kinds) and "kind" not in _names(config_class)
    if chosen_before:
        options = _take(options, "--kind")[1]
    parser = _parser(verb, config_class)
    known = [option for action in parser._actions for option in action.option_strings]
    groups = {option.rpartition(".")[0] for option in known if not option.endswith(".help")}
    named = [option for option in known if option not in groups]
    for option in options:
        name = option.partition("=")[0]
        if name.startswith("--") and not _stands_for_a_field(name, known):
            nearest = _did_you_mean(name, named)
            raise ValueError(f"unknown option {name}{nearest} See beit {verb} --help")

    layers = [(f"preset {name}", _preset_part(name, verb)) for name in preset_names]
    layers += [(file, _file_part(Path(file), verb, config_class)) for file in files]
    if chosen_before:
        layers = [(s, {n: v for n, v in layer.items() if n != "kind"}) for s, layer in layers]
    for source, layer in layers:
        for name in _field_names(layer, known):
            if not _stands_for_a_field(f"--{name}", known):
                nearest = _did_you_mean(name, [option.removeprefix("--") for option in named])
                raise ValueError(f"{source} has an unknown field {name}{nearest}")
    settings = [f"--config={json.dumps(layer, default=str)}" for _, layer in layers if layer]
    try:
        built = parser.instantiate(parser.parse_args([*settings, *options]))
    except (ArgumentError, ValueError) as error:  # of the parser; of a Config's own checks
        raise ValueError(_plain(str(error))) from error
    return config_class(**{name: built[name] for name in _names(config_class)})


def _parser(verb: str, config_class: type) -> "ArgumentParser":
    from jsonargparse import ArgumentParser  # 0.3 s, which `beit --help` does not wait for

    positional = "".join(f" [{_shown(name)}]" for name in VERBS[verb].positional)
    parser = ArgumentParser(
        prog=f"beit {verb}",
        usage=f"beit {verb}{positional} [--preset NAME] [--config FILE] [--field.sub VALUE ...]",
        description=f"{VERBS[verb].help[0].upper()}{VERBS[verb].help[1:]}.",
        epilog="Preset, then configuration files, then options: later beats earlier. "
        "Lists are written as [1,2].",
        exit_on_error=False,
        allow_abbrev=False,
    )
    # --preset, --resume and --kind are read before the parser runs; they stand here for --help.
    parser.add_argument("--preset", metavar="NAME", default=SUPPRESS, help="start from a named run")
    parser.add_argument("--config", metavar="FILE", action="config", help="values from a YAML file")
    if VERBS[verb].resumable:
        resume = "continue this run exactly where its last checkpoint is; takes no other option"
        parser.add_argument("--resume", metavar="RUN", default=SUPPRESS, help=resume)
    kinds = VERBS[verb].kinds
    if kinds and "kind" not in _names(config_class):
        which = f"one of {', '.join(kinds)}; each has options of its own, see --kind NAME --help"
        which += ". As the model is, if not given" if VERBS[verb].segmenters else ""
        parser.add_argument("--kind", metavar="NAME", default=SUPPRESS, help=which)
    parser.add_class_arguments(config_class)
    for action in parser._actions:
        if getattr(action, "_typehint", None) is bool:
            action.nargs, action.const, action.metavar = "?", True, "BOOL"  # --flag: --flag true
        if type(action).__name__ == "_ActionConfigLoad" or action.dest.endswith(".help"):
            action.help = SUPPRESS  # --group FILE: possible, but noise in the help
    return parser


def _name_positionals(verb: str, arguments: list[str]) -> list[str]:
    """Turn leading values into options: `fetch cifar10 DIR` → `--name=cifar10 --directory=DIR`."""
    values = []
    while arguments and (arguments[0] == "-" or not arguments[0].startswith("-")):
        values.append(arguments.pop(0))
    names = VERBS[verb].positional
    if names[-1:] and names[-1].endswith("+"):  # as many as there are, put into one list
        names += names[-1:] * (len(values) - len(names))
    if len(values) > len(names):
        raise ValueError(
            f"unexpected argument {values[len(names)]!r}: beit {verb} takes "
            f"{' '.join(map(_shown, names)) or 'only options'}; see beit {verb} --help"
        )
    return [f"--{n}={value}" for n, value in zip(names, values, strict=False)] + arguments


def _shown(positional: str) -> str:
    """Write a positional argument for people: DATA, or DATA ... where there may be many."""
    return positional.upper().replace("+", " ...")


def _take(arguments: list[str], option: str) -> tuple[list[str], list[str]]:
    """Split off every `option VALUE` and `option=VALUE`: the values, and what is left."""
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


def _run_to_resume(verb: str, arguments: list[str]) -> Path | None:
    runs, rest = _take(arguments, "--resume")
    if not runs or "--help" in rest or "-h" in rest:
        return None
    if rest or len(runs) > 1:
        other = " ".join(rest) if rest else "a second --resume"
        raise ValueError(
            f"--resume takes no other option, got {other}: a run goes on as it was begun, "
            f"by the config.yaml in its directory; for other settings begin a new run"
        )
    return Path(runs[0])


def _preset_part(name: str, verb: str) -> Mapping[str, object]:
    from beit.command import presets

    content = presets.read_yaml(presets.path_of(name))
    strange = [key for key in content if key not in VERBS]
    if strange:
        raise ValueError(
            f"preset {name} has {strange[0]!r} at its top; expected verbs: see beit --help"
        )
    return _part(f"preset {name}", content, verb)


def _file_part(path: Path, verb: str, config_class: type) -> Mapping[str, object]:
    """Read a configuration file: a Config as a run directory keeps it, or a preset of one's own."""
    from beit.command import presets

    content = presets.read_yaml(path)
    own = _names(config_class)
    is_preset = bool(content) and VERBS.keys() >= content.keys() and not own >= content.keys()
    return _part(str(path), content, verb) if is_preset else content


def _part(source: str, content: Mapping[str, object], verb: str) -> Mapping[str, object]:
    if verb not in content:
        parts = ", ".join(content) or "none"
        raise ValueError(f"{source} has no part for {verb}; it has: {parts}")
    part = content[verb]
    if not isinstance(part, dict | None):
        raise ValueError(f"{source}: expected fields under {verb}, got {part!r}")
    return part or {}


def _names(config_class: type) -> set[str]:
    return {field.name for field in fields(config_class)}


def _field_names(layer: Mapping[str, object], known: Sequence[str], above: str = "") -> list[str]:
    """List the dotted names that a configuration gives values to."""
    names = []
    for key, value in layer.items():
        name = f"{above}{key}"
        inside = [o for o in known if o.startswith(f"--{name}.") and not o.endswith(".help")]
        if inside and not isinstance(value, dict):
            raise ValueError(f"{name} is a group of fields, got {value!r}")
        if inside and isinstance(value, dict):
            names += _field_names(value, known, f"{name}.")
        else:
            names.append(name)
    return names


def _stands_for_a_field(option: str, known: Sequence[str]) -> bool:
    """Tell whether an option is known; inside a part that may be null the parser itself judges."""
    nullable = [name.removesuffix("help") for name in known if name.endswith(".help")]
    return option in known or option.startswith(tuple(nullable))


# ── messages ────────────────────────────────────────────────────────────────────────────────────


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    """Suggest the nearest name: first by its last part (`--epochs`) or its initials (`--lr`)."""

    def tail(dotted: str) -> str:
        return dotted.lstrip("-").rpartition(".")[2]

    def initials(dotted: str) -> str:
        return "".join(word[:1] for word in tail(dotted).split("_"))

    choices = sorted(known)
    same = [choice for choice in choices if tail(name) in (tail(choice), initials(choice))]
    near = get_close_matches(name, same, n=1, cutoff=0.0) or get_close_matches(name, choices, n=1)
    if not near:
        tails = get_close_matches(tail(name), map(tail, choices), n=1)
        near = [choice for choice in choices if tail(choice) in tails]
    return f"; did you mean {near[0]}?" if near else "."


def _plain(message: str) -> str:
    """Say what jsonargparse says in the words of a command line, and in one line."""
    message = re.sub(
        r"Does not validate against any of the Union subtypes\s+Subtypes: \[.*?\]\s+Errors:\s+- "
        r"(.*?)(?:\s+- Expected a <class 'NoneType'>)?\s+Given value type:.*?Given value: (.*)",
        r"\1 (got \2)",
        message,
        flags=re.DOTALL,
    )
    message = re.sub(r"Problem with given class_path '[^']*':\s*", "", message)
    message = re.sub(r"NestedArg\(key='(\w+)', val='(.*?)'\)", r"\1=\2", message)
    message = re.sub(r'Parser key "([^"]+)":', r"\1:", message)
    message = re.sub(r"an? <class '(?:\w+\.)*(\w+)'>", r"\1", message)
    message = re.sub(r"an? typing\.Literal", "one of ", message)
    return " ".join(message.replace("typing.", "").split())


def _one_line(error: Exception) -> str:
    """Put an error into one line; of the system's errors, file first and no number."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        message = f"{error.filename}: {error.strerror}"
    else:
        message = str(error) or type(error).__name__
    return " ".join(message.split())
