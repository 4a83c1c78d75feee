"""`beit pack`: the shards are the source again, whatever it is and however often it was killed."""

import io
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pyarrow
import pytest
import tifffile
import torch
from PIL import Image
from pyarrow import parquet

from beit.data.batches import DataConfig
from beit.data.source import encoded_of
from beit.data.sources import open_source
from beit.packing import pack
from beit.packing.pack import Config
from beit.packing.shards import FORMATS, digest
from beit.pretraining import pretrain
from beit.run import lock

CLASSES = ("apple", "lime", "orange")
SMALL = 0.0015  # megabytes of a shard
ONE_QUICK = ["tar", pytest.param("parquet", marks=pytest.mark.slow)]


@pytest.fixture(autouse=True)
def _caches(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Thirteen photos in three class folders, of several formats and sizes."""
    root = tmp_path_factory.mktemp("photos") / "fruit"
    rng = np.random.default_rng(1)
    for number, ending in enumerate(["png", "jpg", "JPEG", "webp", "tif"] * 2 + ["png"] * 3):
        path = root / CLASSES[number // 5] / f"{number:02}.{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (14 + number % 3, 17 - number % 2, 3), np.uint8)
        Image.fromarray(pixels).save(path)
    deep = rng.integers(0, 2**16, (9, 11), np.uint16)
    tifffile.imwrite(root / "lime" / "deep.tif", deep)
    return root


def packed(data, output, **options):
    given = {"shard_megabytes": SMALL, "num_workers": 0, **options}
    return pack.run(Config(str(data), str(output), **given))


def contents(folder):
    """Returns the bytes of the files that users see."""
    return {p.name: p.read_bytes() for p in folder.iterdir() if not p.name.startswith(".")}


def names(source):
    return [source.name(index) for index in range(len(source))]


def same(packed, source, pixels=False):
    """Whether two sources have the same names, labels, classes and stored bytes, or pixels."""
    assert names(packed) == names(source)
    assert packed.class_names == source.class_names
    if source.labels is None:
        assert packed.labels is None
    else:
        assert packed.labels.tolist() == source.labels.tolist()
    for index in range(len(source)):
        assert torch.equal(packed.image(index), source.image(index))
        assert pixels or encoded_of(packed, index) == encoded_of(source, index)


# ── the same source ─────────────────────────────────────────────────────────────────────────────


def write_tar(path, files):
    with tarfile.open(path, "w") as tar:
        for number, file in enumerate(files):
            for ending, data in ((file.suffix[1:], file.read_bytes()), ("cls", b"%d" % number)):
                info = tarfile.TarInfo(f"{number:03}.{ending}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


@pytest.fixture(scope="module")
def sources(photos, tmp_path_factory):
    """The name of each kind of source of the photos."""
    root = tmp_path_factory.mktemp("sources")
    files = sorted(path for path in photos.rglob("*") if path.is_file())
    (root / "flat").mkdir()
    for file in files:
        shutil.copy(file, root / "flat")
    shutil.copytree(photos, root / "loose")
    shutil.copy(files[0], root / "loose" / "one.png")
    shutil.copytree(photos, root / "dots")
    (root / "dots/lime/05.png").rename(root / "dots/lime/05.old.png")
    listed = [
        files[index] for index in (3, 1, 3, 7, 12, 9, 0, 5, 11)
    ]  # in no order, one of them twice
    (root / "list").write_text("".join(f"{file}\n" for file in listed))
    lines = [f"{file.name},{n % 2}" for n, file in reversed([*enumerate(files)])]
    lines[2] = lines[2][:-1]  # without a label
    (root / "flat" / "t.csv").write_text("\n".join(["file_name,label", *lines]))
    for shard, part in enumerate((files[:5], files[5:])):
        write_tar(root / f"x-{shard}.tar", part)  # the same names in both
    with zipfile.ZipFile(root / "f.zip", "w") as archive:
        for file in files:
            archive.write(file, file.relative_to(photos))
    columns = {
        "image": [file.read_bytes() for file in files],
        "kind": [file.parent.name for file in files],
        "other": [n % 3 for n in range(len(files))],
    }
    parquet.write_table(pyarrow.table(columns), root / "x.parquet", row_group_size=4)
    found = {"folder": photos, "flat": root / "flat", "loose": root / "loose"}
    found |= {"dots": root / "dots", "part": f"{photos}[:60%]", "list": f"@{root / 'list'}"}
    found |= {"table": root / "flat" / "t.csv", "tar": root / "x-{0..1}.tar", "zip": root / "f.zip"}
    found |= {"rows": f"{root / 'x.parquet'}?label=kind", "drawn": "shapes://11?size=16"}
    return {kind: str(name) for kind, name in found.items()}


KINDS = "folder flat loose dots part list table tar zip rows drawn".split()


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("kind", KINDS)
def test_shards_are_their_source_again(sources, tmp_path, kind, form):
    output = tmp_path / "out"
    result = packed(sources[kind], output, format=form)
    source, shards = open_source(sources[kind]), open_source(str(output))
    same(shards, source, pixels=kind == "drawn")
    assert (result.images, result.unreadable) == (len(source), 0)
    assert result.shards == len([*output.glob(f"*.{form}")]) > 1
    assert not (output / lock.NAME).exists()
    for part in ("[:50%]", "[50%:]"):
        whole = sources[kind].removesuffix("[:60%]")
        if whole == sources[kind]:
            assert names(open_source(f"{output}{part}")) == names(open_source(f"{whole}{part}"))


@pytest.mark.parametrize("form", FORMATS)
def test_splits_stay_splits(photos, tmp_path, form):
    for split, left_out in (("train", ()), ("valid", ("orange",))):
        shutil.copytree(photos, tmp_path / "s" / split, ignore=shutil.ignore_patterns(*left_out))
    result = packed(tmp_path / "s", tmp_path / "out", format=form)
    assert result.sets == {"train": 14, "valid": 11}
    ending = pack.ending(Config("s", "out"), result)
    assert ending.figure.startswith("14 images of train and 11 of valid, ")
    for split in ("train", "test"):
        shards = open_source(str(tmp_path / "out"), split=split)
        same(shards, open_source(str(tmp_path / "s"), split=split))
    shutil.rmtree(tmp_path / "s" / "valid")
    packed(tmp_path / "s", tmp_path / "only", format=form)
    with pytest.raises(ValueError, match=r"none of them for validation|several sets|train"):
        open_source(str(tmp_path / "only"), split="test")


@pytest.mark.parametrize("form", FORMATS)
def test_classes_named_by_numbers_keep_their_names(tmp_path, form):
    for name in ("0", "1", "10", "2"):  # the class 10 has the number 2
        (tmp_path / "in" / name).mkdir(parents=True)
        Image.new("RGB", (40, 30), (90, 9, int(name))).save(tmp_path / "in" / name / "a.png")
    packed(tmp_path / "in", tmp_path / "out", format=form, shard_megabytes=1e-6)
    shards = open_source(str(tmp_path / "out"))
    same(shards, open_source(str(tmp_path / "in")))
    one = open_source(str(tmp_path / "out" / f"images-000002.{form}"))
    assert one.class_names[int(one.labels[0])] == "10"


def test_other_readers_find_what_they_expect(sources, tmp_path):
    packed(sources["folder"], tmp_path / "tar", shard_megabytes=1)
    with tarfile.open(tmp_path / "tar" / "images-000000.tar") as tar:
        members = [(m.name, m.mtime, m.uid, m.mode) for m in tar]
        assert tar.extractfile("lime/05.cls").read() == b"1"
    assert [m[0] for m in members[:4]] == [
        *("apple/00.png", "apple/00.cls", "apple/01.jpg", "apple/01.cls")
    ]
    assert {m[1:] for m in members} == {(0, 0, 0o644)}
    packed(sources["rows"], tmp_path / "numbered", shard_megabytes=1)
    with tarfile.open(tmp_path / "numbered" / "images-000000.tar") as tar:
        listed = tar.getnames()
    assert listed[:3] == ["000000000.png", "000000000.cls", "000000001.jpg"]
    packed(sources["folder"], tmp_path / "rows", format="parquet", shard_megabytes=1)
    table = parquet.read_table(tmp_path / "rows" / "images-000000.parquet")
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert features == {
        "image": {"_type": "Image"},
        "label": {"_type": "ClassLabel", "names": list(CLASSES)},
    }
    assert table.column("image")[5].as_py()["path"] == "lime/05.png"


@pytest.mark.parametrize("form", ONE_QUICK)
def test_a_training_on_shards_is_that_on_the_folder(
    sources, tmp_path, trained_tokenizer, pretrain_config, optim, same_bits, form
):
    packed(sources["folder"], tmp_path / "out", format=form)
    for name, data in (("folder", sources["folder"]), ("shards", tmp_path / "out")):
        base = pretrain_config(tmp_path / name, Path(trained_tokenizer), optim=optim(batch_size=4))
        settings = vars(base) | {"data": DataConfig(train=str(data), num_workers=0)}
        pretrain.run(type(base)(**settings))
    same_bits(tmp_path / "folder", tmp_path / "shards")
    logs = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("folder", "shards")]
    assert logs[0] == logs[1]


# ── encoded anew, left out ──────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("form", FORMATS)
def test_larger_images_are_shrunk_and_others_copied(photos, tmp_path, form):
    shutil.copytree(photos, tmp_path / "all")
    pixels = np.random.default_rng(2).integers(0, 256, (30, 50, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "all" / "lime" / "large.png")
    packed(tmp_path / "all", tmp_path / "out", shorter_side=20, format=form)
    source, shards = open_source(str(tmp_path / "all")), open_source(str(tmp_path / "out"))
    assert names(shards) == names(source)
    assert torch.equal(shards.labels, source.labels)
    for index in range(len(source)):
        changed = encoded_of(shards, index) != encoded_of(source, index)
        assert changed == (source.name(index) == "lime/large.png")
        if changed:
            assert shards.image(index).shape == (3, 20, 33)
            assert encoded_of(shards, index).startswith(b"\xff\xd8\xff")


def test_a_range_of_values_is_applied_once(photos, tmp_path):
    folder = tmp_path / "deep"
    folder.mkdir()
    for number in range(3):
        tifffile.imwrite(folder / f"{number}.tif", np.full((9, 11), 1000 * number, np.uint16))
    spec = f"{folder}?range=0:4000"
    result = packed(spec, tmp_path / "copied")
    then = pack.ending(Config(spec, str(tmp_path / "copied")), result).then
    assert f"{tmp_path / 'copied'}?range=0:4000" in then
    same(open_source(f"{tmp_path / 'copied'}?range=0:4000"), open_source(spec))
    result = packed(spec, tmp_path / "encoded", shorter_side=100)
    encoded = Config(spec, str(tmp_path / "encoded"), shorter_side=100)
    assert str(tmp_path / "encoded") in pack.ending(encoded, result).then
    levels = [int(open_source(str(tmp_path / "encoded")).image(n)[0, 0, 0]) for n in range(3)]
    assert levels == pytest.approx([0, 64, 128], abs=2)


def test_images_of_five_channels(tmp_path):
    (tmp_path / "cells").mkdir()
    for number in range(3):
        values = np.random.default_rng(number).integers(0, 256, (5, 24, 20), np.uint8)
        np.save(tmp_path / f"cells/{number}.npy", values)
    with pytest.raises(ValueError, match=r"0\.npy: an array, no image file; give --format parquet"):
        packed(f"{tmp_path}/cells?bands=1-5", tmp_path / "tar")
    packed(f"{tmp_path}/cells?bands=1-5", tmp_path / "rows", format="parquet")
    shards, cells = (open_source(f"{tmp_path}/{name}?bands=1-5") for name in ("rows", "cells"))
    same(shards, cells, pixels=True)


@pytest.mark.parametrize("form", FORMATS)
def test_unreadable_images_are_left_out_and_noted(photos, tmp_path, form, capsys):
    shutil.copytree(photos, tmp_path / "bad")
    for name in ("apple/00.png", "lime/05.png", "orange/12.png"):
        (tmp_path / "bad" / name).write_bytes(b"nothing")
    os.mkfifo(tmp_path / "bad" / "lime" / "pipe.png")
    spec, output = str(tmp_path / "bad"), tmp_path / "out"
    with pytest.raises(ValueError, match=r"of 15 images cannot be read, .*raise max_unreadable"):
        packed(spec, output, format=form)
    result = packed(spec, output, format=form, max_unreadable=0.5)
    assert (result.images, result.unreadable) == (11, 4)
    assert "unreadable, left out: orange/12.png: not an image" in capsys.readouterr().err
    assert "4 unreadable" in pack.ending(Config(spec, str(output)), result).figure
    noted = [s["unreadable"] for s in json.loads((output / "pack.json").read_text())["shards"]]
    assert {int(i) for of in noted for i in of} == {0, 5, 11, 14}
    source, shards = open_source(spec), open_source(str(output))
    kept = [i for i in range(15) if i not in (0, 5, 11, 14)]
    assert names(shards) == [source.name(i) for i in kept]
    assert shards.labels.tolist() == source.labels[kept].tolist()
    for path in (tmp_path / "bad").rglob("*.*"):
        path.unlink()
        path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"no image can be read; the first is apple/00.png: not"):
        packed(spec, tmp_path / "none", format=form, max_unreadable=1)


# ── workers, kills, faults ──────────────────────────────────────────────────────────────────────


def in_child(run):
    """Run in a forked process. Returns its exit code, negative for a signal."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            run()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_before(number, folder):
    """Kill this process before the n-th operation that changes or flushes a file in a folder."""
    left, fsync = [number], os.fsync

    def operation():
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(event, arguments):
        changes = event in ("os.mkdir", "os.rename", "os.remove")
        if changes or (event == "open" and (arguments[2] or 0) & os.O_ACCMODE):
            if str(arguments[0]).startswith(str(folder)):
                operation()

    def flush(handle):
        operation()
        fsync(handle)

    sys.addaudithook(hook)
    os.fsync = flush


@pytest.mark.parametrize("form", ONE_QUICK)
def test_workers_and_kills_change_no_byte(sources, tmp_path, form):
    packed(sources["part"], tmp_path / "whole", format=form)
    whole = contents(tmp_path / "whole")
    packed(sources["part"], tmp_path / "workers", format=form, num_workers=2)
    assert contents(tmp_path / "workers") == whole
    broken, kills, code = tmp_path / "broken", 0, -signal.SIGKILL

    def run():
        kill_before(kills + 1, broken)
        packed(sources["part"], broken, format=form)

    while code == -signal.SIGKILL:
        code = in_child(run)
        kills += code != 0
    assert code == 0
    assert kills > 10
    assert contents(broken) == whole
    assert not [path for path in broken.iterdir() if path.name.endswith(".partial")]


@pytest.mark.parametrize("form", FORMATS)
def test_a_shard_that_is_gone_is_written_again(sources, tmp_path, form, capsys):
    output = tmp_path / "out"
    packed(sources["folder"], output, format=form)
    whole = contents(output)
    shards = sorted(output.glob(f"*.{form}"))
    shards[1].unlink()
    shards[2].unlink()
    with shards[4].open("ab") as file:
        file.write(b"more")
    capsys.readouterr()
    packed(sources["folder"], output, format=form)
    assert f"{len(shards) - 3} shards were written before" in capsys.readouterr().err
    assert contents(output) == whole
    before = {path: path.stat().st_mtime_ns for path in shards}
    packed(sources["folder"], output, format=form)
    assert {path: path.stat().st_mtime_ns for path in shards} == before


@pytest.mark.skipif(sys.platform != "linux", reason="limits of Linux")
@pytest.mark.parametrize("form", FORMATS)
def test_a_full_disk_is_named_and_what_was_written_stays(photos, tmp_path, form):
    """A file may not grow past 50 kB."""
    shutil.copytree(photos, tmp_path / "in")
    noise = np.random.default_rng(3).integers(0, 256, (150, 200, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "in" / "orange" / "large.png")
    packed(tmp_path / "in", tmp_path / "whole", format=form)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limit[1]))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            packed(tmp_path / "in", tmp_path / "out", format=form)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, before)
    shards = sorted((tmp_path / "out").glob(f"*.{form}"))
    assert len(shards) > 3
    assert Path(caught.value.filename).parent == tmp_path / "out"
    with pytest.raises(ValueError, match="beit pack has not written all of its shards"):
        open_source(str(tmp_path / "out"))
    kept = shards[0].stat().st_ino
    packed(tmp_path / "in", tmp_path / "out", format=form)
    assert shards[0].stat().st_ino == kept
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.parametrize("form", FORMATS)
def test_a_shard_that_reads_back_differently_is_deleted(sources, tmp_path, form, monkeypatch):
    written = FORMATS[form]

    def faulty(path, labelled, class_names):
        class Faulty:
            def __enter__(self):
                self.inner = written(path, labelled, class_names)
                add = self.inner.__enter__()
                return lambda entry: add(entry._replace(data=entry.data[:-1] + b"?"))

            def __exit__(self, *error):
                return self.inner.__exit__(*error)

        return Faulty()

    monkeypatch.setitem(FORMATS, form, faulty)
    with pytest.raises(OSError, match="reads back other than it was written") as caught:
        packed(sources["folder"], tmp_path / "out", format=form)
    assert caught.value.filename == str(tmp_path / "out" / f"images-000000.{form}")
    assert not Path(caught.value.filename).exists()
    assert digest("a", b"b") != digest("a", b"c")


