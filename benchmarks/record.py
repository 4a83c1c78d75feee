"""Shared by the benchmarks: provenance of results, memory in use, results files and tables."""

import json
import platform
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def provenance(device: str, seeds: list[int]) -> dict[str, Any]:
    """Return command, commit, machine and seeds, to be stored with every result."""
    import torch

    machine = {
        "system": platform.platform(),
        "cpu": cpu_model(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    if device == "cuda":
        machine["gpu"] = torch.cuda.get_device_name()
    return {
        "command": " ".join(["python", *sys.argv]),
        "commit": commit(),
        "machine": machine,
        "seeds": seeds,
    }


def cpu_model() -> str:
    """Return the name of the processor, if the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except FileNotFoundError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def commit() -> str:
    """Return the current commit, with -dirty if code files differ from it."""
    try:
        return git("rev-parse", "HEAD") + ("-dirty" if changed_code() else "")
    except (FileNotFoundError, subprocess.CalledProcessError):
        return "unknown"  # not a git checkout


def changed_code() -> list[str]:
    """Return the changed and new files, without benchmark results."""
    lines = git("status", "--porcelain", "--untracked-files=all").splitlines()
    return [line for line in lines if not line[3:].startswith("benchmarks/results/")]


def git(*arguments: str) -> str:
    """Return the output of a git command, which must be a read-only one."""
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.rstrip()


class Memory(NamedTuple):
    """Bytes in use, now and at the peak: of the CUDA device, or of this process."""

    now: int
    peak: int


def memory(device: str) -> Memory:
    """Read the memory in use."""
    if device == "cuda":
        import torch

        return Memory(torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated())
    status = Path("/proc/self/status")
    if status.exists():  # its peak is the program's own; getrusage can include the parent's
        lines = (line.split() for line in status.read_text().splitlines())
        kib = {words[0]: int(words[1]) for words in lines if words[0] in ("VmRSS:", "VmHWM:")}
        return Memory(kib["VmRSS:"] * 1024, kib["VmHWM:"] * 1024)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak = peak if sys.platform == "darwin" else peak * 1024
    return Memory(peak, peak)


def in_fresh_process(script: str, **options: object) -> dict[str, Any]:
    """Run a script with ``--worker`` and options; return the JSON of its last output line.

    Each measurement has its own process, because the peak memory of a process never falls.
    """
    command = [sys.executable, script, "--worker"]
    for name, value in options.items():
        if value is True:
            command.append(f"--{name.replace('_', '-')}")
        elif value is not False:
            command += [f"--{name.replace('_', '-')}", str(value)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"failed with status {done.returncode}: {' '.join(command)}")
    return json.loads(done.stdout.splitlines()[-1])


def write_results(name: str, result: dict[str, Any]) -> None:
    """Write benchmarks/results/NAME.json and print its path."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written: {path.relative_to(ROOT)}")


def print_table(rows: list[dict[str, Any]], columns: list[str]) -> None:
    """Print rows as a right-aligned table, with a dash for missing values."""
    cells = [[shown(row.get(column)) for column in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    for line in [columns, *cells]:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))


def shown(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value)
