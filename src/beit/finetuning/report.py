"""The report of a fine-tuning run: the accuracy of each class, and curves."""

import logging

from beit.command.ending import run_facts
from beit.data.classes import Classes
from beit.draw.classes import chance_words, class_items, note_of_missed
from beit.draw.curves import curves
from beit.draw.names import name_of, value_of
from beit.draw.report import Figure, Link, Section, link_to, write_report
from beit.finetuning.config import Config
from beit.finetuning.validation import Validated
from beit.run.directory import RunDirectory
from beit.run.log import read_log

logger = logging.getLogger(__name__)

ADVICE = (
    "check the labels, then train longer (--optim.epochs), with a lower --optim.learning_rate, or "
    "with --balance 1 if there are few images of it"
)
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
    """Write report.html of a run, warn of classes that are never right, and return the sections.

    Args:
        head: description of the head's initial weights; empty if random
        step: of the kept weights
        validated: their validation; None without one
    """
    caption = "One point a logging interval or a validation."
    drawn = curves(read_log(directory.metrics_file), PANELS, caption)
    sections, note = [], ""
    if validated is not None:
        names = classes.names or tuple(map(str, range(classes.number)))
        right, total = validated.right, validated.total
        items = class_items(right, total, validated.confusion, names)
        if note := note_of_missed(right, total, names, "validation image", ADVICE):
            logger.warning(note)
        sections.append(Section("Class by class", items=items))
    sections.append(Section("Fine-tuning", items=drawn))
    chosen = ", chosen on the validation set" if validated and config.keep == "best" else ""
    start, page = link_to(config.init or "", directory.report_file), directory.report_file
    facts: dict[str, str | Link] = {
        **run_facts("finetune", directory.path, config),
        "start": start or "fresh weights",
        **({"carried over": head} if head else {}),
        "weights kept": f"those of step {step}{chosen}",
    }
    metrics = validated.metrics if validated else {}
    figures = {
        name_of(name.removeprefix("val_")): Figure(value_of(name, value))
        for name, value in metrics.items()
    }
    if validated is not None:
        del figures[name_of("chance")]
        beside = chance_words(metrics["val_chance"])
        figures[name_of("top1")] = figures[name_of("top1")]._replace(beside=beside)
    write_report(page, "Fine-tuning", sections, facts, figures=figures, summary=note)
    return sections
