"""CIFAR-10 and CIFAR-100: their classes and published formats, and the Parquet format of beit.

Krizhevsky, "Learning multiple layers of features from tiny images", 2009: 50,000 training and
10,000 test images of 32 x 32, in ten classes, or in a hundred classes grouped into twenty coarse
ones.
"""

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from beit.data.pixels.decoding import decode
from beit.data.source import UnreadableImage
from beit.files import replacing

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR100 = tuple(  # in the order of the archive's fine_label_names.txt
    """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly
    camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile
    cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp
    lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom
    oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
    possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake
    spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor
    train trout tulip turtle wardrobe whale willow_tree wolf woman worm
    """.split()
)
CIFAR100_COARSE = tuple(  # in the order of coarse_label_names.txt
    """
    aquatic_mammals fish flowers food_containers fruit_and_vegetables household_electrical_devices
    household_furniture insects large_carnivores large_man-made_outdoor_things
    large_natural_outdoor_scenes large_omnivores_and_herbivores medium_mammals
    non-insect_invertebrates people reptiles small_mammals trees vehicles_1 vehicles_2
    """.split()
)

Bytes = npt.NDArray[np.uint8]
_DAMAGED = (UnreadableImage, ValueError, TypeError, OverflowError)


class WrongDataError(Exception):
    """The data read is not the data set."""


class LabelledImages(NamedTuple):
    """The images of one split, uint8."""

    pixels: Bytes  # (n, 32, 32, 3)
    labels: Bytes  # (n,)
    coarse: Bytes | None = None  # (n,) labels of coarse classes, if there are any


def from_records(data: bytes, label_bytes: int, name: str) -> LabelledImages:
    """Read the binary version: records of the label, or coarse label and label, and 3072 bytes."""
    size = label_bytes + 3072
    if not data or len(data) % size:
        raise WrongDataError(f"{name}: {len(data)} bytes, expected a multiple of {size}")
    records = np.frombuffer(data, dtype=np.uint8).reshape(-1, size)
    pixels = records[:, label_bytes:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    coarse = records[:, 0].copy() if label_bytes == 2 else None
    return LabelledImages(np.ascontiguousarray(pixels), records[:, label_bytes - 1].copy(), coarse)


def from_sheets(sheets: Mapping[str, bytes], labels: bytes) -> LabelledImages:
    """Read PNGs in which each row holds the 1024 pixels of an image, and labels as a JSON list."""
    try:
        images = [decode(data, name).permute(1, 2, 0) for name, data in sheets.items()]
        pixels = np.concatenate([image.numpy().reshape(-1, 32, 32, 3) for image in images])
        return LabelledImages(pixels, np.array(json.loads(labels), dtype=np.uint8))
    except _DAMAGED as error:
        raise WrongDataError(f"{', '.join(sheets)}: {error}") from error


def read_parquet(
    file: Path | io.BytesIO, image: str, label: str, coarse: str | None
) -> LabelledImages:
    """Read the named columns of images, labels and, unless it is None, coarse labels."""
    import pyarrow
    from pyarrow import parquet

    names = [image, label] if coarse is None else [image, label, coarse]
    try:
        table = parquet.read_table(file, columns=names)
        rows = table.column(image).to_pylist()
        images = [decode(row["bytes"], f"row {index}") for index, row in enumerate(rows)]
        pixels = np.stack([image.permute(1, 2, 0).numpy() for image in images])
        labels = [np.array(table.column(n).to_pylist(), dtype=np.uint8) for n in names[1:]]
        return LabelledImages(pixels, *labels)
    except (*_DAMAGED, pyarrow.ArrowException, OSError, KeyError) as error:
        raise WrongDataError(f"not the expected table: {error}") from error


def write_parquet(
    path: Path, images: LabelledImages, names: Sequence[str], coarse_names: Sequence[str] = ()
) -> None:
    """Write the columns `image`, `label` and, if known, `coarse_label`, in the hub's layout."""
    import pyarrow
    from PIL import Image
    from pyarrow import parquet

    rows = []
    for index, pixels in enumerate(images.pixels):
        png = io.BytesIO()
        Image.fromarray(pixels).save(png, "PNG")
        rows.append({"bytes": png.getvalue(), "path": f"{index:05d}.png"})
    columns: dict[str, Any] = {"image": rows}
    features: dict[str, dict[str, Any]] = {"image": {"_type": "Image"}}
    for column, labels, classes in (
        ("label", images.labels, names),
        ("coarse_label", images.coarse, coarse_names),
    ):
        if labels is not None:
            columns[column] = pyarrow.array(labels.tolist(), pyarrow.int64())
            features[column] = {"_type": "ClassLabel", "names": list(classes)}
    table = pyarrow.table(columns).replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": features}})}
    )
    with replacing(path) as temporary:
        parquet.write_table(table, temporary, row_group_size=1000, compression="none")


def batch_digests(images: LabelledImages, batch_size: int) -> list[str]:
    """Return the SHA-256 of each batch, over its pixels (n, 32, 32, 3) and labels."""
    pixels, labels, _ = images
    batches = [slice(start, start + batch_size) for start in range(0, len(labels), batch_size)]
    return [hashlib.sha256(pixels[b].tobytes() + labels[b].tobytes()).hexdigest() for b in batches]


def check_labels(
    images: LabelledImages, count: int, num_classes: int, num_coarse: int, name: str
) -> None:
    """Raise WrongDataError unless there are `count` images, equally many of each class.

    Each class must belong to one coarse class, and all coarse classes must have as many classes.
    """
    pixels, labels, coarse = images
    if pixels.shape != (count, 32, 32, 3) or labels.shape != (count,):
        shapes = f"pixels {pixels.shape} and labels {labels.shape}"
        raise WrongDataError(f"{name}: {shapes}; expected {(count, 32, 32, 3)} and {(count,)}")
    if np.bincount(labels, minlength=num_classes).tolist() != [count // num_classes] * num_classes:
        raise WrongDataError(f"{name}: not {count // num_classes} images in each class")
    if not num_coarse:
        return
    if coarse is None or coarse.shape != (count,):
        raise WrongDataError(f"{name}: coarse labels are missing")
    pairs = np.unique(np.stack([labels, coarse], axis=1), axis=0)  # (class, its coarse class)
    share = num_classes // num_coarse
    sizes = np.bincount(pairs[:, 1], minlength=num_coarse).tolist()
    if len(pairs) != num_classes or sizes != [share] * num_coarse:
        raise WrongDataError(f"{name}: coarse classes do not have {share} classes each")
