"""The record of a folder of shards, `pack.json`: what is packed, and which shards are finished."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from beit.data.packed import RECORD
from beit.files import PARTIAL_SUFFIX, write_text
from beit.run import lock
from beit.run.settings import first

CHECKSUM = ".checksum"  # of names, labels and files of a set


class Finished(NamedTuple):
    """A shard that was written and read back.

    Attributes:
        file: its name
        set: of the images
        start, stop: the images of the source that it holds, but for unreadable ones
        images: that it holds
        bytes, sha256: of the file
        unreadable: "name: reason" by the number in the source
    """

    file: str
    set: str
    start: int
    stop: int
    images: int
    bytes: int
    sha256: str
    unreadable: dict[str, str]


class Gap(NamedTuple):
    """Images that are in no finished shard: `range` goes into the shard `number` and later ones."""

    number: int
    range: range


class Record:
    """The finished shards of a folder; a new folder has none."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        """Make and lock the folder, or read what an earlier call has finished.

        Raises:
            FileExistsError: the folder holds other files, or is a file
            ValueError: it holds shards of other settings
            BlockingIOError: another process packs into it
        """
        self.folder, self._settings = folder, json.loads(json.dumps(settings))
        self.shards = dict[str, Finished]()
        if folder.exists() and not folder.is_dir():
            raise FileExistsError(f"{folder} is a file; name a new folder for the shards")
        folder.mkdir(parents=True, exist_ok=True)
        lock.hold(folder)
        try:
            self.complete = self._read()
            if not self.complete:
                self._check_files()
        except (ValueError, OSError):
            (folder / lock.NAME).unlink()
            raise
        if not self.complete:
            self._save()

    def _read(self) -> bool:
        """Read an earlier record, and whether it is complete."""
        file = self.folder / RECORD
        again = f"repeat the earlier command, or delete {self.folder} to start again"
        try:
            values = json.loads(file.read_text("utf-8"))
            before, complete = {**values["settings"]}, bool(values["complete"])
            shards = [_finished(shard) for shard in values["shards"]]
        except FileNotFoundError:
            return False
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise ValueError(f"{file} cannot be read ({error}); {again}") from error
        now = self._settings
        names = [name for name in now | before if now.get(name) != before.get(name)]
        changed = [_difference(name, before.get(name), now.get(name)) for name in names]
        if changed:
            raise ValueError(f"{self.folder} holds other shards: {first(changed)}; {again}")
        for shard in shards:
            path = self.folder / shard.file
            if path.is_file() and path.stat().st_size == shard.bytes:
                self.shards[shard.file] = shard
        return complete and len(self.shards) == len(shards)

    def _check_files(self) -> None:
        """Refuse files that are no shards; remove the partial files of a killed call."""
        shard = rf"\w+-\d{{6}}\.{self._settings['format']}"
        known = re.compile(f"{RECORD}|{lock.NAME}|{shard}")
        begun = (self.folder / RECORD).exists()
        for path in sorted(self.folder.iterdir()):
            if path.name.startswith("."):
                if path.name.endswith(PARTIAL_SUFFIX):
                    path.unlink()
            elif not known.fullmatch(path.name) or not (begun or path.name == lock.NAME):
                advice = "move it elsewhere" if begun else "name a new folder for the shards"
                raise FileExistsError(f"{self.folder} holds {path.name}, no shard; {advice}")

    def add(self, shard: Finished) -> None:
        """Note a finished shard."""
        self.shards[shard.file] = shard
        self._save()

    def of_set(self, name: str) -> list[Finished]:
        """Return the finished shards of a set, in order."""
        return sorted((s for s in self.shards.values() if s.set == name), key=lambda s: s.start)

    def gaps(self, name: str, count: int) -> Iterator[Gap]:
        """Yield the missing parts of a set of `count` images."""
        number, stop = 0, 0
        for shard in self.of_set(name):
            if shard.start > stop:
                yield Gap(number, range(stop, shard.start))
            number, stop = int(Path(shard.file).stem.rpartition("-")[2]) + 1, shard.stop
        if stop < count:
            yield Gap(number, range(stop, count))

    def end(self, complete: bool) -> None:
        """Record whether all shards are finished and equal to the source."""
        self.complete = complete
        self._save()
        if complete:
            (self.folder / lock.NAME).unlink(missing_ok=True)

    def _save(self) -> None:
        shards = [self.shards[name]._asdict() for name in sorted(self.shards)]
        values = {"complete": self.complete, "settings": self._settings, "shards": shards}
        write_text(self.folder / RECORD, json.dumps(values, indent=1) + "\n")


def _finished(values: Any) -> Finished:
    """Check what a record says of a shard. Raises ValueError or TypeError."""
    shard = Finished(**values)
    kinds = (str, str, int, int, int, int, str, dict)  # of its fields
    if not all(isinstance(value, kind) for value, kind in zip(shard, kinds, strict=True)):
        raise ValueError(f"{values!r:.80} is no shard")
    return shard


def _difference(name: str, before: Any, now: Any) -> str:
    if name.endswith(CHECKSUM):
        of = name.removesuffix(CHECKSUM)
        return f"{of}: names, labels, sizes or times of its files have changed"
    return f"{name} was {before!r:.80}, is now {now!r:.80}"
