"""Processes of a run that fail, die or hang: the first says who it is and where, and all end.

A process whose collective fails asks the others who they are waiting for. The one that hangs cannot
say so itself, but a thread of it can. The processes exchange a few words through the key-value
store that started them. A collective fails when its process group says so: at once over gloo if a
process is gone, and after `device.timeout` if it hangs. Over NCCL, PyTorch ends a process that has
waited for so long, and prints the collective it waited in.
"""

import atexit
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from datetime import timedelta
from types import TracebackType
from typing import Any

from lightning_fabric import Fabric
from torch.distributed import DistError, PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

POLL = 0.5  # seconds between two looks of a thread
ANSWER = 3.0  # seconds within which the thread of a living process has answered
GRACE = 8.0  # seconds for a process to end by itself
OF_GLOO = re.compile("gloo|pair closure")  # errors that have no type of their own
LATE = re.compile("timed out|timeout", re.IGNORECASE)

_watch: "_Watch | None" = None


def watch(fabric: Fabric, minutes: float) -> None:
    """Watch over the processes of a launched run, `minutes` being its `device.timeout`."""
    global _watch
    if fabric.world_size > 1:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        wait = timedelta(seconds=30)
        store = TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=wait)
        # Processes that torchrun starts again have the same store.
        this_start = fabric.broadcast(f"beit {time.time_ns()}")
        words = PrefixStore(this_start, store)
        _watch = _Watch(words, fabric.global_rank, fabric.world_size, minutes)
        _watch.start()
        atexit.register(_watch.stop)
        sys.excepthook = _watch.uncaught


def failed(error: BaseException) -> str | None:
    """Say for an error that ends this process whose it is; None in a run of one process.

    Returns: the name of this process, or why it ends if that is the fault of another
    """
    return None if _watch is None else _watch.reason(error) or _watch.own_name


class _Watch(threading.Thread):
    """Answers for its process, which may hang."""

    def __init__(self, store: Store, rank: int, number: int, minutes: float) -> None:
        super().__init__(daemon=True, name="watch over processes")
        self.store, self.rank, self.number, self.minutes = store, rank, number, minutes
        where = f"{socket.gethostname()}, process {os.getpid()}"
        self.own_name = f"rank {rank} of {number} ({where})"
        self.parent = os.getppid()  # the first process, or torchrun: it has the store
        self.ending = threading.Event()  # the main thread has found an error itself
        self.over = threading.Event()  # the process ends, and must not leave a thread in C++
        self.store.set(f"name {rank}", self.own_name)

    def run(self) -> None:
        """Wait until a process says that the run ends, and see that this one does."""
        try:
            while not self._said("end"):
                if self.over.wait(POLL) or os.getppid() != self.parent:
                    return  # without its parent there is no store, and the next collective fails
            self.store.set(f"here {self.rank}", "")
            if self.ending.wait(ANSWER):
                return  # the main thread says why
            stuck = self.store.get("end") == b"stuck"
            if stuck:
                self.store.set("first", self.own_name)
            first = self.store.get("first").decode() if self._said("first") else "another"
        except RuntimeError:  # the store is gone with the first process, or the run is over
            return
        if stuck:
            frame = sys._current_frames()[threading.main_thread().ident or 0]
            where = "".join(traceback.format_stack(frame))
            waited = f"others waited {self.minutes:g} minutes for it"
            _say(f"{self.own_name} is stuck: {waited}. It is here:\n{where}")
        else:
            _say(f"{self.own_name} ends because {first} has failed")
        os._exit(1)

    def stop(self) -> None:
        """End the thread, before the interpreter does."""
        self.over.set()
        self.join(GRACE)

    def reason(self, error: BaseException) -> str:
        """Find out why this process fails; empty if that is its own fault, which the others hear.

        Returns: a sentence with the name of the process that is the cause
        """
        self.ending.set()
        message = str(error)
        others = isinstance(error, DistError)
        if others := others or (isinstance(error, RuntimeError) and bool(OF_GLOO.search(message))):
            time.sleep(POLL)  # a process that was killed is gone a little later than its sockets
        try:
            if os.getppid() != self.parent:  # the store would fail with a trace of its own
                raise RuntimeError
            if not others:
                self.store.compare_set("first", "", self.own_name)
                self.store.compare_set("end", "", "failed")
                return ""
            self.store.compare_set("end", "", "stuck" if LATE.search(message) else "gone")
            return self._cause()
        except RuntimeError:
            if not others:
                return ""
            return f"{self.own_name} ends because rank 0 is gone, or its torchrun"

    def _cause(self) -> str:
        """Wait for the process that is the cause to say so, or for its answer to be missing.

        Returns: a sentence with its name; empty if all answer and none knows
        """
        begin = time.monotonic()
        while time.monotonic() < begin + GRACE:
            if self._said("first"):
                first = self.store.get("first").decode()
                return f"{self.own_name} ends because {first} has failed or hangs"
            others = [rank for rank in range(self.number) if rank != self.rank]
            silent = [rank for rank in others if not self._said(f"here {rank}")]
            if silent and time.monotonic() > begin + ANSWER:
                gone = ", ".join(self.store.get(f"name {rank}").decode() for rank in silent)
                self.store.compare_set("first", "", gone)
                return (
                    f"{self.own_name} ends because {gone} does not answer: it was killed (for its "
                    "memory?), or its machine or network is down"
                )
            time.sleep(POLL / 2)
        return ""

    def _said(self, key: str) -> bool:
        return bool(self.store.check([key]))

    def uncaught(
        self, kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        """Print an exception that ends this process, after its name; if another is the cause, that.

        Stands in for `sys.excepthook`.
        """
        if issubclass(kind, KeyboardInterrupt):
            sys.__excepthook__(kind, error, trace)
        elif reason := self.reason(error):
            _say(reason)
        else:
            _say(f"{self.own_name} failed:")
            sys.__excepthook__(kind, error, trace)


def observe(children: list["subprocess.Popen[Any]"]) -> None:
    """Watch over the processes that this one has started, without torchrun.

    Lightning-fabric would kill this process too, before it can say why.
    """
    threading.Thread(target=_observe, args=(children,), daemon=True).start()


def _observe(children: list["subprocess.Popen[Any]"]) -> None:
    while any(child.poll() != 0 for child in children):
        for rank, child in enumerate(children, 1):
            if (code := child.returncode) is None or code == 0:
                continue
            if code < 0:
                cause = signal.Signals(-code).name
                _say(f"rank {rank} of {len(children) + 1} (process {child.pid}): killed by {cause}")
            time.sleep(GRACE)
            for other in children:
                other.kill()
            os._exit(1)
        time.sleep(POLL)


def _say(text: str) -> None:
    print(f"beit: {text}", file=sys.stderr, flush=True)
