"""Evaluation of a segmenter: how much of every class it finds, over a whole data set.

One confusion matrix is counted over all pixels that have a class, at the images' own size, and all
figures come out of it, as published: mIoU, the mean over classes of intersection over union; the
mean of the classes' accuracies; the share of all pixels that are right. Pixels labelled 255 count
for nothing, classes that are nowhere are left out of the means.

Under torchrun each process takes every n-th image and the first one writes.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from beit.data.batches import EvalBatches
from beit.data.prefetch import prefetch
from beit.data.unreadable import Unreadable, readable
from beit.draw.report import Section, write_report
from beit.files import replacing, write_text
from beit.nn.confusion import map_figures, pixel_confusion
from beit.nn.segmenter import SemanticSegmenter
from beit.nn.sliding import MapPredictor, MapViewConfig
from beit.run.device import DeviceConfig, launch, prepared, summed
from beit.run.directory import environment
from beit.run.evaluations import FILE
from beit.run.progress import Progress
from beit.segmentation.batches import FIELDS, stacked, whole
from beit.segmentation.label_classes import default_palette
from beit.segmentation.label_maps import LabelMaps, open_label_maps
from beit.segmentation.pictures import example_picture, iou_table
from beit.segmentation.validation import Example
from beit.weights.open import load_segmenter

if TYPE_CHECKING:
    from lightning_fabric import Fabric

CONFUSION_FILE = "confusion.npz"
SHOWN = 20  # classes of the table that is printed
NAMES = {
    "miou": "mIoU, %",
    "mean_accuracy": "Mean accuracy of the classes, %",
    "pixel_accuracy": "Pixel accuracy, %",
}


@dataclass(frozen=True)
class Config:
    """What is judged, on which images, and how they are seen.

    Attributes:
        model: a segmenter: a run directory, a weights file, published:NAME or hf://OWNER/NAME
        data: images with label maps: ADE20K, a Pascal VOC folder, a folder of images and masks,
            or shapes://COUNT; the validation split of a set that has several (docs/segmentation.md)
        maps: the folder of the label maps, where `data` does not lead to it
        classes: the list of classes, where neither `data` nor the model says them
        reduce_zero_label: in the maps 0 does not count and 1, 2, ... are the classes
        output: new directory for evaluate.json, report.html and confusion.npz; null for none
        limit: use so many images, a fixed random subset; null for all
        image_size: side of the window that the model is to see, or [height, width]; null for the
            model's own
        num_heads: attention heads, where neither the file nor the usual 64 channels a head say it
        views: how each image is seen
        pictures: of the report: so many images with truth and prediction
        num_workers: processes that decode images, for each process
        max_unreadable: largest share of unreadable images that does not stop the work
        device: where and in which precision the segmenter runs
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
        if self.num_workers < 0:
            raise ValueError(f"num_workers is {self.num_workers}; expected 0 or more")
        if self.pictures < 0:
            raise ValueError(f"pictures is {self.pictures}; expected 0 (none) or more")


class Result(NamedTuple):
    """What was measured, as in evaluate.json, and the table that a person reads.

    Both are the same in all processes.
    """

    record: dict[str, Any]
    table: str


class Judged(NamedTuple):
    """What one process, or all together, found.

    Attributes:
        confusion: (Y, Y) int64, truth by row
        seen: (n,) int64, 1 where an image was read and judged
        examples: of the report
    """

    confusion: Tensor
    seen: Tensor
    examples: list[Example]


def run(config: Config) -> Result:
    """Evaluate a segmenter."""
    output = None if config.output is None else Path(config.output)
    if output is not None and output.exists():
        raise FileExistsError(f"{output} exists and is not overwritten; name another directory")
    if not config.model or not config.data:
        raise ValueError("say what to evaluate on what (--model, --data)")
    segmenter = load_segmenter(config.model, config.image_size, num_heads=config.num_heads)
    source = open_maps(config, segmenter)
    fabric = launch(config.device)
    judged = judge(fabric, segmenter, source, config)
    confusion = summed(fabric, judged.confusion).cpu()
    seen = summed(fabric, judged.seen.to(fabric.device)).cpu()
    lost = [source.name(int(index)) for index in (seen == 0).nonzero()]
    Unreadable(len(source), config.max_unreadable).note(lost)  # those of all processes
    if len(lost) == len(source):
        raise ValueError(f"data {config.data}: no image can be read")
    names = segmenter.config.class_names or source.class_names
    record = record_of(confusion, names) | {
        "images": {"evaluated": len(source) - len(lost), "unreadable": lost},
        "num_classes": segmenter.config.num_classes,
        "window": segmenter.backbone.config.image_size,
        "config": asdict(config),
        "environment": environment("evaluate"),
    }
    result = Result(record, format_table(record))
    if fabric.is_global_zero:
        print(result.table)
        if output is not None:
            palette = segmenter.config.palette or source.palette
            write(output, config, result, confusion, judged.examples, names, palette)
    return result


def open_maps(config: Config, segmenter: SemanticSegmenter) -> LabelMaps:
    """Open the images and their maps, in the numbers that the segmenter gives its classes."""
    source = open_label_maps(
        config.data,
        role="validation",
        maps=config.maps,
        classes=config.classes,
        reduce_zero_label=config.reduce_zero_label,
        limit=config.limit,
        names=segmenter.config.class_names,
    )
    found, wanted = len(source.class_names), segmenter.config.num_classes
    if found != wanted:
        raise ValueError(
            f"data {config.data} has {found} classes, and {config.model} tells {wanted} apart; "
            "give the class list that belongs to the model (--classes)"
        )
    return source


