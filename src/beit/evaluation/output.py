"""The table of an evaluation, its files and its report."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from beit.draw.classes import class_items
from beit.draw.curves import curves
from beit.draw.report import Item, Section, write_report
from beit.evaluation.classify import EVALUATED, TOP1
from beit.evaluation.compare import (
    FILE,
    IMAGES_FILE,
    METRICS,
    format_metric,
    robustness_section,
)
from beit.evaluation.metrics import by_class, class_confusion
from beit.evaluation.target_columns import Task
from beit.files import replacing, write_text

if TYPE_CHECKING:
    from beit.evaluation.evaluate import Config

MAX_CONFUSION = 1024  # largest number of classes whose confusions are counted


def format_table(record: Mapping[str, Any]) -> str:
    """Lay out the metrics for a terminal; shares in percent."""
    images = record["images"]
    lines = [f"{'Images':<34}{images['evaluated']:>9}"]
    if images["unreadable"]:
        lines.append(f"{'Unreadable, left out':<34}{len(images['unreadable']):>9}")
    for name, value in record["figures"].items():
        lines.append(f"{METRICS[name]:<34}{format_metric(name, value):>9}")
    corruptions = record["corruptions"]
    if corruptions:
        severities = list(next(iter(corruptions["accuracy"].values())))
        heads = "".join(f"{f'sev. {severity}':>9}" for severity in severities)
        lines += ["", f"{'Top-1 on corrupted images, %':<34}{heads}{'error':>9}"]
        for kind, shares in corruptions["accuracy"].items():
            cells = "".join(f"{100 * share:>9.2f}" for share in shares.values())
            error = 100 * corruptions["kind_errors"][kind]
            lines.append(f"{kind:<34}{cells}{error:>9.2f}")
        if "reference" in corruptions:
            lines.append(f"The reference of mCE is {corruptions['reference']}.")
    return "\n".join([*lines, *record["notes"]])


def write(
    output: Path, config: "Config", record: Mapping[str, Any], outcomes: Tensor, task: Task
) -> None:
    """Write evaluate.json, images.npz and report.html into the new directory `output`."""
    output.mkdir(parents=True)
    evaluated, correct = ((outcomes[:, column] > 0).numpy() for column in (EVALUATED, TOP1))
    with replacing(output / IMAGES_FILE) as path, path.open("wb") as file:
        np.savez_compressed(file, seen=evaluated, right=correct)
    write_text(output / FILE, json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    facts = {
        "Model": config.model,
        "Images": f"{config.data} ({record['images']['evaluated']})",
        "Set": config.dataset,
        "Logits compared": f"{record['compared_logits']} of {record['num_classes']}",
        "Image size": " x ".join(map(str, record["image_size"])),
        "Views": f"{config.crops}{', and mirrored' if config.flip else ''}; "
        f"crop ratio {config.crop_ratio:g}",
    }
    figures = {
        METRICS[name]: format_metric(name, value) for name, value in record["figures"].items()
    }
    write_report(
        output / "report.html",
        f"Evaluation of {config.model}",
        _sections(record, outcomes, task),
        facts,
        figures=figures,
        summary="\n\n".join(record["notes"]),
    )


def _sections(record: Mapping[str, Any], outcomes: Tensor, task: Task) -> list[Section]:
    """Draw calibration, classes and corruptions."""
    bins = record["reliability"]
    points = [
        {"confidence": confidence, "accuracy": accuracy, "perfectly calibrated": confidence}
        for confidence, accuracy, count in zip(
            bins["confidence"], bins["accuracy"], bins["number"], strict=True
        )
        if count
    ]
    panel = {"Share of images that are right": ["accuracy", "perfectly calibrated"]}
    caption = "15 bins of the likeliest class's probability."
    sections = [Section("Calibration", items=[curves(points, panel, caption, x="confidence")])]
    if task.labels is not None:
        correct, total = by_class(outcomes, task)
        columns_are_classes = len(task.columns) == len(task.class_names) <= MAX_CONFUSION
        confusion = class_confusion(outcomes, task) if columns_are_classes else None
        items: list[Item] = class_items(correct, total, confusion, task.class_names)
        sections.append(Section("Class by class", items=items))
    if record["corruptions"]:
        sections.append(robustness_section({"this classifier": record}))
    return sections
