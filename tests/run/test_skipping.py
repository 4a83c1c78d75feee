"""Steps that are not finite: nothing of them remains, and too many in a row stop a run."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric.plugins.precision import MixedPrecision
from torch import Tensor, nn

from beit.data.batches import DataConfig
from beit.data.sources import open_source
from beit.run import skipping
from beit.run.batches import train_batches
from beit.run.checkpoint import latest
from beit.run.device import DeviceConfig
from beit.run.directory import RunConfig, RunDirectory
from beit.run.journal import Journal
from beit.run.launch import launch_run
from beit.run.muon import Muon
from beit.run.optim import OptimConfig, clip_gradients, step_only_if
from beit.tokenizer import vqkd

NAN, INF = float("nan"), float("inf")
OPTIM = OptimConfig(
    batch_size=2, epochs=2, learning_rate=0.1, warmup_epochs=0, betas=(0.9, 0.9), weight_decay=0.0
)


@dataclass(frozen=True)
class Config:
    run: RunConfig
    data: DataConfig = DataConfig(train="shapes://9?size=8", num_workers=0)
    optim: OptimConfig = OPTIM
    device: DeviceConfig = DeviceConfig(accelerator="cpu")


def train(
    config: Config,
    factors: dict[int, float] | None = None,
    directory: RunDirectory | None = None,
    plugin: Any = None,
    added: float = 0.0,
) -> Journal:
    """Fit the mean brightness in eight steps.

    Args:
        factors: of the loss, by step
        plugin: for the precision
        added: to the losses of these steps
    """
    fabric = launch_run(config, directory)
    if plugin is not None:
        plugin.reason = "the test"
        fabric._strategy._precision = fabric._precision = plugin
    torch.manual_seed(0)
    model = nn.Linear(1, 1)
    source = open_source(config.data.train)
    schedule = config.optim.schedule(len(source))
    journal = Journal({"verb": "toy"}, config, fabric, schedule, directory)
    batches = train_batches(journal, source, lambda image, _: (image, image))
    wrapped, optimizer = fabric.setup(model, torch.optim.AdamW(model.parameters(), lr=0.1))
    journal.begin(batches, model=model, optimizer=optimizer)
    with journal.recording():
        for step in journal.steps():
            for batch in journal.micro_batches():
                brightness = batch.images.float().mean((1, 2, 3))[:, None] / 255  # (B, 1)
                loss = (wrapped(brightness).float() - 1).square().mean()
                if step in (factors or {}):
                    loss = loss * (factors or {})[step] + added
                fabric.backward(loss)
                journal.measure({"loss": loss})
            norm = clip_gradients(fabric, wrapped, optimizer, config.optim.clip)
            journal.keep_if_finite(norm, optimizer)
            optimizer.step()
            optimizer.zero_grad()
            if journal.logs:
                journal.log({"rate": 0.1}, journal.means.read())
            journal.end_step()
    return journal


def config(path: Path, **changes: Any) -> Config:
    return Config(RunConfig(str(path), **({"log_every": 3, "checkpoint_every": 4} | changes)))


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def state_of(path: Path) -> dict[str, Any]:
    found = latest(RunDirectory(path))
    assert found is not None
    return found[1]


def same(first: Any, second: Any) -> bool:
    """Compare nested states to the bit."""
    if isinstance(first, Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[k], second[k]) for k in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return bool(first == second)


# ── what is skipped ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("factor", "added", "fault"),
    [
        (NAN, 0.0, "the loss is nan"),
        (1.0, INF, "the loss is inf"),  # whose gradient is finite
        (1e30, 0.0, "the norm of the gradient is inf"),  # of a finite loss
    ],
)
def test_a_step_is_skipped_and_logged(tmp_path: Path, factor: float, added: float, fault: str):
    train(config(tmp_path / "run"), {5: factor}, added=added)
    texts = [(r["step"], r["warning"]) for r in records(tmp_path / "run") if "warning" in r]
    assert texts == [(5, f"step 5 is skipped: {fault}; beit replay RUN 5 shows where it began")]
    state = state_of(tmp_path / "run")
    assert state["optimizer"]["state"][0]["step"] == 7
    assert all(weight.isfinite() for weight in state["model"].values())
    lines = [r["loss"] for r in records(tmp_path / "run") if "loss" in r]
    assert len(lines) == 4
    assert None not in lines


def test_a_log_line_without_a_kept_step_has_no_loss(tmp_path: Path) -> None:
    train(config(tmp_path / "run", log_every=1), {5: NAN})
    assert ["loss" in r for r in records(tmp_path / "run") if r["step"] == 5] == [False, False]


def test_the_first_step_too(tmp_path: Path) -> None:
    train(config(tmp_path / "run"), {1: NAN})
    assert state_of(tmp_path / "run")["optimizer"]["state"][0]["step"] == 7


def test_the_fused_kernel_leaves_everything_as_it_is() -> None:
    """What a GPU relies on; the kernel of the CPU does the same."""

    class OnGpu:
        is_cuda = True

        def __init__(self, kept: bool) -> None:
            self.kept = torch.tensor(kept)

        def __invert__(self) -> Tensor:
            return ~self.kept

    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    for number, kept in enumerate((False, True, False)):
        before = [{k: v.clone() for k, v in model.state_dict().items()}]
        before += [{k: v.clone() for k, v in optimizer.state[model.weight].items()}]
        model(torch.full((1, 3), 1.0 if kept else NAN)).sum().backward()
        step_only_if(OnGpu(kept), optimizer)  # type: ignore[arg-type]
        optimizer.step()
        optimizer.zero_grad()
        after = [model.state_dict(), optimizer.state[model.weight]]
        if number:  # the state is made by the first call
            assert same(before, after) != kept
        assert model.weight.isfinite().all()
    assert optimizer.state[model.weight]["step"] == 1


def refuses(monkeypatch: pytest.MonkeyPatch, steps: Collection[int]) -> None:
    """Leaves the updates of these steps out, though all their numbers are finite."""
    keep = Journal.keep_if_finite

    def refused(journal: Journal, norm: Tensor, optimizer: Any) -> Tensor:
        return keep(journal, norm + INF if journal.step in steps else norm, optimizer)

    monkeypatch.setattr(Journal, "keep_if_finite", refused)


@pytest.mark.parametrize(
    "name",
    [
        "train-tokenizer",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in (
                *("pretrain", "pretrain by Muon", "train-tokenizer --kind dvae"),
                *("finetune", "segment"),
            )
        ),
    ],
)
def test_nothing_of_a_skipped_step_remains(
    name: str,
    tmp_path: Path,
    trainings: dict[str, tuple[Any, Callable[..., Any]]],
    breaks: Callable[[Collection[int]], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Weights, moments, averages, codebook, running statistics, means, counts: all to the bit."""
    training, make = trainings[name]
    with monkeypatch.context() as patched:
        refuses(patched, {2, 6})
        training.run(make(output=tmp_path / "left-out"))
    breaks({2, 6})
    training.run(make(output=tmp_path / "broken"))
    assert same(state_of(tmp_path / "broken"), state_of(tmp_path / "left-out"))
    logs = [records(tmp_path / run) for run in ("broken", "left-out")]
    skipped = [r for r in logs[0] if "is skipped: the loss is nan" in r.get("warning", "")]
    assert [r["step"] for r in skipped] == [2, 6]
    others = [[r for r in log if "is skipped" not in r.get("warning", "")] for log in logs]
    assert others[0] == others[1]


