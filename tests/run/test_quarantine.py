import dataclasses
import json
import os
from collections import Counter

import pytest
import torch
from filelock import FileLock
from PIL import Image

from beit.data.batches import EvalBatches
from beit.data.sources import open_source
from beit.data.views import EvalView
from beit.pretraining import pretrain
from beit.run import quarantine
from beit.run.journal import Journal
from beit.run.quarantine import NotedBatches, note


def read(run):
    lines = (run / "bad_images.jsonl").read_text().splitlines()
    return {bad["name"]: (bad["reason"], bad["met"]) for bad in map(json.loads, lines)}


@pytest.fixture
def photos(tmp_path):
    """Eight images, of which two cannot be read."""
    root = tmp_path / "photos"
    root.mkdir()
    for index in range(8):
        (root / f"{index}.ppm").write_bytes(b"P6 9 9 255\n" + bytes([index]) * 243)
    (root / "3.ppm").write_bytes(b"P6 9 9 255\n")
    (root / "5.ppm").write_bytes(b"")
    return root


def test_bad_images_are_named_with_their_reason_and_how_often_they_were_met(photos, tmp_path):
    batches = EvalBatches(open_source(str(photos)), EvalView((8, 8)), 3)
    noted = NotedBatches(batches, str(tmp_path / "run"))
    assert [batch.indices.tolist() for batch in noted] == [[0, 1, 2], [4], [6, 7]]
    assert not (tmp_path / "run").exists()  # there is no run yet
    (tmp_path / "run").mkdir()
    for times in (1, 2):
        list(noted)
        bad = read(tmp_path / "run")
        assert bad.keys() == {"3.ppm", "5.ppm"} and bad["5.ppm"] == (
            "not an image (empty)", times
        )  # fmt: skip
    next(iterator := iter(noted))
    next(iterator)
    iterator.close()  # as when a run is stopped
    assert read(tmp_path / "run")["3.ppm"][1] == 3


def test_processes_add_to_one_file_and_none_waits_for_long(tmp_path, monkeypatch):
    file = tmp_path / "bad_images.jsonl"
    for names in (["a: x", "b: y: z"], ["b: y: z", "\udcff: not UTF-8"]):
        note(file, Counter(names))
    assert read(tmp_path) == {"a": ("x", 1), "b": ("y: z", 2), "\udcff": ("not UTF-8", 1)}
    monkeypatch.setattr(quarantine, "_EVERY", 0.01)
    left = Counter(["c: w"])
    with FileLock(tmp_path / ".bad_images.jsonl.lock"):
        note(file, left)
    assert left and "c" not in read(tmp_path)
    note(file, left)
    assert not left and read(tmp_path)["c"] == ("w", 1)


def test_a_name_with_a_colon_is_listed_whole(tmp_path):
    names = ["plate 3: well A1.ppm", 'a "b": c.ppm', '"quoted".ppm', "12:30.ppm", "plain.ppm"]
    for name in names:
        (tmp_path / name).write_bytes(b"P6 9 9 255\n")
    (tmp_path / "run").mkdir()
    source = open_source(str(tmp_path))
    list(NotedBatches(EvalBatches(source, EvalView((8, 8)), 3), str(tmp_path / "run")))
    bad = read(tmp_path / "run")
    assert bad.keys() == {*names}
    assert len({reason for reason, _ in bad.values()}) == 1


def test_a_training_lists_its_bad_images(
    photos, trained_tokenizer, pretrain_config, optim, tmp_path
):
    base = pretrain_config(tmp_path / "run", trained_tokenizer, optim=optim(batch_size=4))
    data = dataclasses.replace(base.data, train=str(photos), validation="", cache_gigabytes=0.0)
    config = dataclasses.replace(base, data=dataclasses.replace(data, max_unreadable=0.5))
    pretrain.run(config)
    assert read(tmp_path / "run").keys() == {"3.ppm", "5.ppm"}
    strict = dataclasses.replace(data, max_unreadable=0.0)
    output = dataclasses.replace(config.run, output=str(tmp_path / "stopped"))
    with pytest.raises(ValueError, match="cannot be read, more than the allowed"):
        pretrain.run(dataclasses.replace(config, data=strict, run=output))
    assert read(tmp_path / "stopped").keys() <= {"3.ppm", "5.ppm"}
    assert read(tmp_path / "stopped")


