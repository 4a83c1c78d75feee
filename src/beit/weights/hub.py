"""Weights by name: in this package (`beit:NAME`), published files (`published:NAME`), the Hugging
Face hub (`hf://OWNER/NAME`).

Downloads go into the caches that other programs share: those of torch.hub and huggingface_hub.
"""

import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

import torch

import beit
from beit.data.stores.hub import first_line, hub_errors, unreachable
from beit.weights import manifest
from beit.weights.download import download
from beit.weights.shards import INDEX, refuse_shard, weight_map

SHIPPED, PUBLISHED, HUB = SCHEMES = ("beit:", "published:", "hf://")
CARD, WEIGHTS = "README.md", "weights.safetensors"
# Weights in a repository or a folder, in order of preference (ours; those of transformers and
# timm, whole or in several files), and the files beside them with settings that shapes lack.
SETTINGS = ("config.json", "preprocessor_config.json")
THEIRS = ("model.safetensors", "pytorch_model.bin")
REPOSITORY_FILES: dict[str, tuple[str, ...]] = {WEIGHTS: ()} | {
    name: SETTINGS for file in THEIRS for name in (file, file + INDEX)
}
REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")  # OWNER/NAME
SHIPPED_FILES = Path(__file__).with_name("shipped")
SOURCE = re.compile(
    r"hf://(?P<repository>[^/@]+/[^/@]+)(@(?P<revision>refs/[^/]+/[^/]+|[^/]+))?(/(?P<file>.+))?"
)


def fetch(source: str) -> Path:
    """Return the local path of a named file; download it if it is not in the cache.

    Args:
        source: `beit:NAME`, `published:NAME`, or `hf://OWNER/NAME[@REVISION][/FILE]`; FILE defaults
            to the first of `REPOSITORY_FILES`; if it is an index, all files that it names are
            fetched too

    Raises:
        OSError: it is not in the cache and cannot be downloaded; says where to put it by hand.
        ValueError: the name is unknown, or the checksum differs from the published one.
    """
    if source.startswith(SHIPPED):
        return _shipped(source.removeprefix(SHIPPED))
    if source.startswith(PUBLISHED):
        return _published(manifest.find(source.removeprefix(PUBLISHED)))
    return _from_hub(source)


def weights_in(folder: Path) -> Path | None:
    """Return the weights in a folder with the files of a repository; None if it has none."""
    return next((folder / name for name in REPOSITORY_FILES if (folder / name).is_file()), None)


def location(source: str) -> tuple[str, str | None, str | None]:
    """Parse an hf:// source into repository, revision and file."""
    match = SOURCE.fullmatch(source)
    if match is None or match["repository"].startswith("datasets/"):
        raise ValueError(
            f"{source!r} does not name weights in the hub; "
            "expected hf://OWNER/NAME, hf://OWNER/NAME@REVISION or hf://OWNER/NAME/FILE"
        )
    return match["repository"], match["revision"], match["file"]


def push(repository: str, files: Mapping[str, Path], card: str, private: bool = False) -> str:
    """Upload files and a model card to the hub in one commit; return the repository's address.

    Args:
        repository: OWNER/NAME; created if it does not exist
        files: local paths by name in the repository
        card: Markdown, uploaded as README.md
        private: refuse an existing public repository; false: the owner's default visibility
    """
    from huggingface_hub import CommitOperationAdd, HfApi, get_token

    reason = unreachable()
    if reason is not None:
        raise OSError(f"the hub cannot be reached ({reason}); nothing was uploaded")
    if get_token() is None:
        raise ValueError("uploading needs a login to the hub: run `hf auth login`, or set HF_TOKEN")
    api = HfApi(library_name="beit", library_version=beit.__version__)
    try:
        address = str(api.create_repo(repository, private=private or None, exist_ok=True))
        if private and not api.model_info(repository).private:
            advice = "push to another one, or leave private out"
            raise ValueError(f"{address} exists and is public; {advice}")
        content = {CARD: card.encode()} | {name: str(path) for name, path in files.items()}
        operations = [CommitOperationAdd(name, source) for name, source in content.items()]
        message = f"Push with beit {beit.__version__}"
        api.create_commit(repository, operations, commit_message=message)
    except hub_errors() as error:
        raise OSError(f"{repository} could not be pushed: {first_line(error)}") from error
    return address


def shipped() -> dict[str, Path]:
    """Return the weights files in this package by name."""
    return {file.stem: file for file in sorted(SHIPPED_FILES.glob("*.safetensors"))}


def _shipped(name: str) -> Path:
    files = shipped()
    if name not in files:
        raise ValueError(
            f"this package has no weights called {name!r}; expected {SHIPPED} and one of "
            f"{', '.join(files)}"
        )
    return files[name]


def _published(file: manifest.PublishedFile) -> Path:
    path = Path(torch.hub.get_dir()) / "checkpoints" / file.file  # set by TORCH_HOME
    if path.is_file():
        manifest.check(path)
        return path
    try:
        download(file.url, path, file.sha256)
    except OSError as error:
        raise OSError(
            f"{file.file} is not in {path.parent} and could not be fetched from {file.url} "
            f"({first_line(error)}); without a network, download it elsewhere and put it "
            "there under this name, or give its path"
        ) from error
    return path


def _from_hub(source: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    repository, revision, file = location(source)
    refuse_shard(PurePosixPath(file or ""))
    reason = unreachable()  # if set, only the cache is searched

    def get(name: str) -> Path:
        options: dict[str, Any] = {"revision": revision, "local_files_only": reason is not None}
        options |= {"library_name": "beit", "library_version": beit.__version__}
        return Path(hf_hub_download(repository, name, **options))

    def get_shards(name: str, index: Path) -> None:
        for shard in sorted(set(weight_map(index).values())):
            try:
                get(str(PurePosixPath(name).with_name(shard)))
            except EntryNotFoundError as error:
                why = reason or first_line(error)
                raise OSError(f"{name} names {shard}, which is missing ({why})") from error

    candidates = REPOSITORY_FILES if file is None else {file: REPOSITORY_FILES.get(file, ())}
    try:
        for name, companions in candidates.items():
            try:
                path = get(name)
            except LocalEntryNotFoundError as error:
                reason = reason or first_line(error)
                continue
            except EntryNotFoundError:
                continue
            for companion in companions:
                with suppress(EntryNotFoundError):
                    get(companion)
            if name.endswith(INDEX):
                get_shards(name, path)
            return path
    except hub_errors() as error:
        raise OSError(
            f"{source} could not be fetched: {first_line(error)}. If the repository is private, "
            "run `hf auth login`, or set HF_TOKEN"
        ) from error
    raise _not_found(source, repository, [*candidates], reason)


def _not_found(source: str, repository: str, names: list[str], reason: str | None) -> OSError:
    """Say that a repository has none of the files; `reason` is why the hub was not asked."""
    if reason is not None:
        return OSError(
            f"{source} is not in the hub's cache, and the hub cannot be reached ({reason}); "
            f"without a network, download {' or '.join(names[:2])} elsewhere, with the .json files "
            f"beside it (hf download {repository}), and give the folder"
        )
    return FileNotFoundError(
        f"{source}: there is no {' nor '.join(names)}; "
        f"name one of its files, as in {HUB}{repository}/FILE"
    )
