"""The manifest of published files: name, address, contents, sizes and checksum of each."""

import functools
import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from beit.wording import nearest

logger = logging.getLogger(__name__)

MANIFEST = Path(__file__).with_name("published_files.yaml")


@dataclass(frozen=True)
class PublishedFile:
    """One published file.

    Attributes:
        name: NAME in `published:NAME`
        file: file name on disk
        what: contents, in words
        model: class of the model that beit builds from it
        shapes: sizes by name, such as width, depth, image, patch, codes, classes
        sha256: first hexadecimal digits of the checksum; None if not published
        settings: default overrides for beit.load, which the file does not contain
    """

    name: str
    file: str
    url: str
    what: str
    model: str
    shapes: Mapping[str, int]
    sha256: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


@functools.cache
def published_files() -> Mapping[str, PublishedFile]:
    """Read the manifest; return the files by name."""
    files = {}
    for group in yaml.safe_load(MANIFEST.read_text(encoding="utf-8")):
        for name, about in group["files"].items():
            at = about.get("at", f"{name}.pth")
            files[name] = PublishedFile(
                name=name,
                file=about.get("file", at.rpartition("/")[2]),
                url=group["address"] + at,
                what=about["what"],
                model=about["model"],
                shapes=about["shapes"],
                sha256=about.get("sha256"),
                settings=group.get("settings", {}),
            )
    return files


def names() -> list[str]:
    """List the published files by name."""
    return list(published_files())


def of_file(file_name: str) -> PublishedFile | None:
    """Return the published file with this file name; None if there is none."""
    return next((file for file in published_files().values() if file.file == file_name), None)


def find(name: str) -> PublishedFile:
    """Look up a published file by NAME or by file name."""
    files = published_files()
    if file := files.get(name) or of_file(name):
        return file
    hint = nearest(name, [*files, *(file.file for file in files.values())])
    raise ValueError(
        f"no published file is called {name!r}{hint or '.'} "
        "beit.weights.manifest.names() lists them, docs/hub.md describes them"
    )


def is_of_imagenet(file_name: str) -> bool:
    """Whether a file name is that of a published classifier, all of which are of ImageNet."""
    file = of_file(file_name)
    return file is not None and file.model == "ImageClassifier"


def check(path: Path) -> PublishedFile | None:
    """Return the published file with the file name of `path`, or None; refuse another checksum."""
    file = of_file(path.name)
    if file is not None and file.sha256 is not None:
        checksum = sha256_of(path)
        if not checksum.startswith(file.sha256):
            raise ValueError(
                f"{path} has the name of a published file, but its sha256 begins with "
                f"{checksum[: len(file.sha256)]} instead of {file.sha256}: it is damaged or a "
                f"different file; download it again from {file.url}, or rename it if it is yours"
            )
    return file


def settings(file: PublishedFile, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Add the file's default settings to the caller's overrides, which take precedence."""
    added = {name: value for name, value in file.settings.items() if name not in overrides}
    if added:
        logger.info("%s: published with %s", file.file, added)
    return {**added, **overrides}


def sha256_of(path: Path) -> str:
    """Compute the sha256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def table() -> str:
    """Format the manifest as the Markdown table in docs/hub.md."""
    rows = ["| `published:…` | what it is | sizes | sha256 |", "|---|---|---|---|"]
    for file in published_files().values():
        sizes = ", ".join(f"{name.replace('_', ' ')} {size}" for name, size in file.shapes.items())
        checksum = f"`{file.sha256[:8]}…`" if file.sha256 else "not published"
        rows.append(f"| [{file.name}]({file.url}) | {file.what} | {sizes} | {checksum} |")
    return "\n".join(rows) + "\n"
