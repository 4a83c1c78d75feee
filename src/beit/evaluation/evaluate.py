"""Evaluation of an image classifier: accuracy, calibration and robustness.

Every readable image is classified once, by the logits that its set compares: all of them, or the
set's own 200 for ImageNet-A and -R. Metrics are shares in [0, 1], except NLL:

- top1, top5 (of six logits or more): the target has the largest, one of the five largest logits;
- mean_per_class: top-1 of each class, averaged over the classes that have images;
- nll: mean of -log of the target's probability (summed over the targets, if there are several);
- ece: expected calibration error, 15 equal bins of the largest probability (Guo et al. 2017).

With crops or flips, an image's probabilities are the mean of the softmax over its views.
Corruptions are applied after the crop, because ImageNet-C's files are crops. They depend on (seed,
index, kind, severity) only. Each image is decoded once. `mean_corruption_error` averages top-1
errors over severities, then kinds. `mce` first divides each kind's error by that of a reference:
AlexNet on ImageNet, or another evaluation. Under torchrun each process takes every n-th batch, and
the first process writes.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch import Tensor

from beit.command.ending import Ending, beside, opened, words
from beit.data.source import Source, limited
from beit.data.sources import open_source
from beit.data.unreadable import Unreadable
from beit.draw.names import percent
from beit.evaluation.classify import EVALUATED, classify
from beit.evaluation.compare import (
    compare,
    data_of,
    note_of_data,
    read_evaluation,
    refuse_other_images,
)
from beit.evaluation.corruptions.corrupt import KINDS, SEVERITIES, check_kind
from beit.evaluation.imagenet import Dataset, open_task
from beit.evaluation.metrics import (
    classification_metrics,
    missed_classes,
    reference_errors,
    robustness_metrics,
)
from beit.evaluation.output import METRICS, format_table, write
from beit.evaluation.target_columns import Task
from beit.files import refuse_existing
from beit.run.device import DeviceConfig, precision_of, summed
from beit.run.environment import environment
from beit.run.familiar import note_of_trained
from beit.run.launch import launch
from beit.weights.bands import check_bands
from beit.weights.crop import crop_ratio
from beit.weights.open import load_classifier


@dataclass(frozen=True)
class Config:
    """The model, the images and the metrics.

    Attributes:
        model: an image classifier: a run directory, a weights file, published:NAME or
            hf://OWNER/NAME
        data: labelled images: a folder, a table or another source (docs/data.md), or a part:
            folder[:90%]
        dataset: plain for any labelled images, matched with the classifier by class names if both
            have them; or one of ImageNet's sets, laid out as published (docs/evaluation.md)
        output: new directory for evaluate.json, report.html and images.npz; null for none
        compare: evaluate.json files, or directories with one, to compare side by side; nothing is
            evaluated, and model and data are not needed
        limit: use this many images, a fixed random subset; null for all
        image_size: input side, or [height, width]; null for the model's own
        num_heads: attention heads, if the file does not contain them and a head is not 64 wide
        crop_ratio: side of the centre crop over the shorter side; null for that of the model's
            training, else 0.875
        crops: 1 for the centre, 5 for the centre and the corners
        flip: also average over mirror images
        present_only: for plain data, compare only the logits of classes that have images
        real_labels: ReaL's JSON file, in place of timm's copy
        corruptions: none, all, or a list of kinds
        severities: of the corruptions, from 1 to 5
        reference: evaluate.json, or the directory with it, whose errors are 100% in mce
        seed: of the corruptions
        batch_size: images per batch in each process
        num_workers: processes that decode images, and threads that corrupt them, per process
        max_unreadable: largest share of unreadable images that does not stop the evaluation
        device: device and precision of the classifier
    """

    model: str = ""
    data: str = ""
    dataset: Dataset = "plain"
    output: str | None = None
    compare: tuple[str, ...] = ()
    limit: int | None = None
    image_size: int | tuple[int, int] | None = None
    num_heads: int | None = None
    crop_ratio: float | None = None
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
            check_kind(kind)
        if not self.severities or not set(self.severities) <= set(SEVERITIES):
            raise ValueError(f"severities must be one or more of 1 to 5, got {[*self.severities]}")
        if len(self.compare) == 1:
            raise ValueError("compare takes two results or more, got one")
        if self.present_only and self.dataset != "plain":
            raise ValueError(
                f"present_only is for plain data; {self.dataset} defines which logits it compares"
            )
        if self.real_labels is not None and self.dataset != "imagenet-real":
            raise ValueError("real_labels is for --dataset imagenet-real")
        if self.reference is not None and not self.kinds:
            raise ValueError("reference is for corruptions; choose some, as in --corruptions all")

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of corruption to measure."""
        if isinstance(self.corruptions, str):
            return KINDS if self.corruptions == "all" else ()
        return tuple(self.corruptions)

    @property
    def pairs(self) -> list[tuple[str, int]]:
        """The corruptions to measure: kind and severity."""
        return list(product(dict.fromkeys(self.kinds), sorted(set(self.severities))))


