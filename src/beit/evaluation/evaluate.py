"""Evaluation: how often a classifier is right, how well it knows, and how it holds up.

Every image that can be read is classified once; the logits that a set compares (all, or the right
200 for ImageNet-A and -R) compete. Figures, shares in [0, 1] but for NLL:

- top1, top5 (from six logits on): the right class has the largest, one of the five largest logits;
- mean_per_class: top-1 of each class, averaged over the classes that have images;
- nll: mean of -log of the probability of what is right (of any of it, where several classes are);
- ece: expected calibration error, 15 equal bins of the likeliest class's probability (Guo et al.
  2017).

With crops or flips an image's probabilities are the mean of the softmax over its views.

Corruptions are made after the crop, as ImageNet-C's files are crops, by (seed, index, kind,
severity) alone; each image is decoded once. `mean_corruption_error` averages top-1 errors over
severities, then kinds; `mce` divides each kind's by a reference's first: AlexNet's on ImageNet, or
those of another evaluation.

Under torchrun each process takes every n-th batch and the first one writes.
"""

import json
import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from beit.data.batches import EvalBatches
from beit.data.prefetch import prefetch
from beit.data.unreadable import Unreadable, readable
from beit.draw.classes import class_table, confusion_picture, confusion_table
from beit.draw.curves import curves
from beit.draw.report import Item, Section, Table, write_report
from beit.evaluation.corruptions.corrupt import (
    ALEXNET_ERRORS,
    KINDS,
    SEVERITIES,
    corrupt,
    kind_errors,
    mean_corruption_error,
)
from beit.evaluation.crops import CropViews
from beit.evaluation.imagenet import Dataset, open_task
from beit.evaluation.robustness import robustness_plots, robustness_table
from beit.evaluation.truth import Task
from beit.files import replacing, write_text
from beit.nn.heads import ImageClassifier
from beit.nn.metrics import confusion_matrix, expected_calibration_error, reliability
from beit.run.device import DeviceConfig, launch, prepared, summed
from beit.run.directory import environment
from beit.run.evaluations import (
    FILE,
    IMAGES_FILE,
    NAMES,
    compared,
    read_evaluation,
    refuse_other_images,
    written,
)
from beit.run.progress import Progress
from beit.weights.open import load_classifier

if TYPE_CHECKING:
    from lightning_fabric import Fabric

MATRIX = 1024  # most classes whose confusions are counted
# Columns of the table of answers; a column for each corruption follows, 1 where it was right.
SEEN, TOP1, TOP5, NLL, CONFIDENCE, GUESS, CORRUPTED = range(7)


