"""Weights by name: published files (`published:NAME`) and the Hugging Face hub (`hf://OWNER/NAME`).

Both keep what they fetch in the caches that other programs use: torch.hub's and huggingface_hub's.
"""

import re
import socket
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, cast
from urllib.parse import urlsplit

import torch

import beit
from beit.weights import manifest
from beit.weights.download import download

PUBLISHED, HUB = "published:", "hf://"
CARD, WEIGHTS = "README.md", "weights.safetensors"
# What a repository may hold, the first there is: ours, and that of transformers and timm, of which
# the numbers that shapes do not tell lie beside it.
REPOSITORY_FILES = {WEIGHTS: (), "model.safetensors": ("config.json", "preprocessor_config.json")}
ANSWER_SECONDS = 5  # a hub that takes longer to be connected to counts as out of reach
SOURCE = re.compile(
    r"hf://(?P<repository>[^/@]+/[^/@]+)(@(?P<revision>refs/[^/]+/[^/]+|[^/]+))?(/(?P<file>.+))?"
)


class Location(NamedTuple):
    """What an hf:// source names; revision and file where it does."""

    repository: str
    revision: str | None
    file: str | None


def fetch(source: str) -> Path:
    """Return the file that a name stands for, from the cache or else the network, checked.

    Args:
        source: `published:NAME`, or `hf://OWNER/NAME[@REVISION][/FILE]`: without a file that
            repository's weights.safetensors or model.safetensors

    Raises:
        OSError: it is not there and cannot be fetched; says which file to put where.
        ValueError: there is no such name, or the file has not the published checksum.
    """
    if source.startswith(PUBLISHED):
        return _published(manifest.find(source.removeprefix(PUBLISHED)))
    return _from_hub(source)


def cache() -> Path:
    """Return the folder of published files: torch.hub's, moved by TORCH_HOME."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def location(source: str) -> Location:
    """Take an hf:// source apart."""
    found = SOURCE.fullmatch(source)
    if found is None or found["repository"].startswith("datasets/"):
        raise ValueError(
            f"{source!r} does not name weights in the hub; "
            "expected hf://OWNER/NAME, hf://OWNER/NAME@REVISION or hf://OWNER/NAME/FILE"
        )
    return Location(found["repository"], found["revision"], found["file"])


def push(repository: str, files: Mapping[str, Path], card: str, private: bool = False) -> str:
    """Upload files and a model card to the hub in one commit; return the repository's address.

    Args:
        repository: OWNER/NAME; made if it is not there
        files: by their names in the repository
        card: Markdown, which becomes README.md
        private: make a new repository private, and refuse one that is there and public; else it
            is as the owner's repositories usually are
    """
    from huggingface_hub import CommitOperationAdd, HfApi, constants, get_token

    reason = _out_of_reach(constants.ENDPOINT)
    if reason is not None:
        raise OSError(f"the hub cannot be reached ({reason}); nothing was uploaded")
    if get_token() is None:
        raise ValueError("the hub takes uploads from its users only: `hf auth login`, or HF_TOKEN")
    api = HfApi(library_name="beit", library_version=beit.__version__)
    try:
        address = str(api.create_repo(repository, private=private or None, exist_ok=True))
        if private and not api.model_info(repository).private:
            raise ValueError(f"{address} is there and public; push to another, or not as private")
        api.create_commit(
            repository,
            [CommitOperationAdd(CARD, card.encode())]
            + [CommitOperationAdd(name, str(path)) for name, path in files.items()],
            commit_message=f"Push with beit {beit.__version__}",
        )
    except _hub_errors() as error:
        raise OSError(f"{repository} could not be pushed: {_first_line(error)}") from error
    return address


def _published(file: manifest.PublishedFile) -> Path:
    path = cache() / file.file
    if path.is_file():
        manifest.check(path)
        return path
    try:
        download(file.url, path, file.sha256)
    except OSError as error:
        raise OSError(
            f"{file.file} is not in {path.parent} and could not be fetched from {file.url} "
            f"({_first_line(error)}); where there is no network, fetch it elsewhere and put it "
            "there under this name, or give its path"
        ) from error
    return path


def _from_hub(source: str) -> Path:
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    repository, revision, file = location(source)
    # Asking first saves a minute of retries; a copy in the cache is used all the same.
    reason = _out_of_reach(constants.ENDPOINT)

    def get(name: str) -> Path:
        return Path(
            hf_hub_download(
                repository,
                name,
                revision=revision,
                local_files_only=reason is not None,
                library_name="beit",
                library_version=beit.__version__,
            )
        )

    wanted = {file: ()} if file is not None else REPOSITORY_FILES
    try:
        for name, companions in wanted.items():
            try:
                path = get(name)
            except LocalEntryNotFoundError as error:
                reason = reason or _first_line(error)
                continue
            except EntryNotFoundError:
                continue
            for companion in companions:
                try:
                    get(companion)
                except EntryNotFoundError:
                    continue
            return path
    except _hub_errors() as error:
        raise OSError(
            f"{source} could not be fetched: {_first_line(error)}. If the repository is private, "
            "log in by `hf auth login`, or set HF_TOKEN"
        ) from error
    if reason is not None:
        raise OSError(
            f"{source} is not in the hub's cache, and the hub cannot be reached ({reason}); where "
            f"there is no network, fetch {' or '.join(wanted)} elsewhere and give its path"
        )
    raise FileNotFoundError(
        f"{source}: there is no {' nor '.join(wanted)}; "
        f"name one of its files, as in {HUB}{repository}/FILE"
    )


def _out_of_reach(endpoint: str) -> str | None:
    """Say why the hub cannot be reached, quickly, or None if it answers."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    address = urlsplit(endpoint)
    if address.scheme in urllib.request.getproxies():  # which connects for us
        return None
    port = address.port or (80 if address.scheme == "http" else 443)
    try:
        socket.create_connection((address.hostname or "", port), timeout=ANSWER_SECONDS).close()
    except OSError as error:
        return _first_line(error)
    return None


def _hub_errors() -> tuple[type[Exception], ...]:
    """List what the hub raises; below it is an HTTP library that changes between releases."""
    from huggingface_hub.errors import HfHubHTTPError

    return (OSError, *cast(tuple[type[Exception], ...], HfHubHTTPError.__bases__))


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
