"""Checkpoints of sharded training: one file from the first process, or PyTorch's folder of shards.

Each way starts its own processes over gloo, which build a pretraining model and AdamW's moments,
and save them once. Beside the seconds of the slowest process stand the processor's, which a busy
machine changes less, and each process's largest memory in use, before and after.

    python benchmarks/checkpoints.py --size L --processes 2
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import record
import step_model
import torch
from torch.distributed import checkpoint as folders

from beit.nn.mim import MaskedImageModel, MaskedImageModelConfig
from beit.nn.vit import ViTConfig
from beit.run import records
from beit.run.device import DeviceConfig
from beit.run.directory import RunDirectory
from beit.run.launch import launch
from beit.run.optim import OptimConfig
from beit.run.parameters import build_optimizer, parameter_groups

TIMES = ("gather_s", "gather_cpu_s", "write_s", "write_cpu_s")
COLUMNS = ["way", "bytes", *TIMES, "gigabytes_before", "gigabytes_after"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=list(step_model.SIZES), default="L")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--results", type=Path, default=record.RESULTS, help="folder to write to")
    parser.add_argument("--way", choices=["file", "shards"], help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        save(options)
        return
    rows = [measured(options, way) for way in ("file", "shards")]
    record.print_table(rows, COLUMNS)
    settings = {"size": options.size, "processes": options.processes}
    result = record.provenance("cpu", [0]) | {"settings": settings, "rows": rows}
    record.write_results(f"checkpoints-{options.size}", result, options.results)


def measured(options: argparse.Namespace, way: str) -> dict[str, Any]:
    """Save in fresh processes. Returns: the seconds and bytes, and each process's gigabytes."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
        command += [str(options.processes), __file__, "--size", options.size]
        command += ["--way", way, "--output", folder]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        subprocess.run([sys.executable, *command], check=True, env=environment)
        saved = [path for path in Path(folder, "checkpoints").rglob("*") if path.is_file()]
        figures = [json.loads(p.read_text()) for p in sorted(Path(folder).glob("figures-*.json"))]
        size = sum(path.stat().st_size for path in saved)
    return {
        "way": way,
        "bytes": size,
        **{name: max(f[name] for f in figures) for name in TIMES},
        "gigabytes_before": [f["before"] for f in figures],
        "gigabytes_after": [f["after"] for f in figures],
    }


def save(options: argparse.Namespace) -> None:
    """Build and save in one of the processes, and write its figures."""
    fabric = launch(DeviceConfig(accelerator="cpu", precision="32-true", shard=True), training=True)
    D, depth, heads = step_model.SIZES[options.size]
    vit = ViTConfig(width=D, depth=depth, num_heads=heads)
    mim = MaskedImageModel(MaskedImageModelConfig(vit, 8192, early_layers=depth * 3 // 4))
    optim = OptimConfig(
        epochs=1, learning_rate=1e-3, warmup_epochs=0, betas=(0.9, 0.98), weight_decay=0.05
    )
    optimizer: Any = build_optimizer(parameter_groups(mim, 0.05), optim, fused=True)
    model, optimizer = fabric.setup(mim, optimizer)
    model.train()
    for group in optimizer.param_groups:
        for weight in group["params"]:
            weight.grad = torch.zeros_like(weight)
    optimizer.step()
    optimizer.zero_grad()
    figures = {"before": gigabytes()}
    fabric.barrier()
    begin = time.monotonic(), time.process_time()
    if options.way == "file":
        state = {"model": mim.state_dict(), "optimizer": optimizer.state_dict()}
    else:
        state = {"model": model._forward_module.state_dict()} | moments(optimizer)
    figures |= since(begin, "gather")
    begin = time.monotonic(), time.process_time()
    (options.output / "checkpoints").mkdir(exist_ok=True)
    if options.way == "shards":
        folders.save(state, checkpoint_id=options.output / "checkpoints" / "step-1")
    elif fabric.is_global_zero:
        records.save(RunDirectory(options.output), 1, state)
    figures |= since(begin, "write") | {"after": gigabytes()}
    text = json.dumps({name: round(value, 2) for name, value in figures.items()})
    (options.output / f"figures-{fabric.global_rank}.json").write_text(text)


def since(begin: tuple[float, float], name: str) -> dict[str, float]:
    """Return the seconds since `begin`, and those of the processor."""
    seconds, busy = time.monotonic() - begin[0], time.process_time() - begin[1]
    return {f"{name}_s": seconds, f"{name}_cpu_s": busy}


def moments(optimizer: Any) -> dict[str, Any]:
    """Return this process's shards of the moments, by the number of their weight."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    return {str(i): dict(optimizer.state[weight]) for i, weight in enumerate(weights)}


def gigabytes() -> float:
    """Return the largest memory in use so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1e6 for line in lines if line.startswith("VmHWM"))


if __name__ == "__main__":
    main()
