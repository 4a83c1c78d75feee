"""Seeing tokens: an image's codes, what a pretrained model predicts of them, what they hold.

Of a tokenizer: the image beside its token map; the image painted from its tokens, where the
tokenizer paints; else the features that its decoder rebuilds, beside the teacher's. Of a
pretraining run besides: the masked input, the tokens predicted with their probability, right and
wrong. A code has its colour by its place in the codebook: like codes, like colours.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from beit.data.order import step_generator
from beit.data.sources import open_source
from beit.data.views import EvalView
from beit.draw.components import codebook_colours
from beit.draw.report import Item, Section, Table, write_report
from beit.nn.dalle import DalleTokenizer
from beit.nn.dvae import DiscreteVAE
from beit.nn.masking import MaskConfig, draw_masks
from beit.nn.mim import MaskedImageModel, take
from beit.nn.targets import TokenTarget
from beit.nn.tokenizer import VQKD, Tokenizer
from beit.pictures.images import seen_images
from beit.pictures.token_pages import (
    feature_chapter,
    prediction_chapter,
    token_chapter,
    token_table,
    told,
)
from beit.pictures.token_panels import Guesses, with_guesses
from beit.run.device import DeviceConfig, launch
from beit.run.directory import RunDirectory
from beit.run.settings import from_plain
from beit.weights.open import load, load_tokenizer
from beit.weights.teachers import Teacher, TeacherConfig, load_teacher

OF_RUN = "run"
MASKED_SHARE = 0.4  # where neither the run nor an option says it (BEiT v2, section 3.1)


@dataclass(frozen=True)
class Config:
    """Whose tokens are drawn, on which images.

    Attributes:
        model: a tokenizer, or a run of pretrain that predicts tokens: a run directory, a weights
            file, published:NAME or hf://OWNER/NAME
        data: images: a folder, *.parquet or shapes://COUNT, or a part: folder[:90%]; image files
            as [a.jpg,b.png]; @FILE that lists them, one a line
        output: a new folder for the figures and report.html
        limit: draw so many images, a fixed random subset
        tokenizer: of a pretraining model; empty for the one that its run names
        teacher: whose features stand beside the decoder's: run for the one that the tokenizer's run
            names, or a source as train-tokenizer's teacher.source; empty for none
        mask: which patches are hidden; null: as the run says, else 40% in blocks
        seed: of the masks
        image_size: side or [height, width], for a model whose file does not say it; null otherwise
        num_heads: attention heads, where neither the file nor the usual 64 channels a head say it
        crop_ratio: side of the centre crop over the shorter side
        device: where and in which precision the models run
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
    crop_ratio: float = 1.0
    device: DeviceConfig = field(default_factory=DeviceConfig)


class Result(NamedTuple):
    """The page, and how many images it shows; None in all processes but the first."""

    report: Path
    images: int | None


class Models(NamedTuple):
    """What tokens come from.

    Attributes:
        tokenizer: whose tokens they are
        origin: where it was opened
        predictor: predicts them at hidden patches; None where a tokenizer alone is shown
        image_size: of the images that both see
        patch_size: (height, width) of a patch
        grid: (Gh, Gw) of the tokens
    """

    tokenizer: Tokenizer
    origin: str
    predictor: MaskedImageModel | None
    image_size: tuple[int, int]
    patch_size: tuple[int, int]
    grid: tuple[int, int]


