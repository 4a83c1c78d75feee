"""Each training under each fault ends, resumed where it was stopped, as if nothing had happened.

`endures` runs one training under one fault of the table. `pytest tests/faults -rP` prints what
happened.
"""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from beit.data.sources import open_source
from beit.run.quarantine import FILE as BAD_IMAGES

sys.path.insert(0, str(Path(__file__).parents[1] / "whole"))
from record import ASSETS, described
from runs import TRAININGS, Training

NAMES = {
    "train-tokenizer": "vqkd",
    "train-tokenizer dvae": "dvae",
    "pretrain": "pretrain-tokens",
    "finetune": "finetune",
    "segment": "segment-linear",
}
BY_NAME = {training.name: training for training in TRAININGS}
CLASSES = open_source("shapes://1").class_names or []
IMAGES = [f"images/{CLASSES[number % len(CLASSES)]}/{number:02}.png" for number in range(43)]
LIMIT = 60  # seconds after which a command counts as stuck
TICKS = os.sysconf("SC_CLK_TCK")


# ── running ─────────────────────────────────────────────────────────────────────────────────────


class Ended(NamedTuple):
    """What became of a command."""

    code: int
    said: str

    @property
    def error(self) -> str:
        """Its last line, if that is an error of the command."""
        return self.said.strip().rpartition("\n")[2]


