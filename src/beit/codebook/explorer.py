"""The explorer: a codebook as one HTML page, with every code's patches and images' tokens in it.

The codes stream through: one is held at a time, so that 8,192 of them with 16 patches each fit any
memory. A code's patches are one small WebP sheet, decoded by the page only while it is looked at.
"""

import base64
import hashlib
import io
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

import jinja2
import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from beit.draw.canvas import Pixels
from beit.draw.colours import code_colours

MAX_BYTES = 58_000_000
_SCRIPTS = ("explorer_data.js", "explorer_grid.js", "explorer_panel.js", "explorer.js")
_MEDIA = {b"\xff\xd8\xff": "jpeg", b"\x89PNG": "png", b"RIFF": "webp"}
_QUALITIES = (100, 88, 80, 72, 64, 56, 48, 40, 32, 24, 16, 8, 2)  # 100: lossless, tiny crops only
_TINY = 24  # pixels: crops of at most this side keep every pixel


@dataclass(frozen=True)
class Patch:
    """A patch in its surroundings.

    Args:
        pixels: (h, w, 3) uint8, the patch and what is around it; any size, made small here
        frame: top, left, bottom, right of the patch within `pixels`, shares in [0, 1]
        position: which of the grid's N patches it is
        name: the image's name, "" for none
        label: the image's label, None for none
        image: its place among the images of the book, None if it is not one of them
        closeness: cosine between its vector and the code's, None if not known
    """

    pixels: Pixels
    frame: tuple[float, float, float, float]
    position: int
    name: str = ""
    label: str | None = None
    image: int | None = None
    closeness: float | None = None


@dataclass(frozen=True)
class Code:
    """One code of the book and what was found of it.

    Args:
        index: in [0, K)
        uses: patches with this code, 0 for an unused one
        positions: (Gh, Gw) int, how often it stood where; their sum is `uses`
        purity: share of its patches with its most frequent label, None without labels or uses
        entropy: over positions in bits, 0 to log2(N); None without uses
        labels: its most frequent labels, each with its share in [0, 1], most frequent first
        neighbours: the nearest other codes, each with its cosine, nearest first
        patches: best first
    """

    index: int
    uses: int
    positions: NDArray[np.integer]
    purity: float | None = None
    entropy: float | None = None
    labels: Sequence[tuple[str, float]] = ()
    neighbours: Sequence[tuple[int, float]] = ()
    patches: Sequence[Patch] = ()


@dataclass(frozen=True)
class SeenImage:
    """A whole image with its tokens.

    Args:
        name: shown as text
        thumbnail: an encoded image, JPEG, PNG or WebP (`thumbnail` makes one)
        codes: (N,) int, row by row
        label: None for none
    """

    name: str
    thumbnail: bytes
    codes: NDArray[np.integer]
    label: str | None = None


@dataclass(frozen=True)
class Book:
    """All that the page shows; `codes` and `images` are each gone through once.

    Args:
        tokenizer: its name
        data: the name of the images that it was applied to
        num_codes: K
        grid: (Gh, Gw) of patches, N = Gh * Gw
        codes: all K, by index
        images: as many as should be seen whole (each costs the page its thumbnail's bytes)
        facts: further figures and settings, told under "About"
        colours: (K, 3) uint8 sRGB of the token maps; `code_colours` if None
    """

    tokenizer: str
    data: str
    num_codes: int
    grid: tuple[int, int]
    codes: Iterable[Code]
    images: Iterable[SeenImage] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    colours: NDArray[np.uint8] | None = None


def thumbnail(pixels: Pixels, side: int = 256) -> bytes:
    """Encode an image (H, W, 3) uint8 as WebP, its longest side at most `side` pixels."""
    tiny = max(pixels.shape[:2]) <= _TINY
    return _webp(_fitted(pixels, side), _QUALITIES[0] if tiny else 80)


