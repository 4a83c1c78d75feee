"""The images of a run that could not be read: `bad_images.jsonl` in its directory.

Hangs around the batches, so that loops and the journal need not know it.
"""

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from beit.data.batch import Batch
from beit.data.unreadable import NAME
from beit.files import write_text
from beit.run.reading import ImageBatches

FILE = "bad_images.jsonl"
_EVERY = 30  # seconds between two writings, besides the one at the end of the batches
_LOCK = threading.Lock()  # a thread can read batches ahead while others are validated


class NotedBatches:
    """Batches that note their unreadable images in a run directory: name, reason, times met.

    Processes and runs that share the directory add to one file.
    """

    def __init__(self, batches: ImageBatches, directory: str) -> None:
        self._batches, self._file = batches, Path(directory) / FILE
        self.num_images, self.source = batches.num_images, batches.source

    def __iter__(self) -> Iterator[Batch]:
        met, written = Counter[str](), time.monotonic()
        try:
            for batch in self._batches:
                met.update(batch.unreadable)
                if met and time.monotonic() - written > _EVERY:
                    written = time.monotonic()
                    note(self._file, met)
                yield batch
        finally:
            note(self._file, met)


def note(file: Path, met: Counter[str]) -> None:
    """Add "name: reason" and how often it was met to a file, and empty the counter.

    Nothing happens while there is no run directory, or if another process writes for long.
    """
    from filelock import FileLock, Timeout  # a dependency of torch

    if not met or not file.parent.is_dir():
        return
    try:
        with _LOCK, FileLock(file.with_name(f".{file.name}.lock"), timeout=_EVERY):
            lines = file.read_text("utf-8").splitlines() if file.exists() else []
            known = [json.loads(line) for line in lines]
            counts = Counter({(bad["name"], bad["reason"]): bad["met"] for bad in known})
            for text, count in met.items():
                name = NAME.findall(text)[0]
                plain = json.loads(name) if name.startswith('"') else name
                counts[plain, text[len(name) + 2 :]] += count
            bad = [{"name": n, "reason": r, "met": count} for (n, r), count in counts.items()]
            write_text(file, "".join(f"{json.dumps(image)}\n" for image in bad))
    except Timeout:
        return
    met.clear()
