"""A time in which a training ends, `run.budget`: its steps are timed, then its epochs shortened.

Both happen before the run begins. Its config.yaml holds the epochs, so that it is as reproducible
as any other, resumes with the same schedule and never measures again.
"""

import io
import logging
import math
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from contextvars import ContextVar
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, TextIO, TypeVar

from torch import distributed

from beit.data.source import UnreadableImage
from beit.run.directory import RunConfig, RunDirectory
from beit.run.optim import Schedule
from beit.run.preemption import without_checkpoint
from beit.run.watching import measured_by, watched_by

logger = logging.getLogger(__name__)

C = TypeVar("C")
BATCHES = 6  # training batches of the trial, each seen twice
STEPS = 2 * BATCHES
UNTIMED = 4  # first steps of the trial, in which memory is allocated and workers start
SPAN = 2  # steps that are timed together: reading the clock waits for the device
FEW = 100  # steps
READ = 12  # images that are read to time it
SLOWER = 1.1  # times as long as it was timed, from which a step is the reason of an overrun
SAY_EVERY = 20.0  # seconds between two signs of life of a trial
RESERVE = 0.05  # share of the budget for what a trial does not show


class Sets(NamedTuple):
    """The images of a training, `beit.data.source.Source` or label maps, not kept in memory."""

    train: Any
    validation: Any = ()
    checked: int = 0  # images of one k-NN check
    prepared: float = 0.0  # seconds before the first step that grow with the number of images


class Times(NamedTuple):
    """Seconds of a step, of reading an image, of a report, and of all that a run does once."""

    step: float
    image: float
    report: float
    once: float


def within_budget(
    run: Callable[[Any], object],
    config: C,
    open_sets: Callable[[], Sets],
    trial: Callable[[C, Path], Any] = lambda config, folder: config,
    fit: Callable[[C, int], C] = lambda config, steps: config,
) -> C:
    """Shorten a training so that it ends within its budget; unchanged if it has none.

    Args:
        run: the training
        config: its settings
        open_sets: opens its images
        trial: changes the settings for the trial, which may write into a folder
        fit: changes the settings for the number of steps
    """
    settings: Any = config
    budget = settings.run.budget
    if not budget:
        return config
    started, seconds = time.monotonic(), seconds_of(budget)
    RunDirectory.check_new(settings.run.output)
    sets = open_sets()
    logger.info("timing %d steps, for a run that ends within %s", STEPS, budget)
    times = _of_first_process(measured(run, partial(trial, config), sets))
    spent = time.monotonic() - started
    left = seconds * (1 - RESERVE) - spent
    most = _of_first_process(affordable(left, settings, sets, times))
    fitted = shortened(settings, len(sets.train), most)
    steps = fitted.optim.schedule(len(sets.train)).total_steps
    epochs = getattr(fitted.optim, "epochs", None)
    length = "" if epochs is None else f"{epochs:g} epoch{'s' * (epochs != 1)}, "
    verdict = "they fit into" if fitted is settings else "as many as fit into"
    number = f"{steps} step{'s' * (steps != 1)} of {times.step:.2g} s"
    why = f"{length}{number}: {verdict} {budget}"
    logger.info("%s", why)
    if steps < FEW and fitted is not settings:
        other = seconds_needed(fitted, sets, times) - steps * times.step
        logger.warning(
            "%s is little: a training learns hardly anything in fewer than %d steps. The trial "
            "took %.0f s; reading, features of a teacher that are kept, validations and the report "
            "take %.0f s. Give a longer budget; if other programs used the machine just now, begin "
            "again without them",
            *(number, FEW, spent, other),
        )
    chosen = (*settings.run.chosen, why)
    recorded = replace(settings.run, budget="", fitted_to=budget, chosen=chosen)
    _overrun.set(_Overrun(started, seconds, spent, times.step))
    return fit(replace(fitted, run=recorded), steps)


