"""The report of a segmentation run: some images, each class, and curves."""

import logging

from beit.command.ending import run_facts
from beit.draw.classes import note_of_missed
from beit.draw.curves import curves
from beit.draw.names import name_of, value_of
from beit.draw.report import Link, Section, link_to, write_report
from beit.nn.confusion import map_figures
from beit.run.directory import RunDirectory
from beit.run.log import read_log
from beit.segmentation.config import Config
from beit.segmentation.label_maps import LabelMaps
from beit.segmentation.pictures import example_picture, iou_table
from beit.segmentation.validation import Validated

logger = logging.getLogger(__name__)

ADVICE = (
    "check the label maps, then train longer (--optim.steps), with a lower --optim.learning_rate, "
    "or with more --head.channels"
)
PANELS = {
    "Loss": ["loss", "auxiliary_loss"],
    "Validation": ["val_miou", "val_mean_accuracy", "val_pixel_accuracy"],
    "Learning rate": ["rate"],
}


def report(
    directory: RunDirectory,
    config: Config,
    source: LabelMaps,
    transferred: str,
    step: int,
    validated: Validated | None,
) -> list[Section]:
    """Write report.html of a run, warn of classes with an IoU of 0, and return the sections.

    Args:
        source: training images, with the class names
        transferred: description of the parts carried over from a segmenter; empty for none
        step: of the kept weights
        validated: their validation; None without one
    """
    caption = "One point a logging interval or a validation."
    drawn = curves(read_log(directory.metrics_file), PANELS, caption)
    sections, note = [], ""
    if validated is not None:
        confusion, names = validated.confusion, source.class_names
        right, total = confusion.diagonal(), confusion.sum(dim=1)
        table = iou_table(map_figures(confusion), total, names)
        if note := note_of_missed(right, total, names, "validation pixel", ADVICE):
            logger.warning(note)
        if validated.examples:
            picture = example_picture(validated.examples, names, source.palette)
            sections.append(Section("Examples", items=[picture]))
        sections.append(Section("Class by class", items=[table]))
    sections.append(Section("Segmentation", items=drawn))
    chosen = ", chosen on the validation set" if validated and config.keep == "best" else ""
    start, page = link_to(config.init or "", directory.report_file), directory.report_file
    facts: dict[str, str | Link] = {
        **run_facts("segment", directory.path, config),
        "start": start or "fresh weights",
        **({"carried over": transferred} if transferred else {}),
        "weights kept": f"those of step {step}{chosen}",
    }
    metrics = validated.metrics if validated else {}
    figures = {
        name_of(name.removeprefix("val_")): value_of(name, value) for name, value in metrics.items()
    }
    write_report(page, "Segmentation", sections, facts, figures=figures, summary=note)
    return sections
