"""What codes look like: patches in their surroundings, framed, by code (BEiT v2, figures 4, 5).

Also the bytes of a figure, PNG and SVG, as every picture of a codebook is written.
"""

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from beit.draw import canvas
from beit.draw.canvas import Pixels
from beit.draw.report import Gallery, Picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 7.1  # inches: two columns of a paper
DOTS = 300  # an inch, of a PNG
# Of the colours that Okabe and Ito (2008) chose for all kinds of colour vision.
BLUE, VERMILION, ORANGE, GREY = "#0072B2", "#D55E00", "#E69F00", "#666666"
_FRAME = (213, 94, 0)  # vermilion, between black and white hairlines: seen on any ground
_LETTERS = ("DejaVu Sans", "Noto Sans", "Noto Sans CJK JP", "Noto Sans Arabic", "Noto Sans Hebrew")
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
    "savefig.dpi": DOTS,
    "svg.fonttype": "none",  # letters stay letters: to be searched, and edited for a paper
    "svg.hashsalt": "beit",  # the same figure gives the same bytes
}


# ── figures ─────────────────────────────────────────────────────────────────────────────────────


class Drawing(NamedTuple):
    """A figure: what it is called, what it shows in words, and its bytes."""

    name: str
    alt: str
    png: bytes
    svg: bytes

    def picture(self, caption: str) -> Picture:
        """Make it a part of a report."""
        return Picture(caption, self.alt, self.png, "image/png")


@contextmanager
def styled() -> Iterator[None]:
    """Draw with our letters and lines inside the block, whatever the user has set."""
    import matplotlib
    from matplotlib.font_manager import fontManager

    known = set(fontManager.get_font_names())
    letters = [name for name in _LETTERS if name in known]
    with (
        matplotlib.rc_context(),
        warnings.catch_warnings(),
    ):
        # A script that no font here has shows as boxes in the PNG; the SVG keeps the letters.
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE | {"font.family": letters})
        yield


def new_figure(height: float, width: float = WIDTH) -> "Figure":
    """Begin a figure of so many inches; call it inside of `styled`."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def drawing(figure: "Figure", name: str, alt: str) -> Drawing:
    """Write a figure both ways; call it inside of `styled`."""
    files = []
    metadata: dict[str, dict[str, Any]] = {"png": {"Software": None}, "svg": {"Date": None}}
    for kind in ("png", "svg"):
        file = io.BytesIO()
        figure.savefig(file, format=kind, metadata=metadata[kind])
        files.append(file.getvalue())
    return Drawing(name, alt, *files)


def say(axes: "Axes", x: float, y: float, words: str, **settings: Any) -> None:
    """Set words as they are: no `$` among them begins a formula."""
    axes.text(x, y, words, parse_math=False, **settings)


# ── patches ─────────────────────────────────────────────────────────────────────────────────────


class Cut(NamedTuple):
    """A patch in its surroundings: pixels (h, w, 3) and the patch's (top, left, height, width)."""

    pixels: Pixels
    box: tuple[int, int, int, int]


def cut(image: Tensor, position: int, grid: tuple[int, int], context: int) -> Cut:
    """Cut a patch out with `context` patches on each side, moved inside where the image ends.

    Args:
        image: (3, H, W) uint8
        position: in [0, N)
        grid: (Gh, Gw); image sides are multiples of its
        context: 0 or more; as many as fit
    """
    (_, H, W), (Gh, Gw) = image.shape, grid
    if not 0 <= position < Gh * Gw or H % Gh or W % Gw:
        raise ValueError(
            f"position {position} of a grid {grid} on an image of {H} x {W}; expected one in "
            f"[0, {Gh * Gw}) and sides that are multiples of the grid's"
        )
    row, column = divmod(position, Gw)
    rows, columns = min(2 * context + 1, Gh), min(2 * context + 1, Gw)
    top = min(max(row - context, 0), Gh - rows)
    left = min(max(column - context, 0), Gw - columns)
    height, width = H // Gh, W // Gw
    part = image[:, top * height : (top + rows) * height, left * width : (left + columns) * width]
    pixels: Pixels = part.permute(1, 2, 0).contiguous().cpu().numpy()
    return Cut(pixels, ((row - top) * height, (column - left) * width, height, width))


