"""Repeat a step that a training has skipped, to find the module and image of the first NaN.

The training itself runs: from the weights that were kept with the step, for this step alone, in a
directory of its own that is removed. The run stays as it is.
"""

import logging
import math
import shutil
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, cast

import torch

from beit.command.ending import Ending, words
from beit.command.modules import module_of_run
from beit.files import user_path
from beit.replaying.trace import First, Replayed, Trace
from beit.run import checkpoint
from beit.run.directory import RunDirectory
from beit.run.images import kept_names
from beit.run.resume import Training, open_run
from beit.run.skipping import guarded_by, record_file
from beit.wording import some

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Config:
    """The skipped step to compute again.

    Args:
        run: the directory of a training that has skipped steps
        step: number of the step; null for the first one that was recorded
        float32: compute in float32 instead of the run's precision, to see whether the precision is
            the cause
    """

    run: str
    step: int | None = None
    float32: bool = False


class Replay(NamedTuple):
    """A step computed again.

    Attributes:
        step: its number
        fault: why it was skipped, as recorded
        precision: in which it was computed again
        rank: the process, of those of the run, that this is about
        first: where numbers were not finite first; None if all were finite
        images: names of their images; empty if unknown
        function: of PyTorch, whose gradient was nan first though all activations were finite
        weights: names of those whose gradients were not finite
        losses: names and values, of each micro-batch
        norm: of the gradient of this process
        same: whether the losses are those of the record, for one process the norm too
    """

    step: int
    fault: str
    precision: str
    rank: int
    first: First | None
    images: list[str]
    function: str
    weights: list[str]
    losses: list[tuple[str, float]]
    norm: float
    same: bool


def run(config: Config) -> Replay:
    """Compute the step again and log what was found."""
    path = user_path(config.run)
    training = cast(Training, import_module(module_of_run(RunDirectory.open(path).verb(), path)))
    settings, directory = open_run(training, path)
    step, model, about = recorded(directory, config.step)
    logger.info("step %d was skipped: %s", step, about["fault"])
    latest = checkpoint.latest(directory)
    if latest is None:
        raise ValueError(
            f"{directory.checkpoints} is empty; a replay takes all but the weights there"
        )
    state = latest[1] | {"model": model, "means": {}}
    state["optimizer"] = state["optimizer"] | {"state": {}}  # moments do not change the gradient
    precision = "32-true" if config.float32 else about["precision"]
    if precision != "16-mixed":
        state["scaling"] = {}
    settings = _for_one_step(settings, precision)
    losses = about["losses"]
    ranks = [rank for rank, values in enumerate(losses) if not all(map(math.isfinite, values))]
    for rank in ranks or range(len(losses)):
        trace = Trace(rank, len(losses), anomalies=False)
        compute(training, settings, directory, step, state, trace)
        if not trace.forward and (trace.gradient or trace.weights):
            backward = Trace(rank, len(losses), anomalies=True)
            compute(training, settings, directory, step, state, backward)
            trace.function = backward.function
        replay = _replay(directory, step, rank, about | {"precision": precision}, trace)
        if replay.first or replay.weights:
            break
    _log(replay)
    return replay


def ending(config: Config, result: Replay) -> Ending:
    """Say where the numbers were not finite first; float32 is next, or the run's curves."""
    first = f"first in the {result.first.where}" if result.first else "finite numbers"
    images = f", of {some(result.images)}" if result.images else ""
    then = words("report", config.run)
    if result.precision != "32-true":
        then = words("replay", config.run, step=result.step, float32="true")
    return Ending(
        f"step {result.step} of {config.run}, computed again; the run is as it was",
        f"{result.fault}; computed again: {first}{images}",
        then,
    )


