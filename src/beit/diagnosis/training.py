"""What a training will do on this machine: its speed, what binds it, its time, memory and disk.

A trial (`beit.diagnosis.trial`) measures a step and the reading of images apart. A step of B
images, which takes s seconds of its own, and images that take r seconds each in one of w workers,
on c cores, of which the step on a CPU uses t:

    without workers, on a CPU      s + B r
    with workers, on a CPU         max(s, B r / w, (s t + B r) / c)
    on a GPU, which reads ahead    max(s, B r / max(w, 1), copy)
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch

from beit.command.messages import did_you_mean
from beit.command.modules import find_module
from beit.command.options import Layer, parse, take
from beit.command.presets import path_of, read_yaml
from beit.command.rules import power_of_two
from beit.command.verbs import VERBS
from beit.data.sources import open_source
from beit.diagnosis.checks import Check, Findings
from beit.diagnosis.machine import cores_here, disk, memory_here
from beit.diagnosis.trial import Measured, Plan, try_out
from beit.draw.names import percent
from beit.draw.report import Cell, Section, Table
from beit.run.budget import evaluations
from beit.run.directory import RunDirectory
from beit.run.launch import layout
from beit.run.profile import TARGETS

TRAININGS = tuple(verb for verb, entry in VERBS.items() if entry.resumable)
SMALL, MODEST = 4, 128  # images of a first trial on a CPU; batches up to which it has them all
TIME, STEPS_OF_TRIAL = 25.0, 5  # seconds of the second trial, and its steps at least
MOST_WORKERS = 64
LARGE = 3e6  # bytes of a decoded image from which shrinking it once is worth while
NEAR = 0.95  # share of the best speed that is enough
KEPT = 0.7  # share of the free memory in which the system keeps files that were read
GPU_CONTEXT = 0.5e9  # bytes of a GPU that CUDA itself takes
FIXED = ("metrics and clipping", "optimiser")  # parts of a step that do not grow with its images


@dataclass(frozen=True)
class Training:
    """A training to measure: its verb, module, settings and options, and the folder for a page."""

    verb: str
    module: str
    config: Any
    options: Sequence[str] = ()
    output: str | None = None


# ── which training ──────────────────────────────────────────────────────────────────────────────


def training_of(words: Sequence[str]) -> Training | None:
    """Read the training that a command line names by --preset, --config or --verb; None without."""
    verbs, rest = take(words, "--verb")
    outputs, rest = take(rest, "--output")
    presets, files = take(rest, "--preset")[0], take(rest, "--config")[0]
    if not (verbs or presets or files):
        return None
    layers = [Layer(f"preset {name}", read_yaml(path_of(name))) for name in presets]
    layers += [Layer(file, read_yaml(Path(file))) for file in files]
    if not verbs and any("doctor" in layer.values for layer in layers):
        return None
    verb = verbs[-1] if verbs else _verb_of(layers)
    if verb not in TRAININGS:
        known = f"expected one of {', '.join(TRAININGS)}{did_you_mean(verb, TRAININGS)}"
        raise ValueError(f"--verb is {verb!r}; {known}")
    module = find_module(verb, rest)
    config = parse(verb, import_module(module).Config, rest)
    options = take(rest, "--preset")[1]
    return Training(verb, module, config, options, outputs[-1] if outputs else None)


def _verb_of(layers: Sequence[Layer]) -> str:
    """Return the only training that presets and files are for; of a run's settings its verb."""
    for source, values in layers:
        if values.keys().isdisjoint(VERBS) and Path(source).with_name("environment.json").exists():
            return RunDirectory(Path(source).parent).verb()
    found = dict.fromkeys(v for _, values in layers for v in TRAININGS if v in values)
    if len(found) == 1:
        return next(iter(found))
    names = " and ".join(layer.source for layer in layers)
    has = f"has {' and '.join(found)}" if found else "names no training"
    raise ValueError(
        f"{names} {has}; say which one to measure, as in --verb {next(iter(found), TRAININGS[1])}"
    )


# ── the prediction ──────────────────────────────────────────────────────────────────────────────


