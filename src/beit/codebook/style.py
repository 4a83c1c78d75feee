"""The style of a codebook's figures, and a finished figure as PNG and SVG."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from beit.draw.charts import styled
from beit.draw.colours import FAINT, INK, SERIES
from beit.draw.panels import Drawing, rendered
from beit.draw.report import Picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH = 7.1  # inches: two columns of a paper
DPI = 300  # of a PNG
BLUE, VERMILION, ORANGE, GREY = SERIES[0], SERIES[1], SERIES[4], FAINT
_FONTS = ("DejaVu Sans", "Noto Sans", "Noto Sans CJK JP", "Noto Sans Arabic", "Noto Sans Hebrew")
_STYLE: dict[Any, Any] = {
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
    "font.size": 7.5,
    "axes.titlesize": 8.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.edgecolor": GREY,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "savefig.dpi": DPI,
    "svg.fonttype": "none",  # text stays text: it can be searched, and edited for a paper
}


class SavedFigure(NamedTuple):
    """A finished figure with its file name and a description in words."""

    name: str
    alt: str
    drawing: Drawing

    def save(self, directory: Path) -> Picture:
        """Write NAME.png and NAME.svg into a directory, and return a picture for a report."""
        self.drawing.save(directory, self.name)
        return self.drawing.picture("", self.alt)


@contextmanager
def new_figure(
    height: float, layout: Literal["constrained"] | None = "constrained"
) -> Iterator["Figure"]:
    """Yield an empty figure of the full width, `height` in inches; draw and save it in the block.

    It has those of the style's fonts that are installed.
    """
    from matplotlib.figure import Figure
    from matplotlib.font_manager import fontManager

    known = set(fontManager.get_font_names())
    with styled(_STYLE | {"font.family": [font for font in _FONTS if font in known]}):
        yield Figure(figsize=(WIDTH, height), layout=layout)


def saved(figure: "Figure", name: str, alt: str) -> SavedFigure:
    """Render a figure as PNG and SVG; inside the block of `new_figure`."""
    return SavedFigure(name, alt, rendered(figure, omitted=("Date",)))