@dataclass(frozen=True)
class Config:
    """What is judged, on which images, and how.

    Attributes:
        model: an image classifier: a run directory, a weights file, published:NAME or
            hf://OWNER/NAME
        data: labelled images: a folder, *.parquet or shapes://COUNT, or a part: folder[:90%]
        dataset: plain, any labelled images, matched with the classifier by class names where both
            have them; or one of ImageNet's sets, laid out as published (docs/evaluation.md)
        output: new directory for evaluate.json, report.html and images.npz; null for none
        compare: evaluate.json files, or directories with one, to be set side by side; nothing is
            evaluated anew then, and model and data are not needed
        limit: use so many images, a fixed random subset; null for all
        image_size: side that the model is to see, or [height, width]; null for the model's own
        num_heads: attention heads, where neither the file nor the usual 64 channels a head say it
        crop_ratio: side of the centre crop over the shorter side; 1 for images without a margin,
            and as published from 384 pixels on
        crops: 1, the centre, or 5, the corners too
        flip: average with the mirror images
        present_only: of plain data, compare the logits of those classes only that images have
        real_labels: ReaL's JSON file, where timm's copy of it is not to be used
        corruptions: none, all, or a list of kinds
        severities: of the corruptions, from 1 to 5
        reference: evaluate.json, or the directory with it, whose errors are 100% in mce
        seed: of the corruptions
        batch_size: images at a time in each process
        num_workers: processes that decode images, and threads that corrupt them, for each process
        max_unreadable: largest share of unreadable images that does not stop the work
        device: where and in which precision the classifier runs
    """

    model: str = ""
    data: str = ""
    dataset: Dataset = "plain"
    output: str | None = None
    compare: tuple[str, ...] = ()
    limit: int | None = None
    image_size: int | tuple[int, int] | None = None
    num_heads: int | None = None
    crop_ratio: float = 0.875
    crops: Literal[1, 5] = 1
    flip: bool = False
    present_only: bool = False
    real_labels: str | None = None
    corruptions: Literal["none", "all"] | tuple[str, ...] = "none"
    severities: tuple[int, ...] = SEVERITIES
    reference: str | None = None
    seed: int = 0
    batch_size: int = 128
    num_workers: int = 2
    max_unreadable: float = 0.01
    device: DeviceConfig = field(default_factory=DeviceConfig)

    def __post_init__(self) -> None:
        for kind in self.kinds:
            if kind not in KINDS:
                near = get_close_matches(kind, KINDS, n=1, cutoff=0.4)
                hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(KINDS)}"
                raise ValueError(f"corruptions has the unknown kind {kind!r}; {hint}")
        if not self.severities or not set(self.severities) <= set(SEVERITIES):
            raise ValueError(
                f"severities must be one or more of 1 to 5, got {list(self.severities)}"
            )
        if len(self.compare) == 1:
            raise ValueError("compare takes two results or more, got one")
        if self.present_only and self.dataset != "plain":
            raise ValueError(
                f"present_only is for plain data; {self.dataset} says what it compares"
            )
        if self.real_labels is not None and self.dataset != "imagenet-real":
            raise ValueError("real_labels is for --dataset imagenet-real")
        if self.reference is not None and not self.kinds:
            raise ValueError("reference is for corruptions; say which, as in --corruptions all")

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of corruption asked for."""
        if isinstance(self.corruptions, str):
            return KINDS if self.corruptions == "all" else ()
        return tuple(self.corruptions)

    @property
    def pairs(self) -> list[tuple[str, int]]:
        """The corruptions asked for, kind and severity."""
        severities = sorted(set(self.severities))
        return [(kind, severity) for kind in dict.fromkeys(self.kinds) for severity in severities]


class Result(NamedTuple):
    """What was measured, as in evaluate.json, and the table that a person reads.

    Both are the same in all processes. After a comparison, record maps each result to its figures.
    """

    record: dict[str, Any]
    table: str


def run(config: Config) -> Result:
    """Evaluate a classifier, or set results side by side."""
    output = None if config.output is None else Path(config.output)
    if output is not None and output.exists():
        raise FileExistsError(f"{output} exists and is not overwritten; name another directory")
    if config.compare:
        return compare(config.compare, output)
    if not config.model or not config.data:
        raise ValueError(
            "say what to evaluate on what (--model, --data), or which results to --compare"
        )
    reference = None if config.reference is None else read_evaluation(config.reference)
    classifier = load_classifier(config.model, config.image_size, num_heads=config.num_heads)
    task = open_task(
        config.data,
        config.dataset,
        classifier.config.num_classes,
        classifier.config.class_names,
        limit=config.limit,
        present_only=config.present_only,
        real_labels=config.real_labels,
    )
    fingerprint = task.fingerprint()
    if reference is not None:
        assert config.reference is not None
        prints = {config.reference: reference["fingerprint"], "this evaluation": fingerprint}
        refuse_other_images(prints)
        baseline_of(reference, config)

    fabric = launch(config.device)
    answers = summed_answers(fabric, classify(fabric, classifier, task, config))
    lost = [task.source.name(int(i)) for i in (answers[:, SEEN] == 0).nonzero()]
    Unreadable(len(task.source), config.max_unreadable).note(lost)  # those of all processes
    if len(lost) == len(task.source):
        raise ValueError(f"data {config.data}: no image can be read")
    record = figures_of(answers, task)
    record["corruptions"] = robustness_of(answers, config, reference)
    record["figures"] |= {
        name: value for name, value in record["corruptions"].items() if name in NAMES
    }
    record |= {
        "images": {"evaluated": len(task.source) - len(lost), "unreadable": lost},
        "compared_logits": len(task.columns),
        "num_classes": classifier.config.num_classes,
        "image_size": classifier.backbone.config.image_size,
        "dataset": config.dataset,
        "fingerprint": fingerprint,
        "notes": task.notes,
        "config": asdict(config),
        "environment": environment("evaluate"),
    }
    result = Result(record, format_table(record))
    if fabric.is_global_zero:
        print(result.table)
        if output is not None:
            write(output, config, result, answers, task)
    return result


# ── classifying ─────────────────────────────────────────────────────────────────────────────────


@torch.no_grad()
def classify(fabric: "Fabric", classifier: ImageClassifier, task: Task, config: Config) -> Tensor:
    """Classify this process's share of the images, as they are and corrupted.

    Returns: (n, 6 + corruptions) float32 on the CPU, a row an image, with columns SEEN and so on;
    zeros for unreadable images and those of other processes.
    """
    first, world_size = fabric.is_global_zero, fabric.world_size
    view = CropViews(
        classifier.backbone.config.image_size, config.crop_ratio, config.crops, task.border
    )
    batches = EvalBatches(
        task.source,
        view,
        config.batch_size,
        rank=fabric.global_rank,
        world_size=world_size,
        num_workers=config.num_workers,
    )
    unreadable = Unreadable(len(task.source), config.max_unreadable)
    model = prepared(classifier.to(fabric.device).eval(), config.device)
    columns = task.columns.to(fabric.device)
    answers = torch.zeros(len(task.source), CORRUPTED + len(config.pairs))
    loader = prefetch(batches, fabric.device)
    shown = Progress(len(batches), enabled=first)
    with shown as progress, ThreadPoolExecutor(max(1, config.num_workers)) as pool:
        for note in task.notes:
            progress.message(note)
        for step, batch in enumerate(readable(loader, unreadable, progress.warn), start=1):
            indices, images = batch.indices.cpu(), batch.images
            right = task.right[indices]
            logs = log_probabilities(fabric, model, images, columns, config.flip)
            answers[indices, :CORRUPTED] = judged(logs.cpu(), right)
            corrupted = corrupted_batches(images.cpu(), indices, config, pool)
            for column, views in enumerate(corrupted, start=CORRUPTED):
                views = views.to(fabric.device)
                logs = log_probabilities(fabric, model, views, columns, config.flip)
                answers[indices, column] = judged(logs.cpu(), right)[:, TOP1]
            progress.update(step, {}, len(indices) * world_size, loader.wait_seconds)
    return answers


def log_probabilities(
    fabric: "Fabric", model: nn.Module, images: Tensor, columns: Tensor, flip: bool
) -> Tensor:
    """Classify images (B, V, 3, H, W) by the compared logits, numbers columns (C,).

    Returns: (B, C), the log of the mean over an image's V views, and their mirror images with flip,
    of the softmax over the compared logits.
    """
    views = []
    for view in images.unbind(1):  # (B, 3, H, W)
        for seen in (view, view.flip(-1)) if flip else (view,):
            with fabric.autocast():
                logits = model(seen)  # (B, Y)
            views.append(logits.float()[:, columns].log_softmax(dim=1))  # (B, C)
    return torch.stack(views).logsumexp(dim=0) - math.log(len(views))


def judged(logs: Tensor, right: Tensor) -> Tensor:
    """Compare log-probabilities (B, C) with the classes that are right, (B, T) int64, padded by -1.

    Returns: (B, 6) float32, columns SEEN to GUESS.
    """
    B, C = logs.shape
    if not bool(logs.isfinite().all()):
        raise ValueError(
            "the classifier's logits are not finite; its weights may be broken, or the precision "
            "too low: try --device.precision 32-true"
        )
    truth = torch.zeros(B, C + 1, dtype=torch.bool)
    truth = truth.scatter(1, right.where(right >= 0, C), True)[:, :C]  # (B, C)
    best = logs.topk(min(5, C), dim=1)
    hits = truth.gather(1, best.indices)  # (B, 5)
    nll = -logs.masked_fill(~truth, -torch.inf).logsumexp(dim=1)
    columns = [torch.ones(B), hits[:, 0], hits.any(dim=1), nll, best.values[:, 0].exp()]
    return torch.stack([column.float() for column in [*columns, best.indices[:, 0]]], dim=1)


def corrupted_batches(
    images: Tensor, indices: Tensor, config: Config, pool: ThreadPoolExecutor
) -> Iterator[Tensor]:
    """Give images (B, V, 3, H, W) uint8 in each corruption asked for, a few of them made ahead."""
    B, V = images.shape[:2]
    flat, numbers = images.flatten(0, 1), indices.repeat_interleave(V)
    waiting: deque[Future[Tensor]] = deque()
    for kind, severity in config.pairs:
        waiting.append(
            pool.submit(corrupt, flat, kind, severity, seed=config.seed, indices=numbers)
        )
        if len(waiting) > config.num_workers:
            yield waiting.popleft().result().unflatten(0, (B, V))
    while waiting:
        yield waiting.popleft().result().unflatten(0, (B, V))


def summed_answers(fabric: "Fabric", answers: Tensor) -> Tensor:
    """Put the answers of all processes together: a row is zero in all but one of them."""
    if fabric.world_size == 1:
        return answers
    return summed(fabric, answers.to(fabric.device)).cpu()


# ── figures ─────────────────────────────────────────────────────────────────────────────────────


def figures_of(answers: Tensor, task: Task) -> dict[str, Any]:
    """Turn answers (n, 6 or more) into figures, of all images and by class, and the calibration."""
    seen = answers[:, SEEN] > 0
    rows = answers[seen].double()
    bins = reliability(rows[:, CONFIDENCE], rows[:, TOP1] > 0)
    figures = {"top1": float(rows[:, TOP1].mean())}
    if len(task.columns) > 5:
        figures["top5"] = float(rows[:, TOP5].mean())
    classes = []
    if task.groups is not None:
        right, total = by_class(answers, task)
        there = total > 0
        figures["mean_per_class"] = float((right[there].double() / total[there]).mean())
        classes = [
            {"name": name, "images": count, "top1": hits / count}
            for name, hits, count in zip(task.names, right.tolist(), total.tolist(), strict=True)
            if count
        ]
    figures["nll"] = float(rows[:, NLL].mean())
    figures["ece"] = expected_calibration_error(bins)
    return {
        "figures": figures,
        "classes": classes,
        "reliability": {name: values.tolist() for name, values in bins._asdict().items()},
    }


def by_class(answers: Tensor, task: Task) -> tuple[Tensor, Tensor]:
    """Count the images of each class that are right, and all that were seen: (G,) int64 each."""
    assert task.groups is not None
    G = len(task.names)
    right = torch.bincount(task.groups[answers[:, TOP1] > 0], minlength=G)
    return right, torch.bincount(task.groups[answers[:, SEEN] > 0], minlength=G)


def robustness_of(
    answers: Tensor, config: Config, reference: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Turn the corruptions' columns of answers into accuracies and errors; {} without any."""
    if not config.pairs:
        return {}
    right = answers[answers[:, SEEN] > 0, CORRUPTED:].double().mean(dim=0).tolist()
    shares = dict(zip(config.pairs, right, strict=True))
    errors = {pair: 1 - share for pair, share in shares.items()}
    accuracy: dict[str, dict[str, float]] = {}
    for (kind, severity), share in shares.items():
        accuracy.setdefault(kind, {})[str(severity)] = share
    found: dict[str, Any] = {"accuracy": accuracy, "kind_errors": kind_errors(errors)}
    found["mean_corruption_error"] = mean_corruption_error(errors)
    if reference is not None:
        baseline = baseline_of(reference, config)
        found |= {"mce": mean_corruption_error(errors, baseline), "reference": config.reference}
    elif config.dataset == "imagenet" and len(config.pairs) == len(KINDS) * len(SEVERITIES):
        found |= {"mce": mean_corruption_error(errors, ALEXNET_ERRORS), "reference": "AlexNet"}
    return found


