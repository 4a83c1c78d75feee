"""The explorer's page in a headless Chromium, as people and their tools use it."""

import shutil
import time
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from beit.codebook.contents import Code, Patch, WholeImage
from beit.codebook.crops import Crop
from beit.codebook.explorer import ExplorerPage, write_explorer
from beit.codebook.explorer_map import CodeMap
from beit.draw.numbers import cosine_words
from beit.draw.thumbnails import thumbnail

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

K, GRID, N = 60, (3, 5), 15
NASTY = '</script><img src=x onerror="window.ran=1"><b>\'&amp;" котик 猫 قطة'
WIDE, NARROW = (1440, 900), (375, 812)
MIDDLE = (1 / 3, 1 / 3, 2 / 3, 2 / 3)  # frame of the patch in a crop


def colour_of(code: int) -> tuple[int, int, int]:
    return (40 + 3 * code, 120, 230 - 3 * code)


def codes() -> Iterator[Code]:
    """Code k is used 3k times; codes 0 to 4 are unused, 7 and 8 have no patches to show."""
    rng = np.random.default_rng(0)
    for index in range(K):
        if index < 5:
            yield Code(index, 0, np.zeros(GRID, np.int64), nearest=[(9, 0.5)])
            continue
        uses = 3 * index
        positions = np.bincount(rng.integers(0, N, uses), minlength=N).reshape(GRID)
        label = NASTY if index == 20 else "ab"[index % 2] + "nimal"
        share = 0.2 + 0.01 * ((7 * index) % K)
        pixels = np.full((48, 48, 3), colour_of(index), np.uint8)
        pixels[16:32, 16:32] //= 2
        crop = Crop(pixels, MIDDLE)
        patches = [
            Patch(0 if i == 0 else 99, i, 0.9 - 0.01 * i, NASTY, label, crop)
            for i in range(0 if index in (7, 8) else 10)
        ]
        yield Code(
            index=index,
            uses=uses,
            positions=positions,
            purity=share,
            position_entropy=float(index % 4),
            labels=[(label, share), ("other", 0.1)],
            nearest=[((index + 1) % K, 0.9), ((index + 2) % K, 0.8)],
            closest=patches,
        )


def colours(num_codes: int) -> NDArray[np.uint8]:
    return np.random.default_rng(2).integers(0, 256, (num_codes, 3), dtype=np.uint8)


def cosines(image: int) -> NDArray[np.float64]:
    """Close to each other and to 1, as of a network that sees little."""
    rows = np.random.default_rng(image).standard_normal((N, 8)) * 0.02 + 1
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows @ rows.T)


def images() -> list[WholeImage]:
    """Image 1 has no features."""
    rng = np.random.default_rng(1)
    return [
        WholeImage(
            i,
            NASTY if i == 0 else f"folder/a rather long name of an image {i}.png",
            thumbnail(rng.integers(0, 256, (45, 75, 3), dtype=np.uint8)),
            (np.arange(N) + 4 * i) % K,
            NASTY if i == 0 else "animal",
            None if i == 1 else colours(N + i)[i:],
            None if i == 1 else cosines(i),
        )
        for i in range(8)
    ]


def code_map() -> CodeMap:
    """Codes 0 to 4 are not on it; the others lie on a spiral, code 59 in the middle."""
    turn = np.arange(K - 1, -1, -1)
    places = np.stack([turn * np.cos(turn / 4), turn * np.sin(turn / 4)], axis=1)
    places[:5] = np.nan
    patches = np.array([np.full((8, 8, 3), colour_of(k), np.uint8) for k in range(K)])
    return CodeMap(places, patches, "t-SNE")


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    page = ExplorerPage(
        *(NASTY, NASTY, K, GRID, colours(K), codes(), images()),
        facts={"Images": "8", NASTY: NASTY},
        code_map=code_map(),
    )
    path = write_explorer(tmp_path_factory.mktemp("explorer") / "explorer.html", page)
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

    def visit(
        hash_: str = "", size: tuple[int, int] = WIDE, scheme: str = "light", at: str = address
    ) -> Any:
        context = browser.new_context(
            viewport={"width": size[0], "height": size[1]}, color_scheme=scheme
        )
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: faults.append(f"error: {error}"))
        page.on("console", lambda message: faults.append(f"console: {message.text}"))
        page.on("dialog", lambda dialog: faults.append(f"dialog: {dialog.message}"))

        def requested(request: Any) -> None:
            if not request.url.startswith((at, "data:", "blob:")):
                faults.append(f"request: {request.url[:200]}")

        page.on("request", requested)
        page.goto(at + hash_)
        until(page, "!document.getElementById('status').textContent.startsWith('Load')")
        return page

    yield visit
    for context in contexts:
        context.close()
    assert faults == []