def run(config: Config) -> Result:
    """Draw the tokens of the images chosen, and write the page."""
    output = Path(config.output)
    _check_new(output)
    fabric = launch(config.device)
    report = output / "report.html"
    if not fabric.is_global_zero:
        return Result(report, None)
    models = opened(config, fabric.device)
    teacher = teacher_of(config, models)
    view = EvalView(models.image_size, config.crop_ratio)
    source = open_source(config.data, limit=config.limit)
    names, images, left_out = seen_images(source, view, models.patch_size)
    for name, reason in left_out:
        print(f"left out: {name}: {reason}")
    shown = images.to(fabric.device)
    masks = None if models.predictor is None else masks_for(config, models, len(images))
    with torch.no_grad(), fabric.autocast():
        codes = TokenTarget(models.tokenizer, models.grid).of(shown).cpu()  # (B, N)
        guesses = None if masks is None else predicted(models, shown, masks, codes)
        painted = repainted(models, codes, guesses, fabric.device)
        features = rebuilt_features(models, shown, codes, guesses, teacher)
    tokenizer = models.tokenizer
    colours = codebook_colours(codebook_of(tokenizer), tokenizer.vocab_size)

    output.mkdir(parents=True, exist_ok=True)
    drawn = [token_chapter(output, images, codes, models.grid, colours, painted)]
    if guesses is not None:
        drawn.append(prediction_chapter(output, images, codes, guesses, models.grid, colours))
    if features:
        drawn.append(feature_chapter(output, images, features, models.grid))
    table: list[Item] = [token_table(names, codes, guesses)]
    if left_out:
        rows_out = [[name, reason] for name, reason in left_out]
        table.append(Table("Images that were not drawn", ["image", "reason"], rows_out))
    drawn.append(Section("The images", items=table))
    facts = {
        "model": config.model,
        "tokenizer": models.origin,
        "tokens": f"{models.grid[0]} x {models.grid[1]} an image",
        "codes": str(tokenizer.vocab_size),
        "image size": f"{models.image_size[0]} x {models.image_size[1]} pixels",
    }
    write_report(report, "Visual tokens", drawn, facts, figures=told(codes, guesses))
    print(f"{len(images)} images in {output}; open {report}")
    return Result(report, len(images))


