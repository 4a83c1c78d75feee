"""A run that resumes with a longer schedule, or with other settings that no weight depends on.

The learning rate of each step is that of the new schedule, as if the run had had it from the start:
at the seam it jumps up to where the longer cosine is. Order, views and masks of images are
functions of (seed, epoch or step) and go on.
"""

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from beit.files import PARTIAL_SUFFIX, write_text
from beit.run.changes import recorded
from beit.run.directory import RunDirectory
from beit.run.images import kept_names

logger = logging.getLogger(__name__)

LENGTH = ("optim.epochs", "optim.steps", "run.stop_after")
CHANGEABLE = (
    *LENGTH,
    *("run.checkpoint_every", "run.keep_last", "run.keep_every", "run.max_skipped", "run.track"),
    *("data.num_workers", "data.max_unreadable"),
)
IMAGES = ("data", "data.train", "validation", "data.validation")  # as options say them


class ExtendedRun(RunDirectory):
    """A run that resumes with other settings.

    Attributes:
        trained: the configuration so far, nested dicts of plain values
        settings: the new one
        notes: what changes, in words; empty if the run has these settings already
        step: the last checkpoint's
        goes_on: whether steps are left
    """

    def __init__(self, path: Path, changes: Mapping[str, Any]) -> None:
        """Read the settings of a run and change them; write nothing yet.

        Args:
            changes: values by dotted name

        Raises:
            ValueError: a setting cannot be changed.
        """
        super().__init__(path)
        check_changeable(self, changes)
        self.trained = recorded(self) or self.config()
        self.settings, self.notes = self.config(), list[str]()
        for name, value in changes.items():
            group, _, field = name.partition(".")
            if (before := self.trained[group].get(field)) != value:
                self.notes.append(f"{name} {_text(value)} instead of {_text(before)}")
            self.settings[group][field] = value
        self.step, self.goes_on = self.saved_step() or 0, False

    def check(self, before: Any, now: Any) -> None:
        """Describe the seam; refuse a run that ends before its last checkpoint.

        Args:
            before, now: the Config of the training with the old and the new settings
        """
        schedule = now.optim.schedule(self._num_images())
        end, what = schedule.total_steps, "optim." + _length(now.optim)
        if now.run.stop_after is not None and now.run.stop_after < end:
            end, what = now.run.stop_after, "run.stop_after"
        if end < self.step:
            raise ValueError(
                f"{self.path} has reached step {self.step}, but with {what} "
                f"{_text(_value(now, what))} it ends after step {end}; give a larger number"
            )
        self.goes_on = end > self.step
        if self.step and before.optim != now.optim:
            last = _rate(before.optim, self.step, schedule.steps_per_epoch)
            following = _rate(now.optim, self.step + 1, schedule.steps_per_epoch)
            self.notes.append(
                f"the learning rate is that of the new schedule: {last:.3g} at step {self.step}, "
                f"{following:.3g} at the next one"
            )

    def record(self) -> None:
        """Put the finished run aside, and write the new settings; log both."""
        if not self.notes:
            return
        note = f"resumed after step {self.step}: {'; '.join(self.notes)}"
        logger.info("%s: %s", self.path, note)
        if self.goes_on and self.weights_file.exists():
            logger.info("%s: the finished run is now in %s", self.path, self._put_aside())
        run = self.settings["run"]
        run["chosen"] = [*(run.get("chosen") or ()), note]
        text = self.config_file.read_text(encoding="utf-8")
        comment = "".join(line for line in text.splitlines(True) if line.startswith("#"))
        values = yaml.safe_dump(self.settings, sort_keys=False, allow_unicode=True, width=100)
        write_text(self.config_file, comment + values)
        self.notes = []

    def _put_aside(self) -> Path:
        """Move the finished run, without its checkpoints, to a folder inside: a run of its own."""
        folder = self.path / f"step-{self.step:09d}"
        partial = folder.with_name(f".{folder.name}{PARTIAL_SUFFIX}")
        if not folder.exists():
            shutil.rmtree(partial, ignore_errors=True)  # of a killed process
            partial.mkdir()
            for file in vars(self).values():
                if isinstance(file, Path) and file.is_file():
                    shutil.copy2(file, partial)
            partial.rename(folder)
        for file in (self.weights_file, self.report_file):
            file.unlink(missing_ok=True)
        return folder

    def _num_images(self) -> int:
        """Count the training images, which the run has listed."""
        if not self.images_file.exists():
            raise ValueError(
                f"{self.path} has no {self.images_file.name}, so the length of its epochs is not "
                "known; resume it once without other options"
            )
        return len(kept_names(self, "data.train"))


def check_changeable(run: RunDirectory, changes: Mapping[str, Any]) -> None:
    """Refuse to change settings that a run's checkpoints depend on."""
    known = [name for name in CHANGEABLE if _has(run.config(), name)]
    for name in changes:
        if name in known:
            continue
        moved = ""
        if name in IMAGES:
            moved = f". If images were only moved, write their place into {run.config_file} and add"
            moved += " --accept_changed_data true"
        raise ValueError(
            f"{name} cannot be changed when a run resumes: its weights so far depend on it. What "
            f"can be: {', '.join(known)}. Other settings need a new run, which may start from the "
            f"weights of this one (--init {run.path}; for finetune and segment, --model {run.path})"
            + moved
        )


def _has(settings: Mapping[str, Any], name: str) -> bool:
    group, _, field = name.partition(".")
    return field in (settings.get(group) or {})


def _length(optim: Any) -> str:
    return "steps" if hasattr(optim, "steps") else "epochs"


def _value(config: Any, name: str) -> Any:
    group, _, field = name.partition(".")
    return getattr(getattr(config, group), field)


def _rate(optim: Any, step: int, steps_per_epoch: int) -> float:
    """Return the learning rate of a step."""
    rate: float = optim.rate(step) if hasattr(optim, "steps") else optim.rate(step, steps_per_epoch)
    return rate


def _text(value: Any) -> str:
    return "null" if value is None else str(value)
