"""What is shown of a training that was measured: checks with advice, and tables for the page."""

import shutil
from pathlib import Path

import torch

from beit.diagnosis.checks import Check
from beit.diagnosis.machine import existing
from beit.diagnosis.prediction import Case, Prediction, crowded, seconds_of_step
from beit.draw.names import percent
from beit.draw.report import Cell, Section, Table
from beit.run.profile import TARGETS

LARGE = 3e6  # bytes of a decoded image from which shrinking it once is worth while


def checks_of(case: Case, predicted: Prediction) -> list[Check]:
    """Say what was measured, what binds, and what the run will take."""
    config, measured, machine, count, processes = case
    optim, data, seconds = config.optim, config.data, measured.reading
    schedule, each = optim.schedule(count), optim.batch_size // processes
    length = f"{schedule.total_steps} steps of {optim.batch_size}, {count} images"
    checks = [Check("run", f"{length}, {processes} {measured.device}")]
    if measured.in_memory:
        checks.append(Check("reading", "from memory, where all images are decoded first"))
    if measured.file_bytes:
        rate = measured.file_bytes / max(seconds["disk"], 1e-9) / 1e6
        found = f"{_ms(seconds['read'])} an image now; {_ms(seconds['disk'])} from the disk"
        checks.append(Check("disk read", f"{found}, {rate:.0f} MB/s"))
    again = "" if measured.in_memory else f"; {_ms(seconds['again'])} in later epochs"
    checks.append(Check("decode", f"{_ms(seconds['decode'])} an image{again}"))
    checks.append(Check("views", f"{_ms(seconds['views'])} an image"))
    if measured.transfer:
        checks.append(Check("to the GPU", f"{_ms(measured.transfer)} a batch"))
    targets = measured.parts.get(TARGETS, 0.0) * optim.accumulate
    checks.append(Check("teacher, masks", f"{_ms(targets)} a step of {each} images, tokenizer too"))
    checks.append(
        Check("model", f"{_ms(predicted.step - targets)} a step: forward, backward, optimiser")
    )
    checks.append(_binding(case, predicted, each))
    speed = f"{_count(predicted.later)} images/s"
    if abs(predicted.first / predicted.later - 1) > 0.1:
        speed += f", in the first epoch {_count(predicted.first)}"
    checks.append(Check("speed", f"{speed}, with {data.num_workers} workers"))
    checks.append(Check("time", f"{_duration(predicted.seconds)} for the whole run"))
    free = machine.memory
    checks.append(_room("memory", predicted.host, free, "use fewer workers or smaller batches"))
    if measured.gpu:
        whole = torch.cuda.get_device_properties(0).total_memory
        checks.append(_room("GPU memory", predicted.gpu, whole, "raise optim.accumulate"))
    room = shutil.disk_usage(existing(Path(config.run.output or "."))).free
    checks.append(_room("disk", predicted.disk, room, "let --output lie on another disk"))
    return checks


def _binding(case: Case, predicted: Prediction, each: int) -> Check:
    """Say whether reading or the step takes longer, by how much, and how many workers suffice."""
    config, measured, machine, *_ = case
    workers, reading = config.data.num_workers, predicted.reading[1] * each
    alone = reading / max(1, workers)
    names = ("the step", "reading")
    pair = (predicted.step, alone)
    if alone > predicted.step:
        names, pair = names[::-1], pair[::-1]
    ratio = pair[0] / max(pair[1], 1e-9)
    found = f"{names[0]}: {_ms(pair[0])}, {names[1]} {_ms(pair[1])} ({_count(ratio)} times)"
    advice = list[str]()
    if predicted.workers != workers:
        best = each / seconds_of_step(measured, machine, predicted.step, reading, predicted.workers)
        now = each / seconds_of_step(measured, machine, predicted.step, reading, workers)
        gain = f"{percent(best / now - 1)} faster" if best > now * 1.02 else "as fast, less memory"
        advice.append(f"data.num_workers {predicted.workers} suffices: {gain}")
    if names[0] == "reading" and workers and crowded(measured, machine, workers):
        advice.append("the environment variable OMP_NUM_THREADS=1 leaves the cores to the workers")
    if (
        names[0] == "reading"
        and measured.image_bytes > LARGE
        and not getattr(config.data, "shrink", True)
    ):
        advice.append("--data.shrink true reads large images once")
    return Check("binds", found, "; ".join(advice))


def _room(name: str, needed: float, there: float, advice: str) -> Check:
    short = needed > there
    found = f"{needed / 1e9:.2f} GB of {there / 1e9:.1f} free"
    return Check(name, found, advice if short else "", short)


def sections_of(case: Case, predicted: Prediction) -> list[Section]:
    """Show the parts of a step, and the speed by the number of workers."""
    config, measured, machine, _, processes = case
    total = sum(measured.parts.values())
    parts: list[list[Cell]] = [
        [name, 1e3 * seconds, percent(seconds / total)]
        for name, seconds in sorted(measured.parts.items(), key=lambda part: -part[1])
    ]
    each = config.optim.batch_size // processes
    reading: list[list[Cell]] = [[name, 1e3 * s] for name, s in measured.reading.items()]
    numbers = [0, 1, 2, 4, 8, 16, 32]
    speeds: list[list[Cell]] = []
    for number in sorted({*numbers, config.data.num_workers, predicted.workers}):
        row: list[Cell] = [number]
        for seconds in predicted.reading:
            step = seconds_of_step(measured, machine, predicted.step, each * seconds, number)
            row.append(each * processes / step)
        speeds.append(row)
    tables = [
        Table("A micro-step without reading", ["part", "ms", "share"], parts),
        Table("Reading an image, in one worker", ["part", "ms"], reading),
        Table("Predicted images a second", ["workers", "first epoch", "later"], speeds),
    ]
    return [Section("Where the time goes", "", tables)]


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def _count(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.2g}" if value < 10 else f"{value:.1f}"


def _duration(seconds: float) -> str:
    if seconds < 5400:
        return f"{seconds / 60:.1f} minutes"
    return f"{seconds / 3600:.1f} hours" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"
