"""Measure a training on this machine: which one it is, its trials, and what they say of the run."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from beit.command.messages import did_you_mean
from beit.command.modules import find_module
from beit.command.options import Layer, parse, take
from beit.command.presets import path_of, read_yaml
from beit.command.rules import power_of_two
from beit.command.verbs import VERBS
from beit.data.sources import open_source
from beit.diagnosis.checks import Check, Findings
from beit.diagnosis.machine import cores_here, memory_here
from beit.diagnosis.prediction import Case, Machine, predict, scaled
from beit.diagnosis.training_findings import checks_of, sections_of
from beit.diagnosis.trial import Measured, Plan, try_out
from beit.run.budget import evaluations
from beit.run.directory import RunDirectory
from beit.run.launch import layout
from beit.run.optim import micro_batch_size

TRAININGS = tuple(verb for verb, entry in VERBS.items() if entry.resumable)
SMALL, MODEST = 4, 128  # images of a first trial on a CPU; batches up to which it has them all
TIME, STEPS_OF_TRIAL = 25.0, 5  # seconds of the second trial, and its steps at least


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


# ── its trials ──────────────────────────────────────────────────────────────────────────────────


def check_training(training: Training) -> Findings:
    """Measure a training and predict it."""
    config, title = training.config, f"beit {training.verb} on {training.config.data.train}"
    count, held_out = _counts(training)
    _, devices, nodes = layout(config.device, os.environ)
    processes = devices * nodes
    micro = micro_batch_size(config.optim, processes)
    trials = _trials(training, count, micro)
    batch, measured = trials[-1]
    if measured.failure:
        advice = "make optim.batch_size or the model smaller, or raise optim.accumulate"
        check = Check("trial", f"batches of {batch}: {measured.failure}", advice, True)
        return Findings(title, [check])
    measured = scaled(trials, micro)
    machine = Machine(max(1, cores_here() // devices), memory_here() * 1e9 / devices)
    validated = _validated(config, count, held_out)
    case = Case(config, measured, machine, count, processes)
    predicted = predict(case, validated)
    checks = checks_of(case, predicted)
    if batch < micro:
        sizes = " and ".join(str(size) for size, _ in trials)
        checks.append(Check("measured", f"batches of {sizes}; from these, what {micro} takes"))
    values = {"measured": vars(measured), "predicted": predicted._asdict()}
    figures = {"images_per_second": predicted.later, "hours": predicted.seconds / 3600}
    return Findings(title, checks, sections_of(case, predicted), values, figures)


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
