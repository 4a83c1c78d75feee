"""Evaluation of a segmenter over a whole data set: mIoU and accuracies.

All metrics come from one confusion matrix over all labelled pixels, at the images' own size, as
published: mIoU, the mean over classes of intersection over union; the mean accuracy of the classes;
the accuracy over all pixels. Pixels labelled 255 are ignored. Means leave out classes that occur
neither in the labels nor in the predictions.

Under torchrun each process takes every n-th image and the first one writes.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from beit.command.ending import Ending, beside, words
from beit.data.batches import EvalBatches
from beit.data.unreadable import Unreadable
from beit.draw.classes import note_of_missed
from beit.draw.report import Section, link_to, write_report
from beit.files import refuse_existing, replacing, write_text
from beit.nn.confusion import map_figures, pixel_confusion
from beit.nn.segmenter import SemanticSegmenter
from beit.nn.sliding import MapViewConfig
from beit.run.device import DeviceConfig, precision_of, summed
from beit.run.environment import environment
from beit.run.familiar import note_of_trained
from beit.run.launch import launch
from beit.run.one_pass import one_pass
from beit.run.progress import Progress
from beit.segmentation.batches import FIELDS, stacked, whole
from beit.segmentation.label_maps import LabelMaps, image_spec, open_label_maps
from beit.segmentation.pictures import Palette, example_picture, iou_table
from beit.segmentation.validation import Example, map_predictor
from beit.weights.bands import check_bands
from beit.weights.open import load_segmenter

if TYPE_CHECKING:
    from lightning_fabric import Fabric

FILE, CONFUSION_FILE = "evaluate.json", "confusion.npz"
MAX_ROWS = 20  # classes in the table for the terminal
ADVICE = (
    "check the label maps, and whether --model and --data number the classes alike; else train on"
)
METRICS = {
    "miou": "mIoU, %",
    "mean_accuracy": "Mean accuracy of the classes, %",
    "pixel_accuracy": "Pixel accuracy, %",
}


@dataclass(frozen=True)
class Config:
    """The model, the images and how the model reads them.

    Attributes:
        model: a segmenter: a run directory, a weights file, published:NAME or hf://OWNER/NAME
        data: images with label maps: ADE20K, a Pascal VOC folder, a folder of images and masks,
            or shapes://COUNT; the validation split of a set that has several (docs/segmentation.md)
        maps: folder of the label maps, if it cannot be found from `data`
        classes: list of classes, if neither `data` nor the model has one
        reduce_zero_label: in the maps 0 is ignored and 1, 2, ... are the classes
        output: new directory for evaluate.json, report.html and confusion.npz; null for none
        limit: use this many images, a fixed random subset; null for all
        image_size: side of the model's input window, or [height, width]; null for the model's own
        num_heads: attention heads, if the file does not contain them and a head is not 64 wide
        views: how the model reads each image
        pictures: number of images in the report, with labels and prediction
        num_workers: processes that decode images, per process
        max_unreadable: largest share of unreadable images that does not stop the evaluation
        device: device and precision of the segmenter
    """

    model: str = ""
    data: str = ""
    maps: str = ""
    classes: str = ""
    reduce_zero_label: bool = False
    output: str | None = None
    limit: int | None = None
    image_size: int | tuple[int, int] | None = None
    num_heads: int | None = None
    views: MapViewConfig = MapViewConfig()
    pictures: int = 8
    num_workers: int = 2
    max_unreadable: float = 0.01
    device: DeviceConfig = field(default_factory=DeviceConfig)

    def __post_init__(self) -> None:
        for name, value in (("num_workers", self.num_workers), ("pictures", self.pictures)):
            if value < 0:
                raise ValueError(f"{name} is {value}; expected 0 (none) or more")


class Result(NamedTuple):
    """The contents of evaluate.json, and a table for the terminal; the same in all processes."""

    record: dict[str, Any]
    table: str

    @property
    def figures(self) -> dict[str, float]:
        """Scores of the whole set, as shares."""
        return dict(self.record["figures"])


class Counts(NamedTuple):
    """Counts of one process, and examples for the report."""

    confusion: Tensor  # (Y, Y) int64, labels by row, predictions by column
    evaluated: Tensor  # (n,) int64, 1 for each image that was evaluated
    examples: list[Example]


def run(config: Config) -> Result:
    """Evaluate a segmenter."""
    output = None if config.output is None else Path(config.output)
    refuse_existing(output)
    if not config.model or not config.data:
        raise ValueError("give a segmenter and its images: --model and --data")
    segmenter = load_segmenter(config.model, config.image_size, num_heads=config.num_heads)
    source = open_maps(config, segmenter)
    check_bands(config.model, image_spec(config.data, source))
    fabric = launch(config.device)
    counts = count_pixels(fabric, segmenter, source, config)
    confusion = summed(fabric, counts.confusion).cpu()
    evaluated = summed(fabric, counts.evaluated.to(fabric.device)).cpu()
    unreadable = [source.name(int(index)) for index in (evaluated == 0).nonzero()]
    Unreadable(len(source), config.max_unreadable).note(unreadable)  # of all processes
    if len(unreadable) == len(source):
        raise ValueError(f"data {config.data}: no image can be read")
    names = segmenter.config.class_names or source.class_names
    missed = note_of_missed(confusion.diagonal(), confusion.sum(dim=1), names, "pixel", ADVICE)
    opened = partial(training_maps, names)
    trained = note_of_trained(config.model, config.data, source, opened)
    record = class_metrics(confusion, names) | {
        "images": {"evaluated": len(source) - len(unreadable), "unreadable": unreadable},
        "num_classes": segmenter.config.num_classes,
        "notes": [*trained, *([missed] if missed else [])],
        "window": segmenter.backbone.config.image_size,
        "config": asdict(config),
        "environment": environment("evaluate") | precision_of(fabric),
    }
    result = Result(record, format_table(record))
    if fabric.is_global_zero:
        print(result.table)
        if output is not None:
            palette = segmenter.config.palette or source.palette
            write(output, config, record, counts._replace(confusion=confusion), palette)
    return result


def ending(config: Config, result: Result) -> Ending:
    """Say the mIoU; label maps of the images are next."""
    made = "no files; --output DIR keeps the table with a report"
    if config.output is not None:
        made = f"the evaluation in {config.output}; report {config.output}/report.html"
    miou, images = result.record["figures"]["miou"], result.record["images"]["evaluated"]
    then = words("predict", config.model, config.data, output=beside(config.output or "x", "maps"))
    return Ending(made, f"mIoU {_percent(miou)}% on {images:,} images", then)


def training_maps(names: Sequence[str], of_run: Mapping[str, Any]) -> LabelMaps:
    """Open the training images of a run by its options `data`; `names` are its classes."""
    options = {name: of_run[name] for name in ("maps", "classes", "reduce_zero_label", "limit")}
    return open_label_maps(of_run["train"], names=names, **options)


def open_maps(config: Config, segmenter: SemanticSegmenter) -> LabelMaps:
    """Open the images and their maps, with the class numbers of the segmenter."""
    source = open_label_maps(
        config.data,
        role="validation",
        maps=config.maps,
        classes=config.classes,
        reduce_zero_label=config.reduce_zero_label,
        limit=config.limit,
        names=segmenter.config.class_names,
    )
    num_classes, expected = len(source.class_names), segmenter.config.num_classes
    if num_classes != expected:
        both = f"data {config.data} has {num_classes} classes, but {config.model} has {expected}"
        raise ValueError(f"{both}; give the class list that belongs to the model (--classes)")
    return source


@torch.no_grad()
def count_pixels(
    fabric: "Fabric", segmenter: SemanticSegmenter, source: LabelMaps, config: Config
) -> Counts:
    """Segment this process's share of the images and count pixels by label and prediction."""
    Y, rank, world_size = segmenter.config.num_classes, fabric.global_rank, fabric.world_size
    predict = map_predictor(fabric, segmenter, config.views, config.device)
    confusion = torch.zeros(Y, Y, dtype=torch.int64, device=fabric.device)
    evaluated = torch.zeros(len(source), dtype=torch.int64)
    images, workers, examples = stacked(source), config.num_workers, list[Example]()
    batches = EvalBatches(
        images, whole, 1, rank=rank, world_size=world_size, num_workers=workers, fields=FIELDS
    )
    with Progress(len(batches), enabled=fabric.is_global_zero) as progress:
        for batch in one_pass(fabric, batches, config.max_unreadable, progress):
            predicted = predict(batch.images)  # (1, H, W)
            confusion += pixel_confusion(batch.label_maps, predicted, Y)
            evaluated[batch.indices.cpu()] = 1
            if len(examples) < config.pictures:
                maps = (batch.label_maps[0].cpu(), predicted[0].to("cpu", torch.uint8))
                examples.append(Example(batch.images[0].cpu(), *maps))
    return Counts(confusion, evaluated, examples)


