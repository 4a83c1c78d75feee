"""Ablations: a plan's grid of runs, each an ordinary run directory, and one table at the end.

Nothing is remembered but the run directories: each has a name made from its settings, so a run that
is there is skipped or resumed, and cells with a stage in common share its run. So the command can
be killed at any time and given again.
"""

import fcntl
import hashlib
import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

from beit import cli
from beit.command import presets
from beit.comparison.ablation_table import (
    Measured,
    ablation_csv,
    ablation_plots,
    ablation_table,
    as_csv,
    as_markdown,
    settings_table,
)
from beit.comparison.jobs import Job, run_jobs
from beit.comparison.plan import Plan, Stage, flat, unfold
from beit.draw.report import Section, Table, write_report
from beit.files import write_text
from beit.run.log import read_log

PLANS = Path(__file__).parents[1] / "plans"
PROBE = "probe"
VERBS = [name for name, verb in cli.VERBS.items() if verb.resumable or name == PROBE]
PATIENCE = 30.0  # seconds that processes of a killed start get to let go of the directory


@dataclass(frozen=True)
class Config:
    """Settings of `beit ablate`.

    Attributes:
        plan: a YAML file, or the name of a plan that beit brings along, as table5-small
        output: directory for the runs and the table; empty takes runs/NAME of the plan. One that an
            earlier start of this command left behind is gone on with
        jobs: runs at a time. Two or more share the GPUs out between them, and without GPUs each
            computes in one thread
        set: values for the plan's stages, as in '{pretrain.optim.epochs: 1}'; what a cell says
            itself stays
        launcher: what starts training runs in place of `python -m beit`, as in
            'torchrun --nproc_per_node 8 -m beit'
        dry_run: check the plan, tell what is done and what would run, and stop
    """

    plan: str
    output: str = ""
    jobs: int = 1
    set: dict[str, Any] = field(default_factory=dict)
    launcher: str = ""
    dry_run: bool = False

    def __post_init__(self) -> None:
        if self.jobs < 1:
            raise ValueError(f"jobs is {self.jobs}; expected 1 run at a time, or more")


class Run(NamedTuple):
    """One command.

    Attributes:
        name: of its directory, made from all that it depends on
        stage: of the plan
        seed: that of its cells, whatever seed the stage itself may name
        arguments: of the command; those of `references` and the output are left out
        references: options that take the directory of another run, and that run's name
        settings: of the resolved configuration, by dotted name
    """

    name: str
    stage: Stage
    seed: int
    arguments: tuple[str, ...]
    references: Mapping[str, str]
    settings: Mapping[str, Any]


class Chain(NamedTuple):
    """What one cell runs with one seed, by stage."""

    cell: str
    seed: int
    runs: Mapping[str, Run]


class Result(NamedTuple):
    """The table, and what went wrong by the name of the run."""

    directory: Path
    table: Table
    failures: Mapping[str, str]


def run(config: Config) -> Result:
    """Run what is missing of a plan and write its table; exit code 1 where something failed."""
    result = ablate(config)
    if result.failures:
        raise SystemExit(1)
    return result


