"""Fetch CIFAR-10 or CIFAR-100 from the first channel that answers, check it, write it as Parquet.

Every pixel of CIFAR-10 is checked, so that all channels give the same files. CIFAR-100 has no known
checksums of pixels: its home site's archive is checked by the published MD5, the files of the hub
only by counts and labels.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from beit.fetching import cifar
from beit.fetching.cifar import LabelledImages, WrongDataError
from beit.fetching.data_sets import DATA_SETS, ChannelError, DataSet


@dataclass(frozen=True)
class Config:
    """Settings of `beit fetch`.

    Args:
        name: the data set
        directory: for train.parquet and test.parquet; null for data/NAME
    """

    name: Literal["cifar10", "cifar100"] = "cifar10"
    directory: str | None = None


class Result(NamedTuple):
    """The files, and the channel they came from ("kept" if they existed)."""

    train: Path
    test: Path
    channel: str


def run(config: Config) -> Result:
    """Write train.parquet and test.parquet; keep existing files that are right."""
    if config.name not in DATA_SETS:
        known = " or ".join(repr(name) for name in DATA_SETS)
        raise ValueError(f"data set {config.name!r} is unknown; expected {known}")
    data_set = DATA_SETS[config.name]
    title = data_set.title
    directory = Path(config.directory or f"data/{config.name}").expanduser()
    files = {split: directory / f"{split}.parquet" for split in data_set.counts}
    existing = [split for split, file in files.items() if file.exists()]
    for split in existing:
        if not _is_right(files[split], split, data_set):
            advice = "name another directory, or remove the file"
            raise FileExistsError(f"{files[split]} exists and is not {title}; {advice}")
    if len(existing) == len(files):
        print(f"{directory}: {title} exists, {data_set.checked}")
        return Result(files["train"], files["test"], "kept")
    directory.mkdir(parents=True, exist_ok=True)
    failures = []
    for channel, fetch in data_set.channels.items():
        print(f"{title} from the {channel} ...", flush=True)
        try:
            splits = {split: _checked(images, split, data_set) for split, images in fetch().items()}
        except (ChannelError, WrongDataError) as error:
            print(f"  failed: {error}", flush=True)
            failures.append(f"{channel}: {error}")
            continue
        for split, images in splits.items():
            cifar.write_parquet(files[split], images, data_set.classes, data_set.coarse_classes)
            count = len(images.labels)
            print(f"  {files[split]}: {count} images, {data_set.checked}", flush=True)
        return Result(files["train"], files["test"], channel)
    raise OSError(f"{title} could not be fetched; nothing was written. " + "; ".join(failures))


def _checked(images: LabelledImages, split: str, data_set: DataSet) -> LabelledImages:
    """Check the images of a split; return the published batches in order."""
    if not data_set.digests:
        num_classes, num_coarse = len(data_set.classes), len(data_set.coarse_classes)
        cifar.check_labels(images, data_set.counts[split], num_classes, num_coarse, split)
        return images
    published, size = data_set.digests[split], data_set.batch_size
    digests = cifar.batch_digests(images, size)
    if sorted(digests) != sorted(published):
        raise WrongDataError(f"{split}: pixels or labels differ from the published ones")
    order = np.concatenate([np.arange(size) + size * digests.index(digest) for digest in published])
    return LabelledImages(images.pixels[order], images.labels[order])


def _is_right(file: Path, split: str, data_set: DataSet) -> bool:
    coarse = "coarse_label" if data_set.coarse_classes else None
    try:
        images = cifar.read_parquet(file, "image", "label", coarse)
        checked = _checked(images, split, data_set)
    except WrongDataError:
        return False
    return np.array_equal(checked.pixels, images.pixels)  # the batches are in order
