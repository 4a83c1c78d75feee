"""Everything that is measured on one large GPU, by one command of eight minutes.

In this order, each in a process of its own with a time limit, so that no failure loses the rest:

1. pretraining steps at B/16 and L/16, bfloat16 autocast, in turn: ours, ours compiled, the
   published method; the backbone against timm and transformers; a peer's pretraining step
2. the loader on the device
3. preset cifar10-gpu: tokenizer, pretraining and probe, as far as the minutes go; a later call
   resumes from the last checkpoint

Every number is written to benchmarks/results/gpu-NAME.json as soon as it is there. The chain reads
CIFAR-10 from --data (`beit fetch cifar10 data/cifar10`) and keeps its runs in --runs.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --only chain
    python benchmarks/gpu.py --miniature        # on the CPU, to see that it runs
"""

import argparse
import json
import re
import signal
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import record

SEED = 0
PARTS = ("steps", "loader", "chain")
CASES = [  # size and batch, the most telling first
    *(("B", 64), ("B", 256), ("L", 64), ("B", 512), ("L", 256), ("B", 128), ("L", 128), ("L", 512)),
]
COMPILED = (("B", 64), ("L", 64), ("B", 256))  # compiling takes a minute
STEPS_SHARE, LOADER_SHARE = 0.6, 0.1  # of the time; the chain gets the rest
COLUMNS = ["size", "batch", "way", "images_per_s", "ours_is_faster", "peak_mb", "start_s"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--data", default="data/cifar10", help="CIFAR-10, for the chain")
    parser.add_argument("--runs", type=Path, default=Path("runs/gpu"), help="of the chain")
    parser.add_argument("--peak-tflops", type=float, default=989.0, help="bfloat16, H100 and H200")
    parser.add_argument("--miniature", action="store_true", help="tiny sizes on the CPU")
    parser.add_argument("--results", type=Path, default=record.RESULTS, help="folder to write to")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(WORKERS[options.worker.split()[0]](options, *options.worker.split()[1:])))
        return
    started = time.monotonic()
    results = Results(options)
    if "steps" in options.only:
        measure_steps(options, results, started + options.minutes * 60 * STEPS_SHARE)
    if "loader" in options.only:
        share = STEPS_SHARE + LOADER_SHARE
        results.add("loader", worker(options, started + options.minutes * 60 * share, "loader"))
    if "chain" in options.only:
        train_chain(options, results, started + options.minutes * 60)
    rows = [
        {"size": case["size"], "batch": case["batch"]} | row
        for case in results.content.get("steps", [])
        for row in case.get("ways", [])
    ]
    record.print_table(rows, COLUMNS)


class Results:
    """The results file, written again after each number; an earlier call's chain is kept."""

    def __init__(self, options: Namespace) -> None:
        device = "cpu" if options.miniature else "cuda"
        self.content: dict[str, Any] = record.provenance(device, [SEED])
        name = self.content["machine"].get("gpu", "miniature")
        self._name = "gpu-" + re.sub(r"[^a-z0-9]+", "-", name.lower())
        self._folder = options.results
        file = options.results / f"{self._name}.json"
        if file.exists():
            earlier = json.loads(file.read_text(encoding="utf-8"))
            self.content |= {part: earlier[part] for part in PARTS if part in earlier}
        for part in set(options.only) - {"chain"}:
            self.content.pop(part, None)

    def add(self, part: str, result: dict[str, Any]) -> None:
        """Append a result to a part and write the file."""
        self.content.setdefault(part, []).append(result)
        record.write_results(self._name, self.content, self._folder, quiet=True)
        print(f"{part}: {json.dumps(result)[:300]}", flush=True)


