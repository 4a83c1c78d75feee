"""Shared by the benchmarks: timing in turn, provenance, memory in use, results files and tables."""

import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PACKAGES = ("torch", "torchvision", "timm", "transformers")


def provenance(device: str, seeds: list[int]) -> dict[str, Any]:
    """Return command, commit, machine and seeds, to be stored with every result."""
    import torch

    machine = {
        "system": platform.platform(),
        "cpu": cpu_model(),
        "bf16_instructions": bf16_instructions(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{name: installed(name) for name in PACKAGES},
    }
    if device == "cuda":
        machine["gpu"] = torch.cuda.get_device_name()
    return {
        "command": " ".join(["python", *sys.argv]),
        "commit": commit(),
        "machine": machine,
        "seeds": seeds,
    }


def installed(package: str) -> str | None:
    """Return the version of a package; None if it is absent."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def bf16_instructions() -> bool | None:
    """Tell whether the processor multiplies bfloat16 numbers; None if the system does not say."""
    try:
        flags = set(Path("/proc/cpuinfo").read_text().split())
    except FileNotFoundError:
        return None
    return bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})  # the last one on Arm


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


class Timing(NamedTuple):
    """Seconds of one call in each round; CPU time is that of all threads together."""

    wall: list[float]
    cpu: list[float]

    @property
    def seconds(self) -> float:
        """Median wall time."""
        return statistics.median(self.wall)

    @property
    def cpu_seconds(self) -> float:
        """Median CPU time."""
        return statistics.median(self.cpu)

    def against(self, other: "Timing") -> float:
        """Return how many times as fast as another way this one is: the median of the rounds."""
        pairs = zip(self.wall, other.wall, strict=True)
        return statistics.median(theirs / ours for ours, theirs in pairs)


def in_turn(
    ways: Mapping[str, Callable[[], object]], rounds: int, warm_up: int = 1, device: str = "cpu"
) -> dict[str, Timing]:
    """Time ways to do the same, one after the other in each round, so that all see the same load.

    Args:
        warm_up: rounds before those that count
    """

    def clocks() -> tuple[float, float]:
        if device == "cuda":
            import torch

            torch.cuda.synchronize()
        return time.perf_counter(), time.process_time()

    timings = {name: Timing([], []) for name in ways}
    for number in range(warm_up + rounds):
        for name, way in ways.items():
            wall, cpu = clocks()
            way()
            wall_end, cpu_end = clocks()
            if number >= warm_up:
                timings[name].wall.append(wall_end - wall)
                timings[name].cpu.append(cpu_end - cpu)
    return timings


def timing_rows(timings: Mapping[str, Timing], images: int = 0) -> list[dict[str, Any]]:
    """Return a row per way: median seconds, CPU seconds, and how much faster the first way is.

    Args:
        images: of a call; 0 to leave images per second out
    """
    first = next(iter(timings.values()))
    rows = []
    for way, timing in timings.items():
        row = {"way": way, "seconds": timing.seconds, "cpu_s": timing.cpu_seconds}
        if images:
            row["images_per_s"] = images / timing.seconds
        rows.append(row | {"ours_is_faster": first.against(timing)})
    return rows


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


def restart_peak(device: str) -> int:
    """Let the peak start from the memory in use now, on a CUDA device; return that memory."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    return memory(device).now


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


def write_results(
    name: str, result: dict[str, Any], folder: Path = RESULTS, quiet: bool = False
) -> None:
    """Write NAME.json, into benchmarks/results by default, and print its name."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    if not quiet:
        print(f"written: {path.relative_to(ROOT) if path.is_relative_to(ROOT) else path}")


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