# ── refusals ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": "{a: 0.5, b: 0.5}"}, "a mixture is drawn by weight .* pack each of its sets"),
        ({"output": "s3://bucket/x"}, "expected a folder on disk. Copy the shards to a store"),
        ({"output": ""}, "output is ''; expected a folder"),
        ({"shorter_side": 0}, "shorter_side is 0; expected pixels"),
        ({"data": "a?bands=1-5", "shorter_side": 9}, "JPEG files, which have no 5 channels"),
        ({"quality": 96}, "quality is 96; expected 1 to 95"),
        ({"shard_megabytes": 0}, "shard_megabytes is 0; expected more"),
        ({"num_workers": -1}, "num_workers is -1; expected 0 or more"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        Config(**{"data": "a", "output": "b", **options})


def test_outputs_that_are_refused(sources, photos, tmp_path):
    data = sources["folder"]
    for inside in (photos, photos / "new" / "shards"):
        with pytest.raises(ValueError, match=r"inside .*fruit; name a folder outside of it"):
            packed(data, inside)
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError, match="file is a file; name a new folder"):
        packed(data, tmp_path / "file")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x.txt").write_text("")
    with pytest.raises(FileExistsError, match=r"full holds x.txt, no shard; name a new folder"):
        packed(data, tmp_path / "full")
    with pytest.raises(OSError, match="proc"):
        packed(data, "/proc/none/here")


