"""The page of an embedding in a headless Chromium."""

import shutil
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from beit.nn.quantizer import unit
from beit.result import Result
from beit.similarity.embedding import central
from beit.similarity.neighbours import all_nearest
from beit.similarity.page import EmbeddingPage, write_page

pytestmark = pytest.mark.browser
playwright = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed (pip install -e '.[dev]')"
)
axe = pytest.importorskip(
    "axe_playwright_python", reason="axe-playwright-python is not installed, which brings axe-core"
)
CHROMIUM = next(
    filter(None, map(shutil.which, ["chromium", "chromium-browser", "google-chrome"])), None
)
if CHROMIUM is None:
    pytest.skip("no Chromium on PATH (apt install chromium)", allow_module_level=True)

NUMBER = 300  # two sheets
NASTY = '</script><img src=x onerror="window.ran=1"><b>\'&amp;" котик قطة'


def colour_of(row: int) -> tuple[int, int, int]:
    return (row % 256, 90, 255 - row % 256)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    generator = torch.Generator().manual_seed(0)
    vectors = unit(torch.randn(NUMBER, 4, generator=generator))
    groups = (torch.arange(NUMBER) >= 200).long()
    near = all_nearest(vectors, 12)
    cells = np.stack([np.full((24, 24, 3), colour_of(row), np.uint8) for row in range(NUMBER)])
    page = EmbeddingPage(
        model=NASTY,
        data=NASTY,
        features="cls",
        note="300 of 999 images",
        names=[NASTY, *(f"folder/image {row}.png" for row in range(1, NUMBER))],
        labels=[row % 3 - 1 for row in range(NUMBER)],
        label_names=[NASTY, "cat"],
        places=vectors[:, :2] / 2,
        neighbours=near.rows,
        cosines=near.cosines,
        groups=groups,
        central=central(vectors, groups),
        compared=10,
        agreement=(0.4, 0.25),
        purity=(0.5, 0.5),
        thumbnails=cells,
    )
    path = tmp_path_factory.mktemp("embedding") / "page.html"
    write_page(path, page)
    return path.as_uri()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


Visit = Callable[..., Any]


def until(page: Any, claim: str) -> None:
    """Wait until an expression is true; the page's policy forbids Playwright's own waiting."""
    for _ in range(600):
        if page.evaluate(claim):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"never came true: {claim}")


@pytest.fixture
def visit(browser: Any, address: str) -> Iterator[Visit]:
    """Open the page; any logged error or network request fails the test."""
    faults: list[str] = []
    contexts = []

    def visit(hash_: str = "", size: tuple[int, int] = (1300, 850), scheme: str = "light") -> Any:
        viewport = {"width": size[0], "height": size[1]}
        context = browser.new_context(viewport=viewport, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: faults.append(f"error: {error}"))
        page.on("console", lambda message: faults.append(f"console: {message.text}"))

        def requested(request: Any) -> None:
            if not request.url.startswith((address, "data:", "blob:")):
                faults.append(f"request: {request.url[:200]}")

        page.on("request", requested)
        page.goto(address + hash_)
        until(page, "!document.getElementById('status').textContent.startsWith('Load')")
        return page

    yield visit
    for context in contexts:
        context.close()
    assert faults == []


def status(page: Any, text: str) -> None:
    """Wait for the status line: the address changes first, the page after it."""
    until(page, f"document.getElementById('status').innerText === '{text}'")


def drawn(page: Any) -> None:
    """Wait until what the last keys changed is drawn."""
    page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


def test_search_and_labels_filter_all_views(visit: Visit) -> None:
    page = visit()
    status(page, "300 images")
    facts = page.inner_text("#key")
    assert "40.0\u202f% have its label; chance is 25.0\u202f%" in facts
    assert "have 2 labels and are in 2 clusters: 50.0\u202f% have their" in facts
    page.fill("#search", "IMAGE 29")
    status(page, "11 of 300 images")  # 29 and 290 to 299
    page.click("[data-view=images]")
    until(page, "document.querySelectorAll('#image-grid .tile').length > 0")
    assert page.locator("#image-grid .tile").count() == 11
    page.select_option("#label", "cat")
    status(page, "5 of 300 images")  # 29, 290, 293, 296, 299
    page.fill("#search", "no such image")
    page.click("#clear")
    status(page, "300 images")
    page.click("[data-view=clusters]")
    status(page, "2 clusters")
    assert page.locator(".group").count() == 2


