"""A report in Chromium: dark pages, values under the pointer and keys, pictures enlarged."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from beit.draw import canvas
from beit.draw.curves import curves
from beit.draw.panels import Panel, draw_panels
from beit.draw.report import Gallery, Picture, Section, write_report

pytestmark = pytest.mark.browser
CHROMIUM = next(
    filter(None, map(shutil.which, ["chromium", "chromium-browser", "google-chrome"])), None
)
if CHROMIUM is None:
    pytest.skip("no Chromium on PATH (apt install chromium)", allow_module_level=True)
api = pytest.importorskip("playwright.sync_api")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with api.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Any, tmp_path: Path) -> Iterator[Any]:
    records = [{"step": step, "accuracy": step / 10} for step in (1, 2, 3)]
    pixels = np.full((8, 8, 3), 90, np.uint8)
    photo = Picture("a photo", "a photo", canvas.png(pixels), "image/png")
    drawing = draw_panels([[Panel(pixels, "title", "below")]], "Panels").picture("", "panels")
    items = [Gallery("", [photo]), drawing, *curves(records, {"Accuracy": ["accuracy"]}, "")]
    write_report(tmp_path / "report.html", "T", [Section("S", items=items)], {"a": "b"})
    page = browser.new_page(color_scheme="dark")
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text))
    page.goto((tmp_path / "report.html").as_uri())
    yield page
    page.close()
    assert errors == []


def test_words_of_drawings_are_light_on_a_dark_page(page: Any) -> None:
    colours = page.eval_on_selector_all("svg text", "all => all.map(e => getComputedStyle(e).fill)")
    assert len(colours) > 6
    for colour in colours:
        assert min(map(int, colour.removeprefix("rgb(").removesuffix(")").split(","))) > 120


def test_values_are_shown_under_the_pointer_and_by_the_keys(page: Any) -> None:
    chart = page.locator(".drawing:has(svg[data-hover])")
    chart.scroll_into_view_if_needed()
    box = chart.locator("svg").bounding_box()
    page.mouse.move(box["x"] + box["width"] - 5, box["y"] + box["height"] / 2)
    assert page.locator(".values").inner_text().split("\n") == ["step 3", "accuracy 30.0%"]
    page.mouse.move(1, 1)
    assert page.locator(".values").count() == 0
    chart.focus()
    for step in (1, 2, 3, 3):
        page.keyboard.press("ArrowRight")
        assert page.locator(".values").inner_text().startswith(f"step {step}")


def test_a_picture_is_enlarged_and_escape_closes_it(page: Any) -> None:
    picture = page.locator("img.picture[tabindex]")  # not the copy in the dialog
    small = picture.bounding_box()["width"]
    for opens in (picture.click, lambda: picture.press("Enter")):
        opens()
        dialog = page.locator("dialog[open]")
        assert dialog.locator("figcaption").inner_text() == "a photo"
        assert dialog.locator("img").bounding_box()["width"] > 1.5 * small
        page.keyboard.press("Escape")
        assert dialog.count() == 0
    chart = page.locator(".drawing:has(svg[data-hover])")
    chart.click()
    assert page.locator("dialog[open] svg").bounding_box()["width"] > 600
    page.locator("dialog[open] button").click()
    assert page.locator("dialog[open]").count() == 0
