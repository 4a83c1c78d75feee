"""The page of `beit visualise embedding`: one HTML file with all images, small, in a few sheets."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from markupsafe import Markup
from torch import Tensor

from beit.draw.canvas import Pixels
from beit.draw.colours import place_colours
from beit.draw.page import base64_of, json_text, page_stream
from beit.draw.thumbnails import QUALITIES, TINY, tiled, webp
from beit.files import replacing
from beit.similarity.neighbours import NEARLY_IDENTICAL

MAX_BYTES = 14_000_000  # of the pictures in base64
MOST = 65_535  # images: their numbers are two bytes
ACROSS = 16  # pictures in a row of a sheet, which has as many rows at most
_SCRIPTS = ("embedding_data.js", "embedding.js")


@dataclass(frozen=True)
class EmbeddingPage:
    """What the page shows of n images.

    Attributes:
        note: which images these are; empty for all
        labels: number of each image's label in `label_names`, -1 if unknown; None without labels
        places: (n, 2) in [-0.5, 0.5], the second upwards
        neighbours, cosines: (n, k) int64 and float32, nearest first
        groups: (n,) int64, cluster of each image
        central: rows of each cluster, the most central first
        compared: number of neighbours whose labels are compared
        agreement: share of them with the image's label, and chance
        purity: share of images with their cluster's most frequent label, and chance
        thumbnails: (n, h, w, 3) uint8
    """

    model: str
    data: str
    features: str
    note: str
    names: Sequence[str]
    labels: Sequence[int] | None
    label_names: Sequence[str]
    places: Tensor
    neighbours: Tensor
    cosines: Tensor
    groups: Tensor
    central: Sequence[Sequence[int]]
    compared: int
    agreement: tuple[float, float] | None
    purity: tuple[float, float] | None
    thumbnails: Pixels

    @property
    def model_name(self) -> str:
        """Its name without the folders of a path."""
        return self.model if ":" in self.model else Path(self.model).name


def write_page(path: str | os.PathLike[str], page: EmbeddingPage) -> int:
    """Write the page atomically. Returns: its size in bytes."""
    if len(page.names) > MOST:
        raise ValueError(f"a page shows {MOST:,} images at most, got {len(page.names):,}")
    sheets = _sheets(page.thumbnails)
    stream = page_stream(
        *("beit.similarity", "embedding", _SCRIPTS),
        title=f"What {page.model_name} sees",
        page=page,
        sheets=[Markup(base64_of(sheet)) for sheet in sheets],
        summary=Markup(json_text(_summary(page))),
    )
    with replacing(Path(path)) as temporary:
        with temporary.open("wb") as file:
            stream.dump(file, "utf-8", errors="replace")
        return temporary.stat().st_size


def _summary(page: EmbeddingPage) -> dict[str, object]:
    places = ((page.places.clamp(-0.5, 0.5) + 0.5) * MOST).round().numpy().astype("<u2")
    cosines = ((page.cosines.clamp(-1, 1) + 1) * 32767).round().numpy().astype("<u2")
    groups = page.groups.tolist()
    return {
        "cell": page.thumbnails.shape[1:3],
        "across": ACROSS,
        "nearly_identical": NEARLY_IDENTICAL,
        "names": page.names,
        "labels": page.labels,
        "label_names": page.label_names,
        "label_colours": _colours(max(1, len(page.label_names))),
        "places": base64_of(places.tobytes()),
        "near": base64_of(page.neighbours.numpy().astype("<u2").tobytes()),
        "cosines": base64_of(cosines.tobytes()),
        "groups": groups,
        "group_colours": _colours(len(page.central)),
        "central": page.central,
        "compared": page.compared,
        "agreement": page.agreement,
        "purity": page.purity,
    }


def _colours(count: int) -> list[str]:
    """Return colours of clusters, spread out: those of the additive recurrence of x^4 = x + 1."""
    places = (0.5 + np.arange(count)[:, None] * 1.2207440846 ** -np.arange(1.0, 4.0)) % 1.0
    return ["#" + bytes(colour).hex() for colour in place_colours(places)]


def _sheets(cells: Pixels) -> list[bytes]:
    """Encode pictures (n, h, w, 3) as WebP sheets, in the best quality that is small enough."""
    size = ACROSS * ACROSS
    parts = [cells[start : start + size] for start in range(0, len(cells), size)]
    sheets = [tiled(part, -(-len(part) // ACROSS), ACROSS, fill=128) for part in parts]
    encoded: list[bytes] = []
    for quality in QUALITIES[0 if max(cells.shape[1:3]) <= TINY else 2 :]:
        encoded = [webp(sheet, quality) for sheet in sheets]
        if sum(map(len, encoded)) * 4 / 3 <= MAX_BYTES:
            break
    return encoded
