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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, cast

import numpy as np
import torch
from torch import Tensor

from beit.data.channels import pixel_options
from beit.data.class_names import amount
from beit.data.shrinking import Shrinking
from beit.data.source import PartSource, Source, file_of, limited
from beit.data.sources import open_source
from beit.data.views import EvalView
from beit.files import replacing, user_path
from beit.nn.pooling import Kind
from beit.nn.quantizer import unit
from beit.rows.compute import compute_table, fingerprint
from beit.rows.files import (
    ABOUT,
    METADATA,
    SUFFIXES,
    TEXT,
    Array,
    Column,
    naming,
    open_npz,
    write_table,
)
from beit.rows.lines import printable
from beit.rows.table import RowTable
from beit.run.device import DeviceConfig, precision_of
from beit.run.launch import launch
from beit.run.settings import first
from beit.weights.crop import crop_ratio
from beit.weights.frozen import FrozenModel, open_frozen_model

if TYPE_CHECKING:
    from lightning_fabric import Fabric

Features = Literal["cls", "mean", "both"]
CACHE = "beit/features"  # in the user's folder of caches
_BATCH, _PART = 64, 512  # images computed together; images an interruption loses at most


class Reading(NamedTuple):
    """How images become vectors: the model, the view and what reads the files."""

    fabric: "Fabric"
    model: FrozenModel
    features: Features
    crop_ratio: float
    num_workers: int
    max_unreadable: float
    device: DeviceConfig

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
        return cast(dict[str, Any], json.loads(json.dumps(about)))


class ImageSet(NamedTuple):
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


class ReadingConfig(Protocol):
    """Options that similar and visualise embedding share."""

    @property
    def model(self) -> str: ...
    @property
    def features(self) -> Features | None: ...
    @property
    def image_size(self) -> int | tuple[int, int] | None: ...
    @property
    def num_heads(self) -> int | None: ...
    @property
    def crop_ratio(self) -> float | None: ...
    @property
    def num_workers(self) -> int: ...
    @property
    def max_unreadable(self) -> float: ...
    @property
    def device(self) -> DeviceConfig: ...


def open_reading(config: ReadingConfig) -> Reading:
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
    limits = (config.num_workers, config.max_unreadable)
    crop = crop_ratio(config.model, config.crop_ratio)
    return Reading(fabric, model, features, crop, *limits, config.device)


def joined(columns: Mapping[str, Tensor], parts: Sequence[str]) -> Tensor:
    """Join columns (n, D) to one vector (n, D or 2D) of length 1 each; each part counts equally."""
    return unit(torch.cat([unit(columns[part]) for part in parts], dim=1))


@torch.no_grad()
def vector_of(image: Tensor, reading: Reading, layer: int | None = None) -> Tensor:
    """Compute the vector (D,) of one image (3, H, W) uint8, on the CPU."""
    batch = reading.view(image)[None].to(reading.fabric.device)
    kinds = {part: Kind(layer, part) for part in reading.parts}
    with reading.fabric.autocast():
        values = reading.model.read(batch, kinds.values())
    return joined({part: values[kind].cpu() for part, kind in kinds.items()}, reading.parts)[0]


# ── a table of `beit embed` ─────────────────────────────────────────────────────────────────────


def is_table(data: str) -> bool:
    """Whether `data` is a table that `beit embed` wrote, not a set of images."""
    path = user_path(data)
    if path.suffix not in SUFFIXES or not path.is_file():
        return False
    return path.suffix == ".npz" or _about_of(path).get("verb") == "embed"


def images_of(data: str) -> str | list[str]:
    """Return the string, or the list of files, whose images are in a set or in a table of it."""
    about = _about_of(user_path(data)) if is_table(data) else {}
    images: str | list[str] = about.get("data", data)
    return images


