"""Tables and plots of the study (docs/results/study.md), from what its runs have measured.

    python benchmarks/study.py

reads docs/results/study/measured.jsonl and the plans, runs nothing, and writes beside it a table of
each plan whose rows all have three seeds, and the plots of the page for newcomers.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import record

from beit.command import presets
from beit.comparison.ablate import PLANS, measure
from beit.comparison.ablation_table import (
    Measured,
    ablation_table,
    as_markdown,
    difference_table,
    shown,
    spread,
)
from beit.comparison.plan import unfold
from beit.comparison.planned_runs import planned_chains
from beit.comparison.records import read_records
from beit.draw.charts import new_chart, place_axes, styled, themed_svg
from beit.draw.colours import FAINT, INK, SERIES

RESULTS = record.ROOT / "docs" / "results" / "study"
NAMES = (
    *("study-targets", "study-recipe", "sizes-small", "longer-small", "table4-small"),
    *("table5-small", "masks-small", "robustness-small"),
)
WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 460, 260, 40, 34, 170, 40  # pixels of a plot


class Curve(NamedTuple):
    """A line of a plot: the cell and column of a plan at each x."""

    label: str
    points: Mapping[float, tuple[str, str]]


TARGETS = {
    "nothing": "random weights",
    "pixels, normalised": "pixels",
    "codes of a discrete VAE (BEiT v1)": "codes, discrete VAE",
    "codes of VQ-KD, aggregated (BEiT v2)": "codes, VQ-KD",
    "features of the teacher": "teacher's features",
}
LABELS = {500: "Fine-tuned, 1%, %", 5000: "Fine-tuned, 10%, %", 50000: "Fine-tuned, all, %"}
IMAGES = (1_000, 10_000, 50_000)
LONGER = "codes of a longer trained tokenizer, 4 epochs"
EPOCHS = {0.5: "0.5 epochs", 1: "1 epoch", 2: "2 epochs", 4: "4 epochs"}
MEAN, CLS = "Student, linear, mean, %", "Linear, [CLS], %"
PLOTS: dict[str, tuple[str, str, str, list[Curve]]] = {  # file: plan, title, axis, curves
    "labels": (
        "study-targets",
        "Fine-tuned, % right on the test images",
        "labelled images",
        [
            Curve(label, {x: (cell, column) for x, column in LABELS.items()})
            for cell, label in TARGETS.items()
        ],
    ),
    "images": (
        "sizes-small",
        "Linear probe of the mean patch, %",
        "images in pretraining, equally many steps",
        [
            Curve(label, {n: (f"{kind}, {n:,} images", column) for n in IMAGES})
            for kind, label, column in (
                ("features", "student, features", MEAN),
                ("codes", "student, codes", MEAN),
                ("codes", "tokenizer's encoder", "Encoder, linear, mean, %"),
            )
        ],
    ),
    "epochs": (
        "longer-small",
        "Linear probe of [CLS], %",
        "epochs of pretraining",
        [
            *(
                Curve(label, {x: (f"{kind}, {e}", CLS) for x, e in EPOCHS.items()})
                for kind, label in (("features", "features"), ("codes", "codes"))
            ),
            Curve("codes, longer tokenizer", {4: (LONGER, CLS)}),
            Curve("tokenizer's encoder", dict.fromkeys(EPOCHS, ("the tokenizer's encoder", CLS))),
        ],
    ),
}  # fmt: skip


def main() -> None:
    cells = {}
    for name in NAMES:
        plan, measured = read(name)
        if all(seeds == len(plan.seeds) for seeds in map(seeds_of, measured)):
            cells[name] = {cell.name: cell for cell in measured}
            write_tables(name, plan, measured)
    for file, (name, title, axis, curves) in PLOTS.items():
        if name in cells:
            path = RESULTS / f"{file}.svg"
            path.write_bytes(plot(title, axis, curves, cells[name]))
            print(f"written: {path.relative_to(record.ROOT)}")


def read(name: str) -> tuple[Any, list[Measured]]:
    """Return a plan and what is known of its cells."""
    file = PLANS / f"{name}.yaml"
    plan = unfold(presets.read_yaml(file), str(file), {})
    chains = planned_chains(plan)
    runs = {run.name: run for chain in chains for run in chain.runs.values()}
    return plan, measure(plan, chains, read_records(RESULTS, [*runs.values()]))[0]


def seeds_of(cell: Measured) -> int:
    """Return the seeds that all columns of a cell have."""
    return min((len(values) for values in cell.values.values() if values), default=0)


def write_tables(name: str, plan: Any, cells: Sequence[Measured]) -> None:
    """Write the results of a plan, and the differences from its reference."""
    tables = [ablation_table(cells, [*plan.columns], len(plan.seeds))]
    if plan.reference:
        tables.append(difference_table(cells, [*plan.columns], plan.reference))
    path = RESULTS / f"{name}.md"
    path.write_text("\n\n".join([f"# {plan.title}", *map(as_markdown, tables)]) + "\n")
    print(f"written: {path.relative_to(record.ROOT)}")


def plot(title: str, axis: str, curves: Sequence[Curve], cells: Mapping[str, Measured]) -> bytes:
    """Draw curves over a logarithmic axis, each named at its end, with deviations over seeds."""
    with styled():
        figure = new_chart(title, HEIGHT, WIDTH)
        axes = figure.add_axes((0, 0, 1, 1))
        place_axes(axes, LEFT, TOP, RIGHT, BOTTOM)
        axes.set_xscale("log")
        ends = []
        for number, curve in enumerate(curves):
            spreads = [spread(shown(cells[cell], column)) for cell, column in curve.points.values()]
            x, colour = [*curve.points], SERIES[number]
            y = [found[0] for found in spreads if found]
            errors = [found[1] for found in spreads if found]
            axes.errorbar(x, y, yerr=errors, fmt="o-", color=colour, markersize=4, clip_on=False)
            ends.append((y[-1], f"{curve.label} {y[-1]:.1f}", colour))
        ticks = [*curves[0].points]
        axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks], color=INK)
        axes.set_xticks([], minor=True)
        margin = (ticks[-1] / ticks[0]) ** 0.08
        axes.set_xlim(ticks[0] / margin, ticks[-1] * margin)
        axes.set_xlabel(axis, color=FAINT)
        axes.grid(axis="y")
        low, high = axes.get_ylim()
        gap, last = (high - low) * 0.075, -1e9
        for y_end, words, colour in sorted(ends):  # apart, so that all can be read
            last = max(last + gap, y_end)
            place = {"xytext": (10, 0), "textcoords": "offset points", "va": "center"}
            axes.annotate(words, (ticks[-1], last), color=colour, annotation_clip=False, **place)
        return themed_svg(figure)


if __name__ == "__main__":
    main()