def recorded(run: RunDirectory, step: int | None) -> tuple[int, dict[str, Any], dict[str, Any]]:
    """Read a skipped step of a run. Returns: its number, the weights before it, what is known.

    Raises:
        ValueError: the step was not recorded, or its file is damaged.
    """
    files = {int(file.stem[5:]): file for file in run.path.glob("skipped/step-*[0-9].pt")}
    if not files:
        raise ValueError(f"{run.path} has recorded no skipped step: nothing to replay")
    number = min(files) if step is None else step
    if number not in files:
        known = ", ".join(map(str, sorted(files)))
        raise ValueError(f"{run.path} has no record of step {number}; it has: {known}")
    file = record_file(run, number)
    content = checkpoint.read(file, number)
    model, about = content.get("model"), content.get("about")
    needed = {"fault", "precision", "losses", "names", "norm"}
    if not isinstance(model, dict) or not isinstance(about, dict) or needed - about.keys():
        raise ValueError(f"{file} is not a record of a skipped step")
    return number, model, about


def compute(
    training: Training,
    settings: Any,
    run: RunDirectory,
    step: int,
    state: dict[str, Any],
    trace: Trace,
) -> None:
    """Run the training of a run, in a copy of its directory, for one step from a state."""
    with TemporaryDirectory() as folder:
        copy = RunDirectory(Path(folder) / run.path.name)
        copy.checkpoints.mkdir(parents=True)
        for file in (run.config_file, run.environment_file, run.images_file):
            if file.exists():
                shutil.copy(file, copy.path)
        before = {"step": step - 1, "state": state}
        torch.save(before, copy.checkpoints / f"step-{step - 1:09d}.pt")
        try:
            with guarded_by(trace), trace.watching():
                training.run(settings, copy, True)
        except Replayed:
            return
    raise AssertionError("the training ended before its step")


def _for_one_step(settings: Any, precision: str) -> Any:
    """Change settings that do not change the step: one process and no validation."""
    device = replace(settings.device, devices=1, num_nodes=1, compile=False, precision=precision)
    changes: dict[str, Any] = {
        "device": device,
        "data": replace(settings.data, num_workers=0),
        "run": replace(settings.run, profile=0, stop_after=None, track=""),
        "validate_every": 2**31,
    }
    if hasattr(settings, "check"):
        changes["check"] = replace(settings.check, every=0)
    return replace(settings, **changes)


def _replay(run: RunDirectory, step: int, rank: int, about: dict[str, Any], trace: Trace) -> Replay:
    losses, then = trace.losses, about["losses"][rank]
    pairs = list(zip(losses, then, strict=False))
    if len(about["losses"]) == 1:
        pairs.append((trace.norm, about["norm"]))
    same = len(losses) == len(then) and all(_equal(*pair) for pair in pairs)
    first = trace.forward or trace.gradient
    names = kept_names(run, "data.train")
    images = [names[i] if i < len(names) else f"number {i}" for i in first.images] if first else []
    named = list(zip(about["names"], losses, strict=False))
    of_step = step, about["fault"], about["precision"], rank
    return Replay(*of_step, first, images, trace.function, trace.weights, named, trace.norm, same)


def _equal(now: float, then: float) -> bool:
    return now == then or not (math.isfinite(now) or math.isfinite(then))


def _log(replay: Replay) -> None:
    first, losses = replay.first, ", ".join(f"{name} {loss:.6g}" for name, loss in replay.losses)
    logger.info("computed again as process %d: %s, gradient %.6g", replay.rank, losses, replay.norm)
    if first:
        images = f", of {some(replay.images)}" if replay.images else ""
        logger.info("the first numbers that are not finite: %s%s", first.where, images)
    elif not all(math.isfinite(loss) for _, loss in replay.losses):
        logger.info("all modules gave finite numbers: the loss itself is not finite")
    else:
        logger.info("all losses and activations are finite")
    if replay.function:
        logger.info("the first nan of the backward pass: %s", replay.function)
    if replay.weights:
        logger.info("weights whose gradients are not finite: %s", some(replay.weights))
    if not replay.same:
        logger.warning(
            "these are not the numbers of the record: the precision, the device, the images or "
            "the code may be others"
        )