def ablate(config: Config) -> Result:
    """Run what is missing of a plan, and write table.md, table.csv, runs.csv and report.html."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(
            "beit ablate starts each run as a process of its own: start it without torchrun, and "
            "give what is to start them as in --launcher 'torchrun --nproc_per_node 8 -m beit'"
        )
    file = plan_file(config.plan)
    plan = unfold(presets.read_yaml(file), str(file), VERBS, config.set)
    chains = unfolded_runs(plan, str(file))
    runs = {one.name: one for chain in chains for one in chain.runs.values()}
    output = Path(config.output or f"runs/{file.stem}")
    marker = output / "plan.yaml"
    if output.is_file() or (not marker.is_file() and any(output.glob("[!.]*"))):
        raise FileExistsError(f"{output} exists and holds no ablation; name another directory")
    missing = [one for one in runs.values() if not is_complete(one, output)]
    print(f"{plan.title}: {len(chains)} rows, {len(runs)} runs, {len(missing)} of them to do")
    if config.dry_run:
        for one in runs.values():
            done = "to do" if one in missing else "done "
            print(f"{done}  {one.name}  beit {one.stage.verb} {shlex.join(one.arguments)}")
        measured, absent = measure(plan, chains, output)
        table = ablation_table(measured, list(plan.figures), len(plan.seeds))
        print(f"\n{as_markdown(table)}")
        return Result(output, table, absent)

    output.mkdir(parents=True, exist_ok=True)
    with alone(output) as lock:
        write_text(marker, file.read_text(encoding="utf-8"))
        (output / "logs").mkdir(exist_ok=True)
        # Those that another start finished meanwhile are complete now.
        missing = [one for one in missing if not is_complete(one, output)]
        failures = run_missing(missing, chains, output, config, lock)
        measured, absent = measure(plan, chains, output)
        failures |= absent
        table = write_results(plan, chains, output, measured, failures)
    print(f"\n{as_markdown(table)}\n\nreport: {output / 'report.html'}")
    for name, reason in failures.items():
        print(f"failed: {name}: {reason}")
    return Result(output, table, failures)


# ── from the plan to runs ───────────────────────────────────────────────────────────────────────


def plan_file(plan: str) -> Path:
    """Find a plan: a file, or one that beit brings along, as table5-small or plans/…yaml."""
    path = Path(plan)
    if path.is_file():
        return path
    known = sorted(file.stem for file in PLANS.glob("*.yaml"))
    name = path.stem if path in (Path("plans") / f"{path.stem}.yaml", Path(path.stem)) else ""
    if name in known:
        return PLANS / f"{name}.yaml"
    near = get_close_matches(path.stem, known, n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]}?" if near else "."
    raise FileNotFoundError(
        f"there is no plan {plan}{hint} beit brings along: {', '.join(known) or 'none'}"
    )


def unfolded_runs(plan: Plan, source: str) -> list[Chain]:
    """Build every run's configuration, as the command itself would, and name the runs.

    All rows of the first seed come first, so that the table soon has one figure in each.

    Raises:
        ValueError: a configuration is refused; names the plan, the cell and the stage.
    """
    known: dict[tuple[str, ...], dict[str, Any]] = {}
    chains = []
    for seed in plan.seeds:
        for cell in plan.cells:
            runs: dict[str, Run] = {}
            for stage in cell.stages:
                arguments = [f"--{option}={_word(value)}" for option, value in stage.fields.items()]
                arguments[:0] = [] if stage.preset is None else [f"--preset={stage.preset}"]
                asked = (stage.verb, *arguments)
                if asked not in known:
                    try:
                        known[asked] = _settings(stage, arguments)
                    except ValueError as error:
                        where = f"{source}, cell {cell.name!r}, stage {stage.name!r}"
                        raise ValueError(f"{where}: {error}") from error
                runs[stage.name] = _run(stage, arguments, known[asked], seed, runs)
            chains.append(Chain(cell.name, seed, runs))
    return chains


def _settings(stage: Stage, arguments: Sequence[str]) -> dict[str, Any]:
    """Return the resolved configuration of a stage, without its output; refuse a bad one."""
    if _output(stage.verb) in stage.fields:
        raise ValueError(f"{_output(stage.verb)} is not for a plan: beit ablate names the runs")
    settings = flat(asdict(cli.parse(stage.verb, _config_class(stage.verb, arguments), arguments)))
    del settings[_output(stage.verb)]
    return settings


def _run(
    stage: Stage,
    arguments: Sequence[str],
    settings: Mapping[str, Any],
    seed: int,
    earlier: Mapping[str, Run],
) -> Run:
    """Give a stage its seed, unless it names its own, and a name that tells it from all others."""
    place = _seed(stage.verb)
    references = {option: earlier[name].name for option, name in stage.references.items()}
    own = tuple(word for word in arguments if word[2:].partition("=")[0] not in references)
    if place not in stage.fields:
        settings, own = {**settings, place: seed}, (*own, f"--{place}={seed}")
    # Defaults are left out, so that a new option does not rename the runs that were made without.
    config_class = _config_class(stage.verb, arguments)
    defaults = _defaults(config_class)
    chosen = {n: v for n, v in settings.items() if n not in defaults or v != defaults[n]}
    told = [config_class.__module__, {**chosen, place: settings[place], **references}]
    content = json.dumps(told, sort_keys=True, default=str)
    digest = hashlib.sha256(content.encode()).hexdigest()[:10]
    return Run(f"{stage.name}-{digest}", stage, seed, own, references, settings)


def _config_class(verb: str, arguments: Sequence[str]) -> Any:
    """Return the Config that the command would build: of some verbs, that of the `--kind` asked."""
    return import_module(cli.module_name(verb, arguments, None)).Config


@cache
def _defaults(config_class: Any) -> dict[str, Any]:
    """Return a configuration's defaults, of those fields that have one, by dotted name."""
    found: dict[str, Any] = {}
    for one in fields(config_class):
        if one.default is not MISSING:
            found[one.name] = one.default
        elif one.default_factory is not MISSING:
            found[one.name] = one.default_factory()
    nested = {
        name: asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
        for name, value in found.items()
    }
    return flat(nested)


