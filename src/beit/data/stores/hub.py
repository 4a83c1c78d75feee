"""Data sets in the Hugging Face hub: `hf://datasets/OWNER/NAME`, as Parquet files in its cache."""

import json
import re
import socket
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from pathlib import Path, PurePosixPath
from typing import Any, cast
from urllib.parse import urlsplit

from beit.data.folders.listing import say_once
from beit.data.kept import cache_folder
from beit.data.splits import Split, is_split
from beit.data.tabular.row_files import by_split, chosen
from beit.files import write_text

HUB = "hf://"
TIMEOUT_SECONDS = 5  # to connect to the hub
CONVERTED = "refs/convert/parquet"  # where the hub keeps sets that it has converted
_CONNECTIONS = 4
_SOURCE = re.compile(
    r"hf://datasets/(?P<repository>[^/@:]+/[^/@:]+)(@(?P<revision>refs/[^/]+/[^/:]+|[^/:]+))?"
    r"(/(?P<config>[^:]+?))?/?(:(?P<split>[\w.-]+))?"
)


def fetch_rows(source: str, split: Split | None) -> list[Path]:
    """Return the local Parquet files of a data set, downloaded unless they are in the hub's cache.

    Args:
        source: `hf://datasets/OWNER/NAME[@REVISION][/CONFIG][:SPLIT]`
        split: what the set is for, if the name has no SPLIT

    Raises:
        ValueError: the name is none, or the set has no Parquet files, or several configurations or
            splits and none is named.
        OSError: it is not in the cache and cannot be downloaded.
    """
    match = _SOURCE.fullmatch(source)
    if match is None:
        raise ValueError(
            f"{source!r} does not name a data set in the hub; expected "
            "hf://datasets/OWNER/NAME[@REVISION][/CONFIG][:SPLIT]"
        )
    repository = match["repository"]
    revisions = [match["revision"]] if match["revision"] else [None, CONVERTED]
    reason, known = unreachable(), list[str]()
    for revision in revisions:
        commit, files = _listed(source, repository, revision, reason)
        known += files
        rows = [file for file in files if file.lower().endswith(".parquet")]
        if rows:
            break
    else:
        found = sorted({PurePosixPath(file).suffix or file for file in known})
        raise ValueError(
            f"{source}: no Parquet files in this data set (it has {', '.join(found[:8])}); "
            f"download it (hf download --repo-type dataset {repository}) and give its folder"
        )
    taken = _of_split(source, _of_config(source, rows, match["config"]), match["split"], split)
    say_once(f"{source}: {len(taken)} of {len(rows)} Parquet files, at the commit {commit[:8]}")
    with ThreadPoolExecutor(_CONNECTIONS) as pool:
        return list(pool.map(lambda file: _fetched(source, repository, commit, file), taken))


def unreachable() -> str | None:
    """Say why the hub cannot be reached, or None. Checking first saves a minute of retries."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    address = urlsplit(constants.ENDPOINT)
    if address.scheme in urllib.request.getproxies():  # the proxy connects, not this machine
        return None
    port = address.port or (80 if address.scheme == "http" else 443)
    try:
        socket.create_connection((address.hostname or "", port), timeout=TIMEOUT_SECONDS).close()
    except OSError as error:
        return first_line(error)
    return None


def first_line(error: BaseException) -> str:
    """Return the first line of an error message, or the error's type if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def hub_errors() -> tuple[type[Exception], ...]:
    """List what huggingface_hub raises; its HTTP library differs between releases."""
    from huggingface_hub.errors import HfHubHTTPError

    return (OSError, *cast(tuple[type[Exception], ...], HfHubHTTPError.__bases__))


def _listed(
    source: str, repository: str, revision: str | None, reason: str | None
) -> tuple[str, list[str]]:
    """List the files of a data set, from the hub or, if that is out of reach, as listed before.

    Returns: the commit, and the files; none if the revision is `CONVERTED` and there is none.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RevisionNotFoundError

    name = blake2b(f"{repository}@{revision}".encode(), digest_size=16).hexdigest()
    kept = cache_folder("hub") / f"{name}.json"
    if reason is not None:
        try:
            commit, files = json.loads(kept.read_text("utf-8"))
            return commit, files
        except (OSError, ValueError) as error:
            if revision == CONVERTED:
                return "", []
            raise OSError(
                f"{source}: the hub cannot be reached ({reason}), and this data set was not opened "
                f"before; download it elsewhere (hf download --repo-type dataset {repository}) and "
                "give its folder"
            ) from error
    try:
        about: Any = HfApi(library_name="beit").dataset_info(repository, revision=revision)
    except RevisionNotFoundError as error:
        if revision == CONVERTED:
            return "", []
        raise ValueError(f"{source}: no such revision in this data set") from error
    except hub_errors() as error:
        raise OSError(
            f"{source} could not be listed: {first_line(error)}. If the data set is private or "
            "gated, run `hf auth login`, or set HF_TOKEN"
        ) from error
    files = sorted(sibling.rfilename for sibling in about.siblings or ())
    kept.parent.mkdir(parents=True, exist_ok=True)
    write_text(kept, json.dumps([about.sha, files]))
    return about.sha, files


def _of_config(source: str, rows: list[str], config: str | None) -> list[str]:
    """Choose the files of a configuration, by the folders that they lie in."""
    sets = dict[str, list[str]]()
    for file in rows:
        folders = PurePosixPath(file).parent.parts
        sets.setdefault("/".join(part for part in folders if not is_split(part)), []).append(file)
    if config is None and len(sets) == 1:
        return rows
    wanted = config or next((name for name in ("default", "data") if name in sets), None)
    if wanted in sets:
        return sets[wanted]
    what = f"no configuration {config!r}" if config else "several configurations"
    has = ", ".join(filter(None, sorted(sets))) or "one without a name"
    raise ValueError(
        f"{source}: {what}; it has {has}. Name one, as in hf://datasets/OWNER/NAME/CONFIG"
    )


def _of_split(source: str, rows: list[str], named: str | None, split: Split | None) -> list[str]:
    """Choose the files of a split: the named one, else the one for a purpose."""
    splits = by_split([Path(file) for file in rows], Path())
    if named is None:
        name = chosen([*splits], split, source, f"{source.rstrip('/')}:{min(splits)}")
        return [str(file) for file in splits[name]]
    found = dict[str, list[str]]()
    for file in rows:
        path = PurePosixPath(file)
        words = {*re.split(r"[-_.\d]+", path.stem), path.stem.split("-")[0], *path.parent.parts}
        for word in words:
            found.setdefault(word.lower(), []).append(file)
    if named.lower() not in found:
        has = f"it has {', '.join(sorted(splits))}"
        raise ValueError(f"{source}: no split {named!r}; {has}")
    return found[named.lower()]


def _fetched(source: str, repository: str, commit: str, file: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        options: dict[str, Any] = {"repo_type": "dataset", "revision": commit}
        return Path(hf_hub_download(repository, file, library_name="beit", **options))
    except LocalEntryNotFoundError as error:
        raise OSError(
            f"{source}: {file} is not in the hub's cache, and the hub cannot be reached"
        ) from error
    except hub_errors() as error:
        raise OSError(f"{source}: {file} could not be fetched: {first_line(error)}") from error