def write_explorer(
    path: str | os.PathLike[str], book: Book, *, side: int | None = None, max_bytes: int = MAX_BYTES
) -> Path:
    """Write the page in one piece (an older one is replaced only by a whole new one).

    `side` is that of a patch's picture in pixels: 96 up to 1,024 codes, 64 up to 4,096, else 48.
    The pictures are compressed as far as `max_bytes` for the file asks for; ValueError if that is
    not enough, or if what the book holds does not fit together.
    """
    K, (Gh, Gw) = book.num_codes, book.grid
    if min(K, Gh, Gw) < 1:
        raise ValueError(f"num_codes {K} and grid {book.grid} must be at least 1")
    if side is None:
        side = 96 if K <= 1024 else 64 if K <= 4096 else 48
    script = "(() => {\n" + "\n".join(map(_part, _SCRIPTS)) + "})();"
    style = _part("explorer.css")
    lines = _Lines(book, side, max_bytes - len(script) - len(style) - 20_000)
    stream = _template().stream(
        title=f"The codes of {book.tokenizer}",
        book=book,
        script=Markup(script),
        script_hash=_hash(script),
        style=Markup(style),
        style_hash=_hash(style),
        images=lines.images(),
        codes=lines.codes(),
        summary=lines.summary,
    )
    path = Path(path)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with unfinished.open("wb") as file:
            stream.dump(file, "utf-8", errors="replace")
            file.flush()
            os.fsync(file.fileno())
        size = unfinished.stat().st_size
        if size > max_bytes:
            raise ValueError(
                f"the explorer would be a page of {size / 1e6:.1f} MB, over the limit of "
                f"{max_bytes / 1e6:.1f} MB; give it fewer images or fewer patches a code"
            )
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


class _Lines:
    """Writes the page's data line by line, and keeps the few figures of every code for its end.

    Each line is read by the page only when it is looked at; the summary is read at its start.
    """

    def __init__(self, book: Book, side: int, room: int) -> None:
        self._book, self._side = book, side
        self._room = room - 90 * book.num_codes  # bytes left, but for the summary's
        self._quality = 0  # where in _QUALITIES the last sheet fitted
        self._labels: dict[str, int] = {}
        self._frames: dict[tuple[int, ...], int] = {}
        self._rows: list[list[object]] = []
        self._images: list[list[object]] = []

    def images(self) -> Iterator[Markup]:
        """Yield a line for each image: its thumbnail as a data URL."""
        K, N = self._book.num_codes, math.prod(self._book.grid)
        for image in self._book.images:
            codes = np.asarray(image.codes)
            low, high = codes.min(initial=0), codes.max(initial=0)
            if codes.shape != (N,) or low < 0 or high >= K:
                raise ValueError(
                    f"image {image.name!r} needs {N} codes in [0, {K}) for grid "
                    f"{self._book.grid}, got shape {codes.shape}, {low} to {high}"
                )
            self._images.append([image.name, self._label(image.label), codes.tolist()])
            line = _data_url(image.thumbnail, f"the thumbnail of image {image.name!r}")
            self._room -= len(line) + 1 + len(_json(self._images[-1]))
            yield Markup(line)

    def codes(self) -> Iterator[Markup]:
        """Yield a line for each code: its positions, neighbours, patches and their pictures."""
        K = self._book.num_codes
        for code in self._book.codes:
            _check(code, self._book, expected=len(self._rows))
            labels = [[self._label(name), round(share, 4)] for name, share in code.labels]
            purity = None if code.purity is None else round(code.purity, 4)
            entropy = None if code.entropy is None else round(code.entropy, 3)
            self._rows.append([int(code.uses), purity, entropy, labels])
            most = int(code.positions.max())
            levels = np.round(255 * (code.positions / max(most, 1))).astype(np.uint8)
            line = {
                "most": most,
                "positions": base64.b64encode(levels.tobytes()).decode(),
                "neighbours": [[int(i), round(cosine, 3)] for i, cosine in code.neighbours],
                "patches": [self._patch(patch, code.index) for patch in code.patches],
            }
            if code.patches:
                share = self._room / (K - code.index) - len(_json(line)) - 60
                cell, sheet = self._sheet(code.patches, int(share * 3 / 4))
                line |= {"cell": cell, "sheet": base64.b64encode(sheet).decode()}
            text = _json(line)
            self._room -= len(text) + 1
            yield Markup(text)
        if len(self._rows) != K:
            raise ValueError(f"the book has {len(self._rows)} codes, expected {K}")

    def summary(self) -> Markup:
        """Return what the page must know from the start; asked for after all lines."""
        book = self._book
        colours = code_colours(book.num_codes) if book.colours is None else book.colours
        if colours.shape != (book.num_codes, 3):
            raise ValueError(f"colours must be ({book.num_codes}, 3), got {colours.shape}")
        whole = {
            "grid": book.grid,
            "labels": list(self._labels),
            "frames": list(self._frames),
            "codes": self._rows,
            "images": self._images,
            "colours": colours.astype(np.uint8).tobytes().hex(),
        }
        return Markup(_json(whole))

    def _label(self, label: str | None) -> int | None:
        return None if label is None else self._labels.setdefault(label, len(self._labels))

    def _patch(self, patch: Patch, code: int) -> list[object]:
        """List frame, position, name, label, image, closeness."""
        N = math.prod(self._book.grid)
        top, left, bottom, right = patch.frame
        if not (0 <= top < bottom <= 1 and 0 <= left < right <= 1 and 0 <= patch.position < N):
            raise ValueError(
                f"a patch of code {code} has frame {patch.frame} and position {patch.position}; "
                f"expected (top, left, bottom, right) in [0, 1] and a position in [0, {N})"
            )
        if patch.image is not None and not 0 <= patch.image < len(self._images):
            raise ValueError(
                f"a patch of code {code} names image {patch.image} of {len(self._images)}"
            )
        frame = tuple(round(1000 * edge) for edge in _letterboxed(patch))
        place = self._frames.setdefault(frame, len(self._frames))
        close = None if patch.closeness is None else round(patch.closeness, 3)
        label = self._label(patch.label)
        return [place, int(patch.position), patch.name, label, patch.image, close]

    def _sheet(self, patches: Sequence[Patch], room: int) -> tuple[int, bytes]:
        """Encode patches as a square sheet of at most `room` bytes, if some quality allows it."""
        cell = min(self._side, max(max(patch.pixels.shape[:2]) for patch in patches))
        across = math.ceil(math.sqrt(len(patches)))
        down = math.ceil(len(patches) / across)
        sheet = np.zeros((down * cell, across * cell, 3), np.uint8)
        for i, patch in enumerate(patches):
            pixels = _fitted(patch.pixels, cell)
            y = i // across * cell + (cell - pixels.shape[0]) // 2
            x = i % across * cell + (cell - pixels.shape[1]) // 2
            sheet[y : y + pixels.shape[0], x : x + pixels.shape[1]] = pixels
        least = 0 if cell <= _TINY else 1
        self._quality = max(least, self._quality - 1)
        while True:
            data = _webp(sheet, _QUALITIES[self._quality])
            if len(data) <= room or self._quality == len(_QUALITIES) - 1:
                return cell, data
            self._quality += 1


