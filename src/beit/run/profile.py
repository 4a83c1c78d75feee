"""Where the time of some steps goes, for `run.profile`: by part of the step, and by operator.

A callback of lightning-fabric, so that loops need not know it: the journal calls it before and
after each step, Fabric after the set-up of the model.
"""

import logging
import time
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import nn
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.profiler import ProfilerActivity, profile

from beit.data.prefetch import Prefetch
from beit.files import write_text
from beit.run.directory import RunDirectory

logger = logging.getLogger(__name__)
WARM_UP = 5  # steps before the profile begins
DATA, TARGETS, REST = "data wait", "masks, teacher or tokenizer", "rest of the step"
# By the names of PyTorch's operators; the first match counts.
KINDS = {
    "optimiser and clipping": ("adam", "optimizer", "foreach", "vector_norm", "clip_"),
    "attention": ("attention", "aten::_softmax"),
    "matrix products": ("mm", "matmul", "linear", "conv", "einsum"),
    "normalisation and activation": ("norm", "gelu", "relu", "silu", "swish", "tanh", "sigmoid"),
}
OTHER = "other operators"


class StepTimes:
    """Adds up the seconds of the parts of a training's steps, after the warm-up.

    Attributes:
        taken: steps done, the warm-up included
        parts: seconds of each part, of all measured steps
    """

    def __init__(self, warm_up: int = WARM_UP) -> None:
        self.warm_up, self.taken, self.measuring = warm_up, 0, False
        self.parts: dict[str, float] = defaultdict(float)
        self._hooks: list[Any] = []

    # ── called by Fabric and the journal ────────────────────────────────────────────────────────

    def on_after_setup(self, fabric: Fabric, module: nn.Module) -> None:
        """Mark where the model's forward and backward pass begin and end."""
        self._fabric, self._device = fabric, fabric.device
        module.register_forward_pre_hook(lambda *_: self._mark(TARGETS))
        module.register_forward_hook(lambda *_: self._mark("forward"))
        backward = fabric.backward

        def marked(*arguments: Any, **options: Any) -> None:
            self._mark("loss")
            backward(*arguments, **options)
            self._mark("backward")

        fabric.backward = marked  # type: ignore[method-assign]

    def on_step_start(self, stream: Prefetch) -> None:
        """Begin to measure after the warm-up."""
        self.taken += 1
        if self.taken == self.warm_up + 1:
            self._hooks = [
                register_optimizer_step_pre_hook(lambda *_: self._mark("metrics and clipping")),
                register_optimizer_step_post_hook(lambda *_: self._mark("optimiser")),
            ]
            self.measuring = True
        self._waited, self._last = stream.wait_seconds, self._now()

    def on_step_end(self, stream: Prefetch, directory: RunDirectory, last: bool) -> None:
        """Add up the step."""
        if self.measuring:
            self._mark(REST)
            waited = stream.wait_seconds - self._waited
            self.parts[DATA] += waited
            self.parts[TARGETS] -= waited  # between the last step and the model
            if last:
                self._stop()

    def _stop(self) -> None:
        """Measure no more."""
        self.measuring = False
        for hook in self._hooks:
            hook.remove()

    def _now(self) -> float:
        """Return the time when the device has done what it was given."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    def _mark(self, part: str) -> None:
        """Count the time since the last mark for a part of the step."""
        if self.measuring:
            now = self._now()
            self.parts[part] += now - self._last
            self._last = now


class StepProfile(StepTimes):
    """Profiles `num_steps` steps of a training and writes a trace and two tables."""

    def __init__(self, num_steps: int) -> None:
        super().__init__()
        self._num_steps = num_steps
        self._profiler: profile | None = None

    def on_step_start(self, stream: Prefetch) -> None:
        """Begin to profile after the warm-up."""
        if self.taken == self.warm_up:
            activities = [ProfilerActivity.CPU]
            if self._device.type == "cuda":
                activities.append(ProfilerActivity.CUDA)
            self._profiler = profile(activities=activities)
            self._profiler.start()
        super().on_step_start(stream)

    def on_step_end(self, stream: Prefetch, directory: RunDirectory, last: bool) -> None:
        """Add up the step; after the last one to profile, or of the run, write the files."""
        super().on_step_end(stream, directory, last)
        if self._profiler is None:
            if last and self.taken <= self.warm_up:
                logger.warning("run.profile begins after %d steps: nothing is written", WARM_UP)
        elif last or self.taken == self.warm_up + self._num_steps:
            self._write(directory)

    def _write(self, directory: RunDirectory) -> None:
        """Stop the profile; the first process writes what it measured."""
        assert self._profiler is not None
        self._profiler.stop()
        self._stop()
        if self._fabric.is_global_zero:
            self._profiler.export_chrome_trace(str(directory.path / "trace.json.gz"))
            on_gpu = self._device.type == "cuda"
            operators = by_kind(self._profiler.key_averages(), on_gpu)
            write_text(directory.path / "profile.md", self._tables(operators, on_gpu))
        self._profiler = None

    def _tables(self, operators: Mapping[str, float], on_gpu: bool) -> str:
        steps = self.taken - self.warm_up
        where = "GPU" if on_gpu else "CPU"
        note = " Between two parts the loop waits for the GPU." if on_gpu else ""
        return (
            f"{steps} steps after {WARM_UP} of warm-up, with PyTorch's profiler, which takes time "
            f"itself.{note}\n\n"
            + _table("part of the step", self.parts, steps)
            + f"\n{where} time by operator:\n\n"
            + _table("operators", operators, steps)
        )


def by_kind(events: Any, on_gpu: bool) -> dict[str, float]:
    """Add up the seconds of the profiler's operators by their kind, without those they call."""
    seconds = dict.fromkeys((*KINDS, OTHER), 0.0)
    for event in events:
        if event.device_type.name == "CPU":  # GPU time too is of an operator
            micro = event.self_device_time_total if on_gpu else event.self_cpu_time_total
            seconds[kind_of(event.key)] += micro / 1e6
    return seconds


def kind_of(operator: str) -> str:
    """Return the kind of an operator by its name."""
    name = operator.lower()
    return next((kind for kind, parts in KINDS.items() if any(p in name for p in parts)), OTHER)


def _table(title: str, seconds: Mapping[str, float], steps: int) -> str:
    total = sum(seconds.values()) or 1.0
    rows = [
        f"| {name} | {value / steps * 1e3:.1f} | {value / total:.0%} |"
        for name, value in sorted(seconds.items(), key=lambda item: -item[1])
    ]
    return "\n".join([f"| {title} | ms a step | share |", "|---|---|---|", *rows, ""])