def _word(value: Any) -> str:
    """Write a value as the command line takes it."""
    return value if isinstance(value, str) else json.dumps(value)


def _output(verb: str) -> str:
    return "output" if verb == PROBE else "run.output"


def _seed(verb: str) -> str:
    return "seed" if verb == PROBE else "run.seed"


# ── running ─────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def alone(output: Path) -> Iterator[int]:
    """Hold the directory's lock; the runs hold it too, as long as any of them lives.

    Raises:
        ValueError: another start of the command, or a run that it left behind, is still at work.
    """
    with (output / ".lock").open("w") as file:
        until = time.monotonic() + PATIENCE
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise ValueError(
                        f"another beit ablate, or a run that one left behind, is at work in "
                        f"{output}; wait for it, end it, or name another directory"
                    ) from None
                time.sleep(0.2)
        yield file.fileno()


def run_missing(
    missing: Sequence[Run], chains: Sequence[Chain], output: Path, config: Config, lock: int
) -> dict[str, str]:
    """Run or resume what is not complete, and return what went wrong by the name of the run."""
    jobs = [
        Job(
            one.name,
            command(one, output, config.launcher),
            set(one.references.values()),
            output / "logs" / f"{one.name}.log",
        )
        for one in missing
    ]
    begun: dict[str, float] = {}

    def started(job: Job) -> None:
        begun[job.name] = time.monotonic()
        rows = [f"{c.cell} (seed {c.seed})" for c in chains if job.name in names_of(c)]
        more = f" and {len(rows) - 1} more rows" if len(rows) > 1 else ""
        print(f"{len(begun)} of {len(jobs)} · {job.name} · {rows[0]}{more}", flush=True)

    def ended(job: Job, failure: str | None) -> None:
        minutes = (time.monotonic() - begun.get(job.name, time.monotonic())) / 60
        told = "done" if failure is None else f"failed ({failure})"
        print(f"{job.name} {told} after {minutes:.1f} minutes", flush=True)

    return run_jobs(jobs, places(config), started, ended, keep_open=[lock])


def command(one: Run, output: Path, launcher: str) -> list[str]:
    """Return what starts a run, or resumes it; what is left of one that cannot be is removed."""
    directory = directory_of(one, output)
    trains = one.stage.verb != PROBE
    start = shlex.split(launcher) if launcher and trains else [sys.executable, "-m", "beit"]
    if trains and (directory / "config.yaml").is_file():
        return [*start, one.stage.verb, f"--resume={directory}"]
    if directory.exists():
        shutil.rmtree(directory)
    references = [f"--{option}={output / 'runs' / name}" for option, name in one.references.items()]
    target = f"--{_output(one.stage.verb)}={directory}"
    return [*start, one.stage.verb, *one.arguments, *references, target]


