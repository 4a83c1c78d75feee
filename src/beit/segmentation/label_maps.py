"""Images with label maps: one string names ADE20K, Pascal VOC, two folders, or drawn shapes."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from beit.data.decoding import decode
from beit.data.shapes import KINDS as SHAPES
from beit.data.shapes import ShapesSource, draw
from beit.data.sources import PART, shuffled
from beit.nn.segmenter import IGNORED
from beit.segmentation.label_classes import (
    MAX_CLASSES,
    Colour,
    LabelClasses,
    label_classes,
    read_label_classes,
)
from beit.segmentation.label_decoding import (
    decode_label_map,
    decode_values,
    file_palette,
    open_label_map,
)
from beit.segmentation.label_layouts import LABEL_KINDS, Pairs, Role, find_pairs

_log = logging.getLogger(__name__)

_OPTIONS = ("split", "maps", "classes", "reduce_zero_label")
_BINARY = (
    "If 255 is a class, give a class list that says so: a .yaml file of "
    "{classes: [ground, thing], values: [0, 255]}"
)
_LOOKED_AT = 8  # maps, before a warning
_PIECE = 512  # maps read at a time to count classes


class LabelMaps(Protocol):
    """A list of images and label maps that any process may read at random."""

    classes: LabelClasses

    def __len__(self) -> int:
        """Count the images."""

    def image(self, index: int) -> Tensor:
        """Read one image. Returns: (3, H, W) uint8. Raises UnreadableImage."""

    def label_map(self, index: int) -> Tensor:
        """Read one map. Returns: (H, W) uint8, classes, 255 where ignored.

        Raises UnreadableImage where it is broken, ValueError where it holds what is no class.
        """

    def name(self, index: int) -> str:
        """Say which image this is."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """What the classes are called; "0", "1", ... where nobody says."""
        return self.classes.names

    @property
    def palette(self) -> tuple[Colour, ...]:
        """The colour of each class."""
        return self.classes.palette


def open_label_maps(
    spec: str,
    *,
    role: Role = "train",
    maps: str = "",
    classes: str = "",
    reduce_zero_label: bool = False,
    limit: int | None = None,
    names: Sequence[str] | None = None,
) -> LabelMaps:
    """Open images and their label maps.

    Args:
        spec: what to read, see `LABEL_KINDS`. `maps`, `classes`, `reduce_zero_label` and `split`
            may also stand in it, as in photos?maps=masks&classes=names.yaml; that comes first
        role: which split of a set that has both, unless `spec` says which
        maps: the folder (or zip) of the maps, paired with the images by their names without ending
        classes: a list of classes, see `read_label_classes`; empty: those of ADE20K, VOC and
            shapes; of other data as many as the maps hold, all of which are read for that
        reduce_zero_label: 0 does not count and 1, 2, ... are the classes; ADE20K's always
        limit: use so many images, a fixed random subset
        names: classes of a model or training set: those of the data take their numbers from this
            list; data that do not name their classes are taken to have these

    Raises:
        ValueError: the layout is not understood, an image has no map, a class is unknown, a
            folder is empty. FileNotFoundError: nothing is there.
    """
    if (part := PART.fullmatch(spec)) and not os.path.exists(spec):
        whole: LabelMaps = open_label_maps(
            part["whole"],
            role=role,
            maps=maps,
            classes=classes,
            reduce_zero_label=reduce_zero_label,
            names=names,
        )
        first, end = int(part["first"] or 0), int(part["end"] or 100)
        indices = shuffled(len(whole))[len(whole) * first // 100 : len(whole) * end // 100]
        if not len(indices):
            raise ValueError(f"{spec}: no image of {len(whole)} is in that part; widen it")
        found: LabelMaps = PartMaps(whole, indices)
    elif spec.startswith("shapes://"):
        if classes or maps:
            raise ValueError(f"{spec}: drawn scenes have maps and classes of their own; give none")
        shapes = shapes_classes()
        found = ShapesMaps(
            ShapesSource.from_spec(spec), shapes.renumbered(names or shapes.names, spec)
        )
    else:
        path, options = _parsed(spec)
        pairs = find_pairs(path, options.get("split", ""), role, options.get("maps", maps))
        reduced = options.get("reduce_zero_label", str(reduce_zero_label)).lower() in ("1", "true")
        listed = options.get("classes", classes)
        found = PairedMaps(pairs, _classes(spec, pairs, listed, reduced, names))
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1 image, got {limit}")
    if limit is not None and limit < len(found):
        found = PartMaps(found, shuffled(len(found))[:limit])
    return found


def read_pair(source: LabelMaps, index: int) -> tuple[Tensor, Tensor]:
    """Read an image, (3, H, W) uint8, and its label map, (H, W) uint8.

    Raises UnreadableImage, and ValueError where their sizes differ.
    """
    image, label_map = source.image(index), source.label_map(index)
    if image.shape[1:] != label_map.shape:
        raise ValueError(
            f"{source.name(index)}: the image is {image.shape[1]} x {image.shape[2]} pixels "
            "(height x width, turned as its EXIF data say), its label map "
            f"{label_map.shape[0]} x {label_map.shape[1]}; they must be equal: resize the map "
            "without interpolation, or export both anew"
        )
    return image, label_map


class PairedMaps(LabelMaps):
    """Image files with map files of the same names."""

    def __init__(self, pairs: Pairs, classes: LabelClasses) -> None:
        self.classes, self._pairs = classes, pairs

    def __len__(self) -> int:
        return len(self._pairs.places)

    def image(self, index: int) -> Tensor:
        files, place = self._pairs.images, int(self._pairs.places[index, 0])
        return decode(files.read(place), f"{files.where}/{files.name(place)}")

    def label_map(self, index: int) -> Tensor:
        data, name = self._pairs.map_file(index)
        return decode_label_map(data, name, self.classes)

    def name(self, index: int) -> str:
        return self._pairs.images.name(int(self._pairs.places[index, 0]))


class ShapesMaps(LabelMaps):
    """Drawn scenes with the kind of shape at each pixel; class 0 is the ground."""

    def __init__(self, scenes: ShapesSource, classes: LabelClasses) -> None:
        self.classes, self._scenes = classes, scenes
        self._table = torch.tensor(classes.table).to(torch.uint8)
        self._last = -1, torch.empty(0), torch.empty(0)  # an image and its map come as one

    def __len__(self) -> int:
        return len(self._scenes)

    def image(self, index: int) -> Tensor:
        return self._drawn(index)[0]

    def label_map(self, index: int) -> Tensor:
        return self._table[self._drawn(index)[1].long()]

    def _drawn(self, index: int) -> tuple[Tensor, Tensor]:
        last, image, kinds = self._last
        if last != index:
            colours, drawn = draw(self._scenes.seed, index, self._scenes.size)
            image, kinds = torch.from_numpy(colours), torch.from_numpy(drawn)
            self._last = index, image, kinds
        return image, kinds

    def name(self, index: int) -> str:
        return self._scenes.name(index)


class PartMaps(LabelMaps):
    """Some images and maps of a source, in the source's order."""

    def __init__(self, source: LabelMaps, indices: Tensor) -> None:
        self.classes, self._source = source.classes, source
        self._indices = indices.sort().values

    def __len__(self) -> int:
        return len(self._indices)

    def image(self, index: int) -> Tensor:
        return self._source.image(int(self._indices[index]))

    def label_map(self, index: int) -> Tensor:
        return self._source.label_map(int(self._indices[index]))

    def name(self, index: int) -> str:
        return self._source.name(int(self._indices[index]))


