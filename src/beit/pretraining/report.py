"""The report of a pretraining run: curves, and masked images with their predictions."""

import torch
from lightning_fabric import Fabric

from beit.command.ending import again
from beit.data.batches import first_images
from beit.data.order import step_generator
from beit.data.views import EvalView
from beit.draw.curves import curves
from beit.draw.numbers import short_number
from beit.draw.report import Gallery, Section, write_report
from beit.nn.masking import draw_masks
from beit.nn.mim import MaskedImageModel
from beit.nn.target_metrics import Target
from beit.pretraining.config import Config
from beit.pretraining.pictures import predictions
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
    sections = [
        Section("Pretraining", items=[curves(records, panels(config), caption)]),
        Section("What it predicts", items=[pictures]),
    ]
    tokens = config.target.kind == "tokens"
    facts = {
        "command": again("pretrain", directory.path),
        "images": config.data.train,
        "tokenizer" if tokens else config.target.kind: config.tokenizer or config.target.source,
        "seed": str(config.run.seed),
    }
    numbers = {name.removeprefix("val_"): short_number(value) for name, value in metrics.items()}
    title = "Masked image modelling"
    write_report(directory.report_file, title, sections, facts, figures=numbers)
    return sections


def panels(config: Config) -> dict[str, list[str]]:
    """Return the metrics of each panel of curves, by its title."""
    metric, title = {
        "tokens": ("accuracy", "Accuracy"),
        "pixels": ("explained", "Explained share"),
        "features": ("cosine", "Cosine"),
    }[config.target.kind]
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
    view = EvalView(backbone.image_size, config.crop_ratio)
    images = first_images(source, view, SHOWN)
    generator = step_generator(config.run.seed, 0, "validation masks")
    masked = draw_masks(config.mask, len(images), backbone.grid, generator)
    with fabric.autocast():
        targets = target.of(images.to(fabric.device)).cpu()
        logits = mim(images.to(fabric.device), masked.to(fabric.device)).logits.cpu()
    return predictions(target, images, masked, logits, targets, backbone.grid)