def read_set(data: str, reading: Reading) -> tuple[ImageSet, int | None]:
    """Read a table of `beit embed`. Returns: the set; the block that its features come from.

    Raises ValueError if the table is of another model or lacks the features.
    """
    path = user_path(data)
    about = _about_of(path)
    if about.get("verb") != "embed":
        raise ValueError(f"{data} was not written by beit embed; give the images, or its table")
    now = reading.about()
    differing = [
        f"{name} of the table is {about.get(name)}, of this command {now[name]}"
        for name in ("weights", "image_size", "crop_ratio")
        if about.get(name) != now[name]
    ]
    if differing:
        raise ValueError(
            f"{data} holds vectors that cannot be compared with this model's: {first(differing)}; "
            f"the table was made with --model {about.get('model')}"
        )
    columns = _read(path)
    missing = [part for part in reading.parts if part not in columns]
    if missing:
        raise ValueError(
            f"{data} has no column {missing[0]}; choose other features, or make it again with "
            "beit embed --features [cls,mean]"
        )
    rows = {str(part): torch.from_numpy(columns[part]).float() for part in reading.parts}
    labels = torch.from_numpy(columns["label"]) if "label" in columns else None
    names, indices = columns["path"].tolist(), columns["index"].tolist()
    source = _source_of(about, names, indices)
    vectors, classes = joined(rows, reading.parts), about["label_names"]
    return ImageSet(names, vectors, labels, classes, source, indices), about["layer"]


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


def indexed(source: Source, data: str, index: str | None, reading: Reading) -> ImageSet:
    """Return the vectors of a set: from its index, the missing ones computed and added to it.

    Args:
        source: the images of `data`, or a fixed random subset of them

    Raises:
        ValueError: the named file is not an index, or one of another model or view.
    """
    about = reading.about() | {"reduced": True, "pixel_options": pixel_options(data)}
    file = user_path(index) if index else index_file(data, about)
    if file.suffix not in SUFFIXES:
        raise ValueError(f"index is {index!r}; expected a name that ends in .npz or .parquet")
    names = [printable(source.name(row)) for row in range(len(source))]
    keys = list(zip(names, _stamps(source), strict=True))
    columns = _columns(reading.model)
    before = _kept(file, about) if file.exists() else {}
    old = before.get("keys", [])
    missing = [row for row, key in enumerate(keys) if key not in set(old)]
    values = {column.name: np.empty((0, *column.shape), column.dtype) for column in columns}
    computed: list[int] = []
    if missing:
        file.parent.mkdir(parents=True, exist_ok=True)
        new_keys = [keys[row] for row in missing]
        small = limited(open_source(data, shrinking=reading.shrinking), len(source))
        if [printable(small.name(row)) for row in range(len(small))] != names:
            raise ValueError(f"{data}: images were added or removed just now; start again")
        computed, values = _computed(small, missing, new_keys, file, reading, about)
    known = len(keys) - len(missing)
    print(f"index {file}: {amount(known, 'image')} known from before, {len(computed)} computed")
    if by_name := sum(not stamp and "://" not in name for name, stamp in {*keys} & {*old}):
        print(
            f"{amount(by_name, 'image')} without a file on this machine, known by name only: if "
            f"they have changed, delete {file}"
        )
    changed = {names[row] for row in computed}
    stay = [row for row, (name, _) in enumerate(old) if name not in changed]
    keys_kept = [old[row] for row in stay] + [keys[row] for row in computed]
    tables = {
        name: np.concatenate([before.get(name, new[:0])[stay], new]) for name, new in values.items()
    }
    if computed:
        _write(file, keys_kept, columns, tables, about)
    place = {key: row for row, key in enumerate(keys_kept)}
    rows = [row for row, key in enumerate(keys) if key in place]
    if not rows:
        raise ValueError(f"none of the {len(source)} images of {data} can be read")
    at = [place[keys[row]] for row in rows]
    tensors = {name: torch.from_numpy(table[at]) for name, table in tables.items()}
    labels = None if source.labels is None else source.labels[torch.tensor(rows)]
    names, vectors = [names[row] for row in rows], joined(tensors, reading.parts)
    return ImageSet(names, vectors, labels, source.class_names, source, rows)


def _columns(model: FrozenModel) -> list[Column]:
    names = ("cls", "mean") if model.has_cls else ("mean",)
    return [Column(name, "float32", (model.width,)) for name in names]


