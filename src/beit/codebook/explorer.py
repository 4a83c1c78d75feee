"""The explorer: a codebook as one HTML page that contains every code's patches and some images.

The codes are streamed: one is in memory at a time, so that 8,192 codes with 16 patches each need
little memory. A code's patches are one small WebP sheet, which the page decodes when it is shown.
"""

import base64
import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

import jinja2
import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from beit.codebook.contents import Code, WholeImage
from beit.codebook.explorer_lines import PageLines
from beit.files import replacing

MAX_BYTES = 58_000_000
_SCRIPTS = ("explorer_data.js", "explorer_grid.js", "explorer_panel.js", "explorer.js")


@dataclass(frozen=True)
class ExplorerPage:
    """What the page shows. `codes` and `images` are each iterated over once.

    Attributes:
        tokenizer: its name
        data: name of the images that it was applied to
        num_codes: K
        grid: (Gh, Gw) of patches, N = Gh * Gw
        codes: all K codes, in order; those of their `closest` patches that have a crop are shown
        images: shown whole, each at the cost of its thumbnail's bytes
        facts: further numbers and settings, listed under "About"
        colours: (K, 3) uint8 sRGB of the token maps; `code_colours` if None
    """

    tokenizer: str
    data: str
    num_codes: int
    grid: tuple[int, int]
    codes: Iterable[Code]
    images: Iterable[WholeImage] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    colours: NDArray[np.uint8] | None = None


def crop_side(num_codes: int) -> int:
    """Return the side of a patch's picture on the page, in pixels."""
    return 96 if num_codes <= 1024 else 64 if num_codes <= 4096 else 48


def write_explorer(
    path: str | os.PathLike[str],
    page: ExplorerPage,
    *,
    side: int | None = None,
    max_bytes: int = MAX_BYTES,
) -> Path:
    """Write the page; an existing one is replaced only when the new one is complete.

    Args:
        path: of the HTML file
        page: its contents
        side: of a patch's picture in pixels; `crop_side` if None
        max_bytes: limit of the file; the pictures are compressed until they fit

    Raises:
        ValueError: the contents are inconsistent, or do not fit into `max_bytes`.
    """
    K, (Gh, Gw) = page.num_codes, page.grid
    if min(K, Gh, Gw) < 1:
        raise ValueError(f"num_codes {K} and grid {page.grid} must be at least 1")
    script = "(() => {\n" + "\n".join(map(_part, _SCRIPTS)) + "})();"
    style = _part("explorer.css")
    room = max_bytes - len(script) - len(style) - 20_000
    lines = PageLines(K, page.grid, side or crop_side(K), room)
    stream = _template().stream(
        title=f"The codes of {page.tokenizer}",
        page=page,
        script=Markup(script),
        script_hash=_hash(script),
        style=Markup(style),
        style_hash=_hash(style),
        images=lines.images(page.images),
        codes=lines.codes(page.codes),
        summary=lambda: lines.summary(page.colours),
    )
    path = Path(path)
    with replacing(path) as temporary:
        with temporary.open("wb") as file:
            stream.dump(file, "utf-8", errors="replace")
        size = temporary.stat().st_size
        if size > max_bytes:
            raise ValueError(
                f"the explorer page would be {size / 1e6:.1f} MB, over the limit of "
                f"{max_bytes / 1e6:.1f} MB; give it fewer images or fewer patches per code"
            )
    return path


def _hash(source: str) -> str:
    return base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()


def _part(name: str) -> str:
    return resources.files("beit.codebook").joinpath(name).read_text("utf-8")


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(_part("explorer.html.jinja"))
