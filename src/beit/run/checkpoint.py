"""Checkpoints of a run: reading accepts only tensors and plain values."""

import logging
import math
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch

from beit.files import out_of_memory
from beit.run.directory import RunDirectory

logger = logging.getLogger(__name__)

_NAME = re.compile(r"step-(\d{9})\.pt")


def latest(run: RunDirectory) -> tuple[int, dict[str, Any]] | None:
    """Read the newest undamaged checkpoint onto the CPU: (step, state); None before the first.

    A damaged checkpoint is logged and skipped.

    Raises:
        ValueError: all checkpoints are damaged.
        FileNotFoundError: they, or their folder, are gone. A run that had a checkpoint never
            restarts from step 0 by itself.
    """
    saved = saved_steps(run)
    if not saved and (run.weights_file.exists() or not run.checkpoints.is_dir()):
        raise FileNotFoundError(
            f"{run.checkpoints} holds no checkpoint to resume from; put those of the run back, or "
            "start a new run"
        )
    if not saved:
        logger.warning("%s has no checkpoint yet: the run starts again at step 0", run.path)
    for step in sorted(saved, reverse=True):
        try:
            return step, _read(saved[step], step)
        except ValueError as error:
            logger.warning("%s; trying the checkpoint before it", error)
    if saved:
        raise ValueError(f"every checkpoint in {run.checkpoints} is damaged; start a new run")
    return None


def restore(
    run: RunDirectory, step: int, parts: Mapping[str, Any], state: Mapping[str, Any]
) -> None:
    """Load the state of a checkpoint; ValueError if it does not fit the parts of the run."""
    for name, part in parts.items():
        try:
            part.load_state_dict(state[name])
        except (KeyError, RuntimeError, ValueError) as error:
            if out_of_memory(error):
                raise
            reason = str(error).splitlines()[:2][-1].strip(" \t.")  # torch lists every tensor
            raise ValueError(
                f"the checkpoint of step {step} in {run.path} does not fit the {name} that its "
                f"config.yaml describes: {shorten(reason, 200, placeholder=' ...')}. If that file "
                "was edited, undo it, or start a new run with the new settings"
            ) from error


@contextmanager
def resumable(run: RunDirectory, verb: str) -> Iterator[None]:
    """Let an error of the system, as of a disk or a data worker, say how the run goes on."""
    try:
        yield
    except OSError as error:
        step = max(saved_steps(run), default=None)
        way = f"; the checkpoint of step {step} is good: beit {verb} --resume {run.path}"
        if step is not None and error.strerror:
            error.strerror += way
        elif step is not None:
            error.args = (f"{error}{way}",)
        raise


def refuse_non_finite(
    run: RunDirectory, step: int, means: Mapping[str, float], rate: float
) -> None:
    """Stop a run if the mean of a loss since the last log line is not finite.

    Raises:
        ValueError: names the step, the learning rate and the last checkpoint.
    """
    for name, loss in means.items():
        if name.endswith("loss") and not math.isfinite(loss):
            saved = saved_steps(run)
            good = saved[max(saved)] if saved else "none"
            raise ValueError(
                f"the {name} is {loss} at step {step}, learning rate {rate:.3g}; last good "
                f"checkpoint: {good}. Lower the learning rate, clip gradients (--optim.clip), or "
                "use bf16-mixed or 32-true precision"
            )


def saved_steps(run: RunDirectory) -> dict[int, Path]:
    """Return the files of the checkpoints, by their step."""
    files = run.checkpoints.iterdir() if run.checkpoints.is_dir() else ()
    return {int(match[1]): file for file in files if (match := _NAME.fullmatch(file.name))}


def _read(path: Path, step: int) -> dict[str, Any]:
    """Read one checkpoint; ValueError naming the file if it is damaged."""
    try:
        # torch.load does not notice flipped bits; the archive's checksums do.
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"checkpoint {path} is damaged in {damaged}")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # torch's message suggests weights_only=False
        raise ValueError(f"checkpoint {path} holds more than tensors and plain values") from error
    except (zipfile.BadZipFile, RuntimeError, EOFError) as error:
        if out_of_memory(error):
            raise
        raise ValueError(f"checkpoint {path} is damaged ({error})") from error
    if not isinstance(content, dict) or content.get("step") != step or "state" not in content:
        raise ValueError(f"checkpoint {path} does not hold the state of step {step}")
    state: dict[str, Any] = content["state"]
    return state
