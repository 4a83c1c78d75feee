"""Time the explorer of 8,192 codes in a headless Chromium: opening, scrolling, its map.

The codes have 16 patches each, drawn with coarse and fine detail so that they compress about as
photographs do, places for the map, and 48 images of 14 x 14 patches with features. Gaps are the
times between two frames while the gallery scrolls, the pointer moves over the map, and it zooms;
`cpu_ms` is the processor time of the page's main thread for each, which other jobs do not change.

    python benchmarks/explorer.py
"""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import record
from playwright.sync_api import sync_playwright

from beit.codebook.contents import Code, Patch, WholeImage
from beit.codebook.crops import Crop
from beit.codebook.explorer import ExplorerPage, write_explorer
from beit.codebook.explorer_map import CodeMap
from beit.draw.thumbnails import thumbnail

K, GRID, SIDE, IMAGES, SEED = 8192, (14, 14), 48, 48, 0
READY = "!document.getElementById('status').textContent.startsWith('Load')"
SCROLLED = """async () => {
  const gaps = [];
  for (let step = 0, last = performance.now(); step < 200; step++) {
    window.scrollBy({ top: step < 150 ? 120 : 2000, behavior: 'instant' });
    await new Promise(requestAnimationFrame);
    gaps.push(performance.now() - last);
    last = performance.now();
  }
  return gaps;
}"""
MOVED = """async (zooms) => {
  const canvas = document.getElementById('map-canvas');
  const box = canvas.getBoundingClientRect();
  const gaps = [];
  for (let step = 0, last = performance.now(); step < 60; step++) {
    const at = { clientX: box.x + 100 + 10 * step, clientY: box.y + 100 + 5 * step, bubbles: true };
    const wheel = new WheelEvent('wheel', { ...at, deltaY: -10 });
    canvas.dispatchEvent(zooms ? wheel : new PointerEvent('pointermove', at));
    await new Promise(requestAnimationFrame);
    gaps.push(performance.now() - last);
    last = performance.now();
  }
  return gaps;
}"""


def codes(rng: np.random.Generator) -> Iterator[Code]:
    coarse = rng.integers(30, 200, (64, 6, 6, 3)).repeat(8, axis=1).repeat(8, axis=2)
    pool = (coarse + rng.integers(-25, 26, (64, SIDE, SIDE, 3))).clip(0, 255).astype(np.uint8)
    frame = (0.4, 0.4, 0.6, 0.6)
    for index in range(K):
        patches = [
            Patch(9, pick, 0.5, f"n0{index}_{pick}.JPEG", "tench", Crop(pool[pick], frame))
            for pick in rng.integers(0, 64, 16).tolist()
        ]
        positions = rng.integers(0, 9, GRID)
        near = [(int(other), 0.5) for other in rng.integers(0, K, 6)]
        yield Code(
            *(index, int(positions.sum()), positions),
            purity=0.5,
            position_entropy=7.0,
            labels=[("tench", 0.5)],
            nearest=near,
            closest=patches,
        )


def images(rng: np.random.Generator) -> Iterator[WholeImage]:
    N = GRID[0] * GRID[1]
    for index in range(IMAGES):
        pixels = rng.integers(0, 256, (28, 28, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
        rows = rng.standard_normal((N, 64))
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        tokens, colours = rng.integers(0, K, N), rng.integers(0, 256, (N, 3), dtype=np.uint8)
        picture = thumbnail(pixels)
        yield WholeImage(index, f"{index}.jpg", picture, tokens, None, colours, rows @ rows.T)


def main() -> None:
    rng = np.random.default_rng(SEED)
    patches = rng.integers(0, 256, (K, 4, 4, 3), dtype=np.uint8).repeat(4, 1).repeat(4, 2)
    code_map = CodeMap(rng.standard_normal((K, 2)), patches, "t-SNE")
    colours = rng.integers(0, 256, (K, 3), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        page = ExplorerPage(
            *("large", "noise", K, GRID, colours, codes(rng), images(rng)), code_map=code_map
        )
        path = write_explorer(Path(folder) / "explorer.html", page)
        chromium = shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        result: dict[str, Any] = {"megabytes": round(path.stat().st_size / 1e6, 1)}
        opened = [_opened(browser, path) for _ in range(5)]
        result["seconds_to_open"] = round(median(wall for wall, _ in opened), 2)
        result["cpu_seconds_to_open"] = round(median(cpu for _, cpu in opened), 2)
        tab = browser.new_page(viewport={"width": 1440, "height": 900})
        tab.goto(path.as_uri())
        tab.wait_for_timeout(2000)
        meter = _Meter(tab)
        result["scroll"] = meter.frames(SCROLLED)
        tab.evaluate("location.hash = '#map'")
        tab.wait_for_timeout(1500)
        for drawn in ("patches", "colours"):
            tab.select_option("#drawn", drawn)
            tab.wait_for_timeout(1000)
            result[f"map_of_{drawn}_pointed"] = meter.frames(MOVED, False)
            result[f"map_of_{drawn}_zoomed"] = meter.frames(MOVED, True)
            tab.click("#whole")
        browser.close()
    record.write_results("explorer-8192", record.provenance("cpu", [SEED]) | result)


def _opened(browser: Any, path: Path) -> tuple[float, float]:
    """Return the seconds until the page shows its first tiles, and the main thread's of them."""
    tab = browser.new_page(viewport={"width": 1440, "height": 900})
    meter = _Meter(tab)
    tab.goto(path.as_uri(), wait_until="load")
    assert tab.evaluate(READY)
    loaded = tab.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd")
    seconds = meter.seconds()
    tab.close()
    return loaded / 1000, seconds


class _Meter:
    """Measures frames of a page."""

    def __init__(self, tab: Any) -> None:
        self._tab, self._session = tab, tab.context.new_cdp_session(tab)
        self._session.send("Performance.enable", {"timeDomain": "threadTicks"})

    def frames(self, script: str, argument: object = None) -> dict[str, float]:
        """Run a script that returns the gaps between frames."""
        before = self.seconds()
        gaps = sorted(self._tab.evaluate(script, argument))
        cpu = 1000 * (self.seconds() - before) / len(gaps)
        values = {
            "gap_ms": median(gaps),
            "gap_ms_95%": gaps[int(0.95 * len(gaps))],
            "longest_gap_ms": gaps[-1],
            "cpu_ms": cpu,
        }
        return {name: round(value, 1) for name, value in values.items()}

    def seconds(self) -> float:
        """Return the processor time of the main thread so far."""
        metrics = self._session.send("Performance.getMetrics")["metrics"]
        return float({each["name"]: each["value"] for each in metrics}["TaskDuration"])


if __name__ == "__main__":
    main()