# ── output ──────────────────────────────────────────────────────────────────────────────────────


def class_metrics(confusion: Tensor, names: Sequence[str]) -> dict[str, Any]:
    """Compute metrics over all pixels and of each class from confusion (Y, Y); nan as None."""
    metrics, pixels = map_figures(confusion), confusion.sum(dim=1).tolist()
    rows = zip(names, metrics.iou.tolist(), metrics.accuracy.tolist(), pixels, strict=True)
    classes = [
        {"name": name, "iou": _or_none(iou), "accuracy": _or_none(accuracy), "pixels": count}
        for name, iou, accuracy, count in rows
    ]
    overall = {name: _or_none(getattr(metrics, name)) for name in METRICS}
    return {"figures": overall, "classes": classes}


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value


def format_table(record: dict[str, Any]) -> str:
    """Lay out the metrics for a terminal, in percent; of many classes only the worst."""
    images = record["images"]
    lines = [f"{'Images':<40}{images['evaluated']:>9}"]
    if images["unreadable"]:
        lines.append(f"{'Unreadable, left out':<40}{len(images['unreadable']):>9}")
    for name, value in record["figures"].items():
        lines.append(f"{METRICS[name]:<40}{_percent(value):>9}")
    present = [row for row in record["classes"] if row["iou"] is not None]
    present.sort(key=lambda row: row["iou"])
    many = len(present) > MAX_ROWS
    which = f"Class, the {MAX_ROWS} worst of {len(present)}" if many else "Class"
    lines += ["", f"{which:<40}{'IoU, %':>9}{'acc., %':>9}{'pixels':>12}"]
    for row in present[:MAX_ROWS]:
        figures = f"{_percent(row['iou']):>9}{_percent(row['accuracy']):>9}{row['pixels']:>12}"
        lines.append(f"{row['name'][:39]:<40}{figures}")
    return "\n".join([*lines, *record["notes"]])


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def write(
    output: Path, config: Config, record: dict[str, Any], counts: Counts, palette: Palette
) -> None:
    """Write evaluate.json, confusion.npz and report.html into the new directory `output`."""
    confusion, names = counts.confusion, [row["name"] for row in record["classes"]]
    output.mkdir(parents=True)
    with replacing(output / CONFUSION_FILE) as path, path.open("wb") as file:
        np.savez_compressed(file, confusion=confusion.numpy())
    write_text(output / FILE, json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    views = config.views
    view = "the whole image resized to one window"
    if views.mode == "slide":
        view = "windows, scales " + ", ".join(f"{scale:g}" for scale in views.scales)
    facts = {
        "Model": link_to(config.model, output / "report.html"),
        "Images": f"{config.data} ({record['images']['evaluated']})",
        "Window": " x ".join(map(str, record["window"])),
        "Views": view + (", and mirrored" if views.flip else ""),
    }
    figures = {METRICS[name]: _percent(value) for name, value in record["figures"].items()}
    table = iou_table(map_figures(confusion), confusion.sum(dim=1), names)
    sections = [Section("Class by class", items=[table])]
    if counts.examples:
        picture = example_picture(counts.examples, names, palette)
        sections.insert(0, Section("Examples", items=[picture]))
    title = f"Evaluation of {config.model}"
    summary = "\n\n".join(record["notes"])
    write_report(output / "report.html", title, sections, facts, figures=figures, summary=summary)
