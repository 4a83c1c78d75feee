import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from beit import cli
from beit.data.pixels import reduced
from beit.data.views import EvalView
from beit.nn.vit import VisionTransformer, ViTConfig
from beit.rows.part import Part
from beit.run.device import DeviceConfig
from beit.similarity import similar, vectors
from beit.similarity.similar import Config, Neighbour, Result, ending
from beit.tables import embed
from beit.weights.file import save_weights
from beit.weights.open import load_backbone

CPU = DeviceConfig(accelerator="cpu")


def config(model: str, photo: Any, data: Any, **changes: Any) -> Config:
    photos = [str(p) for p in (photo if isinstance(photo, list) else [photo])]
    settings = {"num_workers": 0, "neighbours": 3, "device": CPU}
    return Config(model, photos, str(data), **(settings | changes))


def known(out: str) -> tuple[int, int]:
    """The images that were known from before, and those that were computed."""
    words = next(line for line in out.splitlines() if line.startswith("index ")).split()
    return int(words[words.index("images") - 1]), int(words[-2])


def test_the_picture_names_file_and_label(
    photos: Path, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(similar, "similar_picture", lambda rows: drawn.extend(rows) or b"")
    output = str(tmp_path / "near.png")
    result = similar.run(config(model, photos / "red" / "2.png", photos, output=output))
    (near, *_), match = next(iter(result.neighbours.values())), drawn[0][1]
    assert (match.first, match.second) == (f"{near.cosine:.3f} red", Path(near.name).name)


def test_the_nearest_are_of_the_photos_class_and_not_itself(
    photos: Path, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = photos / "red" / "2.png"
    output = tmp_path / "near.png"
    result = similar.run(config(model, photo, photos, output=str(output)))
    near = result.neighbours[str(photo)]
    assert len(near) == 3 and {n.label for n in near} == {"red"}
    assert "red/2.png" not in [n.name for n in near]
    assert [n.cosine for n in near] == sorted((n.cosine for n in near), reverse=True)
    backbone = load_backbone(model)
    view = EvalView(backbone.config.image_size)
    first, second = (
        backbone(view(torch.from_numpy(pixels).permute(2, 0, 1))[None]).patches.mean(dim=1)
        for pixels in map(pixels_of, (photo, photos / near[0].name))
    )
    cosine = float(torch.cosine_similarity(first, second).detach())
    assert near[0].cosine == pytest.approx(cosine, abs=1e-5)
    with Image.open(output) as picture:
        assert picture.width > 4 * 160
    out = capsys.readouterr().out
    assert "two images of the set have 0." in out and "  red/" in out


def pixels_of(path: Path) -> Any:
    return np.array(Image.open(path))


def test_a_copy_is_a_duplicate_wherever_it_lies(
    photos: Path, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy.png"
    shutil.copy(photos / "blue" / "4.png", copy)
    near = similar.run(config(model, copy, photos)).neighbours[str(copy)]
    assert near[0].name == "blue/4.png" and near[0].cosine == pytest.approx(1)
    assert "blue/4.png  blue  (nearly identical)" in capsys.readouterr().out


def test_photos_are_read_like_their_set_reduced_or_whole(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator, folder = torch.Generator().manual_seed(0), tmp_path / "large"
    folder.mkdir()
    for number in range(3):  # of JPEG's details much is lost at a quarter of the size
        noise = torch.randint(256, (200, 240, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(noise.numpy()).save(folder / f"{number}.jpg")
    copy = tmp_path / "copy.jpg"
    shutil.copy(folder / "1.jpg", copy)
    read = list[bool]()
    part_of_jpeg = reduced._part_of_jpeg

    def noted(*arguments: Any) -> Any:
        read.append(True)
        return part_of_jpeg(*arguments)

    monkeypatch.setattr(reduced, "_part_of_jpeg", noted)
    near = similar.run(config(model, copy, folder)).neighbours[str(copy)]
    assert near[0].name == "1.jpg" and near[0].cosine == pytest.approx(1, abs=1e-6)
    reductions = len(read)
    assert reductions >= 4
    table = tmp_path / "table.npz"
    embed.run(embed.Config(model, str(folder), str(table), num_workers=0, device=CPU))
    near = similar.run(config(model, copy, table)).neighbours[str(copy)]
    assert near[0].name == "1.jpg" and near[0].cosine == pytest.approx(1, abs=1e-6)
    assert len(read) == reductions  # a table has features of whole files


def test_only_new_and_changed_images_are_computed_again(
    photos: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = photos / "red" / "0.png"
    before = similar.run(config(model, photo, photos)).neighbours
    assert known(capsys.readouterr().out) == (0, 12)
    assert similar.run(config(model, photo, photos)).neighbours == before
    assert known(capsys.readouterr().out) == (12, 0)
    shutil.copy(photos / "blue" / "1.png", photos / "red" / "1.png")  # another picture
    shutil.copy(photos / "blue" / "1.png", photos / "blue" / "9.png")
    (photos / "red" / "5.png").unlink()
    near = similar.run(config(model, photos / "blue" / "1.png", photos)).neighbours
    assert known(capsys.readouterr().out) == (10, 2)
    (list_,) = near.values()
    assert {n.name for n in list_ if n.cosine > 0.999} == {"red/1.png", "blue/9.png"}
    stat = (photos / "red" / "1.png").stat()
    os.utime(photos / "red" / "1.png", ns=(stat.st_atime_ns, stat.st_mtime_ns + 10**9))
    similar.run(config(model, photo, photos))
    assert known(capsys.readouterr().out) == (11, 1)


def test_another_model_or_view_has_an_index_of_its_own(
    photos: Path, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(1)
    other = str(tmp_path / "other.safetensors")
    save_weights(other, VisionTransformer(load_backbone(model).config))
    for source, changes in ((model, {}), (other, {}), (model, {"crop_ratio": 1.0})):
        similar.run(config(source, photos / "red" / "0.png", photos, **changes))
        assert known(capsys.readouterr().out) == (0, 12)
    index = str(tmp_path / "mine.parquet")
    first = similar.run(config(model, photos / "red" / "0.png", photos, index=index))
    capsys.readouterr()
    again = similar.run(config(model, photos / "red" / "0.png", photos, index=index))
    assert again == first
    assert known(capsys.readouterr().out) == (12, 0)
    with pytest.raises(ValueError, match=r"mine.parquet is the index of another model or view: we"):
        similar.run(config(other, photos / "red" / "0.png", photos, index=index))


@pytest.mark.parametrize("change", [{"num_heads": 6}, {"mean": (0.5,) * 3, "std": (0.5,) * 3}])
def test_equal_weights_that_are_read_otherwise_have_an_index_of_their_own(
    change: dict[str, Any],
    photos: Path,
    vit: Callable[..., ViTConfig],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model, other = (str(tmp_path / f"{name}.safetensors") for name in ("one", "other"))
    photo = photos / "red" / "0.png"
    backbone = VisionTransformer(vit(relative_bias="none", absolute_positions=True))
    save_weights(model, backbone)
    backbone.config = replace(backbone.config, **change)
    save_weights(other, backbone)
    for source in (model, other):
        similar.run(config(source, photo, photos))
        assert known(capsys.readouterr().out) == (0, 12)
    table = str(tmp_path / "features.npz")
    embed.run(embed.Config(model, str(photos), table, num_workers=0, device=CPU))
    with pytest.raises(ValueError, match=f"{next(iter(change))} of the table is .*, of this com"):
        similar.run(config(other, photo, table))


def test_an_index_of_other_bands_is_not_reused(
    photos: Path,
    model: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    photo, index = photos / "red" / "0.png", str(tmp_path / "mine.npz")
    similar.run(config(model, f"{photo}?bands=3,2,1", f"{photos}?bands=3,2,1", index=index))
    assert not caplog.text
    with pytest.raises(ValueError, match=r"pixel_options was \['bands=3,2,1'\], is now \[''\]"):
        similar.run(config(model, photo, photos, index=index))
    table = str(tmp_path / "features.parquet")
    data = f"{photos}?bands=3,2,1"
    embed.run(embed.Config(model, data, table, num_workers=0, device=CPU))
    for searched in (data, table):
        caplog.clear()
        similar.run(config(model, photo, searched))
        assert f"{photo} has no bands or range, but {searched} has bands=3,2,1" in caplog.text


def test_an_interrupted_index_resumes(
    photos: Path, model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(vectors, "_BATCH", 4)
    monkeypatch.setattr(vectors, "_PART", 4)
    add, calls = Part.add, list[int]()

    def stopped(self: Any, *values: Any) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        add(self, *values)

    with monkeypatch.context() as patched:
        patched.setattr(Part, "add", stopped)
        with pytest.raises(KeyboardInterrupt):
            similar.run(config(model, photos / "red" / "0.png", photos))
    capsys.readouterr()
    similar.run(config(model, photos / "red" / "0.png", photos))
    assert "2 of them done before" in capsys.readouterr().err


def test_a_table_of_embed_stands_for_the_set(
    photos: Path, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = photos / "red" / "3.png"
    expected = similar.run(config(model, photo, photos)).neighbours[str(photo)]
    for suffix in ("npz", "parquet"):
        table = tmp_path / f"features.{suffix}"
        arguments = ["embed", "--model", model, "--data", str(photos), "--output", str(table)]
        assert cli.main([*arguments, "--num_workers", "0", "--device.accelerator", "cpu"]) == 0
        near = similar.run(config(model, photo, table)).neighbours[str(photo)]
        assert [(n.name, n.label) for n in near] == [(n.name, n.label) for n in expected]
        by_name = similar.run(config(model, "red/3.png", table)).neighbours["red/3.png"]
        assert [n.name for n in by_name] == [n.name for n in expected]
        with pytest.raises(ValueError, match=r"crop_ratio of the table is 0.875, of this"):
            similar.run(config(model, photo, table, crop_ratio=1.0))
    shutil.rmtree(photos)
    output = tmp_path / "grey.png"
    similar.run(config(model, "red/3.png", table, output=str(output)))
    assert output.exists()


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"photos": []}, "no photo given: beit similar MODEL PHOTO"),
        ({"data": ""}, "data is missing"),
        ({"output": "near.jpg"}, "expected a name that ends in .png"),
        ({"neighbours": 0}, "neighbours must be at least 1, got 0"),
    ],
)
def test_what_is_missing_is_named(changes: dict[str, Any], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        Config(**({"model": "m", "photos": ["a.png"], "data": "photos"} | changes))


def test_a_photo_that_cannot_be_used_is_named_before_anything_is_computed(
    photos: Path, model: str, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    for photo, error in (
        ("gone.png", "gone.png: no such file, and no image of the set has this name"),
        (photos, "photos holds 12 images; expected one image file"),
        (broken, "broken.png: .*give another photo"),
    ):
        with pytest.raises((ValueError, OSError), match=error):
            similar.run(config(model, photo, photos))
    assert not (tmp_path / "caches").exists()


def test_a_drawn_photo_is_named_as_in_its_set(model: str) -> None:
    photo, other = (f"shapes://{number}?size=24x24&seed=0" for number in (3, 9))
    near = similar.run(config(model, photo, "shapes://5?size=24")).neighbours[photo]
    assert len(near) == 3 and photo not in [n.name for n in near]
    with pytest.raises(
        FileNotFoundError, match=r"first is 'shapes://0\?size=24x24&seed=0'\); give"
    ):
        similar.run(config(model, other, "shapes://5?size=24"))


def test_features_of_a_teacher_have_no_cls(photos: Path, tmp_path: Path) -> None:
    file = tmp_path / "vit.safetensors"
    save_file(timm.create_model("test_vit").state_dict(), file)
    teacher, photo = f"teacher:timm:test_vit@{file}", photos / "red" / "0.png"
    with pytest.raises(ValueError, match=r"features is cls, but teacher:.* has no \[CLS\] token"):
        similar.run(config(teacher, photo, photos, features="cls"))
    near = similar.run(config(teacher, photo, photos)).neighbours[str(photo)]
    assert len(near) == 3


def test_each_map_of_a_teacher_has_an_index_of_its_own(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "resnet.safetensors"
    save_file(timm.create_model("test_resnet").state_dict(), file)
    for stride in (8, 16):  # both of 48 channels
        teacher = f"teacher:timm:test_resnet#stride{stride}@{file}"
        similar.run(config(teacher, photos / "red" / "0.png", photos))
        assert known(capsys.readouterr().out) == (0, 12)


def test_the_figure_says_of_which_of_several_photos_it_is() -> None:
    near = {"a b.jpg": [Neighbour("x.jpg", 0.5, "")], "c.jpg": [Neighbour("y.jpg", 0.75, "")]}
    config = Config("m", list(near), "photos")
    assert ending(config, Result(near, None)).figure == "nearest to c.jpg: y.jpg, cosine 0.750"
    one = {"a b.jpg": near["a b.jpg"]}
    config = Config("m", list(one), "photos")
    assert ending(config, Result(one, None)).figure == "nearest x.jpg, cosine 0.500"


def test_images_without_a_file_are_known_by_name_only_and_it_says_so(
    photos: Path, model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    images = [np.full((24, 30, 3), value, np.uint8) for value in (0, 99, 250)]
    module = SimpleNamespace(images=lambda: images, __file__="")
    monkeypatch.setitem(sys.modules, "own_set", module)
    note = "3 images without a file on this machine, known by name only: if they have changed,"
    for said in (False, True):
        similar.run(config(model, photos / "red" / "0.png", "python:own_set:images"))
        assert (note in capsys.readouterr().out) is said
    for _ in range(2):
        similar.run(config(model, photos / "red" / "0.png", "shapes://3?size=24"))
        assert "known by name only" not in capsys.readouterr().out
