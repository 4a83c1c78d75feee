"""Settings that follow the data, for `train-tokenizer`, `pretrain` and `finetune` on their own.

Without preset and file they start from the preset photos-gpu or photos-cpu, whose numbers are
fitted to the images, the machine, `run.budget` and what options say. Each is logged with its
reason, and kept in the run's config.yaml as `run.chosen`.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from beit.command import presets
from beit.command.rules import PARTS, Geometry, Given, fitted
from beit.command.survey import Options, look_at, machine, why_unchecked
from beit.data.sources import open_source
from beit.nn.mim import MaskedImageModel, MaskedImageModelConfig
from beit.nn.tokenizer import VQKD
from beit.run.directory import RunDirectory
from beit.weights.crop import stated_crop
from beit.weights.file import size_pair
from beit.weights.open import load_backbone, load_tokenizer, required_backbone
from beit.weights.start import CODES, FOLLOWING, load_init

log = logging.getLogger(__name__)


def settings(verb: str, given: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return the values of a preset for a verb, and those that are fitted to the data.

    Options override them, except data.train, of which a part may be held out.

    Args:
        given: the options, nested
    """
    options = Options(given)
    start, data, values = known(verb, options)
    if not options.get("data.train") and not data.get("train"):
        raise ValueError("no training images given; name a folder, as in --data photos")
    has = machine(options.get("device.accelerator", "auto"))
    images, chosen = look_at(verb, options, data)
    kind = "gpu" if has.gpu else "cpu"
    preset = presets.read_yaml(presets.path_of(f"photos-{kind}"))[verb]
    assert isinstance(preset, dict)
    numbers, reasons = fitted(verb, preset, images, has, options, start)
    values |= numbers
    chosen = [f"preset photos-{kind}: there is {'a' if has.gpu else 'no'} GPU", *chosen, *reasons]
    for line in chosen:
        log.info("chosen: %s", line)
    values.setdefault("run", {})["chosen"] = chosen
    return preset, values


def known(verb: str, options: Options) -> tuple[Given | None, dict[str, Any], dict[str, Any]]:
    """Return what a tokenizer and the initial weights decide; their run's data; and its crops.

    All of it is empty without such models, the last two for those that are no runs.
    """
    source, part = options.get("init"), PARTS[verb] + "." if verb != "finetune" else ""
    given, data, values = None, dict[str, Any](), dict[str, Any]()
    if source:
        size, heads = options.get(f"{part}image_size"), options.get(f"{part}num_heads")
        vit = load_backbone(source, size, num_heads=heads).config
        shape = Geometry(vit.image_size, vit.patch_size)
        given = Given(source, shape, {"width": vit.width, "depth": vit.depth})
        crop = stated_crop(source)
        data, values = of_run(Path(source))[0], {"crop_ratio": crop[0]} if crop else {}
    codes = options.get("tokenizer") or options.get("target.source")
    if verb != "pretrain" or not codes or options.get("target.kind", "tokens") != "tokens":
        return given, data, values
    tokenizer = load_tokenizer(codes)
    (height, width), grid = tokenizer.image_size, tokenizer.grid
    data, values = of_run(Path(codes))
    if given is None:
        return Given("the tokenizer", Geometry((height, width), height // grid[0])), data, values
    patch = given.shape.patch
    shape = Geometry((grid[0] * patch, grid[1] * patch), patch)
    return Given(f"the tokenizer and {source}", shape, given.vit), data, values


def network(
    verb: str,
    source: str,
    weaker: Sequence[Mapping[str, Any]],
    stronger: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Return the settings of a training that follow from the model whose weights it starts from.

    Args:
        weaker: settings that these override, in order
        stronger: settings that override these
    """
    part, set_here = PARTS[verb], [Options(values) for values in stronger]
    layers = [*map(Options, weaker), *set_here]
    size, early = _last(layers, f"{part}.image_size"), _last(layers, "model.early_layers")
    early = MaskedImageModelConfig.early_layers if early is None else early
    heads = _last(set_here, f"{part}.num_heads")
    model = load_init(source, size and size_pair(size), heads, early)
    vit = required_backbone(model, source).config
    field = part.removeprefix("model.")
    follows: dict[str, Any] = {name: getattr(vit, name) for name in FOLLOWING}
    values: dict[str, Any] = {"model": {field: follows}}
    fields: tuple[str, ...] = ()
    if verb == "pretrain" and isinstance(model, MaskedImageModel):
        fields = ("early_layers", "head_layers", "shared_head")
    if verb == "train-tokenizer" and isinstance(model, VQKD):
        fields = ("decoder_depth", *CODES)
        if all(_last(set_here, f"model.{name}") is None for name in CODES):  # it is taken
            kept = {"revive_every": 0} if _last(layers, "freeze") else {}
            values["codebook"] = {"start_after": 0, **kept}
    of_model = {name: getattr(model.config, name) for name in fields}
    values["model"] |= of_model
    listed = (follows | of_model | values.get("codebook", {})).items()
    line = f"as {source}, unless set: " + ", ".join(
        f"{name} {json.dumps(value)}" for name, value in listed
    )
    log.info("chosen: %s", line)
    return {**values, "run": {"chosen": [*(_last(layers, "run.chosen") or ()), line]}}


def _last(layers: Sequence[Options], name: str) -> Any:
    """Return the last of several values of an option; None if it has none."""
    values = [value for each in layers if (value := each.get(name)) is not None]
    return values[-1] if values else None


def without_check(preset: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the value that leaves a preset's k-NN check out if the images cannot have one."""
    options, base = Options(given), Options(preset)
    every = options.get("check.every")
    if every is not None or not base.get("check.every") or options.get("check.train"):
        return {}
    train = options.get("data.train", base.get("data.train", ""))
    validation = options.get("data.validation", base.get("data.validation", ""))
    try:
        source = open_source(train, split="train")
    except (ValueError, OSError):  # the training says it
        return {}
    why = why_unchecked(train, source, options.get("check.test", validation))
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
