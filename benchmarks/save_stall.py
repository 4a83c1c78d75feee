"""How long a checkpoint holds up a training: in the step, and beside it (run.save_async).

The state is that of a ViT with AdamW, drawn numbers. A step is matrix products, with one thread.
Both ways and steps without a checkpoint take turns in one process, so that changes of the machine's
load affect all. `stall` is what the step with the checkpoint takes longer than others; `after` is
what the steps after it take longer, while a thread writes.

    python benchmarks/save_stall.py --parameters 22 --folder runs
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import record
import torch

from beit.run.directory import RunConfig, RunDirectory
from beit.run.records import Records

SEED = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parameters", type=float, default=22, help="millions; 22 is a ViT-S")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8, help="after each checkpoint")
    parser.add_argument("--folder", help="on the disk to measure")
    options = parser.parse_args()
    torch.set_num_threads(1)
    result = measure(options)
    record.print_table(result["rows"], list(result["rows"][0]))
    result = record.provenance("cpu", [SEED]) | {"settings": vars(options)} | result
    record.write_results("save-stall", result)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Time steps with and without a checkpoint. Returns: rows of medians, in seconds."""
    torch.manual_seed(SEED)
    count = int(options.parameters * 1e6)
    parts = [torch.randn(count // 150) for _ in range(150)]  # as many tensors as 12 blocks have
    state = {name: [part.clone() for part in parts] for name in ("model", "first", "second")}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        ways = {name: begin(Path(folder, name), name == "thread") for name in ("step", "thread")}
        plain, spent = [], {name: list[tuple[float, float]]() for name in ways}
        for number in range(1, options.rounds + 1):
            plain += [timed(step) for _ in range(options.steps)]
            for name, records in ways.items():
                records._journal.step = number
                first = timed(lambda records=records: (step(), records.save(state)))
                others = [timed(step) for _ in range(options.steps)]
                records.wait()
                spent[name].append((first, sum(others)))
    usual, rows = statistics.median(plain), []
    for name, seconds in spent.items():
        stall = statistics.median(first - usual for first, _ in seconds)
        after = statistics.median(others - options.steps * usual for _, others in seconds)
        rows.append({"way": name, "step_s": usual, "stall_s": stall, "after_s": after})
    return {"megabytes": 12 * count / 1e6, "rows": rows}


def begin(path: Path, save_async: bool) -> Records:
    """Open the records of a run that has a checkpoint."""
    directory = RunDirectory.create(path, {}, {"verb": "pretrain"})
    journal = SimpleNamespace(
        config=SimpleNamespace(run=RunConfig(save_async=save_async)),
        fabric=SimpleNamespace(is_global_zero=True),
        directory=directory,
        message=print,
        step=0,
        saved_step=0,
    )
    return Records(journal, None)


def step() -> None:
    """Compute for a tenth of a second or so."""
    matrix = torch.ones(512, 512)
    for _ in range(20):
        matrix = (matrix @ matrix).clamp_(-1, 1)


def timed(act: Any) -> float:
    started = time.perf_counter()
    act()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
