"""Weights record their bands and range; data with others are not read without a word."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import tifffile
from safetensors import safe_open
from safetensors.torch import save_file

import beit
from beit.exporting import export
from beit.nn.vit import VisionTransformer
from beit.weights.bands import bands_in, check_bands
from beit.weights.file import FORMAT, description, save_weights

LANDSAT = ["bands=4,3,2&range=0:3000"]


@pytest.fixture
def trained(tmp_path: Path, backbone: VisionTransformer) -> str:
    file = tmp_path / "landsat.safetensors"
    save_weights(file, backbone, 1.0, LANDSAT)
    return str(file)


def said(caplog: pytest.LogCaptureFixture) -> list[tuple[int, str]]:
    found = [(record.levelno, record.getMessage()) for record in caplog.records]
    caplog.clear()
    return found


def test_other_bands_or_another_range_are_warned_of(
    trained: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="beit")
    check_bands(trained, "fields?range=0:3000&bands=4,3,2[:50%]", ["a.tif?bands=4,3,2&range=0:3e3"])
    check_bands("teacher:efficientnet-lite0", "fields?bands=3,2,1")
    assert not said(caplog)
    for other in ("fields?bands=1-3&range=0:3000", "fields?bands=4,3,2&range=0:4095", "fields"):
        check_bands(trained, other)
        ((level, message),) = said(caplog)
        assert level == logging.WARNING
        assert message.startswith(f"{other} has ")
        assert (
            f"but {trained} was trained with {LANDSAT[0]}; give the same, or check that values"
            in message
        )
    with pytest.raises(ValueError, match=r"4 channels, not 3; .*\?bands=4,3,2"):
        check_bands(trained, "fields?bands=1-4&range=0:3000")


def test_plain_images_suit_files_that_need_options(
    tmp_path: Path, backbone: VisionTransformer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="beit")
    file = str(tmp_path / "photos.safetensors")
    save_weights(file, backbone, pixel_options=[""])
    check_bands(file, "cells?range=0:4095")
    ((level, message),) = said(caplog)
    assert level == logging.INFO and "was trained with no bands or range" in message
    with pytest.raises(ValueError, match=r"5 channels, not 3; give as many bands, as in .*3,2,1"):
        check_bands(file, "cells?bands=1-5")
    save_weights(file, backbone)  # as of other libraries
    check_bands(file, "cells?bands=1-5")
    assert bands_in(Path(file)) is None and not said(caplog)


def test_exports_and_copies_keep_what_is_recorded(
    trained: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = beit.load_backbone(trained)
    assert model.pixel_options == LANDSAT
    beit.save(model, copy := tmp_path / "copy.safetensors")
    file = str(tmp_path / "export.safetensors")
    export.run(export.Config(trained, file, "safetensors", part="backbone", image_size=(16, 32)))
    for path in (copy, file):
        with safe_open(path, "pt") as opened:
            about = json.loads(opened.metadata()[FORMAT])
        assert about["pixel_options"] == LANDSAT == bands_in(Path(path))
    assert json.loads(description(model))["pixel_options"] == LANDSAT  # as in ONNX and .pt2
    capsys.readouterr()
    export.run(export.Config(trained, str(tmp_path / "x.pth"), "published"))
    assert (
        f"published records no bands or range; tell users: {LANDSAT[0]}" in capsys.readouterr().out
    )


def test_a_loaded_model_compares_the_photos_that_are_opened_for_it(
    trained: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    values = np.arange(4 * 40 * 40, dtype=np.uint16).reshape(4, 40, 40)
    tifffile.imwrite(tmp_path / "field.tif", values, photometric="minisblack")
    model = beit.load(trained)
    beit.open_image(f"{tmp_path}/field.tif?bands=4,3,2&range=0:3000", size=model)
    assert not said(caplog)
    beit.open_image(f"{tmp_path}/field.tif?bands=1-3&range=0:3000", size=model)
    assert "the model was trained with bands=4,3,2" in said(caplog)[0][1]


@pytest.mark.parametrize("forged", [{"pixel_options": [3]}, {"pixel_options": "x"}, {}, []])
def test_a_damaged_record_is_none(forged: object, trained: str) -> None:
    save_file({}, trained, {FORMAT: json.dumps(forged)})
    assert bands_in(Path(trained)) is None
