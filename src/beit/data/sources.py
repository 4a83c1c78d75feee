"""Open a source of images by one string: files on disk, in a store or the hub, or drawn shapes."""

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from beit.data.archives.files import RemoteFiles
from beit.data.archives.source import FilesSource, open_remote_folder, open_tars, open_zip
from beit.data.cached import cached
from beit.data.folders.folder import open_folder
from beit.data.folders.image_files import FileSource
from beit.data.folders.listing import list_folder, say_once
from beit.data.folders.lists import check_file, read_list
from beit.data.mixture import MixedSource, weights_of
from beit.data.own_code import OWN, refuse_file
from beit.data.own_images import OwnSource
from beit.data.packed import check_complete
from beit.data.pixels.decoding import ARRAY, PLUGINS, extensions
from beit.data.shapes import ShapesSource
from beit.data.shrinking import Shrinking
from beit.data.source import (
    PartSource,
    Source,
    UnreadableImage,
    encoded_of,
    file_of,
    limited,
)
from beit.data.spec import Reading, cut, expected, split_part, split_query
from beit.data.splits import Split
from beit.data.stores.hub import HUB, fetch_rows
from beit.data.stores.patterns import ending_of, expanded, open_blob, open_blobs
from beit.data.stores.remote import RemoteBlob, is_remote, read_whole
from beit.data.tabular.columns import ENCODED, FILE
from beit.data.tabular.label_tables import labelled_folder, open_table
from beit.data.tabular.row_files import ENDINGS as ROWS
from beit.data.tabular.row_files import nested_row_files, one_split, row_files
from beit.data.tabular.rows import images_of_rows, open_row_files
from beit.data.tabular.text_tables import ENDINGS as TABLES
from beit.data.tabular.text_tables import splits_in
from beit.files import user_path
from beit.wording import near_path

KINDS = (
    "a folder of images, *.parquet or *.arrow files, *.tar shards, a .zip, a .csv, .tsv or .jsonl "
    "table of files, hf://datasets/OWNER/NAME, shapes://COUNT?size=64&seed=0, python:MODULE:NAME, "
    "or a part of one, as in folder[:90%]; files also in a store, as s3://bucket/{00..99}.tar; or "
    "image files, also as cells/*.tif, or @FILE that lists them"
)
FILES = (*ROWS, ".tar", ".zip")
_PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tar.lz4")
STANDARD_INPUT = ("-", ["-"])  # as data of `open_images`


def open_source(
    spec: str | Sequence[str],
    *,
    split: Split | None = None,
    cache_gigabytes: float = 0.0,
    limit: int | None = None,
    shrinking: Shrinking | None = None,
) -> Source:
    """Open a source of images.

    `source.image(i)` is image i, (3, H, W) uint8; `labels` and `class_names` are None if unknown.

    Args:
        spec: one string (see `KINDS`), or several paths of image files, whose order is kept
        split: what the set is for, if the data hold several splits; None for all images
        cache_gigabytes: keep the images decoded in memory if they fit into this size
        limit: use this many images, a fixed random subset; smaller limits give subsets of larger
        shrinking: shrink images once they are decoded
    """
    paths = [spec] if isinstance(spec, str) else spec or [""]
    if len(paths) == 1:
        source = _open(paths[0], split, shrinking)
    else:
        names, readings = zip(*map(split_query, paths), strict=True)
        if len({*readings}) > 1:
            raise ValueError(f"{paths[0]}, ...: give the same options after each of the files")
        files = [file for name in names for file in expanded(name) or [name]]
        source = _open_image_files(files, readings[0]._replace(shrinking=shrinking))
    source = limited(source, limit)
    if cache_gigabytes < 0:
        raise ValueError(f"cache_gigabytes must not be negative, got {cache_gigabytes}")
    if cache_gigabytes == 0:
        return source
    return cached(source, int(cache_gigabytes * 1e9), shrunk=shrinking is not None)


def open_test_split(spec: str, train: Source) -> Source | None:
    """Open the data's own images for validation and testing; None if it has no splits.

    Args:
        train: opened from `spec` for training

    Raises:
        ValueError: there is a split for training and no other
    """
    test = open_source(spec, split="test")
    return None if _beginning(test) == _beginning(train) else test


def _beginning(source: Source) -> tuple[int, str, Path | None, bytes | None]:
    """Return what tells a split from another, which may have as many images, of the same names."""
    file, stored = file_of(source, 0), None
    if file is None:  # in a store
        with suppress(UnreadableImage):
            stored = encoded_of(source, 0)
    return len(source), source.name(0), file, stored


def open_images(data: str | Sequence[str], limit: int | None) -> Source:
    """Open data like `open_source`; for "-" read a list of files from standard input."""
    if data in STANDARD_INPUT:
        return limited(read_list(sys.stdin.buffer.read(), "standard input"), limit)
    return open_source(data, limit=limit)


