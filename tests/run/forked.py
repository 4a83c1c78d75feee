"""Run jobs of several processes each, which all begin from the same imports: they start at once.

A job is a dict: `processes`, their number; `command`, arguments of `beit`. Standard input has a
list of jobs in JSON; standard output gets the exit codes of each.
"""

import json
import os
import socket
import sys
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

IMPORTED = (
    *("beit.cli", "beit.pretraining.pretrain", "beit.tokenizer.vqkd", "beit.finetuning.finetune"),
    *("beit.run.sharding", "lightning_fabric", "torch.nn.parallel"),
)


def run(job: dict[str, Any]) -> list[int]:
    """Run a job. Returns: the exit code of each process, negative for a signal."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(job["processes"]):
        process = os.fork()
        if process == 0:
            begin(rank, port, job)
        started.append(process)
    return [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in started]


def begin(rank: int, port: int, job: dict[str, Any]) -> None:
    """Become a process of a job, as torchrun starts them."""
    number, code = str(job["processes"]), 70
    if job["processes"] > 1:
        os.environ |= {
            "TORCHELASTIC_RUN_ID": "test",
            **{"RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0"},
            **{"WORLD_SIZE": number, "LOCAL_WORLD_SIZE": number},
            **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
        }
    try:
        code = import_module("beit.cli").main(job["command"])
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in IMPORTED:
        import_module(name)
    given = json.loads(sys.stdin.read())
    output = os.dup(1)
    os.dup2(2, 1)  # what the jobs write is for people
    codes = [run(job) for job in given]
    Path(f"/dev/fd/{output}").write_text(json.dumps(codes))
