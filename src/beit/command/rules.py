"""Numbers of a training that follow its images, the machine and a budget, each with its reason."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from beit.command.survey import HELD_OUT, Images, Machine, Options
from beit.run.budget import seconds_of

LONG = 4 * 3600.0  # seconds of a budget from which a CPU trains a larger model
BLOCK_BYTES = 34 * 2  # of a token and channel that a block keeps for the backward pass, bfloat16
SHARE_OF_GPU = 0.6  # of its memory, for those
PARTS = {  # the options of the ViT
    "train-tokenizer": "model.encoder",
    "pretrain": "model.backbone",
    "finetune": "backbone",
}


class Length(NamedTuple):
    """How long a training is.

    Attributes:
        views: training views of a run without a budget
        least: epochs of a run without a budget
        most: epochs
        warmup: share of the epochs
    """

    views: int
    least: int
    most: int
    warmup: float = 0.05


LENGTHS = {
    ("train-tokenizer", "cpu"): Length(200_000, 1, 300),
    ("train-tokenizer", "gpu"): Length(4_000_000, 1, 300),
    ("pretrain", "cpu"): Length(400_000, 1, 800),
    ("pretrain", "gpu"): Length(10_000_000, 1, 800),
    # On a CPU as in docs/results/finetune-cifar10.md for 500, 5,000 and 50,000 labels.
    ("finetune", "cpu"): Length(100_000, 8, 100, 0.125),
    ("finetune", "gpu"): Length(3_000_000, 30, 100, 0.2),
}


class Geometry(NamedTuple):
    """Images and patches of a model: (height, width), and the side of a patch."""

    size: tuple[int, int]
    patch: int

    @property
    def patches(self) -> int:
        """The number of patches (N)."""
        return (self.size[0] // self.patch) * (self.size[1] // self.patch)


class Given(NamedTuple):
    """What a model decides from which a training starts, or whose codes it predicts.

    Attributes:
        name: of that model, in words
        shape: its images and patches
        vit: width and depth; empty if they are free
    """

    name: str
    shape: Geometry
    vit: Mapping[str, int] = {}


def fitted(
    verb: str,
    preset: Mapping[str, Any],
    images: Images,
    has: Machine,
    options: Options,
    given: Given | None = None,
) -> tuple[dict[str, Any], list[str]]:
    """Fit a preset's numbers to the images and the machine. Returns: values, and why.

    Args:
        given: what the tokenizer, or the model to fine-tune, decides
    """
    part, reasons = PARTS[verb], list[str]()
    budget = options.get("run.budget", "")
    long = bool(budget) and seconds_of(budget) >= LONG
    if given is None:
        shape, why = geometry(images.side, has, long, options, part)
    else:
        shape, why = given.shape, f"as {given.name}"
    (height, width), N = shape.size, shape.patches
    reasons.append(f"{height} x {width} pixels, {N} patches of {shape.patch}: {why}")
    if given is None or not given.vit:
        usual_vit, why = network(images.number, has, long)
        vit = {name: options.get(f"{part}.{name}", value) for name, value in usual_vit.items()}
    else:
        vit, why = dict(given.vit), f"as {given.name}"
    reasons.append(f"a ViT of width {vit['width']} and depth {vit['depth']}: {why}")
    image = (N + 1) * vit["width"] * vit["depth"] * BLOCK_BYTES
    values, reason, total = pace(verb, preset, images, has, options, image)
    reasons += reason
    vit |= {"image_size": [height, width], "patch_size": shape.patch}
    if images.channels != 3:
        halves = [0.5] * images.channels
        vit |= {"in_channels": images.channels, "mean": halves, "std": halves}
        reasons.append(
            f"{images.channels} channels, mean and std 0.5: the bands of the images; beit doctor "
            "measures better ones"
        )
    if verb == "finetune":
        fresh = bool(options.get("backbone"))  # else a model is given, or asked for
        return values | ({"backbone": vit} if fresh else {}), reasons
    if verb == "train-tokenizer":
        batch = values["optim"]["batch_size"]
        codes, why = codebook(preset["model"]["num_codes"], images.number, N, batch)
        reasons.append(f"{options.get('model.num_codes', codes)} codes: {why}")
        values["model"] = {"encoder": vit, "num_codes": codes}
        values["teacher"] = {"image_size": teacher_size(shape, bool(has.gpu))}
        start = preset["codebook"].get("start_after", 0)
        values["codebook"] = {"start_after": min(start, total // 10)}
        return values, reasons
    values["model"] = {"backbone": vit, "early_layers": max(1, vit["depth"] * 3 // 4)}
    values["mask"] = {"count": max(1, round(0.385 * N)), "min_block": max(1, N // 12)}
    values["check"] = {"every": 0 if images.unchecked else values["validate_every"]}
    if images.unchecked and not options.get("check.every"):
        reasons.append(f"no k-NN check: {images.unchecked}")
    return values, reasons


def pace(
    verb: str,
    preset: Mapping[str, Any],
    images: Images,
    has: Machine,
    options: Options,
    image_bytes: int,
) -> tuple[dict[str, Any], list[str], int]:
    """Choose the batch, the epochs and what follows from them. Returns: values, why, and steps.

    Args:
        image_bytes: what a training step keeps of an image
    """
    budget, number = options.get("run.budget", ""), images.number
    batch = batch_size(preset["optim"]["batch_size"], number, has, options, image_bytes)
    usual = LENGTHS[verb, "gpu" if has.gpu else "cpu"]
    passes = min(usual.most, max(usual.least, round(usual.views / number)))
    epochs = options.number("optim.epochs", usual.most if budget else passes)
    why = "the usual; --budget 30m says how long" if not budget else f"or what fits into {budget}"
    if options.get("optim.epochs"):
        why = "as given"
    total = max(1, round(epochs * max(1, number // batch)))
    workers = min(16, has.cores - 1) if has.gpu else min(4, has.cores // 2)
    cache = round(min(16.0, has.memory / 8), 1)
    values: dict[str, Any] = {
        "data": {
            "train": images.train,
            "validation": images.validation,
            "limit": images.limit,
            "num_workers": workers,
            "cache_gigabytes": cache,
        },
        "optim": {
            "batch_size": batch,
            "epochs": epochs,
            "warmup_epochs": epochs * usual.warmup,
        },
        "validate_every": max(1, math.ceil(epochs / 5)),
        "run": {"log_every": max(1, min(50, total // 10))},
    }
    passes_of = f"{epochs:g} epoch{'s' * (epochs != 1)} of {number} images"
    length = f"batches of {batch}, {passes_of}: {why}"
    memory = (
        f"data.num_workers {workers}, data.cache_gigabytes {cache:g}: CPU cores {has.cores}, "
        f"memory {has.memory:.0f} GB"
    )
    return values, [length, memory], total


def batch_size(most: int, number: int, has: Machine, options: Options, image_bytes: int) -> int:
    """Choose the batch: that of the preset or less, as the GPU and the images allow."""
    if has.gpu:
        most = min(most, power_of_two(has.gpu * 1e9 * SHARE_OF_GPU / image_bytes))
    batch: int = options.number("optim.batch_size", min(most, power_of_two(number / 3)))
    if batch > number:
        raise ValueError(
            f"optim.batch_size is {batch}, but there are {number} training images; give that or "
            "less, or leave it out"
        )
    return batch


def geometry(
    side: int, has: Machine, long: bool, options: Options, part: str
) -> tuple[Geometry, str]:
    """Choose the size of images, and of patches."""
    sizes = ((224, 16), (128, 16), (64, 8), (32, 4)) if has.gpu else ((96, 16), (64, 16), (32, 8))
    if long and not has.gpu:
        sizes = ((128, 16), *sizes)
    usual, patch = next((one for one in sizes if one[0] <= side), sizes[-1])
    given = options.get(f"{part}.image_size")
    height, width = options.sides(f"{part}.image_size", (usual, usual))
    fitting = [
        p for p in (16, 8, 4) if not (height % p or width % p) and min(height, width) >= 4 * p
    ]
    if given:
        patch = next(iter(fitting), patch)
    shape = Geometry((height, width), options.number(f"{part}.patch_size", patch))
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
