"""Ablations: run a plan's grid of runs, each in an ordinary run directory, and tabulate them.

Each run directory has a name made from its settings, so that a complete run is skipped, an
interrupted one resumes, and cells with the same settings of a stage share its run. The command can
be killed at any time and started again; measured.jsonl keeps what complete runs measured, so that
another machine can continue without their directories.
"""

import json
import os
import shlex
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from beit.command import presets
from beit.command.ending import Ending, opened, words
from beit.command.messages import did_you_mean
from beit.comparison.ablation_table import (
    Measured,
    ablation_table,
    as_markdown,
    write_results,
)
from beit.comparison.execution import locked, run_all
from beit.comparison.plan import Plan, unfold
from beit.comparison.planned_runs import Chain, planned_chains, run_option, word
from beit.comparison.records import RECORDS, Record, read_records, runs_to_do, write_records
from beit.draw.report import Table
from beit.files import write_text

PLANS = Path(__file__).parents[1] / "plans"


@dataclass(frozen=True)
class Config:
    """Settings of `beit ablate`.

    Attributes:
        plan: a YAML file, or the name of a plan shipped with beit, such as table5-small
        output: directory for runs and table, resumed if it exists; empty for runs/NAME of the plan
        jobs: number of simultaneous runs; two or more share the GPUs, or use one thread each
        set: values for stages, such as '{pretrain.optim.epochs: 1}'; a cell's own values stay
        launcher: replaces `python -m beit` for trainings: 'torchrun --nproc_per_node 8 -m beit'
        dry_run: check the plan, list its runs and the results so far, and run nothing
    """

    plan: str
    output: str = ""
    jobs: int = 1
    set: dict[str, Any] = field(default_factory=dict)
    launcher: str = ""
    dry_run: bool = False

    def __post_init__(self) -> None:
        if self.jobs < 1:
            raise ValueError(f"jobs is {self.jobs}; expected 1 or more simultaneous runs")


class Result(NamedTuple):
    """The table, and the reasons of failures by the name of the run or column."""

    directory: Path
    table: Table
    failures: Mapping[str, str]


