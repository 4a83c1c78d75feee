"""Watches one step of a training: the first numbers that are not finite, and of which image.

A callback of lightning-fabric in place of `beit.run.skipping.Skips`. It ends the training before
the step is applied.
"""

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from beit.run.journal import Journal

PACKAGE = Path(__file__).parents[1]
FUNCTION = re.compile(r"Function '(\w+)' returned nan values")


class Replayed(Exception):  # noqa: N818 - no error
    """Ends the training after the step that was watched."""


class First(NamedTuple):
    """The first tensor that was not finite.

    Attributes:
        where: which tensor, as "output of backbone.blocks.1.mlp"
        images: numbers of the images in the training set; empty if it is not one row per image
    """

    where: str
    images: list[int]


class Trace:
    """Watches a step, as process `rank` of `world_size` computes it.

    With `anomalies` it finds the function, by `torch.autograd.set_detect_anomaly`, which ends a
    backward pass at its first nan; without, all else.

    Attributes:
        forward: the first in the forward passes, the teacher's or tokenizer's included; None for
            none
        gradient: the first gradient in the backward passes
        function: of PyTorch whose gradient was nan first, and the line that called it
        weights: names of those whose gradients are not finite
        losses: of each micro-batch
        norm: of the gradient
    """

    def __init__(self, rank: int, world_size: int, anomalies: bool) -> None:
        self._rank, self._world_size, self._anomalies = rank, world_size, anomalies
        self._names: dict[nn.Module, str] = {}
        self._running, self._backwards = False, 0
        self.forward: First | None = None
        self.gradient: First | None = None
        self.function = ""
        self.weights: list[str] = []
        self.losses: list[float] = []
        self.norm = 0.0

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch all modules and gradients of the training that runs in this context."""
        hook = register_module_forward_hook(self._after_forward)
        try:
            with warnings.catch_warnings(), torch.autograd.set_detect_anomaly(self._anomalies):
                warnings.filterwarnings("ignore", "Anomaly Detection has been enabled")
                yield
        finally:
            hook.remove()

    # ── called by Fabric and the journal ────────────────────────────────────────────────────────

    def after_launch(self, fabric: Fabric) -> None:
        """Let the one process take the part of another one."""
        strategy: Any = fabric.strategy
        strategy.global_rank, strategy.world_size = self._rank, self._world_size

    def on_after_setup(self, fabric: Fabric, module: nn.Module) -> None:
        """Learn the names of the model's modules, and where backward passes end."""
        model: Any = module.module
        self._names = {child: name for name, child in model.named_modules()}
        backward = fabric.backward

        def watched(*arguments: Any, **options: Any) -> None:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                try:
                    backward(*arguments, **options)
                except RuntimeError as error:
                    function = FUNCTION.search(str(error))
                    if function is None:
                        raise
                    self.function = self.function or function[1] + _called_by(caught)
            for name, weight in model.named_parameters():
                finite = weight.grad is None or bool(weight.grad.isfinite().all())
                if not finite and name not in self.weights:
                    self.weights.append(name)
            self._backwards += 1

        fabric.backward = watched  # type: ignore[method-assign]

    def on_begin(self, journal: Journal, parts: Mapping[str, Any]) -> None:
        """Remember the journal, which knows the images."""
        self._journal = journal

    def on_step_start(self, stream: object) -> None:
        """Begin to watch."""
        self._running = True

    def on_gradient(
        self,
        journal: Journal,
        kept: Tensor,
        norm: Tensor,
        losses: Sequence[tuple[str, Tensor]],
        optimizer: object,
    ) -> None:
        """End the training."""
        self.losses = [float(loss) for _, loss in losses]
        self.norm = float(norm)
        raise Replayed

    # ── tensors ─────────────────────────────────────────────────────────────────────────────────

    def _after_forward(self, module: nn.Module, given: Any, output: Any) -> None:
        if not self._running:
            return
        name = self._names.get(module, f"{type(module).__name__} (not of the trained model)")
        for kind, values in (("input", given), ("output", output)):
            for tensor in _floats(values):
                if self.forward is None and not tensor.isfinite().all():
                    self.forward = First(f"{kind} of {name or 'the model'}", self._images(tensor))
        for tensor in _floats(output):
            if tensor.requires_grad:
                tensor.register_hook(partial(self._after_backward, name or "the model"))

    def _after_backward(self, name: str, gradient: Tensor) -> None:
        if self.gradient is None and not gradient.isfinite().all():
            self.gradient = First(f"gradient of the output of {name}", self._images(gradient))

    def _images(self, tensor: Tensor) -> list[int]:
        """Return the images of the rows that are not finite."""
        batches = self._journal.indices
        if len(batches) != self._backwards + 1 or tensor.ndim == 0:
            return []
        B = len(batches[-1])
        if not len(tensor) or len(tensor) % B:
            return []
        bad = ~tensor.detach().isfinite().reshape(B, -1).all(dim=1)
        return [int(index) for index in batches[-1][bad.to(batches[-1].device)]]


def _floats(values: Any) -> Iterator[Tensor]:
    """Yield the floating point tensors in nested tuples, lists and dicts."""
    if isinstance(values, Tensor):
        if values.is_floating_point():
            yield values
    elif isinstance(values, Mapping):
        yield from _floats(list(values.values()))
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _floats(value)


def _called_by(caught: Sequence[warnings.WarningMessage]) -> str:
    """Return the last line of the call that anomaly detection names, in our code if it is there."""
    lines = [line for warned in caught for line in str(warned.message).splitlines()]
    places = [
        f" in {line.strip()}: {code.strip()}"
        for line, code in pairwise(lines)
        if line.lstrip().startswith("File ")
    ]
    ours = [place for place in places if str(PACKAGE) in place]
    return (ours or places or [""])[-1]
