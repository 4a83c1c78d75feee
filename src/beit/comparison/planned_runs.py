"""The runs of an ablation: each stage's resolved settings, and a run name made from them."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, fields, is_dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, NamedTuple

from beit.command.modules import find_module
from beit.command.options import parse
from beit.command.verbs import VERBS
from beit.comparison.plan import MEASURES, Plan, Stage, flat
from beit.data.own_code import refuse_unnamed

Settings = Mapping[str, Any]
DVAE = VERBS["train-tokenizer"].kinds["dvae"]


class PlannedRun(NamedTuple):
    """One command."""

    name: str  # of its directory, made from everything that the run depends on
    stage: Stage  # of the plan
    arguments: tuple[str, ...]  # of the command, without `references` and the output
    references: Mapping[str, str]  # options that take a run's directory, and that run's name
    settings: Settings  # the resolved configuration, by dotted name

    @property
    def trains(self) -> bool:
        """Whether the run can be resumed and started by a launcher; a measurement cannot."""
        return self.stage.verb not in MEASURES

    def directory(self, output: Path) -> Path:
        """Return the run directory in the directory of an ablation."""
        return output / "runs" / self.name

    def is_complete(self, output: Path) -> bool:
        """Tell whether it is finished: training writes weights last, a measurement its report."""
        last_file = "weights.safetensors" if self.trains else "report.html"
        return (self.directory(output) / last_file).is_file()


class Chain(NamedTuple):
    """The runs of one cell with one seed, by stage."""

    cell: str
    seed: int
    runs: Mapping[str, PlannedRun]


def planned_chains(plan: Plan) -> list[Chain]:
    """Build the configuration of every run as the command would, and name the runs.

    The chains are sorted by seed, so that early results fill every row of the table.

    Raises:
        ValueError: a configuration is refused; names the plan, the cell and the stage. Or two cells
            have the same runs.
    """
    settings: dict[tuple[str, ...], dict[str, Any]] = {}
    cells: dict[tuple[str, ...], str] = {}
    chains = []
    for seed in plan.seeds:
        for cell, stages in plan.cells.items():
            runs: dict[str, PlannedRun] = {}
            for stage in stages:
                arguments = [f"--{option}={word(value)}" for option, value in stage.fields.items()]
                refuse_unnamed(arguments)
                arguments[:0] = [] if stage.preset is None else [f"--preset={stage.preset}"]
                command = (stage.verb, *arguments)
                if command not in settings:
                    try:
                        settings[command] = _settings(stage, arguments)
                    except ValueError as error:
                        where = f"{plan.source}, cell {cell!r}, stage {stage.name!r}"
                        raise ValueError(f"{where}: {error}") from error
                runs[stage.name] = _planned_run(stage, arguments, settings[command], seed, runs)
            chains.append(Chain(cell, seed, runs))
            twin = cells.setdefault(tuple(run.name for run in runs.values()), cell)
            if twin != cell:
                raise ValueError(
                    f"{plan.source}: cells {twin!r} and {cell!r} have the same settings in every "
                    "stage, so their rows would show the same runs; change or delete one of them"
                )
    return chains


def _settings(stage: Stage, arguments: Sequence[str]) -> dict[str, Any]:
    """Return the resolved configuration of a stage, without its output."""
    output = run_option(stage.verb, "output")
    if output in stage.fields:
        raise ValueError(f"{output} cannot be set in a plan: beit ablate names the runs")
    config_class = import_module(find_module(stage.verb, arguments)).Config
    settings = flat(asdict(parse(stage.verb, config_class, arguments)))
    del settings[output]
    settings.pop("run.presets", None)  # a run depends on values, not on where they come from
    return settings


def _planned_run(
    stage: Stage,
    arguments: list[str],
    settings: Settings,
    seed: int,
    earlier: dict[str, PlannedRun],
) -> PlannedRun:
    """Set the seed, unless the stage sets its own, and name the run by a digest."""
    option = run_option(stage.verb, "seed")
    references = {name: earlier[target].name for name, target in stage.references.items()}
    own = tuple(word for word in arguments if word[2:].partition("=")[0] not in references)
    if option not in stage.fields:
        settings, own = {**settings, option: seed}, (*own, f"--{option}={seed}")
    # Defaults are left out, so that a new option renames no runs.
    module = find_module(stage.verb, arguments)
    defaults = _defaults(import_module(module).Config)
    chosen = {n: v for n, v in settings.items() if n not in defaults or v != defaults[n]}
    # Runs keep the names of the first release, in which recipes were modules of beit.recipes.
    recipe = "train_dvae" if module == DVAE else stage.verb.replace("-", "_")
    identity = [f"beit.recipes.{recipe}", {**chosen, option: settings[option], **references}]
    content = json.dumps(identity, sort_keys=True, default=str)
    digest = hashlib.sha256(content.encode()).hexdigest()[:10]
    return PlannedRun(f"{stage.name}-{digest}", stage, own, references, settings)


@cache
def _defaults(config_class: Any) -> dict[str, Any]:
    """Return the defaults of a configuration by dotted name, of the fields that have one."""
    defaults: dict[str, Any] = {}
    for field in fields(config_class):
        value = field.default if field.default_factory is MISSING else field.default_factory()
        if value is not MISSING:
            nested = is_dataclass(value) and not isinstance(value, type)
            defaults[field.name] = asdict(value) if nested else value
    return flat(defaults)


def word(value: Any) -> str:
    """Write a value as the command line takes it."""
    return value if isinstance(value, str) else json.dumps(value)


def run_option(verb: str, name: Literal["output", "seed"]) -> str:
    """Name the option for a run's directory or seed."""
    return name if verb in MEASURES else f"run.{name}"