def framed(seen: Cut, side: int) -> Pixels:
    """Draw a cut at about `side` pixels, with a frame around the patch: (h, w, 3).

    Small cuts grow by a whole factor, so that a pixel stays a square.
    """
    h, w = seen.pixels.shape[:2]
    if max(h, w) > side:
        size = (max(1, round(w * side / max(h, w))), max(1, round(h * side / max(h, w))))
        drawn = np.array(Image.fromarray(seen.pixels).resize(size, Image.Resampling.LANCZOS))
    else:
        factor = side // max(h, w)
        drawn = seen.pixels.repeat(factor, axis=0).repeat(factor, axis=1)
    H, W = drawn.shape[:2]
    top, left, height, width = seen.box
    y, x = round(top * H / h), round(left * W / w)
    bottom, right = round((top + height) * H / h), round((left + width) * W / w)
    line = max(1, side // 60)
    colours = [(255, 255, 255)] + [_FRAME] * (2 * line) + [(255, 255, 255)]
    first = -(len(colours) // 2)  # the line lies on the patch's edge, half outside
    for inset, colour in enumerate(colours, start=first):
        a, b = max(y + inset, 0), min(bottom - 1 - inset, H - 1)
        c, d = max(x + inset, 0), min(right - 1 - inset, W - 1)
        drawn[a : b + 1, [c, d]] = colour
        drawn[[a, b], c : d + 1] = colour
    return drawn


@dataclass(frozen=True)
class Row:
    """The patches of one code.

    Attributes:
        title: names the code
        notes: lines below the title
        cuts: may be none, of a code that is not used
        captions: under each cut; () for none
    """

    title: str
    notes: Sequence[str]
    cuts: Sequence[Cut]
    captions: Sequence[str] = ()


def strips(rows: Sequence[Row], caption: str, side: int = 128) -> Gallery:
    """Show rows in a report, each a picture of its own."""
    pictures = []
    for row in rows:
        words = ". ".join([row.title, *row.notes])
        if not row.cuts:
            pictures.append(Picture(f"{words}: no patch.", words, _blank(side), "image/png"))
            continue
        patches = [framed(seen, side) for seen in row.cuts]
        alt = f"{len(patches)} patches in their surroundings: {words}"
        data = canvas.png(canvas.mosaic(_lines(patches, 4), gap=6))
        pictures.append(Picture(words, alt, data, "image/png"))
    return Gallery(caption, pictures)


def _blank(side: int) -> bytes:
    return canvas.png(np.full((side // 4, 4 * side, 3), 200, dtype=np.uint8))


def _lines(patches: Sequence[Pixels], columns: int) -> list[Sequence[Pixels]]:
    return [patches[first : first + columns] for first in range(0, len(patches), columns)]


def gallery_figure(rows: Sequence[Row], name: str, title: str, subtitle: str) -> Drawing:
    """Draw rows of patches for a page: beside each the code's title and notes.

    Raises:
        ValueError: there is no row.
    """
    if not rows:
        raise ValueError("a gallery needs at least one code")
    columns = max(1, max(len(row.cuts) for row in rows))
    shapes = [seen.pixels.shape for row in rows for seen in row.cuts] or [(1, 1, 3)]
    ratio = max(shape[0] / shape[1] for shape in shapes)  # height to width
    words, gap = 1.15, 0.05  # inches: room for the titles, and between patches
    patch = min((WIDTH - words) / columns - gap, 0.62)
    below = 0.15 if any(row.captions for row in rows) else 0.0
    step = max(patch * ratio + below + 0.09, 0.16 + 0.12 * max(1 + len(r.notes) for r in rows))
    head = 0.5
    height = head + step * len(rows)
    with styled():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(WIDTH, height))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, WIDTH), ylim=(height, 0))
        axes.axis("off")
        say(axes, 0.04, 0.17, title, weight="bold", size=9, va="center")
        say(axes, 0.04, 0.35, subtitle, color=GREY, va="center")
        for number, row in enumerate(rows):
            top = head + number * step
            say(axes, 0.04, top + 0.08, row.title, weight="bold", va="center")
            for place, note in enumerate(row.notes):
                note = note if len(note) <= 24 else f"{note[:23]}…"
                say(axes, 0.04, top + 0.2 + 0.12 * place, note, size=6.5, color=GREY, va="center")
            for place, seen in enumerate(row.cuts):
                pixels = framed(seen, round(patch * DOTS))
                left = words + place * (patch + gap)
                extent = (left, left + patch, top + patch * ratio, top)
                axes.imshow(pixels, extent=extent, aspect="auto", interpolation="none")
                if place < len(row.captions):
                    settings = {"ha": "center", "va": "center", "size": 6, "color": GREY}
                    y = top + patch * ratio + 0.07
                    say(axes, left + patch / 2, y, row.captions[place], **settings)
            if not row.cuts:
                say(axes, words, top + 0.08, "no patch has this code", color=GREY, va="center")
        axes.set(xlim=(0, WIDTH), ylim=(height, 0))
        alt = f"{title}: {len(rows)} codes, up to {columns} patches each. {subtitle}"
        return drawing(figure, name, alt)