def test_other_images_or_options_are_refused(photos, tmp_path):
    shutil.copytree(photos, tmp_path / "in")
    spec, output = str(tmp_path / "in"), tmp_path / "out"
    packed(spec, output)
    whole = contents(output)
    for options, message in (
        ({"format": "parquet"}, "format was 'tar', is now 'parquet'"),
        ({"shorter_side": 9}, "shorter_side was None, is now 9; quality was None, is now 90"),
        ({"shard_megabytes": 3}, "shard_megabytes was 0.0015, is now 3"),
    ):
        again = "holds other shards: .*; repeat the earlier command, or delete .*out to start again"
        with pytest.raises(ValueError, match=f"(?=.*{re.escape(message)}).*{again}"):
            packed(spec, output, **options)
    os.utime(tmp_path / "in" / "lime" / "05.png", ns=(1, 1))
    with pytest.raises(ValueError, match="images: names, labels, sizes or times of its files have"):
        packed(spec, output)
    (tmp_path / "in" / "lime" / "05.png").unlink()
    with pytest.raises(ValueError, match=r"images.count was 14, is now 13"):
        packed(spec, output)
    assert contents(output) == whole
    (output / "pack.json").write_text("{")
    for call in (lambda: packed(spec, output), lambda: open_source(str(output))):
        with pytest.raises(ValueError, match=r"pack\.json"):
            call()


