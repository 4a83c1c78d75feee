"""Pack images into shards: tar or Parquet, from any source, in parallel and resumable.

One process writes the shards, in the order of the source; workers read, decode and encode. A shard
is closed once it has its size, so its bytes depend on source and options alone. It is written under
another name, flushed, renamed, read back and then recorded; a repeated call continues after the
last recorded shard.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from errno import EIO
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from beit.command.ending import Ending, beside, words
from beit.data.channels import channels_of
from beit.data.mixture import weights_of
from beit.data.source import Source
from beit.data.sources import open_source
from beit.data.spec import pixel_query, split_part
from beit.data.splits import Split
from beit.data.stores.remote import is_remote
from beit.data.unreadable import Unreadable
from beit.data.workers import computed_each
from beit.files import replacing, user_path
from beit.packing.encoding import Encoding, encoded, member_of, names_fit
from beit.packing.record import CHECKSUM, Finished, Gap, Record
from beit.packing.sets import WHOLE, check_place, checksum, open_sets, read_spec
from beit.packing.shards import FORMATS, Entry, read_back
from beit.run.lock import releasing
from beit.run.progress import Progress

Advance = Callable[[], None]  # called for each image

_TASK = 8  # images that a worker reads at a time


@dataclass(frozen=True)
class Config:
    """Pack images into shards.

    Args:
        data: the images, as for any other verb; of data with splits, the training images and the
            validation or test images are packed into separate shards
        output: a new folder for the shards, or the folder of an interrupted call with the same
            options
        format: tar, with the names of WebDataset, or parquet, as data sets of the hub
        shorter_side: shrink larger images to this shorter side in pixels, and save them as JPEG;
            null copies each file as it is
        quality: of these JPEG files, 1 to 95
        shard_megabytes: size of a shard's images at which the next shard begins
        max_unreadable: largest share of unreadable images; above it the command stops, else they
            are left out
        num_workers: processes that read images
    """

    data: str
    output: str
    format: Literal["tar", "parquet"] = "tar"
    shorter_side: int | None = None
    quality: int = 90
    shard_megabytes: float = 256.0
    max_unreadable: float = 0.01
    num_workers: int = 2

    def __post_init__(self) -> None:
        if self.shorter_side is not None and self.shorter_side < 1:
            raise ValueError(f"shorter_side is {self.shorter_side}; expected pixels, or null")
        if not 1 <= self.quality <= 95:
            raise ValueError(f"quality is {self.quality}; expected 1 to 95")
        if self.shard_megabytes <= 0:
            raise ValueError(f"shard_megabytes is {self.shard_megabytes:g}; expected more than 0")
        if self.num_workers < 0:
            raise ValueError(f"num_workers is {self.num_workers}; expected 0 or more")
        if not self.output or is_remote(self.output):
            raise ValueError(
                f"output is {self.output!r}; expected a folder on disk. Copy the shards to a store "
                "once they are written"
            )
        if weights_of(split_part(self.data)[0]):
            raise ValueError(
                f"{self.data}: a mixture is drawn by weight in a training, and shards hold no "
                "weights; pack each of its sets, and mix the packed ones"
            )
        if self.shorter_side is not None and (channels := channels_of(self.data)) != 3:
            raise ValueError(
                f"shorter_side saves JPEG files, which have no {channels} channels as the bands of "
                f"{self.data}; leave it out: files are copied as they are"
            )


class Result(NamedTuple):
    """The folder of the shards, what it holds over all sets, and the images of each set."""

    directory: Path
    images: int
    unreadable: int
    shards: int
    bytes: int
    sets: dict[str, int]


def run(config: Config) -> Result:
    """Write the missing shards, and compare all of them with the source."""
    folder, (name, reading) = user_path(config.output), read_spec(config.data)
    check_place(folder, name)
    sets = open_sets(config.data)
    how = Encoding(reading, config.shorter_side, config.quality)
    with releasing():
        record = Record(folder, _settings(config, sets, how))
        gaps = [(of, gap) for of in sets for gap in record.gaps(of, len(sets[of]))]
        total, left = sum(map(len, sets.values())), sum(len(gap.range) for _, gap in gaps)
        limits = {of: Unreadable(len(images), config.max_unreadable) for of, images in sets.items()}
        for shard in record.shards.values():
            limits[shard.set].note(shard.unreadable.values())
        with Progress(total, total - left) as progress:
            before = f"; {len(record.shards)} shards were written before" if record.shards else ""
            counts = {of: len(images) for of, images in sets.items()}
            progress.message(f"{_counted(counts)} of {config.data}{before}")
            done = count(total - left)

            def advance() -> None:
                progress.update(next(done) + 1, {}, 1, 0.0)

            for of, gap in gaps:
                for shard in _shards(config, how, of, sets[of], gap, advance):
                    record.add(shard)
                    for text in limits[of].note(shard.unreadable.values()):
                        progress.warn(f"unreadable, left out: {text}")
            with progress.aside("comparing with the source"):
                record.end(complete=True)
                try:
                    _compare(folder, sets, record)
                except ValueError:
                    record.end(complete=False)
                    raise
    shards = record.shards.values()
    return Result(
        folder,
        sum(shard.images for shard in shards),
        sum(len(shard.unreadable) for shard in shards),
        len(shards),
        sum(shard.bytes for shard in shards),
        {of: sum(shard.images for shard in record.of_set(of)) for of in sets},
    )


def ending(config: Config, result: Result) -> Ending:
    """Say what was packed; a tokenizer is next."""
    megabytes = f"{result.bytes / 1e6:,.1f} MB"
    figure = f"{_counted(result.sets)}, {megabytes}, all read back and compared"
    if result.unreadable:
        figure += f"; {result.unreadable} unreadable ones left out"
    query = "" if config.shorter_side is not None else pixel_query(config.data)  # files are copied
    data = f"{config.output}?{query}" if query else config.output
    then = words("train-tokenizer", data=data, output=beside("runs/x", "tokenizer"))
    shards = f"{result.shards} shard{'s' * (result.shards > 1)}"
    return Ending(f"{shards} in {result.directory}", figure, then)


def _counted(images: Mapping[str, int]) -> str:
    """Say how many images each set has: `50,000 images of train and 10,000 of test`."""
    if WHOLE in images:
        return f"{images[WHOLE]:,} images"
    first, *others = [f"{number:,}{{}} of {of}" for of, number in images.items()]
    return " and ".join([first.format(" images"), *(other.format("") for other in others)])


def _settings(config: Config, sets: dict[str, Source], how: Encoding) -> dict[str, Any]:
    """Return what the bytes of the shards depend on, as plain values."""
    smaller = config.shorter_side is not None
    settings: dict[str, Any] = {
        "format": config.format,
        "shard_megabytes": config.shard_megabytes,
        "shorter_side": config.shorter_side,
        "quality": config.quality if smaller else None,
        "range": how.reading.range if smaller else None,
        "bands": how.reading.bands if smaller else None,
    }
    for of, images in sets.items():
        settings[f"{of}.count"] = len(images)
        settings[f"{of}.class_names"] = images.class_names
        settings[f"{of}{CHECKSUM}"] = checksum(images, config.format)
    return settings


# ── the shards ──────────────────────────────────────────────────────────────────────────────────


def _shards(
    config: Config, how: Encoding, of: str, images: Source, gap: Gap, advance: Advance
) -> Iterator[Finished]:
    """Write the shards of a gap in a set. Yields: each one, read back."""
    keeps = names_fit(images)
    labels, folder = images.labels, user_path(config.output)
    number, limit = gap.number, config.shard_megabytes * 1e6
    encode = partial(encoded, images, how)
    found = computed_each(encode, gap.range, config.num_workers, _TASK, images.name)
    stream = zip(gap.range, found, strict=True)
    following = next(stream, None)
    while following is not None:
        path = folder / f"{of}-{number:06d}.{config.format}"
        start, size = following[0], 0
        digests, unreadable = list[bytes](), dict[str, str]()
        shard = FORMATS[config.format]
        with (
            replacing(path) as temporary,
            shard(temporary, labels is not None, images.class_names) as add,
        ):
            # Unreadable images at the end belong to the shard, so that none is without an image.
            while following is not None and (size < limit or following[1].unreadable):
                index, image = following
                if image.unreadable:
                    unreadable[str(index)] = image.unreadable
                else:
                    name = images.name(index)
                    label = None if labels is None else int(labels[index])
                    add(Entry(member_of(name, index, keeps, image), name, label, image.data))
                    digests.append(image.digest)
                    size += len(image.data)
                advance()
                following = next(stream, None)
            if not digests:
                first = next(iter(unreadable.values()))
                raise ValueError(f"{config.data}: no image can be read; the first is {first}")
        _read_again(path, digests)
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        written = path.stat().st_size
        yield Finished(path.name, of, start, index + 1, len(digests), written, sha256, unreadable)
        number += 1


def _read_again(path: Path, digests: list[bytes]) -> None:
    """Read a shard back. OSError, and the shard is deleted, if it holds anything else."""
    try:
        same = list(read_back(path)) == digests
    except ValueError:
        same = False
    if not same:
        path.unlink()
        reason = "reads back other than it was written: the disk or the memory may be faulty"
        raise OSError(EIO, f"{reason}; the shard is deleted", str(path))


def _compare(folder: Path, sets: dict[str, Source], record: Record) -> None:
    """Open the shards as every verb does, and compare names, labels and classes with the source."""
    for of, images in sets.items():
        split: Split | None = None if of == WHOLE else "train" if of == "train" else "test"
        packed = open_source(str(folder), split=split)
        left_out = {int(i) for shard in record.of_set(of) for i in shard.unreadable}
        kept = [index for index in range(len(images)) if index not in left_out]
        labels = _labels_of(images)[kept]
        differing = ""
        if len(packed) != len(kept):
            differing = f"{len(packed)} images instead of {len(kept)}"
        elif any(packed.name(n) != images.name(index) for n, index in enumerate(kept)):
            differing = "other names of images"
        elif not torch.equal(_labels_of(packed), labels):
            differing = "other labels"
        elif bool((labels >= 0).any()) and packed.class_names != images.class_names:
            differing = "other names of classes"
        if differing:
            raise ValueError(
                f"{folder}: the shards read back with {differing}; are there other files in the "
                "folder? Move them elsewhere and repeat the command"
            )


def _labels_of(source: Source) -> Tensor:
    """Return the labels (n,), -1 where unknown."""
    return torch.full((len(source),), -1) if source.labels is None else source.labels
