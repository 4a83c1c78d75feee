"""The table of an evaluation, its files and its report, with charts of accuracy on corruptions."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from beit.draw.charts import Line, line_chart
from beit.draw.classes import chance_words, class_items
from beit.draw.report import (
    Cell,
    Figure,
    Gallery,
    Item,
    Picture,
    Section,
    Table,
    link_to,
    write_report,
)
from beit.evaluation.classify import EVALUATED, TOP1
from beit.evaluation.metrics import by_class, class_confusion
from beit.evaluation.target_columns import Task
from beit.files import replacing, write_text

if TYPE_CHECKING:
    from beit.evaluation.evaluate import Config

FILE, IMAGES_FILE = "evaluate.json", "images.npz"
METRICS = {
    "top1": "Top-1, %",
    "top5": "Top-5, %",
    "mean_per_class": "Mean per class, %",
    "nll": "NLL",
    "ece": "ECE, %",
    "mean_corruption_error": "Mean corruption error, %",
    "mce": "mCE relative to the reference, %",
}
MEANINGS = {
    "nll": "mean negative log-likelihood of the true class; 0 is best",
    "ece": "expected calibration error: how far probabilities are from accuracies on average; "
    "0 is best",
}
MAX_CONFUSION = 1024  # largest number of classes whose confusions are counted
Record = Mapping[str, Any]  # the contents of evaluate.json
Accuracy = Mapping[str, Mapping[int, float]]  # in [0, 1] on corrupted images, by kind and severity


def format_metric(name: str, value: float) -> str:
    """Format a metric for people: shares in percent."""
    return f"{value:.4f}" if name == "nll" else f"{100 * value:.1f}"


def format_table(record: Record) -> str:
    """Lay out the metrics for a terminal; shares in percent."""
    images, corruptions = record["images"], record["corruptions"]
    lines = [f"{'Images':<34}{images['evaluated']:>9}"]
    if images["unreadable"]:
        lines.append(f"{'Unreadable, left out':<34}{len(images['unreadable']):>9}")
    for name, value in record["figures"].items():
        lines.append(f"{METRICS[name]:<34}{format_metric(name, value):>9}")
    if corruptions:
        severities = list(next(iter(corruptions["accuracy"].values())))
        heads = "".join(f"{f'sev. {severity}':>9}" for severity in severities)
        lines += ["", f"{'Top-1 on corrupted images, %':<34}{heads}{'error':>9}"]
        for kind, shares in corruptions["accuracy"].items():
            cells = "".join(f"{100 * share:>9.1f}" for share in shares.values())
            lines.append(f"{kind:<34}{cells}{100 * corruptions['kind_errors'][kind]:>9.1f}")
        if "reference" in corruptions:
            lines.append(f"The reference of mCE is {corruptions['reference']}.")
    return "\n".join([*lines, *record["notes"]])


def write(output: Path, config: "Config", record: Record, outcomes: Tensor, task: Task) -> None:
    """Write evaluate.json, images.npz and report.html into the new directory `output`."""
    output.mkdir(parents=True)
    evaluated, correct = ((outcomes[:, column] > 0).numpy() for column in (EVALUATED, TOP1))
    with replacing(output / IMAGES_FILE) as path, path.open("wb") as file:
        np.savez_compressed(file, seen=evaluated, right=correct)
    write_text(output / FILE, json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    mirrored = ", and mirrored" if config.flip else ""
    facts = {
        "Model": link_to(config.model, output / "report.html"),
        "Images": f"{config.data} ({record['images']['evaluated']})",
        "Set": config.dataset,
        "Logits compared": f"{record['compared_logits']} of {record['num_classes']}",
        "Image size": " x ".join(map(str, record["image_size"])),
        "Views": f"{config.crops}{mirrored}; crop ratio {config.crop_ratio:g}",
    }
    figures = {
        METRICS[name]: Figure(format_metric(name, n), MEANINGS.get(name, ""))
        for name, n in record["figures"].items()
    }
    if task.labels is not None:
        _, total = by_class(outcomes, task)
        beside = chance_words(float(total.max() / total.sum()))
        figures[METRICS["top1"]] = figures[METRICS["top1"]]._replace(beside=beside)
    title, sections = f"Evaluation of {config.model}", _sections(record, outcomes, task)
    summary = "\n\n".join(record["notes"])
    path = output / "report.html"
    write_report(path, title, sections, facts, figures=figures, summary=summary)


def _sections(record: Record, outcomes: Tensor, task: Task) -> list[Section]:
    """Draw calibration, classes and corruptions."""
    sections = [Section("Calibration", items=[calibration_plot(record["reliability"])])]
    if task.labels is not None:
        correct, total = by_class(outcomes, task)
        columns_are_classes = len(task.columns) == len(task.class_names) <= MAX_CONFUSION
        confusion = class_confusion(outcomes, task) if columns_are_classes else None
        items: list[Item] = class_items(correct, total, confusion, task.class_names)
        sections.append(Section("Class by class", items=items))
    if record["corruptions"]:
        sections.append(robustness_section({"this classifier": record}))
    return sections


def calibration_plot(reliability: Mapping[str, Sequence[float]]) -> Gallery:
    """Draw the accuracy of each bin of images by its mean confidence, beside the ideal."""
    bins = [reliability[name] for name in ("confidence", "accuracy", "number")]
    points = [(100 * c, 100 * accuracy) for c, accuracy, count in zip(*bins, strict=True) if count]
    ideal = [(confidence, confidence) for confidence, _ in points]
    lines = [Line("right", points), Line("perfectly calibrated", ideal)]
    title, x = "Share of images that are right", "confidence, %"
    values = "; ".join(f"{accuracy:.1f} at {confidence:.1f}" for confidence, accuracy in points)
    picture = Picture(
        "",
        f"{title}, in percent, by confidence in percent: {values}",
        line_chart(title, lines, x, unit="%"),
        "image/svg+xml",
    )
    return Gallery("15 bins of the likeliest class's probability.", [picture])


def robustness_section(records: Mapping[str, Record]) -> Section:
    """Draw accuracies on corrupted images; of a single result list them too."""
    accuracy = {
        name: {
            kind: {int(severity): share for severity, share in shares.items()}
            for kind, shares in record["corruptions"]["accuracy"].items()
        }
        for name, record in records.items()
    }
    clean = {name: record["figures"]["top1"] for name, record in records.items()}
    items: list[Item] = [robustness_plots(accuracy, clean)]
    if len(accuracy) == 1:
        items += [robustness_table(by_kind) for by_kind in accuracy.values()]
    return Section("Corrupted images", items=items)


def robustness_table(accuracy: Accuracy) -> Table:
    """List accuracy in percent by corruption and severity, and the mean error of each."""
    severities = sorted({severity for by_severity in accuracy.values() for severity in by_severity})
    rows: list[list[Cell]] = []
    for kind, shares in accuracy.items():
        values = [*(shares[s] for s in severities), 1 - sum(shares.values()) / len(shares)]
        rows.append([kind.replace("_", " "), *(f"{100 * value:.1f}" for value in values)])
    columns = ["Corruption", *(f"Severity {severity}" for severity in severities), "Mean error"]
    return Table("Accuracy on corrupted images, and mean error, in percent", columns, rows)


def robustness_plots(accuracy: Mapping[str, Accuracy], clean: Mapping[str, float]) -> Gallery:
    """Draw accuracy by severity: a chart for each corruption, a line for each classifier.

    Accuracy on the clean images, `clean` in [0, 1], is a dashed line. Both are by classifier.
    """
    kinds = dict.fromkeys(kind for by_kind in accuracy.values() for kind in by_kind)
    pictures = [_chart(kind, accuracy, clean) for kind in kinds]
    return Gallery("Accuracy in percent by severity; dashed: on clean images.", pictures)


def _chart(kind: str, accuracy: Mapping[str, Accuracy], clean: Mapping[str, float]) -> Picture:
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
    data = line_chart(
        title, lines, "severity", unit="%", limits=((1, 5), (0, 100)), plot_height=110
    )
    return Picture("", alt, data, "image/svg+xml")