def _open(spec: str, split: Split | None, shrinking: Shrinking | None) -> Source:
    if not spec:
        raise ValueError(f"no data given: expected {KINDS}")
    whole, part = split_part(spec)
    if part is not None:
        source = _open(whole, split, shrinking)
        return PartSource(source, cut(source, part))
    if weights := weights_of(spec):
        if split != "train":
            raise ValueError(f"{spec}: a mixture is for training images; name one set here")
        parts = [_open(name, split, shrinking) for name in weights]
        return MixedSource(list(weights), parts, list(weights.values()))
    if spec.startswith("shapes://"):
        return ShapesSource.from_spec(spec)
    if spec.startswith(OWN) and not os.path.exists(spec):  # a file that a shell has named
        return OwnSource(spec, shrinking)
    refuse_file(spec)
    name, reading = split_query(spec)
    reading = reading._replace(shrinking=shrinking)
    right = expected(name, KINDS)
    if name.startswith("@") and not os.path.exists(name):
        return _open_list(name, reading)
    if name.startswith(HUB):
        return open_row_files(fetch_rows(name, split), reading, None)
    names = expanded(name)
    if names is not None:
        return _open_files(name, names, reading, split, right)
    if is_remote(name):
        return _open_remote(name, reading, split)
    path = user_path(name)
    if not path.exists():
        hint = near_path(path) or ("" if _names_file(name) else f"; expected {right}")
        raise FileNotFoundError(f"{name}: no such file or folder{hint}")
    if path.is_dir():
        return _open_folder(path, reading, split)
    ending = ending_of(name)
    if ending in FILES or ending in _PACKED:
        return _open_files(name, [name], reading, split, right)
    if ending in TABLES:
        return open_table(path, reading, split)
    if ending in (*extensions(), ARRAY):
        return _open_image_files([name], reading)
    if ending in PLUGINS:
        raise ValueError(f"{name}: install {PLUGINS[ending]} to read this image")
    raise ValueError(f"{name}: neither a folder nor a table of images; expected {KINDS}")


def _open_files(
    pattern: str, names: list[str], reading: Reading, split: Split | None, right: str
) -> Source:
    """Open files of rows, archives of one kind or images, which a pattern or name stands for."""
    files = [name for name in names if ending_of(name) in (*FILES, *_PACKED)]
    endings = sorted({*map(ending_of, files)})
    if not files:
        if images := [name for name in names if ending_of(name) in (*extensions(), ARRAY)]:
            return _open_image_files(images, reading)
        if _names_file(pattern):
            raise FileNotFoundError(f"{pattern}: no such file matches")
        none = "no image, rows, tar or zip matches" if right == KINDS else "no such data"
        raise FileNotFoundError(f"{pattern}: {none}; expected {right}")
    if packed := [name for name in files if ending_of(name) in _PACKED]:
        raise ValueError(
            f"{packed[0]}: no image in a compressed archive can be read without all before it; "
            "decompress it once, to a .tar (images are compressed already, so it hardly grows)"
        )
    if set(endings) <= {*ROWS}:
        rows = [RemoteBlob(name) if is_remote(name) else user_path(name) for name in files]
        if missing := [row for row in rows if isinstance(row, Path) and not row.is_file()]:
            raise FileNotFoundError(f"{missing[0]}: no such file; {pattern} names it")
        return open_row_files(rows, reading, split)
    if len(endings) > 1 or (endings == [".zip"] and len(files) > 1):
        kinds = f"{len(files)} files that end in {', '.join(endings)}"
        raise ValueError(f"{pattern}: {kinds}; expected tar shards, files of rows, or one zip")
    if endings == [".zip"]:
        return open_zip(open_blob(files[0]), reading, split)
    return open_tars(open_blobs(files), reading, split)


def _names_file(name: str) -> bool:
    """Tell by its ending whether a name is that of a file of a known kind."""
    return ending_of(name) in (*FILES, *_PACKED, *TABLES, *extensions(), ARRAY)


def _open_image_files(names: Sequence[str], reading: Reading) -> Source:
    """Open image files in this order, all of them on disk or all in a store."""
    if all(map(is_remote, names)):
        return FilesSource([RemoteFiles("", list(names))], reading)
    for name in names:
        check_file(name)
    return FileSource(Path(), names, reading)


def _open_remote(url: str, reading: Reading, split: Split | None) -> Source:
    ending = ending_of(url)
    if ending in FILES or ending in _PACKED:
        return _open_files(url, [url], reading, split, KINDS)
    if ending in (*extensions(), ARRAY):
        return _open_image_files([url], reading)
    return open_remote_folder(url, reading, split)


def _open_list(name: str, reading: Reading) -> Source:
    if is_remote(name[1:]):
        return read_list(read_whole(name[1:]), name, reading, name[1:].rpartition("/")[0])
    return read_list(user_path(name[1:]).read_bytes(), name, reading)


def _open_folder(path: Path, reading: Reading, split: Split | None) -> Source:
    """Open the rows of Parquet or Arrow files in a folder, or its images, with a table of labels.

    Encoded images in rows count more than image files. One file of rows that only names files is a
    table beside the images, if there are any; one without either is not read then. Tar shards are
    read if there is neither.
    """
    check_complete(path)
    tables = list[Path]()
    if files := row_files(path, split):
        count, holds = _count_images(path), images_of_rows(files[0], reading)
        several = len(files) > 1 or any(splits_in(file.stem) for file in files)
        if not count or holds == ENCODED or (holds == FILE and several):
            if count:
                what = f"{path}: takes the rows of {files[0].name}, not the {count} image files"
                say_once(f"{what}; to take those, move *{files[0].suffix} elsewhere")
            return open_row_files(files, reading, split)
        tables = files if holds == FILE else []
        if not tables:
            say_once(f"{path}: not read: {holds}")
    try:
        folder = open_folder(path, reading, split)
    except ValueError:  # without images
        if files := nested_row_files(path, split):
            return open_row_files(files, reading, split)
        if shards := sorted(path.glob("*.tar")):
            names = [str(shard) for shard in one_split(shards, split, path)]
            return open_tars(open_blobs(names), reading, split)
        raise
    return labelled_folder(path, folder, reading, split, tables)


def _count_images(folder: Path) -> int:
    try:
        return len(list_folder(folder).images)
    except ValueError:  # none
        return 0
