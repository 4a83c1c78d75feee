import base64
import hashlib
import io
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from beit.codebook.contents import Code, Patch, WholeImage
from beit.codebook.crops import Crop
from beit.codebook.explorer import ExplorerPage, write_explorer
from beit.codebook.explorer_map import CodeMap
from beit.draw.thumbnails import thumbnail

GRID, K = (3, 5), 7
NASTY = "</script><script>alert('1')</script> & \"quoted\" <!-- кот"
RED, BLUE = (200, 30, 30), (30, 30, 200)
RGB, BROKEN = np.zeros((15, 3), np.uint8), np.full((15, 15), np.nan)


CROP = Crop(np.full((30, 30, 3), RED, np.uint8), (0.0, 0.25, 0.5, 0.75))


def patch(crop: Crop | None = CROP, **values: Any) -> Patch:
    return Patch(**({"image": 99, "position": 4, "crop": crop} | values))


def code(index: int, **values: Any) -> Code:
    positions = np.zeros(GRID, np.int64)
    positions[1, 2] = 9
    positions[0, 0] = 3
    settings: dict[str, Any] = {"index": index, "uses": 12, "positions": positions}
    return Code(**(settings | values))


def page_of(codes: Any = None, **values: Any) -> ExplorerPage:
    settings: dict[str, Any] = {"tokenizer": "tiny", "data": "dots", "num_codes": K, "grid": GRID}
    settings["colours"] = np.zeros((K, 3), np.uint8)
    codes = map(code, range(K)) if codes is None else codes
    return ExplorerPage(codes=codes, **(settings | values))


def data(page: str, name: str) -> list[str]:
    match = re.search(rf'<script type="[^"]*" id="data-{name}">(.*?)</script>', page, re.DOTALL)
    assert match is not None
    return match[1].strip("\n").split("\n")


def test_a_page_contains_codes_patches_and_images(tmp_path: Path) -> None:
    blue = CROP._replace(pixels=np.full((30, 30, 3), BLUE, np.uint8))
    patches = [
        patch(),
        patch(blue, name="b.png", label="sea", image=5, closeness=0.8765),
        patch(None),  # without pixels it is not on the page
    ]
    first = code(
        0,
        purity=0.75,
        position_entropy=0.8113,
        labels=[("sea", 0.75), ("sky", 0.25)],
        nearest=[(3, 0.5), (1, -0.25)],
        closest=patches,
    )
    picture = thumbnail(np.zeros((8, 9, 3), np.uint8))
    shown = WholeImage(5, "whole.png", picture, np.arange(15) % K)
    page = write_explorer(
        tmp_path / "a.html", page_of([first, *map(code, range(1, K))], images=[shown])
    ).read_text("utf-8")

    (image,) = data(page, "images")
    encoded = io.BytesIO(base64.b64decode(image.removeprefix("data:image/webp;base64,")))
    assert Image.open(encoded).size == (9, 8)
    assert f"one of {K} codes: the number of an entry of its codebook" in page
    summary = json.loads(data(page, "summary")[0])
    assert summary["grid"] == [3, 5]
    assert summary["labels"] == ["sea", "sky"]
    assert summary["codes"][0] == [12, 0.75, 0.811, [[0, 0.75], [1, 0.25]]]
    assert summary["codes"][1] == [12, None, None, []]
    assert summary["images"] == [["whole.png", None, [i % K for i in range(15)]]]
    assert summary["frames"] == [[0, 250, 500, 750]]
    assert len(summary["colours"]) == 6 * K
    lines = [json.loads(line) for line in data(page, "codes")]
    assert len(lines) == K
    assert lines[0]["most"] == 9
    levels = np.frombuffer(base64.b64decode(lines[0]["positions"]), np.uint8).reshape(GRID)
    assert (levels[1, 2], levels[0, 0], levels.sum()) == (255, 85, 340)
    assert lines[0]["neighbours"] == [[3, 0.5], [1, -0.25]]
    assert lines[0]["patches"] == [[0, 4, "", None, None, None], [0, 4, "b.png", 0, 0, 0.8765]]
    assert "sheet" not in lines[1]
    sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(lines[0]["sheet"]))))
    assert lines[0]["cell"] == 30 and sheet.shape == (30, 60, 3)
    assert abs(sheet[15, 15].astype(int) - RED).max() < 12
    assert abs(sheet[15, 45].astype(int) - BLUE).max() < 12


