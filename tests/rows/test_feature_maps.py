"""Feature maps in a folder: computed in parts, resumed, known by a key."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from beit.data.source import UnreadableImage
from beit.rows import feature_maps
from beit.rows.compute import compute_table
from beit.rows.feature_maps import FeatureMaps
from beit.run.device import DeviceConfig
from beit.run.launch import launch

SHAPE = (2, 3)


class Pictures:
    """Image i has all pixels i; those in `holes` are unreadable."""

    labels = None
    class_names = None
    why_unlabelled = ""

    def __init__(self, *holes: int, count: int = 11, prefix: str = "") -> None:
        self.holes, self.count, self.prefix = holes, count, prefix

    def __len__(self) -> int:
        return self.count

    def name(self, index: int) -> str:
        return f"{self.prefix}{index}.png"

    def image(self, index: int) -> Tensor:
        if index in self.holes:
            raise UnreadableImage(self.name(index), "broken")
        return torch.full((3, 4, 5), index, dtype=torch.uint8)


def make(
    folder: Path, *holes: int, shape: tuple[int, ...] = SHAPE, about: Any = None, **images: Any
) -> FeatureMaps:
    """Parts of 4, 4 and 3 images."""
    about = about or {"teacher": "t"}
    return FeatureMaps(folder, Pictures(*holes, **images), shape, about, batch_size=2, part_size=5)


def compute(maps: FeatureMaps, stop_at: int | None = None) -> list[int]:
    """Compute the missing parts. Returns: the images that the model was given."""
    given: list[int] = []

    def model(images: Tensor) -> dict[str, Tensor]:
        numbers = images[:, 0, 0, 0]
        if stop_at in numbers.tolist():
            raise InterruptedError
        given.extend(numbers.tolist())
        return {"maps": numbers[:, None, None] + torch.arange(6).reshape(SHAPE) / 8}

    fabric = launch(DeviceConfig(accelerator="cpu"))
    compute_table(fabric, maps, lambda image: image, model, 0, max_unreadable=0.5)
    maps.open()
    return given


def test_every_image_has_its_maps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    maps = make(tmp_path)
    assert compute(maps) == list(range(11))
    for index, row in zip([10, 0, 7, 7], maps.rows([10, 0, 7, 7]), strict=True):
        assert row.dtype == torch.bfloat16
        assert torch.equal(row.float(), index + torch.arange(6).reshape(SHAPE) / 8)
    shown = capsys.readouterr()
    assert re.search(r"\n11 rows, \d+ images/s\n$", shown.err)
    assert shown.err.startswith("feature maps of 11 images, 0.00 GB\n")
    about = json.loads((maps.output / "about.json").read_text())
    assert (about["teacher"], about["images"], about["shape"]) == ("t", 11, [2, 3])


@pytest.mark.parametrize(("stop_at", "num_done"), [(1, 0), (5, 4), (10, 8)])
def test_an_interrupted_computation_is_resumed_after_its_last_part(
    tmp_path: Path, stop_at: int, num_done: int, capsys: pytest.CaptureFixture[str]
) -> None:
    compute(make(tmp_path / "whole"))
    maps = make(tmp_path / "parts")
    with pytest.raises(InterruptedError):
        compute(maps, stop_at)
    capsys.readouterr()
    assert compute(make(tmp_path / "parts")) == list(range(num_done, 11))
    assert (f", {num_done} of them computed before" in capsys.readouterr().err) == (num_done > 0)
    for file in maps.output.iterdir():
        whole = tmp_path / "whole" / maps.output.name / file.name
        assert file.read_bytes() == whole.read_bytes()
    assert compute(make(tmp_path / "parts")) == []


def test_unreadable_images_are_named_and_have_no_maps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    maps = make(tmp_path, 3, 4, 5)
    compute(maps)
    assert maps.unreadable() == ["3.png: broken", "4.png: broken", "5.png: broken"]
    with pytest.raises(ValueError, match=r"4.png has no feature map.*delete .*part-000001"):
        list(maps.rows([0, 4]))
    assert all(row.isfinite().all() for row in maps.rows([0, 1, 2, 6, 7, 8, 9, 10]))
    shown = capsys.readouterr()
    assert "unreadable, left out: 3.png: broken" in shown.err
    assert ", 3 unreadable" in shown.err


def test_what_maps_depend_on_gives_another_folder(tmp_path: Path) -> None:
    tables = [
        make(tmp_path),
        make(tmp_path, about={"teacher": "other"}),
        make(tmp_path, shape=(3, 2)),
        make(tmp_path, count=10),
        make(tmp_path, prefix="other"),
        make(tmp_path, 3),
    ]
    assert len({table.output for table in tables}) == len(tables)


def test_a_damaged_or_missing_part_is_refused(tmp_path: Path) -> None:
    maps = make(tmp_path)
    compute(maps)
    file = maps.output / "part-000001.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match=rf"{file} is damaged \(.*\); delete it and run the comm"):
        compute(make(tmp_path))
    file.unlink()
    with pytest.raises(ValueError, match=rf"{maps.output} lacks {file.name}; all processes must"):
        make(tmp_path).open()
    assert compute(make(tmp_path)) == [4, 5, 6, 7]


def test_a_full_disk_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = 11 * 12 - 1  # a byte too few

    monkeypatch.setattr(feature_maps.shutil, "disk_usage", lambda path: Usage)
    with pytest.raises(OSError, match=r"feature maps of 11 images take .* larger disk"):
        compute(make(tmp_path))