REASONS = {  # of the bad images, 10 of 1,000
    "empty.jpg": "not an image (empty)",
    "text.jpg": "not an image",
    "bomb.ppm": "too large",
    "cut.jpg": "truncated",
    "pipe.png": "not a regular file",
    "zero.png": "not a regular file",
    "loop.png": "symbolic links",
    os.fsdecode(b"no utf-8 \xff.png"): "not an image (empty)",
    "removed.ppm": "No such file",
    "becomes a pipe.ppm": "not a regular file",
}


@pytest.fixture
def everything(tmp_path):
    """A thousand images; eight are bad from the beginning, and four are odd and good."""
    root = tmp_path / "everything"
    root.mkdir()
    for number in range(985):
        (root / f"{number:03}.ppm").write_bytes(b"P6 9 9 255\n" + bytes([number % 256]) * 243)
    for name in ("removed.ppm", "becomes a pipe.ppm", "becomes larger.ppm"):
        (root / name).write_bytes(b"P6 9 9 255\n" + bytes(243))
    for name in ("empty.jpg", os.fsdecode(b"no utf-8 \xff.png")):
        (root / name).touch()
    (root / "text.jpg").write_text("no image")
    (root / "bomb.ppm").write_bytes(b"P6 60000 60000 255\n" + bytes(99))
    os.mkfifo(root / "pipe.png")
    os.symlink("/dev/zero", root / "zero.png")
    os.symlink("loop.png", root / "loop.png")
    os.symlink("..", root / "up")
    noise = torch.randint(256, (60, 80, 3), generator=torch.Generator().manual_seed(1)).byte()
    photo = Image.fromarray(noise.numpy())
    photo.save(root / "whole.jpg")
    (root / "cut.jpg").write_bytes((root / "whole.jpg").read_bytes()[:900])
    photo.save(root / "moving.gif", save_all=True, append_images=[photo.rotate(90)])
    photo.save(root / os.fsdecode(b"caf\xe9.png"))
    photo.resize((500, 1)).save(root / "line.png")
    return root


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_training_ends_well_although_one_of_a_hundred_images_is_bad(
    workers, everything, trained_tokenizer, pretrain_config, optim, tmp_path, monkeypatch
):
    end_step = Journal.end_step

    def changing(journal):
        if (
            everything / "removed.ppm"
        ).exists():  # after the first step; the second epoch meets all
            for name in ("removed.ppm", "becomes a pipe.ppm", "becomes larger.ppm"):
                (everything / name).unlink()
            os.mkfifo(everything / "becomes a pipe.ppm")
            Image.new("RGB", (70, 90)).save(everything / "becomes larger.ppm")
        end_step(journal)

    monkeypatch.setattr(Journal, "end_step", changing)
    base = pretrain_config(tmp_path / "run", trained_tokenizer, optim=optim(batch_size=100))
    data = dataclasses.replace(base.data, train=str(everything), validation=str(everything))
    data = dataclasses.replace(data, cache_gigabytes=0.0, num_workers=workers)
    assert len(open_source(data.train)) == 1000 and data.max_unreadable == 0.01
    pretrain.run(dataclasses.replace(base, data=data, validate_every=2))
    bad = read(tmp_path / "run")
    assert bad.keys() == REASONS.keys()
    assert all(REASONS[name] in reason for name, (reason, _) in bad.items())
    assert (tmp_path / "run" / "weights.safetensors").is_file()
