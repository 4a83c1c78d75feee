"""Images with label maps: one string names ADE20K, Pascal VOC, two folders, or drawn shapes."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from beit.data.pixels.decoding import decode
from beit.data.shapes import KINDS as SHAPES
from beit.data.shapes import ShapesSource
from beit.data.source import shuffled
from beit.data.spec import AS_IT_IS, PART, Reading, cut
from beit.files import user_path
from beit.nn.segmenter import IGNORED
from beit.segmentation.label_classes import Colour, LabelClasses, label_classes, read_label_classes
from beit.segmentation.label_decoding import decode_label_map, file_palette, map_values, open_map
from beit.segmentation.label_files import LABEL_KINDS, Pairs, Role, find_pairs
from beit.wording import some

_log = logging.getLogger(__name__)

_PIXELS = ("range", "bands")
_OPTIONS = ("split", "maps", "classes", "reduce_zero_label", *_PIXELS)
_BINARY = (
    "If 255 is a class, give a class list that includes it: a .yaml file of "
    "{classes: [ground, thing], values: [0, 255]}"
)
_CHECKED = 8  # maps read to warn of 255 as a class
_CHUNK = 512  # maps read at a time to count classes


class LabelMaps(Protocol):
    """A list of images and label maps; any process may read them in any order."""

    classes: LabelClasses
    reading: Reading  # of the images

    def __len__(self) -> int: ...

    def image(self, index: int) -> Tensor:
        """Read one image: (3, H, W) uint8. Raises UnreadableImage."""

    def label_map(self, index: int) -> Tensor:
        """Read one map: (H, W) uint8, classes, 255 where ignored.

        Raises UnreadableImage if it is broken, ValueError if it holds a value that is no class.
        """

    def name(self, index: int) -> str:
        """Return the name of an image."""

    def file(self, index: int) -> Path | None:
        """Return the file that contains an image; None for a drawn one."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes; "0", "1", ... if they are not known."""
        return self.classes.names

    @property
    def palette(self) -> tuple[Colour, ...]:
        """Colour of each class."""
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
        spec: what to read, see `LABEL_KINDS`. It may set `maps`, `classes`, `reduce_zero_label` and
            `split`, as in photos?maps=masks&classes=names.yaml, and takes precedence; and `range`
            and `bands` of the images (docs/data.md)
        role: which split of a set that has both, unless `spec` names one
        maps: the folder (or zip) of the maps, paired with the images by name without extension
        classes: a list of classes, see `read_label_classes`; empty for those of ADE20K, VOC and
            shapes, and for other data as many as the maps hold, all of which are then read
        reduce_zero_label: 0 is ignored and 1, 2, ... are the classes; always so for ADE20K
        limit: use this many images, a fixed random subset
        names: classes of a model or training set, which number those of the data; data without
            class names are assumed to have these

    Raises:
        ValueError: the layout is unknown, an image has no map, a class is unknown, a folder is
            empty. FileNotFoundError: the path does not exist.
    """
    parts: list[re.Match[str]] = []
    while (part := PART.fullmatch(spec)) and not os.path.exists(spec):
        parts, spec = [part, *parts], part["whole"]
    if spec.startswith("shapes://"):
        if classes or maps or reduce_zero_label:
            raise ValueError(
                f"{spec}: drawn scenes have their own maps and classes; leave out maps, classes "
                "and reduce_zero_label"
            )
        shapes = label_classes(["ground", *SHAPES])
        shapes = shapes.renumbered(names or shapes.names, spec)
        source: LabelMaps = ShapesMaps(ShapesSource.from_spec(spec), shapes)
    else:
        path, options = _parsed(spec)
        reduced = _flag(spec, options.get("reduce_zero_label", str(reduce_zero_label)))
        pairs = find_pairs(path, options.get("split", ""), role, options.get("maps", maps))
        class_list = options.get("classes", classes)
        own_classes = _classes(spec, pairs, class_list, reduced, names)
        source = PairedMaps(pairs, own_classes, _reading(spec, options))
    for part in parts:
        source = PartMaps(source, cut(source, part))
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1 image, got {limit}")
    if limit is not None and limit < len(source):
        source = PartMaps(source, shuffled(len(source))[:limit])
    return source


def read_pair(source: LabelMaps, index: int) -> tuple[Tensor, Tensor]:
    """Read an image, (3, H, W) uint8, and its label map, (H, W) uint8.

    Raises UnreadableImage, and ValueError where their sizes differ.
    """
    image, label_map = source.image(index), source.label_map(index)
    if image.shape[1:] != label_map.shape:
        raise ValueError(
            f"{source.name(index)}: the image is {image.shape[1]} x {image.shape[2]} pixels "
            "(height x width, after its EXIF rotation), its label map "
            f"{label_map.shape[0]} x {label_map.shape[1]}; they must be equal: resize the map "
            "without interpolation, or export both again"
        )
    return image, label_map


class PairedMaps(LabelMaps):
    """Image files and map files of the same names."""

    def __init__(self, pairs: Pairs, classes: LabelClasses, reading: Reading) -> None:
        self.classes, self.reading, self._pairs = classes, reading, pairs

    def __len__(self) -> int:
        return len(self._pairs.places)

    def image(self, index: int) -> Tensor:
        files, place = self._pairs.images, int(self._pairs.places[index, 0])
        return decode(files.read(place), f"{files.where}/{files.name(place)}", self.reading)

    def label_map(self, index: int) -> Tensor:
        return decode_label_map(*self._pairs.map_file(index), self.classes)

    def name(self, index: int) -> str:
        return self._pairs.images.name(int(self._pairs.places[index, 0]))

    def file(self, index: int) -> Path | None:
        return self._pairs.image_file(index)


class ShapesMaps(LabelMaps):
    """Drawn scenes; the class of a pixel is the kind of shape there, 0 for the ground."""

    def __init__(self, scenes: ShapesSource, classes: LabelClasses) -> None:
        self.classes, self.reading, self._scenes = classes, AS_IT_IS, scenes
        self._table = torch.tensor(classes.table).to(torch.uint8)

    def __len__(self) -> int:
        return len(self._scenes)

    def image(self, index: int) -> Tensor:
        return _scene(self._scenes, index)[0]

    def label_map(self, index: int) -> Tensor:
        return self._table[_scene(self._scenes, index)[1].long()]

    def name(self, index: int) -> str:
        return self._scenes.name(index)

    def file(self, index: int) -> None:
        return None


@lru_cache(maxsize=1)  # an image and its map are drawn together
def _scene(scenes: ShapesSource, index: int) -> tuple[Tensor, Tensor]:
    return scenes.scene(index)


class PartMaps(LabelMaps):
    """A subset of the images and maps of a source, in the source's order."""

    def __init__(self, source: LabelMaps, indices: Tensor) -> None:
        self.classes, self.reading, self._source = source.classes, source.reading, source
        self._indices = indices.sort().values

    def __len__(self) -> int:
        return len(self._indices)

    def image(self, index: int) -> Tensor:
        return self._source.image(int(self._indices[index]))

    def label_map(self, index: int) -> Tensor:
        return self._source.label_map(int(self._indices[index]))

    def name(self, index: int) -> str:
        return self._source.name(int(self._indices[index]))

    def file(self, index: int) -> Path | None:
        return self._source.file(int(self._indices[index]))