class _Overrun:
    """Says at the end of a training that it took longer than its budget, and why."""

    def __init__(self, started: float, budget: float, trial: float, step: float) -> None:
        self._started, self._budget, self._trial, self._expected = started, budget, trial, step
        self._steps, self._seconds, self._begun = 0, 0.0, 0.0

    def on_step_start(self, stream: object) -> None:
        self._begun = time.monotonic()

    def on_step_end(self, *about: object) -> None:
        self._steps, self._seconds = self._steps + 1, self._seconds + time.monotonic() - self._begun

    def after_finish(self, journal: Any) -> None:
        taken = time.monotonic() - self._started
        if taken <= self._budget or not journal.fabric.is_global_zero:
            return
        step, reason = self._seconds / max(1, self._steps), "validations and reports took longer"
        if step > SLOWER * self._expected:
            reason = "other programs may have used the machine"
        journal.message(
            f"{taken / 60:.1f} minutes, over the budget of {journal.config.run.fitted_to}: the "
            f"trial took {self._trial / 60:.1f} of them, a step {step:.2g} s, "
            f"{self._expected:.2g} s when it was timed; {reason}"
        )


_overrun: ContextVar[_Overrun | None] = ContextVar("overrun", default=None)


def callbacks() -> list[Any]:
    """Return the callback, of lightning-fabric, of a training that begins now with a budget."""
    overrun = _overrun.get()
    _overrun.set(None)
    return [] if overrun is None else [overrun]


def seconds_of(duration: str | float) -> float:
    """Read a duration: 30m, 2h, 1h30m or 90s. A number without a unit is refused."""
    duration = str(duration)
    number = r"(\d+(?:\.\d+)?)"
    match = re.fullmatch(rf"(?:{number}h)?(?:{number}m)?(?:{number}s)?", duration)
    values = [float(value or 0) for value in match.groups()] if match else [0.0]
    if not sum(values):
        hint = f"; for minutes write {duration}m" if duration.isdecimal() else ""
        raise ValueError(
            f"budget is {duration!r}; expected a time as in 30m, 2h, 1h30m or 90s{hint}"
        )
    return values[0] * 3600 + values[1] * 60 + values[2]


def measured(run: Callable[[Any], object], trial: Callable[[Path], Any], sets: Sets) -> Times:
    """Run a trial: a few steps on a few images, without validation, in a temporary directory."""
    image = seconds_to_read(sets.train)
    with tempfile.TemporaryDirectory() as folder:
        config, directory = trial(Path(folder)), Path(folder) / "trial"
        settings = RunConfig(output=str(directory), seed=config.run.seed, stop_after=STEPS)
        settings = replace(settings, log_every=SPAN, checkpoint_every=STEPS)
        screen = sys.stderr if os.environ.get("RANK", "0") == "0" else io.StringIO()
        started, clock = time.monotonic(), _Clock(screen)
        with _quietly(), watched_by(None), measured_by(clock), without_checkpoint():
            run(replace(as_trial(config, len(sets.train)), run=settings))
        ended = time.monotonic()
    step = seconds_of_step(clock.ends, clock.waits)
    once = max(0.0, ended - started - STEPS * step) + sets.prepared
    return Times(step, image, ended - clock.ends[-1], once)


class _Clock:
    """Notes when each step of a trial ended, and how long all had waited for images by then."""

    def __init__(self, screen: TextIO) -> None:
        self.ends, self.waits = list[float](), list[float]()
        self._screen, self._said = screen, time.monotonic()

    def on_step_end(self, stream: Any, *about: object) -> None:
        self.ends.append(time.monotonic())
        self.waits.append(stream.wait_seconds)
        if self.ends[-1] - self._said > SAY_EVERY:
            self._said = self.ends[-1]
            print(f"timed {len(self.ends)} of {STEPS} steps", file=self._screen, flush=True)


def seconds_of_step(ends: Sequence[float], waits: Sequence[float]) -> float:
    """Return the median of a step's work, so that a busy moment does not count, and its mean wait.

    Images come in bursts, as many as there are workers: of their waits only the mean is known.
    """
    spans = [
        ends[last] - ends[last - SPAN] - (waits[last] - waits[last - SPAN])
        for last in range(UNTIMED + SPAN - 1, len(ends), SPAN)
    ]
    waited = (waits[-1] - waits[UNTIMED - 1]) / (len(ends) - UNTIMED)
    return median(spans) / SPAN + waited


