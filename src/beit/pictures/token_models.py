"""The models of the token pictures: tokenizer, predicting model, teacher; masks and predictions."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from beit.data.order import step_generator
from beit.nn.masking import MaskConfig, draw_masks
from beit.nn.mim import MaskedImageModel
from beit.nn.patches import take
from beit.nn.tokenizer import VQKD, Tokenizer
from beit.pictures.token_figures import Predictions
from beit.run.directory import RunDirectory
from beit.run.found import with_found_paths
from beit.run.settings import from_plain
from beit.weights.hub import SCHEMES
from beit.weights.open import load, load_tokenizer
from beit.weights.teachers import Teacher, TeacherConfig, load_teacher
from beit.wording import an

OF_RUN = "run"
MASKED_SHARE = 0.4  # if neither the run nor an option says it (BEiT v2, section 3.1)


class Models(NamedTuple):
    """A tokenizer, and the model that predicts its tokens at hidden patches, if there is one."""

    tokenizer: Tokenizer
    origin: str  # where the tokenizer was loaded from
    predictor: MaskedImageModel | None
    image_size: tuple[int, int]  # of the input of both
    grid: tuple[int, int]
    device: torch.device
    channels: tuple[int, ...] = ()  # of the images, from 1, that the tokenizer sees; () for all

    @property
    def patch_size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.image_size[0] // self.grid[0], self.image_size[1] // self.grid[1]


def open_models(
    source: str, tokenizer_source: str, device: torch.device, sizes: Mapping[str, Any]
) -> Models:
    """Load the tokenizer, and the model that predicts its tokens.

    Args:
        source: a tokenizer or a pretrained model
        tokenizer_source: of a pretrained model; empty for the one that its run names
        device: for both
        sizes: image_size and num_heads of the model, None if unknown

    Raises:
        ValueError: the model has no tokens, or the tokenizer does not match it.
    """
    model = load(source, **{name: value for name, value in sizes.items() if value is not None})
    if isinstance(model, Tokenizer):
        if tokenizer_source:
            raise ValueError(f"{source} is a tokenizer itself; leave tokenizer out")
        return Models(model.to(device), source, None, model.image_size, model.grid, device)
    if not isinstance(model, MaskedImageModel):
        raise ValueError(
            f"{source} is {an(type(model).__name__)}, which neither makes tokens nor predicts "
            "them; expected a tokenizer or a run of beit pretrain"
        )
    backbone, predicts, K = model.config.backbone, model.config.predicts, model.config.num_codes
    if predicts != "tokens":
        raise ValueError(
            f"{source} predicts {predicts}, not tokens; expected a tokenizer, or a model "
            "pretrained with target.kind tokens"
        )
    origin = tokenizer_source or _tokenizer_of_run(source)
    tokenizer = load_tokenizer(origin).to(device)
    if tokenizer.vocab_size != K:
        raise ValueError(
            f"the tokenizer {origin} has {tokenizer.vocab_size} codes, {source} predicts {K}; "
            "name the tokenizer that it was trained with"
        )
    channels = tuple((_settings_of_run(source).get("target") or {}).get("channels") or ())
    predictor, vit = model.to(device), (backbone.image_size, backbone.grid)
    return Models(tokenizer, origin, predictor, *vit, device, channels)


def _settings_of_run(source: str) -> dict[str, Any]:
    """Return the config of a run directory, its paths as from here; empty for files and names."""
    run = RunDirectory(Path(source))
    return with_found_paths(run, run.config()) if run.config_file.is_file() else {}


def _tokenizer_of_run(source: str) -> str:
    settings = _settings_of_run(source)
    tokenizer = settings.get("tokenizer") or (settings.get("target") or {}).get("source")
    if not tokenizer:
        raise ValueError(
            f"{source} does not say which tokenizer it was trained with; name it, as in "
            "--tokenizer runs/tok"
        )
    if not tokenizer.startswith(SCHEMES) and not Path(tokenizer).exists():
        raise ValueError(
            f"{source} was trained with the tokenizer {tokenizer}, which does not exist; name its "
            "new path, as in --tokenizer runs/tok"
        )
    return str(tokenizer)


def open_teacher(source: str, models: Models) -> Teacher:
    """Load a teacher; `run` stands for the one that the tokenizer's run names."""
    origin, tokenizer = models.origin, models.tokenizer
    if not isinstance(tokenizer, VQKD):
        raise ValueError(
            f"teacher is {source}, but {origin} is {an(type(tokenizer).__name__)}, which decodes "
            "no features; leave teacher out"
        )
    config = TeacherConfig(source)
    if source == OF_RUN:
        settings = _settings_of_run(origin).get("teacher")
        if settings is None:
            raise ValueError(
                f"{origin} does not say which teacher it had; name one, as in --teacher "
                "efficientnet-lite0"
            )
        config = from_plain(TeacherConfig, settings, "teacher")
    teacher = load_teacher(config.source, config.image_size, config.pretrained, config.num_heads)
    teacher.channels = config.channels
    return teacher.to(models.device)


def sample_masks(
    source: str, mask: MaskConfig | None, grid: tuple[int, int], count: int, seed: int
) -> Tensor:
    """Sample masks (count, M) int64: of the option, else of the run, else 40% in blocks."""
    N = grid[0] * grid[1]
    settings = _settings_of_run(source)
    if mask is None and "mask" in settings:
        mask = from_plain(MaskConfig, settings["mask"], "mask")
    elif mask is None:
        num_masked = max(1, round(MASKED_SHARE * N))
        mask = MaskConfig(count=num_masked, min_block=min(16, num_masked))
    if not 1 <= mask.number(N) <= N:
        raise ValueError(f"mask.count is {mask.count}, but an image has {N} patches; give 1..{N}")
    generator = step_generator(seed, 0, "visualised masks")
    return draw_masks(replace(mask, exact=True), count, grid, generator)


def predict_tokens(
    predictor: MaskedImageModel, images: Tensor, masked: Tensor, codes: Tensor
) -> Predictions:
    """Predict the tokens of the hidden patches (B, M), on the CPU."""
    logits = predictor(images, masked.to(images.device)).logits
    probabilities = logits.float().softmax(dim=-1).cpu()  # (B, M, K)
    probability, predicted = probabilities.max(dim=-1)
    true_probability = probabilities.gather(2, take(codes, masked)[..., None])[..., 0]
    return Predictions(masked, predicted, probability, true_probability)
