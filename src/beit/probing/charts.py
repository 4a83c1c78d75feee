"""Results of a probe: a table of accuracies, and their curves by learning rate and by depth."""

import math
from collections.abc import Sequence
from typing import TypedDict

from torch import Tensor

from beit.draw.curves import curves
from beit.draw.report import Gallery, Table
from beit.nn.pooling import Kind

NAMES = {
    "cls": "[CLS]",
    "mean": "mean of patches",
    "both": "[CLS] and mean",
    "attentive": "attentive",
}
PAPER = " *"  # marks the row that follows the paper's protocol
CURVES = 8  # in one chart, at most; the best ones


class Figures(TypedDict):
    """Results for one kind of features; accuracies are in [0, 1].

    features: "cls", "mean", "both" or "attentive", with "@3" for the raw output of block 3; layer:
    that block, None for the final features; pooling: the kind without the layer; rate: the chosen
    learning rate; held_out: accuracy of every rate on the held-out part, by rising rate.
    """

    features: str
    layer: int | None
    pooling: str
    rate: float
    held_out: list[float]


class Row(Figures):
    """Linear probe and k-NN on the test images.

    paper: whether the paper probes these features; knn: with the first number of neighbours;
    knn_each: with every number of neighbours.
    """

    paper: bool
    linear: float
    knn: float
    knn_each: list[float]


class AttentiveRow(Figures):
    """Attentive probe on the test images."""

    attentive: float


def figures(kind: Kind, rate: float, held_out: Tensor) -> Figures:
    """Start a row: kind, chosen rate, and accuracies (R,) on the held-out part."""
    return Figures(
        features=kind.name,
        layer=kind.layer,
        pooling=kind.pooling,
        rate=rate,
        held_out=held_out.tolist(),
    )


def title(row: Figures) -> str:
    """Describe the features of a row in words."""
    name = NAMES[row["pooling"]]
    return name if row["layer"] is None else f"{name}, block {row['layer']}"


def accuracy_table(
    rows: Sequence[Row], attentive: Sequence[AttentiveRow], neighbours: Sequence[int]
) -> Table:
    """List accuracies on the test images, in percent; a star marks the paper's protocol."""
    knn = ["k-NN"] if len(neighbours) == 1 else [f"{k}-NN" for k in neighbours]
    lines = [
        [
            title(row) + PAPER * row["paper"],
            f"{100 * row['linear']:.2f}",
            *(f"{100 * accuracy:.2f}" for accuracy in row["knn_each"]),
            f"{row['rate']:g}",
        ]
        for row in rows
    ]
    lines += [
        [title(row), f"{100 * row['attentive']:.2f}", *["–"] * len(knn), f"{row['rate']:g}"]
        for row in attentive
    ]
    caption = "Accuracy on the test images, in percent"
    probe = "Probe" if attentive else "Linear probe"
    return Table(caption, ["Features", probe, *knn, "Rate"], lines)


def format_table(table: Table) -> str:
    """Format a table for a terminal, the first column left-aligned, the others right-aligned."""
    lines = [[str(cell) for cell in line] for line in (table.columns, *table.rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def notes(
    rows: Sequence[Row],
    attentive: Sequence[AttentiveRow],
    rates: Sequence[float],
    attentive_rates: Sequence[float],
) -> list[str]:
    """Explain the paper's rows, and warn if the best rate is at an end of the grid."""
    lines = []
    for row in rows:
        if row["paper"]:
            model = "with" if row["pooling"] == "cls" else "without"
            lines.append(
                f"{title(row)}{PAPER}: the features that the paper probes for a model pretrained "
                f"{model} patch aggregation"
            )
    for option, group, grid in (
        ("rates", rows, rates),
        ("attentive_rates", attentive, attentive_rates),
    ):
        for end, rate in (("smallest", min(grid)), ("largest", max(grid))):
            at_end = [title(row) for row in group if len(grid) > 1 and row["rate"] == rate]
            if at_end:
                lines.append(
                    f"{'; '.join(at_end)}: the best rate {rate:g} is the {end} of the grid; "
                    f"a wider grid ({option}) may be better"
                )
    return lines


def drawings(
    rows: Sequence[Row],
    attentive: Sequence[AttentiveRow],
    rates: Sequence[float],
    attentive_rates: Sequence[float],
) -> list[Gallery]:
    """Draw held-out accuracy by rate and, for several blocks, accuracy by depth."""
    groups: list[tuple[str, Sequence[Figures], Sequence[float]]] = [
        ("linear", rows, rates),
        ("attentive", attentive, attentive_rates),
    ]
    charts = []
    for name, group, grid in groups:
        best = sorted(group, key=lambda row: -max(row["held_out"]))[:CURVES]
        if best:
            records = [
                {"log10 of the rate": math.log10(rate)}
                | {title(row): 100 * row["held_out"][place] for row in best}
                for place, rate in enumerate(sorted(grid))
            ]
            panel = {f"Held-out accuracy, {name}, %": [title(row) for row in best]}
            caption = "Accuracy by learning rate; the best rate was chosen"
            charts.append(curves(records, panel, caption, x="log10 of the rate"))
    if len({row["layer"] for row in rows} - {None}) > 1:
        charts.append(_by_depth(rows, attentive))
    return charts


def _by_depth(rows: Sequence[Row], attentive: Sequence[AttentiveRow]) -> Gallery:
    """Draw accuracies on the test images by block."""
    probes: list[tuple[Figures, str, float]]
    probes = [(row, NAMES[row["pooling"]], row["linear"]) for row in rows]
    probes += [(row, NAMES[row["pooling"]], row["attentive"]) for row in attentive]
    knn = [(row, f"k-NN, {NAMES[row['pooling']]}", row["knn"]) for row in rows]
    records = [
        {"block": row["layer"], key: 100 * accuracy}
        for row, key, accuracy in [*probes, *knn]
        if row["layer"] is not None
    ]
    panels = {
        "Probes, %": list(dict.fromkeys(key for _, key, _ in probes)),
        "Nearest neighbours, %": list(dict.fromkeys(key for _, key, _ in knn)),
    }
    return curves(records, panels, "Accuracy on the test images, raw outputs of blocks", x="block")
