"""The journal of a training: what all trainings share except the method itself.

It handles the run directory, logs, progress, unreadable images, the intervals of logging, saving
and validation, checkpoints and resuming. Forward, loss, backward, clip and step stay in each loop:

    with journal.recording():
        if journal.resumed:
            metrics = evaluate(...)  # repeat the validation that follows the checkpoint
        for step in journal.steps():
            for micro, batch in enumerate(journal.micro_batches()):
                ...
                journal.measure({"loss": loss})
            journal.keep_if_finite(clip_gradients(...), optimizer)  # else step does nothing
            if journal.logs:
                journal.log({"rate": rate}, journal.means.read())
            journal.end_step()  # progress, speed, checkpoint
            metrics = evaluate(...)  # validate, if it is time, after another checkpoint
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.optim import Optimizer

from beit.data.batch import Batch
from beit.data.prefetch import Prefetch
from beit.data.unreadable import TooManyUnreadable, Unreadable
from beit.run import checkpoint
from beit.run.device import DeviceConfig, LossScaling, precision_of, summed
from beit.run.directory import RunConfig, RunDirectory
from beit.run.means import Means
from beit.run.optim import AnyOptimConfig, Schedule, step_only_if
from beit.run.progress import Progress
from beit.run.reading import ImageBatches, Reading, shared_names

LONG = 0.5  # hours; a run that takes longer says after five steps how it becomes shorter
SUMS = ("means", "counts")  # parts of a checkpoint, see `Journal.begin`


class ReadConfig(Protocol):
    """The settings of reading that all trainings share."""

    @property
    def num_workers(self) -> int: ...
    @property
    def max_unreadable(self) -> float: ...


class TrainingConfig(Protocol):
    """The settings that all trainings share; a frozen dataclass."""

    @property
    def run(self) -> RunConfig: ...
    @property
    def data(self) -> ReadConfig: ...
    @property
    def optim(self) -> AnyOptimConfig: ...
    @property
    def device(self) -> DeviceConfig: ...


class Result(NamedTuple):
    """The result of a training.

    Attributes:
        directory: the run directory
        metrics: of the final weights on the validation set; empty without one
        sections: of the report (`beit.draw.report.Section`), in the first process only
    """

    directory: Path
    metrics: dict[str, float]
    sections: list[Any]


class Journal:
    """Records one run; the module's docstring shows its use.

    Attributes:
        config: of the run
        fabric: the launched processes
        start_step: step of the checkpoint that the run resumes from; 0 for a new run
        last_step: the run's last step
        step: the current step, counted from 1
        saved_step: the last step whose checkpoint was written, or failed
        recorded: what was logged in this step, validations included
        means: metrics of kept steps since the last log line
        indices: of this process's images in this step, (B,) for each micro-batch
        largest_norm: a step whose gradient's norm is not below it is not kept
        records: writes logs and checkpoints, `beit.run.records`
    """

    records: Any

    def __init__(
        self,
        about: Mapping[str, Any],
        config: TrainingConfig,
        fabric: Fabric,
        schedule: Schedule,
        directory: RunDirectory | None,
    ) -> None:
        """Read the last checkpoint of `directory`, if given; write nothing yet.

        Args:
            about: a new run, see `beit.run.environment`
        """
        self.config, self.fabric, self._about, self._run = config, fabric, about, config.run
        self._directory = directory
        self._first = fabric.is_global_zero
        saved = None if directory is None else checkpoint.latest(directory)
        self.start_step, self._state = saved or (0, {})
        self.steps_per_epoch = schedule.steps_per_epoch
        self.last_step = min(schedule.total_steps, config.run.stop_after or schedule.total_steps)
        self.step, self.saved_step = self.start_step, self.start_step if self._state else -1
        self.recorded: dict[str, float] = {}
        self.means = Means(fabric)
        self._unreadable = Unreadable(schedule.num_images, config.data.max_unreadable)
        self.indices: list[Tensor] = []
        self.largest_norm = float("inf")
        self._measured: list[Mapping[str, Tensor]] = []
        self._parts: dict[str, Any] = {}
        self._shown: Mapping[str, float] = {}
        self._warnings: set[str] = set()  # about validation images, each shown once

    @property
    def directory(self) -> RunDirectory:
        """The run directory, after `begin`."""
        assert self._directory is not None
        return self._directory

    @property
    def resumed(self) -> bool:
        """Whether the run resumes from a checkpoint."""
        return self.start_step > 0

    # ── begin and end ───────────────────────────────────────────────────────────────────────────

    def begin(self, batches: Iterable[Batch], **parts: Any) -> None:
        """Restore the parts, read the first batch, open the directory, save a first checkpoint.

        Args:
            batches: of training, from `start_step` on
            parts: objects with `state_dict` and `load_state_dict`, which make up a checkpoint; the
                journal adds its means, loss scaling and unreadable images. `means` and `counts`
                are sums over all processes since the last log line, restored in the first one
        """
        own = {"scaling": LossScaling(self.fabric), "unreadable": self._unreadable}
        self._parts, resumed = {**parts, **own, "means": self.means}, bool(self._state)
        self.fabric.call("on_begin", self, self._parts)
        if resumed:  # checkpoints of older versions follow a log line and lack some parts
            left_out = {*SUMS, "skips"} - self._state.keys()
            if not self._first:
                left_out.update(SUMS)
            restored = {n: part for n, part in self._parts.items() if n not in left_out}
            checkpoint.restore(self.directory, self.start_step, restored, self._state)
            self._state = {}
        self._stream = Prefetch(batches, self.fabric.device)
        self._stream.begin()
        self.fabric.barrier()
        log_step = None if self._directory is None else self.start_step
        if self._directory is None and self._first:
            settings = asdict(self.config)  # type: ignore[call-overload]  # a dataclass
            about = {**self._about, **precision_of(self.fabric)}
            self._directory = RunDirectory.create(self._run.output, settings, about)
        self._directory = directory = self._directory or RunDirectory(Path(self._run.output))
        self.fabric.call("on_directory", self, log_step)
        self._progress = Progress(self.last_step, self.start_step, enabled=self._first)
        if resumed:
            self.message(f"{directory.path}: resumes after step {self.step} of {self.last_step}")
        self.save()

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Show progress while the loop runs, and close the logs and the batches after it.

        If too many images cannot be read, all processes raise, after the first has written a
        checkpoint of the step: no step is lost.
        """
        run, verb = self.directory, self._about["verb"]
        with checkpoint.resumable(run, verb), self.records, closing(self._stream):
            try:
                with self._progress:
                    yield
            except TooManyUnreadable as error:  # between two steps
                self.save()
                self.fabric.barrier()  # when one process ends, torchrun kills the others
                raise ValueError(
                    f"{error}. Then resume after step {self.step}: beit {verb} "
                    f"--resume {run.path} (max_unreadable is in {run.config_file.name}; if images "
                    "were removed, add --accept_changed_data true)"
                ) from error

    def finish(
        self,
        metrics: dict[str, float],
        save_weights: Callable[[Path], object],
        report: Callable[[], list[Any]],
    ) -> Result:
        """Write the weights, then the report, in the first process; the others wait.

        Args:
            metrics: of the final weights
            save_weights: writes them to a file
            report: writes the report and returns its sections
        """
        sections = []
        if self._first:
            with checkpoint.resumable(self.directory, self._about["verb"]):
                save_weights(self.directory.weights_file)
            with self.aside("report"):
                sections = report()
        self.fabric.call("after_finish", self)
        self.fabric.barrier()
        return Result(self.directory.path, metrics, sections)

    # ── steps and batches ───────────────────────────────────────────────────────────────────────

    def steps(self) -> Iterator[int]:
        """Yield the numbers of the remaining steps; `beit.run.watching` may make them fewer."""
        while self.step < self.last_step:
            self.step += 1
            self.recorded, self.indices = {}, []
            self.fabric.call("on_step_start", self._stream)
            yield self.step
            self.fabric.call("after_step", self)

    def micro_batches(self) -> Iterator[Batch]:
        """Yield this process's micro-batches of the step; warn of unreadable images."""
        for batch in islice(self._stream, self.config.optim.accumulate):
            for name in self._unreadable.add(batch.unreadable):
                self._progress.warn(f"unreadable, replaced by the next image: {name}")
            self.indices.append(batch.indices)
            yield batch

    def read(self, batches: ImageBatches) -> Reading:
        """Return the batches of a validation set, to iterate over once; save a checkpoint first."""
        self.save()

        def warn(text: str) -> None:
            if text not in self._warnings:
                self._warnings.add(text)
                self._progress.warn(text)

        limit = self.config.data.max_unreadable
        return Reading(batches, self.fabric, limit, warn, self._progress.part)

    # ── intervals ───────────────────────────────────────────────────────────────────────────────

    def at_interval(self, steps: int) -> bool:
        """Tell whether the step is a multiple of `steps`, or the last step."""
        return self.step % steps == 0 or self.step == self.last_step

    @property
    def saves(self) -> bool:
        """Whether a checkpoint is written after this step, even without a validation."""
        return self.at_interval(self._run.checkpoint_every)

    @property
    def logs(self) -> bool:
        """Whether this step is logged: at an interval, and with each checkpoint that `saves`."""
        return self.step % self._run.log_every == 0 or self.saves

    @property
    def reports(self) -> bool:
        """Whether this process may draw a report now; the last one is drawn by `finish`."""
        return self._first and self.step < self.last_step

    # ── records ─────────────────────────────────────────────────────────────────────────────────

    def measure(self, metrics: Mapping[str, Tensor]) -> None:
        """Take metrics of a micro-batch, () each, for the means if the step is kept."""
        self._measured.append({name: metric.detach() for name, metric in metrics.items()})

    @torch.no_grad()
    def keep_if_finite(self, norm: Tensor, optimizer: Optimizer) -> Tensor:
        """Keep the step if its losses and its gradient, of this norm, are finite everywhere.

        Else the next `optimizer.step` does nothing, and `beit.run.skipping` records it. Returns: ()
        bool, the same in all processes; on a GPU, reading it waits for the device.
        """
        measured, self._measured = self._measured, []
        losses = [(n, v) for metrics in measured for n, v in metrics.items() if n.endswith("loss")]
        finite = torch.stack([norm.float(), *(v.float() for _, v in losses)]).isfinite().all()
        kept = finite & (norm < self.largest_norm)
        if self.fabric.world_size > 1:
            kept = summed(self.fabric, kept.float()) == self.fabric.world_size
        step_only_if(kept, optimizer)
        if self.config.optim.clip is not None:
            measured.append({"grad_norm": norm})
        for metrics in measured:
            self.means.add(metrics, kept)
        self.fabric.call("on_gradient", self, kept, norm, losses, optimizer)
        return kept

    def log(
        self,
        settings: Mapping[str, float],
        metrics: Mapping[str, float],
        shown: tuple[str, ...] = (),
    ) -> None:
        """Write a line of the metrics log.

        If too many images are unreadable, all processes raise TooManyUnreadable.

        Args:
            settings: of the step, such as its learning rate
            metrics: means since the last line
            shown: names of the metrics on the progress line, in order; empty for all
        """
        self._unreadable.add(shared_names(self.fabric, self._unreadable.names))
        if count := len(self._unreadable.names):
            metrics = {**metrics, "unreadable": count}
        self._write({**settings, **metrics})
        self._shown = {name: metrics[name] for name in shown or metrics if name in metrics}
        self._unreadable.check()

    def log_result(self, metrics: Mapping[str, float]) -> None:
        """Log and show the metrics of a validation or check."""
        self._write(metrics)
        shown = [f"{name} {v:{'.4g' if v < 1e4 else '.0f'}}" for name, v in metrics.items()]
        self.message("  ".join(shown))

    def log_warning(self, text: str) -> None:
        """Log and show a warning."""
        self.records.metrics({"step": self.step, "warning": text})
        self.message(text)

    def message(self, text: str) -> None:
        """Show a line of text."""
        self._progress.message(text)

    @contextmanager
    def aside(self, name: str) -> Iterator[None]:
        """Name what is done between two steps, and exclude its time from the speed.

        A file of the run that cannot be written, as a report on a full disk, is warned of.
        """
        try:
            with self._progress.aside(name):
                yield
        except OSError as error:
            if self.directory.path not in Path(str(error.filename)).parents:
                raise
            self.message(f"no {name}: {error.filename}: {error.strerror}. The run goes on")

    def _write(self, record: Mapping[str, float]) -> None:
        epoch = self.step / self.steps_per_epoch
        self.records.metrics({"step": self.step, "epoch": epoch, **record})
        self.recorded |= record

    def end_step(self) -> None:
        """Update the progress; log the speed and save a checkpoint at their intervals."""
        ended = self.step == self.last_step
        self.fabric.call("on_step_end", self._stream, self.directory, ended)
        images, wait = self.config.optim.batch_size, self._stream.wait_seconds
        loss = partial(self.means.peek, "loss")  # since the last log line; waits for the device
        speed = self._progress.update(self.step, self._shown, images, wait, loss)
        self._shown = {}
        hours = (speed.seconds_left or 0.0) / 3600
        if self.step == 5 and hours > LONG and not self._run.fitted_to:
            self.message(f"about {hours:.1f} hours; --budget 30m makes a shorter run")
        if self.logs:
            self.records.speed({"step": self.step, "time": time.time()} | speed._asdict())
        if self.saves:
            self.save()
        self.fabric.call("on_step_saved", self)  # `beit.run.preemption` may stop the run

    def save(self) -> None:
        """Write a checkpoint of the step, once: a later validation may load other weights.

        Every process takes part; `beit.run.records` writes. `beit.run.skipping` refuses weights
        that are not finite.
        """
        if self.step == self.saved_step:
            return
        self.fabric.call("before_save", self)
        self.records.save({name: part.state_dict() for name, part in self._parts.items()})
        self.saved_step = self.step
