"""Some steps of a training in a process of its own, to measure what each part of them takes.

`python -m beit.diagnosis.trial FILE` reads a pickled `Plan` and writes `Measured` beside it. The
process is its own, so that its memory is that of the training and the doctor survives its end.
"""

import importlib
import math
import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import redirect_stdout
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import nn

from beit.data.batch import Batch
from beit.data.batches import TrainBatches
from beit.data.cached import CachedSource
from beit.data.own_code import named_by, passed_on
from beit.data.prefetch import Prefetch
from beit.data.reader import Key, Reader
from beit.data.workers import computed
from beit.diagnosis.machine import peak_memory
from beit.diagnosis.reading import read_sample, seconds_to_move
from beit.files import out_of_memory
from beit.run.budget import as_trial
from beit.run.directory import RunConfig
from beit.run.profile import DATA, REST, StepTimes
from beit.run.watching import measured_by

WARM_UP = 3  # steps before those that are measured; one if it is slow
SLOW = 3.0  # seconds
STEPS = 40  # measured at most
FEWEST = 2  # measured at least, whatever they take
ENOUGH = 12.0  # seconds of measured steps


@dataclass(frozen=True)
class Plan:
    """What a trial runs.

    Attributes:
        module: of the training
        config: its settings
        num_images: of the whole set
        batch_size: of the trial
        folder: where it may write
    """

    module: str
    config: Any
    num_images: int
    batch_size: int
    folder: str = ""


@dataclass
class Measured:
    """What a trial found; seconds are of a step, or of an image where `reading` has them.

    Attributes:
        device: cpu, cuda or mps
        threads: of a step on the CPU
        num_images: of the trial
        parts: seconds of the parts of a step, without those of reading
        reading: of an image in a worker, see `Sample`
        file_bytes: of an image
        image_bytes: of a decoded image, or of one that is shrunk
        view_bytes: of the views of an image
        in_memory: whether the set is held in memory
        resident: whether batches are cut from it whole
        transfer: seconds to copy a batch to the GPU
        prepared: seconds before the first step that grow with the number of images
        once: seconds of all else that a run does once
        report: seconds of a report
        host: bytes of memory of the main process at most
        stepping: the same until its last step; a report may take more, when workers have ended
        worker: bytes of memory that a worker has for itself
        gpu: bytes of memory of the GPU at most
        checkpoint: bytes of a checkpoint
        kept: bytes of a run directory besides its checkpoints
        features: bytes of a teacher's kept features
        failure: why the trial failed; empty if it did not
    """

    device: str = "cpu"
    threads: int = 1
    num_images: int = 0
    parts: dict[str, float] = field(default_factory=dict)
    reading: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    file_bytes: float = 0.0
    image_bytes: float = 0.0
    view_bytes: int = 0
    in_memory: bool = False
    resident: bool = False
    transfer: float = 0.0
    prepared: float = 0.0
    once: float = 0.0
    report: float = 0.0
    host: int = 0
    stepping: int = 0
    worker: int = 0
    gpu: int = 0
    checkpoint: int = 0
    kept: int = 0
    features: int = 0
    failure: str = ""

    @property
    def step(self) -> float:
        """The seconds of a step without reading."""
        return sum(self.parts.values())


# ── in the doctor's process ─────────────────────────────────────────────────────────────────────


