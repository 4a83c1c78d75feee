"""How a classifier does on each class: accuracies, what is taken for what, and the whole matrix."""

from collections.abc import Sequence

from torch import Tensor

from beit.draw.axes import FAINT, LETTER, document, text
from beit.draw.colours import SERIES
from beit.draw.report import Item, Picture, Table

SHOWN = 50  # classes of a table
DRAWN = 40  # classes of a drawn matrix
_PLOT = 420.0  # side of the matrix
_NAME = 18  # letters of a class name beside it


def class_items(
    right: Tensor, total: Tensor, confusion: Tensor | None, names: Sequence[str]
) -> list[Item]:
    """Show all of it: right and total (Y,) as for `class_table`, confusion (Y, Y) if there is."""
    items: list[Item] = [class_table(right, total, names)]
    if confusion is not None:
        items.append(confusion_table(confusion, names))
        picture = confusion_picture(confusion, names)
        items += [] if picture is None else [picture]
    return items


def class_table(right: Tensor, total: Tensor, names: Sequence[str]) -> Table:
    """List the accuracy of each class, the worst first; of many classes the worst ones.

    Args:
        right: (Y,) images of each class that were classified rightly
        total: (Y,) images of each class
        names: of the classes
    """
    shares = (right.double() / total.clamp(min=1)).tolist()
    rows = [
        (name, 100 * share, count)
        for name, share, count in zip(names, shares, total.tolist(), strict=True)
        if count
    ]
    rows.sort(key=lambda row: row[1])
    which = f", the {SHOWN} worst of {len(rows)}" if len(rows) > SHOWN else ""
    return Table(f"Accuracy by class{which}", ["Class", "Accuracy, %", "Images"], rows[:SHOWN])


def confusion_table(confusion: Tensor, names: Sequence[str], count: int = 20) -> Table:
    """List what is most often taken for what: confusion (Y, Y), truth by row, guess by column."""
    Y = len(names)
    wrong = confusion.clone().fill_diagonal_(0)
    most = wrong.flatten().topk(min(count, Y * Y))
    rows = [
        (names[place // Y], names[place % Y], number)
        for number, place in zip(most.values.tolist(), most.indices.tolist(), strict=True)
        if number
    ]
    return Table("Most frequent confusions", ["Class", "Taken for", "Images"], rows)


def confusion_picture(confusion: Tensor, names: Sequence[str]) -> Picture | None:
    """Draw confusion (Y, Y), truth by row, guess by column, as shares of rows; None for many Y."""
    Y = len(names)
    if Y > DRAWN:
        return None
    shares = confusion / confusion.sum(dim=1, keepdim=True).clamp(min=1)  # (Y, Y)
    short = [name if len(name) <= _NAME else name[: _NAME - 1] + "…" for name in names]
    left, top, side = 12 + LETTER * max(map(len, short)), 34.0, _PLOT / Y
    parts = [text(0, 13, "Truth by row, guess by column; percent of the row", bold=True)]
    for row in range(Y):
        middle = top + (row + 0.5) * side
        parts.append(text(left - 6, middle + 4, short[row], anchor="end", colour=FAINT))
        number = str(row + 1)
        parts.append(
            text(left + (row + 0.5) * side, top - 5, number, anchor="middle", colour=FAINT)
        )
        for column in range(Y):
            share = float(shares[row, column])
            if share == 0:
                continue
            x, y = left + column * side, top + row * side
            parts.append(
                f'<rect x="{x:.1f}" y="{y:.1f}" width="{side:.1f}" height="{side:.1f}" '
                f'style="fill:{SERIES[0]};fill-opacity:{0.08 + 0.72 * share:.3f}"/>'
            )
            if side >= 24:
                label = f"{100 * share:.0f}"
                parts.append(text(x + side / 2, y + side / 2 + 4, label, anchor="middle"))
    mean = float(shares.diagonal()[confusion.sum(dim=1) > 0].mean())
    alt = f"Confusion matrix of {Y} classes; {100 * mean:.1f}% of a class right on average"
    body = "".join(parts)
    data = document(left + _PLOT + 6, top + _PLOT + 8, body)
    return Picture("Confusion matrix; columns are numbered as rows.", alt, data, "image/svg+xml")