def test_features_are_colours_and_exact_cosines(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((15, 6)) * 0.01 + 1
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    colours, picture = rng.integers(0, 256, (15, 3), dtype=np.uint8), thumbnail(CROP.pixels)
    shown = WholeImage(5, "a", picture, np.zeros(15, int), None, colours, rows @ rows.T)
    path = write_explorer(tmp_path / "a.html", page_of(images=[shown]))
    page = path.read_text("utf-8")
    _, _, _, found, (low, high) = json.loads(data(page, "summary")[0])["images"][0]
    assert bytes.fromhex(found) == colours.tobytes()
    steps = np.frombuffer(base64.b64decode(data(page, "images")[0].split(" ")[1]), "<u2")
    cosines = low + (high - low) * steps / 65535
    expected = (rows @ rows.T)[np.triu_indices(15, 1)]
    assert expected.max() - expected.min() < 0.002
    np.testing.assert_allclose(cosines, expected, atol=2e-8)


def test_the_map_has_the_places_and_pictures_of_its_codes(tmp_path: Path) -> None:
    places = np.array([[0, 0], [4, 1], [np.nan, 0], [2, 2], [1, 1], [3, 0], [0, 2]], float)
    patches = np.array([np.full((4, 4, 3), 30 * k, np.uint8) for k in range(K)])
    code_map = CodeMap(places, patches, "t-SNE")
    page = write_explorer(tmp_path / "a.html", page_of(code_map=code_map)).read_text("utf-8")
    found = json.loads(data(page, "summary")[0])["map"]
    assert (found["codes"], found["cell"], found["method"]) == ([0, 1, 3, 4, 5, 6], [4, 4], "t-SNE")
    steps = np.frombuffer(base64.b64decode(found["places"]), "<u2").reshape(6, 2) / 65535
    expected = places[found["codes"]] / 4 + [0, 0.25]  # one scale for both axes, centred
    np.testing.assert_allclose(steps, expected, atol=1e-5)
    sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(data(page, "map")[0]))))
    assert sheet.shape == (12, 12, 3)
    assert [int(sheet[4 * (k // 3) + 1, 4 * (k % 3) + 1, 0]) for k in range(K)] == [
        30 * k for k in range(K)
    ]


def test_names_cannot_leave_the_data(tmp_path: Path) -> None:
    codes = [code(i, labels=[(NASTY, 0.5)], closest=[patch(name=NASTY)]) for i in range(K)]
    image = WholeImage(0, NASTY, thumbnail(np.zeros((8, 9, 3), np.uint8)), np.zeros(15, int), NASTY)
    nasty = page_of(codes, images=[image], tokenizer=NASTY, data=NASTY, facts={NASTY: NASTY})
    page = write_explorer(tmp_path / "a.html", nasty).read_text("utf-8")
    assert page.count("<script") == page.count("</script>") == 5
    assert "<!--" not in page
    assert json.loads(data(page, "summary")[0])["labels"] == [NASTY]


def test_the_policy_allows_this_script_and_no_other(tmp_path: Path) -> None:
    page = write_explorer(tmp_path / "a.html", page_of()).read_text("utf-8")
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    assert policy[1].startswith("default-src 'none'; img-src data:;")
    assert "unsafe" not in policy[1] and "http" not in policy[1]
    for tag, kind in (("script", "script"), ("style", "style")):
        source = re.search(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        assert source is not None
        digest = base64.b64encode(hashlib.sha256(source[1].encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy[1]


def test_pictures_are_compressed_as_far_as_the_page_asks(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (60, 60, 3), dtype=np.uint8) for _ in range(4)]

    def size(max_bytes: int) -> int:
        codes = (
            code(i, closest=[patch(CROP._replace(pixels=pixels)) for pixels in noise])
            for i in range(K)
        )
        written = write_explorer(tmp_path / "a.html", page_of(codes), max_bytes=max_bytes)
        return written.stat().st_size

    roomy, tight = size(1_000_000), size(120_000)
    assert 120_000 < roomy < 1_000_000
    assert 80_000 < tight <= 120_000
    with pytest.raises(ValueError, match=r"over the limit of 0\.1 MB; give it fewer images"):
        size(60_000)


def test_only_one_code_is_in_memory(tmp_path: Path) -> None:
    alive = 0

    class Counted(np.ndarray):
        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    def codes() -> Iterator[Code]:
        nonlocal alive
        for index in range(K):
            assert alive <= 1
            pixels = np.zeros((30, 30, 3), np.uint8).view(Counted)
            alive += 1
            yield code(index, closest=[patch(CROP._replace(pixels=pixels))])
            del pixels

    write_explorer(tmp_path / "a.html", page_of(codes()))


def test_a_wide_crop_keeps_its_shape_and_its_frame(tmp_path: Path) -> None:
    wide = patch(Crop(np.full((20, 80, 3), RED, np.uint8), (0.0, 0.0, 1.0, 0.5)))
    codes = (code(i, closest=[wide]) for i in range(K))
    page = write_explorer(tmp_path / "a.html", page_of(codes), side=40).read_text("utf-8")
    line = json.loads(data(page, "codes")[0])
    sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(line["sheet"])))).astype(int)
    assert sheet.shape == (40, 40, 3)
    assert sheet[20, 2, 0] > 150 > 60 > sheet[5, 2, 0]  # 10 rows of 40, in the middle
    assert json.loads(data(page, "summary")[0])["frames"] == [[375, 0, 625, 500]]


def test_thumbnails_have_the_given_side() -> None:
    pixels = np.zeros((300, 200, 3), np.uint8)
    assert Image.open(io.BytesIO(thumbnail(pixels, side=60))).size == (40, 60)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"codes": map(code, range(K - 1))}, "6 codes, expected 7"),
        ({"codes": map(code, [0, 2])}, "in order; got code 2 for 1"),
        ({"codes": [code(0, uses=11)]}, "code 0 needs positions .* its 11 uses"),
        ({"codes": [code(0, purity=1.5)]}, "code 0 has a purity or label share of 1.5"),
        ({"codes": [code(0, nearest=[(7, 0.5)])]}, "code 0 has nearest code 7"),
        ({"codes": [code(0, nearest=[(1, math.nan)])]}, "nearest code 1"),
        ({"codes": [code(0, closest=[patch(position=15)])]}, r"a position in \[0, 15\)"),
        (
            {"codes": [code(0, closest=[patch(CROP._replace(frame=(0, 0, 0, 1)))])]},
            "a patch of code 0 has frame",
        ),
        (
            {"images": 2 * [WholeImage(3, "a", b"RIFF", np.zeros(15, int))]},
            "has index 3, as another",
        ),
        (
            {"codes": [code(0, closest=[patch(CROP._replace(pixels=np.zeros((4, 4, 3))))])]},
            r"\(h, w, 3\) uint8",
        ),
        (
            {"images": [WholeImage(0, "a", b"GIF89a", np.zeros(15, int))]},
            "is not a JPEG, PNG or WebP image",
        ),
        ({"images": [WholeImage(0, "a", b"", np.full(15, K))]}, r"15 codes in \[0, 7\)"),
        ({"images": [WholeImage(0, "a", b"", np.zeros(14, int))]}, "15 codes"),
        ({"colours": np.zeros((3, 3), np.uint8)}, r"colours must be \(7, 3\)"),
        ({"num_codes": 0}, "num_codes 0"),
        (
            {"images": [WholeImage(0, "a", b"RIFF", np.zeros(15, int), None, RGB, np.eye(14))]},
            r"'a' needs colours \(15, 3\) and finite cosines \(15, 15\), got .* \(14, 14\)",
        ),
        (
            {"images": [WholeImage(0, "a", b"RIFF", np.zeros(15, int), None, RGB, BROKEN)]},
            "finite cosines",
        ),
        (
            {"code_map": CodeMap(np.zeros((K, 2)), np.zeros((3, 4, 4, 3), np.uint8), "t-SNE")},
            r"the map needs places \(7, 2\), some of them finite, and 7 patches; .* and 3",
        ),
        (
            {"code_map": CodeMap(np.full((K, 2), np.nan), np.zeros((K, 4, 4, 3)), "t-SNE")},
            r"got \(7, 2\), finite: False",
        ),
    ],
)
def test_inconsistent_contents_are_refused_and_nothing_is_written(
    tmp_path: Path, values: dict[str, Any], message: str
) -> None:
    older = tmp_path / "a.html"
    older.write_text("older")
    with pytest.raises(ValueError, match=message):
        write_explorer(older, page_of(**values))
    assert older.read_text() == "older"
    assert list(tmp_path.iterdir()) == [older]
