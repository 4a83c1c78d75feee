"""Figures for papers, as PNG and SVG: titled panels of pixels in rows, at a printed size.

The files are dark on white; on a page a figure takes the page's colours.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from beit.draw.canvas import Pixels
from beit.draw.charts import styled, themed_svg
from beit.draw.colours import FAINT, INK
from beit.draw.report import Picture
from beit.nn.patches import LUMA

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMN_INCHES, PAGE_INCHES = 0.86, 7.0  # widths of a panel and of a figure over both columns
POINTS, DPI = 7.0, 220
PRINTED = {
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor"), INK),
    **dict.fromkeys(("xtick.color", "ytick.color"), INK),
    "font.family": "DejaVu Sans",
    "font.size": POINTS,
    "svg.fonttype": "path",
}
PAGE_SCALE = 1.9  # of a figure on a page, where letters of its size would be small
HEAT = "viridis"  # perceptually uniform, readable in grey and with colour blindness
_MARGIN, _GAP, _LINE, _LABEL, _BAR = 0.06, 0.05, 0.125, 0.17, 0.28  # inches


class Panel(NamedTuple):
    """One picture of a figure.

    Attributes:
        pixels: (h, w, 3 or 4)
        title, below: text above the picture, and below it in grey
        words: a text for each cell of the grid, written inside the cell
        grid: (Gh, Gw) of the words
    """

    pixels: Pixels
    title: str = ""
    below: str = ""
    words: Sequence[str] = ()
    grid: tuple[int, int] = (1, 1)


class Drawing(NamedTuple):
    """One figure as PNG and SVG files, and as an SVG in a page's colours and font."""

    png: bytes
    svg: bytes
    page: bytes

    def picture(self, caption: str, alt: str) -> Picture:
        """Return the figure as a picture of a report."""
        return Picture(caption, alt, self.page, "image/svg+xml")

    def save(self, directory: Path, name: str) -> None:
        """Write NAME.png and NAME.svg into a directory."""
        (directory / f"{name}.png").write_bytes(self.png)
        (directory / f"{name}.svg").write_bytes(self.svg)


def heat(values: NDArray[np.float64]) -> Pixels:
    """Colour values in [0, 1] (...) by the colour map `HEAT`. Returns: (..., 3)."""
    import matplotlib

    colours: Pixels = np.asarray(matplotlib.colormaps[HEAT](values, bytes=True))[..., :3]
    return colours


def draw_panels(
    rows: Sequence[Sequence[Panel | None]],
    title: str,
    *,
    labels: Sequence[str] = (),
    bar: str = "",
    bar_ends: tuple[str, str] = ("0", "largest"),
) -> Drawing:
    """Lay out panels in rows below a title; None leaves a place free.

    Panels are about 2 cm wide, narrower if a row would be wider than a page.

    Args:
        labels: one for each row, written along its left side
        bar: meaning of the colours of `heat`; empty for no colour bar
        bar_ends: meaning of the lowest and the highest colour
    """
    if not any(panel is not None for row in rows for panel in row):
        raise ValueError("a figure needs at least one panel, got none")
    from matplotlib.figure import Figure

    columns = max(map(len, rows))
    margin = _MARGIN + (_LABEL if any(labels) else 0.0)
    room = (PAGE_INCHES - margin - _MARGIN - (columns - 1) * _GAP) / columns
    side = min(COLUMN_INCHES if columns > 2 else 1.4, room)
    heights = [_row_height(row, side) for row in rows]
    width = max(margin + columns * (side + _GAP) - _GAP + _MARGIN, 0.062 * len(title) + 0.2, 2.4)
    height = 0.26 + sum(map(sum, heights)) + (_BAR if bar else 0.0) + _MARGIN
    with styled(PRINTED):
        figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")

        def write(x: float, y: float, words: str, **style: Any) -> None:
            figure.text(x / width, 1 - y / height, words, **style)

        def show(pixels: Pixels, x: float, y: float, w: float, h: float) -> "Axes":
            axes = figure.add_axes((x / width, 1 - (y + h) / height, w / width, h / height))
            axes.imshow(pixels, interpolation="none", aspect="auto")
            axes.set_axis_off()
            return axes

        write(_MARGIN, 0.15, title, size=POINTS + 1, weight="bold")
        top = 0.26
        for number, (row, (above, tall, below)) in enumerate(zip(rows, heights, strict=True)):
            top += above
            if number < len(labels):
                x, y = _MARGIN + 0.1, top + tall / 2
                write(x, y, labels[number], rotation=90, ha="center", va="center")
            for column, panel in enumerate(row):
                if panel is not None:
                    left = margin + column * (side + _GAP)
                    h, w = panel.pixels.shape[:2]
                    _write_words(show(panel.pixels, left, top, side, side * h / w), panel, side)
                    middle = left + side / 2
                    write(middle, top - 0.035, panel.title, ha="center")
                    under = top + side * h / w + 0.1
                    write(middle, under, panel.below, ha="center", color=FAINT, size=POINTS - 1)
            top += tall + below
        if bar:
            length = min(2.4, width - 2 * margin)
            show(heat(np.linspace(0, 1, 256)[None]), margin, top + 0.04, length, 0.08)
            write(margin, top + 0.23, bar_ends[0], size=POINTS - 1)
            write(margin + length / 2, top + 0.23, bar, size=POINTS - 1, ha="center")
            write(margin + length, top + 0.23, bar_ends[1], size=POINTS - 1, ha="right")
        return rendered(figure)


def _row_height(row: Sequence[Panel | None], side: float) -> tuple[float, float, float]:
    """Return the heights of a row in inches: titles, panels, text below."""
    panels = [panel for panel in row if panel is not None]
    tall = max((side * p.pixels.shape[0] / p.pixels.shape[1] for p in panels), default=0.0)
    above = _LINE if any(panel.title for panel in panels) else 0.0
    below = _LINE if any(panel.below for panel in panels) else 0.0
    return above, tall, below + _GAP


def _write_words(axes: "Axes", panel: Panel, side: float) -> None:
    """Write a word into each cell of a panel, black on light and white on dark."""
    if not panel.words:
        return
    (h, w), (Gh, Gw) = panel.pixels.shape[:2], panel.grid
    longest = max(map(len, panel.words))
    size = min(POINTS - 1, 72 * side / Gw / (0.68 * max(longest, 3)))
    for index, word in enumerate(panel.words):
        row, column = divmod(index, Gw)
        x, y = (column + 0.5) * w / Gw, (row + 0.5) * h / Gh
        dark = panel.pixels[int(y), int(x), :3] @ np.array(LUMA) < 140
        colour = "white" if dark else "black"
        axes.text(x, y, word, size=size, ha="center", va="center", color=colour)


def rendered(figure: "Figure", omitted: Sequence[str] = ("Date", "Creator")) -> Drawing:
    """Render a figure inside `styled`, without metadata: the same figure gives the same bytes."""
    import matplotlib

    files = io.BytesIO(), io.BytesIO()
    figure.savefig(files[0], format="png", metadata={"Software": None})
    figure.savefig(files[1], format="svg", metadata=dict.fromkeys(omitted))
    figure.patch.set_visible(False)
    for axes in figure.axes:
        axes.patch.set_visible(False)
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        page = themed_svg(figure, PAGE_SCALE)
    return Drawing(files[0].getvalue(), files[1].getvalue(), page)