def first_codes(page: Any, number: int = 3) -> list[int]:
    found = page.eval_on_selector_all("#code-grid .tile b", "all => all.map(b => b.textContent)")
    return [int(text) for text in found[:number]]


def in_panel(page: Any) -> str:
    return "" if page.is_hidden("#panel") else str(page.inner_text("#subject"))


def shows(page: Any, subject: str) -> None:
    """Wait until the panel has this title; empty: until it is closed."""
    eventually(lambda: in_panel(page), subject)


def focused(page: Any) -> str:
    return str(page.evaluate("document.activeElement.getAttribute('href')"))


def focuses(page: Any, address: str) -> None:
    eventually(lambda: focused(page), address)


def eventually(read: Callable[[], str], expected: str) -> None:
    deadline = time.monotonic() + 30
    while read() != expected and time.monotonic() < deadline:
        time.sleep(0.05)
    assert read() == expected


def test_search_sort_and_filters_change_what_is_shown(visit: Visit) -> None:
    page = visit()
    assert first_codes(page) == [59, 58, 57]  # most used first
    assert page.inner_text("#status") == "60 codes"
    page.select_option("#sort", "index")
    assert first_codes(page) == [0, 1, 2]
    page.click("#reverse")
    assert first_codes(page) == [59, 58, 57]
    page.click("#reverse")
    page.select_option("#sort", "entropy")
    assert first_codes(page) == [8, 12, 16]
    page.select_option("#sort", "purity")
    assert first_codes(page) == [17, 34, 51]  # 7k mod 60 is 59, 58, 57
    page.fill("#search", "5")
    assert first_codes(page, 99) == [5, 51, 59, 50, 58, 57, 56, 55, 54, 53, 52]  # 5 itself first
    assert page.inner_text("#status") == "11 of 60 codes"
    page.fill("#search", "BNI")
    assert page.inner_text("#status") == "28 of 60 codes"
    page.fill("#search", "котик")
    assert first_codes(page) == [20]
    page.fill("#search", "no such label")
    assert page.inner_text("#status") == "0 of 60 codes"
    page.click("#clear")
    assert page.inner_text("#status") == "60 codes"
    page.select_option("#shown", "unused")
    assert first_codes(page, 9) == [0, 1, 2, 3, 4]
    page.select_option("#shown", "used")
    page.select_option("#label", "bnimal")
    assert first_codes(page) == [59, 57, 55]
    page.locator("#purity").focus()
    for _ in range(15):
        page.keyboard.press("ArrowRight")
    assert page.inner_text("#least").startswith("75")
    assert page.inner_text("#status") == "3 of 60 codes"  # 17, 25 and 51 of the odd ones


def test_a_code_opens_and_its_neighbours_lead_on_and_back(visit: Visit) -> None:
    page = visit()
    page.click("#code-grid a[href='#code=57']")
    shows(page, "Code 57")
    assert page.evaluate("location.hash") == "#code=57"
    assert page.title().startswith("Code 57")
    text = page.inner_text("#panel")
    assert "171" in text and "of all, rank 3" in text and "59\u202f%" in text  # 0.2 + 0.39
    assert page.locator(".patches canvas").count() == 10
    page.click(".codes a[href='#code=58']")
    shows(page, "Code 58")
    page.go_back()
    until(page, "location.hash === '#code=57'")
    shows(page, "Code 57")
    page.click("#next")
    shows(page, "Code 56")  # as the gallery is sorted
    page.click("#close")
    shows(page, "")
    focuses(page, "#code=56")
    page.go_back()
    until(page, "location.hash === '#code=56'")
    shows(page, "Code 56")


