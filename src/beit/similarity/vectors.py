"""One vector for each image of a set, computed once and kept, or read from a table of `embed`.

The kept file is an index: a table with a row for each readable image (`path`, `stamp`, `cls`,
`mean`). The stamp is the size and time of change of the image's file. When the set is opened again,
rows of images with the same path and stamp are reused and only the others are computed. Rows of
images that are gone stay in the file; they are used again if the images come back.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from beit.data.channels import pixel_options
from beit.data.shrinking import Shrinking
from beit.data.source import PartSource, Source, limited
from beit.data.sources import open_source
from beit.data.stamps import stamps
from beit.data.views import EvalView
from beit.files import replacing, user_path
from beit.nn.pooling import Kind
from beit.nn.quantizer import unit
from beit.rows.compute import compute_table, fingerprint
from beit.rows.files import SUFFIXES, TEXT, Array, Column, read_about, read_table, write_table
from beit.rows.lines import printable
from beit.rows.table import RowTable
from beit.run.device import precision_of
from beit.run.launch import launch
from beit.run.settings import first
from beit.weights.crop import crop_ratio
from beit.weights.frozen import FrozenModel, open_frozen_model
from beit.wording import amount

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from beit.similarity import embedding, similar

    EmbedderConfig = similar.Config | embedding.Config

Features = Literal["cls", "mean", "both"]
CACHE = "beit/features"  # in the user's folder of caches
_BATCH, _PART = 64, 512  # images computed together; images an interruption loses at most


class Embedder(NamedTuple):
    """How images become vectors: the model, which of its features, and the view."""

    config: "EmbedderConfig"
    fabric: "Fabric"
    model: FrozenModel
    features: Features
    crop_ratio: float

    @property
    def view(self) -> EvalView:
        return EvalView(self.model.image_size, self.crop_ratio)

    @property
    def shrinking(self) -> Shrinking:
        """How images of an index are read: JPEG files at a part of their size, if that suffices."""
        return Shrinking(self.view.need)

    @property
    def parts(self) -> tuple[Literal["cls", "mean"], ...]:
        """The columns that make up a vector."""
        return ("cls", "mean") if self.features == "both" else (self.features,)

    def about(self) -> dict[str, Any]:
        """Describe what the values depend on, as plain values."""
        about = {
            "kind": type(self.model.network).__name__,
            "weights": fingerprint(self.model.network),
            "image_size": self.model.image_size,
            "crop_ratio": self.crop_ratio,
            "precision": precision_of(self.fabric)["precision"],
        }
        about |= self.model.settings(self.config.model)
        return cast(dict[str, Any], json.loads(json.dumps(about)))


class VectorSet(NamedTuple):
    """The readable images of a set, n of them.

    Attributes:
        names: of the images
        vectors: (n, D) float32 of length 1
        labels: (n,) int64, -1 where unknown; None without labels
        class_names: None if unknown
        source: the images themselves; None if they are not found
        indices: of each image in the source
    """

    names: list[str]
    vectors: Tensor
    labels: Tensor | None
    class_names: list[str] | None
    source: Source | None
    indices: list[int]

    def label(self, row: int) -> str:
        """Name the class of an image; empty if unknown."""
        number = -1 if self.labels is None else int(self.labels[row])
        if number < 0:
            return ""
        names = self.class_names or []
        return printable(names[number]) if number < len(names) else f"class {number}"


def open_embedder(config: "EmbedderConfig") -> Embedder:
    """Open the model; by default its features are what the paper reads (mean of a teacher)."""
    fabric = launch(config.device)
    if fabric.world_size > 1:
        raise ValueError(f"expected one process, got {fabric.world_size}; set device.devices to 1")
    heads, device = config.num_heads, fabric.device
    model = open_frozen_model(config.model, config.image_size, heads, device=device)
    if config.features in ("cls", "both") and not model.has_cls:
        what = f"{config.model} has no [CLS] token; expected mean"
        raise ValueError(f"features is {config.features}, but {what}")
    features: Features = config.features or model.paper or "mean"
    return Embedder(config, fabric, model, features, crop_ratio(config.model, config.crop_ratio))


def joined(parts: Iterable[Tensor]) -> Tensor:
    """Join features (n, D) to vectors (n, D or 2D) of length 1; each part counts equally."""
    return unit(torch.cat([unit(part) for part in parts], dim=1))


@torch.no_grad()
def vector_of(image: Tensor, embedder: Embedder, layer: int | None) -> Tensor:
    """Compute the vector (D,) of one image (3, H, W) uint8, on the CPU."""
    batch = embedder.view(image)[None].to(embedder.fabric.device)
    kinds = [Kind(layer, part) for part in embedder.parts]
    with embedder.fabric.autocast():
        values = embedder.model.read(batch, kinds)
    return joined(values[kind].cpu() for kind in kinds)[0]


# ── a table of `beit embed` ─────────────────────────────────────────────────────────────────────


def is_table(data: str) -> bool:
    """Whether `data` is a table that `beit embed` wrote, not a set of images."""
    path = user_path(data)
    if path.suffix not in SUFFIXES or not path.is_file():
        return False
    return path.suffix == ".npz" or read_about(path).get("verb") == "embed"


def images_of(data: str) -> str | list[str]:
    """Return what names the images: `data` itself, or what a table of `beit embed` was made of."""
    about = read_about(user_path(data)) if is_table(data) else {}
    images: str | list[str] = about.get("data", data)
    return images


def read_set(data: str, embedder: Embedder) -> tuple[VectorSet, int | None]:
    """Read a table of `beit embed`. Returns: the set; the block that its features come from.

    Raises ValueError if the table is of another model or lacks the features.
    """
    path = user_path(data)
    about = read_about(path)
    if about.get("verb") != "embed":
        raise ValueError(f"{data} was not written by beit embed; give the images, or its table")
    now = embedder.about()
    differing = [
        f"{name} of the table is {about[name]}, of this command {value}"
        for name, value in now.items()
        if name not in ("kind", "precision") and about.get(name, value) != value
    ]
    if differing:
        raise ValueError(
            f"{data} holds vectors that cannot be compared with this model's: {first(differing)}; "
            f"the table was made with --model {about.get('model')}"
        )
    columns = read_table(path, without=("patches",))
    missing = [part for part in embedder.parts if part not in columns]
    if missing:
        raise ValueError(
            f"{data} has no column {missing[0]}; choose other features, or make it again with "
            "beit embed --features [cls,mean]"
        )
    vectors = joined(torch.tensor(columns[part]).float() for part in embedder.parts)
    labels = torch.tensor(columns["label"]) if "label" in columns else None
    names, indices = columns["path"].tolist(), columns["index"].tolist()
    source = _source_of(about, names, indices)
    images = VectorSet(names, vectors, labels, about["label_names"], source, indices)
    return images, about["layer"]


def _source_of(about: Mapping[str, Any], names: list[str], indices: list[int]) -> Source | None:
    """Open the images of a table; None if they are gone or others."""
    try:
        source = open_source(about["data"], limit=about["limit"])
    except (ValueError, OSError):
        return None
    same = len(source) == about["images"] and all(
        printable(source.name(index)) == name for name, index in zip(names, indices, strict=True)
    )
    return source if same else None


# ── an index of our own ─────────────────────────────────────────────────────────────────────────


def index_file(data: str, about: Mapping[str, Any]) -> Path:
    """Return where the index of a set is kept if no file is named."""
    where = data if "://" in data else os.path.abspath(user_path(data))
    text = json.dumps({"data": where} | dict(about))
    caches = os.environ.get("XDG_CACHE_HOME") or user_path("~/.cache")
    return Path(caches, CACHE, hashlib.blake2b(text.encode(), digest_size=8).hexdigest() + ".npz")


class _Index(NamedTuple):
    """The rows of an index: path and stamp of each image, and its values (n, D) by column."""

    keys: list[tuple[str, str]]
    values: dict[str, Array]


def indexed(source: Source, data: str, index: str | None, embedder: Embedder) -> VectorSet:
    """Return the vectors of a set: from its index, the missing ones computed and added to it.

    Args:
        source: the images of `data`, or a fixed random subset of them

    Raises:
        ValueError: the named file is not an index, or one of another model or view.
    """
    about = embedder.about() | {"reduced": True, "pixel_options": pixel_options(data)}
    file = user_path(index) if index else index_file(data, about)
    if file.suffix not in SUFFIXES:
        raise ValueError(f"index is {index!r}; expected a name that ends in .npz or .parquet")
    names = [printable(source.name(row)) for row in range(len(source))]
    keys = list(zip(names, stamps(source), strict=True))
    kept = _read_index(file, about) if file.exists() else _Index([], {})
    known = set(kept.keys)
    missing = [row for row, key in enumerate(keys) if key not in known]
    new = _Index([], {})
    if missing:
        file.parent.mkdir(parents=True, exist_ok=True)
        small = limited(open_source(data, shrinking=embedder.shrinking), len(source))
        if [printable(small.name(row)) for row in range(len(small))] != names:
            raise ValueError(f"{data}: images were added or removed just now; start again")
        new = _computed(small, missing, [keys[row] for row in missing], file, embedder, about)
    before = amount(len(keys) - len(missing), "image")
    print(f"index {file}: {before} known from before, {len(new.keys)} computed")
    if by_name := sum(not stamp and "://" not in name for name, stamp in {*keys} & known):
        print(
            f"{amount(by_name, 'image')} without a file on this machine, known by name only: if "
            f"they have changed, delete {file}"
        )
    if new.keys:
        kept = _merged(kept, new)
        _write(file, kept, embedder.model, about)
    place = {key: row for row, key in enumerate(kept.keys)}
    rows = [row for row, key in enumerate(keys) if key in place]
    if not rows:
        raise ValueError(f"none of the {len(source)} images of {data} can be read")
    at = [place[keys[row]] for row in rows]
    vectors = joined(torch.from_numpy(kept.values[part][at]) for part in embedder.parts)
    labels = None if source.labels is None else source.labels[torch.tensor(rows)]
    names = [names[row] for row in rows]
    return VectorSet(names, vectors, labels, source.class_names, source, rows)


def _merged(old: _Index, new: _Index) -> _Index:
    """Add new rows to old ones, in place of those of the same path."""
    if not old.keys:
        return new
    replaced = {path for path, _ in new.keys}
    stay = [row for row, (path, _) in enumerate(old.keys) if path not in replaced]
    keys = [old.keys[row] for row in stay] + new.keys
    values = {n: np.concatenate([old.values[n][stay], rows]) for n, rows in new.values.items()}
    return _Index(keys, values)


def _columns(model: FrozenModel) -> list[Column]:
    names = ("cls", "mean") if model.has_cls else ("mean",)
    return [Column(name, "float32", (model.width,)) for name in names]


def _computed(
    source: Source,
    missing: list[int],
    keys: list[tuple[str, str]],
    file: Path,
    embedder: Embedder,
    about: Mapping[str, Any],
) -> _Index:
    """Compute the rows of the readable ones of `missing` images, whose keys are `keys`.

    An interrupted computation resumes from its parts.
    """
    digest = hashlib.blake2b(json.dumps(keys).encode(), digest_size=8).hexdigest()
    output = file.with_name(f"{file.name}.{digest}.npz")
    output.unlink(missing_ok=True)
    part, columns = PartSource(source, torch.tensor(missing)), _columns(embedder.model)
    table = RowTable(output, part, columns, about, _BATCH, _PART)
    kinds = {column.name: Kind(None, cast(Any, column.name)) for column in columns}
    config = embedder.config
    compute = embedder.model.columns(kinds, config.device.compile)
    most = min(1.0, config.max_unreadable * len(source) / len(part))
    limits = (config.num_workers, most)
    compute_table(embedder.fabric, table, embedder.view, compute, *limits, empty=True)
    arrays = read_table(output)
    for left in file.parent.glob(f"{file.name}.*.npz*"):  # also parts of images that have changed
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    computed = [keys[row] for row in arrays["index"].tolist()]
    return _Index(computed, {column.name: arrays[column.name] for column in columns})


def _read_index(file: Path, about: Mapping[str, Any]) -> _Index:
    """Read an index. ValueError if it is none, or one of another model or view."""
    before = read_about(file)
    if before.get("verb") != "similar":
        raise ValueError(f"{file} is not an index of beit similar; name another file")
    differing = [
        f"{name} was {before.get(name)}, is now {now}"
        for name, now in about.items()
        if before.get(name) != now
    ]
    if differing:
        raise ValueError(
            f"{file} is the index of another model or view: {first(differing)}; name another file, "
            "or delete it"
        )
    values = read_table(file)
    paths, stamps = values.pop("path").tolist(), values.pop("stamp").tolist()
    return _Index(list(zip(paths, stamps, strict=True)), values)


def _write(file: Path, index: _Index, model: FrozenModel, about: Mapping[str, Any]) -> None:
    paths, stamps = (np.array(texts, np.str_) for texts in zip(*index.keys, strict=True))
    contents = {"path": paths, "stamp": stamps, **index.values}
    columns = [Column("path", TEXT), Column("stamp", TEXT), *_columns(model)]
    text = json.dumps({"verb": "similar"} | dict(about))

    def values(_: int, column: Column) -> Array:
        return contents[column.name]

    with replacing(file) as temporary:
        write_table(temporary, file.suffix, columns, 1, values, text)
