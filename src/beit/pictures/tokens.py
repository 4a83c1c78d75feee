"""Visualising tokens: the codes of images, their predictions by a model, what they decode to.

For a tokenizer: each image with its token map; the image painted from its tokens, if the tokenizer
has an image decoder; else the features of its decoder, beside the teacher's. For a pretraining run
also the masked input and the predicted tokens with their probabilities. The colour of a code is its
place in the codebook: similar codes have similar colours.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from beit.command.ending import Ending, opened
from beit.draw.components import codebook_colours
from beit.draw.report import Item, Section, link_to, write_report
from beit.nn.code_statistics import code_vectors
from beit.nn.dalle import DalleTokenizer
from beit.nn.dvae import DiscreteVAE
from beit.nn.masking import MaskConfig
from beit.nn.targets import TokenTarget
from beit.nn.tokenizer import VQKD
from beit.pictures.images import check_output, chosen_images, left_out_tables
from beit.pictures.token_figures import (
    Predictions,
    feature_section,
    prediction_section,
    summary_figures,
    token_section,
    token_table,
)
from beit.pictures.token_models import (
    Models,
    open_models,
    open_teacher,
    predict_tokens,
    sample_masks,
)
from beit.run.device import DeviceConfig
from beit.run.launch import launch
from beit.weights.bands import check_bands
from beit.weights.teachers import Teacher
from beit.wording import amount


@dataclass(frozen=True)
class Config:
    """Whose tokens to draw, on which images.

    Attributes:
        model: a tokenizer, or a run of pretrain that predicts tokens: a run directory, a weights
            file, published:NAME or hf://OWNER/NAME
        data: images: a folder, a table or another source (docs/data.md), or a part: folder[:90%];
            image files as [a.jpg,b.png]; @FILE that lists them, one per line
        output: a new folder for the figures and report.html
        limit: number of images to draw, a fixed random subset
        tokenizer: tokenizer of a pretrained model; empty for the one that its run names
        teacher: teacher whose features are shown beside the decoder's: run for the one that the
            tokenizer's run names, or a source like train-tokenizer's teacher.source; empty for none
        mask: which patches are hidden; null for the mask of the run, else 40% in blocks
        seed: seed of the masks
        image_size: side or [height, width], for a model whose file does not contain it; else null
        num_heads: attention heads, if the file does not contain them and a head is not 64 wide
        crop_ratio: side of the centre crop over the shorter side; null for that of the model's
            training, else 1, the whole image (beit embed: 0.875)
        device: device and precision of the models
    """

    model: str
    data: str | list[str]
    output: str
    limit: int = 6
    tokenizer: str = ""
    teacher: str = ""
    mask: MaskConfig | None = None
    seed: int = 0
    image_size: int | tuple[int, int] | None = None
    num_heads: int | None = None
    crop_ratio: float | None = None
    device: DeviceConfig = field(default_factory=DeviceConfig)


class Result(NamedTuple):
    """The page, and the number of images; None in all processes but the first."""

    report: Path
    images: int | None


def run(config: Config) -> Result:
    """Draw the tokens of the chosen images, and write the page."""
    output = Path(config.output)
    check_output(output, "tokens")
    fabric = launch(config.device)
    report = output / "report.html"
    if not fabric.is_global_zero:
        return Result(report, None)
    sizes = {"image_size": config.image_size, "num_heads": config.num_heads}
    models = open_models(config.model, config.tokenizer, fabric.device, sizes)
    teacher = open_teacher(config.teacher, models) if config.teacher else None
    if config.tokenizer:
        check_bands(config.tokenizer, config.data)
    target = TokenTarget(models.tokenizer, models.grid, models.channels)
    names, images, target_images, left_out = chosen_images(
        *(config, models.image_size, models.patch_size), target.image_size, target.lanczos
    )
    inputs = images.to(fabric.device)
    with torch.no_grad(), fabric.autocast():
        codes = target.of(target_images.to(fabric.device)).cpu()  # (B, N)
        predictions = None
        if models.predictor is not None:
            masked = sample_masks(config.model, config.mask, models.grid, len(images), config.seed)
            predictions = predict_tokens(models.predictor, inputs, masked, codes)
        painted, features = _decoded(models, inputs, codes, predictions, teacher)
    tokenizer = models.tokenizer
    colours = codebook_colours(code_vectors(tokenizer))

    output.mkdir(parents=True, exist_ok=True)
    sections = [token_section(output, images, codes, models.grid, colours, painted)]
    if predictions is not None:
        row = (images, codes, predictions, models.grid, colours)
        sections.append(prediction_section(output, *row))
    if features:
        sections.append(feature_section(output, images, features, models.grid))
    tables: list[Item] = [token_table(names, codes, predictions), *left_out_tables(left_out)]
    sections.append(Section("The images", items=tables))
    facts = {
        "model": link_to(config.model, report),
        "tokenizer": link_to(models.origin, report),
        "tokens": f"{models.grid[0]} x {models.grid[1]} per image",
        "codes": str(tokenizer.vocab_size),
        "image size": f"{models.image_size[0]} x {models.image_size[1]} pixels",
    }
    figures = summary_figures(codes, predictions)
    write_report(report, "Visual tokens", sections, facts, figures=figures)
    return Result(report, len(images))


def ending(config: Config, result: Result) -> Ending:
    """Say how many images are drawn; the page is next."""
    figure = amount(result.images or 0, "image")
    return Ending(f"{result.report}, images and their tokens", figure, opened(result.report))


def _decoded(
    models: Models,
    images: Tensor,
    codes: Tensor,
    predictions: Predictions | None,
    teacher: Teacher | None,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Decode the true codes (B, N), and those with predictions in place of hidden ones.

    Returns: images (B, 3, H, W) by title, for a tokenizer with an image decoder; features (B, N, T)
        by title, first the teacher's, for one that decodes features
    """
    tokenizer, painted, features = models.tokenizer, {}, {}
    sets = [codes] if predictions is None else [codes, predictions.filled(codes)]
    sets = [tokens.to(models.device) for tokens in sets]
    if isinstance(tokenizer, DiscreteVAE | DalleTokenizer):
        for title, tokens in zip(("from its tokens", "with predicted"), sets, strict=False):
            painted[title] = tokenizer.decode_images(tokens, models.grid).cpu()
    elif isinstance(tokenizer, VQKD):
        if teacher is not None:
            features["teacher"] = teacher.features(images, models.grid).float().cpu()
        for title, tokens in zip(("decoder", "from predicted"), sets, strict=False):
            features[title] = tokenizer.decode(tokens).float().cpu()
    return painted, features
