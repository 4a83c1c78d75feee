import shutil
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
    trained = open_source(f"{photos}[:75%]")
    train, names = len(trained), [trained.name(index) for index in range(len(trained))]
    of_a = sum(name.startswith("a/") for name in names)
    table = tmp_path / "labels.csv"
    table.write_text("path,label\n" + "".join(f"photos/{name},x\n" for name in names[:3]))
    copy = shutil.copytree(photos, tmp_path / "copy")
    cases = [(photos, 20, train), (f"{photos}/", 20, train), (f"{photos}/a", 10, of_a)]
    cases += [(f"{photos}[75%:]", 20 - train, 0), (str(table), 3, 3), (str(copy), 20, 0)]
    for spec, number, count in cases:
        source = open_source(spec)
        notes = note_of_trained(str(run.path), spec, source)
        assert len(source) == number
        said = [f"run was trained on {count} of the {number} images" in note for note in notes]
        assert said == [True] * (count > 0), spec
        assert all(note.endswith(f"; {photos}[75%:] was held out") for note in notes)


def test_of_other_models_nothing_is_known(photos: str, tmp_path: Path) -> None:
    source = open_source(photos)
    assert note_of_trained(str(tmp_path / "weights.safetensors"), photos, source) == []
    run = RunDirectory.create(tmp_path / "run", {"data": {"train": ""}}, {"verb": "finetune"})
    assert note_of_trained(str(run.path), photos, source) == []
