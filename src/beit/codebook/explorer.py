"""The explorer: a codebook as one HTML page that contains every code's patches and some images.

The codes are streamed: one is in memory at a time, so that 8,192 codes with 16 patches each need
little memory. A code's patches are one small WebP sheet, which the page decodes when it is shown.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil, isfinite, prod, sqrt
from pathlib import Path

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from beit.codebook.contents import Code, Patch, WholeImage
from beit.codebook.crops import Crop
from beit.codebook.explorer_map import CodeMap
from beit.draw.page import base64_of, data_url, json_text, page_stream
from beit.draw.panels import heat
from beit.draw.thumbnails import QUALITIES, TINY, shrunk, tiled, webp
from beit.files import replacing

MAX_BYTES = 58_000_000
_PARTS = ("data", "map", "patches", "panel")  # of the script, then the page itself
_SCRIPTS = (*(f"explorer_{part}.js" for part in _PARTS), "explorer.js")
_PAGE_BYTES = 100_000  # of the page without its data
_HEAT = 64  # colours of the scale of cosines
_STEPS = 65_535  # of a cosine, between an image's lowest and highest


@dataclass(frozen=True)
class ExplorerPage:
    """What the page shows. `codes` and `images` are each iterated over once."""

    tokenizer: str  # its name
    data: str  # name of the images that it was applied to
    num_codes: int
    grid: tuple[int, int]  # (Gh, Gw) of patches, N = Gh * Gw
    colours: NDArray[np.uint8]  # (K, 3) of the codes in token maps
    codes: Iterable[Code]  # all K, in order; the patches in `closest` that have a crop are shown
    images: Iterable[WholeImage] = ()  # shown whole, each at the cost of its thumbnail's bytes
    facts: Mapping[str, str] = field(default_factory=dict)  # listed under "About"
    code_map: CodeMap | None = None  # None for a page without a map


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
    """Write the page atomically; ValueError if its contents are inconsistent or too large.

    Args:
        side: of a patch's picture in pixels; `crop_side` if None
        max_bytes: limit of the file; the pictures are compressed until they fit
    """
    K, (Gh, Gw) = page.num_codes, page.grid
    if min(K, Gh, Gw) < 1:
        raise ValueError(f"num_codes {K} and grid {page.grid} must be at least 1")
    lines = _Lines(K, page.grid, side or crop_side(K), max_bytes - _PAGE_BYTES)
    stream = page_stream(
        *("beit.codebook", "explorer", _SCRIPTS),
        title=f"The codes of {page.tokenizer}",
        page=page,
        images=lines.images(page.images),
        codes=lines.codes(page.codes),
        map_sheet=lines.map_sheet(page.code_map),
        summary=lambda: lines.summary(page.colours, page.code_map),
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


class _Lines:
    """The data of the page: a line for each image and code, read when it is shown, and a summary.

    `side` pixels are for a patch's picture, `room` bytes for all lines and the summary.
    """

    def __init__(self, num_codes: int, grid: tuple[int, int], side: int, room: int) -> None:
        self._num_codes, self._grid, self._side = num_codes, grid, side
        self._room = room - 90 * num_codes  # bytes left for lines, without the summary's
        self._quality = 0  # index into QUALITIES of the last sheet
        self._labels: dict[str, int] = {}
        self._frames: dict[tuple[int, ...], int] = {}
        self._rows: list[list[object]] = []
        self._images: list[list[object]] = []
        self._image_places: dict[int, int] = {}  # place on the page by number in the source

    def images(self, images: Iterable[WholeImage]) -> Iterator[Markup]:
        """Yield a line for each image: its thumbnail as a data URL, and its cosines if known."""
        K, N = self._num_codes, prod(self._grid)
        for image in images:
            codes = np.asarray(image.codes)
            low, high = codes.min(initial=0), codes.max(initial=0)
            if codes.shape != (N,) or low < 0 or high >= K:
                raise ValueError(
                    f"image {image.name!r} needs {N} codes in [0, {K}) for grid {self._grid}, "
                    f"got shape {codes.shape}, {low} to {high}"
                )
            if image.index in self._image_places:
                raise ValueError(f"image {image.name!r} has index {image.index}, as another has")
            features, cosines = _features(image, N)
            row = [image.name, self._label(image.label), codes.tolist(), *features]
            self._image_places[image.index] = len(self._images)
            self._images.append(row)
            line = data_url(image.thumbnail, f"the thumbnail of image {image.name!r}")
            line = f"{line} {cosines}" if cosines else line
            self._room -= len(line) + 1 + len(json_text(row))
            yield Markup(line)

    def codes(self, codes: Iterable[Code]) -> Iterator[Markup]:
        """Yield a line for each code: its positions, nearest codes, patches and their pictures."""
        K = self._num_codes
        for code in codes:
            self._check(code)
            labels = [[self._label(name), round(share, 4)] for name, share in code.labels]
            purity = None if code.purity is None else round(code.purity, 4)
            entropy = None if code.position_entropy is None else round(code.position_entropy, 3)
            self._rows.append([int(code.uses), purity, entropy, labels])
            most = int(code.positions.max())
            levels = np.round(255 * (code.positions / max(most, 1))).astype(np.uint8)
            crops = [(patch, patch.crop) for patch in code.closest if patch.crop is not None]
            line = {
                "most": most,
                "positions": base64_of(levels.tobytes()),
                "neighbours": [[int(i), round(cosine, 5)] for i, cosine in code.nearest],
                "patches": [self._patch(patch, crop, code.index) for patch, crop in crops],
            }
            if crops:
                share = self._room / (K - code.index) - len(json_text(line)) - 60
                cell, sheet = self._sheet([crop for _, crop in crops], int(share * 3 / 4))
                line |= {"cell": cell, "sheet": base64_of(sheet)}
            text = json_text(line)
            self._room -= len(text) + 1
            yield Markup(text)
        if len(self._rows) != K:
            raise ValueError(f"the page has {len(self._rows)} codes, expected {K}")

    def map_sheet(self, code_map: CodeMap | None) -> Markup:
        """Return the pictures of the map as one sheet; call it before all lines."""
        sheet = "" if code_map is None else base64_of(code_map.sheet(self._num_codes))
        self._room -= len(sheet)
        return Markup(sheet)

    def summary(self, colours: NDArray[np.uint8], code_map: CodeMap | None) -> Markup:
        """Return what the page reads when it is opened; call it after all lines."""
        K = self._num_codes
        if colours.shape != (K, 3):
            raise ValueError(f"colours must be ({K}, 3), got {colours.shape}")
        summary = {
            "grid": self._grid,
            "labels": list(self._labels),
            "frames": list(self._frames),
            "codes": self._rows,
            "images": self._images,
            "colours": colours.astype(np.uint8).tobytes().hex(),
            "heat": heat(np.linspace(0, 1, _HEAT)).tobytes().hex(),
            "map": None if code_map is None else code_map.summary(),
        }
        return Markup(json_text(summary))

    def _check(self, code: Code) -> None:
        K, name, expected = self._num_codes, f"code {code.index}", len(self._rows)
        if code.index != expected or code.index >= K:
            raise ValueError(f"expected codes 0 to {K - 1} in order; got {name} for {expected}")
        positions = code.positions
        shape, low, total = positions.shape, positions.min(initial=0), positions.sum()
        if shape != tuple(self._grid) or low < 0 or total != code.uses:
            raise ValueError(
                f"{name} needs positions of shape {self._grid}, none below 0, that sum to its "
                f"{code.uses} uses; got {shape}, from {low}, sum {total}"
            )
        shares = [share for _, share in code.labels]
        for share in [*shares, *([] if code.purity is None else [code.purity])]:
            if not 0 <= share <= 1:
                raise ValueError(f"{name} has a purity or label share of {share}, expected [0, 1]")
        for other, cosine in code.nearest:
            if not 0 <= other < K or not isfinite(cosine):
                raise ValueError(
                    f"{name} has nearest code {other} ({cosine}); expected a code in [0, {K}) and "
                    "a finite cosine"
                )

    def _label(self, label: str | None) -> int | None:
        return None if label is None else self._labels.setdefault(label, len(self._labels))

    def _patch(self, patch: Patch, crop: Crop, code: int) -> list[object]:
        """Return frame, position, name, label, image and closeness."""
        N = prod(self._grid)
        top, left, bottom, right = crop.frame
        if not (0 <= top < bottom <= 1 and 0 <= left < right <= 1 and 0 <= patch.position < N):
            raise ValueError(
                f"a patch of code {code} has frame {crop.frame} and position {patch.position}; "
                f"expected (top, left, bottom, right) in [0, 1] and a position in [0, {N})"
            )
        frame = tuple(round(1000 * edge) for edge in _letterboxed(crop))
        number = self._frames.setdefault(frame, len(self._frames))
        closeness = None if patch.closeness is None else round(patch.closeness, 5)
        label, image = self._label(patch.label), self._image_places.get(patch.image)
        return [number, int(patch.position), patch.name, label, image, closeness]

    def _sheet(self, crops: Sequence[Crop], room: int) -> tuple[int, bytes]:
        """Encode crops as a square sheet of at most `room` bytes, if any quality is that small."""
        cell = min(self._side, max(max(crop.pixels.shape[:2]) for crop in crops))
        cells = np.zeros((len(crops), cell, cell, 3), np.uint8)
        for centred, crop in zip(cells, crops, strict=True):
            pixels = shrunk(crop.pixels, cell)
            h, w = pixels.shape[:2]
            y, x = (cell - h) // 2, (cell - w) // 2
            centred[y : y + h, x : x + w] = pixels
        across = ceil(sqrt(len(crops)))
        sheet = tiled(cells, ceil(len(crops) / across), across)
        best = 0 if cell <= TINY else 1
        self._quality = max(best, self._quality - 1)
        while True:
            data = webp(sheet, QUALITIES[self._quality])
            if len(data) <= room or self._quality == len(QUALITIES) - 1:
                return cell, data
            self._quality += 1


def _features(image: WholeImage, N: int) -> tuple[list[object], str]:
    """Return the colours of an image's features with the ends of its cosines, and the cosines.

    The cosines of patch 0 with 1, 2, ..., of patch 1 with 2, 3, ... are steps of two bytes between
    both ends, so that they differ however close they are. Without features: none.
    """
    if image.colours is None or image.cosines is None:
        return [], ""
    shapes = (image.colours.shape, image.cosines.shape)
    if shapes != ((N, 3), (N, N)) or not np.isfinite(image.cosines).all():
        raise ValueError(
            f"image {image.name!r} needs colours ({N}, 3) and finite cosines ({N}, {N}), "
            f"got {shapes[0]} and {shapes[1]}"
        )
    pairs = image.cosines[np.triu_indices(N, 1)]
    low, high = (float(pairs.min()), float(pairs.max())) if len(pairs) else (1.0, 1.0)
    steps = np.round((pairs - low) / max(high - low, 1e-12) * _STEPS).astype("<u2")
    return [image.colours.tobytes().hex(), [low, high]], base64_of(steps.tobytes())


def _letterboxed(crop: Crop) -> tuple[float, float, float, float]:
    """Return the frame within the square that the crop is fitted into."""
    h, w = crop.pixels.shape[:2]
    top, left, bottom, right = crop.frame
    y, x = h / max(h, w), w / max(h, w)
    above, before = (1 - y) / 2, (1 - x) / 2
    return above + top * y, before + left * x, above + bottom * y, before + right * x
