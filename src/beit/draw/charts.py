"""Charts drawn by matplotlib, as SVG that takes its font and colours from the page.

Create the figure and call `themed_svg` inside one `styled()` block. Use the colours of
`beit.draw.colours`: each becomes a CSS variable of the page, with itself as the fallback, so that
one drawing serves light and dark pages. Lengths are in CSS pixels.
"""

import io
import re
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from beit.draw.colours import FAINT, INK, RULE, SERIES, THEME
from beit.draw.numbers import short_number, tick_labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, RIGHT, BOTTOM = 330, 18, 36  # of a chart; free beside and below its axes
LINE = 15.5  # height of a line of text
LETTER = 6.6  # mean width of a letter
COLUMNS = 200  # long curves keep the extremes of this many pieces
MARKED = 30  # curves with at most this many points show a dot for each
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', 'DejaVu Sans', sans-serif"
_STYLE: Mapping[Any, Any] = {
    "figure.dpi": 72,  # a point is a pixel of the SVG
    "font.family": "DejaVu Sans",  # for measuring only: wider than the fonts of pages
    "font.size": 11.5,
    "text.color": INK,
    "axes.autolimit_mode": "round_numbers",
    "axes.axisbelow": True,
    "axes.edgecolor": FAINT,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.labelcolor": FAINT,
    "axes.linewidth": 1,
    "axes.xmargin": 0,
    "axes.ymargin": 0,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "grid.color": RULE,
    "grid.linewidth": 1,
    "legend.borderaxespad": 0,
    "legend.borderpad": 0,
    "legend.columnspacing": 1.2,
    "legend.frameon": False,
    "legend.handlelength": 1.2,
    "legend.handletextpad": 0.4,
    "legend.labelcolor": FAINT,
    "legend.labelspacing": 0.3,
    "lines.scale_dashes": False,
    "path.simplify": False,  # `thinned` does it
    "svg.fonttype": "none",
    "xtick.color": FAINT,
    "xtick.major.size": 4,
    "xtick.major.width": 1,
    "ytick.color": FAINT,
    "ytick.major.pad": 6,
    "ytick.major.size": 0,
}


@contextmanager
def styled(settings: Mapping[Any, Any] = _STYLE) -> Iterator[None]:
    """Draw with these rcParams inside the block, independent of the user's own settings.

    `$` is a letter, and the same figure gives the same bytes.
    """
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        # Letters that the font lacks are boxes in a PNG; an SVG keeps them.
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({"text.parse_math": False, "svg.hashsalt": "beit", **settings})
        yield


def new_chart(title: str, height: float, width: float = WIDTH) -> "Figure":
    """Start a figure with its title at the top left."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / 72, height / 72))
    figure.patch.set_visible(False)
    write(figure, 0, 13, title, weight="bold")
    return figure


def write(figure: "Figure", x: float, y: float, words: str, **style: Any) -> None:
    """Write words with their baseline at (x, y), counted from the top left corner."""
    figure.text(x / figure.bbox.width, 1 - y / figure.bbox.height, words, **style)


def place_axes(axes: "Axes", left: float, top: float, right: float, bottom: float) -> None:
    """Move axes to these margins of their figure."""
    width, height = axes.figure.bbox.size
    w, h = (width - left - right) / width, (height - top - bottom) / height
    axes.set_position((left / width, bottom / height, w, h))
    axes.patch.set_visible(False)


def label_ticks(
    axes: "Axes", name: Literal["x", "y"], count: int, integer: bool = False
) -> list[str]:
    """Put about `count` ticks at round values of an axis. Returns: their labels."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    axis = axes.xaxis if name == "x" else axes.yaxis
    low, high = axis.get_view_interval()
    if by_powers := axis.get_scale() == "log" and high / low > 6:
        subs = (1, 2, 5) if high / low < 500 else (1,)
        axis.set_major_locator(LogLocator(subs=subs, numticks=count))
    else:
        steps: dict[str, Any] = {"steps": [1, 2, 5, 10], "integer": integer, "min_n_ticks": 1}
        axis.set_major_locator(MaxNLocator(count, **steps))
        axes.autoscale_view()  # rounds the limits to the new ticks, unless they are set
        axes.autoscale(False, name)
        low, high = sorted(axis.get_view_interval())
    axis.set_minor_locator(NullLocator())
    room = 1e-9 * (high - low)
    ticks = [float(t) for t in axis.get_majorticklocs() if low - room <= t <= high + room]
    labels = [short_number(tick) for tick in ticks] if by_powers else tick_labels(ticks)
    axis.set_ticks(ticks, labels)
    return labels