@pytest.mark.parametrize(
    ("name", "optimiser"),
    [
        ("pretrain", torch.optim.AdamW),
        pytest.param("pretrain by Muon", Muon, marks=pytest.mark.slow),
    ],
)
def test_it_is_as_if_the_optimiser_had_not_been_called(
    name: str,
    optimiser: Any,
    tmp_path: Path,
    trainings: dict[str, tuple[Any, Callable[..., Any]]],
    breaks: Callable[[Collection[int]], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    training, make = trainings[name]
    step, calls = optimiser.step, []

    def seldom(self: Any, closure: Any = None) -> Any:
        calls.append(1)
        return None if len(calls) in (2, 3) else step(self, closure)

    with monkeypatch.context() as patched:
        patched.setattr(optimiser, "step", seldom)
        training.run(make(output=tmp_path / "left-out"))
    breaks({2, 3})
    training.run(make(output=tmp_path / "broken"))
    broken, left_out = (state_of(tmp_path / run) for run in ("broken", "left-out"))
    for part in ("model", "optimizer"):
        assert same(broken[part], left_out[part])


def test_a_codebook_starts_from_finite_vectors(
    tmp_path: Path, tokenizer_config: Callable[..., Any], breaks: Callable[[Collection[int]], None]
) -> None:
    breaks({1})
    run = RunConfig(str(tmp_path / "run"), log_every=1, stop_after=3)
    vqkd.run(tokenizer_config(tmp_path / "run", run=run))
    logged = records(tmp_path / "run")
    assert [r["step"] for r in logged if "is skipped" in r.get("warning", "")] == [1]
    assert [r["step"] for r in logged if "loss" in r] == [2, 3]
    assert [r["choices"] for r in logged if "choices" in r] == [0, 48, 48]
    assert state_of(tmp_path / "run")["model"]["quantizer.codebook"].isfinite().all()


# ── loss scaling ────────────────────────────────────────────────────────────────────────────────


def test_a_scaler_that_seeks_its_scale_is_no_fault(tmp_path: Path) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**18)
    plugin = MixedPrecision("16-mixed", "cpu", scaler)
    train(config(tmp_path / "run", max_skipped=1), plugin=plugin)
    assert scaler.get_scale() < 2.0**18
    assert not [r for r in records(tmp_path / "run") if "warning" in r]
    assert not (tmp_path / "run" / "skipped").exists()


@pytest.mark.parametrize(("scale", "factor"), [(8.0, NAN), (0.5, 1e30)])
def test_with_loss_scaling_a_loss_and_what_no_scale_mends_are_faults(
    tmp_path: Path, scale: float, factor: float
) -> None:
    plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=scale))
    with pytest.raises(ValueError, match=r"1 skipped steps in a row: the .* at step 5"):
        train(config(tmp_path / "run", max_skipped=1), {5: factor}, plugin=plugin)


