"""Settings that follow the data, for `train-tokenizer` and `pretrain` without preset or file.

They start from the preset photos-gpu or photos-cpu, whose numbers are fitted to the images, the
machine, `run.budget` and what options say. Each is logged with its reason, and kept in the run's
config.yaml as `run.chosen`.
"""

import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch

from beit.command import presets
from beit.data.classes import Labelled, known_classes, renumbered
from beit.data.source import Source, UnreadableImage
from beit.data.sources import open_source
from beit.run.budget import seconds_of
from beit.run.directory import RunDirectory
from beit.weights.open import load_tokenizer

log = logging.getLogger(__name__)

FEWEST = 20  # images from which anything can be learned
SIZED = 8  # images whose size is looked at
HELD_OUT = 1000  # validation images at most, about
LONG = 4 * 3600.0  # seconds of a budget from which a CPU trains a larger model
BLOCK_BYTES = 34 * 2  # of a token and channel that a block keeps for the backward pass, bfloat16
SHARE_OF_GPU = 0.6  # of its memory, for those
VIEWS = {  # training views of a run without a budget, and the most of one image
    ("train-tokenizer", "cpu"): (200_000, 300),
    ("train-tokenizer", "gpu"): (4_000_000, 300),
    ("pretrain", "cpu"): (400_000, 800),
    ("pretrain", "gpu"): (10_000_000, 800),
}


class Machine(NamedTuple):
    """What a process has: CPU cores, gigabytes of memory, and of its GPU's; 0 without a GPU."""

    cores: int
    memory: float
    gpu: float


class Images(NamedTuple):
    """The images of a training.

    Attributes:
        train: data string
        validation: data string; empty for none
        number: of training images
        side: usual shorter side in pixels
        unchecked: why there is no k-NN check; empty if there can be one
        limit: of the training images
    """

    train: str
    validation: str
    number: int
    side: int
    unchecked: str = ""
    limit: int | None = None