def shortened(words: str, most: int) -> str:
    """Put words on one line, with an ellipsis in the middle if they have over `most` letters."""
    words = " ".join("".join(c if c.isprintable() else " " for c in words).split())
    if len(words) <= most:
        return words
    end = (most - 1) // 2
    return f"{words[: most - 1 - end]}…{words[len(words) - end :]}"


# ── lines over an axis ──────────────────────────────────────────────────────────────────────────


class Line(NamedTuple):
    """One line of a chart.

    Attributes:
        label: in the legend; empty for none
        points: (x, y) by rising x; a NaN leaves a gap
        level: y of a dashed horizontal line in the same colour
    """

    label: str
    points: Sequence[tuple[float, float]]
    level: float | None = None


def line_chart(
    title: str,
    lines: Sequence[Line],
    x_label: str,
    *,
    notes: Sequence[str] = (),
    log: bool = False,
    limits: tuple[tuple[float, float], tuple[float, float]] | None = None,
    plot_height: float = 150,
) -> bytes:
    """Draw lines over one x axis, with a legend and notes below the title, as SVG.

    Args:
        log: a logarithmic y axis; all values must be positive
        limits: of x and y; None for those of the data, y rounded
    """
    labels = [shortened(line.label, int((WIDTH - 24) / LETTER)) for line in lines if line.label]
    num_columns = max(1, int(WIDTH / (26 + LETTER * max(map(len, labels), default=0))))
    num_rows = -(-len(labels) // num_columns)
    top = 30 + LINE * (num_rows + len(notes))
    with styled():
        height = top + plot_height + BOTTOM
        figure = new_chart(title, height)
        axes = figure.add_axes((0, 0, 1, 1))
        handles = [_draw(axes, line, number) for number, line in enumerate(lines)]
        if labels:
            anchor = (0, 1 - 22 / height)
            named = [h for h, line in zip(handles, lines, strict=True) if line.label]
            # A space in front: matplotlib leaves out labels that begin with an underscore.
            words = [f" {label}" for label in labels]
            figure.legend(named, words, loc="upper left", bbox_to_anchor=anchor, ncols=num_columns)
        for place, note in enumerate(notes):
            write(figure, 0, 34 + LINE * (num_rows + place), note, color=FAINT)
        _finish(axes, lines, top, x_label, log, limits)
        return themed_svg(figure)


def _draw(axes: "Axes", line: Line, number: int) -> Any:
    """Draw a line, its level, and dots on few points or between gaps. Returns: for the legend."""
    from matplotlib.lines import Line2D

    x, y = thinned(np.array(line.points, dtype=np.float64).reshape(-1, 2)).T
    missing = np.isnan(np.concatenate([[np.nan], y, [np.nan]]))
    alone = ~missing[1:-1] & missing[:-2] & missing[2:]
    marked = np.arange(len(y)) if len(line.points) <= MARKED else alone.nonzero()[0]
    colour = SERIES[number % len(SERIES)]
    dashes: Any = "-" if number < len(SERIES) else (0, (5, 3))
    style: dict[str, Any] = {"color": colour, "linewidth": 1.6, "clip_on": False}
    if line.level is not None:
        axes.axhline(line.level, linestyle=(0, (4, 3)), **(style | {"linewidth": 1}))
    axes.plot(
        x,
        y,
        linestyle=dashes,
        marker="o",
        markersize=4.5,
        markeredgewidth=0,
        markevery=marked.tolist(),
        solid_capstyle="round",
        **style,
    )
    return Line2D([], [], color=colour, linewidth=2.5, linestyle=dashes)


def thinned(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Thin points (n, 2) to what the pixels show: spikes and gaps stay.

    Both ends stay, and the lowest, the highest and the first missing value of each piece.
    """
    if len(points) <= 2 * COLUMNS:
        return points
    kept = {0, len(points) - 1}
    for piece in np.array_split(np.arange(len(points)), COLUMNS):
        values = points[piece, 1]
        missing = np.isnan(values)
        if missing.any():
            kept.add(piece[missing.argmax()])
        if not missing.all():
            kept |= {piece[np.nanargmin(values)], piece[np.nanargmax(values)]}
    return points[sorted(kept)]


def _finish(
    axes: "Axes",
    lines: Sequence[Line],
    top: float,
    x_label: str,
    log: bool,
    limits: tuple[tuple[float, float], tuple[float, float]] | None,
) -> None:
    """Set scales, ticks, the place of the axes and the name of the x axis."""
    known = np.array([p for line in lines for p in line.points if not np.isnan(p[1])])
    if not len(known):
        place_axes(axes, 0, top, 0, BOTTOM)
        axes.set_axis_off()
        middle: dict[str, Any] = {"ha": "center", "transform": axes.transAxes, "color": FAINT}
        axes.text(0.5, 0.5, "nothing logged", **middle)
        return
    if log:
        log_axis(axes, known[:, 1])
    if limits is not None:
        axes.set(xlim=limits[0], ylim=limits[1])
    else:
        low, high = known[:, 0].min(), known[:, 0].max()
        room = 0 if low < high else abs(low) / 10 or 1.0
        axes.set_xlim(low - room, high + room)
    finish_axes(axes, top, x_label, integer=bool((known[:, 0] % 1 == 0).all()))


def log_axis(axes: "Axes", values: NDArray[np.float64]) -> None:
    """Make the y axis logarithmic, with some room around positive values."""
    room = 1.1 if values.max() / values.min() > 1.01 else 2.0
    axes.set_yscale("log")
    axes.set_ylim(values.min() / room, values.max() * room)


def finish_axes(axes: "Axes", top: float, x_label: str, integer: bool = True) -> None:
    """Label both axes and leave the room that the labels need; integer: ticks of x are."""
    left = 10 + LETTER * max(map(len, label_ticks(axes, "y", 5)), default=0)
    place_axes(axes, left, top, RIGHT, BOTTOM)
    label_ticks(axes, "x", 6, integer)
    axes.set_xlabel(x_label, loc="right")


# ── from matplotlib's SVG to the page's ─────────────────────────────────────────────────────────

_SVG, _HREF = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}href"


def themed_svg(figure: "Figure") -> bytes:
    """Render a figure without ids, links and fixed colours; the same figure gives the same bytes.

    Several such drawings can stand in one page: nothing in them has a name. Only paths, circles
    (every curved marker) and text are kept, in drawing order.
    """
    file = io.BytesIO()
    metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(file, format="svg", metadata=metadata)
    root = ElementTree.fromstring(file.getvalue())
    shared = {f"#{path.get('id')}": path for path in root.iterfind(f".//{_SVG}defs/{_SVG}path")}
    hidden = set(shared.values())
    attributes = {
        "xmlns": "http://www.w3.org/2000/svg",
        "width": root.attrib["width"].removesuffix("pt"),
        "height": root.attrib["height"].removesuffix("pt"),
        "viewBox": root.attrib["viewBox"],
        "font-family": FONT,
        "font-size": "11.5",
        "stroke-linejoin": "round",
    }
    page = ElementTree.Element("svg", attributes)
    for element in root.iter():
        tag, given = element.tag.removeprefix(_SVG), element.attrib
        style = _themed(given.get("style", ""))
        if tag == "text":
            place = {"x": _rounded(given["x"]), "y": _rounded(given["y"])}
            turned = {} if "rotate(-0" in given["transform"] else {"transform": given["transform"]}
            part = ElementTree.SubElement(page, "text", place | turned | {"style": style})
            part.text = (element.text or "").strip()
        elif tag == "use":
            outline = shared[given[_HREF]].attrib["d"]
            x, y = _rounded(given["x"]), _rounded(given["y"])
            if "C" in outline:
                radius = _rounded(outline.split()[2])
                shape = {"cx": x, "cy": y, "r": radius, "style": style}
                ElementTree.SubElement(page, "circle", shape)
            else:
                moved = f"translate({x} {y})"
                shape = {"d": _compact(outline), "transform": moved, "style": style}
                ElementTree.SubElement(page, "path", shape)
        elif tag == "path" and element not in hidden:
            ElementTree.SubElement(page, "path", {"d": _compact(given["d"]), "style": style})
    return ElementTree.tostring(page, encoding="unicode").encode()


def _themed(style: str) -> str:
    """Replace colours by the page's, and drop what the root of the SVG says for all."""
    kept = [part for part in style.split("; ") if not part.startswith("font-family")]
    words = ";".join(kept).replace(": ", ":").replace("font-size:11.5px;", "")
    return re.sub(
        "#[0-9a-f]{6}", lambda m: f"var({THEME[m[0]]},{m[0]})" if m[0] in THEME else m[0], words
    )


def _compact(outline: str) -> str:
    """Write a path's outline with one decimal and no needless spaces."""
    words = re.sub(r"-?\d+\.\d+", lambda m: _rounded(m[0]), outline)
    return re.sub(r"\s*([A-Za-z])\s*", r"\1", words)


def _rounded(number: str) -> str:
    return f"{float(number) + 0.0:.1f}".removesuffix(".0")
