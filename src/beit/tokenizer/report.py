"""The reports of tokenizer runs: curves, the use of the codebook, images and their codes."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from lightning_fabric import Fabric
from torch import Tensor

from beit.command.ending import again
from beit.data import batches
from beit.data.views import EvalView
from beit.draw.curves import curves
from beit.draw.numbers import short_number
from beit.draw.report import Item, Section, Table, write_report
from beit.draw.tokens import code_examples, token_maps, usage_plot
from beit.nn.dvae import DiscreteVAE
from beit.nn.tokenizer import VQKD
from beit.run.batches import open_shown, open_validation
from beit.run.directory import RunDirectory
from beit.run.images import warn_of_changes
from beit.run.log import last_validation, read_log
from beit.run.reading import Reading
from beit.tokenizer.codebook_log import Validated, count_codes
from beit.tokenizer.reconstructions import reconstructions

if TYPE_CHECKING:
    from beit.tokenizer import dvae as dvae_training
    from beit.tokenizer import vqkd as vqkd_training

    Config = dvae_training.Config | vqkd_training.Config

logger = logging.getLogger(__name__)

SHOWN = 12  # number of images and codes
GALLERY = 256  # number of images to take examples of codes from


@torch.no_grad()
def report_vqkd(
    directory: RunDirectory,
    config: vqkd_training.Config,
    fabric: Fabric,
    vqkd: VQKD,
    validated: Validated | None,
) -> list[Section]:
    """Write report.html of a VQ-KD run, and return its sections.

    Args:
        validated: the last validation; None without one
    """
    vqkd.eval()
    grid, K = vqkd.grid, vqkd.vocab_size
    panels = {
        "Loss": ["loss", "reconstruction", "val_reconstruction"],
        f"Perplexity, of {K} codes": ["perplexity", "val_perplexity"],
        "Share of codes in use": ["usage", "val_usage"],
        "Learning rate": ["rate"],
    }
    images = first_images(config, vqkd.config.encoder.image_size, GALLERY)
    with fabric.autocast():
        codes = vqkd.encode(images.to(fabric.device)).cpu()
    maps = token_maps(images[:SHOWN], codes[:SHOWN], grid, K, "Images and their codes.")
    examples = code_examples(images, codes, grid, SHOWN, "Patches that share a code.")
    sections = [
        *training_sections(directory, panels, validated),
        Section("What the codes mean", items=[maps, examples]),
    ]
    facts = {"teacher": config.teacher.source}
    shown = ("reconstruction", "usage", "perplexity")
    return written(directory, config, sections, facts, validated, shown)


@torch.no_grad()
def report_dvae(
    directory: RunDirectory,
    config: dvae_training.Config,
    fabric: Fabric,
    vae: DiscreteVAE,
    validated: Validated | None,
) -> list[Section]:
    """Write report.html of a run of the discrete VAE, and return its sections.

    Args:
        validated: the last validation; None without one
    """
    vae.eval()
    panels = {
        "Loss": ["loss", "reconstruction"],
        "PSNR of the validation set, dB": ["val_psnr"],
        "KL divergence from uniform, nats a place": ["kl", "val_kl"],
        f"Perplexity, of {vae.vocab_size} codes": ["perplexity", "val_perplexity"],
        "Share of codes in use": ["usage", "val_usage"],
        "Temperature": ["temperature"],
        "Weight of the divergence": ["kl_weight"],
        "Learning rate": ["rate"],
    }
    images = first_images(config, vae.image_size, SHOWN)
    codes = vae.encode(images.to(fabric.device))
    reconstructed = vae.decode_images(codes).cpu()
    pictures = reconstructions(images, reconstructed, "Images, and what their codes hold of them.")
    maps = token_maps(images, codes.cpu(), vae.grid, vae.vocab_size, "Images and their codes.")
    sections = [
        *training_sections(directory, panels, validated),
        Section("From images to codes and back", items=[pictures, maps]),
    ]
    facts = {"tokenizer": f"discrete VAE, {vae.vocab_size} codes"}
    shown = ("psnr", "ssim", "usage", "perplexity")
    return written(directory, config, sections, facts, validated, shown)


def last_validated(
    config: Config, directory: RunDirectory, fabric: Fabric, tokenizer: VQKD | DiscreteVAE
) -> Validated | None:
    """Read the metrics of a finished run's last validation, and count its codes again.

    Returns: None without a validation set
    """
    batches = open_validation(config, tokenizer.image_size, fabric)
    if batches is None:
        return None
    warn_of_changes(directory, {"data.validation": batches.source})
    reading = Reading(batches, fabric, config.data.max_unreadable, logger.warning)
    counts = count_codes(tokenizer, reading, fabric)
    return Validated(last_validation(directory.metrics_file), counts)


def first_images(config: Config, size: tuple[int, int], count: int) -> Tensor:
    """Read the first validation or, without a set, training images: (B, 3, H, W) uint8."""
    source = open_shown(config.data)
    return batches.first_images(source, EvalView(size, config.crop_ratio), count)


def training_sections(
    directory: RunDirectory, panels: Mapping[str, Sequence[str]], validated: Validated | None
) -> list[Section]:
    """Draw the curves of the log, and the use of the codebook on the validation set."""
    caption = "One point a logging interval, or a validation."
    items: list[Item] = [curves(read_log(directory.metrics_file), panels, caption)]
    sections = [Section("Training the tokenizer", items=items)]
    if validated is not None:
        rows = [
            (name.removeprefix("val_"), short_number(value))
            for name, value in validated.metrics.items()
        ]
        table = Table("Over the whole set.", ["figure", "value"], rows)
        plot = usage_plot(validated.counts.sum(dim=0), "How often each code is chosen.")
        sections.append(Section("The codebook on the validation set", items=[table, plot]))
    return sections


def written(
    directory: RunDirectory,
    config: Config,
    sections: list[Section],
    facts: Mapping[str, str],
    validated: Validated | None,
    shown: Sequence[str],
) -> list[Section]:
    """Write the page, with some metrics of the validation on top; return its sections."""
    facts = {
        "command": again("train-tokenizer", directory.path),
        "images": config.data.train,
        **facts,
        "seed": str(config.run.seed),
    }
    metrics = validated.metrics if validated else {}
    figures = {
        name: short_number(metrics[f"val_{name}"]) for name in shown if f"val_{name}" in metrics
    }
    write_report(directory.report_file, "Visual tokenizer", sections, facts, figures=figures)
    return sections
