"""The index of a tar shard: where its images are, and what the files beside them say.

Built once, kept as an Arrow file beside the shard or in the user's caches, and mapped into memory.
"""

import functools
import json
import logging
import os
import posixpath
import tarfile
from collections import Counter, defaultdict
from collections.abc import Container, Iterator, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

from beit.data.archives.zipped import wrapping
from beit.data.folders.listing import listed
from beit.data.folders.masks import without_masks
from beit.data.kept import cache_folder
from beit.data.packed import ABOUT, About, read_about
from beit.data.pixels.decoding import extensions
from beit.data.stores.blob import Blob
from beit.data.tabular.labels import plain
from beit.files import replacing

_log = logging.getLogger(__name__)

LABEL = "label:"  # begins the names of columns that can hold labels
_FORMAT = 4  # raise it when the index changes
COLUMNS = {  # of every index, and their types
    "name": "binary",
    "start": "int64",
    "size": "int64",
    "digest": "uint64",
    "ending": "dictionary<values=string, indices=int32, ordered=0>",
}
_AHEAD = 1 << 23  # bytes of a remote shard that are read at once
_PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"(\xb5/\xfd": "zstd"}
CLASS = "cls"  # ending of the file beside an image that holds its class
_TEXTS = (CLASS, "txt")  # files beside an image that hold one value; .json holds fields
_LONGEST = 200  # characters of a value that can be a label
_MOST = 1 << 20  # bytes of a file beside an image
_MOST_ABOUT = 1 << 28


class Member(NamedTuple):
    """A file in a tar: where its bytes are, and its value or fields if it lies beside an image."""

    start: int
    size: int
    values: Mapping[str, Any] = {}


def read_index(blob: Blob) -> Any:
    """Return the index of a shard, a pyarrow table; build it unless one is kept that fits.

    Columns: name, start, size, ending (after the first dot of the name) and digest (of the name) of
    each image, sorted by name, or as they lie in a shard of `beit pack`; `LABEL` and a name for
    each that can hold labels, null where missing. `about_index` reads what is said of the whole.

    Raises:
        ValueError: the shard is compressed, cut, damaged, or holds no image.
    """
    import pyarrow
    from pyarrow import ipc

    key = {"format": _FORMAT, "size": blob.size, "stamp": blob.stamp}
    key |= {"endings": _endings()}
    for place in _places(blob):
        if (table := _kept(place, key)) is not None:
            return table
    table = _built(blob, key)
    for place in _places(blob):
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            with replacing(place, shared=True) as temporary:
                with ipc.new_file(str(temporary), table.schema) as file:
                    file.write_table(table)
            return ipc.open_file(pyarrow.memory_map(str(place))).read_all()
        except OSError as error:
            reason = f"{place.parent}: {error.strerror or error}"
    _log.warning(
        "%s: its index cannot be kept, and is built at each start (%s)", blob.where, reason
    )
    return table


@functools.cache
def _endings() -> str:
    return " ".join(sorted(extensions()))


def _kept(place: Path, key: Mapping[str, Any]) -> Any:
    """Return a kept index; None if there is none, or it is of another shard, damaged or forged."""
    import pyarrow
    from pyarrow import ipc

    try:
        table = ipc.open_file(pyarrow.memory_map(str(place))).read_all()
        table.validate(full=True)  # else forged offsets would read other memory, or abort
        columns = [table.column(name) for name in COLUMNS]
        about = about_index(table)
    except (OSError, pyarrow.ArrowException, LookupError, ValueError):
        return None
    whole = [column for column in columns if column.num_chunks == 1 and not column.null_count]
    types = [str(column.type) for column in whole]
    return table if about["key"] == key and types == list(COLUMNS.values()) else None


def about_index(table: Any) -> dict[str, Any]:
    """Return what an index says of its shard as a whole.

    key: of the shard that it was built from; samples: whether files beside images hold labels;
    nested: whether images lie in folders; several: example of a sample with several images;
    unusable: why columns cannot hold labels; notes: what was taken and what was not; packed: by
    `beit pack`; class_names: of the numbers in `cls`, null where unknown.
    """
    metadata = table.schema.metadata or {}
    text = metadata.get(b"beit", b"")
    if metadata.get(b"digest") != _checksum(text):
        raise ValueError("not an index, or a damaged one")
    about: dict[str, Any] = json.loads(text)
    return about


