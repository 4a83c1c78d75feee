"""Near copies of test images by the features of a model."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch.nn import functional

from beit.cli import main
from beit.data.sources import open_source
from beit.diagnosis import alike
from beit.weights.frozen import FrozenModel


@pytest.fixture
def model(monkeypatch):
    """A model that sees 4 x 4 colours, the same in the mirror."""

    def read(images, kinds):
        both = images.float() + images.float().flip(-1)
        return {kind: functional.adaptive_avg_pool2d(both, 4).flatten(1) for kind in kinds}

    frozen = FrozenModel(read, image_size=(16, 16), width=48)
    monkeypatch.setattr(alike, "open_frozen_model", lambda name, device: frozen)


@pytest.fixture
def sets(tmp_path):
    """Training images, one of them unreadable and one in the mirror a test image; test images."""
    generator = np.random.default_rng(0)
    for name, count in (("train", 10), ("test", 7)):
        (tmp_path / name).mkdir()
        for number in range(count):
            small = generator.integers(256, size=(6, 8, 3), dtype=np.uint8)
            picture = Image.fromarray(small).resize((56, 40), Image.Resampling.BICUBIC)
            picture.save(tmp_path / name / f"{number}.png")
    (tmp_path / "train" / "3.png").write_text("no image")
    photo = Image.open(tmp_path / "train" / "5.png")
    ImageOps.mirror(photo).save(tmp_path / "test" / "2.jpg", quality=90)
    return tmp_path / "train", tmp_path / "test"


def test_the_nearest_test_image_is_that_of_all_pairs(model, sets, monkeypatch):
    monkeypatch.setattr(alike, "BLOCK", 3)
    monkeypatch.setattr(alike, "BATCH", 4)
    train, test = (open_source(str(folder)) for folder in sets)
    found = alike.nearest_test_images(train, test, "any", num_workers=0)
    monkeypatch.undo()
    assert found.like[3] == found.cosines[3] == -1

    def features(source, index):
        image = alike.EvalView((16, 16), 1.0)(source.image(index)).float()
        return functional.adaptive_avg_pool2d(image + image.flip(-1), 4).flatten()

    readable = [index for index in range(10) if index != 3]
    rows = torch.stack([features(train, index) for index in readable])
    others = torch.stack([features(test, index) for index in range(len(test))])
    centre = rows.mean(0)
    cosines = functional.cosine_similarity(rows[:, None] - centre, others - centre, dim=2)
    assert found.like[readable].tolist() == cosines.argmax(1).tolist()
    assert torch.allclose(torch.tensor(found.cosines[readable]), cosines.amax(1), atol=2e-3)
    assert test.name(found.like[5]) == "2.jpg" and found.cosines[5] > 0.99


def test_doctor_shows_and_leaves_out_what_a_model_sees_as_a_test_image(
    model, sets, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    train, test = map(str, sets)
    command = ["doctor", train, "--test", test, "--num_workers", "0", "--max_unreadable", "1"]
    assert main([*command, "--output", "without"]) == 0
    without = json.loads(Path("without/doctor.json").read_text())["train"]["faults"]
    assert without.keys() == {"unreadable"}  # a perceptual hash knows no mirror
    more = ["--model", "any", "--output", "seen", "--write", "clean.txt"]
    assert main([*command, *more]) == 0
    assert "1 (10.0%) nearly a test image to the model, as 5.png" in capsys.readouterr().out
    [found] = json.loads(Path("seen/doctor.json").read_text())["train"]["faults"]["alike_test"]
    assert (found["name"], found["like"]) == ("5.png", "2.jpg") and found["cosine"] > 0.99
    page = Path("seen/report.html").read_text()
    assert "5.png is like 2.jpg" in page and f"cosine {found['cosine']:.3f}" in page
    assert not {"3.png", "5.png"} & {
        Path(name).name for name in Path("clean.txt").read_text().split()
    }
    assert main([*command, "--model", "any", "--cosine", "1"]) == 0
    assert "to the model" not in capsys.readouterr().out


def test_a_model_needs_test_images(model, sets, capsys):
    assert main(["doctor", str(sets[0]), "--model", "any"]) == 2
    assert "no test images to compare with" in capsys.readouterr().err
