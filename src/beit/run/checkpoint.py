"""Checkpoints of a run: written atomically; loading accepts only tensors and plain values."""

import logging
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from errno import EINVAL
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch

from beit.files import PARTIAL_SUFFIX, out_of_memory, replacing
from beit.run.directory import RunDirectory

logger = logging.getLogger(__name__)

_NAME = re.compile(r"step-(\d{9})\.pt")
_PLAIN = (int, float, bool, str, bytes, type(None))


def save(
    run: RunDirectory, step: int, state: dict[str, Any], keep_last: int = 2, keep_every: int = 0
) -> Path:
    """Write the state after `step` steps, then remove older checkpoints.

    Args:
        state: nested dicts, lists and tuples of tensors and plain values
        keep_last: number of newest checkpoints to keep, including this one
        keep_every: also keep checkpoints at multiples of this many steps; 0 for none
    """
    if keep_last < 1:
        raise ValueError(f"keep_last is {keep_last}; expected 1 or more")
    _check_loadable(state, "state")
    path = run.checkpoints / f"step-{step:09d}.pt"
    with replacing(path) as temporary, temporary.open("wb") as opened:
        torch.save({"step": step, "state": state}, opened)
    for leftover in run.checkpoints.glob(f".*{PARTIAL_SUFFIX}"):  # left by a killed process
        leftover.unlink(missing_ok=True)
    saved = saved_steps(run)
    # A newer checkpoint is damaged, since the run was resumed from an older one: remove it.
    past = sorted(other for other in saved if other <= step)
    kept = {step for step in past if keep_every and step and step % keep_every == 0}
    kept |= set(past[-keep_last:])
    for other, file in saved.items():
        if other not in kept:
            file.unlink()
    return path


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
            return step, read(saved[step], step)
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


def saved_steps(run: RunDirectory) -> dict[int, Path]:
    """Return the files of the checkpoints, by their step."""
    files = run.checkpoints.iterdir() if run.checkpoints.is_dir() else ()
    return {int(match[1]): file for file in files if (match := _NAME.fullmatch(file.name))}


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
    return dict(content["state"])


def _check_loadable(value: Any, name: str) -> None:
    """Refuse to save what a safe load would refuse to read."""
    if isinstance(value, torch.Tensor) or type(value) in _PLAIN:
        return
    if type(value) in (dict, OrderedDict):
        for key, entry in value.items():
            if type(key) not in (str, int):
                raise ValueError(f"{name} has the key {key!r}; expected a string or an int")
            _check_loadable(entry, f"{name}[{key!r}]")
    elif type(value) in (list, tuple):
        for index, entry in enumerate(value):
            _check_loadable(entry, f"{name}[{index}]")
    else:
        raise ValueError(f"{name} is a {type(value).__name__}; expected tensors and plain values")
