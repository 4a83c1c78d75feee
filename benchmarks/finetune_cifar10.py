"""Benefit of pretraining on CIFAR-10: fine-tuning from three starts, by share of labels and seed.

Each run is an ordinary run directory of `beit finetune --preset cifar10-ft-cpu` (from scratch:
cifar10-ft-cpu-scratch), with one thread. Complete runs are skipped, interrupted ones are resumed.
Smaller shares of the labels are trained for more epochs, equally for every start.

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
EPOCHS = {1.0: None, 0.1: 20, 0.01: 100}  # by share of labels; None: those of the preset
STARTS = ("pretrained", "tokenizer", "scratch")


class Run(NamedTuple):
    """One fine-tuning run: start, share of labels, seed."""

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
    runs.sort(key=lambda run: (run.share, run.seed))  # quick runs first
    with ThreadPoolExecutor(options.jobs) as pool:
        jobs = [pool.submit(finetune, run, sources, options.output) for run in runs]
        rows = [row_of(run, job.result()) for run, job in zip(runs, jobs, strict=True)]
    table = list(summary(rows, options.shares))
    record.print_table(table, list(table[0]))
    results = {"summary": table, "rows": rows, "epochs": {str(k): v for k, v in EPOCHS.items()}}
    provenance = record.provenance("cpu", options.seeds)
    record.write_results("finetune_cifar10", {**provenance, **results})


def finetune(run: Run, sources: dict[str, str], output: Path) -> Path:
    """Start or resume one run; its output goes to a file beside its directory."""
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
    """Read the final score of a run and its speed."""
    records = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    validations = [record for record in records if "val_top1" in record]
    speeds = [json.loads(line) for line in (directory / "speed.jsonl").read_text().splitlines()]
    return {
        **run._asdict(),
        "top1": validations[-1]["val_top1"],
        "nll": validations[-1]["val_loss"],
        "images_per_s": statistics.median(line["images_per_second"] for line in speeds),
        "curve": [[round(row["epoch"], 3), row["val_top1"]] for row in validations],
    }


def summary(rows: list[dict[str, Any]], shares: list[float]) -> Iterator[dict[str, Any]]:
    """Yield rows of mean and standard deviation over the seeds, in percent."""
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
