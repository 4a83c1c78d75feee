"""The classes of label maps: names, colours, and the class of each value in a map file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from beit.command.presets import parsed
from beit.data.class_names import match_names
from beit.data.classes import read_classes
from beit.files import user_path
from beit.nn.segmenter import IGNORED
from beit.wording import some_names

MAX_CLASSES = 255
BUILT_IN = ("ade20k", "voc")

Colour = tuple[int, int, int]  # red, green, blue in 0..255

_NO_CLASS = -1  # in the table: a value that is not allowed in a map
_VOC = (
    "background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse "
    "motorbike person pottedplant sheep sofa train tvmonitor"
)
_FILE_FORM = (
    "expected the key 'classes' with a list of names, or of name: [red, green, blue]; and "
    "optionally 'values', the value of each class in the maps (by default 0, 1, 2, ...), and "
    "'ignored', a list of values or colours to ignore"
)


@dataclass(frozen=True)
class LabelClasses:
    """Names and colours of classes, and their values in files."""

    names: tuple[str, ...]
    palette: tuple[Colour, ...]  # one colour per class, for drawing
    table: tuple[int, ...]  # class of each of 256 values in a map; 255: ignored, -1: not allowed
    colours: Mapping[Colour, int]  # class of each colour in an RGB map; empty: no such maps

    def expected(self) -> str:
        """Describe the allowed values, for errors: `0 to 149, or 255 where ignored`."""
        spans = _spans(value for value, number in enumerate(self.table) if 0 <= number != IGNORED)
        ignored = _spans(value for value, number in enumerate(self.table) if number == IGNORED)
        return f"{spans}, or {ignored} where ignored" if ignored else spans

    def in_files(self) -> list[str]:
        """Say which values and colours of a map are each class: `crack is 1, 255`."""
        listed = []
        for number, name in [*enumerate(self.names), (IGNORED, "ignored")]:
            spans = _spans(value for value, place in enumerate(self.table) if place == number)
            colours = [str(list(colour)) for colour, c in self.colours.items() if c == number]
            listed.append(f"{name} is {', '.join([spans, *sorted(colours)])}")
        return listed

    def renumbered(self, names: Sequence[str], where: str = "classes") -> LabelClasses:
        """Return the classes numbered as in a list, for example that of a model.

        Names are compared as in `match_names`. Raises ValueError, with a message that begins with
        `where`, if the list lacks one of the classes.
        """
        moved = match_names(self.names, names)
        if unknown := [name for name, place in zip(self.names, moved, strict=True) if place < 0]:
            raise ValueError(
                f"{where}: {len(unknown)} of the {len(self.names)} classes of the label maps are "
                f"unknown to the {len(names)} expected ({some_names(names, 3)}): "
                f"{some_names(unknown)}; give a class list whose names are among them"
            )
        palette = dict(enumerate(default_palette(len(names))))
        palette |= zip(moved, self.palette, strict=True)
        new_number = {IGNORED: IGNORED, _NO_CLASS: _NO_CLASS, **dict(enumerate(moved))}
        table = tuple(new_number[number] for number in self.table)
        colours = {colour: new_number[number] for colour, number in self.colours.items()}
        return LabelClasses(tuple(names), tuple(palette.values()), table, colours)


def label_classes(
    names: Sequence[str],
    palette: Sequence[Colour] | None = None,
    values: Sequence[int] | None = None,
    ignored: Iterable[int] = (),
    reduce_zero_label: bool = False,
) -> LabelClasses:
    """Build up to 255 classes of label maps.

    Args:
        palette: one colour per class; None for `default_palette`
        values: of each class in the files; None for 0, 1, 2, ...
        ignored: ignored values; 255 is always ignored, unless it is the value of a class
        reduce_zero_label: 0 is ignored and 1, 2, ... are the classes, as in ADE20K

    Raises ValueError for no classes or too many, a name or value twice, values outside 0..255.
    """
    n, ignored = len(names), list(ignored)
    if not 1 <= n <= MAX_CLASSES:
        raise ValueError(f"label maps have 1 to {MAX_CLASSES} classes, got {n}")
    if len(set(names)) < n:
        twice = next(name for name in names if list(names).count(name) > 1)
        raise ValueError(f"the class {twice} is listed twice; each has one number")
    if reduce_zero_label:
        if values is not None:
            raise ValueError("give reduce_zero_label or a list of values, not both")
        values, ignored = range(1, n + 1), [0, *ignored]
    values = range(n) if values is None else values
    for value in [*ignored, *values]:
        if not 0 <= value <= 255:
            raise ValueError(f"a value of a label map is 0 to 255, got {value}")
    if len(values) != n or len({*values, *ignored}) != n + len(set(ignored)):
        raise ValueError(
            f"expected a different value for each of {n} classes, none of them ignored, got "
            f"values {_spans(values)}, ignored {_spans(ignored) or 'none'}"
        )
    if palette is not None and len(palette) != n:
        raise ValueError(f"expected a colour for each of {n} classes, got {len(palette)}")
    number_of = dict.fromkeys([IGNORED, *ignored], IGNORED)
    number_of |= {value: number for number, value in enumerate(values)}
    table = tuple(number_of.get(value, _NO_CLASS) for value in range(256))
    return LabelClasses(tuple(names), tuple(palette or default_palette(n)), table, colours={})


def read_label_classes(spec: str, reduce_zero_label: bool = False) -> LabelClasses:
    """Read a list of classes; with `reduce_zero_label` 0 is ignored and 1, 2, ... are the classes.

    `spec` is a .yaml file of names; a text file with one name per line; ade20k, the 150 classes of
    the scene parsing benchmark, where 0 is ignored; voc, the 21 classes of Pascal VOC; or a number
    of classes, named 0, 1, 2, ...

    A YAML file is a list of names, or a mapping with `classes` (names, or name: [red, green,
    blue]), `values` and `ignored`, as in {classes: [ground, crack], values: [0, 255]}. With
    colours, RGB maps can be read too, and `ignored` may list colours.

    Raises FileNotFoundError, and ValueError if the file is malformed or lists a name, value or
    colour twice.
    """
    if spec == "ade20k":
        return ade20k_classes()
    if spec == "voc":
        return label_classes(_VOC.split(), default_palette(21))
    if spec.isdecimal():
        names = [str(number) for number in range(int(spec))]
        return label_classes(names, reduce_zero_label=reduce_zero_label)
    path = user_path(spec)
    if not path.is_file():
        raise FileNotFoundError(
            f"classes {spec}: no such file; expected a .yaml or text file of names, one of "
            f"{', '.join(BUILT_IN)}, or a number"
        )
    try:
        if path.suffix.lower() in (".yaml", ".yml"):
            return _read_yaml(path, reduce_zero_label)
        return label_classes(read_classes(spec), reduce_zero_label=reduce_zero_label)
    except ValueError as error:
        message = str(error)
        raise ValueError(message if spec in message else f"{spec}: {message}") from error


@cache
def ade20k_classes() -> LabelClasses:
    """Return ADE20K's 150 classes as published (scene parsing benchmark of 2016); 0 is ignored."""
    text = resources.files("beit.segmentation").joinpath("ade20k.yaml").read_text("utf-8")
    classes: dict[str, list[int]] = yaml.safe_load(text)
    palette = [_colour(colour) for colour in classes.values()]
    return label_classes(list(classes), palette, reduce_zero_label=True)