def baseline_of(reference: Mapping[str, Any], config: Config) -> dict[str, float]:
    """Take a reference's mean errors by kind; refuse one that lacks what is measured."""
    corruptions = reference["corruptions"]
    have: Mapping[str, Mapping[str, float]] = corruptions.get("accuracy", {})
    for kind, severity in config.pairs:
        if str(severity) not in have.get(kind, {}):
            raise ValueError(
                f"reference {config.reference} has no error for {kind} at severity {severity}; "
                "evaluate it with the same corruptions, or give no reference"
            )
    if sorted(set(config.severities)) != list(SEVERITIES):
        raise ValueError(
            f"a reference is taken over severities 1 to 5, got {list(config.severities)}; "
            "leave out --reference, or --severities"
        )
    return dict(corruptions["kind_errors"])


def format_table(record: Mapping[str, Any]) -> str:
    """Lay the figures out for a terminal; shares in percent."""
    images = record["images"]
    lines = [f"{'Images':<34}{images['evaluated']:>9}"]
    if images["unreadable"]:
        lines.append(f"{'Unreadable, left out':<34}{len(images['unreadable']):>9}")
    for name, value in record["figures"].items():
        lines.append(f"{NAMES[name]:<34}{written(name, value):>9}")
    corruptions = record["corruptions"]
    if corruptions:
        severities = list(next(iter(corruptions["accuracy"].values())))
        heads = "".join(f"{f'sev. {severity}':>9}" for severity in severities)
        lines += ["", f"{'Top-1 on corrupted images, %':<34}{heads}{'error':>9}"]
        for kind, shares in corruptions["accuracy"].items():
            cells = "".join(f"{100 * share:>9.2f}" for share in shares.values())
            error = 100 * corruptions["kind_errors"][kind]
            lines.append(f"{kind:<34}{cells}{error:>9.2f}")
        if "reference" in corruptions:
            lines.append(f"The reference of mCE is {corruptions['reference']}.")
    return "\n".join([*lines, *record["notes"]])


