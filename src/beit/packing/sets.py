"""The sets of a source that become shards: one for each split, or all images."""

import hashlib
import logging
import os
import re
from pathlib import Path

from beit.data.source import Source
from beit.data.sources import open_source, open_test_split
from beit.data.spec import AS_IT_IS, Reading, split_part, split_query
from beit.data.splits import TRAINING, split_word
from beit.data.stamps import stamps
from beit.files import user_path

_log = logging.getLogger(__name__)

WHOLE = "images"  # name of a set without splits


def read_spec(spec: str) -> tuple[str, Reading]:
    """Return the name of a source without its options, and how it is read."""
    whole = split_part(spec)[0]
    return (whole, AS_IT_IS) if whole.startswith("shapes://") else split_query(whole)


def open_sets(spec: str) -> dict[str, Source]:
    """Open the images by the name of their set: that of a split, or `WHOLE`."""
    train = open_source(spec, split="train")
    try:
        test = open_test_split(spec, train)
    except ValueError as error:  # a split for training and no other
        _log.warning("%s: only the images for training are packed (%s)", spec, error)
        return {"train": train}
    if test is None:
        return {WHOLE: train}
    found = [split_word(word) for word in re.split(r"[\W\d_]+", test.name(0)) if split_word(word)]
    return {"train": train, next((w for w in found if w not in TRAINING), "test"): test}


def check_place(folder: Path, name: str) -> None:
    """Refuse an output inside the folder of the images."""
    root = user_path(name)
    if root.is_dir() and folder.resolve().is_relative_to(root.resolve()):
        raise ValueError(f"output is {folder}, inside {name}; name a folder outside of it")


def checksum(images: Source, form: str) -> str:
    """Digest names and labels, and sizes and times of local files."""
    digest = hashlib.blake2b(digest_size=16)
    for index, stamp in enumerate(stamps(images)):
        name = images.name(index)
        if form == "parquet" and not name.isascii():
            _check_utf8(name)
        digest.update(os.fsencode(name) + b"\0" + stamp.encode())
    if images.labels is not None:
        digest.update(images.labels.numpy().tobytes())
    return digest.hexdigest()


def _check_utf8(name: str) -> None:
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name!a}: a name that is not UTF-8, which Parquet cannot hold; rename the file, or "
            "use format tar"
        ) from error
