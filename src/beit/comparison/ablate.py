"""Ablations: run a plan's grid of runs, each in an ordinary run directory, and tabulate them.

The run directories are the only state. Each has a name made from its settings, so that a complete
run is skipped, an interrupted one resumes, and cells with the same settings of a stage share its
run. The command can be killed at any time and started again.
"""

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from beit.command import presets
from beit.command.messages import did_you_mean
from beit.comparison.ablation_table import ablation_table, as_markdown
from beit.comparison.execution import locked, run_all
from beit.comparison.plan import Plan, unfold
from beit.comparison.planned_runs import STAGE_VERBS, Chain, PlannedRun, planned_chains
from beit.comparison.results import measure, write_results
from beit.draw.report import Table
from beit.files import write_text

PLANS = Path(__file__).parents[1] / "plans"


@dataclass(frozen=True)
class Config:
    """Settings of `beit ablate`.

    Attributes:
        plan: a YAML file, or the name of a plan shipped with beit, such as table5-small
        output: directory for the runs and the table; empty for runs/NAME of the plan. An existing
            output of the same command is resumed
        jobs: number of simultaneous runs. Two or more share the GPUs; without GPUs each uses one
            thread
        set: values for the plan's stages, such as '{pretrain.optim.epochs: 1}'; fields that a cell
            sets keep the cell's values
        launcher: replaces `python -m beit` for training runs, such as
            'torchrun --nproc_per_node 8 -m beit'
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
    """Run an ablation; exit with code 1 if anything failed."""
    result = ablate(config)
    if result.failures:
        raise SystemExit(1)
    return result


def ablate(config: Config) -> Result:
    """Run the incomplete runs of a plan; write table.md, table.csv, runs.csv and report.html."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(
            "beit ablate starts each run as a separate process: start it without torchrun, and "
            "name the launcher of its runs, as in --launcher 'torchrun --nproc_per_node 8 -m beit'"
        )
    file = plan_file(config.plan)
    plan = unfold(presets.read_yaml(file), str(file), STAGE_VERBS, config.set)
    chains = planned_chains(plan, str(file))
    runs = list({run.name: run for chain in chains for run in chain.runs.values()}.values())
    output = Path(config.output or f"runs/{file.stem}")
    marker = output / "plan.yaml"
    if output.is_file() or (not marker.is_file() and any(output.glob("[!.]*"))):
        raise FileExistsError(f"{output} exists and holds no ablation; name another directory")
    missing = [run for run in runs if not run.is_complete(output)]
    print(f"{plan.title}: {len(chains)} rows, {len(runs)} runs, {len(missing)} of them to do")
    if config.dry_run:
        return _preview(plan, chains, runs, output)

    output.mkdir(parents=True, exist_ok=True)
    with locked(output) as lock:
        write_text(marker, file.read_text(encoding="utf-8"))
        (output / "logs").mkdir(exist_ok=True)
        # Another ablation may have completed some of them before it released the lock.
        missing = [run for run in missing if not run.is_complete(output)]
        failures = run_all(missing, chains, output, config.jobs, config.launcher, lock)
        cells, errors = measure(plan, chains, output)
        failures |= errors
        table = write_results(plan, chains, output, cells, failures)
    print(f"\n{as_markdown(table)}\n\nreport: {output / 'report.html'}")
    for name, reason in failures.items():
        print(f"failed: {name}: {reason}")
    return Result(output, table, failures)


def _preview(
    plan: Plan, chains: Sequence[Chain], runs: Sequence[PlannedRun], output: Path
) -> Result:
    """Print the commands of all runs, and the table of the complete ones."""
    for run in runs:
        state = "done " if run.is_complete(output) else "to do"
        print(f"{state}  {run.name}  beit {run.stage.verb} {shlex.join(run.arguments)}")
    cells, errors = measure(plan, chains, output)
    table = ablation_table(cells, list(plan.columns), len(plan.seeds))
    print(f"\n{as_markdown(table)}")
    return Result(output, table, errors)


def plan_file(plan: str) -> Path:
    """Find a plan: a file, or one shipped with beit, such as table5-small or plans/NAME.yaml."""
    path = Path(plan)
    if path.is_file():
        return path
    shipped = sorted(file.stem for file in PLANS.glob("*.yaml"))
    name = path.stem if path in (Path("plans") / f"{path.stem}.yaml", Path(path.stem)) else ""
    if name in shipped:
        return PLANS / f"{name}.yaml"
    hint = did_you_mean(path.stem, shipped, cutoff=0.4)
    raise FileNotFoundError(
        f"there is no plan {plan}{hint} Plans shipped with beit: {', '.join(shipped) or 'none'}"
    )