# ── records, and the end of a run ───────────────────────────────────────────────────────────────


def test_several_in_a_row_stop_the_run(tmp_path: Path) -> None:
    message = (
        r"3 skipped steps in a row: the loss is nan at step 7, learning rate 0\.1; last good "
        r"checkpoint: .*step-000000004\.pt\. See beit replay .*run; then lower the learning rate"
    )
    with pytest.raises(ValueError, match=message):
        train(config(tmp_path / "run"), {3: NAN, 5: NAN, 6: NAN, 7: NAN})
    files = sorted(file.name for file in (tmp_path / "run" / "skipped").iterdir())
    assert files == ["step-000000003.pt", "step-000000005.pt"]
    texts = [r["warning"] for r in records(tmp_path / "run") if "warning" in r]
    assert ["replay" in text for text in texts] == [True, True, False, False]


def test_a_record_has_what_the_step_had(tmp_path: Path) -> None:
    made = config(tmp_path / "run")
    train(replace(made, optim=replace(OPTIM, accumulate=2)), {5: NAN})
    directory = RunDirectory(tmp_path / "run")
    content = torch.load(skipping.record_file(directory, 5), weights_only=True)
    assert content["step"] == 5
    state = content["state"]
    assert same(
        state["model"], torch.load(directory.checkpoints / "step-000000004.pt")["state"]["model"]
    )
    about = state["about"]
    assert (about["seed"], about["epoch"], about["rate"]) == (0, 1, 0.1)
    assert (about["names"], about["precision"]) == (["loss", "loss"], "32-true")
    assert str(about["losses"]) == "[[nan, nan]]"
    [indices] = about["indices"]
    assert len(indices) == 2


def test_a_disk_without_room_for_the_record_does_not_stop_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    made = config(tmp_path / "run")
    monkeypatch.setattr(skipping, "replacing", full)
    train(made, {5: NAN})
    [text] = [r["warning"] for r in records(tmp_path / "run") if "warning" in r]
    assert text.endswith("the loss is nan; it is not recorded (No space left on device)")


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path) -> None:
    factors = {2: NAN, 4: NAN, 5: NAN, 7: NAN}
    train(config(tmp_path / "whole"), factors)
    train(config(tmp_path / "cut", stop_after=4), factors)
    train(config(tmp_path / "cut"), factors, RunDirectory.open(tmp_path / "cut"))
    assert records(tmp_path / "cut") == records(tmp_path / "whole")
    assert same(state_of(tmp_path / "cut"), state_of(tmp_path / "whole"))


def test_the_steps_in_a_row_count_on_after_a_resume(tmp_path: Path) -> None:
    factors = {4: NAN, 5: NAN, 6: NAN}
    train(config(tmp_path / "run", stop_after=4), factors)
    with pytest.raises(ValueError, match=r"3 skipped steps in a row: .* at step 6"):
        train(config(tmp_path / "run"), factors, RunDirectory.open(tmp_path / "run"))


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    made, model = config(tmp_path / "run"), nn.Linear(1, 1)
    journal = Journal({"verb": "toy"}, made, launch_run(made, None), OPTIM.schedule(9), None)
    journal.begin([], model=model)
    nn.init.constant_(model.bias, INF)
    journal.step = 4
    message = r"bias of the model is not finite after step 4, .*checkpoint: .*step-0{9}\.pt"
    with pytest.raises(ValueError, match=message), journal.recording():
        journal.end_step()
    assert [file.name for file in journal.directory.checkpoints.iterdir()] == ["step-000000000.pt"]


