"""One function for each verb of the command: `beit.pretrain(...)` does what `beit pretrain` does.

Keyword arguments are the options of the command. They are turned into a command line and parsed as
one, so that presets, spellings, checks and defaults are the same.
"""

import dataclasses
import inspect
import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from importlib import import_module
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, get_origin, get_type_hints

from beit.command.verbs import VERBS
from beit.wording import an

if TYPE_CHECKING:
    from beit.result import Result

TABLES = "beit.tables."
VERB_OF = {verb.replace("-", "_").replace(" ", "_"): verb for verb in VERBS}
COMMON = {
    "preset": "start from this preset, or from several in turn",
    "config": "a YAML file with values, or several; they override presets",
    "quiet": "print nothing, no progress either",
}
ON_STEP = (
    "called after each step as on_step(step, figures), see `beit.run.watching.watched_by`; a False "
    "from it ends the run after the next step"
)


def function_of(name: str) -> "Callable[..., Result]":
    """Make the function of a verb, with a signature and a docstring from the verb's Config."""
    verb = VERB_OF[name]

    def function(
        *values: Any,
        preset: Any = (),
        config: Any = (),
        quiet: bool = False,
        on_step: Any = None,
        **options: Any,
    ) -> "Result":
        from beit.command.options import as_spelled, named_values  # imports jsonargparse

        words = [f"--preset={item}" for item in _several(preset)]
        words += [f"--config={os.fspath(item)}" for item in _several(config)]
        names = positionals(name)
        if len(values) > len(names):
            takes = " and ".join(names) or "nothing"
            if not names and (pairs := named_values(verb, values)):
                named = ", ".join(f"{option}={value!r}" for option, value in pairs)
                raise TypeError(f"beit.{name} takes options by name, as in beit.{name}({named})")
            raise TypeError(f"beit.{name} takes {takes} by position, got {len(values)} values")
        given = dict(zip(names, values, strict=False))
        if twice := given.keys() & options:
            raise TypeError(f"beit.{name} got {twice.pop()} by position and by name")
        words += [*as_spelled(verb, words_of(name, given)), *words_of(name, options)]
        return _call(verb, words, quiet, on_step)

    function.__name__ = function.__qualname__ = name
    function.__module__ = "beit"
    function.__doc__ = documentation(name)
    function.__signature__ = signature(name)  # type: ignore[attr-defined]
    return function


def resume(
    run: str | Path,
    *,
    accept_changed_data: bool = False,
    quiet: bool = False,
    on_step: Any = None,
    **options: Any,
) -> "Result":
    """Resume a training from its last checkpoint, with the settings in its directory.

    Args:
        run: the run directory
        options: settings that change, as in **{"optim.epochs": 600} for a longer schedule
        accept_changed_data: resume also if the run's images have changed
        quiet: print nothing, no progress either
        on_step: called after each step as on_step(step, figures); a False from it ends the run
            after the next step
    """
    from beit.run.directory import RunDirectory  # imports torch

    words = [f"--resume={run}"]
    words += ["--accept_changed_data=true"] if accept_changed_data else []
    words += words_of("resume", options)
    verb = RunDirectory.open(run).verb()
    if verb not in VERBS or not VERBS[verb].resumable:
        raise ValueError(f"{run} is a run of beit {verb}, expected a training")
    return _call(verb, words, quiet, on_step)


# ── from keywords to words of the command ───────────────────────────────────────────────────────


def words_of(name: str, options: Mapping[str, Any]) -> list[str]:
    """Write keyword arguments as options of the command: nested ones dotted, values as JSON.

    {"optim": {"epochs": 2}, "data": Path("photos")} → --optim.epochs=2 --data=photos
    """
    words = []
    for option, value in options.items():
        if option == "resume" and value == "auto":
            words.append("--resume=auto")
            continue
        if option in ("resume", "help", "print_config", "accept_changed_data"):
            instead = f"help(beit.{name})" if option == "help" else "beit.resume(run)"
            advice = "" if option == "print_config" else f"; use {instead}"
            raise ValueError(f"beit.{name} takes no {option!r}{advice}")
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            value = dataclasses.asdict(value)
        if isinstance(value, Mapping):
            words += words_of(name, {f"{option}.{key}": inner for key, inner in value.items()})
        else:
            several = isinstance(value, str | PathLike) and _is_list(name, option)
            words.append(f"--{option}{'+' * several}={_text(option, value)}")
    return words


def _is_list(name: str, option: str) -> bool:
    """Whether an option takes a list only, so that one value is a list of one."""
    if name not in VERB_OF or f"{option}+" not in VERBS[VERB_OF[name]].positional:
        return False
    fields = get_type_hints(import_module(VERBS[VERB_OF[name]].module).Config)
    return get_origin(fields[option]) is list


def _text(option: str, value: Any) -> str:
    """Write a value as the command reads it: text as it is, all else as JSON."""
    if isinstance(value, str | PathLike):
        return os.fspath(value)
    try:
        return json.dumps(value, default=_plain)
    except TypeError as error:
        held, whole = str(error), type(value).__name__
        what = f"is {an(whole)}" if held == whole else f"is {an(whole)} with {an(held)}"
        raise ValueError(
            f"{option} {what}; expected a number, text, a path, True, False, None, or lists or "
            "dicts of these; docs/python.md has the calls for models and images in memory"
        ) from error