def run(config: Config) -> Result:
    """Run the incomplete runs of a plan; write the table, its page and what each run measured."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(
            "beit ablate starts each run as a separate process: start it without torchrun, and "
            "name the launcher of its runs, as in --launcher 'torchrun --nproc_per_node 8 -m beit'"
        )
    file = plan_file(config.plan)
    plan = unfold(presets.read_yaml(file), str(file), config.set)
    chains = planned_chains(plan)
    runs = list({run.name: run for chain in chains for run in chain.runs.values()}.values())
    output = Path(config.output or f"runs/{file.stem}")
    marker = output / "plan.yaml"
    is_ablation = marker.is_file() or (output / RECORDS).is_file()
    if output.is_file() or (not is_ablation and any(output.glob("[!.]*"))):
        raise FileExistsError(f"{output} exists and holds no ablation; name another directory")
    records = read_records(output, runs)
    missing = runs_to_do(runs, output, records)
    print(f"{plan.title}: {len(chains)} rows, {len(runs)} runs, {len(missing)} of them to do")
    if config.dry_run:
        for run in runs:
            state = "to do" if run in missing else "done "
            print(f"{state}  {run.name}  beit {run.stage.verb} {shlex.join(run.arguments)}")
        cells, errors = measure(plan, chains, records)
        table = ablation_table(cells, list(plan.columns), len(plan.seeds))
        print(f"\n{as_markdown(table)}")
        return Result(output, table, errors)

    output.mkdir(parents=True, exist_ok=True)
    with locked(output) as lock:
        write_text(marker, file.read_text(encoding="utf-8"))
        (output / "logs").mkdir(exist_ok=True)
        # Another ablation may have completed some of them before it released the lock.
        missing = runs_to_do(runs, output, read_records(output, runs))
        failures = run_all(
            missing,
            chains,
            output,
            config.jobs,
            config.launcher,
            lock,
            after_each=lambda: write_records(output, runs),
        )
        records = write_records(output, runs)
        cells, errors = measure(plan, chains, records)
        failures |= errors
        table = write_results(plan, chains, output, records, cells, failures)
    print(f"\n{as_markdown(table)}\n")
    for name, reason in failures.items():
        print(f"failed: {name}: {reason}")
    return Result(output, table, failures)


def ending(config: Config, result: Result) -> Ending:
    """Say how many rows are measured; the page is next, or the ablation after a dry run."""
    figure, page = f"{len(result.table.rows)} rows", result.directory / "report.html"
    if config.dry_run:
        asked = {"output": config.output, "jobs": config.jobs, "launcher": config.launcher}
        asked["set"] = json.dumps(config.set) if config.set else ""
        then = words("ablate", config.plan, **asked)
        return Ending(f"no files; the runs would go to {result.directory}", figure, then)
    return Ending(
        f"{result.directory}, the runs and their table; report {page}", figure, opened(page)
    )


def plan_file(plan: str) -> Path:
    """Find a plan: a file, or one shipped with beit, such as table5-small or plans/NAME.yaml."""
    path = Path(plan)
    if path.is_file():
        return path
    shipped = sorted(file.stem for file in PLANS.glob("*.yaml"))
    if path in (Path(f"plans/{path.stem}.yaml"), Path(path.stem)) and path.stem in shipped:
        return PLANS / f"{path.stem}.yaml"
    hint = did_you_mean(path.stem, shipped, cutoff=0.4)
    raise FileNotFoundError(
        f"there is no plan {plan}{hint} Plans shipped with beit: {', '.join(shipped) or 'none'}"
    )


# ── results ─────────────────────────────────────────────────────────────────────────────────────


def measure(
    plan: Plan, chains: list[Chain], records: Mapping[str, Record]
) -> tuple[list[Measured], dict[str, str]]:
    """Collect the metrics of complete runs by cell.

    Returns: the cells, and for each column whose metric a run does not have an error message.
    """
    values: dict[str, dict[str, dict[int, float]]] = {
        cell: {column: {} for column in plan.columns} for cell in plan.cells
    }
    measured_by: dict[tuple[str, str], set[str]] = defaultdict(set)
    errors: dict[str, str] = {}
    for chain, (column, (stage, metric)) in product(chains, plan.columns.items()):
        if (run := chain.runs.get(stage)) is None:
            continue
        measured_by[chain.cell, column].add(run.name)
        if run.name not in records:
            continue
        metrics = records[run.name].metrics
        if metric in metrics:
            values[chain.cell][column][chain.seed] = metrics[metric]
        else:
            hint = did_you_mean(metric, metrics, cutoff=0.0)
            errors[column] = f"{run.name} has no metric {metric}{hint}"
    settings = differing_settings(chains[: len(plan.cells)])  # those of the first seed
    hours: dict[str, dict[int, float]] = {cell: {} for cell in plan.cells}
    for chain in chains:
        trainings = [run.name for run in chain.runs.values() if run.trains]
        if all(name in records for name in trainings):
            spent = sum(records[name].hours for name in trainings)
            hours[chain.cell] |= {chain.seed: spent} if spent else {}
    cells = [
        Measured(
            *(name, values[name], settings[name], plan.paper.get(name, {}), hours[name]),
            once=[column for column in plan.columns if len(measured_by[name, column]) == 1],
        )
        for name in values
    ]
    return cells, errors


def differing_settings(chains: Sequence[Chain]) -> dict[str, dict[str, str]]:
    """Return by cell the settings in which cells with the same stage differ, except seeds."""
    by_cell, found = dict[str, dict[str, str]](), defaultdict[str, set[str]](set)
    for chain in chains:
        by_cell[chain.cell] = settings = {"stages": ", ".join(chain.runs)}
        for stage, run in chain.runs.items():
            own = {n: v for n, v in run.settings.items() if n != run_option(run.stage.verb, "seed")}
            settings |= {f"{stage}.{name}": word(value) for name, value in own.items()}
        for name, value in settings.items():
            found[name].add(value)
    return {
        cell: {name: value for name, value in settings.items() if len(found[name]) > 1}
        for cell, settings in by_cell.items()
    }