# ── what is kept ────────────────────────────────────────────────────────────────────────────────


def write(output: Path, config: Config, result: Result, answers: Tensor, task: Task) -> None:
    """Write evaluate.json, images.npz and report.html into the new directory `output`."""
    output.mkdir(parents=True)
    seen = (answers[:, SEEN] > 0).numpy()
    with replacing(output / IMAGES_FILE) as path, path.open("wb") as file:
        np.savez_compressed(file, seen=seen, right=(answers[:, TOP1] > 0).numpy())
    text = json.dumps(result.record, indent=2, ensure_ascii=False)
    write_text(output / FILE, text + "\n")
    record = result.record
    facts = {
        "Model": config.model,
        "Images": f"{config.data} ({record['images']['evaluated']})",
        "Set": config.dataset,
        "Logits compared": f"{record['compared_logits']} of {record['num_classes']}",
        "Image size": " x ".join(map(str, record["image_size"])),
        "Views": f"{config.crops}{', and mirrored' if config.flip else ''}; "
        f"crop ratio {config.crop_ratio:g}",
    }
    figures = {NAMES[name]: written(name, value) for name, value in record["figures"].items()}
    write_report(
        output / "report.html",
        f"Evaluation of {config.model}",
        sections(record, answers, task),
        facts,
        figures=figures,
        summary="\n\n".join(record["notes"]),
    )


