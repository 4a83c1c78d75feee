"""A classifier's results by class: accuracy, most frequent confusions, confusion matrix."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from beit.draw.charts import new_chart, place_axes, shortened, styled, themed_svg, widest
from beit.draw.colours import FAINT, SERIES
from beit.draw.names import percent
from beit.draw.report import Item, Picture, Table
from beit.wording import some_names

SHOWN = 50  # classes in a table, at most
DRAWN = 40  # classes in a confusion matrix, at most
NUMBERED = 14  # classes in a matrix with numbers, at most
FEWEST = 3  # images or pixels of a class of which none is right, for a note


def class_items(
    right: Tensor, total: Tensor, confusion: Tensor | None, names: Sequence[str]
) -> list[Item]:
    """Return the report's items of the arguments of the functions below; confusion may be None."""
    items: list[Item | None] = [class_table(right, total, names)]
    if confusion is not None:
        confusions = confusion_table(confusion, names)
        items += [confusions if confusions.rows else None, confusion_picture(confusion, names)]
    return [item for item in items if item is not None]


def chance_words(share: float) -> str:
    """Say what to compare an accuracy with, from the share of the most frequent class."""
    return f"chance {percent(share)}: always the most frequent class"


def note_of_missed(
    right: Tensor, total: Tensor, names: Sequence[str], unit: str, advice: str
) -> str:
    """Name the classes of which nothing is right, with advice; empty if there are none.

    right, total: (Y,) correctly classified images or pixels (`unit`), and all of each class
    """
    missed = ((right == 0) & (total >= FEWEST)).tolist()
    which = [name for name, is_missed in zip(names, missed, strict=True) if is_missed]
    if not which:
        return ""
    of = f"{len(which)} of {len(names)} classes"
    return f"no {unit} of {some_names(which)} is classified correctly ({of}); {advice}"


def class_table(right: Tensor, total: Tensor, names: Sequence[str]) -> Table:
    """List the accuracy of each class, worst first; the `SHOWN` worst if there are more.

    right, total: (Y,) correctly classified images and all images of each class
    """
    shares = (100 * (right.double() / total.clamp(min=1))).tolist()
    some = [row for row in zip(names, shares, total.tolist(), strict=True) if row[2]]
    some.sort(key=lambda row: row[1])
    rows = [(name, f"{share:.1f}", count) for name, share, count in some]
    which = f", the {SHOWN} worst of {len(rows)}" if len(rows) > SHOWN else ""
    return Table(f"Accuracy by class{which}", ["Class", "Accuracy, %", "Images"], rows[:SHOWN])


def confusion_table(confusion: Tensor, names: Sequence[str], count: int = 20) -> Table:
    """List the most frequent confusions of confusion (Y, Y): rows are true classes."""
    Y = len(names)
    wrong = confusion.clone().fill_diagonal_(0)
    most = wrong.flatten().topk(min(count, Y * Y))
    rows = [
        (names[place // Y], names[place % Y], number)
        for number, place in zip(most.values.tolist(), most.indices.tolist(), strict=True)
        if number
    ]
    return Table("Most frequent confusions", ["True class", "Predicted as", "Images"], rows)


def confusion_picture(confusion: Tensor, names: Sequence[str]) -> Picture | None:
    """Draw confusion (Y, Y) in percent of the row; None for more than `DRAWN` classes."""
    Y = len(names)
    if Y > DRAWN:
        return None
    shares = confusion / confusion.sum(dim=1, keepdim=True).clamp(min=1)  # (Y, Y)
    from matplotlib.colors import to_rgba

    labels = [f"{number}. {shortened(name, 18)}" for number, name in enumerate(names, 1)]
    top, side = 38, max(340, 14 * Y)
    rows, columns = (shares > 0).nonzero(as_tuple=True)
    percents = (100 * shares[rows, columns]).tolist()
    with styled():
        left = 14 + widest(labels)
        title = "True class by row, predicted class by column"
        figure = new_chart(title, top + side + 6, left + side + 6)
        axes = figure.add_axes((0, 0, 1, 1))
        place_axes(axes, left, top, 6, 6)
        colours = [to_rgba(SERIES[0], round(0.08 + 0.0072 * percent, 3)) for percent in percents]
        squares: dict[str, Any] = {"marker": "s", "s": (side / Y) ** 2, "linewidths": 0}
        axes.scatter(columns, rows, color=colours, **squares)
        if Y <= NUMBERED:
            for row, column, share in zip(rows, columns, percents, strict=True):
                axes.text(column, row, f"{share:.0f}", ha="center", va="center_baseline")
        for row in (confusion.sum(dim=1) == 0).nonzero().flatten().tolist():
            axes.text(-0.4, row, "no image", va="center_baseline", color=FAINT)
        axes.set(xlim=(-0.5, Y - 0.5), ylim=(Y - 0.5, -0.5))
        axes.set_xticks(range(Y), map(str, range(1, Y + 1)), size=11.5 if Y <= NUMBERED else 9)
        axes.set_yticks(range(Y), labels)
        axes.tick_params(length=0, labeltop=True, labelbottom=False)
        axes.spines[:].set_visible(False)
        axes.grid(visible=False)
        data = themed_svg(figure)
    mean = float(shares.diagonal()[confusion.sum(dim=1) > 0].mean())
    alt = f"Confusion matrix of {Y} classes; mean accuracy of a class {100 * mean:.1f}%"
    return Picture("Confusion matrix in percent of the row", alt, data, "image/svg+xml")
