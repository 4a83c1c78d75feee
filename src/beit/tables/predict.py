"""Predicting: the likeliest classes of every image of a set, as a table, JSON lines, a picture.

A row an image, in the source's order: `index` in the source, `path`, `label` where there are any,
`class_index` (k,), the likeliest classes, best first (the smaller number first among equals);
`class_name` (k,) where the model knows its classes' names; `probability` (k,) float32, by softmax
over all classes. An image that cannot be read has no row: it is named, counted and listed in the
metadata.

As JSON lines, a line an image: `path`, `index`, `label`, and `top`, a list of objects with `class`,
`name` and `probability`; or `error`, why the image cannot be read.

A killed run goes on where it was when its command is repeated; under torchrun each process takes
its share of the parts. Either way the file is the same (see `beit.rows.table`). Lines on
standard output appear as they are computed.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

import beit
from beit.data.batches import EvalBatches
from beit.data.decoding import UnreadableImage
from beit.data.folder import EXTENSIONS
from beit.data.listed import read_list
from beit.data.prefetch import prefetch
from beit.data.sources import Source, limited, open_source
from beit.data.unreadable import Unreadable
from beit.data.views import EvalView
from beit.files import replacing
from beit.rows.files import Column
from beit.rows.lines import Line
from beit.rows.stream import LineStream
from beit.rows.table import Table, check_output, fingerprint, smallest_unsigned
from beit.run.device import DeviceConfig, launch, prepared
from beit.run.progress import Progress
from beit.tables.picture import Prediction, prediction_grid
from beit.weights.open import load_classifier


@dataclass(frozen=True)
class Config:
    """What is classified, by what, and into which file.

    Attributes:
        model: an image classifier: a run directory, a weights file, published:NAME or
            hf://OWNER/NAME
        data: images: a folder, *.parquet or shapes://COUNT, or a part: folder[:90%]; image files
            as [a.jpg,b.png]; @FILE that lists them, one a line, or - for a list on standard input
        output: a new .parquet, .npz or .jsonl file; what is done so far is kept in OUTPUT.parts
            beside it; null for JSON lines on standard output
        picture: a new .png file with the first images and their likeliest classes; null for none
        picture_images: how many images the picture shows
        top_k: classes an image, the likeliest; a model with fewer gives all it has
        limit: take so many images, a fixed random subset; null for all
        image_size: side that the model is to see, or [height, width]; null for the model's own
        num_heads: attention heads, where neither the file nor the usual 64 channels a head say it
        crop_ratio: side of the centre crop over the shorter side; 1 for images without a margin
        batch_size: images at a time in each process
        part_size: images after which what is done is kept; each process works on one such part
        num_workers: processes that decode images, for each process
        max_unreadable: largest share of unreadable images that does not stop the work; null for 1%,
            or all of the files that a list or the command line names
        device: where and in which precision the classifier runs
    """

    model: str
    data: str | list[str]
    output: str | None = None
    picture: str | None = None
    picture_images: int = 24
    top_k: int = 5
    limit: int | None = None
    image_size: int | tuple[int, int] | None = None
    num_heads: int | None = None
    crop_ratio: float = 0.875
    batch_size: int = 128
    part_size: int = 1024
    num_workers: int = 2
    max_unreadable: float | None = None
    device: DeviceConfig = field(default_factory=DeviceConfig)

    def __post_init__(self) -> None:
        if self.top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {self.top_k}")
        if self.picture_images < 1:
            raise ValueError(f"picture_images must be at least 1, got {self.picture_images}")


class Result(NamedTuple):
    """The file, None for standard output, and its rows, None in all processes but the first."""

    file: Path | None
    rows: int | None


def run(config: Config) -> Result:
    """Write the likeliest classes of all images into one file, or go on with it."""
    if config.output is not None:
        check_output(config.output)
    if config.picture is not None:
        _check_picture(Path(config.picture))
    fabric = launch(config.device)
    first = fabric.is_global_zero
    if fabric.world_size > 1 and (config.output is None or config.data in ("-", ["-"])):
        raise ValueError(
            f"{fabric.world_size} processes cannot share standard input and output; name files: "
            "--data @list.txt, --output classes.jsonl"
        )
    source = _images(config)
    classifier = load_classifier(config.model, config.image_size, num_heads=config.num_heads)
    num_classes, class_names = classifier.config.num_classes, classifier.config.class_names
    vit = classifier.backbone.config
    about = {
        "beit": beit.__version__,
        "verb": "predict",
        "model": config.model,
        "kind": type(classifier).__name__,
        "weights": fingerprint(classifier),
        "num_classes": num_classes,
        "class_names": class_names,
        "grid": vit.grid,
        "image_size": vit.image_size,
        "num_heads": vit.num_heads,
        "crop_ratio": config.crop_ratio,
        "data": config.data,
        "limit": config.limit,
        "device": fabric.device.type,
        "precision": config.device.precision,
        "compile": config.device.compile,
    }
    k = min(config.top_k, num_classes)
    columns = [Column("class_index", smallest_unsigned(num_classes), (k,))]
    if class_names is not None:
        columns.append(Column("class_name", "str", (k,), class_names, numbers="class_index"))
    columns.append(Column("probability", "float32", (k,)))
    table: Table | LineStream
    if config.output is None:
        table = LineStream(sys.stdout, source, columns, batch_size=config.batch_size, compose=_line)
    else:
        table = Table(
            *(config.output, source, columns, about),
            batch_size=config.batch_size,
            part_size=config.part_size,
            compose=_line,
        )
    missing = fabric.broadcast(table.begin() if first else [])
    mine = missing[fabric.global_rank :: fabric.world_size]
    numbers = [number for part in mine for number in table.batches(part)]
    view = EvalView(vit.image_size, config.crop_ratio)
    batches = EvalBatches(
        source, view, config.batch_size, num_workers=config.num_workers, batches=numbers
    )
    unreadable = Unreadable(len(source), _allowed_share(config))
    model = prepared(classifier.to(fabric.device), config.device)

    loader = prefetch(batches, fabric.device)
    step, started = 0, time.perf_counter()
    # A live line and lines of results would spoil each other on one terminal.
    on_screen = config.output is None and sys.stdout.isatty()
    shown = Progress(len(batches), enabled=first and not on_screen)
    with shown as progress, torch.no_grad():
        progress.message(table.state(missing))
        unreadable.note(table.unreadable())
        for number in mine:
            with table.part(number) as part:
                for batch in islice(loader, len(table.batches(number))):
                    for lost in unreadable.note(batch.unreadable):
                        progress.warn(f"left out, cannot be read: {lost}")
                    values = {}
                    if len(batch.indices):
                        with fabric.autocast():
                            logits = model(batch.images)  # (B, Y)
                        values = likeliest(logits, k)
                    part.add(batch.indices, values, batch.unreadable)
                    step += 1
                    images = len(batch.indices) * fabric.world_size
                    progress.update(step, {}, images, loader.wait_seconds)
        fabric.barrier()
        file = None if config.output is None else Path(config.output)
        if not first:
            return Result(file, None)
        seconds = time.perf_counter() - started
        unreadable.note(table.unreadable())  # those of the other processes too
        with progress.aside("writing the lines" if file is None else f"writing {file.name}"):
            rows = table.merge()
        if config.picture is not None:
            names = class_names or [f"class {number}" for number in range(num_classes)]
            with progress.aside(f"drawing {config.picture}"), fabric.autocast():
                drawn = _drawn(model, source, view, names, config.picture_images)
            with replacing(Path(config.picture)) as temporary:
                temporary.write_bytes(prediction_grid(drawn))
        summary = table.summary(rows, missing, seconds)
        if file is None:
            progress.message(summary)
    if file is not None:
        print(summary)
    return Result(file, rows)


def likeliest(logits: Tensor, k: int) -> dict[str, Tensor]:
    """Choose of logits (B, Y) the k best classes: class_index (B, k) int64, probability (B, k)."""
    probability, classes = logits.float().softmax(dim=1).sort(dim=1, descending=True, stable=True)
    return {"class_index": classes[:, :k], "probability": probability[:, :k]}


def _images(config: Config) -> Source:
    """Open the data: standard input is a list of files."""
    if config.data in ("-", ["-"]):
        return limited(read_list(sys.stdin.buffer.read(), "standard input"), config.limit)
    return open_source(config.data, limit=config.limit)


def _allowed_share(config: Config) -> float:
    """Say how many images may be unreadable: whoever names files wants to hear about each."""
    if config.max_unreadable is not None:
        return config.max_unreadable
    first = config.data if isinstance(config.data, str) else config.data[0]
    named = first.startswith(("-", "@")) or Path(first).suffix.lower() in EXTENSIONS
    return 1.0 if named else 0.01


def _line(row: Line) -> Line:
    """Nest the classes of a row: {path, index, label, top: [{class, name, probability}, ...]}."""
    classes, probabilities = row.pop("class_index"), row.pop("probability")
    names = row.pop("class_name", None)
    top: list[Line] = [
        {"class": number, "probability": probability}
        for number, probability in zip(classes, probabilities, strict=True)
    ]
    if names is not None:
        top = [
            {"class": choice["class"], "name": name, "probability": choice["probability"]}
            for choice, name in zip(top, names, strict=True)
        ]
    return row | {"top": top}


# ── the picture ─────────────────────────────────────────────────────────────────────────────────


def _check_picture(path: Path) -> None:
    if path.suffix != ".png":
        raise ValueError(f"picture is {str(path)!r}; expected a name that ends in .png")
    if path.exists():
        raise FileExistsError(f"{path} exists and is not overwritten; name another file")
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"{path}: the folder it is to be in does not exist; make it")


@torch.no_grad()
def _drawn(
    model: nn.Module, source: Source, view: EvalView, names: Sequence[str], count: int
) -> list[Prediction]:
    """Classify the first images once more, as the model sees them, beside what they are."""
    device = next(model.parameters()).device
    drawn = []
    for index, truth in enumerate(truths(source, names, count)):
        try:
            image = view(source.image(index))
        except UnreadableImage:
            drawn.append(Prediction(None))
            continue
        best = likeliest(model(image[None].to(device)), 1)
        guess, probability = int(best["class_index"]), float(best["probability"])
        true_name = None if truth is None else names[truth]
        drawn.append(Prediction(image, names[guess], probability, true_name, guess == truth))
    return drawn


def truths(source: Source, names: Sequence[str], count: int) -> list[int | None]:
    """Give the classes of the first images as the model numbers them; None where unknown.

    The labels are taken by their names where the model has all of these; otherwise by their
    numbers, unless the source names more or fewer classes than the model has.

    Args:
        source: of the images
        names: the model's classes
        count: of images at most
    """
    labels, theirs = source.labels, source.class_names
    if labels is None:
        return [None] * min(count, len(source))
    number_of = dict(enumerate(range(len(names))))
    if theirs is not None and theirs != list(names):
        if set(theirs) <= set(names):
            number_of = {number: names.index(name) for number, name in enumerate(theirs)}
        elif len(theirs) != len(names):
            number_of = {}
    return [number_of.get(label) for label in labels[:count].tolist()]
