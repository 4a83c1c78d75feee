"""Probing: accuracy of linear classifiers and nearest neighbours on frozen features.

The protocol, the same for every model; docs/probing.md explains each option:

1. Features. The backbone is frozen, in eval mode, in the precision of `device.precision`. Every
   image is read once, in the evaluation view (shorter side resized, centre crop, no augmentation).
   Unreadable images are named and left out. Two vectors per image are probed separately: the [CLS]
   token and the mean of the patch tokens, both after the final norm if the model has one, or from
   raw outputs of blocks (`layers`). A teacher only gives the mean of its patch tokens. Features are
   kept in memory in float32.
2. Held-out part. A seeded share (`held_out`, 10%) of the training images is set aside.
3. Linear probe. Each dimension is standardised by the mean and deviation of the other 90%: batch
   normalisation without scale and shift, but with the statistics of the whole part at every step.
   One linear layer with bias, initialised to zero; cross-entropy; SGD with momentum 0.9, no weight
   decay; cosine decay of the rate to 0, per step, over `epochs` seeded passes. All `rates` are
   trained at once on the same batches; each gives the result it would give alone.
4. Choice. The rate with the highest accuracy on the held-out part; of equals the smallest.
5. Report. The top-1 accuracy of that classifier on the test images, which no earlier step uses. It
   is not trained again with the held-out part.
6. k-NN. The whole training set votes: the `neighbours` nearest by cosine, weighted by
   exp(cosine / 0.07), on features without standardisation. Nothing is chosen here.

The paper reads [CLS] after patch aggregation, else the mean (section 3.2); that row is marked. The
rest of its probe is not published; BEiT v1's probe is different
(docs/reference/finetuning.md, Linear probing).
"""

import json
import logging
import math
import os
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

