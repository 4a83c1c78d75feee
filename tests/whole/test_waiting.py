"""Between two log lines a step never waits for the device, and compiled models stay compiled.

On a CPU the operators that would wait for a GPU are counted in the part of the step that runs on
the device. Reading images and drawing masks are left out: they run on the CPU everywhere.
"""

import traceback
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode

from beit.data.prefetch import Prefetch
from beit.pretraining import loop, pretrain
from beit.run.device import DeviceConfig
from beit.run.directory import RunConfig
from beit.run.journal import Journal
from beit.tokenizer import vqkd as train_tokenizer

FIRST, LAST = 5, 50
# Operators whose result, or its shape, the CPU needs before it can go on.
WAITING = {
    *("_local_scalar_dense", "is_nonzero", "item", "equal", "allclose"),
    *("nonzero", "nonzero_numpy", "masked_select", "unique", "_unique", "_unique2"),
    *("unique_dim", "unique_consecutive", "bincount", "repeat_interleave"),
}


def caller():
    """Return where in the package an operator is called."""
    place = [frame for frame in traceback.extract_stack() if "/beit/" in frame.filename][-1]
    return f"{Path(place.filename).name}:{place.lineno}"


class Waits(TorchDispatchMode):
    """Counts the operators that would wait for a GPU, except in what `leave_out` wraps."""

    def __init__(self):
        super().__init__()
        self.found, self.steps, self._outside = Counter(), 0, 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        name = function.overloadpacket.__name__
        if self._outside == 0 and (name in WAITING or self._by_mask(name, arguments)):
            self.found[name, caller()] += 1
        return function(*arguments, **(options or {}))

    def _by_mask(self, name, arguments):
        """Tell whether tensors are indexed by booleans, which finds their places first."""
        indices = arguments[1] if name in ("index", "index_put", "index_put_") else ()
        return any(index is not None and index.dtype == torch.bool for index in indices)

    def leave_out(self, function):
        def run(*arguments, **options):
            self._outside += 1
            try:
                return function(*arguments, **options)
            finally:
                self._outside -= 1

        return run


@pytest.fixture
def waits(monkeypatch):
    """Counts in each step from `FIRST` to `LAST`, up to the step's end."""
    counted, steps, end = Waits(), Journal.steps, Journal.end_step

    def within(journal):
        for step in steps(journal):
            if FIRST <= step <= LAST:
                counted.steps += 1
                counted.__enter__()
            yield step

    def ended(journal):
        if FIRST <= journal.step <= LAST:
            counted.__exit__(None, None, None)
        end(journal)

    monkeypatch.setattr(Journal, "steps", within)
    monkeypatch.setattr(Journal, "end_step", ended)
    monkeypatch.setattr(Prefetch, "__next__", counted.leave_out(Prefetch.__next__))
    monkeypatch.setattr(loop, "draw_masks", counted.leave_out(loop.draw_masks))
    for recipe in (pretrain, train_tokenizer):
        monkeypatch.setattr(recipe, "can_fuse", lambda _: True)  # as on a GPU
    return counted


def long(config, **device):
    """The run of a config with 55 steps, one log line at the end, and no validation before."""
    run = RunConfig(config.run.output, log_every=100, checkpoint_every=100)
    optim = replace(config.optim, epochs=11)
    data, device = replace(config.data, validation=""), replace(config.device, **device)
    return replace(config, run=run, optim=optim, data=data, device=device, validate_every=11)


def test_a_pretraining_step_never_waits(tmp_path, trained_tokenizer, pretrain_config, waits):
    pretrain.run(long(pretrain_config(tmp_path / "run", trained_tokenizer)))
    assert waits.steps == LAST - FIRST + 1
    assert not waits.found


def test_a_tokenizer_step_never_waits(tmp_path, tokenizer_config, waits):
    codebook = train_tokenizer.CodebookConfig(revive_every=0)  # a revival waits for what is dead
    train_tokenizer.run(long(tokenizer_config(tmp_path / "run", codebook=codebook)))
    assert waits.steps == LAST - FIRST + 1
    assert not waits.found


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["pretrain", "train-tokenizer"])
def test_a_compiled_model_is_compiled_once(
    tmp_path, monkeypatch, trained_tokenizer, pretrain_config, tokenizer_config, verb
):
    compile_ = torch.compile  # what is traced does not depend on the backend, which takes long
    monkeypatch.setattr(torch, "compile", lambda model, **_: compile_(model, backend="eager"))
    torch._dynamo.reset()
    counters.clear()
    compiled, steps = [], Journal.steps

    def counting(journal):
        for step in steps(journal):
            if step == FIRST:
                compiled.append(counters["stats"]["unique_graphs"])
            yield step

    monkeypatch.setattr(Journal, "steps", counting)
    if verb == "pretrain":
        pretrain.run(long(pretrain_config(tmp_path / "run", trained_tokenizer), compile=True))
    else:
        train_tokenizer.run(long(tokenizer_config(tmp_path / "run"), compile=True))
    assert compiled[0] > 0
    assert counters["stats"]["unique_graphs"] == compiled[0]
    assert not counters["graph_break"]
    torch._dynamo.reset()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("verb", ["pretrain", "train-tokenizer"])
def test_cuda_reports_no_wait(
    tmp_path, monkeypatch, trained_tokenizer, pretrain_config, tokenizer_config, verb
):
    steps, end = Journal.steps, Journal.end_step

    def within(journal):
        for step in steps(journal):
            torch.cuda.set_sync_debug_mode("error" if FIRST <= step <= LAST else "default")
            yield step

    def ended(journal):
        torch.cuda.set_sync_debug_mode("default")
        end(journal)

    monkeypatch.setattr(Journal, "steps", within)
    monkeypatch.setattr(Journal, "end_step", ended)
    device = vars(DeviceConfig(accelerator="cuda"))
    if verb == "pretrain":
        pretrain.run(long(pretrain_config(tmp_path / "run", trained_tokenizer), **device))
    else:
        codebook = train_tokenizer.CodebookConfig(revive_every=0)
        train_tokenizer.run(long(tokenizer_config(tmp_path / "run", codebook=codebook), **device))