def places(config: Config) -> list[dict[str, str]]:
    """Return what each of the runs at a time finds in its environment: its GPU, or one thread."""
    count = torch.cuda.device_count()
    if config.jobs == 1 or config.launcher:
        return [{} for _ in range(config.jobs)]
    if not count:
        return [{"OMP_NUM_THREADS": "1"} for _ in range(config.jobs)]
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = named.split(",") if named else list(map(str, range(count)))
    return [{"CUDA_VISIBLE_DEVICES": gpus[job % count]} for job in range(config.jobs)]


def directory_of(one: Run, output: Path) -> Path:
    """Return a run's directory."""
    return output / "runs" / one.name


def is_complete(one: Run, output: Path) -> bool:
    """Tell whether a run came to its end: training leaves weights there, a probe its report."""
    last = "report.html" if one.stage.verb == PROBE else "weights.safetensors"
    return (directory_of(one, output) / last).is_file()


def names_of(chain: Chain) -> set[str]:
    """Return the names of a chain's runs."""
    return {one.name for one in chain.runs.values()}


# ── what came out ───────────────────────────────────────────────────────────────────────────────


def read_figures(directory: Path) -> dict[str, float]:
    """Read the figures of a complete run.

    Of a probe linear.cls, knn.mean and so on, linear.paper being the row that the paper's protocol
    reads, and attentive; of training the last value of each name in metrics.jsonl, and those of the
    best validation where that one's weights were kept.
    """
    found: dict[str, Any] = {}
    if (directory / "probe.json").is_file():
        record = json.loads((directory / "probe.json").read_text(encoding="utf-8"))
        for row in record["rows"]:
            for score in ("linear", "knn"):
                found[f"{score}.{row['features']}"] = row[score]
                if row["paper"]:
                    found[f"{score}.paper"] = row[score]
        for row in record["attentive"]:
            found[row["features"]] = row["attentive"]
    else:
        records = read_log(directory / "metrics.jsonl")
        for line in records:
            found |= line
        settings = yaml.safe_load((directory / "config.yaml").read_text(encoding="utf-8"))
        if settings.get("keep") == "best" and "val_top1" in found:
            found |= max(
                (line for line in records if "val_top1" in line), key=lambda line: line["val_top1"]
            )
    return {name: float(value) for name, value in found.items() if isinstance(value, int | float)}


def read_environment(directory: Path) -> dict[str, Any]:
    """Read what a complete run depended on beside its configuration."""
    probed = directory / "probe.json"
    file = probed if probed.is_file() else directory / "environment.json"
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    if file == probed:
        found = found["environment"]
    return found


def measure(
    plan: Plan, chains: Sequence[Chain], output: Path
) -> tuple[list[Measured], dict[str, str]]:
    """Collect the figures of complete runs, by cell; and say which figures no such run has."""
    by_run: dict[str, dict[str, float]] = {}
    values: dict[str, dict[str, dict[int, float]]] = {
        cell.name: {column: {} for column in plan.figures} for cell in plan.cells
    }
    absent: dict[str, str] = {}
    for chain in chains:
        for column, (stage, name) in plan.figures.items():
            one = chain.runs.get(stage)
            if one is None or not is_complete(one, output):
                continue
            if one.name not in by_run:
                by_run[one.name] = read_figures(directory_of(one, output))
            found = by_run[one.name]
            if name in found:
                values[chain.cell][column][chain.seed] = found[name]
            else:
                near = get_close_matches(name, found, n=1, cutoff=0.0)
                hint = f"; did you mean {near[0]}?" if near else ""
                absent[column] = f"{one.name} has no figure {name}{hint}"
    settings = differing(plan, chains)
    measured = [
        Measured(cell.name, values[cell.name], settings[cell.name], plan.paper.get(cell.name, {}))
        for cell in plan.cells
    ]
    return measured, absent


