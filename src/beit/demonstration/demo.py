"""The demo: train a tokenizer, pretrain on its codes and measure, in minutes on two cores."""

import json
import math
import shlex
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from beit.command.ending import Ending, first_free, words
from beit.command.options import parse
from beit.data.source import Source, limited
from beit.data.sources import open_source
from beit.demonstration.scores import (
    ENCODER,
    FEW,
    PRETRAINED,
    TEACHER,
    UNTRAINED,
    FewLabels,
    gained,
    learned,
    probe_table,
)
from beit.demonstration.sets import Sets, find_sets
from beit.draw.report import Link, Section, Table, link_to, with_lead, write_report
from beit.files import write_text
from beit.finetuning import finetune
from beit.finetuning.config import Config as FinetuneConfig
from beit.pretraining import pretrain
from beit.pretraining.config import Config as PretrainConfig
from beit.probing import probe
from beit.probing.charts import format_table
from beit.run.budget import seconds_of, seconds_to_read
from beit.run.finished import is_finished, last_validation
from beit.run.journal import Result as Trained
from beit.run.resume import to_resume
from beit.tokenizer import vqkd
from beit.wording import amount

PRESET = "demo"
# Shares of the remaining budget: of each training, and of reading images for the probes.
TOKENIZER_SHARE, PRETRAIN_SHARE, READING_SHARE = 0.45, 0.65, 0.4
LEAST = 0.25  # of the whole budget, which always counts as remaining
SETTINGS = "demo.json"  # in the output
FEWEST_PROBED = 50  # test images of a probe, and twice as many training images
PAGE_IMAGES = 10_000  # of the page to browse, at most: all of CIFAR-10 take five times as long
FEWEST_SECONDS = 30  # of remaining budget; with less, nothing is fine-tuned


@dataclass(frozen=True)
class Config:
    """Settings of `beit demo`; all others are in the preset `demo`.

    Attributes:
        data: a folder of images or any other data string; empty fetches CIFAR-10, and takes the
            2,018 drawings of the package if it cannot be fetched
        output: new directory for the runs and report.html, or that of an interrupted demo with the
            same settings, which resumes; empty takes such a one or the first free one of runs/demo,
            runs/demo-2, ...
        cache: directory for CIFAR-10 and the teacher's features of it; features of other images are
            kept in output
        budget: time for the whole demo, such as 10m or 1h; empty for 10m with images of your own,
            and for the whole preset without data
        max_unreadable: largest share of unreadable images that does not stop the demo
    """

    data: str = ""
    output: str = ""
    cache: str = "data/cifar10"
    budget: str = ""
    max_unreadable: float = 0.01


class Result(NamedTuple):
    """The report, and what it says.

    Attributes:
        table: of probes; None for images without labels
        commands: to type next: what each does, and its words
        gain: what pretraining is worth, in words; empty without labels
    """

    report: Path
    table: Table | None
    commands: Sequence[tuple[str, Sequence[str]]]
    gain: str


