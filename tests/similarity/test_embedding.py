import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from beit.run.device import DeviceConfig
from beit.similarity import embedding, page
from beit.similarity.embedding import Config, central

CPU = DeviceConfig(accelerator="cpu")


def config(model: str, data: Any, output: Path, **changes: Any) -> Config:
    settings = {"num_workers": 0, "neighbours": 3, "clusters": 2, "device": CPU}
    return Config(model, str(data), str(output), **(settings | changes))


def data(text: str, name: str) -> list[str]:
    match = re.search(rf'<script type="[^"]*" id="data-{name}">(.*?)</script>', text, re.DOTALL)
    assert match is not None
    return match[1].strip("\n").split("\n")


def test_the_page_holds_pictures_places_clusters_and_neighbours(
    photos: Path, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "page.html"
    settings = config(model, photos, output)
    result = embedding.run(settings)
    assert (result.page, result.images) == (output, 12)
    assert capsys.readouterr().out.splitlines()[-3:] == [
        "computing neighbours and clusters of 12 images",
        "reading the pictures of 12 images",
        "computing the map of 12 images",
    ]
    text = output.read_text("utf-8")
    summary = json.loads(data(text, "summary")[0])
    assert summary["names"][:2] == ["blue/0.png", "blue/1.png"]
    assert summary["labels"] == [0] * 6 + [1] * 6
    assert summary["label_names"] == ["blue", "red"]
    assert summary["groups"] == [0] * 6 + [1] * 6 or summary["groups"] == [1] * 6 + [0] * 6
    near = np.frombuffer(base64.b64decode(summary["near"]), "<u2").reshape(12, 3)
    assert all((near[row] < 6).all() == (row < 6) for row in range(12))
    assert not (near == np.arange(12)[:, None]).any()
    assert summary["purity"][0] == 1 and summary["purity"][1] < 1
    assert summary["compared"] == 10
    places = np.frombuffer(base64.b64decode(summary["places"]), "<u2").reshape(12, 2)
    assert np.ptp(places, axis=0).max() == 65535
    (sheet,) = data(text, "sheets")
    with Image.open(io.BytesIO(base64.b64decode(sheet))) as picture:
        h, w = summary["cell"]
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    first, last = pixels[:h, :w].mean((0, 1)), pixels[:h, 11 * w : 12 * w].mean((0, 1))
    assert first[2] > first[0] + 80 and last[0] > last[2] + 80  # blue/0 and red/5
    assert result.agreement == pytest.approx(0.5)  # 5 of 10
    assert result.chance == pytest.approx(5 / 11)
    figure = embedding.ending(settings, result).figure
    assert figure == "12 images, 50.0% of their 10 nearest have the same label (chance 45.5%)"


def test_a_limit_is_said_and_keeps_the_index_whole(
    photos: Path, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    embedding.run(config(model, photos, tmp_path / "all.html"))
    result = embedding.run(config(model, photos, tmp_path / "few.html", limit=5))
    out = capsys.readouterr().out
    assert result.images == 5
    assert "5 images known from before, 0 computed" in out
    assert "5 of 12 images, a fixed random subset" in out
    assert "5 of 12 images" in (tmp_path / "few.html").read_text("utf-8")
    embedding.run(config(model, photos, tmp_path / "again.html"))
    assert "12 images known from before, 0 computed" in capsys.readouterr().out


def test_images_without_labels_have_no_figures(photos: Path, model: str, tmp_path: Path) -> None:
    result = embedding.run(config(model, photos / "red", tmp_path / "page.html"))
    assert (result.agreement, result.chance) == (None, None)
    summary = json.loads(data((tmp_path / "page.html").read_text("utf-8"), "summary")[0])
    assert (summary["labels"], summary["agreement"], summary["purity"]) == (None, None, None)


def test_the_central_images_come_first() -> None:
    vectors = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.8, 0.6], [0.0, -1.0]])
    assert central(vectors, torch.tensor([0, 0, 0, 1])) == [[2, 1, 0], [3]]


def test_pictures_are_compressed_until_they_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    cells = np.random.default_rng(0).integers(0, 256, (300, 32, 40, 3), dtype=np.uint8)
    large = page._sheets(cells)
    assert [Image.open(io.BytesIO(sheet)).size for sheet in large] == [(640, 512), (640, 96)]
    monkeypatch.setattr(page, "MAX_BYTES", sum(map(len, large)))  # too large once it is text
    assert sum(map(len, page._sheets(cells))) * 4 / 3 <= page.MAX_BYTES


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"output": "page.txt"}, "expected a name that ends in .html"),
        ({"clusters": 0}, "clusters must be at least 1, got 0"),
    ],
)
def test_settings_are_checked(changes: dict[str, Any], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        Config(**({"model": "m", "data": "photos", "output": "a.html"} | changes))


def test_a_page_is_never_overwritten(photos: Path, model: str, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text("mine")
    with pytest.raises(FileExistsError, match="is not overwritten"):
        embedding.run(config(model, photos, tmp_path / "page.html"))


def test_unreadable_images_are_no_random_subset(
    photos: Path, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "red" / "broken.jpg").write_bytes(b"")
    output = tmp_path / "page.html"
    embedding.run(config(model, photos, output, max_unreadable=0.1))
    out = capsys.readouterr().out
    said = "1 of 13 images cannot be read and are left out"
    assert said in out and said in output.read_text("utf-8")
    assert "random subset" not in out
    assert "reading the pictures of 12 images" in out