def test_pictures_are_the_patches_with_their_frames(visit: Visit) -> None:
    page = visit("#code=30")
    read = """([selector, x, y]) => {
      const drawn = document.querySelector(selector);
      const canvas = new OffscreenCanvas(1, 1);
      const context = canvas.getContext('2d', { willReadFrequently: true });
      context.drawImage(drawn, -Math.floor(x * drawn.width), -Math.floor(y * drawn.height));
      return [...context.getImageData(0, 0, 1, 1).data];
    }"""
    until(page, "document.querySelector('.patches canvas').width === 130")
    page.wait_for_timeout(200)
    around = page.evaluate(read, [".patches canvas", 0.1, 0.1])
    inside = page.evaluate(read, [".patches canvas", 0.5, 0.5])
    edge = page.evaluate(read, [".patches canvas", 1 / 3 + 2.25 / 130, 0.5])
    assert np.abs(np.array(around[:3]) - colour_of(30)).max() < 12
    assert np.abs(np.array(inside[:3]) - np.array(colour_of(30)) / 2).max() < 12
    assert min(edge[:3]) > 200
    tile = page.evaluate(read, ["#code-grid a[href='#code=30'] canvas", 1 / 6, 1 / 6])
    assert np.abs(np.array(tile[:3]) - np.array(colour_of(30)) / 2).max() < 12


def test_where_a_code_stands_is_drawn_to_scale(visit: Visit) -> None:
    page = visit("#code=40")
    drawn = page.eval_on_selector_all(
        ".heat rect", "all => all.map(rect => Number(rect.getAttribute('fill-opacity')))"
    )
    positions = next(code for code in codes() if code.index == 40).positions.ravel()
    assert np.allclose(drawn, positions / positions.max(), atol=0.003)


def test_an_image_shows_its_tokens_and_they_lead_to_codes(visit: Visit) -> None:
    page = visit()
    page.click("[data-view=images]")
    eventually(lambda: page.inner_text("#status"), "8 images")  # hashchange comes after the click
    page.click("#image-grid a[href='#image=3']")
    shows(page, "folder/a rather long name of an image 3.png")
    cells = page.locator(".tokens [role=gridcell]")
    assert cells.count() == N
    assert cells.nth(6).get_attribute("aria-label") == "row 2, column 2: code 18"
    assert "15 different codes on its 15 patches" in page.inner_text("#panel")
    cells.nth(6).hover()
    assert "Row 2, column 2: code 18" in page.inner_text(".note")
    cells.nth(6).click()
    shows(page, "Code 18")
    page.click(".places a[href='#image=3&with=18']")
    page.wait_for_selector(".tokens .same")  # the address changes first, the panel after it
    assert page.locator(".tokens .same").count() == 1
    page.locator(".tokens [tabindex='0']").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")
    shows(page, "Code 22")


def test_features_colour_the_patches(visit: Visit) -> None:
    page = visit("#image=2")
    page.check("input[value=features]")
    assert "of all images here" in page.inner_text(".note")
    found = page.eval_on_selector_all(
        ".tokens [role=gridcell] i", "all => all.map(each => each.style.background)"
    )
    assert found == [f"rgb({r}, {g}, {b})" for r, g, b in images()[2].colours.tolist()]
    page.locator(".tokens [role=gridcell]").nth(3).click()
    shows(page, "Code 11")
    page.go_back()
    shows(page, "folder/a rather long name of an image 2.png")
    assert page.is_checked("input[value=features]")  # kept
    assert visit("#image=1").locator("[name=mode]").count() == 0