from beit.command.ending import Ending, beside, words
from beit.data.channels import compare_pixels, pixel_options
from beit.data.classes import Labelled, checked_classes, renumbered
from beit.data.mixture import weights_of
from beit.data.source import PartSource
from beit.data.sources import open_source, open_test_split
from beit.data.views import ViewConfig
from beit.draw.classes import chance_words
from beit.draw.names import percent
from beit.draw.report import Figure, Section, link_to, write_report
from beit.files import refuse_existing, write_text
from beit.nn.pooling import kinds_of
from beit.probing.charts import (
    AttentiveRow,
    Row,
    accuracy_table,
    drawings,
    format_table,
    notes,
    title,
)
from beit.probing.features import FeatureReader
from beit.probing.training import attentive_rows, probe_features, split, train_on_stream
from beit.run.device import DeviceConfig, precision_of
from beit.run.environment import environment
from beit.run.familiar import ImageSet, note_of_shared
from beit.run.launch import launch
from beit.weights.bands import check_bands
from beit.weights.crop import crop_ratio
from beit.weights.frozen import TEACHER, open_frozen_model
from beit.wording import amount, some

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Config:
    """The model, the images and the protocol.

    Attributes:
        model: a run directory, a weights file, or teacher:SOURCE
        train: labelled images to train on: a folder, a table or another source (docs/data.md), or a
            part: folder[:90%]
        test: labelled test images; null for the test split of the data, else a fifth of the images,
            which is then not used for training
        untrained: fresh weights drawn from the seed, as a baseline (fixed weights for a teacher)
        limit: use this many training images, a fixed subset; null for all
        test_limit: use this many test images, a fixed subset; null for all
        image_size: input side in pixels; null for the model's own
        num_heads: attention heads, if the file does not contain them and a head is not 64 wide
        crop_ratio: side of the centre crop over the shorter side; null for that of the model's
            training, else 0.875
        layers: last for the final features; numbers of blocks, from 1, for their raw outputs; all
            for every block and the final features
        pooling: any of cls, mean and both (concatenated); null for cls and mean (teacher: mean)
        standardise: whole for the statistics of the whole training part, batch for those of each
            batch (batch normalisation without scale and shift), or none
        optimizer: of the linear probe: SGD with momentum 0.9, or AdamW
        weight_decay: of the classifiers' weights; not of biases
        augment: compute the training features again in each pass, from random views
        view: the random views of augment
        attentive: also train an attentive probe on the patch tokens
        attentive_heads: heads of its query; must divide the width
        attentive_rates: its initial learning rates, all tried
        held_out: share of the training images on which the learning rate is chosen
        rates: initial learning rates of the linear probe, all tried
        epochs: passes of the classifiers over the features
        batch_size: features per step
        neighbours: number of nearest images that vote in k-NN; several give one accuracy each
        seed: of the held-out part, the order of the features, the views and the untrained weights
        output: directory for probe.json and report.html; null for none
        dtype: of the features in memory
        images_per_batch: images per forward pass of the backbone
        num_workers: processes that decode images
        cache_gigabytes: keep the decoded images of a set in memory if they fit
        max_unreadable: largest share of unreadable images that does not stop the probe
        device: device and precision of the backbone; one process
    """

    model: str
    train: str
    test: str | None = None
    untrained: bool = False
    limit: int | None = None
    test_limit: int | None = None
    image_size: int | None = None
    num_heads: int | None = None
    crop_ratio: float | None = None
    layers: Literal["last", "all"] | tuple[int, ...] = "last"
    pooling: tuple[Literal["cls", "mean", "both"], ...] | None = None
    standardise: Literal["whole", "batch", "none"] = "whole"
    optimizer: Literal["sgd", "adamw"] = "sgd"
    weight_decay: float = 0.0
    augment: bool = False
    view: ViewConfig = ViewConfig(min_scale=0.08, color_jitter=0.0)
    attentive: bool = False
    attentive_heads: int = 8
    attentive_rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
    held_out: float = 0.1
    rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0)
    epochs: int = 30
    batch_size: int = 512
    neighbours: int | tuple[int, ...] = 20
    seed: int = 0
    output: str | None = None
    dtype: Literal["float32", "float16"] = "float32"
    images_per_batch: int = 128
    num_workers: int = 2
    cache_gigabytes: float = 0.0
    max_unreadable: float = 0.01
    device: DeviceConfig = field(default_factory=DeviceConfig)

    def __post_init__(self) -> None:
        for name in ("rates", "attentive_rates"):
            rates = getattr(self, name)
            if not rates or min(rates) <= 0 or not all(map(math.isfinite, rates)):
                raise ValueError(f"{name} must be one or more positive numbers, got {rates}")
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out must be a share between 0 and 1, got {self.held_out}")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay must be 0 or more, got {self.weight_decay}")
        for name in ("epochs", "batch_size", "images_per_batch", "attentive_heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.votes or min(self.votes) < 1:
            raise ValueError(f"neighbours must be at least 1, got {self.neighbours}")
        for name in ("layers", "pooling"):
            several = getattr(self, name)
            if isinstance(several, tuple) and not 0 < len(several) == len(set(several)):
                raise ValueError(f"{name} must name one or more, each once, got {several}")

    @property
    def votes(self) -> tuple[int, ...]:
        """Numbers of neighbours, one or several."""
        return (self.neighbours,) if isinstance(self.neighbours, int) else self.neighbours


@dataclass(frozen=True)
class Result:
    """Accuracies by kind of features, a table of them for the terminal, and notes.

    Attributes:
        chance: accuracy of always answering the most frequent class of the test images
        images: how many test images were read
    """

    rows: list[Row]
    table: str
    notes: list[str]
    chance: float
    images: int
    attentive: list[AttentiveRow] = field(default_factory=list)

    @property
    def figures(self) -> dict[str, float]:
        """Accuracies as shares, such as `linear_cls`, `knn_cls`, `attentive_both`."""
        figures = dict[str, float]()
        for row in self.rows:
            figures |= {f"{name}_{row['features']}": row[name] for name in ("linear", "knn")}
        return figures | {f"attentive_{r['features']}": r["attentive"] for r in self.attentive}


def _with_test(config: Config) -> Config:
    """Choose the test images: the data's own split, else a fifth, which is not trained on."""
    if open_test_split(config.train, open_source(config.train, split="train")) is not None:
        logger.info("test images: the split of %s for testing", config.train)
        return replace(config, test=config.train)
    parts = f"{config.train}[:80%]", f"{config.train}[80%:]"
    logger.info("test images: %s, as there is no split for them; training: %s", *parts[::-1])
    return replace(config, train=parts[0], test=parts[1])


def run(config: Config) -> Result:
    """Probe one model by the protocol at the head of this file."""
    device = _one_process(config.device)
    output = None if config.output is None else Path(config.output)
    refuse_existing(output)
    if weights_of(config.train):
        raise ValueError(f"{config.train}: a probe does not draw by weight; name one set")
    if config.test is None:
        config = _with_test(config)
    cache, test_spec = config.cache_gigabytes, str(config.test)
    train = open_source(config.train, split="train", cache_gigabytes=cache, limit=config.limit)
    test = open_source(test_spec, split="test", cache_gigabytes=cache, limit=config.test_limit)
    labelled = Labelled("--data", config.train, train)
    num_classes, _ = classes = checked_classes(labelled)
    test = renumbered(Labelled("--test", test_spec, test), classes, labelled.where).source
    split(len(train), config.held_out, config.seed)  # raises before the features are computed
    fabric = launch(device)
    seed, size = config.seed if config.untrained else None, config.image_size
    model = open_frozen_model(config.model, size, config.num_heads, seed, fabric.device)
    config = replace(config, crop_ratio=crop_ratio(config.model, config.crop_ratio))
    check_bands(config.model, config.train, test_spec)
    compare_pixels(pixel_options(config.train), "the training images have", test_spec)
    kinds = kinds_of(config.layers, config.pooling, model.depth, model.has_cls)
    if config.attentive and model.width % config.attentive_heads:
        raise ValueError(
            f"attentive_heads is {config.attentive_heads}, but the model is {model.width} wide; "
            "choose a number that divides it"
        )
    reader = FeatureReader(model, config, fabric)
    train_set = reader.cache(kinds, train, "training")
    test_set = reader.cache(kinds, test, "test")
    linear, attentive = train_on_stream(reader, kinds, train, train_set, num_classes)
    rows = []
    for kind in kinds:
        train_data, test_data = (
            (cached.of(kind).to(fabric.device), cached.labels.to(fabric.device))
            for cached in (train_set, test_set)
        )
        grid, paper = linear.get(kind), kind == (None, model.paper)
        rows.append(probe_features(kind, train_data, test_data, config, num_classes, grid, paper))
    _, held_out = split(len(train_set.labels), config.held_out, config.seed)
    held_out_part = PartSource(train, train_set.indices[held_out])
    test_part = PartSource(test, test_set.indices)
    rows_attentive = attentive_rows(reader, attentive, held_out_part, test_part)
    table = format_table(accuracy_table(rows, rows_attentive, config.votes))
    remarks = unreadable_note("training", train_set.unreadable, len(train))
    remarks += unreadable_note("test", test_set.unreadable, len(test))
    remarks += note_of_shared(ImageSet("--test", test_spec, test), ImageSet(*labelled))
    remarks += notes(rows, rows_attentive, (config.rates, config.attentive_rates))
    print("\n".join([table, *remarks]))
    chance = float(test_set.labels.bincount().max()) / len(test_set.labels)
    result = Result(rows, table, remarks, chance, len(test_set.labels), rows_attentive)
    if output is not None:
        sizes = {"train": len(train_set.labels), "test": len(test_set.labels)}
        sizes |= {"classes": num_classes, "width": model.width}
        _write(output, config, result, model.image_size, sizes, precision_of(fabric))
    return result


def ending(config: Config, result: Result) -> Ending:
    """Say the best accuracies; fine-tuning is next, or a teacher's features or its tokenizer."""
    made = "no files; --output DIR keeps the table with a report"
    if config.output is not None:
        made = f"{config.output}/probe.json; report {config.output}/report.html"
    best = max(result.rows, key=lambda row: row["linear"])
    nearest = max(result.rows, key=lambda row: row["knn"])
    figure = (
        f"linear probe {percent(best['linear'])} ({best['features']}), "
        f"k-NN {percent(nearest['knn'])} ({nearest['features']}) "
        f"of {amount(result.images, 'test image')}; chance {percent(result.chance)}"
    )
    is_teacher = config.model.startswith(TEACHER)
    name = "tokenizer" if is_teacher else "finetuned"
    output = beside(config.output or f"runs/{name}", name)
    data = {"data": config.train, "validation": config.test, "output": output}
    if not is_teacher:
        return Ending(made, figure, words("finetune", model=config.model, **data))
    size, source = config.image_size, config.model.removeprefix(TEACHER)
    features = {"image_size": size, "output": beside(output, "features.parquet")}
    teacher = {"teacher.source": source, "teacher.image_size": size}
    return Ending(
        *(made, figure, words("embed", config.model, config.train, **features)),
        [words("train-tokenizer", **teacher, **data)],
    )


def unreadable_note(set_name: str, names: list[str], total: int) -> list[str]:
    """Note how many images of a set were read, and name some of the others; empty without any."""
    if not (count := len(names)):
        return []
    return [f"{total - count} of {total} {set_name} images; {count} cannot be read: {some(names)}"]


def _one_process(device: DeviceConfig) -> DeviceConfig:
    """Return `device` for one process; ValueError if several were requested or started."""
    requested = 1 if device.devices == "auto" else int(device.devices) * device.num_nodes
    processes = max(int(os.environ.get("WORLD_SIZE", "1")), requested)
    if processes > 1:
        raise ValueError(
            f"probe runs in one process on one device, got {processes}; start it as "
            "`beit probe` without torchrun, with device.devices=1"
        )
    return replace(device, devices=1)


def _write(
    output: Path,
    config: Config,
    result: Result,
    image_size: tuple[int, int],
    sizes: dict[str, int],
    precision: dict[str, str],
) -> None:
    """Write probe.json and report.html into the new directory `output`."""
    output.mkdir(parents=True)
    record = {
        "rows": result.rows,
        "attentive": result.attentive,
        "notes": result.notes,
        "chance": result.chance,
        "rates": sorted(config.rates),
        "image_size": image_size,
        "sizes": sizes,
        "config": asdict(config),
        "environment": environment("probe") | precision,
    }
    write_text(output / "probe.json", json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    table = accuracy_table(result.rows, result.attentive, config.votes)
    pictures = drawings(result.rows, result.attentive, (config.rates, config.attentive_rates))
    model = config.model + (" (untrained)" if config.untrained else "")
    sections = [Section("Frozen features", "\n\n".join(result.notes), [table, *pictures])]
    page = output / "report.html"
    best = max(result.rows, key=lambda row: (row["paper"], row["linear"]))
    chance = chance_words(result.chance)
    figures = {
        f"linear probe, {title(best)}": Figure(percent(best["linear"]), chance),
        f"nearest neighbours, {title(best)}": Figure(percent(best["knn"]), chance),
    }
    facts = {
        "Model": link_to(config.model, page),
        "Weights": "untrained" if config.untrained else "trained",
        "Training images": f"{config.train} ({sizes['train']})",
        "Test images": f"{config.test} ({sizes['test']})",
        "Classes": str(sizes["classes"]),
        "Image size": f"{image_size[0]} x {image_size[1]}",
        "Seed": str(config.seed),
    }
    write_report(page, f"Probe of {model}", sections, facts, figures=figures)
