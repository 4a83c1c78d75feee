"""Bad input: exit code 2, an error that says what is wrong and where, and no output written."""

import json
import pickle
import struct
import zipfile
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from beit import cli

TINY = [  # one short step
    *("--preset", "shapes-tiny", "--optim.batch_size", "4", "--optim.epochs", "1"),
    *("--data.validation", "", "--run.stop_after", "1"),
]


@pytest.fixture
def output(tmp_path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def train(output):
    """Runs `beit train-tokenizer` on a folder of images; returns its exit code."""

    def call(data: object, *options: str) -> int:
        command = ["train-tokenizer", *TINY, "--teacher.image_size", "32"]
        command += ["--data.train", str(data)]
        return cli.main([*command, "--output", str(output), *options])

    return call


def error_line(capsys) -> str:
    """Return the error; check that it is one line, the last one."""
    lines = capsys.readouterr().err.splitlines()
    errors = [line for line in lines if line.startswith("beit: error: ")]
    assert len(errors) == 1
    assert lines[-1] == errors[0]  # no traceback
    return errors[0]


def picture(number: int) -> Image.Image:
    pixels = np.random.default_rng(number).integers(256, size=(9, 11, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder of twelve images."""
    path = tmp_path / "images"
    path.mkdir()
    for number in range(12):
        picture(number).save(path / f"{number:03}.png")
    return path


# ── where the images are ────────────────────────────────────────────────────────────────────────


def test_a_missing_folder(train, output, tmp_path, capsys):
    assert train(tmp_path / "absent") == 2
    message = error_line(capsys)
    assert f"{tmp_path / 'absent'}: no such file or folder" in message
    assert "expected a folder of images, *.parquet or *.arrow files" in message
    assert not output.exists()


def test_a_missing_validation_folder(train, output, folder, tmp_path, capsys):
    assert train(folder, "--data.validation", str(tmp_path / "absent")) == 2
    assert f"{tmp_path / 'absent'}: no such file or folder" in error_line(capsys)
    assert not output.exists()


def test_a_folder_without_images(train, output, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("nothing to see")
    assert train(tmp_path / "empty") == 2
    message = error_line(capsys)
    assert f"{tmp_path / 'empty'}: no images in this folder" in message
    assert "found 1 files, 0 images; not read: 1 .txt; expected files that end in .jpg" in message
    assert not output.exists()


def test_no_data_at_all(train, output, capsys):
    assert train("") == 2
    assert "no data given: expected a folder of images" in error_line(capsys)
    assert not output.exists()


def test_fewer_images_than_a_batch(train, output, folder, capsys):
    assert train(folder, "--optim.batch_size", "16") == 2
    message = error_line(capsys)
    assert "a step takes 16 images" in message
    assert "there are only 12" in message
    assert not output.exists()


# ── images that cannot be read ──────────────────────────────────────────────────────────────────


def truncated_jpeg() -> bytes:
    data = BytesIO()
    Image.effect_noise((64, 64), 90).convert("RGB").save(data, "JPEG")
    return data.getvalue()[: len(data.getvalue()) // 2]


def bomb() -> bytes:
    """A PNG of 20,000 x 20,000 pixels in about 50 KB: one bit per pixel, all zero."""
    rows = zlib.compress(bytes((1 + 20_000 // 8) * 20_000), 9)

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", 20_000, 20_000, 1, 0, 0, 0, 0)
    signature = b"\x89PNG\r\n\x1a\n"
    return signature + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


BROKEN = {
    "truncated.jpg": (truncated_jpeg, "truncated"),
    "text.png": (lambda: b"These are words.", "not an image"),
    "bomb.png": (bomb, "too large"),
    "nothing.png": (lambda: b"", "empty"),
}


def test_the_bomb_is_small():
    assert len(bomb()) < 60_000


@pytest.mark.parametrize("cache", ["0", "1"])
@pytest.mark.parametrize("name", BROKEN)
def test_an_unreadable_image_that_is_not_allowed(name, cache, train, output, folder, capsys):
    make, reason = BROKEN[name]
    (folder / name).write_bytes(make())
    options = ["--data.max_unreadable", "0", "--data.cache_gigabytes", cache]
    # All 13 images in one step, so that the broken one is among them.
    assert train(folder, "--optim.batch_size", "13", *options) == 2
    message = error_line(capsys)
    assert "1 of 13 images cannot be read, more than the allowed 0%" in message
    assert f"{name}: " in message
    assert reason in message
    assert "max_unreadable" in message
    assert not (output / "weights.safetensors").exists()


def test_one_unreadable_image_among_many(train, output, folder, capsys):
    for number in range(12, 300):
        picture(number).save(folder / f"{number:03}.png")
    (folder / "150.png").write_bytes(b"These are words.")
    options = ["--optim.batch_size", "100", "--optim.epochs", "2", "--run.stop_after", "6"]
    assert train(folder, *options) == 0
    shown = capsys.readouterr().err
    assert "1 of the 300 images cannot be read, as 150.png: not an image" in shown  # at the start
    replaced = "unreadable, replaced by the next image: 150.png: not an image"
    assert shown.count(replaced) == 1  # in both epochs, reported once
    records = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [record["unreadable"] for record in records] == [1]
    assert (output / "weights.safetensors").exists()


@pytest.mark.parametrize("budget", [[], ["--budget", "1h"]], ids=["", "budget"])
def test_more_than_the_allowed_share(budget, train, output, folder, capsys):
    for number in range(12, 300):
        picture(number).save(folder / f"{number:03}.png")
    for number in (17, 70, 150, 299):
        (folder / f"{number:03}.png").write_bytes(b"These are words.")
    options = ["--optim.batch_size", "100", "--optim.epochs", "1", "--run.stop_after", "3"]
    assert train(folder, *options, *budget) == 2
    message = error_line(capsys)
    assert f"--resume {output}" in message or not budget  # not the trial's directory
    assert "4 of 300 images cannot be read, more than the allowed 1%:" in message
    assert "017.png: not an image" in message


def test_resuming_where_images_have_moved(train, output, folder, tmp_path, capsys):
    assert train(folder, "--optim.epochs", "1") == 0
    folder.rename(tmp_path / "elsewhere")
    capsys.readouterr()
    assert cli.main(["train-tokenizer", "--resume", str(output)]) == 2
    message = error_line(capsys)
    assert f"{folder}: no such file or folder. If the images have moved, write" in message
    assert f"{output / 'config.yaml'} (data.train and data.validation)" in message
    assert message.endswith(f"--resume {output} --accept_changed_data true")


def test_nothing_but_unreadable_images(train, output, tmp_path, capsys):
    (tmp_path / "words").mkdir()
    for number in range(5):
        (tmp_path / "words" / f"{number}.png").write_bytes(b"These are words.")
    assert train(tmp_path / "words", "--data.max_unreadable", "1") == 2
    message = error_line(capsys)
    assert "5 images in a row cannot be read" in message
    assert ".png: not an image" in message
    assert not output.exists()


def test_images_of_every_kind_load(train, output, tmp_path, capsys):
    path = tmp_path / "kinds"
    path.mkdir()
    rgb = picture(0)
    rgb.quantize(8).save(path / "palette.png")
    rgb.quantize(8).save(path / "transparent palette.png", transparency=0)
    rgb.convert("CMYK").save(path / "cmyk.jpg")
    deep = np.arange(99, dtype=np.uint16).reshape(9, 11) * 600
    Image.fromarray(deep).save(path / "16 bit.png")
    rgb.convert("L").save(path / "grey.png")
    rgb.convert("LA").save(path / "grey with alpha.png")
    rgb.convert("RGBA").save(path / "rgba.png")
    Image.new("RGB", (1, 1), (9, 8, 7)).save(path / "one pixel.png")
    options = ["--optim.batch_size", "8", "--data.max_unreadable", "0"]
    assert train(path, *options) == 0
    assert "unreadable" not in capsys.readouterr().err
    assert (output / "weights.safetensors").exists()


# ── options ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("verb", "options", "expected"),
    [
        (
            "train-tokenizer",
            ["--optim.epoch", "3"],
            ["unknown option --optim.epoch", "did you mean --optim.epochs?"],
        ),
        (
            "train-tokenizer",
            ["--model.encoder.image_size", "[36,32]"],
            ["(36, 32)", "not a multiple of", "patch size 8"],
        ),
        (
            "pretrain",
            ["--model.backbone.image_size", "[32,36]"],
            ["(32, 36)", "not a multiple of", "patch size 8"],
        ),
        (
            "pretrain",
            ["--mask.count", "17"],
            ["mask.count is 17", "has 16 patches", "expected 1 to that many"],
        ),
        ("pretrain", ["--mask.count", "many"], ["mask.count", "int", "many"]),
        ("pretrain", ["--mask.min_block", "0"], ["min_block", "0", "1"]),
        ("pretrain", ["--tokenizer", ""], ["no tokenizer given", "--tokenizer"]),
        ("pretrain", ["--tokenizer", "absent"], ["absent does not exist", "run directory"]),
        ("train-tokenizer", ["--validate_every", "0"], ["validate_every", "0", "1"]),
        ("pretrain", ["--validate_every", "0"], ["validate_every", "0", "1"]),
        ("pretrain", ["--check.every", "-1"], ["check.every", "-1", "0"]),
        ("train-tokenizer", ["--output", ""], ["no run directory given", "--output"]),
        ("train-tokenizer", ["--teacher.source", "timm:resnet999"], ["resnet999"]),
        ("train-tokenizer", ["--crop_ratio", "0"], ["crop_ratio", "0"]),
        ("pretrain", ["--crop_ratio", "1.5"], ["crop_ratio", "1.5"]),
    ],
)
def test_invalid_options(verb, options, expected, output, request, capsys):
    command = [verb, "--preset", "shapes-tiny", "--output", str(output)]
    if verb == "pretrain":
        command += ["--tokenizer", str(request.getfixturevalue("tokenizer"))]
        capsys.readouterr()
    assert cli.main([*command, *options]) == 2
    message = error_line(capsys)
    assert not [part for part in expected if part not in message], message
    assert not output.exists()


def test_an_existing_run_directory(train, output, folder, capsys):
    output.mkdir()
    (output / "precious.txt").write_text("mine")
    for resume in (False, True):
        assert train(folder) == 2
        message = error_line(capsys)
        assert f"{output} exists and is not overwritten; name another directory" in message
        assert (f"--resume {output}" in message) == resume
        assert (output / "precious.txt").read_text() == "mine"
        (output / "config.yaml").touch()


# ── models ──────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("tokenizer") / "run"
    assert cli.main(["train-tokenizer", *TINY, "--output", str(run)]) == 0
    return run


def pretrain(output: Path, *options: str) -> int:
    return cli.main(["pretrain", *TINY, "--check.every", "0", "--output", str(output), *options])


def test_a_tokenizer_of_another_grid(tokenizer, output, capsys):
    options = ["--tokenizer", str(tokenizer), "--model.backbone.image_size", "[40,32]"]
    assert pretrain(output, *options) == 2
    message = error_line(capsys)
    assert "the tokenizer's grid is (4, 4), the backbone's (5, 4)" in message
    assert "--model.backbone.image_size [32,32] --model.backbone.patch_size 8" in message
    assert not output.exists()


def test_a_tokenizer_of_another_number_of_codes(tokenizer, output, capsys):
    assert pretrain(output, "--tokenizer", str(tokenizer), "--model.num_codes", "65") == 2
    assert "model.num_codes is 65, but the tokenizer has 64 codes" in error_line(capsys)
    assert not output.exists()


def test_a_run_without_a_tokenizer(tokenizer, output, tmp_path, capsys):
    assert pretrain(tmp_path / "first", "--tokenizer", str(tokenizer)) == 0
    capsys.readouterr()
    assert pretrain(output, "--tokenizer", str(tmp_path / "first")) == 2
    assert "holds a MaskedImageModel, which has no encode()" in error_line(capsys)
    assert cli.main(["train-tokenizer", "--resume", str(tmp_path / "first")]) == 2
    assert "is a run of beit pretrain, not of beit train-tokenizer" in error_line(capsys)
    assert not output.exists()


def test_damaged_weights(tokenizer, output, tmp_path, capsys):
    whole = (tokenizer / "weights.safetensors").read_bytes()
    (tmp_path / "half.safetensors").write_bytes(whole[: len(whole) // 2])
    assert pretrain(output, "--tokenizer", str(tmp_path / "half.safetensors")) == 2
    assert str(tmp_path / "half.safetensors") in error_line(capsys)
    assert not output.exists()


class Malicious:
    """Creates a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.target), "w")


@pytest.mark.parametrize("layout", ["torch", "pickle"])
def test_weights_that_hold_a_function(layout, output, tmp_path, capsys):
    import torch

    file, trace = tmp_path / "weights.pth", tmp_path / "trace"
    content = {"model": Malicious(trace)}
    if layout == "torch":
        torch.save(content, file)
        assert zipfile.is_zipfile(file)
    else:
        file.write_bytes(pickle.dumps(content))
    assert pretrain(output, "--tokenizer", str(file)) == 2
    message = error_line(capsys)
    what = {
        "torch": "holds more than tensors and plain values",
        "pickle": "is damaged, or torch.save did not write it",
    }
    assert f"{file} is refused: it {what[layout]}" in message
    assert not trace.exists()
    assert not output.exists()