def shapes_classes() -> LabelClasses:
    """Give the classes of drawn scenes: the ground and the kinds of shapes."""
    return label_classes(["ground", *SHAPES])


def _parsed(spec: str) -> tuple[str, dict[str, str]]:
    """Part PATH?key=value&key=value. A path that exists as it stands has no options."""
    if not spec:
        raise ValueError(f"no data given: expected {LABEL_KINDS}")
    if "?" not in spec or Path(spec).expanduser().exists():
        return spec, {}
    path, _, query = spec.partition("?")
    options = dict(item.partition("=")[::2] for item in query.split("&"))
    if unknown := sorted(set(options) - set(_OPTIONS)):
        raise ValueError(
            f"{spec}: the option {', '.join(unknown)} is not understood; expected "
            + ", ".join(f"{option}=..." for option in _OPTIONS)
        )
    return path, options


# ── classes ─────────────────────────────────────────────────────────────────────────────────────


def _classes(
    spec: str, pairs: Pairs, listed: str, reduced: bool, names: Sequence[str] | None
) -> LabelClasses:
    """Say what the values of the maps mean: as listed, as the layout is known, or as counted."""
    own = read_label_classes(listed, reduced) if listed else pairs.classes
    if own is not None:
        _warn_of_binary(spec, pairs, own)
        return own if names is None else own.renumbered(names, spec)
    if names is None:
        names = [str(number) for number in range(_counted(spec, pairs, reduced))]
    found = label_classes(names, reduce_zero_label=reduced)
    palette = file_palette(open_label_map(*pairs.map_file(0)))
    if palette is None:
        return found
    palette = palette[1:] if reduced else palette
    return found.painted(palette) if len(palette) >= len(names) else found


def _warn_of_binary(spec: str, pairs: Pairs, classes: LabelClasses) -> None:
    """Warn where 255 seems to be meant as a class: the first maps hold it beside 0 alone."""
    if classes.table[IGNORED] != IGNORED:
        return
    found = set[int]()
    for index in range(min(_LOOKED_AT, len(pairs.places))):
        image = open_label_map(*pairs.map_file(index))
        if image.mode not in ("1", "L", "P"):
            return
        found |= set(decode_values(*pairs.map_file(index)).unique().tolist())
    if found == {0, IGNORED}:
        _log.warning(
            "%s: the first maps hold 0 and 255 only, and 255 is ignored. %s", spec, _BINARY
        )


def _counted(spec: str, pairs: Pairs, reduced: bool) -> int:
    """Count the classes: one more than the largest value of all maps, 255 aside."""

    def largest(index: int) -> int:
        values = decode_values(*pairs.map_file(index))
        return max((int(value) for value in values.unique() if value != IGNORED), default=0)

    total, highest = len(pairs.places), 0
    _log.info("%s: reading %d label maps to count their classes; a class list spares it",
              spec, total)  # fmt: skip
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        for first in range(0, total, _PIECE):
            indices: Iterable[int] = range(first, min(first + _PIECE, total))
            for index, value in zip(indices, pool.map(largest, indices), strict=True):
                if value >= MAX_CLASSES:
                    raise ValueError(
                        f"{pairs.map_name(index)}: a value of {value}; label maps have at most "
                        f"{MAX_CLASSES} classes, from 0"
                    )
                highest = max(highest, value)
    count = highest if reduced else highest + 1
    if count < 2:
        raise ValueError(
            f"{spec}: the label maps hold one class, and perhaps 255, which is ignored. {_BINARY}"
        )
    return count
