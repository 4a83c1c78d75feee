"""Doctor: what is wrong with images, this machine or the plan of a training, before it begins.

`beit doctor` looks at the machine, `beit doctor DATA` reads every image of a set once. With a
preset or a file of settings it measures that training here, see `beit.diagnosis.training`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from beit.command.ending import Ending, opened, words
from beit.command.options import name_positionals, parse
from beit.diagnosis.checks import (
    CLASSES,
    CUT_OFF,
    JSON,
    Findings,
    check_output,
    failures,
    show,
    write,
)
from beit.diagnosis.clean import as_data
from beit.diagnosis.faults import DROPPED, KINDS
from beit.diagnosis.images import check_images
from beit.diagnosis.machine import check_machine
from beit.diagnosis.near import MOST
from beit.diagnosis.training import Training, check_training, training_of
from beit.draw.names import percent
from beit.wording import amount


@dataclass(frozen=True)
class Config:
    """Find what is wrong with images, or, if none are given, with this machine.

    Args:
        data: the images, as for any other verb; of data with splits, the training images
        test: test images, which must not be among the training images; empty for the data's own
            test split, if there is one
        output: a new folder for doctor.json and a page with pictures of each kind of fault; null to
            print the table only
        write: a new file that lists all images except the kinds in `drop`; use it with any verb as
            @clean.txt; a name that ends in .csv keeps the labels
        drop: kinds of images that `write` leaves out: unreadable, copy, near, test_copy, near_test,
            alike_test, two_labels, flat, faint, small, long, size, unlabelled
        near: largest number of different bits, of 64, between the perceptual hashes of near copies
        model: compare training and test images also by the features of this model: a run, a
            weights file, published:NAME, hf://OWNER/NAME or teacher:SOURCE; empty for none
        cosine: smallest cosine of these features at which two images count as almost the same
        max_ratio: aspect ratio, longer over shorter side, above which an image counts as long
        max_unreadable: share of unreadable images above which a training stops
        limit: number of images to check, a fixed random subset; null for all
        num_workers: processes that read images
        verb: measure a training instead, and predict its speed, time and memory on this machine;
            --preset or --config also select a training; its own options follow, such as --data or
            --optim.batch_size
    """

    data: str = ""
    test: str = ""
    output: str | None = None
    write: str | None = None
    drop: tuple[str, ...] = DROPPED
    near: int = 4
    model: str = ""
    cosine: float = 0.92
    max_ratio: float = 5.0
    max_unreadable: float = 0.01
    limit: int | None = None
    num_workers: int = 2
    verb: str | None = None

    def __post_init__(self) -> None:
        if unknown := [kind for kind in self.drop if kind not in KINDS]:
            raise ValueError(f"drop has {unknown[0]!r}; expected some of {', '.join(KINDS)}")
        if not 0 <= self.near <= MOST:
            raise ValueError(f"near is {self.near}; expected 0 to {MOST} of 64 bits")
        if not 0 < self.cosine <= 1:
            raise ValueError(f"cosine is {self.cosine}; expected above 0, to 1 for equal features")
        if self.max_ratio <= 1:
            raise ValueError(f"max_ratio is {self.max_ratio}; expected more than 1")
        if self.num_workers < 0:
            raise ValueError(f"num_workers is {self.num_workers}; expected 0 or more")
        if not self.data and (self.test or self.write or self.model):
            raise ValueError("data is missing: the images to look at, as in beit doctor photos")


class Result(NamedTuple):
    """What was found.

    Attributes:
        failures: what must be mended, a sentence each; the exit code is 1 if there are any
        figures: the numbers that matter, by name
        report: the page; None without
    """

    failures: list[str]
    figures: dict[str, float]
    report: Path | None = None


def read_options(options: Sequence[str]) -> Config | Training:
    """Read a command line: a training to measure with --preset, --config or --verb, else images."""
    return training_of(name_positionals("doctor", options)) or parse("doctor", Config, options)


def run(config: Config | Training) -> Result:
    """Look at the images, a training or the machine; print a table, write what was asked for."""
    check_output(config.output)
    if isinstance(config, Training):
        found = check_training(config)
    elif config.data:
        found = check_images(config)
    else:
        found = Findings("This machine", check_machine(Path(config.output or ".")))
    show(found.checks)
    report = None if config.output is None else write(Path(config.output), found)
    if failed := failures(found.checks):
        print(f"\n{len(failed)} to mend, marked with !", flush=True)
    return Result(failed, dict(found.figures), report)


def ending(config: Config | Training, result: Result) -> Ending:
    """Say what was found; the page is next, or one with pictures, or the training."""
    if isinstance(config, Training):
        made = "no files" if result.report is None else f"{result.report} and {JSON}"
        speed, hours = (result.figures[name] for name in ("images_per_second", "hours"))
        figure = f"{speed:.3g} images/s, {hours:.3g} hours"
        return Ending(made, figure, [config.verb, *config.options])
    made = "no files"
    if config.write is not None:
        made = f"{config.write}, a list of clean images"
    if result.report is not None:
        return Ending(f"{result.report} and {JSON}", _figure(result), opened(result.report))
    if not config.data:
        return Ending(made, _figure(result), words("demo"))
    then = words("doctor", config.data, test=config.test, output="checked")
    if config.write is not None:
        then = words("train-tokenizer", data=as_data(config.write, config.data))
    return Ending(made, _figure(result), then)


def _figure(result: Result) -> str:
    if "images" not in result.figures:
        return "nothing must be mended"
    figures = result.figures
    kinds = [f"{int(figures[kind])} {kind}" for kind in KINDS if kind in figures]
    if CLASSES in figures:
        kinds.append(f"{amount(int(figures[CLASSES]), 'finding')} on classes")
    if CUT_OFF in figures:
        kinds.append(f"{percent(figures[CUT_OFF])} of values at the high end of the range")
    return f"{int(figures['images'])} images; {', '.join(kinds) or 'no fault'}"