def test_a_click_compares_a_patch_with_all_others(visit: Visit) -> None:
    page = visit("#image=3")
    page.locator("input[value=tokens]").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.is_checked("input[value=similarity]")
    page.locator(".tokens [role=gridcell]").nth(6).click()
    assert page.evaluate("location.hash") == "#image=3&patch=2,2"
    expected = cosines(3)[6]
    expected[6] = 1
    words = cosine_words(expected.tolist())
    assert len(set(words)) >= N - 1 and words[0].startswith("0.999")  # the numbers differ
    written = page.eval_on_selector_all(".tokens b", "all => all.map(each => each.textContent)")
    assert written == words
    others = np.delete(expected, 6)
    ends = page.eval_on_selector_all(".whole + .scale span", "all => all.map(e => e.textContent)")
    assert [float(end) for end in ends] == pytest.approx([others.min(), others.max()], abs=1e-5)
    cells = page.locator(".tokens [role=gridcell]")
    assert cells.nth(6).get_attribute("aria-selected") == "true"
    assert cells.nth(0).get_attribute("aria-label") == f"row 1, column 1: cosine {words[0]}"
    most = int(np.argsort(-expected)[1])
    first = f"row {most // 5 + 1}, column {most % 5 + 1} ({words[most]})"
    assert page.inner_text("[role=status].note").startswith(f"Most like row 2, column 2: {first};")
    page.locator(".tokens [tabindex='0']").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    assert page.evaluate("location.hash") == "#image=3&patch=1,2"
    assert page.locator(".tokens .same").count() == 1
    page = visit("#image=3&patch=3,5")
    assert page.is_checked("input[value=similarity]")
    assert page.locator(".tokens [role=gridcell]").nth(14).get_attribute("aria-selected") == "true"
    for lost in ("#image=3&patch=4,1", "#image=1&patch=1,1", "#image=3&patch=x"):
        assert visit(lost).locator(".compared").count() == 0


def test_cosines_of_codes_and_patches_differ(visit: Visit) -> None:
    page = visit("#code=30")
    near = page.eval_on_selector_all(".codes .line", "all => all.map(e => e.textContent)")
    assert near == ["310.90", "320.80"]
    lines = page.eval_on_selector_all(
        ".patches .line span:last-child", "all => all.map(e => e.textContent)"
    )
    assert lines == [f"{0.9 - 0.01 * i:.3f}" for i in range(10)]


def test_the_map_shows_filters_and_opens_codes(visit: Visit) -> None:
    page = visit("#map")
    assert page.inner_text("#status") == "55 codes"  # the used ones
    assert "by t-SNE" in page.inner_text("#key")
    assert page.is_hidden("#sort") and page.is_visible("#drawn")
    page.fill("#search", "bnimal")
    assert page.inner_text("#status") == "28 of 55 codes"
    page.fill("#search", "")
    page.locator("#map-canvas").focus()
    page.keyboard.press("ArrowRight")  # the one in the middle
    until(page, "!document.getElementById('tip').hidden")
    first = page.inner_text("#tip")
    assert "used" in first and "mostly" in first and page.locator("#tip canvas").count() == 1
    page.keyboard.press("ArrowRight")
    until(page, f"document.getElementById('tip').innerText !== {first!r}")
    name = page.inner_text("#tip").split(",")[0]
    page.keyboard.press("Enter")
    shows(page, name)
    page.keyboard.press("Escape")
    shows(page, "")
    assert page.evaluate("document.activeElement.id") == "map-canvas"
    assert page.evaluate("location.hash") == "#map"
    page.click("[data-view=codes]")
    page.wait_for_selector("#sort", state="visible")  # hashchange comes after the click
    page.wait_for_selector("#map-canvas", state="hidden")


def test_the_map_draws_the_pictures_of_its_codes(visit: Visit) -> None:
    page = visit("#map")
    read = """([x, y]) => {
      const canvas = document.getElementById('map-canvas');
      const ratio = canvas.width / canvas.clientWidth;
      const read = new OffscreenCanvas(1, 1).getContext('2d', { willReadFrequently: true });
      read.drawImage(canvas, -Math.floor(x * ratio), -Math.floor(y * ratio));
      return [...read.getImageData(0, 0, 1, 1).data];
    }"""
    page.wait_for_timeout(300)
    box = page.locator("#map-canvas").bounding_box()
    middle = code_map().places[5:]
    middle = (middle.min(axis=0) + middle.max(axis=0)) / 2
    extent = float((code_map().places[5:].max(axis=0) - code_map().places[5:].min(axis=0)).max())
    stretch = min(1.7, max(1, box["width"] / box["height"]))
    room = min(box["width"], box["height"])
    side = min(96, (box["width"] * box["height"] / (K - 5)) ** 0.5 * 0.7)  # of a picture
    unit = max(0.5 * room, min(0.94 * room, room - side))
    for drawn, expected in (("patches", colour_of(5)), ("colours", tuple(colours(K)[5]))):
        page.select_option("#drawn", drawn)
        page.wait_for_timeout(200)
        x, y = (code_map().places[5] - middle) / extent  # the outermost code
        at = [box["width"] / 2 + x * unit * stretch, box["height"] / 2 - y * unit]
        assert np.abs(np.array(page.evaluate(read, at)[:3]) - expected).max() < 8, drawn


