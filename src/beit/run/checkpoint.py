"""Checkpoints of a run: reading accepts only tensors and plain values."""

import logging
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from errno import EINVAL
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch

from beit.files import out_of_memory
from beit.run.directory import RunDirectory

logger = logging.getLogger(__name__)


def latest(run: RunDirectory) -> tuple[int, dict[str, Any]] | None:
    """Read the newest undamaged checkpoint onto the CPU: (step, state); None before the first.

    A damaged checkpoint is logged and skipped.

    Raises:
        ValueError: all checkpoints are damaged.
        FileNotFoundError: they, or their folder, are gone. A run that had a checkpoint never
            restarts from step 0 by itself.
    """
    saved = run.saved_steps()
    if not saved:
        if run.weights_file.exists() or not run.checkpoints.is_dir():
            raise FileNotFoundError(
                f"{run.checkpoints} holds no checkpoint to resume from; put those of the run back, "
                "or start a new run"
            )
        logger.warning("%s has no checkpoint yet: the run starts again at step 0", run.path)
        return None
    for step in sorted(saved, reverse=True):
        try:
            return step, read(saved[step], step)
        except ValueError as error:
            logger.warning("%s; trying the checkpoint before it", error)
    raise ValueError(f"every checkpoint in {run.checkpoints} is damaged; start a new run")


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
        step = run.saved_step()
        way = f"; the checkpoint of step {step} is good: beit {verb} --resume {run.path}"
        if step is not None and error.strerror:
            error.strerror += way
        elif step is not None:
            error.args = (f"{error}{way}",)
        raise


def read(path: Path, step: int) -> dict[str, Any]:
    """Read one checkpoint; ValueError naming the file if it is damaged."""
    try:
        # torch.load does not notice flipped bits; the archive's checksums do.
        with zipfile.ZipFile(path) as archive:
            packed = (entry.filename for entry in archive.infolist() if entry.compress_type)
            damaged = next(packed, None) or archive.testzip()  # torch compresses nothing
        if damaged is not None:
            raise zipfile.BadZipFile(f"in {damaged}")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # reading a damaged or forged pickle raises anything
        if out_of_memory(error) or getattr(error, "errno", EINVAL) != EINVAL:
            raise
        unsafe = isinstance(error, pickle.UnpicklingError)  # torch suggests weights_only=False
        reason = "holds more than tensors and plain values" if unsafe else f"is damaged ({error})"
        raise ValueError(f"checkpoint {path} {reason}") from error
    fits = isinstance(content, dict) and content.get("step") == step
    if not fits or not isinstance(content.get("state"), dict):
        raise ValueError(f"checkpoint {path} does not hold the state of step {step}")
    state: dict[str, Any] = content["state"]
    return state
