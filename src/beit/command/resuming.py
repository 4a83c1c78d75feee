"""`--resume auto`: resume the run in the output directory, or start one there."""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

from beit.command.modules import find_module, module_of_run
from beit.command.options import Layer, in_fields, name_positionals, nested, parse, read_layers
from beit.command.verbs import VERBS
from beit.run.changes import FREE, ROUNDING, Change, complete, differences, of, shown
from beit.run.directory import RunDirectory
from beit.run.extension import LENGTH
from beit.run.settings import flat

logger = logging.getLogger(__name__)

# What `beit.run.budget` fits to a time.
FITTED = (
    *("run.budget", "optim.epochs", "optim.warmup_epochs", "optim.steps", "optim.warmup_steps"),
    *("validate_every", "check.every", "codebook.start_after"),
)


def run_found(verb: str, options: Sequence[str]) -> RunDirectory | None:
    """Return the run in the output directory that options name; None if there is none yet.

    Raises:
        ValueError: no output is given, or the run has other settings than the options say.
        FileNotFoundError: the output is something else than a run.
    """
    output = output_of(verb, options)
    if output.parent.is_dir():
        os.listdir(output.parent)  # a network file system then asks its server what is there
    if not os.path.lexists(output):
        logger.info("--resume auto: there is no run in %s yet, it starts", output)
        return None
    directory = RunDirectory.open(output, verb)
    refuse_others(verb, options, directory)
    return directory


def output_of(verb: str, options: Sequence[str]) -> Path:
    """Return the output directory that presets, files and options name."""
    layers, words = read_layers(verb, name_positionals(verb, options))
    output = ""
    for values in (*(values for _, values in layers), nested(in_fields(verb, words))):
        run = values.get("run") or {}
        output = run.get("output") or output if isinstance(run, Mapping) else output
    if not output:
        raise ValueError("--resume auto needs the run directory, as in --output runs/first")
    return Path(str(output))


def refuse_others(verb: str, options: Sequence[str], directory: RunDirectory) -> None:
    """Compare what presets, files and options say with the settings of a run, which count.

    Raises:
        ValueError: settings differ on which weights depend, each named.
    """
    module = module_of_run(verb, directory.path)
    if find_module(verb, options) != module:
        kinds = {path: kind for kind, path in VERBS[verb].kinds.items()}
        raise ValueError(f"{directory.path} is a run of --kind {kinds[module]}; give that kind")
    config_class, own = import_module(module).Config, directory.config()
    given = asdict(parse(verb, config_class, options, base=Layer(str(directory.config_file), own)))
    before = complete(config_class, own, str(directory.config_file))
    changes = [
        change for change in differences(before, given) if not _fitted(change, before, given)
    ]
    free = of(changes, (*FREE, *ROUNDING))
    if others := [change for change in changes if change not in free]:
        named = "; ".join(
            f"{c.option} {shown(c.before)} there, {shown(c.now)} given" for c in others
        )
        longer = [
            f"; a longer schedule: beit {verb} --resume {directory.path} --{change.option} NUMBER"
            for change in of(others, LENGTH)
        ]
        raise ValueError(
            f"{directory.path} has a run with other settings: {named}. Leave these options out to "
            f"resume it, or name another --output{longer[0] if longer else ''}"
        )
    words = flat(nested(in_fields(verb, options)))
    for change in free:
        if change.option in words:
            text = "%s resumes with %s %s, as its config.yaml says, not %s"
            values = (shown(change.before), shown(change.now))
            logger.warning(text, directory.path, change.option, *values)


def _fitted(change: Change, before: Mapping[str, Any], given: Mapping[str, Any]) -> bool:
    """Whether beit chose the run's value from the one that is given again."""
    run = before["run"]
    if run["fitted_to"] and given["run"]["budget"] == run["fitted_to"] and of([change], FITTED):
        return True
    held_out = str(change.before).startswith(f"{change.now}[")
    return bool(run["chosen"]) and change.option == "data.train" and held_out