def worker(options: Namespace, deadline: float, name: str, *arguments: object) -> dict[str, Any]:
    """Run a worker in a process of its own until a deadline; an error is a result, too."""
    seconds = deadline - time.monotonic()
    called = " ".join([name, *map(str, arguments)])
    if seconds < (1 if options.miniature else 20):
        return {"worker": called, "skipped": "no time left"}
    command = [sys.executable, __file__, f"--worker={called}"]
    command += ["--miniature"] * options.miniature + [f"--peak-tflops={options.peak_tflops}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return {"worker": called, "stopped": f"after {seconds:.0f} s"}
    if done.returncode:  # out of memory, say
        return {"worker": called, "failed": (done.stderr or done.stdout)[-500:]}
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


# ── the parts ───────────────────────────────────────────────────────────────────────────────────


def measure_steps(options: Namespace, results: Results, deadline: float) -> None:
    cases = [("Ti", 2)] if options.miniature else CASES
    for number, (size, batch) in enumerate(cases):
        results.add("steps", worker(options, deadline, "step", size, batch))
        if number == 0:  # next in worth
            results.add("backbone", worker(options, deadline, "backbone", size, batch))
            results.add("peers", worker(options, deadline, "peers", size, batch))


def step_worker(options: Namespace, size: str, batch: str) -> dict[str, Any]:
    import steps

    case = sizes_of(options, size, batch)
    compiled = (size, int(batch)) in COMPILED
    case = Namespace(
        **vars(case), task="pretraining", compile=compiled, steps=1 if options.miniature else 5,
        peak_tflops=None if options.miniature else options.peak_tflops,
    )  # fmt: skip
    return {"size": size, "batch": int(batch)} | steps.measure(case)


def backbone_worker(options: Namespace, size: str, batch: str) -> dict[str, Any]:
    import backbone

    case = Namespace(**vars(sizes_of(options, size, batch)), compile=not options.miniature)
    return {"size": size, "batch": int(batch), "rows": backbone.measure(case, case.precision)}


def peers_worker(options: Namespace, size: str, batch: str) -> dict[str, Any]:
    import peers

    return {"size": size, "batch": int(batch)} | peers.measure(sizes_of(options, size, batch))


def loader_worker(options: Namespace) -> dict[str, Any]:
    import loader

    images, small = (8, 16) if options.miniature else (256, 50_176)
    case = Namespace(
        images=images, small=small, batch=images, size=224, kilobytes=100, rounds=2,
        device="cpu" if options.miniature else "cuda",
    )  # fmt: skip
    if options.miniature:
        case.size = 32
    return loader.measure(case)


WORKERS = {
    "step": step_worker,
    "backbone": backbone_worker,
    "peers": peers_worker,
    "loader": loader_worker,
}


def sizes_of(options: Namespace, size: str, batch: str) -> Namespace:
    """Return the settings that all measurements of a model share."""
    miniature = options.miniature
    return Namespace(
        size=size,
        image_size=32 if miniature else 224,
        batch=int(batch),
        precision="bf16",
        device="cpu" if miniature else "cuda",
        rounds=1 if miniature else 3,
    )


def train_chain(options: Namespace, results: Results, deadline: float) -> None:
    """Train the chain of the preset until a deadline; runs that exist are resumed."""
    tokenizer, pretrained, probe = (options.runs / n for n in ("tokenizer", "pretrain", "probe"))
    preset, extra, probing = "cifar10-gpu", [], []
    if options.miniature:
        preset, extra = "shapes-tiny", ["--device.accelerator=cpu"]
    else:
        sets = {name: f"{options.data}/{name}.parquet" for name in ("train", "test")}
        if not Path(sets["train"]).exists():
            missing = f"no CIFAR-10 in {options.data}; beit fetch cifar10 {options.data}"
            results.add("chain", {"skipped": missing})
            return
        extra = [f"--data.train={sets['train']}", f"--data.validation={sets['test']}"]
        probing = [f"--train={sets['train']}", f"--test={sets['test']}"]
    extra += ["--run.checkpoint_every=100"]
    verbs = [
        ("train-tokenizer", tokenizer, extra),
        ("pretrain", pretrained, [*extra, f"--tokenizer={tokenizer}"]),
    ]
    for verb, run, arguments in verbs:
        if (run / "weights.safetensors").exists() and (run / "report.html").exists():
            continue
        new = [f"--preset={preset}", f"--run.output={run}", *arguments]
        resumed = ["--resume", str(run)]
        done = beit(verb, resumed if run.exists() else new, deadline)
        results.add("chain", {"verb": verb, **done, "metrics": last_lines(run)})
        if "seconds" not in done:
            return
    if not probe.exists():
        arguments = [f"--preset={preset}", f"--model={pretrained}", f"--output={probe}", *probing]
        done = beit("probe", arguments, deadline)
        results.add("chain", {"verb": "probe", **done, "output": done.pop("tail", "")})


def beit(verb: str, arguments: list[str], deadline: float) -> dict[str, Any]:
    """Run a command until a deadline. Returns: its seconds, or how it ended."""
    start = time.monotonic()
    if deadline - start < 1:
        return {"skipped": "no time left"}
    command = [sys.executable, "-m", "beit", verb, *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        output, _ = process.communicate(timeout=deadline - start)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate()
        return {"stopped": f"after {time.monotonic() - start:.0f} s", "resumed_by": "the next call"}
    if process.returncode:
        return {"failed": output[-1000:]}
    return {"seconds": round(time.monotonic() - start, 1), "tail": output[-1000:]}


def last_lines(run: Path) -> dict[str, Any]:
    """Return the last line of a run's metrics and of its speed."""
    lines = {}
    for name in ("metrics", "speed"):
        file = run / f"{name}.jsonl"
        if file.exists() and (text := file.read_text(encoding="utf-8").splitlines()):
            lines[name] = json.loads(text[-1])
    return lines


if __name__ == "__main__":
    main()
