import shutil
from pathlib import Path

import pytest
from PIL import Image

from beit.data.classes import Labelled, checked_classes, renumbered
from beit.data.source import limited
from beit.data.sources import open_source
from beit.run.directory import RunDirectory
from beit.run.familiar import ImageSet, note_of_shared, note_of_trained


@pytest.fixture
def photos(tmp_path: Path) -> str:
    for number in range(20):
        path = tmp_path / "photos" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 3)).save(path)
    return str(tmp_path / "photos")


def opened(of_run):
    return limited(open_source(of_run["train"]), of_run.get("limit"))


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
        notes = note_of_trained(str(run.path), spec, source, opened)
        assert len(source) == number
        said = [f"run was trained on {count} of the {number} images" in note for note in notes]
        assert said == [True] * (count > 0), spec
        assert all(note.endswith(f"; {photos}[75%:] was held out") for note in notes)


def test_images_that_chose_the_weights_are_named(photos: str, tmp_path: Path) -> None:
    data = {"train": f"{photos}[:75%]", "validation": f"{photos}[75%:]", "limit": None}
    for keep, said in (("best", True), ("last", False)):
        config = {"data": data, "keep": keep}
        run = RunDirectory.create(tmp_path / keep, config, {"verb": "finetune"})
        source = open_source(data["validation"])
        notes = note_of_trained(str(run.path), str(data["validation"]), source, opened)
        assert ["chosen on these images, so the figures" in note for note in notes] == [True] * said


def test_images_that_were_trained_on_and_chose_the_weights_have_both_notes(
    photos: str, tmp_path: Path
) -> None:
    data = {"train": photos, "validation": photos, "limit": None}
    config = {"data": data, "keep": "best"}
    run = RunDirectory.create(tmp_path / "run", config, {"verb": "finetune"})
    chosen, trained = note_of_trained(str(run.path), photos, open_source(photos), opened)
    assert "were chosen on these images" in chosen and "was trained on 20 of the 20" in trained


def test_of_other_models_nothing_is_known(photos: str, tmp_path: Path) -> None:
    source = open_source(photos)
    assert note_of_trained(str(tmp_path / "weights.safetensors"), photos, source, opened) == []
    run = RunDirectory.create(tmp_path / "run", {"data": {"train": ""}}, {"verb": "finetune"})
    assert note_of_trained(str(run.path), photos, source, opened) == []


def test_images_of_a_set_that_are_trained_on_are_counted(photos: str, tmp_path: Path) -> None:
    train = open_source(photos, cache_gigabytes=0.1)
    (tmp_path / "labels.csv").write_text("path,label\nphotos/a/0.png,a\nphotos/b/1.png,b\n")
    table = Labelled("test", f"{tmp_path}/labels.csv", open_source(f"{tmp_path}/labels.csv"))
    test = renumbered(table, checked_classes(Labelled("train", photos, train)), "train")
    (note,) = note_of_shared(ImageSet(*test), ImageSet("train", photos, train))
    assert note.startswith(f"2 of the 2 images of test {test.spec} are in train {photos} too; ")
    specs = f"{photos}[:90%]", f"{photos}[90%:]"
    assert note_of_shared(*(ImageSet("", spec, open_source(spec)) for spec in specs)) == []
    few, many = (ImageSet("", spec, open_source(spec)) for spec in ("shapes://3", "shapes://9"))
    (note,) = note_of_shared(few, many)
    assert note.startswith("3 of the 3 images of  shapes://3 are in")
    # A store's splits may have images of the same names.
    store = ImageSet("", "s3://bucket/photos", train)
    assert note_of_shared(store, store) == []
