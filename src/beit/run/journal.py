"""The journal of a training: everything that all trainings do alike and that is not the method.

The run directory, the logs, progress, unreadable images, when to log, save, validate and report,
the parts of a checkpoint, stopping and resuming. Forward, loss, backward, clip and step stay in
each training's loop:

    with journal:
        if journal.resumed:
            outcome = validate_if_due(...)  # what follows a checkpoint is repeated
        for step in journal.steps():
            for micro, batch in enumerate(journal.micro_batches()):
                ...
            if journal.logs:
                journal.log({"rate": rate}, journal.read_means(loss, rate))
            journal.end_step()  # progress, speed, checkpoint
            outcome = validate_if_due(...)
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self

from lightning_fabric import Fabric
from torch import Tensor

from beit.data.batch import Batch
from beit.data.prefetch import Prefetch
from beit.data.unreadable import Unreadable
from beit.run import checkpoint
from beit.run.device import DeviceConfig, LossScaling, launch, summed
from beit.run.directory import RunConfig, RunDirectory
from beit.run.log import MetricsLog
from beit.run.meters import Means
from beit.run.optim import OptimConfig, Schedule, StepOptimConfig
from beit.run.progress import Progress
from beit.run.reading import ImageBatches, Reading


class ReadConfig(Protocol):
    """The limit on unreadable images, a setting of every training's data."""

    @property
    def max_unreadable(self) -> float: ...


class TrainingConfig(Protocol):
    """The settings that all trainings have; a frozen dataclass."""

    @property
    def run(self) -> RunConfig: ...
    @property
    def data(self) -> ReadConfig: ...
    @property
    def optim(self) -> OptimConfig | StepOptimConfig: ...
    @property
    def device(self) -> DeviceConfig: ...


class Result(NamedTuple):
    """The result of a training.

    Attributes:
        directory: the run directory
        metrics: of the weights kept, on the validation set; empty without one
        sections: of the report (`beit.draw.report.Section`); empty in all processes but the first
    """

    directory: Path
    metrics: dict[str, float]
    sections: list[Any]


def launched(config: TrainingConfig, directory: RunDirectory | None) -> Fabric:
    """Launch the processes of a run; refuse an existing directory for a new one first."""
    if directory is None:
        RunDirectory.check_new(config.run.output)
    return launch(config.device)