def test_spikes_are_skipped_by_option_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(skipping, "FEWEST", 3)
    spikes = {2: 1e4, 6: 1e4}
    train(config(tmp_path / "off"), spikes)
    assert not [r for r in records(tmp_path / "off") if "warning" in r]
    train(config(tmp_path / "on", skip_spikes=9.0), spikes)
    [text] = [r["warning"] for r in records(tmp_path / "on") if "warning" in r]
    assert text.startswith("step 6 is skipped: the norm of the gradient is ")  # no median at 2 yet
    assert ", above 9 times its median; beit replay" in text
    train(config(tmp_path / "cut", skip_spikes=9.0, stop_after=5), spikes)
    train(config(tmp_path / "cut", skip_spikes=9.0), spikes, RunDirectory.open(tmp_path / "cut"))
    assert same(state_of(tmp_path / "cut")["model"], state_of(tmp_path / "on")["model"])


def test_settings_that_cannot_be() -> None:
    with pytest.raises(ValueError, match=r"run\.max_skipped is 0; expected 1 or more"):
        RunConfig(max_skipped=0)
    with pytest.raises(ValueError, match=r"run\.skip_spikes is -1; expected 0 \(none\) or more"):
        RunConfig(skip_spikes=-1)


# ── two processes ───────────────────────────────────────────────────────────────────────────────

SCRIPT = """
import sys
import torch
import beit.run.launch
from beit.cli import main
from beit.nn.patches import PatchEmbed
from beit.run.journal import Journal

beit.run.launch.bfloat16_unit = lambda accelerator: ""
begin, keep, forward, journals = Journal.begin, Journal.keep_if_finite, PatchEmbed.forward, []
how, *words = sys.argv[1:]
STEPS = (2, 6)

def noted(journal, *arguments, **parts):
    journals.append(journal)
    begin(journal, *arguments, **parts)

def broken(module, images):
    patches, journal = forward(module, images), journals[-1]
    if not module.training or journal.step not in STEPS or journal.fabric.global_rank != 1:
        return patches
    return torch.cat([patches[:1] * float("nan"), patches[1:]])

Journal.begin = noted
if how == "broken":
    PatchEmbed.forward = broken
else:
    Journal.keep_if_finite = lambda journal, norm, optimizer: keep(
        journal, norm + float("inf") if journal.step in STEPS else norm, optimizer
    )
sys.exit(main(words))
"""


@pytest.mark.slow
def test_all_processes_skip_a_step_of_which_one_is_broken(
    tmp_path: Path, trained_tokenizer: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    words = ["pretrain", "--preset", "shapes-tiny", "--tokenizer", str(trained_tokenizer)]
    words += ["--data", "shapes://43?size=24", "--validation", "", "--check.every", "0"]
    words += ["--model.backbone.image_size", "[16,24]", "--model.backbone.patch_size", "8"]
    words += ["--mask.count", "2", "--mask.min_block", "1", "--data.num_workers", "0"]
    words += ["--optim.batch_size", "8", "--optim.epochs", "2", "--optim.accumulate", "2"]
    for how in ("broken", "left-out"):
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command = [*launcher, "--nproc_per_node=2", str(script), how, *words]
        command += ["--output", str(tmp_path / how)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, env=environment, timeout=300)
        assert done.returncode == 0, done.stderr.decode()
    assert same(state_of(tmp_path / "broken"), state_of(tmp_path / "left-out"))
    texts = [r["warning"] for r in records(tmp_path / "broken") if "warning" in r]
    assert len(texts) == 2
    assert texts[0].startswith("step 2 is skipped: the loss is nan in process 1 of 2; beit replay")
    about = torch.load(skipping.record_file(RunDirectory(tmp_path / "broken"), 2))["state"]["about"]
    assert [len(values) for values in about["losses"]] == [6, 6]
    assert sorted(map(len, about["indices"])) == [4, 4]
    command = [sys.executable, str(script), "broken", "replay", str(tmp_path / "broken"), "6"]
    done = subprocess.run(command, capture_output=True, env=environment, timeout=300)
    assert "first in the output of backbone.patch_embed" in done.stdout.decode(), done.stderr
    assert "computed again as process 1: loss nan" in done.stderr.decode()
    assert "not the numbers of the record" not in done.stderr.decode()
