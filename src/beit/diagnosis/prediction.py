"""What a training takes, from trials of it: seconds, and bytes of memory and disk.

A trial (`beit.diagnosis.trial`) measures a step and the reading of images apart. A step of B
images, which takes s seconds of its own, and images that take r seconds each in one of w workers,
on c cores, of which the step on a CPU uses t:

    without workers, on a CPU      s + B r
    with workers, on a CPU         max(s, B r / w, (s t (1 + 4 b) + B r) / c)
    on a GPU, which reads ahead    max(s, B r / max(w, 1), copy)

b is 0 unless t + w > c: then it is the share of time that a worker is busy. A thread of the step
then often waits, computing, for another one whose core a worker has (docs/doctor.md).
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from beit.diagnosis.trial import Measured
from beit.run.optim import micro_batch_size
from beit.run.profile import TARGETS

MOST_WORKERS = 64
NEAR = 0.95  # share of the best speed that is enough
KEPT = 0.7  # share of the free memory in which the system keeps files that were read
GPU_CONTEXT = 0.5e9  # bytes of a GPU that CUDA itself takes
WASTED = 4.0  # of a step's CPU time, by threads that wait for others while all workers are busy
FIXED = ("metrics and clipping", "optimiser")  # parts of a step that do not grow with its images


class Prediction(NamedTuple):
    """What a training will do.

    Attributes:
        first, later: images a second in the first epoch, and after it
        reading: seconds of an image in a worker, in the first epoch and after it
        step: seconds of a step without reading
        workers: the fewest with at least `NEAR` of the best speed
        seconds: of the whole run
        host, gpu, disk: bytes
    """

    first: float
    later: float
    reading: tuple[float, float]
    step: float
    workers: int
    seconds: float
    host: float
    gpu: float
    disk: float


class Machine(NamedTuple):
    """What a process of the training has: CPU cores, and the free bytes of memory."""

    cores: int
    memory: float


class Case(NamedTuple):
    """A training that was measured on a machine: `processes` of it share `images` images."""

    config: Any
    measured: Measured
    machine: Machine
    images: int
    processes: int


def scaled(trials: Sequence[tuple[int, Measured]], micro: int) -> Measured:
    """Return what a batch of `micro` images takes, from trials with it or with two smaller ones."""
    batch, last = trials[-1]
    if batch == micro or len(trials) == 1:
        return last
    (small, first), more = trials[0], micro - batch
    parts = {
        name: seconds if name in FIXED else seconds * micro / batch
        for name, seconds in last.parts.items()
    }

    def grown(name: str) -> int:
        low, high = int(getattr(first, name)), int(getattr(last, name))
        return round(high + max(0.0, high - low) / (batch - small) * more)

    host, stepping, gpu = map(grown, ("host", "stepping", "gpu"))
    return replace(last, parts=parts, host=host, stepping=stepping, gpu=gpu)


def seconds_of_step(
    measured: Measured, machine: Machine, step: float, reading: float, workers: int
) -> float:
    """Return the seconds of a step, `step` of its own, that reads images for `reading` seconds."""
    if measured.device == "cuda":
        return max(step, reading / max(1, min(workers, machine.cores)), measured.transfer)
    if not workers:
        return step + reading
    threads = min(measured.threads, machine.cores) if measured.device == "cpu" else 0
    shared, work, waits = 0.0, step * threads, crowded(measured, machine, workers)
    for _ in range(9):  # converges: the busier the workers, the longer the step, the less they are
        busy = min(1.0, reading / (workers * shared)) if waits and shared else 0.0
        shared = (work * (1 + WASTED * busy) + reading) / machine.cores
    return max(step, reading / workers, shared)


def crowded(measured: Measured, machine: Machine, workers: int) -> bool:
    """Whether the threads of a step on the CPU and the workers are more than the cores."""
    threads = min(measured.threads, machine.cores) if measured.device == "cpu" else 0
    return threads > 1 and threads + workers > machine.cores


def seconds_of_reading(config: Any, measured: Measured, memory: float, count: int) -> list[float]:
    """Return the seconds to read an image in the first epoch, and in later ones."""
    seconds = measured.reading
    if measured.in_memory:
        return [seconds["views"]] * 2
    shrunk = getattr(config.data, "shrink", False) and config.data.shrink_gigabytes > 0
    stored = count * (measured.image_bytes if shrunk else measured.file_bytes)
    from_disk = 0.0
    if stored > KEPT * memory:  # the system's cache does not hold them for the next epoch
        share = measured.image_bytes / max(1.0, measured.file_bytes) if shrunk else 1.0
        from_disk = seconds["disk"] * share
    first = seconds["read"] + seconds["decode"] + seconds["views"]
    return [first, seconds["again"] + from_disk + seconds["views"]]


def predict(case: Case, validated: tuple[int, int, int]) -> Prediction:
    """Predict a training from what was measured of its micro-steps.

    Args:
        validated: validation images, validations, images of k-NN checks
    """
    config, measured, machine, count, processes = case
    optim, data = config.optim, config.data
    micro, workers = micro_batch_size(optim, processes), data.num_workers
    each = micro * optim.accumulate  # images of a step and process
    fixed = sum(measured.parts.get(name, 0.0) for name in FIXED)
    step = fixed + (measured.step - fixed) * optim.accumulate
    first, later = seconds_of_reading(config, measured, machine.memory, count)

    def speed(number: int, reading: float) -> float:
        seconds = seconds_of_step(measured, machine, step, each * reading, number)
        return float(each * processes / seconds)

    speeds = [speed(number, later) for number in range(MOST_WORKERS + 1)]
    enough = next(n for n, images in enumerate(speeds) if images >= NEAR * max(speeds))
    schedule = optim.schedule(count)
    total = min(schedule.total_steps, config.run.stop_after or schedule.total_steps)
    early = min(total, schedule.steps_per_epoch)
    seconds = optim.batch_size * (
        early / speed(workers, first) + (total - early) / speed(workers, later)
    )
    images, validations, checked = validated
    forward = sum(measured.parts.get(name, 0.0) for name in (TARGETS, "forward")) / micro
    evaluated = (images * validations + checked) / processes
    seconds += evaluated * (forward + later / max(1, workers))
    seconds += measured.once + (validations - 1) * measured.report
    seconds += measured.prepared * count / measured.num_images
    if measured.in_memory:
        decoding = measured.reading["read"] + measured.reading["decode"]
        seconds += (count + images) * decoding / min(16, machine.cores)
    return Prediction(
        speed(workers, first),
        speed(workers, later),
        (first, later),
        step,
        enough,
        seconds,
        *_bytes(case, images, micro),
    )


def _bytes(case: Case, held_out: int, micro: int) -> tuple[float, float, float]:
    """Return the bytes of memory, of a GPU's and of disk that a process of the training needs."""
    config, measured, _, count, _ = case
    data, run = config.data, config.run
    batch, workers = micro * measured.view_bytes, data.num_workers
    of_workers = workers * (measured.worker + 4 * batch)  # two batches wait, two are being made
    host = float(max(measured.host, measured.stepping + of_workers))
    gpu = measured.gpu + GPU_CONTEXT if measured.gpu else 0.0
    beyond = (count - measured.num_images) * measured.image_bytes
    held = held_out * measured.image_bytes
    if held <= getattr(data, "cache_gigabytes", 0.0) * 1e9:
        host += held
    if measured.in_memory:
        host += beyond
        gpu += beyond if measured.gpu and measured.resident else 0.0
    total = config.optim.schedule(count).total_steps
    checkpoints = run.keep_last + 1 + (total // run.keep_every if run.keep_every else 0)
    disk = measured.checkpoint * min(checkpoints, 2 + total // run.checkpoint_every) + measured.kept
    disk += measured.features * count / measured.num_images
    if getattr(data, "shrink", False) and measured.file_bytes:
        disk += min(data.shrink_gigabytes * 1e9, (count + held_out) * measured.image_bytes)
    return host, gpu, disk
