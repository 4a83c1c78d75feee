"""The report of a segmentation run: curves, each class, and some images."""

from beit.command.ending import again
from beit.draw.curves import curves
from beit.draw.numbers import short_number
from beit.draw.report import Section, write_report
from beit.nn.confusion import map_figures
from beit.run.directory import RunDirectory
from beit.run.log import read_log
from beit.segmentation.config import Config
from beit.segmentation.label_maps import LabelMaps
from beit.segmentation.pictures import example_picture, iou_table
from beit.segmentation.validation import Validated

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
    """Write report.html of a run, and return its sections.

    Args:
        source: training images, with the class names
        transferred: description of the parts carried over from a segmenter; empty for none
        step: of the kept weights
        validated: their validation; None without one
    """
    caption = "One point a logging interval or a validation."
    drawn = curves(read_log(directory.metrics_file), PANELS, caption)
    sections = [Section("Segmentation", items=[drawn])]
    if validated is not None:
        confusion, names = validated.confusion, source.class_names
        table = iou_table(map_figures(confusion), confusion.sum(dim=1), names)
        sections.append(Section("Class by class", items=[table]))
        if validated.examples:
            picture = example_picture(validated.examples, names, source.palette)
            sections.append(Section("Examples", items=[picture]))
    chosen = ", chosen on the validation set" if validated and config.keep == "best" else ""
    facts = {
        "command": again("segment", directory.path),
        "images": config.data.train,
        "start": (config.init or "fresh weights") + (transferred and f"; {transferred}"),
        "weights kept": f"those of step {step}{chosen}",
        "seed": str(config.run.seed),
    }
    metrics = validated.metrics if validated else {}
    figures = {name.removeprefix("val_"): short_number(value) for name, value in metrics.items()}
    write_report(directory.report_file, "Segmentation", sections, facts, figures=figures)
    return sections
