"""What `beit doctor` predicts of a training, beside what the training then does.

Doctor and training take turns, each in a process of its own, so that both see the same load of the
machine. Speed is that of the training's own log after its first ten steps, memory the most that its
processes had together (shared pages counted once), looked at twice a second. The options after `--`
are the training's:

    python benchmarks/doctor.py --verb pretrain --workers 0 2 --name cifar10 -- \
        --preset cifar10-cpu --data data/cifar10 --target.kind pixels --run.stop_after 100
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import record
import yaml

from beit.run.log import read_log

BEIT = (sys.executable, "-m", "beit")
SEED = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--verb", default="pretrain")
    parser.add_argument("--name", required=True, help="of the results file: doctor-NAME.json")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--results", type=Path, default=record.RESULTS)
    parser.add_argument("training", nargs="+", help="options of the training, after --")
    options = parser.parse_args()
    pairs: dict[int, list[dict[str, float]]] = {workers: [] for workers in options.workers}
    for number in range(options.rounds):
        for workers, found in pairs.items():
            words = [*options.training, f"--data.num_workers={workers}", "--check.every=0"]
            found.append(predicted(options.verb, words) | measured(options.verb, words))
            print(f"round {number + 1}, {workers} workers: {found[-1]}", flush=True)
    rows = [row(workers, found) for workers, found in pairs.items()]
    record.print_table(rows, list(rows[0]))
    result = record.provenance("cpu", [SEED]) | {"rows": rows, "pairs": pairs}
    record.write_results(f"doctor-{options.name}", result, options.results)


def predicted(verb: str, words: list[str]) -> dict[str, float]:
    """Return the images a second and the GB that doctor predicts."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "doctor")
        subprocess.run(
            [*BEIT, "doctor", "--verb", verb, *words, f"--output={output}"],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        found = json.loads((output / "doctor.json").read_text())["predicted"]
    return {"predicted": found["first"], "predicted_gb": found["host"] / 1e9}


def measured(verb: str, words: list[str]) -> dict[str, float]:
    """Return the images a second and the GB of a training of less than an epoch."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder, "run")
        command = [*BEIT, verb, *words, f"--output={run}", "--run.log_every=10"]
        training = psutil.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        most = workers = 0
        while training.poll() is None:
            most = max(most, peak_memory(training.pid))
            workers = max(workers, memory_of_workers(training))
            time.sleep(0.5)
        if training.returncode:
            raise SystemExit(f"failed with status {training.returncode}: {' '.join(command)}")
        first, *_, last = read_log(run / "speed.jsonl")
        batch = yaml.safe_load((run / "config.yaml").read_text())["optim"]["batch_size"]
    images, seconds = (last["step"] - first["step"]) * batch, last["time"] - first["time"]
    return {"measured": images / seconds, "measured_gb": (most + workers) / 1e9}


def peak_memory(process: int) -> int:
    """Return the most bytes that a process has had; 0 once it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)


def memory_of_workers(process: psutil.Process) -> int:
    """Return the bytes that the children of a process do not share with it."""
    total = 0
    with suppress(psutil.NoSuchProcess):  # ended in between
        for child in process.children(recursive=True):
            total += child.memory_full_info().uss
    return total


def row(workers: int, pairs: list[dict[str, float]]) -> dict[str, Any]:
    """Return the medians of the rounds, and of the ratio of each pair."""
    median = {name: statistics.median(pair[name] for pair in pairs) for name in pairs[0]}
    ratios = sorted(pair["predicted"] / pair["measured"] for pair in pairs)
    return {
        "workers": workers,
        **median,
        "ratio": statistics.median(ratios),
        "least": ratios[0],
        "most": ratios[-1],
        "gb_ratio": median["predicted_gb"] / median["measured_gb"],
    }


if __name__ == "__main__":
    main()