class Geometry(NamedTuple):
    """Images and patches of a model: (height, width), and the side of a patch."""

    size: tuple[int, int]
    patch: int

    @property
    def patches(self) -> int:
        """The number of patches (N)."""
        return (self.size[0] // self.patch) * (self.size[1] // self.patch)


class Told:
    """The options of the caller, by dotted name."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._options = options

    def get(self, name: str, default: Any = None) -> Any:
        """Return an option's value, or the default if it is not given."""
        value: Any = self._options
        for part in name.split("."):
            if not isinstance(value, Mapping) or part not in value:
                return default
            value = value[part]
        return value


# ── what there is ───────────────────────────────────────────────────────────────────────────────


def machine(accelerator: str = "auto") -> Machine:
    """Look at this process's share of the machine."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    known = getattr(os, "sched_getaffinity", None)
    cores = len(known(0)) if known else os.cpu_count() or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    gpu = 0.0
    if accelerator in ("auto", "cuda") and torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties(0).total_memory / 1e9
    return Machine(max(1, cores // processes), memory / processes, gpu)


def look_at(verb: str, told: Told, data: Mapping[str, Any]) -> tuple[Images, list[str]]:
    """Open the images: count and size them, and choose those for validation.

    Args:
        data: `train`, `validation` and `limit` of the tokenizer's run, if there are any

    Returns: the images, and what was chosen
    """
    own = bool(told.get("data.train"))
    spec = told.get("data.train") or data["train"]
    limit = told.get("data.limit", None if own else data.get("limit"))
    validation = told.get("data.validation", None if own else data.get("validation"))
    source = open_source(spec, split="train")
    if len(source) < FEWEST:
        raise ValueError(
            f"{spec} has {len(source)} images, too few for beit {verb}: it needs {FEWEST}, and "
            "learns little from fewer than some hundred; give more, or use published weights as "
            "they are, as in beit embed --model published:beitv2_base_patch16_224_pt1k_ft21k"
        )
    side, chosen = usual_side(source), [] if own else [f"data {spec}: as the tokenizer's"]
    if validation is None:
        spec, validation, why = held_out(spec, source)
        chosen.append(why)
        source = open_source(spec, split="train") if spec.endswith("]") else source
    number = min(limit or len(source), len(source))
    unchecked = why_unchecked(spec, source, validation)
    return Images(spec, validation, number, side, unchecked, limit), chosen


def usual_side(source: Source) -> int:
    """Return the median of the shorter sides of a few images."""
    sides, reasons = [], []
    for index in range(0, len(source), max(1, len(source) // SIZED)):
        try:
            sides.append(min(source.image(index).shape[1:]))
        except UnreadableImage as error:
            reasons.append(str(error))
    if not sides:
        raise ValueError(f"none of {len(reasons)} images can be read, such as {reasons[0]}")
    return int(median(sides))


def held_out(spec: str, source: Source) -> tuple[str, str, str]:
    """Choose validation images: the data's own split, or a part. Returns: data strings and why."""
    number = len(source)
    try:
        test = open_source(spec, split="test")
        own = (len(test), test.name(0)) != (number, source.name(0))
    except (ValueError, OSError):  # a split for training and no other
        return spec, "", "no validation: the data have a training split and no other"
    if own:
        percent = min(100, math.ceil(100 * 2 * HELD_OUT / len(test)))
        part = "" if percent == 100 else f"[:{percent}%]"
        return spec, f"{spec}{part}", f"validation {spec}{part}: the split of the data for it"
    wanted = min(HELD_OUT, max(number // 10, 10))
    percent = min(25, max(1, round(100 * wanted / number)))
    first = 100 - percent
    why = f"validation {spec}[{first}%:]: {percent}% held out, as there is no split for it"
    return f"{spec}[:{first}%]", f"{spec}[{first}%:]", why


def why_unchecked(train: str, source: Source, validation: str) -> str:
    """Return why a k-NN check cannot be; empty if it can."""
    if not validation:
        return "there are no validation images"
    labelled = Labelled("data.train", train, source)
    try:
        classes = known_classes(labelled)
        test = open_source(validation, split="test")
        renumbered(Labelled("data.validation", validation, test), classes, labelled.where)
    except (ValueError, OSError) as error:
        return str(error)
    return "there is one class only" if classes.number < 2 else ""


# ── what is chosen ──────────────────────────────────────────────────────────────────────────────


def settings(verb: str, options: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return the values of a preset for a verb, and those that are fitted to the data.

    Options override them, except data.train, of which a part may be held out.

    Args:
        options: those that are given, nested
    """
    told, data, tokenizer = Told(options), dict[str, Any](), None
    view: dict[str, Any] = {}
    if source := told.get("tokenizer") or told.get("target.source"):
        if told.get("target.kind", "tokens") == "tokens":
            tokenizer = load_tokenizer(source)
            data, view = of_run(Path(source))
    if not told.get("data.train") and not data.get("train"):
        raise ValueError("no training images given; name a folder, as in --data photos")
    has = machine(told.get("device.accelerator", "auto"))
    images, chosen = look_at(verb, told, data)
    kind = "gpu" if has.gpu else "cpu"
    preset = presets.read_yaml(presets.path_of(f"photos-{kind}"))[verb]
    assert isinstance(preset, dict)
    fixed = None
    if tokenizer is not None:
        size, grid = tokenizer.image_size, tokenizer.grid
        fixed = Geometry((size[0], size[1]), size[0] // grid[0])
    values, reasons = fitted(verb, preset, images, has, told, fixed)
    if fixed is not None:
        values |= view
    chosen = [f"preset photos-{kind}: there is {'a' if has.gpu else 'no'} GPU", *chosen, *reasons]
    for line in chosen:
        log.info("chosen: %s", line)
    values.setdefault("run", {})["chosen"] = chosen
    return preset, values


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
    """Return the data, and the crops, of a tokenizer's run; empty for other tokenizers."""
    if not (path / "config.yaml").is_file():
        return {}, {}
    config = RunDirectory.open(path).config()
    view = {name: value for name, value in config["view"].items() if name != "color_jitter"}
    return config["data"], {"view": view, "crop_ratio": config["crop_ratio"]}


def fitted(
    verb: str,
    preset: Mapping[str, Any],
    images: Images,
    has: Machine,
    told: Told,
    fixed: Geometry | None = None,
) -> tuple[dict[str, Any], list[str]]:
    """Fit a preset's numbers to the images and the machine. Returns: values, and why.

    Args:
        fixed: images and patches of the tokenizer
    """
    tokenizer, reasons = verb == "train-tokenizer", list[str]()
    part = "model.encoder" if tokenizer else "model.backbone"
    budget = told.get("run.budget", "")
    long = bool(budget) and seconds_of(budget) >= LONG
    shape, why = fixed, "as the tokenizer"
    if shape is None:
        shape, why = geometry(images.side, has, long, told, part)
    (height, width), N = shape.size, shape.patches
    reasons.append(f"{height} x {width} pixels, {N} patches of {shape.patch}: {why}")
    usual_vit, why = network(images.number, has, long)
    vit: dict[str, Any] = {
        name: told.get(f"{part}.{name}", value) for name, value in usual_vit.items()
    }
    reasons.append(f"a ViT of width {vit['width']} and depth {vit['depth']}: {why}")
    vit |= {"image_size": [height, width], "patch_size": shape.patch}

    most = preset["optim"]["batch_size"]
    if has.gpu:
        image = (N + 1) * vit["width"] * vit["depth"] * BLOCK_BYTES
        most = min(most, power_of_two(has.gpu * 1e9 * SHARE_OF_GPU / image))
    batch = told.get("optim.batch_size", min(most, power_of_two(images.number / 3)))
    if batch > images.number:
        raise ValueError(
            f"optim.batch_size is {batch}, but there are {images.number} training images; give "
            "that or less, or leave it out"
        )
    steps = max(1, images.number // batch)
    views, most_epochs = VIEWS[verb, "gpu" if has.gpu else "cpu"]
    usual = min(most_epochs, max(1, round(views / images.number)))
    epochs = told.get("optim.epochs", most_epochs if budget else usual)
    why = "the usual; --budget 30m says how long" if not budget else f"or what fits into {budget}"
    if told.get("optim.epochs"):
        why = "as given"
    reasons.append(f"batches of {batch}, {epochs:g} epochs of {images.number} images: {why}")
    total = max(1, round(epochs * steps))
    every = max(1, math.ceil(epochs / 5))
    workers = min(16, has.cores - 1) if has.gpu else min(4, has.cores // 2)
    cache = round(min(16.0, has.memory / 8), 1)
    reasons.append(
        f"data.num_workers {workers}, data.cache_gigabytes {cache:g}: CPU cores {has.cores}, "
        f"memory {has.memory:.0f} GB"
    )
    values: dict[str, Any] = {
        "data": {
            "train": images.train,
            "validation": images.validation,
            "limit": images.limit,
            "num_workers": workers,
            "cache_gigabytes": cache,
        },
        "optim": {"batch_size": batch, "epochs": epochs, "warmup_epochs": epochs / 20},
        "validate_every": every,
        "run": {"log_every": max(1, min(50, total // 10))},
    }
    if tokenizer:
        codes, why = codebook(preset["model"]["num_codes"], images.number, N, batch)
        reasons.append(f"{told.get('model.num_codes', codes)} codes: {why}")
        values["model"] = {"encoder": vit, "num_codes": codes}
        values["teacher"] = {"image_size": teacher_size(shape, bool(has.gpu))}
        start = preset["codebook"].get("start_after", 0)
        values["codebook"] = {"start_after": min(start, total // 10)}
        return values, reasons
    values["model"] = {"backbone": vit, "early_layers": max(1, vit["depth"] * 3 // 4)}
    values["mask"] = {"count": max(1, round(0.385 * N)), "min_block": max(1, N // 12)}
    values["check"] = {"every": 0 if images.unchecked else every}
    if images.unchecked and not told.get("check.every"):
        reasons.append(f"no k-NN check: {images.unchecked}")
    return values, reasons


def geometry(side: int, has: Machine, long: bool, told: Told, part: str) -> tuple[Geometry, str]:
    """Choose the size of images, and of patches."""
    sizes = ((224, 16), (128, 16), (64, 8), (32, 4)) if has.gpu else ((96, 16), (64, 16), (32, 8))
    if long and not has.gpu:
        sizes = ((128, 16), *sizes)
    usual, patch = next((one for one in sizes if one[0] <= side), sizes[-1])
    given = told.get(f"{part}.image_size")
    height, width = given or (usual, usual)
    fitting = [
        p for p in (16, 8, 4) if not (height % p or width % p) and min(height, width) >= 4 * p
    ]
    if given:
        patch = next(iter(fitting), patch)
    shape = Geometry((height, width), told.get(f"{part}.patch_size", patch))
    why = f"a {'GPU' if has.gpu else 'CPU'} has time for that"
    if side < sizes[0][0]:
        why = f"the images have {side} pixels or so"
    return shape, "as given" if given else why


def network(number: int, has: Machine, long: bool) -> tuple[dict[str, int], str]:
    """Choose the width, depth and heads of the ViT."""
    width, depth, why = 384, 12, "a ViT-S, the usual on a GPU"
    if not has.gpu:
        deep = long and number >= HELD_OUT
        width, depth = 192, 12 if deep else 6
        why = "a long budget" if deep else "small enough for a CPU"
    elif number >= 100_000 and has.gpu >= 20:
        width, why = 768, f"a ViT-B, for {number} images"
    return {"width": width, "depth": depth, "num_heads": width // 64}, why


def codebook(most: int, number: int, patches: int, batch: int) -> tuple[int, str]:
    """Choose the number of codes (K): 64 patches of the images to a code, 4 of the first batch."""
    seen, first = number * patches, batch * patches
    codes = max(32, min(most, power_of_two(seen / 64), power_of_two(first / 4)))
    return codes, f"the images have {seen} patches, and a batch {first}"


def teacher_size(shape: Geometry, gpu: bool) -> int:
    """Choose the teacher's images: a map of stride 32 with a cell for each patch, on a CPU 7."""
    cells = max(shape.size) // shape.patch
    return 32 * (cells if gpu else min(cells, 7))


def power_of_two(most: float) -> int:
    """Return the largest power of two up to a number, at least 1."""
    return int(2 ** math.floor(math.log2(max(most, 1))))
