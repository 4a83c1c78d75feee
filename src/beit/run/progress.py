"""The progress of a run: a live line on a terminal or in a notebook, otherwise plain lines."""

import html
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, Self, TextIO

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

WINDOW_SECONDS = 30.0  # speed is measured over this time
EARLY = (1, 2, 4)  # first steps with a line of their own
SHOWN = 3  # metrics on a line
LINE_STYLE = "font-family:monospace;white-space:nowrap;overflow:hidden;text-overflow:ellipsis"
NOTEBOOK_SECONDS = 0.5  # time between two updates of a notebook's line


class Speed(NamedTuple):
    """The speed of the last steps.

    Attributes:
        images_per_second: 0 before the second update
        seconds_left: until the end of the run; None while unknown
        wait_share: share of the time spent waiting for data, in [0, 1]
    """

    images_per_second: float
    seconds_left: float | None
    wait_share: float


class _Mark(NamedTuple):
    seconds: float
    step: int
    images: int
    wait_seconds: float


class Progress:
    """Shows the progress of a run; a context manager, which restores the terminal."""

    def __init__(
        self,
        total_steps: int,
        start_step: int = 0,
        enabled: bool = True,
        *,
        stream: TextIO | None = None,
        line_seconds: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Show nothing yet.

        Args:
            total_steps: of the whole run
            start_step: steps already done, in a resumed run
            enabled: False measures without showing, for processes other than the first
            stream: to write to; None for standard error
            line_seconds: time between two plain lines, and between two calls of `latest`
            clock: returns seconds from any origin
        """
        self._total_steps, self._start_step, self._step = total_steps, start_step, start_step
        self._clock, self._line_seconds = clock, line_seconds
        self._aside_seconds, self._aside = 0.0, ""
        self._part, self._part_started = (0, 0), 0.0
        self._metrics: dict[str, float] = {}
        self._marks = deque([_Mark(self._now(), start_step, 0, 0.0)])
        self._speed, self._last_line = Speed(0.0, None, 0.0), clock()
        self._stream: TextIO | None = (stream or sys.stderr) if enabled else None
        self._live: Live | None = None
        self._in_notebook = type(self._stream).__module__.startswith("ipykernel.")
        self._display: Any = None  # of IPython, the line of a notebook
        self._last_shown = float("-inf")
        if self._stream is not None and self._stream.isatty():
            console = Console(file=self._stream, highlight=False)
            if not console.is_dumb_terminal:
                self._live = Live(
                    console=console,
                    get_renderable=self._render,
                    refresh_per_second=4,
                    redirect_stdout=sys.stdout.isatty(),  # not if it goes to a file
                )

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
        self._show()

    def update(
        self,
        step: int,
        metrics: Mapping[str, float],
        images: int,
        wait_seconds: float,
        latest: Callable[[], Mapping[str, float]] | None = None,
    ) -> Speed:
        """Record the steps done and return their speed.

        Args:
            step: steps done since the run began
            metrics: to show, in order; others keep their last value
            images: in the steps since the last update, over all processes
            wait_seconds: total time spent waiting for data, `Prefetch.wait_seconds`
            latest: returns newer metrics; since it may wait for the device, it is called in the
                first process only, after the first steps and then once in `line_seconds`
        """
        self._step = step
        self._metrics = {**self._metrics, **metrics}  # new: the live line may be reading the old
        last = self._marks[-1]
        self._marks.append(_Mark(self._now(), step, last.images + images, wait_seconds))
        self._speed = self._measure()
        early = latest is not None and step - self._start_step in EARLY
        self._refresh(early or step >= self._total_steps, latest)
        return self._speed

    def part(self, done: int, total: int) -> None:
        """Record how much of what is done `aside` is done; 0 starts its clock."""
        self._part_started = self._part_started if done else self._clock()
        self._part = (done, total)
        self._refresh()

    def message(self, text: str) -> None:
        """Print a line above the live one."""
        if self._live is not None:
            self._live.console.print(Text(text), soft_wrap=True)
        elif self._in_notebook:
            print(text, flush=True)  # notebooks colour standard error as a fault
        elif self._stream is not None:
            print(text, file=self._stream, flush=True)

    def warn(self, text: str) -> None:
        """Print a line from any process: above the live one, or to standard error."""
        shown = self._live is not None or self._stream is not None
        self.message(text) if shown else print(text, file=sys.stderr, flush=True)

    @contextmanager
    def aside(self, what: str) -> Iterator[None]:
        """Name what is done between two steps, such as a validation, and exclude its time."""
        started = self._clock()
        self._aside, self._part = what, (0, 0)
        self._show()
        try:
            yield
        finally:
            self._aside = ""
            self._aside_seconds += self._clock() - started
            self._show()

    def line(self) -> str:
        """Return the current line."""
        return " · ".join([f"step {self._step}/{self._total_steps}", *self._parts()])

    def _refresh(
        self, now: bool = False, latest: Callable[[], Mapping[str, float]] | None = None
    ) -> None:
        """Show the line if it is due, by the time or `now`; the live one shows itself."""
        due = now or self._clock() - self._last_line >= self._line_seconds
        if self._stream is not None and due:
            self._last_line = self._clock()
            self._metrics = {**self._metrics, **(latest() if latest else {})}
            if self._live is None and not self._in_notebook:
                self.message(self.line())
        self._show(NOTEBOOK_SECONDS)

    def _show(self, seconds: float = 0.0) -> None:
        """Replace the line of a notebook, if the last time is `seconds` ago."""
        if not self._in_notebook or self._clock() - self._last_shown < seconds:
            return
        self._last_shown = self._clock()
        done, total, line = *self._bar(), self.line()
        bar = f"<progress value='{done}' max='{max(total, 1)}'></progress>"
        page = f"<div style='{LINE_STYLE}'>{bar} {html.escape(line)}</div>"
        content = {"text/html": page, "text/plain": line}
        if self._display is None:
            from IPython.display import display

            self._display = display(content, raw=True, display_id=True)
        else:
            self._display.update(content, raw=True)

    def _now(self) -> float:
        return self._clock() - self._aside_seconds

    def _measure(self) -> Speed:
        """Compare the last update with the one WINDOW_SECONDS before it."""
        marks, last = self._marks, self._marks[-1]
        while len(marks) > 2 and last.seconds - marks[1].seconds >= WINDOW_SECONDS:
            marks.popleft()
        seconds, steps, images, wait = (b - a for a, b in zip(marks[0], last, strict=True))
        if seconds <= 0 or steps <= 0:
            return self._speed
        left = max(self._total_steps - last.step, 0)
        return Speed(images / seconds, left * seconds / steps, min(wait / seconds, 1.0))

    def _parts(self) -> list[str]:
        """Return what matters most first: a narrow terminal cuts the end."""
        if self._aside:
            done, total = self._part
            left = (self._clock() - self._part_started) / done * (total - done) if done else None
            parts = [f"{self._aside} {done}/{total}" if total else self._aside]
            return parts if left is None else [*parts, f"{_duration(left)} left"]
        rate, left, wait = self._speed
        parts = [f"{name} {value:.3g}" for name, value in [*self._metrics.items()][:SHOWN]]
        if left is not None:
            speed = f"{rate:.0f} images/s" if rate >= 10 else f"{rate:.2g} images/s"
            parts = [f"{_duration(left)} left", speed, *parts, f"data wait {wait:.0%}"]
        return parts

    def _bar(self) -> tuple[int, int]:
        """Return how much is done and of how much: of what is done `aside`, or of all steps."""
        in_part = self._aside and self._part[1]
        return self._part if in_part else (self._step, self._total_steps)

    def _render(self) -> Table:
        row = Table.grid(padding=(0, 1))
        row.add_column(width=16)
        row.add_column(no_wrap=True, overflow="ellipsis")
        done, total = self._bar()
        bar = ProgressBar(total=total, completed=done, width=16)
        row.add_row(bar, Text(self.line()))
        return row


def _duration(seconds: float) -> str:
    """Format a duration as h:mm:ss, or m:ss under an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