def run(config: Config) -> Result:
    """Train a tokenizer, pretrain on its codes, probe, and write one report."""
    started, budget = time.monotonic(), config.budget or ("10m" if config.data else "")
    whole = seconds_of(budget) if budget else 0.0

    def left(share: float) -> str:
        """Return a share of the remaining budget, as run.budget; empty without a budget."""
        seconds = max(whole - time.monotonic() + started, LEAST * whole)
        return f"{max(share * seconds, 1):.0f}s" if budget else ""

    sets = find_sets(config.data, config.cache)
    settings = json.dumps(asdict(config) | {"images": sets.train}) + "\n"
    output = directory_of(config.output, settings)
    images = open_source(sets.train)
    output.mkdir(parents=True, exist_ok=True)
    write_text(output / SETTINGS, settings)
    data = [f"--data={sets.train}", f"--validation={sets.test}"]
    data += [f"--data.max_unreadable={config.max_unreadable}"]
    data += ["--data.shrink=true"] if config.data else []

    print(f"\n1 of 4 · a tokenizer learns codes from a teacher, on {sets.train}")
    vit = [f"--model.encoder.{option}" for option in sets.vit]
    features = (Path(config.cache) if sets.cifar else output) / "teacher"
    folders = [f"--output={output / 'tokenizer'}", f"--teacher.cache={features}"]
    tokenizer_config = from_preset(vqkd.VERB, vqkd.Config, [*data, *vit, *folders])
    images = limited(images, tokenizer_config.data.limit)
    tokenizer_config = fitted(tokenizer_config, len(images))
    tokenizer = trained(vqkd, with_budget(tokenizer_config, left(TOKENIZER_SHARE)))

    print("\n2 of 4 · a backbone learns to predict the codes of masked patches")
    options = [f"--model.backbone.{option}" for option in sets.vit]
    options += [f"--tokenizer={tokenizer.directory}", f"--output={output / 'pretrain'}"]
    options += ["--check.every=0"] if images.labels is None else []
    pretrain_config = from_preset(pretrain.VERB, PretrainConfig, [*data, *options])
    pretrain_config = fitted(pretrain_config, len(images))
    pretrained = trained(pretrain, with_budget(pretrain_config, left(PRETRAIN_SHARE)))

    probes, folder = dict[str, probe.Result](), first_free(output / "probes")
    few: FewLabels | None = None
    if images.labels is not None:
        print("\n3 of 4 · probes measure how well frozen features separate the classes")
        limits = probe_limits(images, left(READING_SHARE))
        limits += [f"--max_unreadable={config.max_unreadable}"]
        probes = probe_all(sets, tokenizer, pretrained, tokenizer_config.teacher, limits, folder)
        if budget and seconds_of(left(1.0)) < FEWEST_SECONDS:
            print("\n4 of 4 · no time is left for fine-tuning with few labels; see --budget")
        elif images.labels.unique().numel() < 2:
            print("\n4 of 4 · nothing is fine-tuned: the images have one class only")
        else:
            few = finetune_both(pretrain_config, pretrained, data, len(images))

    taken = time.monotonic() - started
    minutes = f"{taken / 60:.1f}"
    table, gain = (probe_table(probes), gained(probes)) if probes else (None, {})
    page = output / "report.html"
    summary = (
        f"Trained on {amount(len(images), 'image')} of {sets.train}. A tokenizer learnt a codebook "
        "from a teacher's features of image patches; a backbone learnt to predict the codes of "
        "masked patches. Neither used labels of these images. "
    )
    if not table:
        summary += "The images have no class folders, so there is no probe and no score."
    codes, *about_codes = tokenizer.sections
    predicted, *about_predictions = pretrained.sections
    lead, (predicted, *others) = with_lead([predicted, codes, *about_predictions, *about_codes])
    measured = [Section("What was learned", learned(probes), [table])] if table else []
    if few:
        measured.append(Section("Few labels", FEW, [few.table()]))
        gain[f"gain by pretraining, fine-tuned with {few.labels} labels"] = few.figure()
    commands = next_commands(output, sets, classified=bool(few))
    steps = "\n\n".join(f"{does}:\n\n    {shlex.join(['beit', *then])}" for does, then in commands)
    sections = [*measured, predicted, *others, Section("What to do next", steps)]
    facts: dict[str, str | Link] = {
        "images": f"{amount(len(images), 'image')} of {sets.train}",
        "teacher": tokenizer_config.teacher.source,
        "preset": PRESET,
        "minutes": minutes,
    }
    folders_made = [output / "tokenizer", output / "pretrain", *folder.glob("*")]
    for made in [*folders_made, *output.glob("few-labels/*")]:
        facts[str(made.relative_to(output))] = link_to(str(made), page)
    title = "beit: from images to a backbone"
    report = write_report(page, title, sections, facts, summary=summary, lead=lead, figures=gain)
    over = f", over the budget of {budget}" if budget and taken > whole else ""
    print("\n" + (format_table(table) if table else summary))
    print(f"\n{minutes} minutes since beit demo began{over}")
    shown = [*gain.items()][:1] + [*gain.items()][-1:] * bool(few)
    worth = "; ".join(f"{name} {value} ({beside})" for name, (value, beside) in shown)
    return Result(report, table, commands, worth)


def ending(config: Config, result: Result) -> Ending:
    """Say what the backbone learned; pages to browse the codebook and the images are next."""
    figure = result.gain or "no score: the images have no class folders"
    then, *others = (command for _, command in result.commands)
    return Ending(f"{result.report}, the whole story", figure, then, others)


def next_commands(output: Path, sets: Sets, classified: bool) -> list[tuple[str, list[str]]]:
    """Return what to try with the models of a demo: what each command does, and its words.

    Args:
        classified: whether the demo fine-tuned classifiers
    """
    tokenizer, backbone = str(output / "tokenizer"), str(output / "pretrain")
    codes, images = str(output / "explorer"), str(output / "images.html")
    commands = [
        (
            "See what each code stands for, on a page to browse",
            words("visualise explorer", tokenizer, sets.train, limit=PAGE_IMAGES, output=codes),
        ),
        (
            "See which images are similar to the backbone, on a map",
            words("visualise embedding", backbone, sets.test, output=images),
        ),
    ]
    if classified:
        classes = words(
            "predict",
            *(str(output / "few-labels" / "pretrained"), sets.test),
            output=output / "classes.parquet",
            picture=output / "classes.png",
        )
        commands.append(("Classify the test images, with a picture of wrong ones", classes))
    return commands