def _parsed(spec: str) -> tuple[str, dict[str, str]]:
    """Split PATH?key=value&key=value. A spec that exists as a path has no options."""
    if not spec:
        raise ValueError(f"no data given: expected {LABEL_KINDS}")
    if "?" not in spec or user_path(spec).exists():
        return spec, {}
    path, _, query = spec.partition("?")
    options = dict(item.partition("=")[::2] for item in query.split("&"))
    if unknown := sorted(set(options) - set(_OPTIONS)):
        expected = ", ".join(f"{option}=..." for option in _OPTIONS)
        raise ValueError(f"{spec}: unknown option {', '.join(unknown)}; expected {expected}")
    return path, options


def _flag(spec: str, value: str) -> bool:
    known = {"1": True, "true": True, "0": False, "false": False}
    if value.lower() not in known:
        raise ValueError(f"{spec}: reduce_zero_label is {value!r}; expected true or false")
    return known[value.lower()]


def _reading(spec: str, options: Mapping[str, str]) -> Reading:
    """Return how the pixels of images are read."""
    query = "&".join(f"{name}={options[name]}" for name in _PIXELS if name in options)
    reading = Reading.parse(query, spec) if query else AS_IT_IS
    if reading.channels != 3:
        raise ValueError(
            f"{spec}: {reading.channels} bands, and segmentation is of RGB only; name three, as in "
            "bands=3,2,1, or one for grey"
        )
    return reading