def try_out(plan: Plan) -> Measured:
    """Run a trial in a process of its own. Its failure is a result, except a mistake in settings.

    Raises:
        ValueError: the training refuses its settings or images
    """
    with tempfile.TemporaryDirectory() as folder:
        plan = replace(plan, folder=folder)
        file = Path(folder, "plan")
        file.write_bytes(pickle.dumps(plan))
        source = str(Path(__file__).parents[2])  # where this package is
        paths = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH", "")]))
        done = subprocess.run(
            [sys.executable, "-m", "beit.diagnosis.trial", str(file)],
            env={**os.environ, "PYTHONPATH": paths, **passed_on()},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        result = file.with_name("measured")
        if not result.exists():
            said = done.stderr.strip().splitlines()[-1:]
            killed = "killed, as when memory runs out" if done.returncode < 0 else ""
            return Measured(failure=killed or "".join(said) or f"exit code {done.returncode}")
        measured: Measured | Exception = pickle.loads(result.read_bytes())
    if isinstance(measured, Exception):
        raise measured
    return measured


# ── in the process of the trial ─────────────────────────────────────────────────────────────────


def main(file: Path) -> None:
    """Run the trial and write what it measured, or the error of the training."""
    plan: Plan = pickle.loads(file.read_bytes())
    result: Measured | Exception
    try:
        result = tried(plan)
    except (ValueError, OSError) as error:
        result = error
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        result = Measured(failure="out of memory")
    file.with_name("measured").write_bytes(pickle.dumps(result))


def tried(plan: Plan) -> Measured:
    """Train some steps on some images, without validation and checks, and measure them."""
    config, folder = trial_settings(plan), Path(plan.folder)
    watch = Watch(plan)
    started = time.perf_counter()
    with measured_by(watch), named_by(()), redirect_stdout(sys.stderr):
        importlib.import_module(plan.module).run(config)
    watch.end(time.perf_counter() - started)
    run, found = folder / "trial", watch.found
    files = {path: path.stat().st_size for path in run.rglob("*") if path.is_file()}
    saved = [size for path, size in files.items() if path.parent.name == "checkpoints"]
    found.checkpoint = max(saved, default=0)
    found.kept = sum(files.values()) - sum(saved)
    found.features = sum(f.stat().st_size for f in folder.glob("teacher/**/*") if f.is_file())
    return found


def trial_settings(plan: Plan) -> Any:
    """Return the settings of a training for its trial: one process, few images, no validation."""
    optim = replace(plan.config.optim, batch_size=plan.batch_size, accumulate=1)
    config = as_trial(replace(plan.config, optim=optim), plan.num_images)
    run = RunConfig(str(Path(plan.folder, "trial")), config.run.seed, stop_after=WARM_UP + STEPS)
    changes = {
        "data": replace(config.data, num_workers=min(1, config.data.num_workers)),
        "run": replace(run, log_every=WARM_UP + STEPS, checkpoint_every=WARM_UP + STEPS),
        "device": replace(config.device, devices=1, num_nodes=1),
    }
    if hasattr(getattr(config, "codebook", None), "start_after"):  # codes are used from then on
        changes["codebook"] = replace(config.codebook, start_after=0)
    if getattr(getattr(config, "teacher", None), "cache", ""):
        changes["teacher"] = replace(config.teacher, cache=str(Path(plan.folder, "teacher")))
    return replace(config, **changes)


class Watch(StepTimes):
    """Measures a training: called by Fabric, when its batches are made, and around its steps."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(WARM_UP)
        self._plan, self.found = plan, Measured()
        self._aside = 0.0  # seconds of measuring
        self._steps = list[float]()  # when they ended
        self._begun = 0.0  # when the first one began

    def on_batches(self, batches: TrainBatches) -> None:
        """Measure how images are read, then let batches after the first ones repeat them."""
        started = time.perf_counter()
        found, (reader, resident, device) = self.found, batches.reading
        found.in_memory = isinstance(reader.source, CachedSource)
        measure = partial(read_sample, reader, resident)
        on_gpu, count = device.type == "cuda", self._plan.batch_size
        for sample in computed(measure, [(count, on_gpu)], 1, lambda task: "images to measure"):
            found.reading, found.file_bytes, found.image_bytes, found.worker = sample[:4]
            found.view_bytes = sum(map(math.prod, sample.shapes))
            found.resident = resident is not None
            if on_gpu and resident is None:
                found.transfer = seconds_to_move(sample.shapes, count, device)
        if resident is None:
            batches.read_with(Repeated(reader))
        self._aside += time.perf_counter() - started
        self._made = time.perf_counter()

    def on_after_setup(self, fabric: Fabric, module: nn.Module) -> None:
        """Note the time that grew with the number of images, and mark the model's parts."""
        if getattr(getattr(self._plan.config, "teacher", None), "cache", ""):
            self.found.prepared = time.perf_counter() - self._made
        super().on_after_setup(fabric, module)
        self.found.device, self.found.threads = fabric.device.type, torch.get_num_threads()

    def on_step_start(self, stream: Prefetch) -> None:
        """Note when the first step begins."""
        super().on_step_start(stream)
        self._begun = self._begun or self._last

    def after_step(self, journal: Any) -> None:
        """End the trial when enough steps are measured."""
        self._steps.append(self._now())
        if len(self._steps) == 1 and self._steps[0] - self._begun > SLOW:
            self.warm_up = 1
        measured = len(self._steps) - self.warm_up
        enough = measured >= FEWEST and self._steps[-1] - self._steps[self.warm_up - 1] > ENOUGH
        if enough and journal.step + 1 < journal.last_step:
            journal.last_step = journal.step + 1
        self.found.num_images = journal.config.data.limit
        self.found.stepping = peak_memory()

    def end(self, seconds: float) -> None:
        """Add up what was measured in a trial of so many seconds."""
        found, ended = self.found, time.perf_counter()
        count = self.taken - self.warm_up
        parts = {name: max(0.0, value) / count for name, value in self.parts.items()}
        measured = self._steps[self.warm_up - 1 : -1]  # the last one saves a checkpoint
        whole = (measured[-1] - measured[0]) / (len(measured) - 1)
        parts[REST] += max(0.0, whole - sum(parts.values()))
        found.parts = {name: value for name, value in parts.items() if name != DATA}
        found.report = ended - self._steps[-1]
        steps = self._steps[-1] - self._begun
        found.once = max(0.0, seconds - steps - self._aside - found.prepared)
        found.host = peak_memory()
        if found.device == "cuda":
            found.gpu = torch.cuda.max_memory_reserved()


class Repeated(Reader):
    """A reader that after its first batch returns it again: the model's time is the same."""

    def __init__(self, reader: Reader) -> None:
        self.__dict__.update(reader.__dict__)
        self._kept: tuple[Batch, torch.Tensor] | None = None

    def read(self, key: Key) -> tuple[Batch, torch.Tensor]:
        """Read the first batch, and return it for each key."""
        if self._kept is None:
            self._kept = super().read(key)
        return self._kept


if __name__ == "__main__":
    from beit.diagnosis.trial import main as run_trial  # so that its pickles name this module

    run_trial(Path(sys.argv[1]))