@cache
def default_palette(count: int) -> tuple[Colour, ...]:
    """Return `count` distinct colours, black first: Pascal VOC's palette and its continuation.

    Bits 0, 1, 2 of the class number are the highest of red, green and blue, the next three the
    second highest, and so on.
    """

    def level(number: int, channel: int) -> int:
        return sum((number >> (3 * place + channel) & 1) << (7 - place) for place in range(3))

    return tuple((level(c, 0), level(c, 1), level(c, 2)) for c in range(count))


def _read_yaml(path: Path, reduce_zero_label: bool) -> LabelClasses:
    content = parsed(path)
    if not isinstance(content, dict) or "classes" not in content:  # a list, or name: colour
        content = {"classes": content}
    content = {"values": None, "ignored": []} | content
    listed, values, ignored = content.pop("classes"), content.pop("values"), content.pop("ignored")
    if content:
        unknown = ", ".join(sorted(map(str, content)))
        raise ValueError(f"{path}: unknown keys {unknown}; {_FILE_FORM}")
    if not isinstance(listed, list | dict) or not all(isinstance(name, str) for name in listed):
        raise ValueError(f"{path}: the class names are not strings (quote them); {_FILE_FORM}")
    if not _are_integers(values or []) or not isinstance(ignored, list):
        raise ValueError(f"{path}: 'values' or 'ignored' is not a list of numbers; {_FILE_FORM}")
    given = list(listed.values()) if isinstance(listed, dict) else []
    palette = [_colour(colour) for colour in given] if any(given) else None
    numbers = [entry for entry in ignored if isinstance(entry, int)]
    classes = label_classes(list(listed), palette, values, numbers, reduce_zero_label)
    if palette is None:
        return classes
    colours = dict.fromkeys([_colour(e) for e in ignored if not isinstance(e, int)], IGNORED)
    for number, colour in enumerate(palette):
        if colour in colours:
            where = f"{path}: the colour {list(colour)}"
            raise ValueError(f"{where} is listed twice; each stands for one class")
        colours[colour] = number
    return replace(classes, colours=colours)


def _colour(value: Any) -> Colour:
    if not _are_integers(value) or len(value) != 3 or not 0 <= min(value) <= max(value) <= 255:
        raise ValueError(f"a colour is [red, green, blue], 0 to 255 each, got {value}")
    red, green, blue = value
    return red, green, blue


def _are_integers(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int for value in values)


def _spans(values: Iterable[int]) -> str:
    """Format integers as spans: `0 to 3, 7`."""
    spans: list[list[int]] = []
    for value in sorted(values):
        if spans and value == spans[-1][1] + 1:
            spans[-1][1] = value
        else:
            spans.append([value, value])
    return ", ".join(str(a) if a == b else f"{a} to {b}" for a, b in spans)
