"""The report of a fine-tuning run: curves, and the accuracy of each class."""

from beit.command.ending import again
from beit.data.classes import Classes
from beit.draw.classes import class_items
from beit.draw.curves import curves
from beit.draw.numbers import short_number
from beit.draw.report import Section, write_report
from beit.finetuning.config import Config
from beit.finetuning.validation import Validated
from beit.run.directory import RunDirectory
from beit.run.log import read_log

PANELS = {
    "Loss": ["loss", "val_loss"],
    "Validation accuracy": ["val_top1", "val_balanced", "val_top5"],
    "Learning rate": ["rate"],
}


def report(
    directory: RunDirectory,
    config: Config,
    classes: Classes,
    head: str,
    step: int,
    validated: Validated | None,
) -> list[Section]:
    """Write report.html of a run, and return its sections.

    Args:
        head: description of the head's initial weights; empty if random
        step: of the kept weights
        validated: their validation; None without one
    """
    caption = "One point a logging interval or a validation."
    drawn = curves(read_log(directory.metrics_file), PANELS, caption)
    sections = [Section("Fine-tuning", items=[drawn])]
    if validated is not None:
        names = classes.names or tuple(map(str, range(classes.number)))
        items = class_items(validated.right, validated.total, validated.confusion, names)
        sections.append(Section("Class by class", items=items))
    chosen = ", chosen on the validation set" if validated and config.keep == "best" else ""
    facts = {
        "command": again("finetune", directory.path),
        "images": config.data.train,
        "start": (config.init or "fresh weights") + (head and f"; {head}"),
        "weights kept": f"those of step {step}{chosen}",
        "seed": str(config.run.seed),
    }
    metrics = validated.metrics if validated else {}
    figures = {name.removeprefix("val_"): short_number(value) for name, value in metrics.items()}
    write_report(directory.report_file, "Fine-tuning", sections, facts, figures=figures)
    return sections
