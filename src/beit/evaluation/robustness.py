"""Accuracy of classifiers on corrupted images: a table, and a chart for each corruption."""

from collections.abc import Mapping

from beit.draw.charts import Line, line_chart
from beit.draw.report import Cell, Gallery, Picture, Table

BySeverity = Mapping[int, float]  # accuracy in [0, 1]


def robustness_table(accuracy: Mapping[str, BySeverity]) -> Table:
    """List accuracy in percent by corruption and severity, and the mean error of each."""
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
    """Draw accuracy by severity: a chart for each corruption, a line for each classifier.

    Args:
        accuracy: by classifier, corruption and severity
        clean: accuracy in [0, 1] of each classifier on the clean images, drawn as a dashed line
    """
    kinds = dict.fromkeys(kind for by_kind in accuracy.values() for kind in by_kind)
    pictures = [_chart(kind, accuracy, clean) for kind in kinds]
    return Gallery("Accuracy in percent by severity; dashed: on clean images.", pictures)


def _chart(
    kind: str, accuracy: Mapping[str, Mapping[str, BySeverity]], clean: Mapping[str, float]
) -> Picture:
    title = kind.replace("_", " ").capitalize()
    lines, descriptions = [], []
    for name, by_kind in accuracy.items():
        points = [(s, 100 * share) for s, share in sorted(by_kind.get(kind, {}).items())]
        label, level = name if len(accuracy) > 1 else "", 100 * clean[name]
        lines.append(Line(label, points, level if points else None))
        if points:
            words = ", ".join(f"{share:.1f}" for _, share in points)
            descriptions.append(f"{name} {words} (clean {level:.1f})")
    alt = f"{title}, accuracy by severity in percent: {'; '.join(descriptions)}"
    data = line_chart(title, lines, "severity", limits=((1, 5), (0, 100)), plot_height=110)
    return Picture("", alt, data, "image/svg+xml")