def _plain(value: Any) -> Any:
    if isinstance(value, PathLike):
        return os.fspath(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if hasattr(value, "tolist") and getattr(value, "ndim", 0) < 2:  # numbers and vectors, no images
        return value.tolist()
    raise TypeError(type(value).__name__)


def _several(value: Any) -> Iterable[Any]:
    return value if isinstance(value, list | tuple) else (value,)


def positionals(name: str) -> list[str]:
    """List the arguments that may be given by position, as in the command; several as a list."""
    return [positional.rstrip("+") for positional in VERBS[VERB_OF[name]].positional]


# ── running ─────────────────────────────────────────────────────────────────────────────────────


def _call(verb: str, words: list[str], quiet: bool, on_step: Any) -> "Result":
    """Run a verb as the command does; the caller's random state is restored."""
    import torch

    from beit.cli import log_shown, run_verb
    from beit.command.modules import find_module
    from beit.command.slurm import as_torchrun
    from beit.result import Result
    from beit.run.preemption import Preempted
    from beit.run.watching import watched_by

    if on_step is not None and not VERBS[verb].resumable:
        trainings = ", ".join(name for name, of in VERB_OF.items() if VERBS[of].resumable)
        raise ValueError(f"on_step is for trainings: {trainings}, and resume")
    os.environ.update(as_torchrun(os.environ))
    cuda = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(cuda))
        stack.enter_context(watched_by(on_step))
        stack.enter_context(torch.enable_grad())  # a notebook may have turned it off
        if quiet:
            nowhere = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
            stack.enter_context(redirect_stdout(nowhere))
            stack.enter_context(redirect_stderr(nowhere))
        elif not logging.getLogger("beit").hasHandlers():  # the caller has not set logging up
            stack.enter_context(log_shown())
        try:
            temporary = not takes_output(words) and find_module(verb, words).startswith(TABLES)
            if temporary:  # rows for the result alone
                folder = stack.enter_context(TemporaryDirectory())
                words = [*words, f"--output={Path(folder, 'rows.npz')}"]
            module, config, value = run_verb(verb, words)
            return Result(verb, config, value, getattr(module, "ending", None), temporary)
        except (ValueError, OSError, KeyboardInterrupt, Preempted) as error:
            if len(error.args) == 1 and isinstance(error.args[0], str):
                error.args = (in_python(error.args[0]),)
            if isinstance(error, Preempted):  # which Python does not show
                logging.getLogger(__name__).warning("%s", error)
            raise


def takes_output(words: Iterable[str]) -> bool:
    """Whether an output is named, or may be by a file."""
    named = (word for word in words if word.startswith(("--output=", "--config=")))
    return any(word != "--output=null" for word in named)


def in_python(message: str) -> str:
    """Rewrite the options and commands in an error for callers of the functions."""
    message = re.sub(r"(?:beit [\w-]+ )?--resume (\S+)", r'beit.resume("\1")', message)
    message = message.replace('") --accept_changed_data true', '", accept_changed_data=True)')
    message = re.sub(
        r"\bbeit ([a-z][\w-]*(?: \w+)?) --help\b",
        lambda match: f"help(beit.{match[1].replace('-', '_').replace(' ', '_')})",
        message,
    )
    command, option = r"\bbeit [a-z][\w-]* [^;,)]*", r"(?<![\w-])--(?!nproc)([a-z]\w*(?:\.\w+)*)"
    return re.sub(f"{command}|{option}", lambda match: match[1] or match[0], message)


# ── signatures and docstrings ───────────────────────────────────────────────────────────────────


def signature(name: str) -> inspect.Signature:
    """Return what `help` and editors show: the fields of the verb's Config, and `COMMON`."""
    verb, Parameter = VERBS[VERB_OF[name]], inspect.Parameter
    fields = inspect.signature(import_module(verb.module).Config).parameters
    defaults = {field: parameter.default for field, parameter in fields.items()}
    first = positionals(name)
    optional = {*verb.spellings, *verb.spellings.values()} - {*first}  # an option's two names
    optional |= {"output"} if verb.module.startswith(TABLES) else set()
    defaults |= dict.fromkeys(verb.spellings, Parameter.empty)
    for field, default in defaults.items():
        if field in optional and default is Parameter.empty:
            defaults[field] = None
    defaults |= {"kind": None} if verb.kinds else {}
    defaults |= {"preset": (), "config": (), "quiet": False}
    defaults |= {"on_step": None} if verb.resumable else {}
    parameters = [
        *(
            Parameter(field, Parameter.POSITIONAL_OR_KEYWORD, default=defaults[field])
            for field in first
        ),
        *(
            Parameter(field, Parameter.KEYWORD_ONLY, default=default)
            for field, default in defaults.items()
            if field not in first
        ),
        Parameter("options", Parameter.VAR_KEYWORD),
    ]
    return inspect.Signature(parameters)


def documentation(name: str) -> str:
    """Describe a verb's function: what it does, and its options from the Config's docstring."""
    verb = VERBS[VERB_OF[name]]
    about = inspect.getdoc(import_module(verb.module).Config) or ""
    options = about.partition("\n\n")[2].replace("Attributes:", "Args:", 1)
    options = re.sub(r"\bnull\b", "None", options)
    common = COMMON | ({"on_step": ON_STEP} if verb.resumable else {})
    shared = {option: f"short for {field}" for option, field in verb.spellings.items()}
    lines = "\n".join(f"    {option}: {text}" for option, text in (shared | common).items())
    head = f"{verb.help[0].upper()}{verb.help[1:]}, as `beit {VERB_OF[name]}` does."
    nested = 'Options of a group: optim={"epochs": 2}, or **{"optim.epochs": 2}.'
    return f"{head}\n\n{nested}\n\n{options.rstrip() or 'Args:'}\n{lines}\n"
