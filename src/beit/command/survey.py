"""What settings can follow: the images, the machine, and what the caller says."""

import math
import os
from collections.abc import Mapping
from statistics import median
from typing import Any, NamedTuple

import torch

from beit.data.channels import channels_of
from beit.data.classes import Labelled, known_classes, known_labels, renumbered
from beit.data.mixture import weights_of
from beit.data.source import Source, UnreadableImage
from beit.data.sources import open_source, open_test_split

FEWEST = 20  # images from which anything can be learned
SIZED = 8  # images whose size is looked at
HELD_OUT = 1000  # validation images at most, about


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
        channels: of each
    """

    train: str
    validation: str
    number: int
    side: int
    unchecked: str = ""
    limit: int | None = None
    channels: int = 3


class Options:
    """Nested values, by dotted name: the options of the caller, or a preset."""

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

    def number(self, name: str, default: Any) -> Any:
        """Return an option's number above 0, or the default if it is not given."""
        value = self.get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise ValueError(f"{name} is {value!r}; expected a number above 0")
        return value

    def sides(self, name: str, default: tuple[int, int]) -> tuple[int, int]:
        """Return an option's (height, width), or the default if it is not given."""
        value = self.get(name)
        match default if value is None else value:
            case [int(height), int(width)] if height > 0 and width > 0:
                return height, width
        raise ValueError(f"{name} is {value!r}; expected one side or [height,width], in pixels")


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


def look_at(verb: str, options: Options, data: Mapping[str, Any]) -> tuple[Images, list[str]]:
    """Open the images: count and size them, and choose those for validation.

    Args:
        data: `train`, `validation` and `limit` of the run that it starts from, if there is one

    Returns: the images, and what was chosen
    """
    own = bool(options.get("data.train"))
    spec = options.get("data.train") or data["train"]
    limit = options.get("data.limit", None if own else data.get("limit"))
    if limit is not None:
        limit = options.number("data.limit", limit)
    validation = options.get("data.validation", None if own else data.get("validation"))
    source = open_source(spec, split="train")
    if len(source) < FEWEST and verb != "finetune":
        raise ValueError(
            f"{spec} has {len(source)} images, too few for beit {verb}: it needs {FEWEST}, and "
            "learns little from fewer than some hundred; give more, or use published weights as "
            "they are, as in beit embed --model published:beitv2_base_patch16_224_pt1k_ft21k"
        )
    if verb == "finetune":
        known_labels(Labelled("--data", spec, source))  # before any image is decoded
    side, chosen = usual_side(source), [] if own else [f"data {spec}: as the run it starts from"]
    if validation is None:
        spec, validation, why = held_out(spec, source)
        chosen.append(why)
        source = open_source(spec, split="train") if spec.endswith("]") else source
    number = min(limit or len(source), len(source))
    unchecked = "" if verb == "finetune" else why_unchecked(spec, source, validation)
    channels = channels_of(spec)
    return Images(spec, validation, number, side, unchecked, limit, channels), chosen


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
    if weights_of(spec):
        return spec, "", "no validation: a mixture is for training; --validation names a set"
    number = len(source)
    try:
        test = open_test_split(spec, source)
    except (ValueError, OSError):  # a split for training and no other
        return spec, "", "no validation: the data have a training split and no other"
    if test is not None:
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
    labelled = Labelled("--data", train, source)
    try:
        classes = known_classes(labelled)
        test = open_source(validation, split="test")
        renumbered(Labelled("--validation", validation, test), classes, labelled.where)
    except (ValueError, OSError) as error:
        return str(error)
    return "there is one class only" if classes.number < 2 else ""
