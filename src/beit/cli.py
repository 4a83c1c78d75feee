"""The command `beit VERB`: overview, dispatch to a verb's module, exit codes.

A verb's module is imported only to run that verb, so that `beit --help` imports no torch.
"""

import logging
import os
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import beit
from beit.command.ending import is_first_process, show
from beit.command.messages import did_you_mean, one_line
from beit.command.modules import (
    changed_settings,
    find_module,
    module_of_run,
    run_to_resume,
)
from beit.command.options import parse, renamed, take
from beit.command.slurm import as_torchrun
from beit.command.verbs import VERBS
from beit.data.own_code import named_by
from beit.files import out_of_memory
from beit.run.finished import is_finished, last_validation
from beit.run.lock import releasing
from beit.run.preemption import (
    INTERRUPTED,
    Interrupted,
    Preempted,
    ignore_signals,
    stoppable,
)

REPEATED = ("demo", "ablate", "pack")  # verbs without --resume that resume when repeated


def main(argv: Sequence[str] | None = None) -> int:
    """Run `beit` with these arguments and return its exit code.

    0: done; 1: runs of an ablation failed, or doctor found what must be mended; 2: a mistake of the
    caller or too little memory, explained in one line; 75: a training, a demo or an ablation was
    stopped by SIGTERM or SIGUSR1, a training to be started again with `--resume`; 130: stopped by
    Ctrl-C.
    """
    try:
        os.environ.update(as_torchrun(os.environ))
        with log_shown():
            code = _dispatch(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
        return code
    except (KeyboardInterrupt, Preempted) as stop:
        if is_first_process():
            if isinstance(stop.__cause__, Exception):
                print(f"beit: while it stopped: {one_line(stop.__cause__)}", file=sys.stderr)
            print(f"beit: {str(stop) or 'stopped'}", file=sys.stderr)
        if argv is None:  # the process ends now, but torchrun and schedulers repeat their signals
            ignore_signals()
        return stop.exit_code if isinstance(stop, Preempted | Interrupted) else INTERRUPTED
    except BrokenPipeError:  # `beit presets | head`: the reader has closed the pipe, no error
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError, MemoryError, RuntimeError) as error:
        reason = one_line(error)
        if out_of_memory(error):
            reason = f"out of memory: {reason} (smaller batches need less; BEIT_DEBUG=1 says where)"
        elif isinstance(error, RuntimeError):  # a bug
            raise
        if os.environ.get("BEIT_DEBUG") == "1":
            traceback.print_exc()
        ranks = sys.modules.get("beit.run.ranks")  # in a run of several processes
        name = ranks.failed(error) if ranks else None
        print(f"beit: error: {f'{name}: ' if name else ''}{reason}", file=sys.stderr)
        return 2


@contextmanager
def log_shown() -> Iterator[None]:
    """Show log messages of beit on standard error; of several processes only those of rank 0."""
    log, handler = logging.getLogger("beit"), logging.StreamHandler()
    before = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO if os.environ.get("RANK", "0") == "0" else logging.WARNING)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(before)


def _dispatch(arguments: list[str]) -> int:
    """Run the verb, or print the overview or the version; return the exit code."""
    if not arguments:
        print(_overview(), file=sys.stderr)
        return 2
    if arguments[0] in ("-h", "--help"):
        print(_overview())
    elif arguments[0] == "--version":
        print(f"beit {beit.__version__}")
    elif arguments[0].partition("=")[0] == "--print_completion":
        from beit.command.completion import script  # imports jsonargparse

        print(script(take(arguments, "--print_completion")[0][0]))
    else:
        return _run(*_split_verb(arguments))
    return 0


def _run(verb: str, options: Sequence[str]) -> int:
    module, config, result = run_verb(verb, options)
    if getattr(result, "failures", None):
        return 1
    if ending := getattr(module, "ending", None):  # not of `presets`
        begun = config.run.presets if VERBS[verb].resumable else ()
        show(ending(config, result), take(options, "--preset")[0] or begun)
    return 0


