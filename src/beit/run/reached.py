"""How far a run has come, by the files in its directory."""

import re

from beit.run.directory import RunDirectory


def saved_step(run: RunDirectory) -> int | None:
    """Return the step of the newest checkpoint; None without one."""
    names = [re.match(r"step-(\d+)", file.name) for file in run.checkpoints.glob("step-*")]
    return max((int(name[1]) for name in names if name), default=None)


def is_finished(run: RunDirectory) -> bool:
    """Whether a run has its weights, and no later checkpoint."""
    if not run.weights_file.is_file():
        return False
    ended = run.weights_file.stat().st_mtime_ns
    return all(file.stat().st_mtime_ns <= ended for file in run.checkpoints.glob("step-*"))