def directory_of(name: str, settings: str) -> Path:
    """Return the output: a new directory, or that of an interrupted demo with these settings."""

    def interrupted(path: Path) -> bool:
        """Whether a directory is that of a demo with these settings that has no report."""
        file = path / SETTINGS
        same = file.is_file() and file.read_bytes() == settings.encode()
        return same and not (path / "report.html").exists()

    output = Path(name)
    if not name:
        found = sorted(Path("runs").glob("demo*"))
        output = next(filter(interrupted, found), first_free(Path("runs/demo")))
    if output.exists():
        if not interrupted(output):
            raise FileExistsError(f"{output} exists and is not overwritten; name another directory")
        print(f"resuming the demo in {output}")
    return output


def trained(training: Any, config: Any) -> Trained:
    """Train; a run that an interrupted demo left is resumed, or taken if it is finished."""
    path = Path(config.run.output)
    if not path.exists():
        result: Trained = training.run(config)
        return result
    resumed, directory = to_resume(training, path)
    if not is_finished(directory):
        return training.run(resumed, directory)  # type: ignore[no-any-return]
    metrics = last_validation(directory.metrics_file, getattr(config, "keep", "last"))
    return Trained(path, metrics, training.redraw(resumed, directory))


def from_preset(verb: str, config_class: type, options: Sequence[str]) -> Any:
    """Build a verb's Config from the preset and these options."""
    return parse(verb, config_class, [f"--preset={PRESET}", *options])


def fitted(config: Any, num_images: int) -> Any:
    """Fit a training to the number of images: it takes about as many samples as the preset's."""
    optim, share = config.optim, config.data.limit / num_images
    epochs, warmup = max(1, round(optim.epochs * share)), optim.warmup_epochs * share
    size = min(optim.batch_size, max(1, num_images // 4))
    optim = replace(optim, epochs=epochs, warmup_epochs=warmup, batch_size=size)
    every = max(1, round(config.validate_every * share))
    config = replace(config, optim=optim, validate_every=every)
    if hasattr(config, "check"):
        every = math.ceil(config.check.every * share)
        config = replace(config, check=replace(config.check, every=every))
    return config


def with_budget(config: Any, budget: str) -> Any:
    """Return a training's settings with a budget."""
    return replace(config, run=replace(config.run, budget=budget))


def probe_limits(images: Source, budget: str) -> list[str]:
    """Return options of a probe: as many images as four of them can read in a time."""
    if not budget:
        return []
    most = int(seconds_of(budget) / 4 / max(seconds_to_read(images), 1e-6))
    config = from_preset("probe", probe.Config, ["--model="])
    limit, test_limit = (
        min(max(most * share // 3, share * FEWEST_PROBED), limit)
        for share, limit in ((2, config.limit), (1, config.test_limit))
    )
    return [f"--limit={limit}", f"--test_limit={test_limit}"]


def probe_all(
    sets: Sets,
    tokenizer: Trained,
    pretrained: Trained,
    teacher: Any,
    limits: Sequence[str],
    folder: Path,
) -> dict[str, probe.Result]:
    """Probe the untrained and the pretrained backbone, the tokenizer's encoder and the teacher."""
    backbone = f"--model={pretrained.directory}"
    models = {
        UNTRAINED: [backbone, "--untrained"],
        PRETRAINED: [backbone],
        ENCODER: [f"--model={tokenizer.directory}"],
        TEACHER: [f"--model=teacher:{teacher.source}", f"--image_size={teacher.image_size}"],
    }
    results = {}
    for name, options in models.items():
        run = folder / name.split()[0].removesuffix("'s")
        data = [f"--data={sets.train}", f"--test={sets.test}", f"--output={run}"]
        settings = [*data, *limits, *options]
        results[name] = probe.run(from_preset("probe", probe.Config, settings))
    return results


def finetune_both(
    pretrain_config: PretrainConfig, pretrained: Trained, data: Sequence[str], num_images: int
) -> FewLabels:
    """Fine-tune the pretrained backbone and the same network from random weights."""
    folder = pretrained.directory.parent / "few-labels"
    options = [*data, f"--model={pretrained.directory}", f"--output={folder / 'pretrained'}"]
    config = from_preset(finetune.VERB, FinetuneConfig, options)
    labels = min(config.data.limit, num_images)
    print(f"\n4 of 4 · classifiers are fine-tuned with {labels} labels, pretrained and not")
    config = fitted(config, labels)
    fresh = replace(
        config,
        init=None,
        backbone=pretrain_config.model.backbone,
        layer_decay=None,
        run=replace(config.run, output=str(folder / "random")),
    )
    top1 = list[float]()
    for start, each in (("the pretrained backbone", config), ("random weights", fresh)):
        print(f"\nfrom {start}:")
        top1.append(trained(finetune, each).metrics["val_top1"])
    return FewLabels(labels, *top1)