def run_verb(verb: str, options: Sequence[str]) -> tuple[Any, Any, Any]:
    """Run a verb, also for `beit.calls`. Returns: its module, its Config, and the result."""
    with ExitStack() as stack:
        stack.enter_context(named_by(options))
        resumable = VERBS[verb].resumable
        if resumable or verb in REPEATED:
            stack.enter_context(stoppable("" if resumable else "repeat the command to resume"))
            stack.enter_context(releasing())
        resumed = run_to_resume(options) if resumable else None
        if resumed is not None:
            path, changed_ok, options = resumed
            if path != "auto":
                return _resume(verb, path, changed_ok, changes=changed_settings(options))
            from beit.command.resuming import run_found  # imports torch

            if (directory := run_found(verb, options)) is not None:
                return _resume(verb, directory.path, changed_ok, auto=True)
        module = import_module(find_module(verb, options))
        read = getattr(module, "read_options", partial(parse, verb, module.Config))
        config = read(options)
        if text := renamed(verb, options):
            logging.getLogger(__name__).warning(text)
        return module, config, module.run(config)


def _resume(
    verb: str,
    path: str | Path,
    changed_ok: bool,
    auto: bool = False,
    changes: Mapping[str, Any] | None = None,
) -> tuple[Any, Any, Any]:
    """Resume a run; return the result of a finished one if `auto` found it."""
    from beit.run.journal import Result  # imports torch
    from beit.run.resume import to_resume

    module = import_module(module_of_run(verb, Path(path)))
    config, directory = to_resume(module, path, changed_ok, changes)
    if not (auto and is_finished(directory)):
        try:
            return module, config, module.run(config, directory, changed_ok)
        except FileNotFoundError as error:
            gone, missing, _ = str(error).partition(": no such file or folder")
            if not missing or gone not in f"{config.data.train} {config.data.validation}":
                raise
            reason = str(error).partition("; expected ")[0]
            raise FileNotFoundError(
                f"{reason}{'' if reason.endswith('?') else '.'} If the images have moved, write "
                f"their new place into {directory.config_file} (data.train and data.validation) "
                f"and resume with beit {verb} --resume {path} --accept_changed_data true"
            ) from error
    logging.getLogger(__name__).info("%s is finished: nothing is left to train", path)
    metrics = last_validation(directory.metrics_file, getattr(config, "keep", "last"))
    return module, config, Result(directory.path, metrics, [])


def _split_verb(arguments: Sequence[str]) -> tuple[str, Sequence[str]]:
    """Split the verb, of one or two words, from its options."""
    name, *options = arguments
    if second_words := [v.partition(" ")[2] for v in VERBS if v.startswith(f"{name} ")]:
        word = options[0] if options else ""
        if word not in second_words:
            got = f"{word or 'nothing'}{did_you_mean(word, second_words)}"
            raise ValueError(f"beit {name} what? Expected {', '.join(second_words)}, got {got}")
        return f"{name} {word}", options[1:]
    if name not in VERBS:
        is_option = name.startswith("-")
        verbs = {verb.partition(" ")[0] for verb in VERBS}
        own = {"--help", "--version", "--print_completion"}
        kind, known = ("option", own) if is_option else ("verb", verbs)
        raise ValueError(f"unknown {kind} {name!r}{did_you_mean(name, known)} See beit --help")
    return name, options


def _overview() -> str:
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {name:<{width}}  {verb.help}" for name, verb in VERBS.items())
    return (
        "usage: beit VERB [--preset NAME] [--config FILE] [--field.sub VALUE ...]\n\n"
        "Self-supervised visual pretraining with semantic tokens.\n\n"
        f"verbs:\n{verbs}\n\n"
        "beit VERB --help lists a verb's options, beit VERB --print_config its resolved\n"
        "configuration; beit --version prints the version, beit --print_completion SHELL what\n"
        "completes them in bash, zsh or fish. BEIT_DEBUG=1 shows tracebacks."
    )
