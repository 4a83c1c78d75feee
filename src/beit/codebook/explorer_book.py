"""From what was found of a codebook to the explorer's page, without all patches in memory."""

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from beit.codebook.book import CodeBook, Images, Seen
from beit.codebook.explorer import Book, Code, Patch, SeenImage, write_explorer
from beit.codebook.gallery import Cut
from beit.codebook.page import Cutter
from beit.draw.canvas import Pixels
from beit.draw.components import codebook_colours


def write_codebook(
    path: Path,
    book: CodeBook,
    cutter: Cutter,
    images: Images,
    whole: Mapping[int, SeenImage],
    about: Mapping[str, Any],
) -> Path:
    """Write the explorer's page; pictures of patches wait in a file beside it.

    Args:
        cutter: gives the cut of each place that can be read, of places (m,) int64 sorted
        images: where the patches come from
        whole: by their numbers, the images that are to be seen whole
        about: model, data, images
    """
    K = len(book.vectors)
    places = book.places(range(K), closest=book.per_code)
    side = 96 if K <= 1024 else 64  # at most what the page shows
    with tempfile.TemporaryFile(dir=path.parent) as file:
        store = _Store(file, places)
        for place, seen in cutter(places):
            store.keep(place, seen, side)
        numbers = {image: number for number, image in enumerate(whole)}
        return write_explorer(
            path,
            Book(
                tokenizer=Path(about["model"]).name,
                data=about["data"],
                num_codes=K,
                grid=book.grid,
                codes=_codes(book, store, images, numbers),
                images=list(whole.values()),
                facts={"Images": f"{about['images']:,}"},
                colours=codebook_colours(book.vectors, K),  # as in `beit visualise tokens`
            ),
        )


class _Store:
    """Pictures of patches in a file, by their places (m,) int64 sorted."""

    def __init__(self, file: Any, places: Tensor) -> None:
        self._file, self._places = file, places
        self._pixels: NDArray[np.uint8] | None = None
        self._frames = np.zeros((len(places), 4))  # a frame without height: not there

    def keep(self, place: int, seen: Cut, side: int) -> None:
        """Take in a cut, made smaller if it is larger than `side`; all are of one size."""
        h, w = seen.pixels.shape[:2]
        pixels = seen.pixels
        if max(h, w) > side:
            size = (max(1, round(w * side / max(h, w))), max(1, round(h * side / max(h, w))))
            pixels = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))
        if self._pixels is None:
            shape = (len(self._places), *pixels.shape)
            self._pixels = np.memmap(self._file, np.uint8, "w+", shape=shape)
        top, left, height, width = seen.box
        number = int(torch.searchsorted(self._places, place))
        self._pixels[number] = pixels
        self._frames[number] = top / h, left / w, (top + height) / h, (left + width) / w

    def find(self, place: int) -> tuple[Pixels, tuple[float, float, float, float]] | None:
        """Give the pixels and the frame of a patch, None where it could not be read."""
        number = int(torch.searchsorted(self._places, place))
        top, left, bottom, right = self._frames[number].tolist()
        if self._pixels is None or not bottom:
            return None
        return np.array(self._pixels[number]), (top, left, bottom, right)


def _codes(
    book: CodeBook, store: _Store, images: Images, numbers: Mapping[int, int]
) -> Iterator[Code]:
    positions = book.statistics.positions.cpu()
    for index in range(len(book.vectors)):
        entry = book.entry(index)
        patches = [_patch(book, store, images, numbers, seen) for seen in entry.closest]
        yield Code(
            index=index,
            uses=entry.uses,
            positions=positions[:, index].view(book.grid).numpy(),
            purity=entry.purity,
            entropy=entry.position_entropy,
            labels=entry.labels,
            neighbours=entry.nearest,
            patches=[patch for patch in patches if patch is not None],
        )


def _patch(
    book: CodeBook, store: _Store, images: Images, numbers: Mapping[int, int], seen: Seen
) -> Patch | None:
    found = store.find(book.place(seen))
    if found is None:
        return None
    return Patch(
        *found,
        position=seen.position,
        name=images.name(seen.image),
        label=book.label(images, seen.image),
        image=numbers.get(seen.image),
        closeness=seen.closeness,
    )