def test_an_address_leads_to_its_place(visit: Visit) -> None:
    assert in_panel(visit("#code=12")) == "Code 12"
    page = visit("#image=2")
    assert in_panel(page).endswith("image 2.png")
    page.keyboard.press("Escape")
    assert page.evaluate("location.hash") == "#images"
    focuses(page, "#image=2")
    for lost in ("#code=60", "#code=-1", "#code=1e1", "#image=99", "#code=<b>"):
        page = visit(lost)
        shows(page, "")
        assert first_codes(page) == [59, 58, 57]


def test_the_keyboard_reaches_everything(visit: Visit) -> None:
    page = visit()
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "search"
    page.keyboard.type("/")
    assert page.input_value("#search") == "/"
    page.fill("#search", "")
    page.keyboard.press("Tab")
    for _ in range(12):
        if focused(page).startswith("#code="):
            break
        page.keyboard.press("Tab")
    focuses(page, "#code=59")
    page.keyboard.press("ArrowRight")
    focuses(page, "#code=58")
    columns = int(page.get_attribute("#code-grid", "aria-colcount"))
    page.keyboard.press("ArrowDown")
    focuses(page, f"#code={58 - columns}")
    page.keyboard.press("Control+End")
    focuses(page, "#code=4")  # the unused ones stand last, by number
    below = page.evaluate("document.activeElement.getBoundingClientRect().bottom - innerHeight")
    assert below <= 0
    page.keyboard.press("Control+Home")
    page.keyboard.press("Enter")
    shows(page, "Code 59")
    until(page, "document.activeElement.id === 'subject'")
    page.keyboard.press("Escape")
    shows(page, "")
    focuses(page, "#code=59")
    assert page.locator("#code-grid [tabindex='0']").count() == 1
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"


def test_a_covered_gallery_cannot_be_reached(visit: Visit) -> None:
    page = visit("#code=12", NARROW)
    assert page.evaluate("document.getElementById('page').inert")
    page.set_viewport_size({"width": 1440, "height": 900})
    until(page, "!document.getElementById('page').inert")


PLACES = ["#codes", "#code=20", "#map", "#images", "#image=0", "#image=2&patch=2,3", "#code=0"]


def go(page: Any, place: str, size: tuple[int, int]) -> None:
    page.set_viewport_size({"width": size[0], "height": size[1]})
    page.evaluate("place => { location.hash = place; }", place)
    opened = "true" if "=" in place else "false"
    until(page, f"document.body.classList.contains('open') === {opened}")


def test_nothing_runs_over_the_side(visit: Visit) -> None:
    page = visit()
    page.evaluate("document.getElementById('fold').click()")  # the filters of narrow windows
    for size in [WIDE, NARROW, (320, 600), (1000, 700)]:
        for place in PLACES:
            go(page, place, size)
            over = page.evaluate(
                "[document.documentElement, document.getElementById('panel')]"
                ".map(element => element.scrollWidth - element.clientWidth)"
            )
            assert over == [0, 0], (place, size)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_fault(visit: Visit, scheme: str) -> None:
    page = visit(scheme=scheme)
    page.evaluate(files(axe).joinpath("axe.min.js").read_text("utf-8"))
    found = set()
    visits = [(place, WIDE) for place in PLACES] + [(place, NARROW) for place in PLACES[:2]]
    for place, size in visits:
        go(page, place, size)
        for fault in page.evaluate("axe.run()")["violations"]:
            if fault["impact"] in ("serious", "critical"):
                found.add((fault["id"], fault["nodes"][0]["html"][:200], place, size))
    assert found == set()


