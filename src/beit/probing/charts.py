"""Results of a probe: a table of accuracies, and their curves by learning rate and by depth."""

import math
from collections.abc import Sequence
from typing import TypedDict

from torch import Tensor

from beit.draw.curves import curves
from beit.draw.report import Item, Table
from beit.nn.pooling import Kind

NAMES = {
    "cls": "[CLS]",
    "mean": "mean of patches",
    "both": "[CLS] and mean",
    "attentive": "attentive",
}
PAPER = " *"  # marks the row that follows the paper's protocol
CURVES = 8  # in one chart, at most; the best ones
Rates = tuple[Sequence[float], Sequence[float]]  # tried for the linear and the attentive probes


class Figures(TypedDict):
    """Results for one kind of features; accuracies are in [0, 1]."""

    features: str  # "cls", "mean", "both" or "attentive", with "@3" for the raw output of block 3
    layer: int | None  # that block; None for the final features
    pooling: str  # the kind without the layer
    rate: float  # the chosen learning rate
    held_out: list[float]  # accuracy of every rate on the held-out part, by rising rate


class Row(Figures):
    """Linear probe and k-NN on the test images."""

    paper: bool  # whether the paper probes these features
    linear: float
    knn: float  # with the first number of neighbours
    knn_each: list[float]  # with every number of neighbours


class AttentiveRow(Figures):
    """Attentive probe on the test images."""

    attentive: float


def figures(kind: Kind, rate: float, held_out: Tensor) -> Figures:
    """Start a row: kind, chosen rate, and accuracies (R,) on the held-out part."""
    name, (layer, pooling), accuracies = kind.name, kind, held_out.tolist()
    return Figures(features=name, layer=layer, pooling=pooling, rate=rate, held_out=accuracies)


def title(row: Figures) -> str:
    """Describe the features of a row in words."""
    name = NAMES[row["pooling"]]
    return name if row["layer"] is None else f"{name}, block {row['layer']}"


def accuracy_table(
    rows: Sequence[Row], attentive: Sequence[AttentiveRow], neighbours: Sequence[int]
) -> Table:
    """List accuracies on the test images, in percent; a star marks the paper's protocol."""
    knn = ["k-NN"] if len(neighbours) == 1 else [f"{k}-NN" for k in neighbours]
    lines = []
    for row in rows:
        percent = [f"{100 * accuracy:.1f}" for accuracy in (row["linear"], *row["knn_each"])]
        lines.append([title(row) + PAPER * row["paper"], *percent, f"{row['rate']:g}"])
    for each in attentive:
        percent = [f"{100 * each['attentive']:.1f}", *["–"] * len(knn)]
        lines.append([title(each), *percent, f"{each['rate']:g}"])
    columns = ["Features", "Probe" if attentive else "Linear probe", *knn, "Rate"]
    return Table("Accuracy on the test images, in percent", columns, lines)


def format_table(table: Table) -> str:
    """Format a table for a terminal, the first column left-aligned, the others right-aligned."""
    columns = []
    for place, column in enumerate(zip(table.columns, *table.rows, strict=True)):
        cells = list(map(str, column))
        width = max(map(len, cells))
        columns.append([cell.rjust(width) if place else cell.ljust(width) for cell in cells])
    return "\n".join(map("  ".join, zip(*columns, strict=True)))


def notes(rows: Sequence[Row], attentive: Sequence[AttentiveRow], rates: Rates) -> list[str]:
    """Explain the paper's rows, and warn of rates that are not chosen or at an end of the grid."""
    lines = []
    for row in rows:
        if row["paper"]:
            model = "with" if row["pooling"] == "cls" else "without"
            lines.append(
                f"{title(row)}{PAPER}: the features that the paper probes for a model pretrained "
                f"{model} patch aggregation"
            )
    groups: tuple[Sequence[Figures], ...] = rows, attentive
    for option, group, grid in zip(("rates", "attentive_rates"), groups, rates, strict=True):
        tried = group if len(grid) > 1 else ()
        if equal := [title(row) for row in tried if len({*row["held_out"]}) == 1]:
            lines.append(
                f"{'; '.join(equal)}: on the held-out images all rates are equally good, so the "
                f"smallest was taken; more images, or a larger held_out, would choose one"
            )
        for end, rate in (("smallest", min(grid)), ("largest", max(grid))):
            chosen = [row for row in tried if len({*row["held_out"]}) > 1]
            at_end = [title(row) for row in chosen if row["rate"] == rate]
            if at_end:
                lines.append(
                    f"{'; '.join(at_end)}: the best rate {rate:g} is the {end} of the grid; "
                    f"a wider grid ({option}) may be better"
                )
    return lines


def drawings(rows: Sequence[Row], attentive: Sequence[AttentiveRow], rates: Rates) -> list[Item]:
    """Draw held-out accuracy by rate and, for several blocks, accuracy by depth."""
    groups: tuple[Sequence[Figures], ...] = rows, attentive
    charts: list[Item] = []
    for name, group, grid in zip(("linear", "attentive"), groups, rates, strict=True):
        best = sorted(group, key=lambda row: -max(row["held_out"]))[:CURVES]
        if best:
            records = [
                {"log10 of the rate": math.log10(rate)}
                | {title(row): 100 * row["held_out"][place] for row in best}
                for place, rate in enumerate(sorted(grid))
            ]
            panel = {f"Held-out accuracy, {name}": [title(row) for row in best]}
            caption = "Accuracy by learning rate; the best rate was chosen"
            charts += curves(records, panel, caption, x="log10 of the rate", percent=panel)
    if len({row["layer"] for row in rows} - {None}) > 1:
        charts += _by_depth(rows, attentive)
    return charts


def _by_depth(rows: Sequence[Row], attentive: Sequence[AttentiveRow]) -> list[Item]:
    """Draw accuracies on the test images by block."""
    probes = [(row["layer"], NAMES[row["pooling"]], row["linear"]) for row in rows]
    probes += [(row["layer"], NAMES[row["pooling"]], row["attentive"]) for row in attentive]
    knn = [(row["layer"], f"k-NN, {NAMES[row['pooling']]}", row["knn"]) for row in rows]
    points = [point for point in probes + knn if point[0] is not None]
    records = [{"block": block, key: 100 * accuracy} for block, key, accuracy in points]
    groups = {"Probes": probes, "Nearest neighbours": knn}
    panels = {
        name: list(dict.fromkeys(key for _, key, _ in group)) for name, group in groups.items()
    }
    caption = "Accuracy on the test images, raw outputs of blocks"
    return curves(records, panels, caption, x="block", percent=panels)
