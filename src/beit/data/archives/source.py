"""Images in archives and remote folders as a source."""

import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from beit.data.archives.files import Files, RemoteFiles, TarFiles, file_path
from beit.data.archives.tar_index import CLASS, LABEL
from beit.data.archives.zipped import ZippedFiles, wrapping, zip_members
from beit.data.folders.folder import labels_of
from beit.data.folders.layout import find_layout
from beit.data.folders.listing import listed, say_once
from beit.data.pixels.reduced import decode_reduced
from beit.data.source import UnreadableImage
from beit.data.spec import AS_IT_IS, Reading
from beit.data.splits import Split
from beit.data.stores.blob import Blob
from beit.data.stores.remote import files_below
from beit.data.tabular.columns import label_column
from beit.data.tabular.labels import joined
from beit.wording import some

_log = logging.getLogger(__name__)
_SAY_EVERY = 20  # seconds between two lines of progress


class FilesSource:
    """The images of one or more archives or remote folders.

    Their names are those inside the archive; one that several archives have gets that of its
    archive in front.
    """

    def __init__(
        self,
        parts: Sequence[Files],
        reading: Reading = AS_IT_IS,
        rows: Any = None,
        labels: Tensor | None = None,
        class_names: list[str] | None = None,
        why_unlabelled: str = "files named one by one have none",
        repeated: Any = None,
    ) -> None:
        """Keep what is given.

        Args:
            rows: numbers of the images that are taken, (n,) counted over all parts; None for all
            repeated: (all,) True where several parts have the name; None if no name is repeated
        """
        self._parts, self._reading, self._rows, self._repeated = parts, reading, rows, repeated
        self._starts = np.cumsum([0, *map(len, parts)])
        self.labels, self.class_names = labels, class_names
        self.why_unlabelled = why_unlabelled if labels is None else ""

    def __len__(self) -> int:
        return int(self._starts[-1]) if self._rows is None else len(self._rows)

    def image(self, index: int) -> Tensor:
        part, place = self._place(index)
        with self._located(index):
            return decode_reduced(part.read(place), part.name(place), self._reading)[0]

    def encoded(self, index: int) -> bytes:
        part, place = self._place(index)
        with self._located(index):
            return part.read(place)

    @contextmanager
    def _located(self, index: int) -> Iterator[None]:
        """Let errors of an image have its name in this source, and the archive."""
        try:
            yield
        except UnreadableImage as error:
            where = self._place(index)[0].where
            inside = f"{error.reason} (in {where})" if where else error.reason
            raise UnreadableImage(self.name(index), inside) from error

    def name(self, index: int) -> str:
        part, place = self._place(index)
        if self._repeated is not None and self._repeated[self._number(index)]:
            return f"{part.where.rpartition('/')[2]}/{part.name(place)}"
        return part.name(place)

    def file(self, index: int) -> Path | None:
        return file_path(self._place(index)[0])

    def _number(self, index: int) -> int:
        return index if self._rows is None else int(self._rows[index])

    def _place(self, index: int) -> tuple[Files, int]:
        number = self._number(index)
        part = int(np.searchsorted(self._starts, number, side="right")) - 1
        return self._parts[part], number - int(self._starts[part])


def open_zip(blob: Blob, reading: Reading, split: Split | None) -> FilesSource:
    """Open the images inside a zip like those of the folder that it would be unpacked to."""
    members = zip_members(blob)
    folder = wrapping(blob.name, (member.filename for member in members))
    files = ZippedFiles(blob, members, folder)
    return _of_folders([files], reading, split, [str(files.listing)])


def open_remote_folder(url: str, reading: Reading, split: Split | None) -> FilesSource:
    """Open the image files below a folder in a remote store like those of a folder on disk."""
    folder = url.rstrip("/") + "/"
    listing = listed(files_below(folder), folder)
    return _of_folders([RemoteFiles(folder, listing.images)], reading, split, [str(listing)])


def open_tars(blobs: Sequence[Blob], reading: Reading, split: Split | None) -> FilesSource:
    """Open tar shards, in order; in each, images are sorted by name.

    Files beside the images (`key.cls`, `key.txt`, `key.json`) give labels, as columns of a table
    do. Without any, folders inside the shards are taken like those on disk.

    Raises:
        ValueError: a shard cannot be read, or an option of `reading` fits none of them.
    """
    parts, said = list[TarFiles](), time.monotonic()
    for number, blob in enumerate(blobs, 1):
        parts.append(TarFiles(blob))
        if time.monotonic() - said > _SAY_EVERY:
            said = time.monotonic()
            _log.info("%s: indexed %d of %d shards, once", blob.where, number, len(blobs))
    where = f"{blobs[0].where}{f' and {len(blobs) - 1} more' if len(blobs) > 1 else ''}"
    notes = [f"{sum(map(len, parts))} images in {len(parts)} tar"]
    notes += dict.fromkeys(note for part in parts for note in part.about["notes"][1:])
    if not (reading.image or reading.label or any(part.about["samples"] for part in parts)):
        return _of_folders(parts, reading, split, notes)
    rows = _rows_of_ending(parts, reading.image, where)
    label, labels, names, why = _labels(parts, reading.label, where)
    if labels is not None and rows is not None:
        labels = labels[torch.from_numpy(rows)]
    source = FilesSource(parts, reading, rows, labels, names, why, _repeated(parts))
    found = why
    if labels is not None:
        found = f"labels of {int(torch.sum(labels >= 0))} from {label!r}"
    say_once(f"{where}: {'; '.join([*notes, found])}")
    return source


