"""The report of a pretraining run: masked images with their predictions, figures, curves."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning_fabric import Fabric

from beit.command.ending import run_facts
from beit.data.batches import first_images
from beit.data.order import step_generator
from beit.data.views import EvalViews
from beit.draw.canvas import shown_facts
from beit.draw.curves import curves
from beit.draw.names import name_of, percent, value_of
from beit.draw.numbers import short_number
from beit.draw.report import Figure, Gallery, Section, link_to, with_lead, write_report
from beit.nn.masking import draw_masks
from beit.nn.mim import MaskedImageModel
from beit.nn.target import Target
from beit.pretraining.config import Config
from beit.pretraining.pictures import predictions
from beit.pretraining.targets import MAIN_METRICS
from beit.run.batches import open_shown
from beit.run.directory import RunDirectory
from beit.run.log import read_log

SHOWN = 12  # masked images


def report(
    directory: RunDirectory,
    config: Config,
    fabric: Fabric,
    mim: MaskedImageModel,
    target: Target,
    metrics: dict[str, float],
) -> list[Section]:
    """Write report.html of a run, and return its sections.

    Args:
        metrics: of the last validation; empty without one
    """
    records = read_log(directory.metrics_file)
    caption = "One point a logging interval, a validation or a check."
    pictures = predicted_images(config, fabric, mim, target)
    drawn = curves(records, panels(config), caption)
    sections = [Section("What it predicts", items=[pictures]), Section("Pretraining", items=drawn)]
    tokens = config.target.kind == "tokens"
    facts = {
        **run_facts("pretrain", directory.path, config),
        **shown_facts(config.model.backbone.image_channels),
        "tokenizer" if tokens else config.target.kind: link_to(
            config.tokenizer or config.target.source, directory.report_file
        ),
    }
    summary = (
        "A part of each image is hidden, and the model predicts what is there. What it needs for "
        "that is what its features are good for: the prediction itself need not be exact."
    )
    lead, shown = with_lead(sections)
    write_report(
        directory.report_file,
        "Masked image modelling",
        shown,
        facts,
        summary=summary,
        lead=lead,
        figures=main_figures(metrics, records, target.width),
    )
    return sections


def main_figures(
    metrics: Mapping[str, float], records: Sequence[Mapping[str, Any]], num_codes: int
) -> dict[str, Figure]:
    """Return the main figures of a validation, each with that of chance or of an untrained model.

    Args:
        metrics: of the last validation
        records: of the log, with checks of nearest neighbours
        num_codes: K
    """
    figures = {}
    if "val_rank" in metrics:
        values = {name.removeprefix("val_"): value for name, value in metrics.items()}
        chance = f"chance {percent(values['chance'])}: always the most frequent code"
        figures["masked tokens exactly right"] = Figure(percent(values["accuracy"]), chance)
        place = Figure(short_number(values["rank"]), f"of {num_codes} codes, by probability")
        figures["median rank of the true code"] = place
        first = Figure(percent(values["first5"]), f"chance {percent(values['first5_chance'])}")
        figures["true code among the first five"] = first
        near = Figure(f"{values['wrong_cosine']:.3f}", f"random {values['random_cosine']:.3f}")
        figures["cosine of a wrong code to the true one"] = near
    else:
        for metric, _, _ in MAIN_METRICS.values():
            if (value := metrics.get(f"val_{metric}")) is not None:
                figures[name_of(metric)] = Figure(value_of(metric, value))
    checks = [record for record in records if "knn_cls" in record]
    if checks:
        before, after = checks[0], checks[-1]
        for key in ("knn_cls", "knn_mean"):
            untrained = f"untrained {percent(before[key])}" if before["step"] == 0 else ""
            figures[f"{name_of(key)}: right class"] = Figure(percent(after[key]), untrained)
    return figures


def panels(config: Config) -> dict[str, list[str]]:
    """Return the metrics of each panel of curves, by its title."""
    metric, title, _ = MAIN_METRICS[config.target.kind]
    shown = {
        "Loss": ["patch_loss", "cls_loss"],
        f"{title} at {config.predict} patches": [metric, f"val_{metric}", f"val_cls_{metric}"],
        "Learning rate": ["rate"],
    }
    return shown | ({"k-NN accuracy": ["knn_cls", "knn_mean"]} if config.check.every else {})


@torch.no_grad()
def predicted_images(
    config: Config, fabric: Fabric, mim: MaskedImageModel, target: Target
) -> Gallery:
    """Draw the first validation images, masked, with the model's predictions."""
    mim.eval()
    source, backbone = open_shown(config.data), mim.config.backbone
    sizes = backbone.image_size, target.image_size
    both = EvalViews(*sizes, config.crop_ratio, target.lanczos).both
    images, target_images = (first_images(source, view, SHOWN) for view in both)
    generator = step_generator(config.run.seed, 0, "validation masks")
    masked = draw_masks(config.mask, len(images), backbone.grid, generator)
    with fabric.autocast():
        targets = target.of(target_images.to(fabric.device)).cpu()
        logits = mim(images.to(fabric.device), masked.to(fabric.device)).logits.cpu()
    return predictions(target, images, masked, logits, targets, backbone.grid)