def _places(blob: Blob) -> Iterator[Path]:
    """Yield where an index can be kept: beside the shard, then in the user's caches."""
    if blob.path is not None:
        yield blob.path.with_name(f".{blob.name}.index")
    where = blob.where if blob.path is None else str(blob.path)
    name = blake2b(os.fsencode(where), digest_size=16).hexdigest()
    yield cache_folder("shards") / f"{name}.index"


def _built(blob: Blob, key: Mapping[str, Any]) -> Any:
    import pyarrow

    members, packed, notes = _members(blob)
    listing = listed((name for name, file in members.items() if not file.values), blob.where)
    names, unusable = listing.images, dict[str, str]()
    if packed is not None:
        taken = {*names}
        names = [name for name in members if name in taken]
    notes = [str(listing), *notes]
    values = defaultdict[str, dict[str, Any]](dict)
    for name, file in members.items():
        if file.values:
            values[os.path.splitext(name)[0]] |= file.values
    samples, nested = bool(values) or packed is not None, any("/" in name for name in names)
    if not samples and not nested:
        names, _, more = without_masks(names)
        notes += more
    endings = [_plain(posixpath.basename(name).partition(".")[2].lower()) for name in names]
    keys = [_key(name, values) for name in names]
    repeated = [key for key, count in Counter(keys).items() if count > 1 and samples]
    several = [name for name in names if repeated and name.startswith(f"{repeated[0]}.")]
    beside = [values.get(key, {}) for key in keys]
    encoded = [os.fsencode(packed.names.get(n, n) if packed else n) for n in names]
    columns: dict[str, Any] = {
        "name": pyarrow.array(encoded, pyarrow.binary()),
        "start": pyarrow.array([members[name].start for name in names], pyarrow.int64()),
        "size": pyarrow.array([members[name].size for name in names], pyarrow.int64()),
        "ending": pyarrow.array(endings).dictionary_encode(),
        "digest": pyarrow.array(map(_digest, encoded), pyarrow.uint64()),
    }
    for name in dict.fromkeys(name for fields in beside for name in fields):
        found = [fields.get(name) for fields in beside]
        if packed is not None and name == CLASS:
            found = [_number(value, blob.where) for value in found]
        if why := _why_unusable(found):
            unusable[name] = why
        else:
            columns[LABEL + name] = _encoded(found)
    about = {"key": key, "samples": samples, "nested": nested, "several": several[:3]}
    about |= {"unusable": unusable, "notes": notes, "packed": packed is not None}
    about["class_names"] = packed.class_names if packed else None
    text = json.dumps(about).encode()
    return pyarrow.table(columns).replace_schema_metadata({"beit": text, "digest": _checksum(text)})


def _key(name: str, values: Container[str]) -> str:
    """Return what an image shares with the files beside it: the name up to its first dot.

    Up to its last one if there are files of that name, as IMG.1.cls beside IMG.1.jpg.
    """
    stem = os.path.splitext(name)[0]
    folder, base = posixpath.split(name)
    return stem if stem in values else posixpath.join(folder, base.partition(".")[0])


