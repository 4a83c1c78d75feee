"""A tiny training through the journal: what is written when, and what a resumed run repeats."""

import json
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from threading import Event

import pytest
import torch
from torch import nn

from beit.data.batches import DataConfig, EvalBatches
from beit.data.shapes import ShapesSource
from beit.data.source import UnreadableImage
from beit.data.sources import open_source
from beit.data.unreadable import TooManyUnreadable
from beit.data.views import EvalView
from beit.run import records as records_of_run
from beit.run.batches import train_batches
from beit.run.checkpoint import latest
from beit.run.device import DeviceConfig
from beit.run.directory import RunConfig, RunDirectory
from beit.run.journal import Journal
from beit.run.launch import launch_run
from beit.run.means import Means
from beit.run.optim import OptimConfig, clip_gradients
from beit.run.progress import Progress

OPTIM = OptimConfig(
    batch_size=2,
    accumulate=2,
    epochs=2,
    learning_rate=0.1,
    warmup_epochs=0,
    betas=(0.9, 0.9),
    weight_decay=0.0,
)


@dataclass(frozen=True)
class Config:
    run: RunConfig
    data: DataConfig = DataConfig(train="shapes://9?size=8", num_workers=0)
    optim: OptimConfig = OPTIM
    device: DeviceConfig = DeviceConfig(accelerator="cpu")


class Stop(Exception):  # noqa: N818
    """Ends a run."""


def train(config, directory=None, stop_in_validation=None):
    """Fit the mean brightness; `validation` is due every two steps. Returns: the journal."""
    fabric = launch_run(config, directory)
    torch.manual_seed(0)
    model = nn.Linear(1, 1)
    source = open_source(config.data.train)
    journal = Journal(
        {"verb": "toy"}, config, fabric, config.optim.schedule(len(source)), directory
    )
    batches = train_batches(journal, source, lambda image, _: (image, image))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    wrapped, optimizer = fabric.setup(model, optimizer)
    journal.begin(batches, model=model, optimizer=optimizer)

    def validate():
        if journal.at_interval(2):
            list(journal.read(EvalBatches(source, EvalView((8, 8)), 2)))
            if journal.step == stop_in_validation:
                raise Stop
            journal.log_result({"val_weight": model.weight.item()})

    with journal.recording():
        if journal.resumed:
            validate()
        for _ in journal.steps():
            for batch in journal.micro_batches():
                brightness = batch.images.float().mean((1, 2, 3))[:, None] / 255  # (B, 1)
                loss = (wrapped(brightness) - 1).square().mean()
                fabric.backward(loss)
                journal.measure({"loss": loss})
            norm = clip_gradients(fabric, wrapped, optimizer, config.optim.clip)
            journal.keep_if_finite(norm, optimizer)
            optimizer.step()
            optimizer.zero_grad()
            if journal.logs:
                journal.log({"rate": 0.1}, journal.means.read())
            journal.end_step()
            validate()
    return journal


def config(path: Path, **changes) -> Config:
    run = {"log_every": 3, "checkpoint_every": 4, "keep_last": 3}
    return Config(RunConfig(str(path), **(run | changes)))


