"""What `beit pack` leaves in shards beside images and labels, and how sources read it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

RECORD = "pack.json"  # in the folder of the shards: what was packed, and what is finished
ABOUT = "__beit__"  # a member of each tar shard; other readers skip names without a dot
MARK = {b"beit": b'{"verb": "pack"}'}  # in the schema of Parquet shards: image.path is the name


class About(NamedTuple):
    """What a tar shard says of itself.

    Attributes:
        class_names: of the numbers in .cls files; None without names
        names: of images, by the member that holds them, where both differ
    """

    class_names: Sequence[str] | None
    names: Mapping[str, str]

    def encoded(self) -> bytes:
        """Return the content of the member `ABOUT`."""
        return json.dumps(self._asdict()).encode()


def read_about(content: bytes, where: str) -> About:
    """Read the member `ABOUT` of a shard. ValueError that names the shard if it is another one."""
    try:
        values = json.loads(content)
        names = values["class_names"]
        about = About(None if names is None else list(names), dict(values["names"]))
        for text in (*(about.class_names or ()), *about.names.values()):
            text.encode(errors="surrogateescape")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{where}: its member {ABOUT} is damaged: {error}; pack it anew"
        ) from error
    return about


def check_complete(folder: Path) -> None:
    """Refuse a folder of shards that are not all written. Raises ValueError."""
    try:
        record: Any = json.loads((folder / RECORD).read_text("utf-8"))
        complete = record.get("complete")
    except FileNotFoundError:
        return
    except (ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"{folder / RECORD}: not the record of beit pack: {error}") from error
    if complete is False:
        raise ValueError(
            f"{folder}: beit pack has not written all of its shards; repeat the command that "
            "writes them"
        )
