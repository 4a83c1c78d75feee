"""How a classifier holds up on corrupted images: a table, and a small chart for each kind."""

from collections.abc import Mapping

from beit.draw.axes import FAINT, LETTER, Frame, Scale, document, line, text
from beit.draw.colours import SERIES
from beit.draw.report import Cell, Gallery, Picture, Table

BySeverity = Mapping[int, float]  # share of images that are right, in [0, 1]
WIDTH, PLOT_HEIGHT = 330, 110


def robustness_table(accuracy: Mapping[str, BySeverity]) -> Table:
    """List accuracy in percent by kind and severity, and each kind's mean error."""
    severities = sorted({severity for by_severity in accuracy.values() for severity in by_severity})
    rows: list[list[Cell]] = []
    for kind, shares in accuracy.items():
        error = 1 - sum(shares.values()) / len(shares)
        cells: list[Cell] = [f"{100 * shares[severity]:.2f}" for severity in severities]
        rows.append([kind.replace("_", " "), *cells, f"{100 * error:.2f}"])
    columns = ["Corruption", *(f"Severity {severity}" for severity in severities), "Mean error"]
    return Table("Accuracy on corrupted images, and mean error, in percent", columns, rows)


def robustness_plots(
    accuracy: Mapping[str, Mapping[str, BySeverity]], clean: Mapping[str, float]
) -> Gallery:
    """Draw accuracy over severity for each kind, all on one scale, a line for each classifier.

    accuracy: by classifier, kind and severity; clean: of each classifier on the images as they are,
    a dashed line.
    """
    kinds = list(dict.fromkeys(kind for by_kind in accuracy.values() for kind in by_kind))
    pictures = []
    for kind in kinds:
        lines = {name: by_kind[kind] for name, by_kind in accuracy.items() if kind in by_kind}
        pictures.append(_panel(kind, lines, list(accuracy), clean))
    caption = "Accuracy in percent by severity; dashed: on the images as they are."
    return Gallery(caption, pictures)


def _panel(
    kind: str, lines: Mapping[str, BySeverity], names: list[str], clean: Mapping[str, float]
) -> Picture:
    title = kind.replace("_", " ").capitalize()
    parts, top = [text(0, 13, title, bold=True)], 24.0
    if len(names) > 1:
        for place, name in enumerate(names):
            top += 15
            parts.append(line(0, top - 4, 14, top - 4, SERIES[place % len(SERIES)]))
            parts.append(text(19, top, name[-int((WIDTH - 20) / LETTER) :], colour=FAINT))
        top += 12
    frame = Frame(Scale(1, 5), Scale(0, 100), 34, top, WIDTH - 46, PLOT_HEIGHT)
    parts.append(frame.drawing("severity"))
    told = []
    for name, shares in lines.items():
        colour = SERIES[names.index(name) % len(SERIES)]
        level = frame.at(1, 100 * clean[name])[1]
        parts.append(line(frame.left, level, frame.left + frame.width, level, colour, "4 3"))
        places = [frame.at(severity, 100 * share) for severity, share in sorted(shares.items())]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
        dots = "".join(f"M{x:.1f} {y:.1f}h0" for x, y in places)
        style = f'stroke-linejoin="round" stroke-linecap="round" style="stroke:{colour}"'
        parts.append(f'<path d="M{path}" stroke-width="1.6" {style}/>')
        parts.append(f'<path d="{dots}" stroke-width="4.5" {style}/>')
        shown = ", ".join(f"{100 * share:.1f}" for _, share in sorted(shares.items()))
        told.append(f"{name} {shown} (clean {100 * clean[name]:.1f})")
    alt = f"{title}, accuracy by severity in percent: {'; '.join(told)}"
    data = document(WIDTH, top + PLOT_HEIGHT + 36, "".join(parts))
    return Picture("", alt, data, "image/svg+xml")
