from pathlib import Path

import pytest
from PIL import Image

from beit.data.sources import open_source
from beit.evaluation.familiar import note_of_trained
from beit.run.directory import RunDirectory


@pytest.fixture
def photos(tmp_path: Path) -> str:
    for number in range(20):
        path = tmp_path / "photos" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 3)).save(path)
    return str(tmp_path / "photos")


def test_images_of_the_training_are_counted(photos: str, tmp_path: Path) -> None:
    data = {"train": f"{photos}[:75%]", "validation": f"{photos}[75%:]", "limit": None}
    run = RunDirectory.create(tmp_path / "run", {"data": data}, {"verb": "finetune"})
    train = len(open_source(f"{photos}[:75%]"))
    cases = [(photos, 20, train), (f"{photos}/", 20, train)]
    cases += [(f"{photos}[75%:]", 20 - train, 0), (f"{photos}/a", 10, 0)]
    for spec, number, count in cases:
        source = open_source(spec)
        notes = note_of_trained(str(run.path), spec, source)
        assert len(source) == number
        assert [f"run was trained on {count} of the 20 images" in n for n in notes] == [True] * (
            count > 0
        )
        assert all(note.endswith(f"; {photos}[75%:] was held out") for note in notes)


def test_of_other_models_nothing_is_known(photos: str, tmp_path: Path) -> None:
    source = open_source(photos)
    assert note_of_trained(str(tmp_path / "weights.safetensors"), photos, source) == []
    run = RunDirectory.create(tmp_path / "run", {"data": {"train": ""}}, {"verb": "finetune"})
    assert note_of_trained(str(run.path), photos, source) == []
