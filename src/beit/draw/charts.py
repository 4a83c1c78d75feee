"""Charts drawn by matplotlib, as SVG that takes its font and colours from the page.

Create the figure and call `themed_svg` inside one `styled()` block. The colours of
`beit.draw.colours` become CSS variables, so that one drawing serves light and dark pages. Lengths
are in pixels of the SVG.
"""

import html
import io
import json
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
LETTER = 6.6  # mean width of a letter in prose; labels with digits are measured
COLUMNS = 200  # long curves keep the extremes of this many pieces
MARKED = 30  # curves with at most this many points show a dot for each
_FONT = "var(--sans,system-ui,sans-serif)"  # of the page; alone the browser's
_FAINT = ("axes.edgecolor", "axes.labelcolor", "legend.labelcolor", "xtick.color", "ytick.color")
_NONE = ("axes.xmargin", "axes.ymargin", "legend.borderaxespad", "legend.borderpad")
_HIDDEN = ("axes.spines.left", "axes.spines.right", "axes.spines.top", "legend.frameon")
_STYLE: Mapping[Any, Any] = {
    **dict.fromkeys(_FAINT, FAINT),
    **dict.fromkeys(_NONE, 0),
    **dict.fromkeys(_HIDDEN, False),
    "figure.dpi": 72,  # a point is a pixel of the SVG
    "font.family": "DejaVu Sans",  # for measuring only: wider than the fonts of pages
    "font.size": 11.5,
    "text.color": INK,
    "axes.autolimit_mode": "round_numbers",
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": RULE,
    "legend.columnspacing": 1.2,
    "legend.handlelength": 1.2,
    "legend.handletextpad": 0.4,
    "legend.labelspacing": 0.3,
    "lines.markersize": 4.5,
    "lines.scale_dashes": False,
    "path.simplify": False,  # `thinned` does it
    "svg.fonttype": "none",
    "xtick.major.size": 4,
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


def widest(labels: Iterable[str]) -> float:
    """Return the width of the widest label, inside `styled`, in a font wider than most."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties()
    sizes = [text_to_path.get_text_width_height_descent(label, font, False) for label in labels]
    return max((width for width, _, _ in sizes), default=0.0)


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


def themed_svg(figure: "Figure", scale: float = 1.0) -> bytes:
    """Render a figure as SVG that takes its font and colours from the page; deterministic.

    The only ids are hashes of markers, so that any number of drawings can stand in one page.

    Args:
        scale: of the SVG's own width and height; the coordinates stay
    """
    file = io.StringIO()
    metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(file, format="svg", metadata=metadata)
    svg = '<svg stroke-linejoin="round"' + file.getvalue().partition("<svg")[2]
    svg = re.sub(r"(?s)<(metadata|style|clipPath).*?</\1>|(?<=>)\s+|\s+(?=<)", "", svg)
    svg = re.sub("<[^>]+>", _themed, svg)
    width, height = (round(scale * 72 * float(inches)) for inches in figure.get_size_inches())
    size = f'width="{width}" height="{height}"' if scale != 1 else r"\g<0>"
    return re.sub(r'width="[\d.]+" height="[\d.]+"', size, svg, count=1).encode()


def _themed(tag: re.Match[str]) -> str:
    """Put CSS variables in place of font and colours, and round coordinates to one decimal."""
    if tag[0].startswith("<image"):
        return re.sub(r'(?s) id="[^"]+"| clip-path="[^"]+"|\n', "", tag[0])
    unused = r'(?<=<g) id="[^"]+"| clip-path="[^"]+"| transform="rotate\(-0 [^"]+"|(?<=\d)pt(?=")'
    words = re.sub(unused, "", tag[0]).replace("'DejaVu Sans'", _FONT)
    for colour, name in THEME.items():
        words = words.replace(colour, f"var({name},{colour})")
    return re.sub(r"\d+\.\d{4,}", lambda number: f"{float(number[0]):.1f}", words)


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
        name: beside the values under the pointer; empty for the label
    """

    label: str
    points: Sequence[tuple[float, float]]
    level: float | None = None
    name: str = ""


def line_chart(
    title: str,
    lines: Sequence[Line],
    x_label: str,
    *,
    notes: Sequence[str] = (),
    log: bool = False,
    unit: str = "",
    limits: tuple[tuple[float, float], tuple[float, float]] | None = None,
    plot_height: float = 150,
) -> bytes:
    """Draw lines over one x axis, with a legend and notes below the title, as SVG.

    The SVG's `data-hover` holds what the report's script shows under the pointer: of each line its
    name, its colour, and its points as x and y in the drawing and in words.

    Args:
        log: a logarithmic y axis; all values must be positive
        unit: % behind the values of y
        limits: of x and y; None for those of the data, y rounded
    """
    labels = [shortened(line.label, int((WIDTH - 24) / LETTER)) for line in lines]
    num_columns = max(1, int(WIDTH / (32 + LETTER * max(map(len, labels), default=0))))
    num_rows = -(-sum(map(bool, labels)) // num_columns)
    top = 30 + LINE * (num_rows + len(notes))
    height = top + plot_height + BOTTOM
    known = np.array([p for line in lines for p in line.points if not np.isnan(p[1])])
    with styled():
        figure = new_chart(title, height)
        axes = figure.add_axes((0, 0, 1, 1))
        for number, (line, label) in enumerate(zip(lines, labels, strict=True)):
            _draw(axes, line, label, number)
        if num_rows:
            place: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (0, 1 - 22 / height)}
            for handle in figure.legend(ncols=num_columns, **place).get_lines():
                handle.set(linewidth=2.5, marker="", solid_capstyle="projecting")
        for row, note in enumerate(notes, num_rows):
            write(figure, 0, 34 + LINE * row, note, color=FAINT)
        if not len(known):
            axes.remove()
            middle = top + plot_height / 2
            write(figure, WIDTH / 2, middle, "nothing logged", ha="center", color=FAINT)
            return themed_svg(figure)
        if log:
            log_axis(axes, known[:, 1])
        if limits is not None:
            axes.set(xlim=limits[0], ylim=limits[1])
        else:
            low, high = known[:, 0].min(), known[:, 0].max()
            axes.set_xlim((low, high) if low < high else (low - 1, high + 1))
        finish_axes(axes, top, x_label, integer=bool((known[:, 0] % 1 == 0).all()), unit=unit)
        if unit == "%" and known[:, 1].max() <= 100 < axes.get_ylim()[1]:
            ticks = [y for y in axes.get_yticks() if y <= 100]  # there is no share above all
            words = [label.get_text() for label in axes.get_yticklabels()]
            axes.set_yticks(ticks, words[: len(ticks)])
            axes.set_ylim(top=100)
        colours = [SERIES[number % len(SERIES)] for number in range(len(lines))]
        named = [line._replace(name=line.name or line.label or title) for line in lines]
        return with_hover(themed_svg(figure), axes, named, colours, x_label, unit)


def with_hover(
    svg: bytes,
    axes: "Axes",
    lines: Sequence[Line],
    colours: Sequence[str],
    x_label: str,
    unit: str = "",
) -> bytes:
    """Add the values of lines, each with its name and colour, to their drawing."""
    scale = 72 / axes.figure.dpi
    height = axes.figure.bbox.height
    top, bottom = (round(scale * (height - y), 1) for y in (axes.bbox.y1, axes.bbox.y0))
    drawn = []
    for line, colour in zip(lines, colours, strict=True):
        rows = thinned(np.array(line.points, dtype=np.float64).reshape(-1, 2))
        rows = rows[~np.isnan(rows[:, 1])]
        places = axes.transData.transform(rows).tolist()
        points = [
            (round(scale * a, 1), round(scale * (height - b), 1), short_number(x), worded(y, unit))
            for (a, b), (x, y) in zip(places, rows.tolist(), strict=True)
        ]
        drawn.append((line.name, f"var({THEME[colour]},{colour})", points))
    hover = {"x": x_label, "top": top, "bottom": bottom, "lines": drawn}
    words = html.escape(json.dumps(hover, separators=(",", ":"), ensure_ascii=False))
    return svg.replace(b"<svg ", f'<svg data-hover="{words}" '.encode(), 1)


def worded(value: float, unit: str = "") -> str:
    """Format a value of a chart: percent with one decimal, others by `short_number`."""
    return f"{value:.1f}%" if unit == "%" else short_number(value) + unit


def _draw(axes: "Axes", line: Line, label: str, number: int) -> None:
    """Draw a line, its level, and dots on few points or between gaps."""
    x, y = thinned(np.array(line.points, dtype=np.float64).reshape(-1, 2)).T
    missing = np.isnan(np.concatenate([[np.nan], y, [np.nan]]))
    alone = ~missing[1:-1] & missing[:-2] & missing[2:]
    marked = np.arange(len(y)) if len(line.points) <= MARKED else alone.nonzero()[0]
    style: dict[str, Any] = {"color": SERIES[number % len(SERIES)], "clip_on": False}
    if line.level is not None:
        axes.axhline(line.level, linestyle=(0, (4, 3)), linewidth=1, **style)
    dots: dict[str, Any] = {"marker": "o", "markeredgewidth": 0, "markevery": marked.tolist()}
    style |= {"linewidth": 1.6, "linestyle": "-" if number < len(SERIES) else (0, (5, 3))}
    # A space in front: matplotlib leaves out labels that begin with an underscore.
    axes.plot(x, y, label=label and f" {label}", solid_capstyle="round", **dots, **style)


def thinned(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Thin points (n, 2) to both ends and the extremes and gaps of `COLUMNS` pieces."""
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


def log_axis(axes: "Axes", values: NDArray[np.float64]) -> None:
    """Make the y axis logarithmic, with some room around positive values."""
    room = 1.1 if values.max() / values.min() > 1.01 else 2.0
    axes.set_yscale("log")
    axes.set_ylim(values.min() / room, values.max() * room)


def finish_axes(
    axes: "Axes", top: float, x_label: str, integer: bool = True, unit: str = ""
) -> None:
    """Label both axes and leave room for the labels; integer: only whole numbers on x."""
    labels = [label + unit for label in label_ticks(axes, "y", 5)]
    axes.set_yticks(axes.get_yticks(), labels)
    place_axes(axes, 12 + widest(labels), top, RIGHT, BOTTOM)
    label_ticks(axes, "x", 6, integer)
    axes.set_xlabel(x_label, loc="right")