def _of_folders(
    parts: Sequence[Files], reading: Reading, split: Split | None, notes: list[str]
) -> FilesSource:
    """Take the folders in archives like those on disk: for classes, splits, masks."""
    where = parts[0].where
    if reading.label or reading.image:
        asked = "label" if reading.label else "image"
        raise ValueError(f"{where}: no columns, so {asked}= names nothing; leave it out")
    repeated = _repeated([part for part in parts if isinstance(part, TarFiles)])
    flat = all(isinstance(part, TarFiles) and not part.about["nested"] for part in parts)
    if flat:  # masks by name were left out by the index
        say_once(f"{where}: {'; '.join(notes)}")
        why = f"{where} has no class folders, and no .cls or .json beside the images"
        return FilesSource(parts, reading, None, None, None, why, repeated)
    names = [part.name(place) for part in parts for place in range(len(part))]
    number_of = {name: number for number, name in enumerate(names)}
    if len(number_of) < len(names):
        twice = next(name for number, name in enumerate(names) if number_of[name] != number)
        raise ValueError(f"{where}: several of the shards hold {twice}; rename or remove one")
    layout = find_layout(names, split, where)
    rows = np.array([number_of[image] for image in layout.images])
    labels, class_names, more = labels_of(layout)
    say_once(f"{where}: {'; '.join([*notes, *layout.notes, *more])}")
    return FilesSource(parts, reading, rows, labels, class_names, layout.why_unlabelled)


def _rows_of_ending(parts: Sequence[TarFiles], ending: str | None, where: str) -> Any:
    """Return the numbers of the images with an ending; None for all, if each sample has one."""
    endings = [part.column("ending") for part in parts]
    known = sorted({name for column in endings for name in column.dictionary.to_pylist()})
    if ending is None:
        if several := [names for part in parts if (names := part.about["several"])]:
            raise ValueError(
                f"{where}: a sample holds several images, as {some(several[0])}; choose one with "
                f"?image=ENDING, as in ?image={known[0]}"
            )
        return None
    if ending.lower() not in known:
        raise ValueError(f"{where}: no image ends in .{ending}; found {some(known)}")
    taken = []
    for column in endings:
        places = column.dictionary.to_pylist()
        number = places.index(ending.lower()) if ending.lower() in places else -1
        taken.append(np.from_dlpack(column.indices) == number)
    return np.flatnonzero(np.concatenate(taken))


def _labels(
    parts: Sequence[TarFiles], wanted: str | None, where: str
) -> tuple[str | None, Tensor | None, list[str] | None, str]:
    """Read the labels beside the images of all parts.

    Returns: the column, labels (all,) int64, the names of the classes, and why there are none
    """
    import pyarrow

    columns = _columns(parts)
    if not columns:
        if wanted:
            raise ValueError(f"{where}: no .cls, .txt or .json beside the images; leave label= out")
        return None, None, None, f"{where} holds no labels beside the images"
    label, why = label_column(columns, where, wanted or (CLASS if CLASS in columns else ""))
    if label is None:
        return None, None, None, why
    for part in parts:
        if reason := part.about["unusable"].get(label):
            raise ValueError(f"{where}: {label!r} {reason}; expected one number or name")
    labels, names, why = joined(_values(parts, label), f"{label!r} of {where}")
    pyarrow.default_memory_pool().release_unused()  # it keeps 150 MB of 14 million labels
    if labels is None and wanted:
        raise ValueError(f"{where}?label={label}: {why}")
    return label, labels, names, why


def _columns(parts: Iterable[TarFiles]) -> list[str]:
    """List the values and fields that lie beside the images."""
    found = dict[str, None]()
    for part in parts:
        names = (name.removeprefix(LABEL) for name in part.table.column_names if LABEL in name)
        found |= dict.fromkeys((*names, *part.about["unusable"]))
    return list(found)


def _values(parts: Sequence[TarFiles], label: str) -> list[tuple[Any, list[str] | None]]:
    """Return what lies beside the images, as `joined` takes it: one array if all are alike."""
    import pyarrow

    found = list[Any]()
    names = [part.about["class_names"] if label == CLASS else None for part in parts]
    for part in parts:
        has = LABEL + label in part.table.column_names
        found.append(part.column(LABEL + label) if has else pyarrow.nulls(len(part)))
    if len({array.type for array in found}) == 1 and names.count(names[0]) == len(names):
        return [(pyarrow.chunked_array(found), names[0])]
    return list(zip(found, names, strict=True))


def _repeated(parts: Sequence[TarFiles]) -> Any:
    """Return (all,) True where several shards have the name of an image; None if none is.

    Names are sorted in each shard. If the last one of each comes before the first one of the next,
    as is usual, no more is read; else digests of all names are compared. Packed shards keep the
    names and the order of their source, which may repeat some.
    """
    packed = [part.about["packed"] for part in parts]
    ends = sorted((part.name(0), part.name(len(part) - 1)) for part in parts)
    apart = all(end < start for (_, end), (start, _) in pairwise(ends))
    if all(packed) or (apart and not any(packed)):
        return None
    digests = [np.from_dlpack(part.column("digest")) for part in parts]
    ordered = np.concatenate(digests)
    ordered.sort()
    twice = ordered[1:][ordered[1:] == ordered[:-1]]
    return np.isin(np.concatenate(digests), twice) if len(twice) else None