def differing(plan: Plan, chains: Sequence[Chain]) -> dict[str, dict[str, str]]:
    """Return by cell the settings in which cells with the same stage differ, seeds left out."""
    every: dict[str, dict[str, str]] = {}
    for chain in chains[: len(plan.cells)]:
        words = {"stages": ", ".join(chain.runs)}
        for name, one in chain.runs.items():
            for setting, value in one.settings.items():
                if setting != _seed(one.stage.verb):
                    words[f"{name}.{setting}"] = _word(value)
        every[chain.cell] = words
    names = list(dict.fromkeys(name for words in every.values() for name in words))
    told = [
        name
        for name in names
        if len({words[name] for words in every.values() if name in words}) > 1
    ]
    return {
        cell: {name: words[name] for name in told if name in words} for cell, words in every.items()
    }


def write_results(
    plan: Plan,
    chains: Sequence[Chain],
    output: Path,
    measured: Sequence[Measured],
    failures: Mapping[str, str],
) -> Table:
    """Write table.md, table.csv, runs.csv, the plots and report.html; return the table."""
    columns = list(plan.figures)
    table = ablation_table(measured, columns, len(plan.seeds))
    tables = [table]
    if any(cell.settings for cell in measured):
        tables.append(settings_table(measured))
    plots = ablation_plots(measured, columns)
    for number, plot in enumerate(plots.pictures, start=1):
        write_text(output / f"plot-{number}.svg", plot.data.decode())
    write_text(output / "table.csv", ablation_csv(measured, columns))
    write_text(output / "runs.csv", runs_csv(plan, chains, measured))

    complete = {
        one.name: one for chain in chains for one in chain.runs.values() if is_complete(one, output)
    }
    facts = {"Seeds": ", ".join(map(str, plan.seeds)), "Runs": f"{len(complete)} complete"}
    environments = [read_environment(directory_of(one, output)) for one in complete.values()]
    for name in ("commit", "torch", "python", "machine", "cpus", "gpus"):
        values = dict.fromkeys(_plain(environment.get(name)) for environment in environments)
        facts[name.capitalize()] = ", ".join(values) or "unknown"
    lost = "\n\n".join(f"`{name}`: {reason}" for name, reason in failures.items())

    pictures = [
        f"![{plot.alt}](plot-{number}.svg)" for number, plot in enumerate(plots.pictures, start=1)
    ]
    parts = [f"# {plan.title}", plan.text.strip(), as_markdown(table), *pictures]
    parts += [as_markdown(other) for other in tables[1:]]
    parts += [f"## What failed\n\n{lost}"] if lost else []
    parts.append("\n".join(f"- {name}: {value}" for name, value in facts.items()))
    write_text(output / "table.md", "\n\n".join(part for part in parts if part) + "\n")
    sections = [Section("Results", items=[table, plots])]
    sections += [Section("Settings", items=tables[1:])] if tables[1:] else []
    sections += [Section("What failed", lost)] if lost else []
    write_report(output / "report.html", plan.title, sections, facts, summary=plan.text)
    return table


def runs_csv(plan: Plan, chains: Sequence[Chain], measured: Sequence[Measured]) -> str:
    """List cells and seeds, each with its figures as they are and the names of its runs."""
    stages = list(dict.fromkeys(name for chain in chains for name in chain.runs))
    values = {cell.name: cell.values for cell in measured}
    lines = [["cell", "seed", *plan.figures, *stages]]
    for chain in chains:
        found = [values[chain.cell][column].get(chain.seed) for column in plan.figures]
        names = [chain.runs[stage].name if stage in chain.runs else "" for stage in stages]
        figures = ["" if value is None else repr(value) for value in found]
        lines.append([chain.cell, str(chain.seed), *figures, *names])
    return as_csv(lines)


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return " + ".join(map(str, value)) or "none"
    return "unknown" if value is None else str(value)
