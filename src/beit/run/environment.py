"""The environment of a run: versions, machine, commit, command line."""

import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch


def environment(verb: str) -> dict[str, Any]:
    """Describe the environment that results depend on: versions, machine, commit."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "verb": verb,
        "argv": sys.argv,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "machine": platform.platform(),
        "cpus": os.cpu_count(),
        "gpus": gpus,
        "commit": _commit(),
    }


def _commit() -> str | None:
    """Return the commit of this package's sources, `-dirty` if edited; None if installed."""
    here = Path(__file__)
    git = ["git", "-C", str(here.parent)]
    try:
        # In a virtual environment inside another repository, git would return that one's commit.
        tracked = subprocess.run(
            [*git, "ls-files", "--error-unmatch", here.name], capture_output=True, timeout=10
        )
        if tracked.returncode != 0:
            return None
        described = subprocess.run(
            [*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return described.stdout.strip() or None
