"""Run jobs of several processes each, which all begin from the same imports: they start at once.

A job is a dict: `processes`, their number; `command`, arguments of `beit`; to let the process of a
`rank` fail at the end of a `step`, its `trouble`. Standard input has a list of jobs in JSON;
standard output gets the exit codes of each. Their processes are as those of torchrun; with the
environment variable JOB, which has one job, `--device.devices` of the command starts them.
"""

import json
import os
import signal
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch.distributed import TCPStore

from beit.run.journal import Journal

IMPORTED = (
    *("beit.cli", "beit.pretraining.pretrain", "beit.tokenizer.vqkd", "beit.finetuning.finetune"),
    *("beit.run.sharding", "beit.run.ranks", "lightning_fabric", "torch.nn.parallel"),
)


def run(job: dict[str, Any]) -> list[int]:
    """Run a job. Returns: the exit code of each process, negative for a signal."""
    reading, writing = os.pipe()
    store = os.fork()
    if store == 0:  # has the key-value store, as torchrun does
        server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        os.write(writing, f"{server.port}\n".encode())
        time.sleep(1000)
    port = os.read(reading, 10).decode().strip()
    started = []
    for rank in range(job["processes"]):
        process = os.fork()
        if process == 0:
            begin(rank, port, job)
        started.append(process)
    codes = [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in started]
    os.kill(store, signal.SIGKILL)
    os.waitpid(store, 0)
    return codes


def begin(rank: int, port: str, job: dict[str, Any]) -> None:
    """Become a process of a job."""
    number, code = str(job["processes"]), 70
    if job["processes"] > 1:
        os.environ |= {
            "TORCHELASTIC_RUN_ID": "test",
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "GROUP_RANK": "0",
            "WORLD_SIZE": number,
            "LOCAL_WORLD_SIZE": number,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
    try:
        code = command(rank, job)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def command(rank: int, job: dict[str, Any]) -> int:
    """Run the command, with the trouble of this process."""
    if rank == job.get("rank"):
        trouble(job["trouble"], job["step"])
    code: int = import_module("beit.cli").main(job["command"])
    return code


def trouble(kind: str, at: int) -> None:
    """Let this process fail at the end of a step."""
    end = Journal.end_step

    def end_step(journal: Journal) -> None:
        if journal.step == at and kind == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        elif journal.step == at and kind == "stuck":
            time.sleep(600)
        elif journal.step == at:
            raise KeyError("a fault of this process alone")
        end(journal)

    Journal.end_step = end_step  # type: ignore[method-assign]


if __name__ == "__main__":
    torch.set_num_threads(1)
    if "JOB" in os.environ:
        sys.exit(command(int(os.environ.get("LOCAL_RANK", "0")), json.loads(os.environ["JOB"])))
    for name in IMPORTED:
        import_module(name)
    given = json.loads(sys.stdin.read())
    output = os.dup(1)
    os.dup2(2, 1)  # what the jobs write is for people
    codes = [run(job) for job in given]
    Path(f"/dev/fd/{output}").write_text(json.dumps(codes))
