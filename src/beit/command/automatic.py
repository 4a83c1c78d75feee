"""Settings that follow the data, for `train-tokenizer`, `pretrain` and `finetune` on their own.

Without preset and file they start from the preset photos-gpu or photos-cpu, whose numbers are
fitted to the images, the machine, `run.budget` and what options say. Each is logged with its
reason, and kept in the run's config.yaml as `run.chosen`.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from beit.command import presets
from beit.command.rules import Geometry, Given, fitted
from beit.command.survey import Told, look_at, machine, why_unchecked
from beit.data.sources import open_source
from beit.run.directory import RunDirectory
from beit.weights.crop import stated_crop
from beit.weights.open import load_backbone, load_tokenizer

log = logging.getLogger(__name__)


def settings(verb: str, options: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return the values of a preset for a verb, and those that are fitted to the data.

    Options override them, except data.train, of which a part may be held out.

    Args:
        options: those that are given, nested
    """
    told = Told(options)
    given, data, values = known(told) if verb != "train-tokenizer" else (None, {}, {})
    if not told.get("data.train") and not data.get("train"):
        raise ValueError("no training images given; name a folder, as in --data photos")
    has = machine(told.get("device.accelerator", "auto"))
    images, chosen = look_at(verb, told, data)
    kind = "gpu" if has.gpu else "cpu"
    preset = presets.read_yaml(presets.path_of(f"photos-{kind}"))[verb]
    assert isinstance(preset, dict)
    numbers, reasons = fitted(verb, preset, images, has, told, given)
    values |= numbers
    chosen = [f"preset photos-{kind}: there is {'a' if has.gpu else 'no'} GPU", *chosen, *reasons]
    for line in chosen:
        log.info("chosen: %s", line)
    values.setdefault("run", {})["chosen"] = chosen
    return preset, values


def known(told: Told) -> tuple[Given | None, dict[str, Any], dict[str, Any]]:
    """Return what a tokenizer, or the model to fine-tune, decides; its run's data; and its crops.

    All of it is empty without such a model, the last two for one that is no run.
    """
    if source := told.get("init"):
        size, heads = told.get("image_size"), told.get("num_heads")
        vit = load_backbone(source, size, num_heads=heads).config
        shape = Geometry(vit.image_size, vit.patch_size)
        given = Given(source, shape, {"width": vit.width, "depth": vit.depth})
        crop = stated_crop(source)
        return given, of_run(Path(source))[0], {"crop_ratio": crop[0]} if crop else {}
    source = told.get("tokenizer") or told.get("target.source")
    if not source or told.get("target.kind", "tokens") != "tokens":
        return None, {}, {}
    tokenizer = load_tokenizer(source)
    (height, width), grid = tokenizer.image_size, tokenizer.grid
    shape = Geometry((height, width), height // grid[0])
    return Given("the tokenizer", shape), *of_run(Path(source))


def without_check(preset: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the value that leaves a preset's k-NN check out if the images cannot have one."""
    told, base = Told(options), Told(preset)
    every = told.get("check.every")
    if every is not None or not base.get("check.every") or told.get("check.train"):
        return {}
    train = told.get("data.train", base.get("data.train", ""))
    validation = told.get("data.validation", base.get("data.validation", ""))
    try:
        source = open_source(train, split="train")
    except (ValueError, OSError):  # the training says it
        return {}
    why = why_unchecked(train, source, told.get("check.test", validation))
    if why:
        log.info("no k-NN check: %s", why)
    return {"check": {"every": 0}} if why else {}


def of_run(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the data, and the crops, of a model's run; empty for other models."""
    if not (path / "config.yaml").is_file():
        return {}, {}
    config = RunDirectory.open(path).config()
    view = {name: value for name, value in config["view"].items() if name != "color_jitter"}
    return config["data"], {"view": view, "crop_ratio": config["crop_ratio"]}
