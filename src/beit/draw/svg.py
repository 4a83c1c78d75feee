"""SVG of a matplotlib figure that takes its font and colours from the page around it."""

import io
import re
import xml.etree.ElementTree as ElementTree
from typing import TYPE_CHECKING

from beit.draw.colours import THEME

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', 'DejaVu Sans', sans-serif"
_SVG, _HREF = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}href"


def themed_svg(figure: "Figure") -> bytes:
    """Render a figure as paths, circles and text; the same figure gives the same bytes.

    Without ids and links, any number of drawings can stand in one page. Every curved marker becomes
    a circle.
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
        x, y = _rounded(given.get("x", "0")), _rounded(given.get("y", "0"))
        if tag == "text":
            shape = {"x": x, "y": y}
            if not given["transform"].startswith("rotate(-0 "):
                shape["transform"] = given["transform"]
        elif tag == "path" and "d" in given and element not in hidden:
            shape = {"d": _compact(given["d"])}
        elif tag == "use":
            outline = shared[given[_HREF]].attrib["d"]
            if "C" in outline:  # curved: the marker "o"
                tag, shape = "circle", {"cx": x, "cy": y, "r": _rounded(outline.split()[2])}
            else:
                tag, shape = "path", {"d": _compact(outline), "transform": f"translate({x} {y})"}
        else:
            continue
        shape["style"] = _themed(given.get("style", ""))
        ElementTree.SubElement(page, tag, shape).text = (element.text or "").strip()
    return ElementTree.tostring(page, encoding="unicode").encode()


def _themed(style: str) -> str:
    """Replace colours by CSS variables, and drop the font, which the root element sets."""
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