def test_an_image_leads_to_its_neighbours_and_its_cluster(visit: Visit) -> None:
    page = visit("#image=260")
    assert page.inner_text("#subject") == "folder/image 260.png"
    assert page.locator(".near li").count() == 12
    target = page.locator(".near a").first.get_attribute("href")
    page.locator(".near a").first.click()
    until(page, f"location.hash === '{target}'")
    read = """() => {
      const drawn = document.querySelector('.shown canvas');
      if (drawn.width < 10) return null;
      const canvas = new OffscreenCanvas(1, 1);
      const context = canvas.getContext('2d', { willReadFrequently: true });
      context.drawImage(drawn, -drawn.width / 2, -drawn.height / 2);
      return [...context.getImageData(0, 0, 1, 1).data].slice(0, 3);
    }"""
    until(page, f"({read})() !== null")
    assert page.evaluate(read) == list(colour_of(int(str(target).partition("=")[2])))
    page.goto(page.url.partition("#")[0] + "#cluster=1")
    until(page, "document.getElementById('subject').innerText === 'Cluster 2'")
    assert "100" in page.inner_text(".figures") and page.locator("#content .sheet li").count() == 60


def test_the_keyboard_moves_over_the_map_opens_and_returns(visit: Visit) -> None:
    page = visit()
    page.locator("#map-canvas").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    until(page, "!document.getElementById('tip').hidden")
    drawn(page)
    name = page.inner_text("#tip").split(" · ")[0]
    page.keyboard.press("Enter")
    until(page, "document.body.classList.contains('open')")
    assert page.inner_text("#subject") == name
    page.keyboard.press("Escape")
    until(page, "!document.body.classList.contains('open')")
    assert page.evaluate("document.activeElement.id") == "map-canvas"
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "search"


def test_a_click_on_the_map_opens_the_image_under_it(visit: Visit) -> None:
    page = visit()
    page.select_option("#drawn", "dots")
    page.fill("#search", "image 123.png")
    page.click("#nearer")
    page.click("#whole")
    box = page.locator("#map-canvas").bounding_box()
    for x in range(5, int(box["width"]), 11):  # the only one that is not faded
        for y in range(5, int(box["height"]), 11):
            page.mouse.move(box["x"] + x, box["y"] + y)
            if page.evaluate("document.getElementById('map-canvas').classList.contains('over')"):
                page.mouse.click(box["x"] + x, box["y"] + y)
                until(page, "location.hash === '#image=123'")
                return
    raise AssertionError("no image under the pointer")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_suits_everybody_and_every_width(visit: Visit, scheme: str) -> None:
    page = visit(scheme=scheme)
    page.evaluate(files(axe).joinpath("axe.min.js").read_text("utf-8"))
    for size in ((1300, 850), (375, 812)):
        page.set_viewport_size({"width": size[0], "height": size[1]})
        for place in ("#map", "#clusters", "#images", "#image=0", "#cluster=0"):
            page.evaluate("place => { location.hash = place; }", place)
            opened = "true" if "=" in place else "false"
            until(page, f"document.body.classList.contains('open') === {opened}")
            found = {
                (fault["id"], fault["nodes"][0]["html"][:200])
                for fault in page.evaluate("axe.run()")["violations"]
                if fault["impact"] in ("serious", "critical")
            }
            assert found == set(), place
            over = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
            assert page.evaluate(over) == 0, place
    assert page.evaluate("window.ran") is None
    assert page.locator("b b, img[src=x]").count() == 0


def test_links_of_a_page_in_a_notebook_stay_in_its_frame(
    address: str, browser: Any, tmp_path: Path
) -> None:
    value = SimpleNamespace(page=Path(address.removeprefix("file://")))
    shown = Result("visualise embedding", SimpleNamespace(output=str(value.page)), value)
    notebook = tmp_path / "notebook.html"
    notebook.write_text(f"<meta charset='utf-8'>{shown._repr_html_()}", "utf-8")
    page = browser.new_page()
    page.goto(f"file://{notebook}")
    frame = page.query_selector("iframe").content_frame()
    frame.click("a[data-view=clusters]")
    frame.wait_for_selector("#group-view:visible")
    assert frame.url == "about:srcdoc#clusters"
    page.close()