def image_spec(spec: str, maps: LabelMaps) -> str:
    """Name the images that a string opens as `maps`, with their bands and range alone."""
    options = maps.reading.pixel_options
    return spec.partition("?")[0] + f"?{options}" * bool(options)


# ── classes ─────────────────────────────────────────────────────────────────────────────────────


def _classes(
    spec: str, pairs: Pairs, class_list: str, reduced: bool, names: Sequence[str] | None
) -> LabelClasses:
    """Determine the classes: from the list, from a known layout, or by counting values."""
    own = read_label_classes(class_list, reduced) if class_list else pairs.classes
    if own is not None:
        if reduced and own.table[0] != IGNORED:
            raise ValueError(
                f"{spec}: reduce_zero_label ignores 0, which is the class {own.names[own.table[0]]}"
                " here; leave it out, or give a class list of your own"
            )
        _warn_of_binary(spec, pairs, own)
        return own if names is None else own.renumbered(names, spec)
    if names is None:
        names = [str(number) for number in range(_count_classes(spec, pairs, reduced))]
    colours = file_palette(open_map(*pairs.map_file(0)))[reduced:][: len(names)]
    palette = colours if len(colours) == len(names) else None
    classes = label_classes(names, palette, reduce_zero_label=reduced)
    _warn_of_binary(spec, pairs, classes)  # where names are those of a model
    return classes


def _warn_of_binary(spec: str, pairs: Pairs, classes: LabelClasses) -> None:
    """Warn if 255 seems to be a class, because the first maps hold only 0 and 255."""
    if classes.table[IGNORED] != IGNORED:
        return
    values = set[int]()
    for index in range(min(_CHECKED, len(pairs.places))):
        data, name = pairs.map_file(index)
        image = open_map(data, name)
        if image.mode not in ("1", "L", "P"):
            return
        values.update(np.unique(map_values(image, name)).tolist())
    if values == {0, IGNORED}:
        _log.warning(
            "%s: the first maps hold only 0 and 255, and 255 is ignored. %s", spec, _BINARY
        )


def _count_classes(spec: str, pairs: Pairs, reduced: bool) -> int:
    """Count the classes: one more than the largest value of all maps, ignoring 255.

    Raises ValueError if most of these classes have no pixel: their values are other numbers.
    """

    def found(index: int) -> set[int]:
        data, name = pairs.map_file(index)
        values = np.unique(map_values(open_map(data, name), name)).tolist()
        if max(values) > IGNORED:
            expected = f"expected classes from 0 to {IGNORED - 1}"
            raise ValueError(f"{name}: value {max(values)}; {expected}")
        return {*values}

    total, present = len(pairs.places), set[int]()
    message = "%s: reading %d label maps to count their classes; a class list avoids this"
    _log.info(message, spec, total)
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        for first in range(0, total, _CHUNK):
            chunk = range(first, min(first + _CHUNK, total))
            present.update(*pool.map(found, chunk))
    present -= {IGNORED, 0} if reduced else {IGNORED}
    count = max(present, default=0) + (not reduced)
    if count < 2:
        raise ValueError(
            f"{spec}: the label maps hold one class, apart from 255, which is ignored. {_BINARY}"
        )
    values = some(list(map(str, sorted(present))))
    if 2 * len(present) < count:
        raise ValueError(
            f"{spec}: the label maps hold {len(present)} values up to {max(present)} ({values}), "
            f"so most of {count} classes have no pixel. Give a class list with their values: a "
            ".yaml file of {classes: [NAME, ...], values: [NUMBER, ...]}; or, if they are numbers "
            f"of {count} classes, {count} in its place"
        )
    if len(present) < count:
        message = "%s: only %d of %d classes have a pixel: %s"
        _log.warning(message, spec, len(present), count, values)
    return count