def sections(record: Mapping[str, Any], answers: Tensor, task: Task) -> list[Section]:
    """Draw calibration, classes and corruptions."""
    bins = record["reliability"]
    points = [
        {"confidence": confidence, "accuracy": accuracy, "perfectly calibrated": confidence}
        for confidence, accuracy, number in zip(
            bins["confidence"], bins["accuracy"], bins["number"], strict=True
        )
        if number
    ]
    panel = {"Share of images that are right": ["accuracy", "perfectly calibrated"]}
    drawn = curves(points, panel, "15 bins of the likeliest class's probability.", x="confidence")
    found = [Section("Calibration", items=[drawn])]
    if task.groups is not None:
        right, total = by_class(answers, task)
        items: list[Item] = [class_table(right, total, task.names)]
        Y = len(task.columns)
        if Y == len(task.names) <= MATRIX:  # classes are columns
            seen = answers[:, SEEN] > 0
            pairs = confusion_matrix(task.right[seen, 0], answers[seen, GUESS].long(), Y)
            items.append(confusion_table(pairs, task.names))
            picture = confusion_picture(pairs, task.names)
            items += [] if picture is None else [picture]
        found.append(Section("Class by class", items=items))
    if record["corruptions"]:
        found.append(_robustness({"this classifier": record}))
    return found


def _robustness(records: Mapping[str, Mapping[str, Any]]) -> Section:
    accuracy = {
        name: {
            kind: {int(severity): share for severity, share in shares.items()}
            for kind, shares in record["corruptions"]["accuracy"].items()
        }
        for name, record in records.items()
    }
    clean = {name: record["figures"]["top1"] for name, record in records.items()}
    tables = [robustness_table(by_kind) for by_kind in accuracy.values()]
    items: list[Item] = [robustness_plots(accuracy, clean)]
    return Section("Corrupted images", items=[*items, *(tables if len(tables) == 1 else [])])


# ── comparison ──────────────────────────────────────────────────────────────────────────────────


def compare(sources: Sequence[str], output: Path | None) -> Result:
    """Set results on the same images side by side, with differences from the first."""
    records = {source: read_evaluation(source) for source in sources}
    told = compared(records)
    lines = [f"{letter}: {source}" for letter, source in told.letters.items()]
    rows: list[list[str | None]] = [[*told.columns], *told.rows]
    lines += [f"{row[0]:<38}" + "".join(f"{cell or '–':>10}" for cell in row[1:]) for row in rows]
    figures = {source: record["figures"] for source, record in records.items()}
    result = Result(figures, "\n".join([*lines, *told.notes]))
    print(result.table)
    if output is not None:
        output.mkdir(parents=True)
        kept = {"figures": figures, "notes": told.notes, "environment": environment("evaluate")}
        write_text(output / "compare.json", json.dumps(kept, indent=2, ensure_ascii=False) + "\n")
        table = Table("Shares in percent", told.columns, told.rows)
        found = [Section("Figures", "\n\n".join(told.notes), [table])]
        if told.kinds:
            found.append(_robustness(records))
        write_report(output / "report.html", "Evaluations side by side", found, told.letters)
    return result