def _check(code: Code, book: Book, expected: int) -> None:
    K, name = book.num_codes, f"code {code.index}"
    if code.index != expected or code.index >= K:
        raise ValueError(f"codes must come as 0 to {K - 1} in order; got {name} for {expected}")
    shape, low, total = code.positions.shape, code.positions.min(initial=0), code.positions.sum()
    if shape != tuple(book.grid) or low < 0 or total != code.uses:
        raise ValueError(
            f"{name} needs positions of shape {book.grid}, none below 0, with its {code.uses} uses "
            f"as their sum; got {shape}, from {low}, sum {total}"
        )
    shares = [share for _, share in code.labels]
    for share in [*shares, *([] if code.purity is None else [code.purity])]:
        if not 0 <= share <= 1:
            raise ValueError(f"{name} has a purity or label share of {share}, expected [0, 1]")
    for neighbour, cosine in code.neighbours:
        if not 0 <= neighbour < K or not math.isfinite(cosine):
            raise ValueError(f"{name} has neighbour {neighbour} ({cosine}); expected [0, {K})")


def _letterboxed(patch: Patch) -> tuple[float, float, float, float]:
    """Give the frame within the square that the patch's surroundings are fitted into."""
    h, w = patch.pixels.shape[:2]
    top, left, bottom, right = patch.frame
    y, x = h / max(h, w), w / max(h, w)
    above, before = (1 - y) / 2, (1 - x) / 2
    return above + top * y, before + left * x, above + bottom * y, before + right * x


def _fitted(pixels: Pixels, side: int) -> Pixels:
    """Bring the longest side of (h, w, 3) down to `side`; smaller ones stay as they are."""
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
        raise ValueError(f"pixels must be (h, w, 3) uint8, got {pixels.shape} {pixels.dtype}")
    h, w = pixels.shape[:2]
    if max(h, w) <= side:
        return pixels
    size = (max(1, round(w * side / max(h, w))), max(1, round(h * side / max(h, w))))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))


def _webp(pixels: Pixels, quality: int) -> bytes:
    file = io.BytesIO()
    lossless = quality == _QUALITIES[0]
    Image.fromarray(pixels).save(
        file, "WEBP", quality=quality, lossless=lossless, method=2, use_sharp_yuv=True
    )
    return file.getvalue()


def _data_url(data: bytes, what: str) -> str:
    for start, kind in _MEDIA.items():
        if data.startswith(start):
            return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    raise ValueError(f"{what} is no JPEG, PNG or WebP: it begins with {data[:8]!r}")


def _json(value: object) -> str:
    """Write JSON in ASCII that a script element can hold: no `<` can close it or open another."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _hash(source: str) -> str:
    return base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()


def _part(name: str) -> str:
    return resources.files("beit.codebook").joinpath(name).read_text("utf-8")


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(_part("explorer.html.jinja"))