def test_files_of_others_among_the_shards(sources, tmp_path):
    output = tmp_path / "out"
    packed(sources["folder"], output)
    (output / "README.md").write_text("about these images")
    packed(sources["folder"], output)  # no reader takes it for data
    Image.new("RGB", (3, 3)).save(output / "x.png")
    with pytest.raises(ValueError, match="read back with 1 images instead of 14; are there other"):
        packed(sources["folder"], output)
    with pytest.raises(ValueError, match="has not written all"):
        open_source(str(output))
    with pytest.raises(FileExistsError, match=r"holds README.md, no shard; move it elsewhere"):
        packed(sources["folder"], output)


def test_names_that_are_not_utf8(tmp_path):
    (tmp_path / "in").mkdir()
    name = os.fsdecode(b"caf\xe9.png")
    for file in (name, "d.png"):
        Image.new("RGB", (3, 3)).save(tmp_path / "in" / file, "PNG")
    with pytest.raises(ValueError, match=r"not UTF-8, which Parquet cannot hold; .* format tar"):
        packed(tmp_path / "in", tmp_path / "rows", format="parquet")
    packed(tmp_path / "in", tmp_path / "out")
    assert names(open_source(str(tmp_path / "out"))) == [name, "d.png"]


def test_two_at_a_time_are_refused(sources, tmp_path):
    (tmp_path / "out").mkdir()
    held = lock.hold(tmp_path / "out")
    try:
        assert in_child(lambda: packed(sources["folder"], tmp_path / "out")) == 1
    finally:
        held.release()
    packed(sources["folder"], tmp_path / "out")


# ── real processes ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMATS)
def test_ten_kills_of_the_command_change_no_byte(tmp_path, form):
    words = [sys.executable, "-m", "beit", "pack", "shapes://2500?size=64"]
    words += [f"--format={form}", "--shard_megabytes=1"]

    def start(output):
        return subprocess.Popen(
            [*words, f"--output={output}"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )

    whole = start(tmp_path / "whole")
    _, errors = whole.communicate(timeout=300)
    assert whole.returncode == 0, errors.decode()
    broken, finished = tmp_path / "broken", 0
    for kill in range(10):
        process, before, deadline = start(broken), finished, time.monotonic() + 120
        while finished == before and time.monotonic() < deadline:
            time.sleep(0.002)
            finished = len([*broken.glob(f"*.{form}")])
        time.sleep(0.01 * kill)
        process.kill()
        _, errors = process.communicate(timeout=30)
        assert process.returncode == -signal.SIGKILL, errors.decode()
    done = start(broken)
    _, errors = done.communicate(timeout=300)
    assert done.returncode == 0, errors.decode()
    assert contents(broken) == contents(tmp_path / "whole")
