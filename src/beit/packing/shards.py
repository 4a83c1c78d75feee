"""Files of many images: tar as WebDataset names its members, Parquet as the hub lays it out.

The bytes of a shard depend on its images, names and labels alone: no time, no user, no settings
of the machine.
"""

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from beit.data.archives.files import TarFiles
from beit.data.archives.tar_index import CLASS
from beit.data.packed import ABOUT, MARK, About
from beit.data.pixels.decoding import ARRAY
from beit.data.stores.blob import LocalBlob
from beit.data.tabular.row_files import open_rows

_GROUP_BYTES = 1 << 20  # of images in a row group, which is read whole for any of them


class Entry(NamedTuple):
    """An image of a shard.

    Attributes:
        member: name of its file in a tar
        name: in the source
        label: its class, -1 if unknown; None if the source has no labels
        data: encoded
    """

    member: str
    name: str
    label: int | None
    data: bytes


Add = Callable[[Entry], None]
# Writes a file: of a path, whether its entries have labels, and the class names if known.
Shard = Callable[[Path, bool, Sequence[str] | None], AbstractContextManager[Add]]


@contextmanager
def tar_shard(path: Path, labelled: bool, class_names: Sequence[str] | None) -> Iterator[Add]:
    """Write a tar shard: key.jpg and key.cls for each image, and the member `ABOUT`.

    Raises ValueError for an array: no reader takes those in a tar as images.
    """
    names = dict[str, str]()
    with path.open("wb") as file:
        tar = tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT)

        def write(member: str, data: bytes) -> None:
            header = tarfile.TarInfo(member)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))

        def add(entry: Entry) -> None:
            if entry.member.endswith(ARRAY):
                raise ValueError(f"{entry.name}: an array, no image file; give --format parquet")
            write(entry.member, entry.data)
            if labelled:
                write(f"{os.path.splitext(entry.member)[0]}.{CLASS}", str(entry.label).encode())
            if entry.member != entry.name:
                names[entry.member] = entry.name

        yield add
        write(ABOUT, About(class_names, names).encoded())
        tar.close()


@contextmanager
def parquet_shard(path: Path, labelled: bool, class_names: Sequence[str] | None) -> Iterator[Add]:
    """Write a Parquet shard: a row of image {bytes, path} and label for each image."""
    import pyarrow
    from pyarrow import parquet

    image = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    fields: list[tuple[str, Any]] = [("image", image)]
    features: dict[str, dict[str, Any]] = {"image": {"_type": "Image"}}
    if labelled:
        fields.append(("label", pyarrow.int64()))
        features["label"] = {"_type": "ClassLabel", "names": class_names}
        if class_names is None:
            features["label"] = {"_type": "Value", "dtype": "int64"}
    hub = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    schema = pyarrow.schema(fields, metadata=MARK | hub)
    rows, held = list[dict[str, Any]](), 0
    with parquet.ParquetWriter(
        path, schema, compression="none", use_dictionary=False, write_statistics=False
    ) as writer:

        def flush() -> None:
            table = pyarrow.Table.from_pylist(rows, schema)
            writer.write_table(table, row_group_size=len(rows))
            rows.clear()

        def add(entry: Entry) -> None:
            nonlocal held
            held = (held if rows else 0) + len(entry.data)
            image = {"bytes": entry.data, "path": entry.name}
            rows.append({"image": image, "label": entry.label} if labelled else {"image": image})
            if held >= _GROUP_BYTES:
                flush()

        yield add
        if rows:
            flush()


FORMATS: dict[str, Shard] = {"tar": tar_shard, "parquet": parquet_shard}


def digest(name: str, data: bytes) -> bytes:
    """Digest an image and its name."""
    return hashlib.blake2b(os.fsencode(name) + b"\0" + data, digest_size=16).digest()


def read_back(path: Path) -> Iterator[bytes]:
    """Read a shard as trainings do. Yields: the digest of each image, in order."""
    if path.suffix == ".tar":
        files = TarFiles(LocalBlob(path))  # leaves its index beside it
        for index in range(len(files)):
            yield digest(files.name(index), files.read(index))
        return
    rows = open_rows(path)
    for group in range(len(rows.counts)):
        for image in rows.column([group], "image").to_pylist():
            yield digest(image["path"], image["bytes"])
