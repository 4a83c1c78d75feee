"""Metrics of an evaluated segmenter: record, table, files and report."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from beit.draw.report import Section, write_report
from beit.files import replacing, write_text
from beit.nn.confusion import map_figures
from beit.segmentation.label_classes import default_palette
from beit.segmentation.pictures import Palette, example_picture, iou_table
from beit.segmentation.validation import Example

if TYPE_CHECKING:
    from beit.segmentation.evaluate import Config

FILE, CONFUSION_FILE = "evaluate.json", "confusion.npz"
MAX_ROWS = 20  # classes in the table for the terminal
METRICS = {
    "miou": "mIoU, %",
    "mean_accuracy": "Mean accuracy of the classes, %",
    "pixel_accuracy": "Pixel accuracy, %",
}


def class_metrics(confusion: Tensor, names: Sequence[str]) -> dict[str, Any]:
    """Compute metrics over all pixels and of each class from confusion (Y, Y); nan as None."""
    metrics, pixels = map_figures(confusion), confusion.sum(dim=1).tolist()
    classes = [
        {"name": name, "iou": _or_none(iou), "accuracy": _or_none(accuracy), "pixels": count}
        for name, iou, accuracy, count in zip(
            names, metrics.iou.tolist(), metrics.accuracy.tolist(), pixels, strict=True
        )
    ]
    overall = {name: _or_none(getattr(metrics, name)) for name in METRICS}
    return {"figures": overall, "classes": classes}


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value


def format_table(record: dict[str, Any]) -> str:
    """Lay out the metrics for a terminal, in percent; of many classes only the worst."""
    images = record["images"]
    lines = [f"{'Images':<40}{images['evaluated']:>9}"]
    if images["unreadable"]:
        lines.append(f"{'Unreadable, left out':<40}{len(images['unreadable']):>9}")
    for name, value in record["figures"].items():
        lines.append(f"{METRICS[name]:<40}{_percent(value):>9}")
    present = [row for row in record["classes"] if row["iou"] is not None]
    present.sort(key=lambda row: row["iou"])
    many = len(present) > MAX_ROWS
    which = f"Class, the {MAX_ROWS} worst of {len(present)}" if many else "Class"
    lines += ["", f"{which:<40}{'IoU, %':>9}{'acc., %':>9}{'pixels':>12}"]
    for row in present[:MAX_ROWS]:
        figures = f"{_percent(row['iou']):>9}{_percent(row['accuracy']):>9}{row['pixels']:>12}"
        lines.append(f"{row['name'][:39]:<40}{figures}")
    return "\n".join(lines)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2f}"


def write(
    output: Path,
    config: "Config",
    record: dict[str, Any],
    confusion: Tensor,
    examples: Sequence[Example],
    names: Sequence[str],
    palette: Palette | None,
) -> None:
    """Write evaluate.json, confusion.npz and report.html into the new directory `output`."""
    output.mkdir(parents=True)
    with replacing(output / CONFUSION_FILE) as path, path.open("wb") as file:
        np.savez_compressed(file, confusion=confusion.numpy())
    write_text(output / FILE, json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    views = config.views
    view = "the whole image resized to one window"
    if views.mode == "slide":
        view = "windows, scales " + ", ".join(f"{scale:g}" for scale in views.scales)
    facts = {
        "Model": config.model,
        "Images": f"{config.data} ({record['images']['evaluated']})",
        "Window": " x ".join(map(str, record["window"])),
        "Views": view + (", and mirrored" if views.flip else ""),
    }
    figures = {METRICS[name]: _percent(value) for name, value in record["figures"].items()}
    table = iou_table(map_figures(confusion), confusion.sum(dim=1), names)
    sections = [Section("Class by class", items=[table])]
    if examples:
        palette = palette or default_palette(len(names))
        sections.append(Section("Examples", items=[example_picture(examples, names, palette)]))
    title = f"Evaluation of {config.model}"
    write_report(output / "report.html", title, sections, facts, figures=figures)
