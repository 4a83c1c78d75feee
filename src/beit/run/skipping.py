"""Skipped steps: what is recorded of them, for `beit replay`, and when they stop a run.

`Journal.keep_if_finite` skips a step whose losses or gradient are not finite in some process: the
weights, the optimiser's moments, averages, codebook and metrics stay as they were. With
`run.skip_spikes` it skips gradients that are much larger than usual too.

A callback of lightning-fabric, so that loops need not know it: the journal calls it.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from math import inf, isfinite
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from beit.files import replacing
from beit.run.device import gathered, precision_of, scaler_of
from beit.run.directory import RunConfig, RunDirectory
from beit.run.journal import Journal

KEPT = 2  # records in a run directory, each with the model's weights
NORMS = 100  # the last ones, of which the median is taken
FEWEST = 20  # before which no gradient is called a spike


class Step(NamedTuple):
    """A step whose values are on their way from the device.

    Attributes:
        values: (2 + losses,), 1 if the step is kept, the gradient's norm, the losses
        copied: when they have arrived; None if they have
        names: of the losses, micro-batch by micro-batch
    """

    step: int
    values: Tensor
    copied: Any
    names: list[str]
    indices: list[Tensor]
    rate: float


class Skips:
    """Records the skipped steps of a run, and stops it after `run.max_skipped` in a row.

    On a GPU it looks at a step when the next one has been queued, before that changes the weights:
    so the loop does not wait for the device.
    """

    def __init__(self) -> None:
        self.in_a_row, self.norms = 0, deque[float](maxlen=NORMS)
        self._waiting: Step | None = None

    # ── called by the journal ───────────────────────────────────────────────────────────────────

    def on_begin(self, journal: Journal, parts: dict[str, Any]) -> None:
        """Become one of the parts of a checkpoint."""
        parts["skips"], self._parts, self._journal = self, parts, journal

    def on_gradient(
        self,
        journal: Journal,
        kept: Tensor,
        norm: Tensor,
        losses: Sequence[tuple[str, Tensor]],
        optimizer: Optimizer,
    ) -> None:
        """Look at the step: at once on a CPU, else at the step before."""
        self._look()
        values = torch.stack([v.float() for v in (kept, norm, *(loss for _, loss in losses))])
        copied = None
        if values.is_cuda:
            values, copied = values.to("cpu", non_blocking=True), torch.cuda.Event()
            copied.record()
        rate = optimizer.param_groups[-1]["lr"] / optimizer.param_groups[-1].get("lr_scale", 1)
        names = [name for name, _ in losses]
        self._waiting = Step(journal.step, values, copied, names, journal.indices, rate)
        if copied is None:
            self._look()

    def before_save(self, journal: Journal) -> None:
        """Refuse to write a checkpoint with weights that are not finite."""
        self._look()
        for part in ("model", "average"):
            state = self._parts[part].state_dict() if part in self._parts else {}
            for name, weight in state.items():
                if weight.is_floating_point() and not weight.isfinite().all():
                    raise ValueError(
                        f"{name} of the {part} is not finite after step {journal.step}, so no "
                        f"checkpoint is written; {_last_good(journal.directory)}"
                    )

    def state_dict(self) -> dict[str, Any]:
        """Return the skipped steps in a row, and the last norms."""
        return {"in_a_row": self.in_a_row, "norms": list(self.norms)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.in_a_row = state["in_a_row"]
        self.norms.extend(state["norms"])
        self._set_limit()

    # ── a step ──────────────────────────────────────────────────────────────────────────────────

    def _look(self) -> None:
        """Read the values of the step that waits, if one does."""
        step, self._waiting = self._waiting, None
        if step is None:
            return
        if step.copied is not None:
            step.copied.synchronize()
        kept, norm, *_ = step.values.tolist()
        if not kept:
            self._skipped(step, norm)
            return
        self.in_a_row = 0
        if self._run.skip_spikes:
            self.norms.append(norm)
            self._set_limit()

    @property
    def _run(self) -> RunConfig:
        return self._journal.config.run

    def _set_limit(self) -> None:
        times = self._run.skip_spikes
        enough = times and len(self.norms) >= FEWEST
        self._journal.largest_norm = times * median(self.norms) if enough else inf

    def _skipped(self, step: Step, norm: float) -> None:
        """Record a skipped step; raise ValueError in all processes if it is one too many."""
        journal, fabric, run = self._journal, self._journal.fabric, self._run
        losses = gathered(fabric, step.values[None, 2:].to(fabric.device)).tolist()
        indices = gathered(fabric, torch.cat(step.indices)[None].to(fabric.device)).tolist()
        scaler = scaler_of(fabric)
        finite = all(isfinite(loss) for values in losses for loss in values)
        if finite and not isfinite(norm) and scaler and scaler.get_scale() >= 1:
            return  # no fault: the scaler seeks its scale
        self.in_a_row += 1
        fault = self._fault(step, norm, losses)
        about = {
            **precision_of(fabric),
            "device": str(fabric.device),
            "seed": run.seed,
            "epoch": (step.step - 1) // journal.steps_per_epoch,
            "rate": step.rate,
            "fault": fault,
            "norm": norm,
            "names": step.names,
            "losses": losses,  # of each process, as the names
            "indices": indices,  # of each process's images, micro-batch by micro-batch
        }
        state = self._parts["model"].state_dict()
        advice = ""
        if fabric.is_global_zero:
            advice = record(journal.directory, step.step, state, about)
        journal.log_warning(f"step {step.step} is skipped: {fault}{advice}")
        if self.in_a_row >= run.max_skipped:
            fabric.barrier()  # when one process ends, torchrun kills the others
            path = journal.directory.path
            raise ValueError(
                f"{self.in_a_row} skipped steps in a row: {fault} at step {step.step}, learning "
                f"rate {step.rate:.3g}; {_last_good(journal.directory)}. See beit replay {path}; "
                "then lower the learning rate, clip gradients (--optim.clip), use bf16-mixed or "
                "32-true precision, or remove the images"
            )

    def _fault(self, step: Step, norm: float, losses: list[list[float]]) -> str:
        for rank, values in enumerate(losses):
            for name, loss in zip(step.names, values, strict=True):
                if not isfinite(loss):
                    where = f" in process {rank} of {len(losses)}" if len(losses) > 1 else ""
                    return f"the {name} is {loss}{where}"
        if not isfinite(norm):
            return f"the norm of the gradient is {norm}"
        times = self._run.skip_spikes
        return f"the norm of the gradient is {norm:.3g}, above {times:g} times its median"


def _last_good(run: RunDirectory) -> str:
    saved = run.saved_steps()
    return f"last good checkpoint: {saved[max(saved)] if saved else 'none'}"


# ── the records ─────────────────────────────────────────────────────────────────────────────────


def record_file(run: RunDirectory, step: int) -> Path:
    """Return the file of a skipped step."""
    return run.path / "skipped" / f"step-{step:09d}.pt"


def record(
    run: RunDirectory, step: int, model: Mapping[str, Tensor], about: Mapping[str, Any]
) -> str:
    """Write a skipped step, in the form of a checkpoint, unless there are `KEPT` others already.

    Returns: what the warning of the step adds
    """
    file = record_file(run, step)
    if len({*file.parent.glob("step-*.pt"), file}) > KEPT:
        return ""
    state = {"model": dict(model), "about": dict(about)}
    try:
        file.parent.mkdir(exist_ok=True)
        with replacing(file) as temporary, temporary.open("wb") as opened:
            torch.save({"step": step, "state": state}, opened)
    except OSError as error:  # such as a full disk: the run goes on without
        return f"; it is not recorded ({error.strerror})"
    return f"; beit replay RUN {step} shows where it began"


# ── in place of all this ────────────────────────────────────────────────────────────────────────

_replacing: ContextVar[Any] = ContextVar("replacing", default=None)


@contextmanager
def guarded_by(callback: Any) -> Iterator[None]:
    """Call this callback for the trainings that begin in this context; nothing is recorded."""
    token = _replacing.set(callback)
    try:
        yield
    finally:
        _replacing.reset(token)


def guards() -> list[Any]:
    """Return the callbacks of a training that begins now."""
    return [_replacing.get() or Skips()]