def test_the_scheme_follows_the_system_and_the_switch(visit: Visit) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    light, dark = "rgb(253, 253, 252)", "rgb(21, 24, 28)"
    page = visit(scheme="light")
    assert page.evaluate(paper) == light
    page.emulate_media(color_scheme="dark")
    assert page.evaluate(paper) == dark
    assert "Light page" in page.inner_text("#scheme")
    page.click("#scheme")
    assert page.evaluate(paper) == light
    page.emulate_media(color_scheme="light")
    page.click("#scheme")
    assert page.evaluate(paper) == dark


def test_hostile_names_are_text(visit: Visit) -> None:
    for hash_ in ("", "#code=20", "#images", "#image=0"):
        page = visit(hash_)
        page.wait_for_timeout(100)
        assert page.evaluate("window.ran") is None
        assert page.locator("b b, img[src=x]").count() == 0
    shows(page, NASTY)
    assert NASTY in visit("#code=20").inner_text("#panel")


def test_a_page_of_unused_codes_works(visit: Visit, tmp_path: Path) -> None:
    unused = (Code(index, 0, np.zeros(GRID, np.int64)) for index in range(3))
    path = write_explorer(
        tmp_path / "unused.html", ExplorerPage("none", "dots", 3, GRID, colours(3), unused)
    )
    page = visit(at=path.as_uri())
    assert "None of them is used" in page.inner_text("#lede")
    assert page.is_hidden("#views") and page.is_hidden("#purity")
    page.click("#code-grid a[href='#code=1']")
    until(page, "document.getElementById('panel').innerText.includes('No patch of these images')")


@pytest.mark.slow
def test_8192_codes_of_16_patches_stay_light(visit: Visit, tmp_path: Path) -> None:
    K, side, grid = 8192, 48, (14, 14)
    rng = np.random.default_rng(0)
    # Pictures with coarse and fine detail, so that they compress about as photographs do.
    coarse = rng.integers(30, 200, (64, 6, 6, 3)).repeat(8, axis=1).repeat(8, axis=2)
    fine = rng.integers(-25, 26, (64, side, side, 3))
    pool = (coarse + fine).clip(0, 255).astype(np.uint8)

    def many() -> Iterator[Code]:
        for index in range(K):
            patches = [
                Patch(9, pick, 0.5, f"n0{index}_{pick}.JPEG", "tench", Crop(pool[pick], MIDDLE))
                for pick in rng.integers(0, 64, 16).tolist()
            ]
            positions = rng.integers(0, 9, grid)
            near = [(int(other), 0.5) for other in rng.integers(0, K, 8)]
            uses = int(positions.sum())
            yield Code(
                index,
                uses,
                positions,
                purity=0.5,
                position_entropy=7.0,
                labels=[("tench", 0.5)],
                nearest=near,
                closest=patches,
            )

    path = write_explorer(
        tmp_path / "large.html", ExplorerPage("large", "noise", K, grid, colours(K), many())
    )
    assert 30_000_000 < path.stat().st_size < 60_000_000
    page = visit(at=path.as_uri())
    scrolled = page.evaluate("""async () => {
      let most = 0;
      const gaps = [];
      let last = performance.now();
      for (let step = 0; step < 150; step++) {
        window.scrollBy({ top: step < 100 ? 200 : 3000, behavior: 'instant' });
        await new Promise(requestAnimationFrame);
        most = Math.max(most, document.querySelectorAll('*').length);
        gaps.push(performance.now() - last);
        last = performance.now();
      }
      return { most, median: gaps.sort((a, b) => a - b)[75], top: window.scrollY };
    }""")
    assert scrolled["top"] > 50_000
    assert scrolled["most"] < 4000
    assert scrolled["median"] < 100  # ms; 16.7 where nothing else runs
    until(
        page,
        """(() => {
      const seen = [...document.querySelectorAll('#code-grid canvas')].filter((canvas) => {
        const { top, bottom } = canvas.getBoundingClientRect();
        return bottom > 0 && top < innerHeight;
      });
      return seen.length > 10 && seen.every((canvas) => canvas.width !== 300);
    })()""",
    )
