import io
import sys
from types import SimpleNamespace

import pytest

from beit.run.progress import Progress, _duration


class Clock:
    """A clock that the test turns."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_plain_lines_come_now_and_then() -> None:
    clock, stream = Clock(), io.StringIO()
    with Progress(8, start_step=2, stream=stream, line_seconds=5, clock=clock) as progress:
        for step in range(3, 9):
            clock.seconds += 2
            progress.update(step, {"loss": 1 / step}, images=64, wait_seconds=0.5 * (step - 2))
    assert stream.getvalue().splitlines() == [
        "step 5/8 · 0:06 left · 32 images/s · loss 0.2 · data wait 25%",
        "step 8/8 · 0:00 left · 32 images/s · loss 0.125 · data wait 25%",
    ]


def test_a_terminal_has_a_live_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "140")
    clock, stream = Clock(), Terminal()
    with Progress(4, stream=stream, clock=clock) as progress:
        clock.seconds += 1
        progress.update(1, {"loss": 0.25}, images=6, wait_seconds=0.1)
        progress.message("saved [step 1] in a/rather/long/path/" + "x" * 200)
        clock.seconds += 1
        progress.update(2, {}, images=6, wait_seconds=0.1)  # the loss stays in view
    shown = stream.getvalue()
    assert "\x1b[" in shown  # the line is drawn over and over
    assert "saved [step 1] in a/rather/long/path/" + "x" * 200 + "\n" in shown
    assert "step 2/4 · 0:02 left · 6 images/s · loss 0.25 · data wait 5%" in shown
    assert shown.index("saved") < shown.index("step 2/4")


def test_a_dumb_terminal_has_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    stream = Terminal()
    with Progress(1, stream=stream, clock=Clock()) as progress:
        progress.update(1, {}, images=6, wait_seconds=0.0)
    assert stream.getvalue() == "step 1/1\n"


def test_other_processes_measure_and_say_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with Progress(10, enabled=False, clock=clock) as progress:
        clock.seconds += 4
        speed = progress.update(2, {}, images=10, wait_seconds=1.0)
        progress.message("unseen")
    assert speed == (2.5, 16.0, 0.25)
    assert capfd.readouterr() == ("", "")


def test_speed_is_that_of_the_last_half_minute() -> None:
    clock = Clock()
    progress = Progress(1000, enabled=False, clock=clock)
    for step in range(1, 101):
        clock.seconds += 10 if step <= 50 else 1
        speed = progress.update(step, {}, images=3, wait_seconds=0.0)
    assert speed.images_per_second == pytest.approx(3)
    assert speed.seconds_left == pytest.approx(900)


def test_time_spent_aside_does_not_count() -> None:
    clock = Clock()
    progress = Progress(4, stream=io.StringIO(), clock=clock)
    clock.seconds += 2
    progress.update(1, {}, images=8, wait_seconds=0.0)
    with progress.aside("validation"):
        clock.seconds += 60
        assert progress.line().endswith("· validation")
    clock.seconds += 2
    assert progress.update(2, {}, images=8, wait_seconds=0.0).images_per_second == 4
    assert "validation" not in progress.line()


def test_a_validation_has_its_own_bar_and_time_left() -> None:
    clock, stream = Clock(), io.StringIO()
    progress = Progress(4, stream=stream, clock=clock)
    clock.seconds += 2
    progress.update(4, {"loss": 0.25}, images=8, wait_seconds=0.0)
    with progress.aside("validation"):
        progress.part(0, 10_000)
        for done in (2500, 5000, 10_000):
            clock.seconds += 4
            progress.part(done, 10_000)
    assert stream.getvalue().splitlines()[1:] == ["step 4/4 · validation 5000/10000 · 0:08 left"]
    with progress.aside("report"):
        assert progress.line() == "step 4/4 · report"


def test_what_matters_most_comes_first_and_three_metrics_are_enough() -> None:
    clock = Clock()
    progress = Progress(4, enabled=False, clock=clock)
    clock.seconds += 2
    progress.update(1, dict.fromkeys("abcde", 0.12345), images=8, wait_seconds=0.0)
    expected = "step 1/4 · 0:06 left · 4 images/s · a 0.123 · b 0.123 · c 0.123 · data wait 0%"
    assert progress.line() == expected


def test_durations() -> None:
    assert [_duration(s) for s in (0.4, 59.6, 3599, 90061)] == ["0:00", "1:00", "59:59", "25:01:01"]


def test_a_notebook_has_one_line_replaced_in_place(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown: list[tuple[str, dict[str, str]]] = []

    class Handle:
        def update(self, content: dict[str, str], raw: bool) -> None:
            shown.append(("update", content))

    def display(content: dict[str, str], raw: bool, display_id: bool) -> Handle:
        shown.append(("new", content))
        return Handle()

    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=display))
    cell = type("OutStream", (io.StringIO,), {"__module__": "ipykernel.iostream"})()
    clock = Clock()
    with Progress(40, stream=cell, clock=clock) as progress:
        for step in range(1, 41):
            clock.seconds += 0.1
            progress.update(step, {"a<b": 0.5}, images=8, wait_seconds=0.0)
        progress.message("note")
        with progress.aside("validation"):
            progress.part(1, 2)
    assert [kind for kind, _ in shown] == ["new", *["update"] * (len(shown) - 1)]
    assert len(shown) < 15
    assert any("validation" in content["text/plain"] for _, content in shown)
    last = shown[-1][1]
    assert last["text/plain"] == "step 40/40 · 0:00 left · 80 images/s · a<b 0.5 · data wait 0%"
    assert "<progress value='40' max='40'></progress> step 40/40" in last["text/html"]
    assert "a&lt;b 0.5" in last["text/html"]
    assert cell.getvalue() == ""
    assert capsys.readouterr() == ("note\n", "")