def _computed(
    source: Source,
    missing: list[int],
    keys: list[tuple[str, str]],
    file: Path,
    reading: Reading,
    about: Mapping[str, Any],
) -> tuple[list[int], dict[str, Array]]:
    """Compute the rows of some images; an interrupted computation resumes from its parts.

    Returns: the readable ones of `missing`; their values by column
    """
    digest = hashlib.blake2b(json.dumps(keys).encode(), digest_size=8).hexdigest()
    output = file.with_name(f"{file.name}.{digest}.npz")
    output.unlink(missing_ok=True)
    part, columns = PartSource(source, torch.tensor(missing)), _columns(reading.model)
    table = RowTable(output, part, columns, about, _BATCH, _PART)
    read = torch.compile(reading.model.read) if reading.device.compile else reading.model.read
    kinds = {column.name: Kind(None, cast(Any, column.name)) for column in columns}

    def compute(images: Tensor) -> dict[str, Tensor]:
        values = read(images, kinds.values())
        return {name: values[kind] for name, kind in kinds.items()}

    most = min(1.0, reading.max_unreadable * len(source) / len(part))
    compute_table(reading.fabric, table, reading.view, compute, reading.num_workers, most)
    with np.load(output, allow_pickle=False) as arrays:
        values = {column.name: arrays[column.name] for column in columns}
        new = [missing[row] for row in arrays["index"].tolist()]
    for left in file.parent.glob(f"{file.name}.*.npz*"):  # also parts of images that have changed
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    return new, values


def _stamps(source: Source) -> list[str]:
    """Return the size and time of change of the file of each image; empty for drawn ones."""
    known: dict[Path | None, str] = {None: ""}
    stamps = []
    for row in range(len(source)):
        path = file_of(source, row)
        if path not in known:
            try:
                found = os.stat(cast(Path, path))
                known[path] = f"{found.st_size} {found.st_mtime_ns}"
            except OSError as error:  # it is named as unreadable when it is read
                known[path] = str(error.strerror)
        stamps.append(known[path])
    return stamps


def _kept(file: Path, about: Mapping[str, Any]) -> dict[str, Any]:
    """Read an index, as columns, and its `keys` (path, stamp)."""
    before = _about_of(file)
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
    columns: dict[str, Any] = _read(file)
    columns["keys"] = list(zip(columns["path"].tolist(), columns["stamp"].tolist(), strict=True))
    return columns


def _write(
    file: Path,
    keys: Sequence[tuple[str, str]],
    columns: Sequence[Column],
    values: Mapping[str, Array],
    about: Mapping[str, Any],
) -> None:
    texts = {
        name: np.array(text, dtype=np.str_)
        for name, text in zip(("path", "stamp"), zip(*keys, strict=True), strict=True)
    }
    contents = {**texts, **values}
    listed = [Column("path", TEXT), Column("stamp", TEXT), *columns]
    with replacing(file) as temporary:
        write_table(
            temporary,
            file.suffix,
            listed,
            1,
            lambda _, column: contents[column.name],
            json.dumps({"verb": "similar"} | dict(about)),
        )


def _about_of(path: Path) -> dict[str, Any]:
    """Return what a table says about itself; empty if it is none of ours."""
    if path.suffix == ".npz":
        try:
            with open_npz(path) as arrays:
                return dict(json.loads(str(arrays[ABOUT])))
        except (ValueError, OSError):
            return {}
    from pyarrow import ArrowException, parquet

    try:
        metadata = parquet.read_schema(path).metadata or {}
        return dict(json.loads(metadata.get(METADATA.encode(), b"{}")))
    except (ValueError, TypeError, RecursionError, ArrowException, OSError):
        return {}


def _read(path: Path) -> dict[str, Array]:
    """Read the columns of a table as arrays, without those of patches."""
    if path.suffix == ".npz":
        with open_npz(path) as arrays:
            return {name: arrays[name] for name in arrays.files if name not in ("patches", ABOUT)}
    from pyarrow import parquet

    with naming(path, "make it again"):
        names = [name for name in parquet.read_schema(path).names if name != "patches"]
        table = parquet.read_table(path, columns=names).combine_chunks()
        columns = {}
        for name in names:
            column = table[name].combine_chunks()
            shaped = hasattr(column, "to_numpy_ndarray")
            values = column.to_numpy_ndarray() if shaped else column.to_pylist()
            columns[name] = np.array(values)  # Arrow's own memory is read-only
    return columns
