"""The whole site, built as `make site` does, and looked at in a headless Chromium."""

import functools
import http.server
import shutil
import subprocess
import sys
import threading
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
CHROMIUM = next(
    filter(None, map(shutil.which, ["chromium", "chromium-browser", "google-chrome"])), None
)
WIDE, PHONE = {"width": 1440, "height": 900}, {"width": 375, "height": 812}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(pages, tmp_path_factory):
    """The site, built without a warning."""
    if find_spec("zensical") is None or find_spec("mkdocstrings") is None:
        pytest.skip("zensical is not installed (pip install -e '.[docs]')")
    folder = tmp_path_factory.mktemp("site")
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    settings |= {"docs_dir": "pages", "site_dir": "site"}
    settings["plugins"][1]["mkdocstrings"]["handlers"]["python"]["paths"] = [str(ROOT / "src")]
    (folder / "mkdocs.yml").write_text(yaml.safe_dump(settings))
    pages.write(folder / "pages")
    build = [sys.executable, "-m", "zensical", "build", "--strict"]
    done = subprocess.run(build, cwd=folder, capture_output=True, text=True)
    printed = done.stdout + done.stderr
    assert done.returncode == 0, printed
    assert "No issues found" in printed, printed
    return folder / "site"


def test_it_has_every_page_and_no_dead_link(site, pages):
    assert pages.check(site) == []
    texts = [path for path in pages.documents() if path.endswith(".md")]
    for path in [*pages.made_pages(), *texts]:
        name = Path(path).with_suffix(".html")
        html = site / (name.with_name("index.html") if name.stem == "README" else name)
        assert html.is_file(), path
    api = (site / "api" / "models.html").read_text()
    assert "beit.load_backbone" in api and "positions are resized to its grid" in api


class Silent(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def address(site):
    handler = functools.partial(Silent, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="module")
def browser():
    reason = "needs playwright, axe-playwright-python and a Chromium on PATH"
    playwright = pytest.importorskip("playwright.sync_api", reason=reason)
    pytest.importorskip("axe_playwright_python", reason=reason)
    if CHROMIUM is None:
        pytest.skip(reason)
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.mark.browser
@pytest.mark.parametrize(("scheme", "size"), [("light", WIDE), ("dark", PHONE)])
def test_pages_are_accessible_silent_and_alone(scheme, size, site, address, browser):
    """axe finds nothing, the console is empty, no other host is asked, nothing is cut off."""
    axe = files("axe_playwright_python").joinpath("axe.min.js").read_text("utf-8")
    context = browser.new_context(viewport=size, color_scheme=scheme)
    page, faults = context.new_page(), []
    page.on("console", lambda message: faults.append(message.text))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("request", lambda asked: asked.url.startswith(address) or faults.append(asked.url))
    alike = {path for path in site.glob("verbs/*.html") if path.stem not in ("index", "predict")}
    for html in sorted({*site.rglob("*.html")} - alike - {site / "404.html"}):
        name = html.relative_to(site).as_posix()
        page.goto(address + name)
        page.evaluate(axe)
        for fault in page.evaluate("axe.run()")["violations"]:
            faults.append((name, fault["id"], fault["nodes"][0]["html"][:200]))
        over = "document.documentElement.scrollWidth - innerWidth"
        if page.evaluate(over) > 0:
            faults.append((name, "wider than the window"))
    context.close()
    assert faults == []


@pytest.mark.browser
def test_the_search_finds_an_option(address, browser):
    page = browser.new_context(viewport=WIDE).new_page()
    page.goto(address)
    page.keyboard.press("Control+k")
    page.wait_for_timeout(500)
    page.keyboard.type("revive_every")
    page.get_by_text("Initialisation, update rule and revival of codes").wait_for(timeout=20_000)
