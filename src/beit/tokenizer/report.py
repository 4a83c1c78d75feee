"""The reports of tokenizer runs: curves, the use of the codebook, images and their codes."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from lightning_fabric import Fabric
from torch import Tensor

from beit.command.ending import run_facts
from beit.data import batches
from beit.data.views import EvalView
from beit.draw.canvas import shown_facts
from beit.draw.components import codebook_colours
from beit.draw.curves import curves
from beit.draw.names import name_of, value_of
from beit.draw.report import Figure, Section, Table, with_lead, write_report
from beit.draw.tokens import code_examples, token_maps, usage_plot
from beit.nn.code_statistics import code_vectors
from beit.nn.dvae import DiscreteVAE
from beit.nn.tokenizer import VQKD
from beit.run.batches import open_shown, open_validation
from beit.run.directory import RunDirectory
from beit.run.finished import last_validation
from beit.run.images import warn_of_changes
from beit.run.log import read_log
from beit.run.reading import Reading
from beit.tokenizer.codebook_log import CodeCounts, Validated
from beit.tokenizer.reconstructions import reconstructions
from beit.weights.file import image_channels

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
    colours = codebook_colours(code_vectors(vqkd))
    maps = token_maps(images[:SHOWN], codes[:SHOWN], grid, colours, "Images and their codes.")
    examples = code_examples(images, codes, grid, SHOWN, "Patches that share a code.")
    sections = [
        Section("What the codes mean", items=[maps, examples]),
        *training_sections(directory, panels, validated),
    ]
    facts = {"teacher": config.teacher.source}
    summary = (
        f"Each patch of an image gets one of {K} codes. A teacher's features of the patch can be "
        "told from its code, so that patches with the same code mean much the same to the teacher."
    )
    return written(directory, config, sections, facts, summary, main_figures(validated, K))


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
    colours, K = codebook_colours(code_vectors(vae)), vae.vocab_size
    maps = token_maps(images, codes.cpu(), vae.grid, colours, "Images and their codes.")
    sections = [
        Section("From images to codes and back", items=[pictures, maps]),
        *training_sections(directory, panels, validated),
    ]
    facts = {"tokenizer": f"discrete VAE, {K} codes"}
    summary = f"Each place of an image gets one of {K} codes; the image is painted again from them."
    return written(directory, config, sections, facts, summary, main_figures(validated, K))


@torch.no_grad()
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
    counts = CodeCounts(tokenizer, fabric)
    for batch in reading:
        with fabric.autocast():
            counts.add(tokenizer.encode(batch.images))
    return Validated(last_validation(directory.metrics_file), counts.total().cpu())


def first_images(config: Config, size: tuple[int, int], count: int) -> Tensor:
    """Read the first validation or, without a set, training images: (B, 3, H, W) uint8."""
    source = open_shown(config.data)
    return batches.first_images(source, EvalView(size, config.crop_ratio), count)


def training_sections(
    directory: RunDirectory, panels: Mapping[str, Sequence[str]], validated: Validated | None
) -> list[Section]:
    """Draw the curves of the log, and the use of the codebook on the validation set."""
    caption = "One point a logging interval, or a validation."
    items = curves(read_log(directory.metrics_file), panels, caption)
    sections = []
    if validated is not None:
        rows = [
            (name_of(name.removeprefix("val_")), value_of(name, value))
            for name, value in validated.metrics.items()
        ]
        table = Table("Over the whole set.", ["figure", "value"], rows)
        plot = usage_plot(validated.counts.sum(dim=0), "How often each code is chosen.")
        sections.append(Section("The codebook on the validation set", items=[plot, table]))
    return [*sections, Section("Training the tokenizer", items=items)]


def main_figures(validated: Validated | None, num_codes: int) -> dict[str, Figure]:
    """Return the main figures of a validation, beside what an even use of codes would give."""
    beside = {
        "usage": f"of {num_codes}",
        "perplexity": f"evenly used: {num_codes}",
        "reconstruction": "1 minus the cosine to the teacher's features",
        "psnr": "",
        "ssim": "1 for equal images",
    }
    metrics = validated.metrics if validated else {}
    return {
        name_of(name): Figure(value_of(name, metrics[f"val_{name}"]), words)
        for name, words in beside.items()
        if f"val_{name}" in metrics and not (name == "reconstruction" and "val_psnr" in metrics)
    }


def written(
    directory: RunDirectory,
    config: Config,
    sections: list[Section],
    facts: Mapping[str, str],
    summary: str,
    figures: Mapping[str, Figure],
) -> list[Section]:
    """Write the page, some pictures of the first gallery first of all; return its sections."""
    facts = {**run_facts("train-tokenizer", directory.path, config), **facts}
    facts |= shown_facts(image_channels(config.model))
    title, page = "Visual tokenizer", directory.report_file
    lead, shown = with_lead(sections)
    write_report(page, title, shown, facts, summary=summary, lead=lead, figures=figures)
    return sections
