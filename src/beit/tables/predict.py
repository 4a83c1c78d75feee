"""Predict: write the likeliest classes of every image of a set to a table or JSON lines.

One row per image, in the source's order: `index` in the source, `path`; if the source has labels
`label`, the true class in the model's numbers, -1 if it is unknown; `class_index` (k,), the
likeliest classes, best first (the smaller number first on a tie); `class_name` (k,) if the model
has class names; `probability` (k,) float32, softmax over all classes. Unreadable images have no
row: they are reported, counted and listed in the metadata.

As JSON lines, one line per image: `path`, `index`, `label`, `label_name`, and `top`, a list of
objects with `class`, `name` and `probability`; or `error`, why the image cannot be read.

With labels it also counts the images whose likeliest class is the true one.

The command resumes after an interruption and runs under torchrun, see `beit.rows.table`. Lines on
standard output appear as they are computed.
"""

import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from beit.command.ending import Ending, beside, words
from beit.data.class_names import match_classes
from beit.data.classes import RenumberedSource
from beit.data.pixels.decoding import extensions
from beit.data.source import Source, UnreadableImage
from beit.data.sources import STANDARD_INPUT, open_images
from beit.data.views import EvalView
from beit.draw.names import percent
from beit.files import refuse_existing, write_bytes
from beit.nn.heads import ImageClassifierConfig
from beit.rows.compute import about_table, compute_table
from beit.rows.files import Array, Column
from beit.rows.lines import Line, LineStream
from beit.rows.table import RowTable, check_output, smallest_unsigned
from beit.run.device import DeviceConfig
from beit.run.launch import launch
from beit.run.prepare import prepared
from beit.tables.picture import Prediction, prediction_grid
from beit.weights.bands import check_bands
from beit.weights.crop import crop_ratio
from beit.weights.open import load_classifier
from beit.wording import amount

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Config:
    """Compute the most probable classes of images.

    Attributes:
        model: a classifier: a run directory, a weights file, published:NAME or hf://OWNER/NAME
        data: images: a folder, a table or another source (docs/data.md), or a part: folder[:90%];
            image files as [a.jpg,b.png]; @FILE that lists them, one per line, or - for a list on
            standard input
        output: a new .parquet, .npz, .jsonl or .csv file; finished parts are kept in OUTPUT.parts;
            null for JSON lines on standard output
        picture: a new .png file with some images and their most probable classes: those that are
            wrong, the surest first, then the first ones; null for none
        picture_images: number of images in the picture
        top_k: number of most probable classes per image; all classes of a model with fewer
        limit: use this many images, a fixed random subset; null for all
        image_size: input size of the model, a side or [height, width]; null for the model's own
        num_heads: attention heads, if not recorded in the file and not the usual width / 64
        crop_ratio: side of the centre crop over the shorter side; null for that of the model's
            training, else 0.875
        batch_size: images per batch in each process
        part_size: images per part, the unit of resuming and of each process's share
        num_workers: processes that decode images, for each process
        max_unreadable: largest share of unreadable images that does not stop the work; null for 1%,
            or for all but one if files are named by a list or on the command line
        device: device and precision of the classifier
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
    crop_ratio: float | None = None
    batch_size: int = 128
    part_size: int = 1024
    num_workers: int = 2
    max_unreadable: float | None = None
    device: DeviceConfig = field(default_factory=DeviceConfig)

    def __post_init__(self) -> None:
        for name, value in (("top_k", self.top_k), ("picture_images", self.picture_images)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")


class Result(NamedTuple):
    """What was predicted.

    Attributes:
        file: the table; None for standard output
        rows: its rows; None in all processes but the first
        labelled: the readable images whose true class is known and one of the model's
        right: those of them whose most probable class is the true one
    """

    file: Path | None
    rows: int | None
    labelled: int = 0
    right: int = 0


def run(config: Config) -> Result:
    """Write the likeliest classes of all images to one file, or resume."""
    if config.output is not None:
        check_output(config.output)
    if config.picture is not None:
        _check_picture(Path(config.picture))
    fabric = launch(config.device)
    if fabric.world_size > 1 and (config.output is None or config.data in STANDARD_INPUT):
        advice = "name files: --data @list.txt, --output classes.jsonl"
        raise ValueError(
            f"{fabric.world_size} processes cannot share standard input and output; {advice}"
        )
    source = open_images(config.data, config.limit)
    classifier = load_classifier(config.model, config.image_size, num_heads=config.num_heads)
    classes, vit = classifier.config, classifier.backbone.config
    view = EvalView(vit.image_size, crop_ratio(config.model, config.crop_ratio))
    check_bands(config.model, config.data)
    source = in_numbers_of(classes, source)
    columns = columns_of(classes, config.top_k)
    guesses = list[tuple[Array, ...]]()  # of each part: images, their classes and probabilities

    def seen(content: Mapping[str, Array]) -> None:
        classes, probability = content["class_index"][:, 0], content["probability"][:, 0]
        guesses.append((content["index"], classes, probability))

    table: RowTable | LineStream
    if config.output is None:
        table = LineStream(sys.stdout, source, columns, config.batch_size, _line, seen)
    else:
        details: dict[str, object]
        details = {"num_classes": classes.num_classes, "class_names": classes.class_names}
        details |= {"grid": vit.grid, "image_size": vit.image_size, "num_heads": vit.num_heads}
        details |= {"mean": vit.mean, "std": vit.std}
        about = about_table("predict", config, view, classifier, fabric, details)
        sizes = (config.batch_size, config.part_size)
        table = RowTable(config.output, source, columns, about, *sizes, _line, seen)
    model = prepared(classifier.to(fabric.device), config.device)

    def compute(images: Tensor) -> dict[str, Tensor]:
        return likeliest(model(images), config.top_k)

    # A live line and lines of results would mix on a terminal.
    show_progress = config.output is not None or not sys.stdout.isatty()
    limits = (config.num_workers, _max_unreadable(config))
    file, rows = compute_table(fabric, table, view, compute, *limits, show_progress)
    labelled, wrong = _compared(source, guesses)
    if config.picture is not None and fabric.is_global_zero:
        heading = f"{len(wrong)} of {labelled} wrong, the surest first" if wrong else ""
        every = dict.fromkeys([*wrong, *range(min(config.picture_images, len(source)))])
        with fabric.autocast():
            chosen = list(every)[: config.picture_images]
            predictions = _predictions(model, source, view, classes, chosen)
        write_bytes(Path(config.picture), prediction_grid(predictions, heading))
        _log.info("picture of %d images: %s", len(predictions), config.picture)
    return Result(file, rows, labelled, labelled - len(wrong))


def ending(config: Config, result: Result) -> Ending | None:
    """Say how many images are right; attention maps are next. None: the lines were printed."""
    if config.output is None:
        return None
    then = words(
        "visualise attention",
        config.model,
        config.data,
        output=beside(config.output, "attention"),
    )
    picture = "" if config.picture is None else f", and {config.picture}, a picture of them"
    made = f"{config.output}, a table of classes{picture}"
    figure = amount(result.rows or 0, "image")
    if result.labelled:
        share = percent(result.right / result.labelled)
        figure += f", {share} right ({result.right:,} of {result.labelled:,} labelled)"
    return Ending(made, figure, then)


def _compared(source: Source, guesses: Sequence[tuple[Array, ...]]) -> tuple[int, list[int]]:
    """Return how many images have a label of the model, and those guessed wrong, surest first."""
    if source.labels is None or not guesses:
        return 0, []
    images, classes, probability = map(np.concatenate, zip(*guesses, strict=True))
    labels = source.labels.numpy()[images]
    wrong = (labels >= 0) & (classes != labels)
    order = np.argsort(-probability[wrong], kind="stable")
    return int((labels >= 0).sum()), images[wrong][order].tolist()


def columns_of(classes: ImageClassifierConfig, top_k: int) -> list[Column]:
    """Return the columns of the table, k classes in each row."""
    k = min(top_k, classes.num_classes)
    columns = [Column("class_index", smallest_unsigned(classes.num_classes), (k,))]
    if classes.class_names is not None:
        columns.append(Column("class_name", "str", (k,), classes.class_names, "class_index"))
    return [*columns, Column("probability", "float32", (k,))]


def likeliest(logits: Tensor, k: int) -> dict[str, Tensor]:
    """Return the k best classes of logits (B, Y): class_index (B, k) int64, probability (B, k)."""
    probability, classes = logits.float().softmax(dim=1).sort(dim=1, descending=True, stable=True)
    return {"class_index": classes[:, :k], "probability": probability[:, :k]}


def _max_unreadable(config: Config) -> float:
    """Return the largest share of unreadable images: 1 if the user names files."""
    if config.max_unreadable is not None:
        return config.max_unreadable
    first = config.data if isinstance(config.data, str) else config.data[0]
    endings = {Path(name).suffix.lower() for name in (first, first.rpartition("?")[0])}
    named = first.startswith(("-", "@")) or not endings.isdisjoint(extensions())
    return 1.0 if named else 0.01


def _line(row: Line) -> Line:
    """Nest the classes of a row: {path, index, label, top: [{class, name, probability}, ...]}."""
    columns = {"class": row.pop("class_index")}
    if "class_name" in row:
        columns["name"] = row.pop("class_name")
    columns["probability"] = row.pop("probability")
    rows = zip(*columns.values(), strict=True)
    top = [dict(zip(columns, values, strict=True)) for values in rows]
    return row | {"top": top}


def _check_picture(path: Path) -> None:
    if path.suffix != ".png":
        raise ValueError(f"picture is {str(path)!r}; expected a name that ends in .png")
    refuse_existing(path, "file")
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"{path}: its folder does not exist; make it")


@torch.no_grad()
def _predictions(
    model: nn.Module,
    source: Source,
    view: EvalView,
    classes: ImageClassifierConfig,
    images: Sequence[int],
) -> list[Prediction]:
    """Classify some images again for the picture; labels are numbers of the model."""
    names = classes.class_names or [f"class {number}" for number in range(classes.num_classes)]
    device = next(model.parameters()).device
    predictions = []
    for index in images:
        try:
            image = view(source.image(index))
        except UnreadableImage:
            predictions.append(Prediction(None))
            continue
        best = likeliest(model(image[None].to(device)), 1)
        guess, probability = int(best["class_index"]), float(best["probability"])
        truth = -1 if source.labels is None else int(source.labels[index])
        true_name = None if truth < 0 else names[truth]
        predictions.append(Prediction(image, names[guess], probability, true_name, guess == truth))
    return predictions


def in_numbers_of(classes: ImageClassifierConfig, source: Source) -> Source:
    """Give images the model's numbers as labels: -1 where unknown, or of a class that it lacks.

    So a label can be compared with `class_index`, whatever classes the source has.
    """
    if source.labels is None:
        return source
    present, places = source.labels.unique(return_inverse=True)
    numbers = _numbers(source, classes, present.tolist())
    labels = torch.tensor([numbers.get(label, -1) for label in present.tolist()])[places]
    if torch.equal(labels, source.labels.clamp(min=-1)):
        return source
    if lost := int(((labels < 0) & (source.labels >= 0)).sum()):
        text = "%d of %d images are of classes that the model does not have: their label is -1"
        _log.warning(text, lost, len(source))
    return RenumberedSource(source, labels, classes.class_names)


def _numbers(source: Source, classes: ImageClassifierConfig, labels: list[int]) -> dict[int, int]:
    """Return the model's number of each label of a source; of none if they cannot be matched."""
    names = source.class_names
    present = [label for label in labels if label >= 0 and (names is None or label < len(names))]
    known = (classes.class_names, classes.num_classes)
    try:
        match = match_classes(present, names, *known, "the data", "the model")
    except ValueError as error:
        _log.warning("no image is marked as right or wrong: %s", error)
        return {}
    if match.note:
        _log.info("%s", match.note)
    return match.numbers