class Prediction(NamedTuple):
    """What a training will do.

    Attributes:
        first, later: images a second in the first epoch, and after it
        reading: seconds of an image in a worker, in the first epoch and after it
        step: seconds of a step without reading
        workers: number from which more help little
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


def check_training(training: Training) -> Findings:
    """Measure a training and predict it."""
    config, title = training.config, f"beit {training.verb} on {training.config.data.train}"
    count, held_out = _counts(training)
    _, devices, nodes = layout(config.device, os.environ)
    processes = devices * nodes
    micro = config.optim.micro_batch_size(processes)
    trials = _trials(training, count, micro)
    batch, measured = trials[-1]
    if measured.failure:
        advice = "make optim.batch_size or the model smaller, or raise optim.accumulate"
        check = Check("trial", f"batches of {batch}: {measured.failure}", advice, True)
        return Findings(title, [check])
    measured = scaled(trials, micro)
    machine = Machine(max(1, cores_here() // devices), memory_here() * 1e9 / devices)
    validated = _validated(config, count, held_out)
    predicted = predict(config, measured, machine, count, processes, validated)
    checks = checks_of(config, measured, predicted, machine, count, processes)
    if batch < micro:
        sizes = " and ".join(str(size) for size, _ in trials)
        checks.append(Check("measured", f"batches of {sizes}; from these, what {micro} takes"))
    values = {"measured": vars(measured), "predicted": predicted._asdict()}
    figures = {"images_per_second": predicted.later, "hours": predicted.seconds / 3600}
    sections = sections_of(config, measured, predicted, machine, processes)
    return Findings(title, checks, sections, values, figures)


def _trials(training: Training, count: int, micro: int) -> list[tuple[int, Measured]]:
    """Try the training with its batch, or with two smaller ones where that takes too much."""
    config = training.config
    on_cpu = layout(config.device, os.environ).accelerator == "cpu"

    def tried(batch: int) -> tuple[int, Measured]:
        return batch, try_out(Plan(training.module, config, count, batch))

    if not on_cpu or micro <= MODEST:
        print(f"measuring some steps of beit {training.verb}, for a minute at most", flush=True)
        trials = [tried(micro)]
        if not trials[0][1].failure or micro <= 2 * SMALL:
            return trials
    print(f"measuring batches of {SMALL} first, as {micro} may take long", flush=True)
    first = tried(SMALL)
    if first[1].failure:
        return [first]
    affordable = power_of_two(TIME / (STEPS_OF_TRIAL * first[1].step / SMALL))
    batch = min(micro, max(2 * SMALL, affordable))
    print(f"measuring batches of {batch}", flush=True)
    return [first, tried(batch)]


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


def _counts(training: Training) -> tuple[int, int]:
    """Count the images of a training and those of its validation."""
    data = training.config.data
    if training.verb == "segment":  # pairs of images and label maps
        sets = import_module(training.module).all_sets(training.config)
        return len(sets.train), len(sets.validation)
    train = open_source(data.train, split="train", limit=data.limit)
    held_out = len(open_source(data.validation, split="test")) if data.validation else 0
    return len(train), held_out


def _validated(config: Any, count: int, images: int) -> tuple[int, int, int]:
    """Count the validation images, the validations, and the images of k-NN checks in all."""
    checked, check = 0, getattr(config, "check", None)
    if check is not None and check.every:
        checks = 1 + evaluations(config, check.every, count)  # one before the first step
        checked = checks * (min(check.limit, count) + min(check.limit, images or check.limit))
    return images, evaluations(config, config.validate_every, count), checked


def seconds_of_step(
    measured: Measured, machine: Machine, step: float, reading: float, workers: int
) -> float:
    """Return the seconds of a step, `step` of its own, that reads images for `reading` seconds."""
    if measured.device == "cuda":
        return max(step, reading / max(1, min(workers, machine.cores)), measured.transfer)
    if not workers:
        return step + reading
    threads = min(measured.threads, machine.cores) if measured.device == "cpu" else 0
    shared = (step * threads + reading) / machine.cores
    return max(step, reading / workers, shared)


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


def predict(
    config: Any,
    measured: Measured,
    machine: Machine,
    count: int,
    processes: int,
    validated: tuple[int, int, int],
) -> Prediction:
    """Predict a training of `count` images from what was measured of its micro-steps.

    Args:
        processes: that share a step
        validated: validation images, validations, images of k-NN checks
    """
    optim, data = config.optim, config.data
    micro, workers = optim.micro_batch_size(processes), data.num_workers
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
        *_bytes(config, measured, count, images, micro),
    )


def _bytes(
    config: Any, measured: Measured, count: int, held_out: int, micro: int
) -> tuple[float, float, float]:
    """Return the bytes of memory, of a GPU's and of disk that a process of the training needs."""
    data, run = config.data, config.run
    batch, workers = micro * measured.view_bytes, data.num_workers
    of_workers = workers * (measured.worker + 4 * batch)  # two batches wait, two are being made
    host = float(max(measured.host, measured.stepping + of_workers))
    gpu = measured.gpu + GPU_CONTEXT if measured.gpu else 0.0
    beyond = (count - measured.num_images) * measured.image_bytes
    if measured.in_memory:
        host += beyond + held_out * measured.image_bytes
        gpu += beyond if measured.gpu and measured.resident else 0.0
    total = config.optim.schedule(count).total_steps
    checkpoints = run.keep_last + 1 + (total // run.keep_every if run.keep_every else 0)
    disk = measured.checkpoint * min(checkpoints, 2 + total // run.checkpoint_every) + measured.kept
    disk += measured.features * count / measured.num_images
    if getattr(data, "shrink", False) and measured.file_bytes:
        disk += min(data.shrink_gigabytes * 1e9, (count + held_out) * measured.image_bytes)
    return host, gpu, disk


# ── what is shown ───────────────────────────────────────────────────────────────────────────────


def checks_of(
    config: Any,
    measured: Measured,
    predicted: Prediction,
    machine: Machine,
    count: int,
    processes: int,
) -> list[Check]:
    """Say what was measured, what binds, and what the run will take."""
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
    checks.append(_binding(config, measured, predicted, machine, each))
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
    where = disk(Path(config.run.output or "."))
    room = float(where.found.split()[0]) * 1e9
    checks.append(_room("disk", predicted.disk, room, "let --output lie on another disk"))
    return checks


def _binding(
    config: Any, measured: Measured, predicted: Prediction, machine: Machine, each: int
) -> Check:
    """Say whether reading or the step takes longer, by how much, and how many workers suffice."""
    workers, reading = config.data.num_workers, predicted.reading[1] * each
    alone = reading / max(1, workers)
    names = ("the step", "reading")
    pair = (predicted.step, alone)
    if alone > predicted.step:
        names, pair = names[::-1], pair[::-1]
    ratio = pair[0] / max(pair[1], 1e-9)
    found = f"{names[0]}: {_ms(pair[0])}, {names[1]} {_ms(pair[1])} ({_count(ratio)} times)"
    advice = ""
    if predicted.workers != workers:
        best = each / seconds_of_step(measured, machine, predicted.step, reading, predicted.workers)
        now = each / seconds_of_step(measured, machine, predicted.step, reading, workers)
        gain = f"{percent(best / now - 1)} faster" if best > now * 1.02 else "as fast, less memory"
        advice = f"data.num_workers {predicted.workers} suffices: {gain}"
    if (
        names[0] == "reading"
        and measured.image_bytes > LARGE
        and not getattr(config.data, "shrink", True)
    ):
        advice += "; " * bool(advice) + "--data.shrink true reads large images once"
    return Check("binds", found, advice)


def _room(name: str, needed: float, there: float, advice: str) -> Check:
    short = needed > there
    found = f"{needed / 1e9:.2f} GB of {there / 1e9:.1f} free"
    return Check(name, found, advice if short else "", short)


def sections_of(
    config: Any, measured: Measured, predicted: Prediction, machine: Machine, processes: int
) -> list[Section]:
    """Show the parts of a step, and the speed by the number of workers."""
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
