import logging
import os
from collections import OrderedDict
from types import SimpleNamespace

import pytest
import torch

from beit.run.checkpoint import latest, restore
from beit.run.directory import RunDirectory
from beit.run.records import save


@pytest.fixture
def run(tmp_path):
    return RunDirectory.create(tmp_path / "run", {}, {"verb": "pretrain"})


def state_of(step):
    return {
        "model": OrderedDict(weight=torch.full((5,), float(step))),
        "names": ["a", "b"],
        "betas": (0.9, 0.98),
        "rng": torch.random.get_rng_state(),
        "best": None,
    }


def kept(run):
    return sorted(int(file.stem.removeprefix("step-")) for file in run.checkpoints.iterdir())


def test_newest_state_comes_back(run):
    assert latest(run) is None
    for step in (3, 12):
        save(run, step, state_of(step))
    step, state = latest(run)
    assert step == 12
    assert torch.equal(state["model"]["weight"], torch.full((5,), 12.0))
    assert torch.equal(state["rng"], torch.random.get_rng_state())
    assert (state["names"], state["betas"], state["best"]) == (["a", "b"], (0.9, 0.98), None)


def test_keeps_the_last_and_every_so_many(run):
    for step in range(2, 15, 2):
        save(run, step, state_of(step), keep_last=2, keep_every=6)
    assert kept(run) == [6, 12, 14]


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "foreign"])
def test_damaged_newest_is_named_and_the_one_before_is_taken(run, caplog, damage):
    save(run, 1, state_of(1))
    path = save(run, 2, state_of(2))
    whole = path.read_bytes()
    place = whole.index(torch.full((5,), 2.0).numpy().tobytes())
    flipped = whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]
    content = {"truncated": whole[:-300], "flipped": flipped, "empty": b"", "foreign": b"PK\3\4"}
    path.write_bytes(content[damage])
    with caplog.at_level(logging.WARNING):
        step, state = latest(run)
    assert step == 1
    assert state["model"]["weight"][0] == 1
    assert path.name in caplog.text
    # Going on from step 1 makes the damaged one void: it neither counts nor stays.
    save(run, 2, state_of(2), keep_last=1)
    assert kept(run) == [2]
    assert latest(run)[0] == 2


def test_damaged_newer_one_does_not_displace_a_sound_one(run):
    save(run, 1, state_of(1))
    save(run, 9, state_of(9)).write_bytes(b"")
    assert latest(run)[0] == 1
    save(run, 4, state_of(4), keep_last=1)
    assert kept(run) == [4]


def test_all_damaged_is_an_error_not_a_restart(run):
    save(run, 1, state_of(1)).write_bytes(b"")
    with pytest.raises(ValueError, match="every checkpoint"):
        latest(run)


def test_pickled_objects_are_neither_written_nor_run(run, tmp_path, caplog):
    with pytest.raises(ValueError, match=r"state\['data'\]\['seen'\]\[1\] is a set"):
        save(run, 1, {"data": {"seen": [0, {1}]}})
    assert kept(run) == []

    class Harm:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harm"),)

    torch.save({"step": 5, "state": Harm()}, run.checkpoints / "step-000000005.pt")
    with pytest.raises(ValueError, match="every checkpoint"):
        latest(run)
    assert not (tmp_path / "harm").exists()


def test_leftovers_of_a_killed_writer_go(run):
    (run.checkpoints / ".step-000000001.pt.partial").write_bytes(b"half")
    assert latest(run) is None
    save(run, 2, state_of(2))
    assert kept(run) == [2]


def test_a_run_restarts_by_itself_only_before_its_first_checkpoint(run, caplog):
    assert latest(run) is None
    assert "has no checkpoint yet: the run starts again at step 0" in caplog.text
    run.weights_file.touch()  # it is finished
    with pytest.raises(FileNotFoundError, match=r"checkpoints holds no checkpoint to resume from"):
        latest(run)
    run.weights_file.unlink()
    run.checkpoints.rmdir()
    with pytest.raises(FileNotFoundError, match=r"put those of the run back, or start a new run"):
        latest(run)


def test_a_checkpoint_of_other_settings_is_refused(run):
    small, large = torch.nn.Linear(2, 3), torch.nn.Linear(2, 5)
    state = {"model": small.state_dict()}
    restore(run, 7, {"model": torch.nn.Linear(2, 3)}, state)
    expected = (
        r"checkpoint of step 7 in .*run does not fit the model that its config\.yaml describes: "
        r"size mismatch for weight: .*\[3, 2\].* from checkpoint, .*\[5, 2\]\)\. If that file was"
    )
    with pytest.raises(ValueError, match=expected):
        restore(run, 7, {"model": large}, state)
    with pytest.raises(ValueError, match="does not fit the average that"):
        restore(run, 7, {"model": small, "average": small}, state)


def test_a_full_disk_is_a_system_error(run, monkeypatch):
    def full(content, file):
        try:
            raise OSError(28, "No space left on device")
        finally:
            raise RuntimeError("unexpected pos 768 vs 662")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match=r"no space left on the disk.*000000003\.pt"):
        save(run, 3, state_of(3))
    assert kept(run) == []


def test_too_little_memory_is_not_damage(run, monkeypatch):
    """An older checkpoint would be used, and the good one removed by the next save."""
    save(run, 3, state_of(3))
    save(run, 5, state_of(5))

    def short(*arguments, **options):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9")

    with pytest.raises(RuntimeError, match="can't allocate memory"):
        restore(run, 5, {"model": SimpleNamespace(load_state_dict=short)}, {"model": {}})
    monkeypatch.setattr(torch, "load", short)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        latest(run)