def opened(config: Config, device: torch.device) -> Models:
    """Open the tokenizer, and the model that predicts its tokens.

    Raises:
        ValueError: there are no tokens in what `model` names.
    """
    sizes = {"image_size": config.image_size, "num_heads": config.num_heads}
    given = {name: value for name, value in sizes.items() if value is not None}
    model = load(config.model, **given)
    if isinstance(model, Tokenizer):
        if config.tokenizer:
            raise ValueError(f"{config.model} is a tokenizer itself; leave tokenizer out")
        tokenizer: Tokenizer = model
        origin, predictor = config.model, None
        image_size, grid = tokenizer.image_size, tokenizer.grid
    elif isinstance(model, MaskedImageModel):
        if model.config.predicts != "tokens":
            raise ValueError(
                f"{config.model} predicts {model.config.predicts}, not tokens; expected a "
                "tokenizer, or a model pretrained with target.kind tokens"
            )
        origin, predictor = config.tokenizer or _tokenizer_of_run(config.model), model
        tokenizer = load_tokenizer(origin)
        if tokenizer.vocab_size != model.config.num_codes:
            raise ValueError(
                f"the tokenizer {origin} has {tokenizer.vocab_size} codes, {config.model} predicts "
                f"{model.config.num_codes}; name the tokenizer that it was trained with"
            )
        image_size, grid = model.config.backbone.image_size, model.config.backbone.grid
        predictor = predictor.to(device)
    else:
        raise ValueError(
            f"{config.model} holds a {type(model).__name__}, which neither makes tokens nor "
            "predicts them; expected a tokenizer or a run of beit pretrain"
        )
    patch = (image_size[0] // grid[0], image_size[1] // grid[1])
    return Models(tokenizer.to(device), origin, predictor, image_size, patch, grid)


def _run_of(source: str) -> RunDirectory | None:
    """Return the run directory that a source is; None for files and names."""
    directory = RunDirectory(Path(source))
    return directory if directory.config_file.is_file() else None


def _tokenizer_of_run(source: str) -> str:
    directory = _run_of(source)
    settings = {} if directory is None else directory.config()
    target = settings.get("target")
    named = settings.get("tokenizer") or (target or {}).get("source")
    if not named:
        raise ValueError(
            f"{source} does not say which tokenizer it was trained with; name it, as in "
            "--tokenizer runs/tok"
        )
    if "://" not in named and not named.startswith("published:") and not Path(named).exists():
        raise ValueError(
            f"{source} was trained with the tokenizer {named}, which is not there; name where it "
            "is now, as in --tokenizer runs/tok"
        )
    return str(named)


def teacher_of(config: Config, models: Models) -> Teacher | None:
    """Open the teacher asked for, if any."""
    if not config.teacher:
        return None
    if not isinstance(models.tokenizer, VQKD):
        raise ValueError(
            f"teacher is {config.teacher}, but {models.origin} holds a "
            f"{type(models.tokenizer).__name__}, which rebuilds no features; leave teacher out"
        )
    device = models.tokenizer.quantizer.codebook.device
    if config.teacher != OF_RUN:
        return load_teacher(config.teacher).to(device)
    directory = _run_of(models.origin)
    settings = None if directory is None else directory.config().get("teacher")
    if settings is None:
        raise ValueError(
            f"{models.origin} does not say which teacher it had; name one, as in "
            "--teacher efficientnet-lite0"
        )
    said = from_plain(TeacherConfig, settings, "teacher")
    return load_teacher(said.source, said.image_size, said.pretrained, said.num_heads).to(device)


def masks_for(config: Config, models: Models, count: int) -> Tensor:
    """Draw the masks (B, M) int64 of the images: as the option, the run or the paper says."""
    N = models.grid[0] * models.grid[1]
    mask = config.mask
    directory = _run_of(config.model)
    if mask is None and directory is not None and "mask" in directory.config():
        mask = from_plain(MaskConfig, directory.config()["mask"], "mask")
    if mask is None:
        share = max(1, round(MASKED_SHARE * N))
        mask = MaskConfig(count=share, min_block=min(16, share))
    if not 1 <= mask.number(N) <= N:
        raise ValueError(
            f"mask.count is {mask.count}, but an image has {N} patches; expected 1 to that many"
        )
    generator = step_generator(config.seed, 0, "visualised masks")
    return draw_masks(replace(mask, exact=True), count, models.grid, generator)


def predicted(models: Models, images: Tensor, masked: Tensor, codes: Tensor) -> list[Guesses]:
    """Ask the model for the tokens of the hidden patches: an entry an image, on the CPU."""
    assert models.predictor is not None
    logits = models.predictor(images, masked.to(images.device)).logits
    likely = logits.float().softmax(dim=-1).cpu()  # (B, M, K)
    probability, guessed = likely.max(dim=-1)
    of_truth = likely.gather(2, take(codes, masked)[..., None])[..., 0]
    rows = zip(masked, guessed, probability, of_truth, strict=True)
    return [Guesses(*row) for row in rows]


def repainted(
    models: Models, codes: Tensor, guesses: list[Guesses] | None, device: torch.device
) -> dict[str, Tensor]:
    """Paint images (B, 3, H, W) from their true tokens and from those predicted, by title.

    Empty for a tokenizer that does not paint.
    """
    tokenizer = models.tokenizer
    if not isinstance(tokenizer, DiscreteVAE | DalleTokenizer):
        return {}
    painted = {"from its tokens": tokenizer.decode_images(codes.to(device), models.grid).cpu()}
    if guesses is not None:
        guessed = with_guesses(codes, guesses).to(device)
        painted["with predicted"] = tokenizer.decode_images(guessed, models.grid).cpu()
    return painted


def rebuilt_features(
    models: Models,
    images: Tensor,
    codes: Tensor,
    guesses: list[Guesses] | None,
    teacher: Teacher | None,
) -> dict[str, Tensor]:
    """Collect features (B, N, T) by title: the teacher's, the decoder's, those of the guesses.

    Empty for a tokenizer that rebuilds none.
    """
    tokenizer = models.tokenizer
    if not isinstance(tokenizer, VQKD):
        return {}
    features: dict[str, Tensor] = {}
    if teacher is not None:
        features["teacher"] = teacher.features(images, models.grid).float().cpu()
    features["decoder"] = tokenizer.decode(codes.to(images.device)).float().cpu()
    if guesses is not None:
        guessed = with_guesses(codes, guesses).to(images.device)
        features["from predicted"] = tokenizer.decode(guessed).float().cpu()
    return features


def codebook_of(tokenizer: Tokenizer) -> Tensor | None:
    """Return the vectors (K, C) of the codes; None for a tokenizer without any."""
    if isinstance(tokenizer, VQKD):
        return tokenizer.quantizer.codebook.detach()
    return tokenizer.codebook.weight.detach() if isinstance(tokenizer, DiscreteVAE) else None


def _check_new(output: Path) -> None:
    if not str(output) or str(output) == ".":
        raise ValueError("no output given; name a new folder, as in --output tokens")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(f"{output} exists and is not overwritten; name another folder")