def records(path: Path) -> list[dict]:
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def test_what_is_written_when(tmp_path):
    journal = train(config(tmp_path / "run"))
    assert (journal.steps_per_epoch, journal.start_step, journal.last_step) == (4, 0, 8)
    written = [(r["step"], "loss" in r) for r in records(tmp_path / "run")]
    assert written == [
        *((2, False), (3, True), (4, True), (4, False)),
        *((6, True), (6, False), (8, True), (8, False)),
    ]
    assert all(r["epoch"] == r["step"] / 4 for r in records(tmp_path / "run"))
    names = sorted(file.name for file in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == ["step-000000004.pt", "step-000000006.pt", "step-000000008.pt"]
    speed = (tmp_path / "run" / "speed.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in speed] == [3, 4, 6, 8]
    step, state = latest(RunDirectory(tmp_path / "run"))
    parts = {"model", "optimizer", "scaling", "unreadable", "means", "skips"}
    assert (step, set(state)) == (8, parts)


@pytest.mark.parametrize("step", [2, 4, 6, 8])
def test_a_run_stopped_in_its_validation_resumes_before_it(step, tmp_path, capsys):
    train(config(tmp_path / "whole"))
    with pytest.raises(Stop):
        train(config(tmp_path / "cut"), stop_in_validation=step)
    directory = RunDirectory.open(tmp_path / "cut")
    capsys.readouterr()
    journal = train(config(tmp_path / "cut"), directory)
    assert journal.start_step == step
    assert f"cut: resumes after step {step} of 8\n" in capsys.readouterr().err
    logs = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("whole", "cut")]
    assert logs[0] == logs[1]


def test_a_run_resumes_from_its_first_second(tmp_path):
    """The checkpoint of step 0 has the weights that the run began with."""
    train(config(tmp_path / "whole"))
    with pytest.raises(Stop):
        train(config(tmp_path / "cut"), stop_in_validation=2)
    directory = RunDirectory.open(tmp_path / "cut")
    for file in directory.checkpoints.glob("step-*[1-9].pt"):
        file.unlink()
    assert latest(directory)[0] == 0
    assert not train(config(tmp_path / "cut"), directory).resumed  # no validation is repeated
    assert records(tmp_path / "cut") == records(tmp_path / "whole")


def test_a_checkpoint_of_an_older_version_has_no_sums(tmp_path):
    train(config(tmp_path / "whole"))
    train(config(tmp_path / "cut", stop_after=4))
    directory = RunDirectory.open(tmp_path / "cut")
    file = directory.checkpoints / "step-000000004.pt"
    content = torch.load(file)
    del content["state"]["means"]
    torch.save(content, file)
    train(config(tmp_path / "cut"), directory)
    assert records(tmp_path / "cut") == records(tmp_path / "whole")


def test_a_loss_is_shown_from_the_first_steps_on(tmp_path, capsys):
    train(config(tmp_path / "run", log_every=100, checkpoint_every=100))
    shown = [line for line in capsys.readouterr().err.splitlines() if line.startswith("step ")]
    assert [line.split()[1] for line in shown] == ["1/8", "2/8", "4/8", "8/8"]
    assert all("loss 0." in line for line in shown)


def test_the_loss_is_read_when_a_line_is_due_and_only_then(tmp_path, monkeypatch):
    """Each reading waits for the device: after the first steps one in five seconds, no more."""
    reads, steps = [], [0]
    update, peek = Progress.update, Means.peek

    def ticking(progress, step, *arguments):
        steps[0] = step
        progress._clock = lambda: 1e6 + 2.0 * step
        return update(progress, step, *arguments)

    def counted(means, name):
        reads.append(steps[0])
        return peek(means, name)

    monkeypatch.setattr(Progress, "update", ticking)
    monkeypatch.setattr(Means, "peek", counted)
    long = config(tmp_path / "run", log_every=100, checkpoint_every=100)
    train(replace(long, optim=replace(OPTIM, epochs=5)))
    assert reads == [1, 2, 4, 7, 10, 13, 16, 19, 20]


def test_a_validation_after_the_checkpoint_is_repeated_not_doubled(tmp_path):
    """A run killed after the validation of its last checkpoint, as older versions left theirs."""
    train(config(tmp_path / "whole"))
    train(config(tmp_path / "cut", stop_after=4))
    directory = RunDirectory.open(tmp_path / "cut")
    assert [r["step"] for r in records(tmp_path / "cut")][-2:] == [4, 4]
    train(config(tmp_path / "cut"), directory)
    assert records(tmp_path / "cut") == records(tmp_path / "whole")


def test_an_existing_directory_is_refused(tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(FileExistsError, match=r"there exists and is not overwritten"):
        train(config(tmp_path / "there"))


class Damaged:
    """Three images, of which the second cannot be read."""

    labels = None
    class_names = None
    why_unlabelled = ""

    def __len__(self):
        return 3

    def name(self, index):
        return f"{index}.png"

    def image(self, index):
        if index == 1:
            raise UnreadableImage(self.name(index), "broken")
        return torch.zeros(3, 8, 8, dtype=torch.uint8)


def test_an_unreadable_validation_image_is_named_once_and_counted_each_time(tmp_path, capsys):
    made = config(tmp_path / "run")
    made = replace(made, data=replace(made.data, max_unreadable=0.5))
    fabric = launch_run(made, None)
    journal = Journal({"verb": "toy"}, made, fabric, OPTIM.schedule(9), None)
    journal.begin([])
    with journal.recording():
        for _ in range(2):
            reading = journal.read(EvalBatches(Damaged(), EvalView((8, 8)), 2))
            assert [batch.indices.tolist() for batch in reading] == [[0], [2]]
            assert reading.counts() == {"val_images": 2, "val_unreadable": 1}
    assert capsys.readouterr().err.count("1.png: broken") == 1


def test_weights_come_before_the_report(tmp_path):
    journal = train(config(tmp_path / "run"))
    calls = []
    result = journal.finish(
        {"val_x": 1.0}, calls.append, lambda: calls.append("report") or ["page"]
    )
    assert calls == [tmp_path / "run" / "weights.safetensors", "report"]
    assert result == (tmp_path / "run", {"val_x": 1.0}, ["page"])


def test_the_schedule_of_epochs_and_of_steps():
    assert OPTIM.schedule(9) == (4, 8, 9)
    assert OPTIM.schedule(1) == (1, 2, 1)
    short = replace(config(Path("unused")).run, stop_after=5)
    assert partial(min, 8)(short.stop_after) == 5


def test_too_many_unreadable_training_images_stop_the_run_and_lose_no_step(tmp_path, monkeypatch):
    read = ShapesSource.image

    def image(source, index):
        if index == 1:
            raise UnreadableImage("1.png", "broken")
        return read(source, index)

    monkeypatch.setattr(ShapesSource, "image", image)
    made = config(tmp_path / "run", log_every=1)
    with pytest.raises(ValueError, match=r"1 of 9 images .*Then resume after step (\d)"):
        train(made)
    directory = RunDirectory.open(tmp_path / "run")
    step, _ = latest(directory)
    assert records(tmp_path / "run")[-1]["step"] == step
    monkeypatch.undo()
    assert train(made, directory).start_step == step


@pytest.mark.parametrize(("step", "ends"), [(3, False), (8, True)])
def test_a_checkpoint_for_unreadable_images_is_of_the_step(step, ends, tmp_path, monkeypatch):
    """Other processes wait for it, and it does not replace one that the step already has."""
    made, model, seen = config(tmp_path / "run"), nn.Linear(1, 1), []
    fabric = launch_run(made, None)
    journal = Journal({"verb": "toy"}, made, fabric, OPTIM.schedule(9), None)
    journal.begin([], model=model)
    directory, weight = RunDirectory(tmp_path / "run"), model.weight.item()
    monkeypatch.setattr(fabric, "barrier", lambda: seen.append(latest(directory)))
    with pytest.raises(ValueError, match=f"Then resume after step {step}"), journal.recording():
        journal.step = step
        if ends:
            journal.end_step()
            nn.init.zeros_(model.weight)  # as if the best weights were validated
        raise TooManyUnreadable("too many")
    [(saved, state)] = seen
    assert (saved, state["model"]["weight"].item()) == (step, weight)


# ── disks that fail ─────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def failing(monkeypatch):
    """Lets checkpoints of some steps fail; returns the set of these steps."""
    steps, save = set(), records_of_run.save

    def saved(run, step, *arguments):
        if step in steps:
            raise OSError(5, "Input/output error", f"{run.path}/checkpoints/{step}")
        return save(run, step, *arguments)

    monkeypatch.setattr(records_of_run, "save", saved)
    return steps


@pytest.mark.parametrize("save_async", [False, True])
def test_a_checkpoint_that_cannot_be_written_is_warned_of(save_async, failing, tmp_path, capsys):
    train(config(tmp_path / "whole"))
    capsys.readouterr()
    failing |= {4, 6}
    train(config(tmp_path / "run", save_async=save_async))
    said = [line for line in capsys.readouterr().err.splitlines() if "no checkpoint" in line]
    assert [line.split(": ")[0] for line in said] == [f"no checkpoint of step {s}" for s in (4, 6)]
    assert all("4: Input/output error. The run goes on" in line for line in said[:1])
    assert all("the checkpoint of step 2 is kept" in line for line in said)
    assert records(tmp_path / "run") == records(tmp_path / "whole")
    step, state = latest(RunDirectory(tmp_path / "run"))
    assert (step, state["model"]) == (8, latest(RunDirectory(tmp_path / "whole"))[1]["model"])


def test_a_run_without_any_checkpoint_stops(failing, tmp_path):
    failing |= {0}
    with pytest.raises(OSError, match=r"Input/output error; without a first .*--resume:"):
        train(config(tmp_path / "run"))
    directory = RunDirectory.open(tmp_path / "run")
    with pytest.raises(OSError, match="Input/output error"):
        train(config(tmp_path / "run"), directory)
    failing.clear()
    assert train(config(tmp_path / "run"), directory).step == 8


def test_a_checkpoint_written_beside_the_steps_is_of_its_step(tmp_path, monkeypatch):
    """The thread waits until the next step has changed the weights."""
    save, changed = records_of_run.save, Event()
    monkeypatch.setattr(records_of_run, "save", lambda *a: changed.wait(9) and save(*a))
    monkeypatch.setattr(Journal, "logs", property(lambda journal: changed.set() or True))
    changed.set()  # the first one is written at once
    train(config(tmp_path / "whole", stop_after=2))
    changed.clear()
    begin = Journal.begin
    monkeypatch.setattr(Journal, "begin", lambda *a, **k: (changed.set(), begin(*a, **k)))
    train(config(tmp_path / "beside", save_async=True, stop_after=2))
    states = [latest(RunDirectory(tmp_path / name))[1] for name in ("whole", "beside")]
    assert states[0]["model"] == states[1]["model"]


def test_an_error_of_the_system_names_the_good_checkpoint(tmp_path):
    journal = train(config(tmp_path / "run"))

    def gone(path):
        raise OSError(116, "Stale file handle", str(path))

    way = "the checkpoint of step 8 is good: beit toy --resume .*run"
    with pytest.raises(OSError, match=rf"Stale file handle; {way}.*weights.safetensors"):
        journal.finish({}, gone, list)
    with pytest.raises(ChildProcessError, match=rf"died; {way}"), journal.recording():
        raise ChildProcessError("died")


def test_a_report_that_cannot_be_written_is_warned_of(tmp_path, capsys):
    journal = train(config(tmp_path / "run"))

    def read_only():
        raise OSError(30, "Read-only file system", str(journal.directory.report_file))

    assert journal.finish({}, lambda path: None, read_only).sections == []
    assert "no report: " in capsys.readouterr().err
    with pytest.raises(OSError, match="Read-only"), journal.aside("validation"):
        raise OSError(30, "Read-only file system", "elsewhere/images")
