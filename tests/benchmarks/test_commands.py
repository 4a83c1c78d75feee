"""The commands that print tables run in miniature, and write what they measured."""

import json
import subprocess
import sys

import pytest
from PIL import Image

pytestmark = pytest.mark.slow


def run(script, *arguments):
    command = [sys.executable, script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_the_table(benchmarks, tmp_path):
    shown = run(benchmarks / "table.py", "--miniature", "--results", tmp_path)
    [file] = tmp_path.glob("table-*-miniature.json")
    result = json.loads(file.read_text())
    assert {"cpu", "bf16_instructions", "threads", "torch", "timm"} <= result["machine"].keys()
    for row in result["table"]:
        assert f"| {' | '.join(row[name] for name in row)} |" in shown
    assert set(result["parts"]) >= {"preset", "step", "backbone", "loader", "quantizer", "chain"}


def test_the_gpu_command_resumes_its_chain(benchmarks, tmp_path):
    arguments = ["--miniature", "--results", tmp_path, "--runs", tmp_path / "runs"]
    run(benchmarks / "gpu.py", *arguments, "--only", "chain", "--minutes", 0)
    [file] = tmp_path.glob("gpu-*.json")
    assert json.loads(file.read_text())["chain"] == [
        {"verb": "train-tokenizer", "skipped": "no time left", "metrics": {}}
    ]
    run(benchmarks / "gpu.py", *arguments, "--minutes", 60)
    result = json.loads(file.read_text())
    assert [part["verb"] for part in result["chain"][1:]] == [
        *("train-tokenizer", "pretrain", "probe"),
    ]
    assert {row["way"] for row in result["steps"][0]["ways"]} == {"ours", "published"}
    assert {"backbone", "peers", "loader"} <= result.keys()


def test_the_memory_table(benchmarks, tmp_path):
    sizes = ["--size", "Ti", "--image-size", 32, "--batch", 2, "--results", tmp_path]
    run(benchmarks / "memory.py", *sizes)
    rows = json.loads((tmp_path / "memory-cpu-32.json").read_text())["rows"]
    assert [(row["checkpointing"], row["how"]) for row in rows] == [
        (False, "measured"),
        (True, "measured"),
    ]


def test_checkpoints_of_sharded_training(benchmarks, tmp_path):
    run(benchmarks / "checkpoints.py", "--size", "Ti", "--results", tmp_path)
    rows = json.loads((tmp_path / "checkpoints-Ti.json").read_text())["rows"]
    assert [row["way"] for row in rows] == ["file", "shards"]
    assert all(row["bytes"] > 90e6 for row in rows)


def test_photos_are_shrunk(benchmarks, tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    names = "BytheWater ColdRipple Aqua Volna Path FallenLeaf Dragonfly_by_Bolly".split()
    for number, name in enumerate([*names, "life_by_Aitzol_Berasategi"]):
        gradient = Image.linear_gradient("L").resize((400, 300)).rotate(45 * number)
        gradient.convert("RGB").save(pictures / f"{name}.jpg")
    arguments = ["--pictures", pictures, "--subjects", "water", "woods", "--count", 6]
    run(benchmarks / "photos.py", tmp_path / "photos", *arguments)
    files = sorted((tmp_path / "photos").glob("*/*.jpg"))
    assert [file.parent.name for file in files] == ["water"] * 3 + ["woods"] * 3
    turned = []
    for file in files:
        with Image.open(file) as image:
            assert sorted(image.size) == [3000, 4000]
            turned.append(image.getexif().get(0x0112))
    assert turned.count(8) == 1 and set(turned) == {8, None}


def test_sources_give_the_same_and_an_index_is_opened(benchmarks, tmp_path):
    few = ["--images", 40, "--kilobytes", 5, "--rounds", 1]
    for arguments in (few, ["--names", 20_000]):
        run(benchmarks / "sources.py", *arguments, "--results", tmp_path)
    result, index = (
        json.loads((tmp_path / f"sources-{name}.json").read_text()) for name in ("cpu", "index")
    )
    assert {"ours, tar", "ours, zip"} <= {row["reader"] for row in result["rows"]}
    assert all(row["same"] for row in result["rows"])
    assert index["index"]["names"] == 20_000


def test_doctor_beside_the_training(benchmarks, tmp_path):
    training = ["--preset", "shapes-tiny", "--target.kind", "pixels", "--run.stop_after", 30]
    options = ["--rounds", 1, "--workers", 0, "--name", "tiny", "--results", tmp_path]
    run(benchmarks / "doctor.py", *options, "--", *training)
    [row] = json.loads((tmp_path / "doctor-tiny.json").read_text())["rows"]
    assert row["workers"] == 0
    assert row["ratio"] == row["predicted"] / row["measured"] > 0
    assert 0.1 < row["measured_gb"] < 10