class Starter:
    """Starts commands, see `child.py`."""

    def __init__(self) -> None:
        self._server = subprocess.Popen(
            [sys.executable, "-P", str(Path(__file__).with_name("child.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            env=os.environ
            | {
                "OMP_NUM_THREADS": "1",
                "HF_HUB_OFFLINE": "1",
                "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]),
            },
        )
        self._numbers = count()
        self.mounts: bool = self._answer()

    def _answer(self) -> Any:
        assert self._server.stdout is not None
        return json.loads(self._server.stdout.readline())

    def ask(self, **request: Any) -> Any:
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps(request) + "\n")
        return self._answer()

    def view(self, path: Path) -> Path:
        """Return a path as the commands see it, with what is mounted there."""
        return Path(f"/proc/{self._server.pid}/root{path}") if self.mounts else path

    def start(self, folder: Path, argv: list[str], *faults: list[Any]) -> "Running":
        log = folder / f"log-{next(self._numbers)}"
        request = {"argv": argv, "folder": str(folder), "log": str(log), "faults": faults}
        return Running(self, self.ask(**request), log)

    def close(self) -> None:
        self._server.communicate()


class Running:
    """A command that runs in a process group of its own."""

    def __init__(self, starter: Starter, pid: int, log: Path) -> None:
        self._starter, self._pid, self._log = starter, pid, log
        self._code: int | None = None
        self.seconds = 0.0  # of the CPU

    def poll(self) -> bool:
        """Tell whether it has ended."""
        if self._code is None:
            fields = Path(f"/proc/{self._pid}/stat").read_text().rpartition(")")[2].split()
            self.seconds = (int(fields[11]) + int(fields[12])) / TICKS
            self._code = self._starter.ask(poll=self._pid)
        return self._code is not None

    def send(self, number: int, seconds: float) -> bool:
        """Send a signal once it has used so much time of the CPU. Returns: whether it still ran."""
        while not self.poll():
            if self.seconds >= seconds:
                os.kill(self._pid, number)
                return True
            time.sleep(0.001)
        return False

    def end(self) -> Ended:
        """Wait for its end; AssertionError if it is stuck, or leaves processes behind."""
        deadline = time.monotonic() + LIMIT
        while not self.poll() and time.monotonic() < deadline:
            time.sleep(0.005)
        stuck, deadline = self._code is None, time.monotonic() + 5
        while not stuck and (left := members(self._pid)) and time.monotonic() < deadline:
            time.sleep(0.005)  # workers end when they notice that nobody reads
        said = self._log.read_text(errors="replace")
        if stuck or left:
            os.killpg(self._pid, signal.SIGKILL)
        assert not stuck, f"stuck after {said[-300:]}"
        assert not left, f"processes {left} were left after {said[-300:]}"
        assert self._code is not None
        return Ended(self._code, said)


def members(group: int) -> list[int]:
    """List the living processes of a process group."""
    living = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, _, its_group = (folder / "stat").read_text().rpartition(")")[2].split()[:3]
        except OSError:  # it has ended meanwhile
            continue
        if int(its_group) == group and state != "Z":
            living.append(int(folder.name))
    return living


@pytest.fixture(scope="module")
def starter() -> Iterator[Starter]:
    starting = Starter()
    yield starting
    starting.close()


# ── the undisturbed runs ────────────────────────────────────────────────────────────────────────


class Ground:
    """A folder in which a training runs, and what it must end in."""

    def __init__(self, starter: Starter, folder: Path, training: Training, *options: str) -> None:
        self.starter, self.folder, self.training = starter, folder, training
        folder.mkdir()
        (folder / "starts").symlink_to(ASSETS / "starts")
        (folder / "runs").mkdir()
        own = []
        if "--data.train=images" in options:
            write_images(folder)
            own = ["--data.shrink=false"]
            if training.verb == "segment":
                own = [
                    "--data.maps=maps",
                    "--data.validation=images",
                    "--data.validation_maps=maps",
                ]
        self.argv = [*training.arguments, *options, *own]
        self.run = f"runs/{training.name}"

    @property
    def path(self) -> Path:
        return self.starter.view(self.folder / self.run)

    def named(self, words: list[Any]) -> list[Any]:
        """Fill in the names of this run and of two of its images."""
        names = {"run": self.run, "image": IMAGES[7], "other": IMAGES[8]}
        return [word.format(**names) if isinstance(word, str) else word for word in words]

    def start(self, *faults: list[Any]) -> Running:
        return self.starter.start(self.folder, self.argv, *faults)

    def go_on(self, *faults: list[Any]) -> Running:
        """Resume the run, or start it if it has not begun."""
        if not self.path.exists():
            return self.start(*faults)
        argv = [self.training.verb, "--resume", self.run]
        return self.starter.start(self.folder, argv, *faults)

    def result(self) -> dict[str, str]:
        """Read what may not differ: names of files, the last checkpoint's, and what they hold."""
        files = [path for path in self.path.rglob("*") if path.is_file()]
        files = [path for path in files if BAD_IMAGES not in path.name]  # what was met stays noted
        for checkpoint in sorted(self.path.glob("checkpoints/step-*"))[:-1]:
            files.remove(checkpoint)
        speed = (self.path / "speed.jsonl").read_text().splitlines()
        return {
            "files": "\n".join(sorted(str(path.relative_to(self.path)) for path in files)),
            "weights": described(self.path / "weights.safetensors"),
            "metrics": (self.path / "metrics.jsonl").read_text(),
            "speed": str([json.loads(line)["step"] for line in speed]),
        }


def write_images(folder: Path) -> None:
    """Write 43 pictures with the classes of shapes://, and their label maps."""
    drawn = np.random.default_rng(0)
    for file in IMAGES:
        for path, depth in ((folder / file, (3,)), (folder / file.replace("images", "maps"), ())):
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = drawn.integers(256 if depth else 10, size=(32, 32, *depth), dtype=np.uint8)
            Image.fromarray(pixels).save(path)


class Whole(NamedTuple):
    """What an undisturbed run ends in, its seconds of the CPU, and its operations on files."""

    result: dict[str, str]
    seconds: float
    operations: int


@pytest.fixture(scope="module")
def wholes(starter: Starter, tmp_path_factory: Any) -> Callable[..., Whole]:
    """Returns a function that runs a training undisturbed, once for the same options."""
    made: dict[tuple[str, ...], Whole] = {}

    def whole(training: Training, *options: str) -> Whole:
        key = (training.name, *options)
        if key not in made:
            ground = Ground(starter, tmp_path_factory.mktemp("whole") / "w", training, *options)
            counter = ground.folder / "operations"
            running = ground.start(["count_operations", str(counter)])
            ended = running.end()
            assert ended.code == 0, ended.said[-2000:]
            made[key] = Whole(ground.result(), running.seconds, counter.stat().st_size)
        return made[key]

    return whole


# ── the faults ──────────────────────────────────────────────────────────────────────────────────


class Start(NamedTuple):
    """One start of a run, the first or a resumed one, under faults.

    Attributes:
        faults: functions of `faults.py` and their arguments
        code: its exit code
        says: a pattern of its error, or of its log if it ends well
        before: what is changed before it
    """

    faults: Sequence[list[Any]] = ()
    code: int = 0
    says: str = ""
    before: Callable[[Ground], object] = lambda ground: None


class Fault(NamedTuple):
    """Starts one after the other, the last of which ends well.

    Attributes:
        disk: size of the disk on which the run directory lies; empty for the usual one
        same: whether the run must end as the undisturbed one does
    """

    starts: list[Start]
    options: Sequence[str] = ()
    disk: str = ""
    same: bool = True


def edited(pattern: str, text: str) -> Callable[[Ground], None]:
    """Replace text in config.yaml, and keep what it was."""

    def edit(ground: Ground) -> None:
        file = ground.path / "config.yaml"
        shutil.copyfile(file, ground.folder / "config.yaml")
        changed, number = re.subn(pattern, text, file.read_text(), count=1)
        assert number, file.read_text()
        file.write_text(changed)

    return edit


def undone(ground: Ground) -> None:
    shutil.copyfile(ground.folder / "config.yaml", ground.path / "config.yaml")


def moved(*names: str) -> Callable[[Ground], object]:
    def move(ground: Ground) -> None:
        old, new = ground.named(list(names))
        (ground.folder / old).rename(ground.folder / new)

    return move


def larger(ground: Ground) -> None:
    argv = ["mount", "-o", "remount,size=64m", str(ground.folder / "runs")]
    assert ground.starter.ask(call=argv) == 0


KILLED = Start([["after", 7, "die"]], -9)
WORKERS = ["--data.num_workers=2", "--data.cache_gigabytes=0"]
ON_DISK = [*WORKERS, "--data.train=images"]
FULL = "no space left on the disk"
FAULTS = {
    "disk full at the start": Fault([Start([], 2, FULL), Start(before=larger)], disk="24k"),
    "disk full for a while": Fault(
        [Start([["after", 2, "fill", "runs"], ["after", 8, "free", "runs"]], 0, FULL)], disk="64m"
    ),
    "disk full for a while, checkpoints beside the steps": Fault(
        [Start([["after", 2, "fill", "runs"], ["after", 8, "free", "runs"]], 0, FULL)],
        ["--run.save_async=true"],
        disk="64m",
    ),
    "killed, checkpoints beside the steps": Fault(
        [KILLED, Start()], ["--run.save_async=true", *WORKERS]
    ),
    "disk full to the end": Fault(
        [
            Start([["after", 4, "fill", "runs"]], 2, f"{FULL}.*step 3 is good: beit .* --resume"),
            Start(before=lambda ground: (ground.path.parent / "filler").unlink()),
        ],
        disk="64m",
    ),
    "read-only for a while": Fault(
        [
            Start(
                [["after", 2, "read_only", "runs"], ["after", 8, "writable", "runs"]], 0, "Read-on"
            )
        ],
        disk="64m",
    ),
    "read-only to the end": Fault(
        [
            Start([["after", 4, "read_only", "runs"]], 2, "Read-only"),
            Start(
                before=lambda ground: ground.starter.ask(
                    call=["umount", str(ground.folder / "runs")]
                )
            ),
        ],
        disk="64m",
    ),
    "EIO for a while": Fault(
        [Start([["after", 2, "failing", 5], ["after", 8, "sound"]], 0, "Input/output error")]
    ),
    "ESTALE for a while": Fault(
        [Start([["after", 2, "failing", 116], ["after", 8, "sound"]], 0, "Stale file handle")]
    ),
    "checkpoints/ removed meanwhile": Fault(
        [Start([["after", 4, "remove", "{run}/checkpoints"]], 0)], same=False
    ),
    "checkpoints/ missing": Fault(
        [
            KILLED,
            Start([], 2, "holds no checkpoint", moved("{run}/checkpoints", "kept")),
            Start(before=moved("kept", "{run}/checkpoints")),
        ]
    ),
    "config.yaml nested too deep": Fault(
        [KILLED, Start([], 2, "config.yaml", edited("$", "x: " + "[" * 3000)), Start(before=undone)]
    ),
    "config.yaml of another width": Fault(
        [
            KILLED,
            Start(
                [], 2, "config.yaml", edited(r"(hidden_width|\bwidth|num_heads): \d+", r"\1: 12")
            ),
            Start(before=undone),
        ]
    ),
    **{
        f"{number} file handles, {workers} workers": Fault(
            [Start([["handles", number]], code, "ulimit -n" if code else ""), Start()],
            [f"--data.num_workers={workers}"],
        )
        for number, workers, code in ((24, 0, 0), (24, 6, 2), (32, 6, 2), (64, 6, 0))
    },
    "/dev/shm of 1 MB, 2 workers": Fault([Start()], WORKERS),
    **{
        f"{killed} of {workers} workers killed": Fault(
            [
                Start([["after", 4, "kill_workers", killed]], 2, r"data worker \d of \d .*SIGKILL"),
                Start(),
            ],
            [*WORKERS, f"--data.num_workers={workers}"],
        )
        for killed, workers in ((1, 1), (1, 2), (2, 2))
    },
    "all images vanish": Fault(
        [
            Start([["after", 2, "rename", "images", "gone"]], 2, "cannot be read"),
            Start(
                [],
                2,
                "images",
            ),
            Start(before=moved("gone", "images")),
        ],
        ON_DISK,
    ),
    "one image vanishes": Fault(
        [Start([["after", 2, "remove", "{image}"]], 0, "unreadable, replaced")],
        [*ON_DISK, "--data.max_unreadable=0.1"],
        same=False,
    ),
    "one image too many vanishes": Fault(
        [
            Start([["after", 2, "rename", "{image}", "07.png"]], 2, "1 of 4[03] .*07.png"),
            Start(before=moved("07.png", "{image}")),
        ],
        [*ON_DISK, "--data.max_unreadable=0"],
        same=False,
    ),
    "one image replaced": Fault(
        [Start([["after", 2, "rename", "{image}", "{other}"]], 0, "07.png")],
        [*ON_DISK, "--data.max_unreadable=0.1"],
        same=False,
    ),
}


QUICK = ("disk full for a while",)


def endures(ground: Ground, fault: Fault, whole: Whole) -> None:
    """Run a training under a fault to its end; it must end as the undisturbed one does."""
    if fault.disk:
        if not ground.starter.mounts:
            pytest.skip("no file system can be mounted here")
        size, disk = f"size={fault.disk}", str(ground.folder / "runs")
        assert ground.starter.ask(call=["mount", "-t", "tmpfs", "-o", size, "tmpfs", disk]) == 0
    for start in fault.starts:
        start.before(ground)
        check(ground.go_on(*map(ground.named, start.faults)).end(), start.code, start.says)
    if fault.same:
        check_same(ground, whole)


def check(ended: Ended, code: int, says: str = "") -> None:
    """Check how a command ended, and that it said so in one line."""
    print(ended.code, "·", ended.error if ended.code else "")
    assert "Traceback" not in ended.said, ended.said[-2000:]
    assert ended.code == code, ended.said[-1000:]
    if code == 2:
        assert ended.error.startswith("beit: error: ")
    assert re.search(says, ended.error if code == 2 else ended.said), ended.said[-1000:]


def check_same(ground: Ground, whole: Whole) -> None:
    result = ground.result()
    for what in whole.result:
        assert result[what] == whole.result[what], what


def cases(*quick: str) -> list[Any]:
    """List the trainings; all but some are slow."""
    slow = pytest.mark.slow
    return [pytest.param(name, marks=[] if name in quick else slow) for name in NAMES]


@pytest.fixture
def ground(starter: Starter, tmp_path: Path) -> Callable[..., Ground]:
    """Returns a function that makes a new folder for a training."""
    numbers = count()

    def new(name: str, *options: str) -> Ground:
        folder = tmp_path / str(next(numbers))
        return Ground(starter, folder, BY_NAME[NAMES[name]], *options)

    return new


@pytest.mark.parametrize(
    ("name", "training"),
    [
        pytest.param(name, *case.values, marks=case.marks if name in QUICK else pytest.mark.slow)
        for name in FAULTS
        for case in cases("finetune")
    ],
)
def test_a_training_endures(
    name: str, training: str, ground: Callable[..., Ground], wholes: Callable[..., Whole]
) -> None:
    fault = FAULTS[name]
    new = ground(training, *fault.options)
    endures(new, fault, wholes(new.training, *fault.options))


# ── signals, and several processes ──────────────────────────────────────────────────────────────


SIGNALS = {  # and how a run may end by them: also before it begins, or after all is done
    signal.SIGKILL: (-9, 0),
    signal.SIGTERM: (75, -15, 0),
    signal.SIGUSR1: (75, -10, 0),
}


@pytest.mark.parametrize(
    ("number", "training", "moments"),
    [
        (signal.SIGKILL, "finetune", 1),
        (signal.SIGTERM, "finetune", 1),
        *(
            pytest.param(number, name, 20, marks=pytest.mark.slow)
            for number in SIGNALS
            for name in NAMES
        ),
    ],
)
def test_a_signal_at_a_random_moment(
    number: signal.Signals,
    training: str,
    moments: int,
    ground: Callable[..., Ground],
    wholes: Callable[..., Whole],
) -> None:
    drawn = random.Random(f"{number} of {training}")
    for _ in range(moments):
        new = ground(training)
        whole = wholes(new.training)
        moment = drawn.uniform(0, whole.seconds)
        running = new.start()
        running.send(number, moment)
        ended = running.end()
        print(f"{moment:.2f} s:", ended.code, "·", ended.error)
        assert ended.code in SIGNALS[number], ended.said[-1000:]
        assert "Traceback" not in ended.said, ended.said[-2000:]
        if ended.code != 0:
            check(new.go_on().end(), 0)
        check_same(new, whole)


@pytest.mark.parametrize(
    ("number", "training", "first", "every"),
    [
        (signal.SIGKILL, "finetune", 15, 100),
        (signal.SIGTERM, "finetune", 25, 100),
        *(
            pytest.param(number, name, 1, 1, marks=pytest.mark.slow)
            for number in SIGNALS
            for name in NAMES
        ),
    ],
)
def test_a_signal_before_an_operation_on_files(
    number: signal.Signals,
    training: str,
    first: int,
    every: int,
    ground: Callable[..., Ground],
    wholes: Callable[..., Whole],
) -> None:
    whole = wholes(BY_NAME[NAMES[training]])
    for operation in range(first, whole.operations + 1, every):
        new = ground(training)
        ended = new.start(["signal_before", operation, number]).end()
        print(f"operation {operation}:", ended.code, "·", ended.error)
        assert ended.code in SIGNALS[number], ended.said[-1000:]
        assert "Traceback" not in ended.said, ended.said[-2000:]
        if ended.code != 0:
            check(new.go_on().end(), 0)
        check_same(new, whole)


IN_USE = "is in use by (another )?process"  # whose number may not be written yet


@pytest.mark.parametrize("training", cases("finetune"))
@pytest.mark.parametrize("resumed", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_two_processes_in_one_directory(
    training: str, resumed: bool, ground: Callable[..., Ground], wholes: Callable[..., Whole]
) -> None:
    new = ground(training)
    if resumed:
        check(new.start(*KILLED.faults).end(), -9)
    both = [new.go_on(), new.go_on()]
    first, second = sorted((running.end() for running in both), key=lambda ended: ended.code)
    check(first, 0)
    check(second, 2, IN_USE if resumed else f"{IN_USE}|exists")
    check_same(new, wholes(new.training))