class Journal:
    """Records one run; see the module's docstring for its use.

    Attributes:
        start_step: of the checkpoint the run resumes from; 0 for a new run
        last_step: after which the run ends
        step: the current one, counted from 1
        means: metrics since the last log line
    """

    def __init__(
        self,
        verb: str,
        config: TrainingConfig,
        fabric: Fabric,
        schedule: Schedule,
        directory: RunDirectory | None,
    ) -> None:
        """Read the last checkpoint of `directory`, if given; a new run leaves no trace yet."""
        self._verb, self._config, self._run, self._fabric = verb, config, config.run, fabric
        self._directory = directory
        self._first = fabric.is_global_zero
        self.start_step, self._state = (directory and checkpoint.latest(directory)) or (0, {})
        self.steps_per_epoch = schedule.steps_per_epoch
        self.total_steps = schedule.total_steps
        self.last_step = min(self.total_steps, config.run.stop_after or self.total_steps)
        self.step = self.start_step
        self.means = Means()
        self._unreadable = Unreadable(schedule.num_images, config.data.max_unreadable)
        self._parts: dict[str, Any] = {}
        self._shown: Mapping[str, float] = {}
        self._open = ExitStack()

    @property
    def span(self) -> tuple[int, int]:
        """The step of the checkpoint, 0 for a new run, and the last step."""
        return self.start_step, self.last_step

    @property
    def directory(self) -> RunDirectory:
        """The run directory, once the run has begun."""
        assert self._directory is not None
        return self._directory

    @property
    def resumed(self) -> bool:
        """Whether the run continues from a checkpoint."""
        return self.start_step > 0

    # ── begin and end ───────────────────────────────────────────────────────────────────────────

    def begin(self, stream: Prefetch, **parts: Any) -> None:
        """Restore the parts from the checkpoint, read the first batch and open the directory.

        Args:
            stream: of training batches, which start after `start_step`
            parts: the contents of a checkpoint by name, objects with `state_dict` and
                `load_state_dict`; loss scaling and unreadable images are added
        """
        scaling = LossScaling(self._fabric)
        self._parts = {**parts, "scaling": scaling, "unreadable": self._unreadable}
        if self._state:
            for name, part in self._parts.items():
                part.load_state_dict(self._state[name])
            self._state = {}
        self._stream = stream
        stream.begin()
        self._fabric.barrier()
        resumed_at = None if self._directory is None else self.start_step
        output = self._run.output
        if self._directory is None and self._first:
            settings = asdict(self._config)  # type: ignore[call-overload]  # a dataclass
            self._directory = RunDirectory.create(output, settings, self._verb)
        self._directory = directory = self._directory or RunDirectory(Path(output))
        self._log = MetricsLog(directory.metrics_file if self._first else None, resumed_at)
        self._speed = MetricsLog(directory.speed_file if self._first else None, resumed_at)
        self._progress = Progress(self.last_step, self.start_step, enabled=self._first)

    def __enter__(self) -> Self:
        self._open.enter_context(closing(self._log))
        self._open.enter_context(closing(self._speed))
        self._open.enter_context(self._progress)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open.close()

    # ── steps and batches ───────────────────────────────────────────────────────────────────────

    def steps(self) -> Iterator[int]:
        """Yield the numbers of the steps to do."""
        for step in range(self.start_step + 1, self.last_step + 1):
            self.step = step
            yield step

    def micro_batches(self) -> Iterator[Batch]:
        """Yield this process's micro-batches of the step; report unreadable images."""
        for batch in islice(self._stream, self._config.optim.accumulate):
            for name in self._unreadable.note(batch.unreadable):
                self._progress.warn(f"unreadable, replaced by the next image: {name}")
            yield batch

    def read(self, batches: ImageBatches) -> Reading:
        """Return the batches of an evaluation, to iterate over once."""
        limit = self._config.data.max_unreadable
        return Reading(batches, self._fabric, limit, self._progress.warn)

    # ── what is due ─────────────────────────────────────────────────────────────────────────────

    @property
    def saves(self) -> bool:
        """Whether a checkpoint follows this step."""
        return self.step % self._run.checkpoint_every == 0 or self.step == self.last_step

    @property
    def logs(self) -> bool:
        """Whether this step is logged: every so many steps, and before each checkpoint."""
        return self.step % self._run.log_every == 0 or self.saves

    def due(self, every_steps: int) -> bool:
        """Tell whether something done every so many steps, and at the end, follows this step."""
        return self.step % every_steps == 0 or self.step == self.last_step

    @property
    def reports(self) -> bool:
        """Whether this process draws reports before the end."""
        return self._first and self.step < self.last_step

    # ── records ─────────────────────────────────────────────────────────────────────────────────

    def read_means(self, loss: Tensor, rate: float) -> dict[str, float]:
        """Return the means of all processes since the last log line, and begin a new interval.

        Raises:
            ValueError: the loss of the step is not finite.
        """
        checkpoint.refuse_non_finite(self.directory, self.step, float(loss.detach()), rate)
        return self.means.read(partial(summed, self._fabric))

    def log(
        self,
        settings: Mapping[str, float],
        metrics: Mapping[str, float],
        shown: tuple[str, ...] = (),
    ) -> None:
        """Write a line of the metrics log.

        Args:
            settings: of the step, such as its learning rate
            metrics: means since the last line
            shown: names of the metrics for the progress line; empty for all
        """
        count = len(self._unreadable.names)
        metrics = {**metrics, "unreadable": count} if count else metrics
        self._write({**settings, **metrics})
        self._shown = {n: value for n, value in metrics.items() if not shown or n in shown}

    def log_result(self, metrics: Mapping[str, float]) -> None:
        """Write the metrics of a validation or check to the log, and show them."""
        self._write(metrics)
        self.message("  ".join(f"{name} {value:.4g}" for name, value in metrics.items()))

    def log_warning(self, text: str) -> None:
        """Write a warning to the log, and show it."""
        self._log.write({"step": self.step, "warning": text})
        self.message(text)

    def message(self, text: str) -> None:
        """Show a line."""
        self._progress.message(text)

    def aside(self, name: str) -> AbstractContextManager[None]:
        """Show what is done between two steps, and leave its time out of the speed."""
        return self._progress.aside(name)

    def _write(self, record: Mapping[str, float]) -> None:
        epoch = self.step / self.steps_per_epoch
        self._log.write({"step": self.step, "epoch": epoch, **record})

    def end_step(self) -> None:
        """Update the progress; log the speed and save a checkpoint where they are due."""
        images, wait = self._config.optim.batch_size, self._stream.wait_seconds
        speed = self._progress.update(self.step, self._shown, images, wait)
        self._shown = {}
        if self.logs:
            self._speed.write({"step": self.step} | speed._asdict())
        if self.saves and self._first:
            run, state = self._run, {name: part.state_dict() for name, part in self._parts.items()}
            checkpoint.save(self.directory, self.step, state, run.keep_last, run.keep_every)
