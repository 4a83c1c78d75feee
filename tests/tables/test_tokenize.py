"""What `tokenize` writes, and laws of all tables: kills, processes and workers change no byte."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pyarrow import parquet

from beit import cli
from beit.data.sources import open_source
from beit.data.views import EvalView
from beit.nn.tokenizer import VQKD, VQKDConfig
from beit.nn.vit import ViTConfig
from beit.rows.table import RowTable
from beit.run.device import DeviceConfig
from beit.tables import tokenize
from beit.tables.tokenize import Config
from beit.weights.file import save_weights
from beit.weights.open import load_tokenizer

DATA = "shapes://11?size=24"  # batches of 2, 2, ... and 1; parts of 4, 4 and 3


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, vit: Callable[..., ViTConfig]) -> str:
    torch.manual_seed(0)
    encoder = vit(absolute_positions=True, relative_bias="none", layer_scale=None)
    path = tmp_path_factory.mktemp("tokenize") / "tokenizer.safetensors"
    tokenizer = VQKD(VQKDConfig(encoder, decoder_depth=1, num_codes=300, code_width=5))
    torch.nn.init.normal_(tokenizer.quantizer.codebook)
    save_weights(path, tokenizer)
    return str(path)


def config(model: str, output: Path, **changes: Any) -> Config:
    settings = {"data": DATA, "batch_size": 2, "part_size": 4, "num_workers": 0}
    device = DeviceConfig(accelerator="cpu")
    return Config(model=model, output=str(output), device=device, **(settings | changes))


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """Eleven images in two classes; the fifth and the last in order are unreadable."""
    generator = np.random.default_rng(3)
    for number in range(11):
        path = tmp_path / "images" / "ab"[number // 6] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(path)
        if number in (4, 10):
            path.write_bytes(path.read_bytes()[:50])
    return str(tmp_path / "images")


# ── content of the file ─────────────────────────────────────────────────────────────────────────


def test_codes_are_those_of_the_tokenizer(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "codes.parquet"
    assert tokenize.run(config(model, output, crop_ratio=0.8)) == (output, 11)
    tokenizer, source = load_tokenizer(model), open_source(DATA)
    view = EvalView((16, 24), 0.8)
    images = torch.stack([view(source.image(index)) for index in range(11)])
    rows = parquet.read_table(output)
    codes = rows["codes"].combine_chunks().to_numpy_ndarray()
    assert codes.dtype == np.uint16  # of 300 codes
    assert codes.tolist() == tokenizer.encode(images).tolist()
    assert len(np.unique(codes)) > 5
    assert rows["index"].to_pylist() == list(range(11))
    assert rows["path"].to_pylist() == [source.name(index) for index in range(11)]
    assert source.labels is not None
    assert rows["label"].to_pylist() == source.labels.tolist()
    about = json.loads(rows.schema.metadata[b"beit"])
    expected = {"verb": "tokenize", "model": model, "kind": "VQKD", "grid": [2, 3]}
    expected |= {"vocab_size": 300, "image_size": [16, 24], "crop_ratio": 0.8, "data": DATA}
    assert about.items() >= expected.items()
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "\n11 rows, " in shown.err
    assert shown.err.rstrip().endswith("images/s")
    assert "11 images in 3 parts" in shown.err
    assert "step 6/6" in shown.err


def test_unreadable_images_are_reported_and_left_out(
    model: str, folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "codes.npz"
    with pytest.raises(ValueError, match=r"1 of 11 images cannot be read.*a/04\.png"):
        tokenize.run(config(model, output, data=folder, max_unreadable=0.05))
    assert not output.exists()
    capsys.readouterr()
    result = tokenize.run(config(model, output, data=folder, max_unreadable=0.2))
    assert result.rows == 9
    shown = capsys.readouterr()
    assert "11 images in 3 parts, 1 of them done before" in shown.err
    assert "unreadable, left out: a/04.png: " in shown.err
    assert "9 rows, " in shown.err
    assert ", 2 unreadable, " in shown.err
    with np.load(output) as arrays:
        assert arrays["index"].tolist() == [0, 1, 2, 3, 5, 6, 7, 8, 9]
        assert arrays["path"].tolist()[3:6] == ["a/03.png", "a/05.png", "b/06.png"]
        assert arrays["label"].tolist() == [0] * 5 + [1] * 4
        about = json.loads(str(arrays["about"]))
    assert [name.split(":")[0] for name in about["unreadable"]] == ["a/04.png", "b/10.png"]
    assert about["label_names"] == ["a", "b"]


def test_too_many_unreadable_images_over_all_parts_stop_the_work(
    model: str, folder: str, tmp_path: Path
) -> None:
    """Each of the two parts alone is within the limit."""
    output = tmp_path / "codes.npz"
    within = config(model, output, data=folder, max_unreadable=0.1)
    with pytest.raises(ValueError, match=r"2 of 11 images cannot be read.*raise max_unreadable"):
        tokenize.run(within)
    with pytest.raises(ValueError, match=r"2 of 11|1 of 11"):
        tokenize.run(config(model, output, data=folder, max_unreadable=0.0))
    assert not output.exists()


def test_command(model: str, tmp_path: Path) -> None:
    output = tmp_path / "codes.npz"
    options = ["--model", model, "--data", DATA, "--output", str(output), "--limit", "5"]
    options += ["--num_workers", "0", "--device.accelerator", "cpu", "--device.precision"]
    assert cli.main(["tokenize", *options, "bf16-mixed"]) == 0
    with np.load(output) as arrays:
        assert arrays["codes"].shape == (5, 6)
        assert json.loads(str(arrays["about"]))["precision"] == "bf16-mixed"


# ── resuming ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("suffix", [".parquet", ".npz"])
def test_a_resumed_run_equals_an_undisturbed_one(
    model: str, suffix: str, tmp_path: Path, interrupt_at: Callable[..., None]
) -> None:
    tokenize.run(config(model, tmp_path / f"one{suffix}"))
    again = config(model, tmp_path / f"two{suffix}")
    for step, done in ((2, 0), (3, 1), (3, 2)):
        interrupt_at(tokenize, again, step)
        assert len([*(tmp_path / f"two{suffix}.parts").glob("part-*")]) == done
    tokenize.run(again)
    assert (tmp_path / f"two{suffix}").read_bytes() == (tmp_path / f"one{suffix}").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"one{suffix}", f"two{suffix}"]


def test_all_parts_done_and_only_the_file_missing(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenize.run(config(model, tmp_path / "one.npz"))
    with monkeypatch.context() as patched:
        patched.setattr(RowTable, "merge", lambda table: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            tokenize.run(config(model, tmp_path / "two.npz"))
    assert tokenize.run(config(model, tmp_path / "two.npz")).rows == 11
    assert (tmp_path / "two.npz").read_bytes() == (tmp_path / "one.npz").read_bytes()


def test_workers_do_not_change_a_byte(model: str, tmp_path: Path) -> None:
    for workers in (0, 2):
        tokenize.run(config(model, tmp_path / f"{workers}.parquet", num_workers=workers))
    assert (tmp_path / "0.parquet").read_bytes() == (tmp_path / "2.parquet").read_bytes()


# ── refusals ────────────────────────────────────────────────────────────────────────────────────


def test_other_settings_do_not_resume_a_table(
    model: str, tmp_path: Path, interrupt_at: Callable[..., None]
) -> None:
    interrupt_at(tokenize, config(model, tmp_path / "codes.npz"), 3)
    with pytest.raises(ValueError, match=r"another table: crop_ratio was 0\.875, is now 1\.0"):
        tokenize.run(config(model, tmp_path / "codes.npz", crop_ratio=1.0))
    tokenizer = load_tokenizer(model)
    torch.nn.init.normal_(tokenizer.quantizer.codebook)
    changed = tmp_path / "changed.safetensors"
    save_weights(changed, tokenizer)
    with pytest.raises(
        ValueError, match=r"model was .*, is now .*; weights was '\w+', is now '\w+'"
    ):
        tokenize.run(config(str(changed), tmp_path / "codes.npz"))


def test_a_finished_file_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "codes.npz").touch()
    with pytest.raises(FileExistsError, match="is not overwritten"):
        tokenize.run(config("no such model", tmp_path / "codes.npz"))


def test_other_models_are_refused(model: str, tmp_path: Path) -> None:
    save_weights(tmp_path / "backbone.safetensors", load_tokenizer(model).encoder)
    with pytest.raises(ValueError, match="expected a tokenizer"):
        tokenize.run(config(str(tmp_path / "backbone.safetensors"), tmp_path / "codes.npz"))


# ── real processes ──────────────────────────────────────────────────────────────────────────────

MANY = [
    *("--data", "shapes://1201?size=32", "--batch_size", "8", "--part_size", "16"),
    *("--device.accelerator", "cpu"),
]


def start(model: str, output: Path, processes: int) -> subprocess.Popen[bytes]:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command = [sys.executable, *(launcher if processes > 1 else []), "-m", "beit", "tokenize"]
    return subprocess.Popen(
        [*command, "--model", model, "--output", str(output), *MANY],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def finish(model: str, output: Path, processes: int = 1) -> None:
    process = start(model, output, processes)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors.decode()


def kill_when(parts: int, model: str, output: Path, processes: int = 1) -> None:
    """Start the command and kill it, with all its processes, once so many parts exist."""
    process = start(model, output, processes)
    folder = output.with_name(f"{output.name}.parts")
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if len([*folder.glob("part-*")]) >= parts:
            break
        time.sleep(0.002)
    killed = process.poll() is None
    for member in family(process.pid):  # torchrun gives each of its processes a session of its own
        with suppress(ProcessLookupError):
            os.kill(member, signal.SIGKILL)
    _, errors = process.communicate(timeout=30)
    assert killed, errors.decode()
    assert not output.exists()


def family(pid: int) -> list[int]:
    """List a process and all its descendants, the oldest first."""
    with suppress(FileNotFoundError):
        threads = [*Path(f"/proc/{pid}/task").iterdir()]
        children = [child for t in threads for child in (t / "children").read_text().split()]
        return [pid, *(member for child in children for member in family(int(child)))]
    return []


@pytest.fixture(scope="module")
def undisturbed(model: str, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    output = tmp_path_factory.mktemp("undisturbed") / "codes.parquet"
    finish(model, output)
    return output.read_bytes()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds processes by /proc")
@pytest.mark.parametrize("processes", [1, 2])
def test_a_killed_and_resumed_run_equals_an_undisturbed_one(
    model: str, processes: int, tmp_path: Path, undisturbed: bytes
) -> None:
    output = tmp_path / "codes.parquet"
    for parts in (2, 40):
        kill_when(parts, model, output, processes)
    finish(model, output)
    assert output.read_bytes() == undisturbed
    assert [*tmp_path.iterdir()] == [output]


@pytest.mark.slow
def test_two_processes_write_what_one_does(model: str, tmp_path: Path, undisturbed: bytes) -> None:
    finish(model, tmp_path / "codes.parquet", processes=2)
    assert (tmp_path / "codes.parquet").read_bytes() == undisturbed
    assert parquet.read_table(tmp_path / "codes.parquet")["index"].to_pylist() == [*range(1201)]
