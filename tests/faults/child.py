"""Commands as child processes that start at once: one process imports everything and forks them.

`python -P child.py` answers lines of JSON on standard input with lines on standard output:

    {"argv": [...], "folder": ..., "log": FILE, "faults": [[NAME, ...], ...]}  → process id
    {"poll": process id}                                        → exit code, null while it runs
    {"call": [...]}                                             → exit code of a command

First it says whether file systems can be mounted: its children then have a /dev/shm of 1 MB, and
see what `call` mounts; others do not. Each child leads a process group of its own. Exit codes of
signals are negative.
"""

import atexit
import ctypes
import gc
import json
import os
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from importlib import import_module
from typing import Any

NEW_MOUNTS, NEW_USER = 0x00020000, 0x10000000  # of unshare(2)
MODULES = (
    *("beit.cli", "beit.pretraining.pretrain", "beit.tokenizer.vqkd", "beit.tokenizer.dvae"),
    *("beit.finetuning.finetune", "beit.segmentation.segment", "lightning_fabric", "faults"),
)


def main() -> None:
    """Serve."""
    mounts = unshare() and call(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", "/dev/shm"]) == 0
    for module in MODULES:
        import_module(module)
    gc.freeze()  # children copy fewer pages
    answer(mounts)
    for line in sys.stdin:
        job = json.loads(line)
        if "call" in job:
            answer(call(job["call"]))
        elif "poll" in job:
            pid, status = os.waitpid(job["poll"], os.WNOHANG)
            answer(os.waitstatus_to_exitcode(status) if pid else None)
        elif pid := os.fork():
            answer(pid)
        else:
            end(command, job)
    os._exit(0)  # nothing is cleared: what children share would be named as leaked


def end(run: Callable[..., int], job: dict[str, Any]) -> None:
    """Run a function and end the process, all but the clearing of its memory."""
    try:
        code = run(**job)
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    os._exit(code)


def answer(value: Any) -> None:
    print(json.dumps(value), flush=True)


def call(argv: list[str]) -> int:
    return subprocess.run(argv, check=False, capture_output=True).returncode


def unshare() -> bool:
    """Take a view of the file systems of its own. Returns: whether that is allowed."""
    user, group = os.getuid(), os.getgid()
    if ctypes.CDLL(None).unshare(NEW_MOUNTS | (NEW_USER if user else 0)):
        return False
    texts = {"setgroups": "deny", "uid_map": f"0 {user} 1", "gid_map": f"0 {group} 1"}
    for file, text in texts.items() if user else ():
        with open(f"/proc/self/{file}", "w") as opened:
            opened.write(text)
    return call(["mount", "--make-rprivate", "/"]) == 0


def command(argv: list[str], folder: str, log: str, faults: list[list[Any]]) -> int:
    """Run a command as `python -m beit` would, under faults."""
    os.setsid()
    os.chdir(folder)
    nothing, opened = os.open(os.devnull, os.O_RDONLY), os.open(log, os.O_WRONLY | os.O_CREAT)
    for one, other in ((nothing, 0), (opened, 1), (opened, 2)):
        os.dup2(one, other)
    os.closerange(3, 99)
    sys.argv = ["beit", *argv]
    for name, *arguments in faults:
        getattr(sys.modules["faults"], name)(*arguments)
    return int(sys.modules["beit.cli"].main(argv))


if __name__ == "__main__":
    main()