def _members(blob: Blob) -> tuple[dict[str, Member], About | None, list[str]]:
    """Read the headers of a tar: its files by name, the last one of each; ABOUT of one; notes."""
    about: About | None = None
    found, links, notes = dict[str, Member](), dict[str, str](), list[str]()
    with blob.open(_AHEAD) as file:
        start = file.read(6)
        if packed := [name for mark, name in _PACKED.items() if start.startswith(mark)]:
            raise ValueError(_compressed(blob.where, packed[0]))
        file.seek(0)
        name = "its begin"
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                while (member := tar.next()) is not None:
                    tar.members.clear()  # type: ignore[attr-defined]  # it would keep all of them
                    name = posixpath.normpath(member.name).lstrip("/")
                    if member.issparse():
                        raise ValueError(f"{blob.where}: {name} is a sparse file; pack it anew")
                    if member.islnk() or member.issym():
                        links[name] = _target(name, member)
                    elif name == ABOUT and member.isreg() and member.size <= _MOST_ABOUT:
                        file.seek(member.offset_data)
                        about = read_about(file.read(member.size), blob.where)
                    elif member.isreg():
                        found[name] = _member(file, name, member, blob.where)
                end = tar.offset
        except tarfile.TarError as error:
            raise ValueError(_damaged(blob, name, str(error))) from error
        file.seek(end)
        mark = file.read(tarfile.BLOCKSIZE)
    if mark.strip(b"\0"):
        raise ValueError(_damaged(blob, name, f"no header of a file at byte {end}"))
    if len(mark) < tarfile.BLOCKSIZE:
        _log.warning("%s has no mark at its end: files behind %s may be missing", blob.where, name)
    for name, target in links.items():
        if target in found:
            found[name] = found[target]
    if missing := [name for name in links if name not in found]:
        notes.append(f"not read: {len(missing)} links to files outside, such as {missing[0]}")
    if about is None and (folder := wrapping(blob.name, found)):
        found = {name.removeprefix(folder): file for name, file in found.items()}
    return found, about, notes


def _target(name: str, link: tarfile.TarInfo) -> str:
    """Return the file that a link stands for; symbolic ones are relative to their folder."""
    if link.issym():
        return posixpath.normpath(posixpath.join(posixpath.dirname(name), link.linkname))
    return posixpath.normpath(link.linkname).lstrip("/")


def _member(file: Any, name: str, member: tarfile.TarInfo, where: str) -> Member:
    ending = name.rpartition(".")[2].lower()
    values = dict[str, Any]()
    if ending in (*_TEXTS, "json") and member.size <= _MOST:
        file.seek(member.offset_data)
        values = dict(_values(file.read(member.size), ending, f"{where}: {name}"))
    return Member(member.offset_data, member.size, values)


def _values(content: bytes, ending: str, where: str) -> Iterator[tuple[str, Any]]:
    """Read a file beside an image: one value by its ending, or the fields of JSON."""
    try:
        text = content.decode("utf-8-sig")
        fields = {ending: text.strip()} if ending in _TEXTS else json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: not readable as {ending}: {error}") from error
    if isinstance(fields, dict):
        yield from ((str(name), value) for name, value in fields.items() if value is not None)


def _number(value: Any, where: str) -> int:
    try:
        return int(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {value!r} in a .{CLASS} file; expected a number") from error


def _why_unusable(values: list[Any]) -> str:
    """Say why values cannot be labels; empty if they can."""
    for value in values:
        if isinstance(value, dict | list):
            return "holds lists or fields of its own"
        if isinstance(value, str) and len(value) > _LONGEST:
            return f"holds texts of over {_LONGEST} characters"
    return ""


def _encoded(values: list[Any]) -> Any:
    import pyarrow

    try:
        return pyarrow.array(values).dictionary_encode()
    except (pyarrow.ArrowException, OverflowError, UnicodeError):  # several types, huge numbers
        known = map(plain, values)
        text = [None if value is None else _plain(str(value)) for value in known]
        return pyarrow.array(text).dictionary_encode()


def _plain(text: str) -> str:
    """Write what is no UTF-8 with backslashes."""
    return text.encode(errors="backslashreplace").decode()


def _digest(name: bytes) -> int:
    return int.from_bytes(blake2b(name, digest_size=8).digest(), "little")


def _checksum(text: bytes) -> bytes:
    return blake2b(text, digest_size=16).hexdigest().encode()


def _damaged(blob: Blob, last: str, reason: str) -> str:
    return (
        f"{blob.where}: cut or damaged: {reason}, after {last}; {blob.size} bytes are there. Copy "
        "or download it again"
    )


def _compressed(where: str, how: str) -> str:
    tool = {"gzip": "gunzip", "bzip2": "bunzip2", "xz": "unxz", "zstd": "unzstd"}[how]
    return (
        f"{where}: compressed by {how}, so that no image in it can be read without all before it; "
        f"decompress it once: {tool} FILE (images are compressed already, so it hardly grows)"
    )