# ── looking at the images ───────────────────────────────────────────────────────────────────────


@torch.no_grad()
def judge(
    fabric: "Fabric", segmenter: SemanticSegmenter, source: LabelMaps, config: Config
) -> Judged:
    """Label this process's share of the images and count what is taken for what."""
    Y, rank, world_size = segmenter.config.num_classes, fabric.global_rank, fabric.world_size
    segmenter.to(fabric.device).eval()
    model = prepared(segmenter, config.device)
    vit = segmenter.backbone
    predictor = MapPredictor(vit.config.image_size, config.views, vit.mean)
    confusion = torch.zeros(Y, Y, dtype=torch.int64, device=fabric.device)
    seen = torch.zeros(len(source), dtype=torch.int64)
    unreadable, examples = Unreadable(len(source), config.max_unreadable), list[Example]()
    images, workers = stacked(source), config.num_workers
    batches = EvalBatches(
        images, whole, 1, rank=rank, world_size=world_size, num_workers=workers, fields=FIELDS
    )

    def classify(windows: Tensor) -> Tensor:
        with fabric.autocast():
            logits: Tensor = model(windows).logits  # (n, Y, h', w')
        return logits

    loader = prefetch(batches, fabric.device)
    with Progress(len(batches), enabled=fabric.is_global_zero) as progress:
        for step, batch in enumerate(readable(loader, unreadable, progress.warn), start=1):
            guess = predictor(classify, batch.images)  # (1, H, W)
            confusion += pixel_confusion(batch.label_maps, guess, Y)
            seen[batch.indices.cpu()] = 1
            if len(examples) < config.pictures:
                maps = (batch.label_maps[0].cpu(), guess[0].to("cpu", torch.uint8))
                examples.append(Example(batch.images[0].cpu(), *maps))
            progress.update(step, {}, world_size, loader.wait_seconds)
    return Judged(confusion, seen, examples)


# ── what is told and kept ───────────────────────────────────────────────────────────────────────


def record_of(confusion: Tensor, names: Sequence[str]) -> dict[str, Any]:
    """Turn a confusion matrix (Y, Y) into figures of all pixels and of each class, nan as None."""
    found, pixels = map_figures(confusion), confusion.sum(dim=1).tolist()
    classes = [
        {"name": name, "iou": _known(iou), "accuracy": _known(accuracy), "pixels": count}
        for name, iou, accuracy, count in zip(
            names, found.iou.tolist(), found.accuracy.tolist(), pixels, strict=True
        )
    ]
    return {"figures": {name: _known(getattr(found, name)) for name in NAMES}, "classes": classes}


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def format_table(record: dict[str, Any]) -> str:
    """Lay the figures out for a terminal, in percent; of many classes the worst ones."""
    images = record["images"]
    lines = [f"{'Images':<40}{images['evaluated']:>9}"]
    if images["unreadable"]:
        lines.append(f"{'Unreadable, left out':<40}{len(images['unreadable']):>9}")
    for name, value in record["figures"].items():
        lines.append(f"{NAMES[name]:<40}{_percent(value):>9}")
    there = [row for row in record["classes"] if row["iou"] is not None]
    there.sort(key=lambda row: row["iou"])
    which = f"Class, the {SHOWN} worst of {len(there)}" if len(there) > SHOWN else "Class"
    lines += ["", f"{which:<40}{'IoU, %':>9}{'acc., %':>9}{'pixels':>12}"]
    for row in there[:SHOWN]:
        figures = f"{_percent(row['iou']):>9}{_percent(row['accuracy']):>9}{row['pixels']:>12}"
        lines.append(f"{row['name'][:39]:<40}{figures}")
    return "\n".join(lines)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2f}"


def write(
    output: Path,
    config: Config,
    result: Result,
    confusion: Tensor,
    examples: Sequence[Example],
    names: Sequence[str],
    palette: Sequence[tuple[int, int, int]] | None,
) -> None:
    """Write evaluate.json, confusion.npz and report.html into the new directory `output`."""
    output.mkdir(parents=True)
    with replacing(output / CONFUSION_FILE) as path, path.open("wb") as file:
        np.savez_compressed(file, confusion=confusion.numpy())
    record, views = result.record, config.views
    write_text(output / FILE, json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    seen = "the whole image squeezed into one window"
    if views.mode == "slide":
        seen = "windows, scales " + ", ".join(f"{scale:g}" for scale in views.scales)
    facts = {
        "Model": config.model,
        "Images": f"{config.data} ({record['images']['evaluated']})",
        "Window": " x ".join(map(str, record["window"])),
        "Seen as": seen + (", and mirrored" if views.flip else ""),
    }
    figures = {NAMES[name]: _percent(value) for name, value in record["figures"].items()}
    table = iou_table(map_figures(confusion), confusion.sum(dim=1), names)
    sections = [Section("Class by class", items=[table])]
    if examples:
        palette = palette or default_palette(len(names))
        sections.append(Section("Examples", items=[example_picture(examples, names, palette)]))
    title = f"Evaluation of {config.model}"
    write_report(output / "report.html", title, sections, facts, figures=figures)