def as_trial(config: Any, num_images: int) -> Any:
    """Return the settings of a training on a few images, without validation and checks."""
    data, optim = config.data, config.optim
    limit = min(BATCHES * optim.batch_size, num_images)
    cache = data.cache_gigabytes * limit / num_images  # these images fit in if all of them do
    if hasattr(optim, "steps"):
        optim = replace(optim, steps=STEPS, warmup_steps=0)
    else:
        optim = replace(optim, epochs=STEPS, warmup_epochs=0)
    checks = {"check": replace(config.check, every=0)} if hasattr(config, "check") else {}
    return replace(
        config,
        data=replace(data, limit=limit, validation="", cache_gigabytes=cache, max_unreadable=1.0),
        optim=optim,
        validate_every=STEPS,
        **checks,
    )


def seconds_to_read(source: Any) -> float:
    """Time the reading of an image, by a few; those that cannot be read count as well."""
    indices = range(0, len(source), -(-len(source) // READ))
    started = time.monotonic()
    for index in indices:
        with suppress(UnreadableImage):
            source.image(index)
    return (time.monotonic() - started) / len(indices)


def affordable(seconds: float, config: Any, sets: Sets, times: Times) -> int:
    """Return the most steps, at most those planned, of which a shortened run ends in a time."""
    fewest, most = 0, config.optim.schedule(len(sets.train)).total_steps + 1
    while most - fewest > 1:
        steps = (fewest + most) // 2
        if seconds_needed(shortened(config, len(sets.train), steps), sets, times) <= seconds:
            fewest = steps
        else:
            most = steps
    return fewest


def seconds_needed(config: Any, sets: Sets, times: Times) -> float:
    """Return the time that a run takes, with its validations and checks.

    Reading all images once counts on top of the steps: they may be kept for later epochs. An image
    of a validation takes no longer than one of training. A report follows each validation.
    """
    count, reading = len(sets.train), times.image / max(1, config.data.num_workers)
    validations = evaluations(config, config.validate_every, count)
    evaluated = len(sets.validation) * validations
    if sets.checked:
        evaluated += sets.checked * evaluations(config, config.check.every, count)
    image = times.step / config.optim.batch_size + reading
    steps = config.optim.schedule(count).total_steps
    reports = (validations - 1) * times.report  # `once` has one
    seconds: float = times.once + steps * times.step + count * reading + evaluated * image
    return seconds + reports


def evaluations(config: Any, every: int, num_images: int) -> int:
    """Return how often a run evaluates every so many epochs, or steps, and at its end."""
    schedule: Schedule = config.optim.schedule(num_images)
    steps = every * (1 if hasattr(config.optim, "steps") else schedule.steps_per_epoch)
    return math.ceil(schedule.total_steps / steps)


def shortened(config: Any, num_images: int, most: int) -> Any:
    """Shorten a training to so many steps, its warm-up and intervals in proportion.

    Unchanged if it has no more. One step is the least.
    """
    optim, schedule = config.optim, config.optim.schedule(num_images)
    if schedule.total_steps <= most:
        return config
    share = max(most, 1) / schedule.total_steps
    if hasattr(optim, "steps"):
        shorter: dict[str, float] = {
            "steps": max(most, 1),
            "warmup_steps": int(optim.warmup_steps * share),
        }
    else:
        epochs = three_digits(max(most, 1) / schedule.steps_per_epoch)
        shorter = {"epochs": epochs, "warmup_epochs": optim.warmup_epochs * epochs / optim.epochs}
    changes = {"optim": replace(optim, **shorter)}
    if hasattr(config, "check"):
        changes["check"] = replace(config.check, every=math.ceil(config.check.every * share))
    return replace(config, validate_every=math.ceil(config.validate_every * share), **changes)


def three_digits(value: float) -> int | float:
    """Round down to three digits; from 100 on to an integer."""
    if value >= 100:
        return math.floor(value)
    scale = 10.0 ** (2 - math.floor(math.log10(value)))
    return float(math.floor(value * scale) / scale)


def _of_first_process(value: Any) -> Any:
    """Return the first process's value, in all of them."""
    values = [value]
    if distributed.is_available() and distributed.is_initialized():
        distributed.broadcast_object_list(values)
    return values[0]


@contextmanager
def _quietly() -> Iterator[None]:
    """Show neither progress nor messages, except warnings."""
    log = logging.getLogger("beit")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            yield
    finally:
        log.setLevel(level)
