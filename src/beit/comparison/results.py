"""Results of an ablation: metrics of its complete runs; tables, plots and the report."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from beit.command.messages import did_you_mean
from beit.comparison.ablation_table import (
    Measured,
    ablation_csv,
    ablation_plots,
    ablation_table,
    as_csv,
    as_markdown,
    settings_table,
)
from beit.comparison.plan import Plan
from beit.comparison.planned_runs import Chain, PlannedRun, seed_option, word
from beit.draw.report import Gallery, Section, Table, write_report
from beit.files import write_text
from beit.run.log import read_log


def read_metrics(directory: Path) -> dict[str, float]:
    """Read the metrics of a complete run.

    A probe has linear.cls, knn.mean and so on, linear.paper for the row of the paper's protocol,
    and attentive. A training has the last value of each name in metrics.jsonl; if it kept the best
    weights, the values of the best validation.
    """
    metrics: dict[str, Any] = {}
    if (directory / "probe.json").is_file():
        record = json.loads((directory / "probe.json").read_text(encoding="utf-8"))
        for row in record["rows"]:
            for score in ("linear", "knn"):
                metrics[f"{score}.{row['features']}"] = row[score]
                if row["paper"]:
                    metrics[f"{score}.paper"] = row[score]
        for row in record["attentive"]:
            metrics[row["features"]] = row["attentive"]
    else:
        records = read_log(directory / "metrics.jsonl")
        for line in records:
            metrics |= line
        settings = yaml.safe_load((directory / "config.yaml").read_text(encoding="utf-8"))
        if settings.get("keep") == "best" and "val_top1" in metrics:
            validations = [line for line in records if "val_top1" in line]
            metrics |= max(validations, key=lambda line: line["val_top1"])
    return {name: float(value) for name, value in metrics.items() if isinstance(value, int | float)}


def read_environment(directory: Path) -> dict[str, Any]:
    """Read the environment of a complete run: commit, versions, machine."""
    if (directory / "probe.json").is_file():
        record = json.loads((directory / "probe.json").read_text(encoding="utf-8"))["environment"]
    else:
        record = json.loads((directory / "environment.json").read_text(encoding="utf-8"))
    environment: dict[str, Any] = record
    return environment


def measure(
    plan: Plan, chains: Sequence[Chain], output: Path
) -> tuple[list[Measured], dict[str, str]]:
    """Collect the metrics of complete runs by cell.

    Returns: the cells, and for each column whose metric a run does not have an error message.
    """
    stages = {stage for stage, _ in plan.columns.values()}
    metrics = {
        name: read_metrics(run.directory(output))
        for name, run in complete_runs(chains, output).items()
        if run.stage.name in stages
    }
    values: dict[str, dict[str, dict[int, float]]] = {
        cell.name: {column: {} for column in plan.columns} for cell in plan.cells
    }
    errors: dict[str, str] = {}
    for chain in chains:
        for column, (stage, metric) in plan.columns.items():
            run = chain.runs.get(stage)
            if run is None or run.name not in metrics:
                continue
            if metric in metrics[run.name]:
                values[chain.cell][column][chain.seed] = metrics[run.name][metric]
            else:
                hint = did_you_mean(metric, metrics[run.name], cutoff=0.0)
                errors[column] = f"{run.name} has no metric {metric}{hint}"
    settings = differing_settings(plan, chains)
    cells = [
        Measured(cell.name, values[cell.name], settings[cell.name], plan.paper.get(cell.name, {}))
        for cell in plan.cells
    ]
    return cells, errors


def complete_runs(chains: Iterable[Chain], output: Path) -> dict[str, PlannedRun]:
    """Return the complete runs by name."""
    runs = {run.name: run for chain in chains for run in chain.runs.values()}
    return {name: run for name, run in runs.items() if run.is_complete(output)}


def differing_settings(plan: Plan, chains: Sequence[Chain]) -> dict[str, dict[str, str]]:
    """Return by cell the settings in which cells with the same stage differ, except seeds."""
    by_cell: dict[str, dict[str, str]] = {}
    for chain in chains[: len(plan.cells)]:  # those of the first seed
        settings = {"stages": ", ".join(chain.runs)}
        for stage, run in chain.runs.items():
            for name, value in run.settings.items():
                if name != seed_option(run.stage.verb):
                    settings[f"{stage}.{name}"] = word(value)
        by_cell[chain.cell] = settings
    names = dict.fromkeys(name for settings in by_cell.values() for name in settings)
    differing = [
        name for name in names if len({s[name] for s in by_cell.values() if name in s}) > 1
    ]
    return {
        cell: {name: settings[name] for name in differing if name in settings}
        for cell, settings in by_cell.items()
    }


# ── files ───────────────────────────────────────────────────────────────────────────────────────


def write_results(
    plan: Plan,
    chains: Sequence[Chain],
    output: Path,
    cells: Sequence[Measured],
    failures: Mapping[str, str],
) -> Table:
    """Write table.md, table.csv, runs.csv, the plots and report.html; return the table."""
    columns = list(plan.columns)
    table = ablation_table(cells, columns, len(plan.seeds))
    settings = [settings_table(cells)] if any(cell.settings for cell in cells) else []
    plots = ablation_plots(cells, columns)
    for number, plot in enumerate(plots.pictures, start=1):
        write_text(output / f"plot-{number}.svg", plot.data.decode())
    write_text(output / "table.csv", ablation_csv(cells, columns))
    write_text(output / "runs.csv", runs_csv(plan, chains, cells))
    facts = _facts(plan, complete_runs(chains, output).values(), output)
    reasons = "\n\n".join(f"`{name}`: {reason}" for name, reason in failures.items())
    write_text(output / "table.md", _markdown(plan, table, plots, settings, reasons, facts))
    sections = [Section("Results", items=[table, plots])]
    sections += [Section("Settings", items=settings)] if settings else []
    sections += [Section("What failed", reasons)] if reasons else []
    write_report(output / "report.html", plan.title, sections, facts, summary=plan.text)
    return table


def _facts(plan: Plan, runs: Iterable[PlannedRun], output: Path) -> dict[str, str]:
    """Describe the complete runs: seeds, number, and every environment among them."""
    environments = [read_environment(run.directory(output)) for run in runs]
    facts = {"Seeds": ", ".join(map(str, plan.seeds)), "Runs": f"{len(environments)} complete"}
    for name in ("commit", "torch", "python", "machine", "cpus", "gpus"):
        values = dict.fromkeys(_one_line(environment.get(name)) for environment in environments)
        facts[name.capitalize()] = ", ".join(values) or "unknown"
    return facts


def _one_line(value: Any) -> str:
    if isinstance(value, list):
        return " + ".join(map(str, value)) or "none"
    return "unknown" if value is None else str(value)


def _markdown(
    plan: Plan,
    table: Table,
    plots: Gallery,
    settings: Sequence[Table],
    reasons: str,
    facts: Mapping[str, str],
) -> str:
    parts = [f"# {plan.title}", plan.text.strip(), as_markdown(table)]
    parts += [f"![{plot.alt}](plot-{n}.svg)" for n, plot in enumerate(plots.pictures, start=1)]
    parts += map(as_markdown, settings)
    parts += [f"## What failed\n\n{reasons}"] if reasons else []
    parts.append("\n".join(f"- {name}: {value}" for name, value in facts.items()))
    return "\n\n".join(part for part in parts if part) + "\n"


def runs_csv(plan: Plan, chains: Sequence[Chain], cells: Sequence[Measured]) -> str:
    """List cells and seeds, each with its unscaled metrics and the names of its runs."""
    stages = list(dict.fromkeys(name for chain in chains for name in chain.runs))
    values = {cell.name: cell.values for cell in cells}
    lines = [["cell", "seed", *plan.columns, *stages]]
    for chain in chains:
        row = [values[chain.cell][column].get(chain.seed) for column in plan.columns]
        names = [chain.runs[stage].name if stage in chain.runs else "" for stage in stages]
        metrics = ["" if value is None else repr(value) for value in row]
        lines.append([chain.cell, str(chain.seed), *metrics, *names])
    return as_csv(lines)