class Result(NamedTuple):
    """The contents of evaluate.json (of a comparison: each result's metrics), and a table of them.

    Both are the same in all processes.
    """

    record: dict[str, Any]
    table: str

    @property
    def figures(self) -> dict[str, float]:
        """Metrics of the whole set, as shares; of a comparison `metric of SOURCE`."""
        if "fingerprint" in self.record:
            return dict(self.record["figures"])
        return {f"{m} of {s}": v for s, of in self.record.items() for m, v in of.items()}


def run(config: Config) -> Result:
    """Evaluate a classifier, or compare results."""
    output = None if config.output is None else Path(config.output)
    refuse_existing(output)
    if config.compare:
        return Result(*compare(config.compare, output))
    if not config.model or not config.data:
        raise ValueError("give --model and --data to evaluate, or --compare to compare results")
    path = config.reference
    reference = None if path is None else read_evaluation(path)
    classifier = load_classifier(config.model, config.image_size, num_heads=config.num_heads)
    config = replace(config, crop_ratio=crop_ratio(config.model, config.crop_ratio))
    check_bands(config.model, config.data)
    task = open_task(
        config.data,
        config.dataset,
        classifier.config.num_classes,
        classifier.config.class_names,
        limit=config.limit,
        present_only=config.present_only,
        real_labels=config.real_labels,
    )
    task.notes.extend(note_of_trained(config.model, config.data, task.source, training_images))
    fingerprint, baseline = task.fingerprint(), None
    if path is not None and reference is not None:
        refuse_other_images({path: reference["fingerprint"], "this evaluation": fingerprint})
        baseline = reference_errors(reference, path, config.pairs)
        both = {"the reference": data_of(reference), "this evaluation": config.data}
        task.notes.extend(note_of_data(both))
    fabric = launch(config.device)
    outcomes = classify(fabric, classifier, task, config).to(fabric.device)
    outcomes = summed(fabric, outcomes).cpu()  # a row is zero in all processes but one
    unreadable = unreadable_names(outcomes, task, config)
    record = classification_metrics(outcomes, task)
    record["corruptions"] = robustness = robustness_metrics(outcomes, config, baseline)
    record["figures"] |= {name: value for name, value in robustness.items() if name in METRICS}
    record |= {
        "images": {"evaluated": len(task.source) - len(unreadable), "unreadable": unreadable},
        "compared_logits": len(task.columns),
        "num_classes": classifier.config.num_classes,
        "image_size": classifier.backbone.config.image_size,
        "dataset": config.dataset,
        "fingerprint": fingerprint,
        "notes": [*task.notes, *missed_classes(outcomes, task)],
        "config": asdict(config),
        "environment": environment("evaluate") | precision_of(fabric),
    }
    result = Result(record, format_table(record))
    if fabric.is_global_zero:
        print(result.table)
        if output is not None:
            write(output, config, record, outcomes, task)
    return result


def training_images(of_run: Mapping[str, Any]) -> Source:
    """Open the training images of a run by its options `data`."""
    return limited(open_source(of_run["train"], split="train"), of_run.get("limit"))


def ending(config: Config, result: Result) -> Ending:
    """Say the accuracy; predictions are next, or the page of a comparison."""
    made = "no files; --output DIR keeps the table with a report"
    if config.output is not None:
        made = f"the evaluation in {config.output}; report {config.output}/report.html"
    if config.compare:
        best = max(result.record, key=lambda name: result.record[name]["top1"])
        figure = f"top-1 accuracy {percent(result.record[best]['top1'])}, the best, of {best}"
        again = words("evaluate", "--compare", json.dumps(config.compare), output="comparison")
        page = None if config.output is None else opened(Path(config.output) / "report.html")
        return Ending(made, figure, page or again)
    top1, images = result.record["figures"]["top1"], result.record["images"]["evaluated"]
    where = config.output or "predictions"
    files = {"output": beside(where, "classes.parquet"), "picture": beside(where, "classes.png")}
    then = words("predict", config.model, config.data, **files)
    return Ending(made, f"top-1 accuracy {percent(top1)} on {images:,} images", then)


def unreadable_names(outcomes: Tensor, task: Task, config: Config) -> list[str]:
    """Name the images that no process could read; ValueError if they are too many."""
    names = [task.source.name(int(index)) for index in (outcomes[:, EVALUATED] == 0).nonzero()]
    Unreadable(len(task.source), config.max_unreadable).note(names)
    if len(names) == len(task.source):
        raise ValueError(f"data {config.data}: no image can be read")
    return names
