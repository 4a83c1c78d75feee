"""What pretraining is worth on CIFAR-10: fine-tuning from three starts, by share of labels, seeds.

Each run is an ordinary run directory of `beit finetune --preset cifar10-ft-cpu` (from scratch
cifar10-ft-cpu-scratch), one thread each. A run that is complete is not repeated, one that was
interrupted goes on. Smaller shares of the labels are seen for more epochs, from every start alike.

    python benchmarks/finetune_cifar10.py --pretrained runs/cifar10-pretrain \
        --tokenizer runs/cifar10-tokenizer
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import record

TRAINING_IMAGES = 50_000
EPOCHS = {1.0: None, 0.1: 20, 0.01: 100}  # None: those of the preset
STARTS = ("pretrained", "tokenizer", "scratch")


class Run(NamedTuple):
    """One fine-tuning: where it starts, the share of labels, its seed."""

    start: str
    share: float
    seed: int

    @property
    def name(self) -> str:
        return f"{self.start}-{self.share:g}-{self.seed}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pretrained", default="runs/cifar10-pretrain")
    parser.add_argument("--tokenizer", default="runs/cifar10-tokenizer")
    parser.add_argument("--output", type=Path, default=Path("runs/finetune-cifar10"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--shares", type=float, nargs="+", default=list(EPOCHS))
    parser.add_argument("--jobs", type=int, default=2, help="runs at once")
    options = parser.parse_args()
    sources = {"pretrained": options.pretrained, "tokenizer": options.tokenizer}
    options.output.mkdir(parents=True, exist_ok=True)
    runs = [Run(*values) for values in product(STARTS, options.shares, options.seeds)]
    runs.sort(key=lambda run: (run.share, run.seed))  # what is quick first
    with ThreadPoolExecutor(options.jobs) as pool:
        jobs = [pool.submit(finetune, run, sources, options.output) for run in runs]
        rows = [row_of(run, job.result()) for run, job in zip(runs, jobs, strict=True)]
    table = list(summary(rows, options.shares))
    record.print_table(table, list(table[0]))
    results = {"summary": table, "rows": rows, "epochs": {str(k): v for k, v in EPOCHS.items()}}
    provenance = record.provenance("cpu", options.seeds)
    record.write_results("finetune_cifar10", {**provenance, **results})


def finetune(run: Run, sources: dict[str, str], output: Path) -> Path:
    """Carry out one run, or the rest of it; its output goes to a file beside its directory."""
    directory = output / run.name
    if (directory / "weights.safetensors").exists():
        return directory
    if directory.exists():
        options = ["--resume", str(directory)]
    else:
        scratch = run.start == "scratch"
        options = ["--preset", "cifar10-ft-cpu-scratch" if scratch else "cifar10-ft-cpu"]
        options += [] if scratch else ["--init", sources[run.start]]
        options += ["--run.seed", str(run.seed), "--run.output", str(directory)]
        if run.share < 1:
            epochs = EPOCHS[run.share]
            options += ["--data.limit", str(round(TRAINING_IMAGES * run.share))]
            options += ["--optim.epochs", str(epochs), "--validate_every", str(epochs // 4)]
    command = [sys.executable, "-m", "beit", "finetune", *options]
    with (output / f"{run.name}.log").open("a") as log:
        subprocess.run(
            command, check=True, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
    print(f"{run.name}: done", flush=True)
    return directory


def row_of(run: Run, directory: Path) -> dict[str, Any]:
    """Read what a run scored after its last epoch, and how long its steps took."""
    records = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    judged = [one for one in records if "val_top1" in one]
    speeds = [json.loads(line) for line in (directory / "speed.jsonl").read_text().splitlines()]
    return {
        **run._asdict(),
        "top1": judged[-1]["val_top1"],
        "nll": judged[-1]["val_loss"],
        "images_per_s": statistics.median(one["images_per_second"] for one in speeds),
        "curve": [[round(one["epoch"], 3), one["val_top1"]] for one in judged],
    }


def summary(rows: list[dict[str, Any]], shares: list[float]) -> Iterator[dict[str, Any]]:
    """Put mean and standard deviation over the seeds into a table, in percent."""
    for share, start in product(shares, STARTS):
        scores = [100 * r["top1"] for r in rows if (r["share"], r["start"]) == (share, start)]
        yield {
            "labels": f"{share:.0%}",
            "start": start,
            "top1": statistics.mean(scores),
            "sd": statistics.stdev(scores) if len(scores) > 1 else 0.0,
            "least": min(scores),
            "most": max(scores),
        }


if __name__ == "__main__":
    main()
