"""The crop of a model's evaluation images: what its run, its file or its repository says.

A model should read images as it was validated in training: cut to the same share of them.
"""

import json
import logging
from pathlib import Path
from typing import Any

from beit.data.views import CROP_RATIO
from beit.run.directory import RunDirectory
from beit.weights import hub, manifest
from beit.weights.file import FORMAT, read_shapes

logger = logging.getLogger(__name__)

# Larger images are validated without cropping (docs/reference/finetuning.md, "Evaluation view").
WHOLE_FROM = 384


def crop_ratio(source: str, given: float | None, default: float = CROP_RATIO) -> float:
    """Return the side of the centre crop over the shorter side: given, the model's, or default.

    Args:
        source: of the model, as for `beit.weights.open.load`, which has opened it
    """
    if given is not None:
        return given
    ratio, note = stated_crop(source) or (default, "the default: the model has none of its own")
    if note:
        logger.info("%s: crop_ratio %g, %s", source, ratio, note)
    return ratio


def stated_crop(source: str) -> tuple[float, str] | None:
    """Read what a model's files say: the crop, and a note if theirs differs; None if none does."""
    if source.startswith(hub.PUBLISHED):
        return _published(source.removeprefix(hub.PUBLISHED))
    path = described_by(source)
    return None if path is None else crop_in(path)


def crop_in(path: Path) -> tuple[float, str] | None:
    """Read the crop as `stated_crop` does, from a run, a weights file or a folder."""
    weights, run = weights_of(path), RunDirectory(path)
    if (ratio := _ratio(described(weights), "crop_ratio")) is not None:
        return ratio, ""
    if run.config_file.is_file():
        ratio = _ratio(run.config(), "crop_ratio")
        return None if ratio is None else (ratio, "")
    if not weights.is_file():
        return None
    if manifest.of_file(weights.name) is not None:
        return _published(weights.name)
    settings = weights.with_name("config.json")
    if settings.is_file():
        ratio = _ratio(_json(settings.read_text("utf-8")), "pretrained_cfg", "crop_pct")
        if ratio is not None:
            return ratio, ""
    processor = weights.with_name("preprocessor_config.json")
    if processor.is_file() and (ratio := _of_processor(_json(processor.read_text("utf-8")))):
        return ratio, f"as {processor.name}; proportions are kept, transformers stretches"
    return None


def _published(name: str) -> tuple[float, str] | None:
    """Return the crop of a published classifier of large images: all of it. Others have none."""
    file = manifest.published_files().get(name) or manifest.of_file(name)
    large = file is not None and file.shapes.get("image", 0) >= WHOLE_FROM
    if file is None or file.model != "ImageClassifier" or not large:
        return None
    return 1.0, f"as published for images from {WHOLE_FROM} pixels on"


def described_by(source: str) -> Path | None:
    """Return the run, file or folder of a model; None if it says nothing of the model's images."""
    if source.startswith((hub.PUBLISHED, "teacher:")):
        return None
    return hub.fetch(source) if source.startswith(hub.SCHEMES) else Path(source)


def weights_of(path: Path) -> Path:
    """Return the weights file in a run or a folder; a file itself."""
    run = RunDirectory(path)
    return run.weights_file if run.config_file.is_file() else hub.weights_in(path) or path


def described(weights: Path) -> Any:
    """Read the description that a weights file of ours has of its model; empty for other files."""
    if weights.suffix != ".safetensors" or not weights.is_file():
        return {}
    return _json(read_shapes(weights)[1].get(FORMAT, ""))


def _of_processor(values: Any) -> float | None:
    """Read the crop of an image processor of transformers: `crop_size` of `size`, or everything."""
    if not isinstance(values, dict) or not values.get("do_resize", True):
        return None
    if not values.get("do_center_crop", False):
        return 1.0
    sides: list[float] = []
    for size in (values.get("crop_size"), values.get("size")):
        side = size.get("shortest_edge", size.get("height")) if isinstance(size, dict) else size
        if not isinstance(side, int) or side < 1:
            return None
        sides.append(side)
    return _ratio({"crop": sides[0] / sides[1]}, "crop")


def _ratio(values: Any, *fields: str) -> float | None:
    for field in fields:
        values = values.get(field) if isinstance(values, dict) else None
    is_ratio = isinstance(values, int | float) and 0 < values <= 1
    return float(values) if is_ratio else None


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # `load` names what is damaged
        return {}
