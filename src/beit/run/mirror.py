"""The process that passes a run on to trackers: `python -m beit.run.mirror RUN NAME ...`.

It reads lines from its standard input, the steps up to which the logs of the run are complete, and
`end` after the last one. Without `end`, the run was killed. Messages for the user go to standard
output, all that the trackers print to standard error. `beit.run.tracking` starts it.
"""

import base64
import json
import math
import os
import signal
import sys
from collections.abc import Callable, Iterable, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from beit.run.directory import RunDirectory
from beit.run.trackers import TRACKERS, Picture, Row, State, Tracker

PNG = "data:image/png;base64,"


class Logs:
    """Reads the lines of metrics.jsonl and speed.jsonl as they are written."""

    def __init__(self, directory: RunDirectory) -> None:
        self._places = {directory.metrics_file: 0, directory.speed_file: 0}
        self._speed, self._pending = directory.speed_file, dict[int, Row]()

    def rows(self, last: float) -> list[Row]:
        """Return the new rows up to a step, in their order."""
        for file in self._places:
            for record in self._records(file):
                self._add(record, "speed/" if file == self._speed else "")
        return [self._pending.pop(step) for step in sorted(self._pending) if step <= last]

    def _records(self, file: Path) -> Iterable[Mapping[str, Any]]:
        with file.open("rb") as opened:
            opened.seek(self._places[file])
            lines = opened.read().rpartition(b"\n")[0]
        self._places[file] += len(lines) + 1 if lines else 0
        return map(json.loads, lines.splitlines())

    def _add(self, record: Mapping[str, Any], prefix: str) -> None:
        step = record["step"]
        row = self._pending.setdefault(step, Row(step, None, {}, []))
        if prefix and "time" in record:
            self._pending[step] = row = row._replace(time=record["time"])
        for name, value in record.items():
            if name == "warning":
                row.warnings.append(str(value))
            elif name not in ("step", "time") and type(value) in (int, float):
                if math.isfinite(value):
                    row.values[prefix + name] = float(value)


def pictures_in(page: Path) -> list[Picture]:
    """Return the PNG images of a report."""
    pictures: list[Picture] = []

    class Parser(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            source = dict(attrs).get("src") or ""
            if tag == "img" and source.startswith(PNG):
                data = base64.b64decode(source.removeprefix(PNG))
                pictures.append(Picture(dict(attrs).get("alt") or "picture", data))

    Parser().feed(page.read_text(encoding="utf-8"))
    return pictures


class Mirror:
    """Passes a run on to trackers; one that fails is left out, after a message."""

    def __init__(
        self, directory: RunDirectory, names: Iterable[str], say: Callable[[str], object]
    ) -> None:
        self._directory, self._say, self._logs = directory, say, Logs(directory)
        self._trackers: dict[str, Tracker] = {}
        self._last = 0
        for name in names:
            self._attempt(name, self._open, name)

    def _open(self, name: str) -> None:
        state = State(self._directory.path / "tracking.json", name)
        self._trackers[name] = TRACKERS[name](self._directory, state)

    def update(self, last: float) -> None:
        """Pass on the rows up to a step."""
        rows = self._logs.rows(last)
        if rows:
            self._last = max(self._last, rows[-1].step)
            self._each(lambda tracker: tracker.log(rows))

    def close(self, finished: bool) -> None:
        """End the record; of a finished run pass on all that is left, and the report."""
        page = self._directory.report_file
        if finished:
            self.update(math.inf)
            if page.is_file():
                pictures = pictures_in(page)
                self._each(lambda tracker: tracker.report(self._last, page, pictures))
        self._each(lambda tracker: tracker.close(finished))

    def _each(self, action: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._trackers.items()):
            self._attempt(name, action, tracker)

    def _attempt(self, name: str, action: Callable[[Any], None], argument: Any) -> None:
        try:
            action(argument)
        except Exception as error:  # whatever another program raises
            self._trackers.pop(name, None)
            reason = " ".join(str(error).split())[:300]
            self._say(f"warning: {name} is left out from now on: {type(error).__name__}: {reason}")


def main() -> None:
    """Mirror the run until its training ends or dies."""
    for number in (signal.SIGINT, signal.SIGTERM):  # it ends when the training has ended
        signal.signal(number, signal.SIG_IGN)
    messages = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what trackers print
    path, *names = sys.argv[1:]

    def say(text: str) -> None:
        print(text, file=messages, flush=True)

    mirror, finished = Mirror(RunDirectory(Path(path)), names, say), False
    for line in sys.stdin:
        finished = line == "end\n"
        if not finished:
            mirror.update(int(line))
    mirror.close(finished)


if __name__ == "__main__":
    main()
