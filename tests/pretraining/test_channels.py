"""Images of five and thirteen channels, from their files to features, as commands do it."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import tifffile
import torch

import beit
from beit.cli import main
from beit.data.channels import pixel_options
from beit.nn.dvae import DiscreteVAE, DiscreteVAEConfig
from beit.nn.vit import ViTConfig
from beit.pretraining.targets import TargetConfig, load_target
from beit.weights.file import save_weights
from beit.weights.teachers import check_chosen

CELLS, FIELDS = "cells?bands=1-5&range=0:4000,0:3000,0:2000,0:1000,0:500", "fields?bands=1-13"
QUICK = "--optim.batch_size 8 --optim.epochs 1 --optim.warmup_epochs 0 --data.num_workers 0".split()
VIT = "--model.backbone.image_size [32,32] --model.backbone.patch_size 8 --model.backbone.width 32"
VIT += " --model.backbone.depth 2 --model.backbone.num_heads 2 --model.early_layers 1"
VIT += " --model.head_layers 1 --mask.count 6 --mask.min_block 2"
VAE = "--model.image_size [32,32] --model.num_codes 16 --model.code_width 8 --model.hidden_width 8"


def scene(number: int, bands: int, side: int) -> np.ndarray:
    """Draw waves of two kinds, (side, side, bands) in [0, 1]."""
    y, x = np.mgrid[:side, :side] / side
    kind = number % 2
    waves = [np.sin(6 * x * (b + 1) / bands + 2 * kind) + np.cos(5 * y + b) for b in range(bands)]
    noise = np.random.default_rng(number).normal(0, 0.02, (side, side, bands))
    return (np.stack(waves, -1) / 4 + 0.5 + noise).clip(0, 1)


@pytest.fixture
def sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folders of 24 TIFF files of 16 bits and of 24 arrays, in two classes."""
    monkeypatch.chdir(tmp_path)
    for number in range(24):
        for name in ("cells", "fields"):
            Path(name, "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        cells = scene(number, 5, 40) * [4000, 3000, 2000, 1000, 500]
        file = f"cells/{'ab'[number % 2]}/{number}.tif"
        tifffile.imwrite(file, cells.astype(np.uint16).transpose(2, 0, 1), photometric="minisblack")
        fields = scene(number, 13, 36).astype(np.float32)
        np.save(f"fields/{'ab'[number % 2]}/{number}.npy", fields)
    return tmp_path


def measured(data: str, capsys: pytest.CaptureFixture[str]) -> tuple[dict, list[str]]:
    """What doctor finds of a set, and the options that it prints for pretraining."""
    assert main(["doctor", data, "--output", f"checked-{data[:4]}", "--num_workers", "0"]) == 0
    words = capsys.readouterr().out.split()
    first = words.index("--PART.in_channels")
    options = [word.replace("PART", "model.backbone").rstrip(",") for word in words[first:][:6]]
    return json.loads(Path(f"checked-{data[:4]}/doctor.json").read_text())["train"], options


def test_doctor_measures_each_channel(sets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found, options = measured(FIELDS, capsys)
    files = [np.load(file) for file in sorted(sets.glob("fields/*/*.npy"))]
    shares = np.floor(np.stack(files).astype(np.float64) * 255 + 0.5) / 255
    np.testing.assert_allclose(found["mean"], shares.mean((0, 1, 2)), atol=1e-9)
    np.testing.assert_allclose(found["std"], shares.std((0, 1, 2)), atol=1e-9)
    np.testing.assert_allclose(found["ends"]["1"], (shares == 1).mean((0, 1, 2)), atol=1e-9)
    assert options[:2] == ["--model.backbone.in_channels", "13"]
    assert json.loads(options[3]) == pytest.approx(found["mean"], rel=1e-3)
    assert json.loads(options[5]) == pytest.approx(found["std"], rel=1e-3)


def test_doctor_finds_a_range_that_is_another_bands(
    sets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", "cells?bands=1-5&range=0:65535,0:3e6,0:2e3,0:1e3,0:500"]) == 1
    assert "nearly one value in channel 2" in " ".join(capsys.readouterr().out.split())


@pytest.mark.slow
@pytest.mark.parametrize("data", [CELLS, FIELDS])
def test_from_files_to_features(data: str, sets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found, options = measured(data, capsys)
    channels, vit = len(found["mean"]), [*VIT.split(), *options]
    vae = [*VAE.split(), "--model.in_channels", str(channels)]
    given = ["--data", data, *QUICK]
    assert main(["train-tokenizer", "--kind", "dvae", *given, *vae, "--output", "codes"]) == 0
    assert main(["pretrain", *given, *vit, "--tokenizer", "codes", "--output", "tokens"]) == 0
    assert "of 13 channels" in Path("tokens/report.html").read_text() or channels == 5
    pixels = ["--target.kind", "pixels", "--output", "pixels"]
    assert main(["pretrain", *given, *vit, *pixels]) == 0
    embed = ["embed", "--model", "tokens", "--data", data, "--output", "features.parquet"]
    assert main([*embed, "--num_workers", "0"]) == 0
    model = beit.load_backbone("tokens")
    assert model.config.mean == pytest.approx(found["mean"], rel=1e-3)
    rows = pyarrow.parquet.read_table("features.parquet").to_pydict()
    path = data.replace("?", f"/{rows['path'][3]}?", 1)
    crop = beit.load("tokens").crop_ratio
    with torch.no_grad():
        features = model(beit.open_image(path, size=model, crop_ratio=crop)).cls[0]
    torch.testing.assert_close(torch.tensor(rows["cls"][3]), features, atol=0.02, rtol=0.02)
    probe = ["probe", "--model", "pixels", "--data", data, "--test", data, "--num_workers", "0"]
    assert main([*probe, "--output", "probe"]) == 0
    assert main(["probe", *probe[1:4], "cells?bands=3,2,1&range=0:4000", *probe[5:]]) == 2
    assert f"3 channels, not {channels}; give as many bands" in capsys.readouterr().err
    same = data.replace("bands=1-", "bands=2-2,1-1,3-", 1)
    (recorded,) = pixel_options(data)
    assert beit.load("tokens").pixel_options == beit.load("codes").pixel_options == [recorded]
    assert main([*embed[:3], "--data", same, "--output", "b.parquet", "--num_workers", "0"]) == 0
    assert f"but tokens was trained with {recorded}; give the same" in " ".join(
        capsys.readouterr().err.split()
    )


def test_one_or_three_channels_are_chosen() -> None:
    check_chosen("x", (), 5)
    for wrong in ((1, 2), (0, 1, 2), (1, 2, 6)):
        with pytest.raises(ValueError, match=r"x is \[.*; expected three numbers in 1 to 5"):
            check_chosen("x", wrong, 5)


def test_a_teacher_sees_the_channels_that_are_named() -> None:
    vit = ViTConfig((32, 32), 8, in_channels=5, mean=(0.5,), std=(0.5,))
    kind = {"kind": "features", "source": "timm:resnet18", "pretrained": False, "image_size": 64}
    with pytest.raises(ValueError, match=r"takes 3 channels, but images have 5; .*3,2,1"):
        load_target(TargetConfig(**kind), "", vit, torch.device("cpu"))
    target = load_target(TargetConfig(**kind, channels=(4, 2, 5)), "", vit, torch.device("cpu"))
    images = torch.randint(256, (2, 5, 32, 32), dtype=torch.uint8)
    rgb = target.teacher
    rgb.channels, seen = (), target.of(images)
    assert torch.equal(seen, target.of(images[:, [3, 1, 4]]))
    with pytest.raises(ValueError, match=r"\(2, 5, 32, 32\), expected RGB"):
        target.of(images)


def test_a_tokenizer_takes_all_channels_or_those_that_are_named(tmp_path: Path) -> None:
    sizes = {"image_size": (32, 32), "num_codes": 7, "code_width": 6, "hidden_width": 5}
    for channels in (3, 5):
        vae = DiscreteVAE(DiscreteVAEConfig(**sizes, in_channels=channels))
        save_weights(tmp_path / f"{channels}.safetensors", vae)
    five = ViTConfig((32, 32), 8, in_channels=5, mean=(0.5,), std=(0.5,))

    def target(channels: int, *named: int, vit: ViTConfig = five):
        config = TargetConfig(channels=named)
        return load_target(config, f"{tmp_path}/{channels}.safetensors", vit, torch.device("cpu"))

    assert target(5).tokenizer.config.in_channels == 5
    assert target(3, 3, 2, 1).channels == (3, 2, 1)
    with pytest.raises(ValueError, match="the tokenizer takes 3 channels, but images have 5"):
        target(3)
    with pytest.raises(ValueError, match=r"takes 5 channels, but target\.channels names 3; leave"):
        target(5, 3, 2, 1)
    with pytest.raises(ValueError, match="takes 5 channels, but images have 3; give --model"):
        target(5, vit=ViTConfig((32, 32), 8))
