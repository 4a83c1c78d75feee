"""The style of a codebook's figures, and a finished figure as PNG and SVG."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from beit.draw.report import Picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH = 7.1  # inches: two columns of a paper
DPI = 300  # of a PNG
# From the palette for all kinds of colour vision by Okabe and Ito (2008).
BLUE, VERMILION, ORANGE, GREY = "#0072B2", "#D55E00", "#E69F00", "#666666"
_FONTS = ("DejaVu Sans", "Noto Sans", "Noto Sans CJK JP", "Noto Sans Arabic", "Noto Sans Hebrew")
_STYLE: dict[Any, Any] = {
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
    "text.parse_math": False,  # a `$` in a name does not start a formula
    "savefig.dpi": DPI,
    "svg.fonttype": "none",  # text stays text: it can be searched, and edited for a paper
    "svg.hashsalt": "beit",  # the same figure gives the same bytes
}


class SavedFigure(NamedTuple):
    """A finished figure: its name, a description in words, and its bytes."""

    name: str
    alt: str
    png: bytes
    svg: bytes

    def save(self, directory: Path) -> None:
        """Write NAME.png and NAME.svg."""
        (directory / f"{self.name}.png").write_bytes(self.png)
        (directory / f"{self.name}.svg").write_bytes(self.svg)

    def picture(self) -> Picture:
        """Return a picture for a report."""
        return Picture("", self.alt, self.png, "image/png")


@contextmanager
def styled() -> Iterator[None]:
    """Draw in this style inside the block, independent of the user's matplotlib settings."""
    import matplotlib
    from matplotlib.font_manager import fontManager

    known = set(fontManager.get_font_names())
    fonts = [name for name in _FONTS if name in known]
    with matplotlib.rc_context(), warnings.catch_warnings():
        # Letters that no installed font has are boxes in the PNG; the SVG keeps the text.
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE | {"font.family": fonts})
        yield


def new_figure(height: float) -> "Figure":
    """Return an empty figure of the full width, `height` in inches; call it inside `styled`."""
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH, height), layout="constrained")


def saved(figure: "Figure", name: str, alt: str) -> SavedFigure:
    """Render a figure as PNG and SVG; call it inside `styled`."""
    files = []
    metadata: dict[str, dict[str, Any]] = {"png": {"Software": None}, "svg": {"Date": None}}
    for kind in ("png", "svg"):
        file = io.BytesIO()
        figure.savefig(file, format=kind, metadata=metadata[kind])
        files.append(file.getvalue())
    return SavedFigure(name, alt, *files)
