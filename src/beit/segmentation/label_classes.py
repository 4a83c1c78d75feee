"""The classes of label maps: names, colours, and the class of each value in a map file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from beit.data.classes import read_classes
from beit.nn.segmenter import IGNORED

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
    """Names and colours of classes, and their values in files.

    Attributes:
        names: one per class
        palette: one colour per class, for drawing
        table: class of each of the 256 values in a map file; 255 if ignored, -1 if not allowed
        colours: class of each colour in an RGB map; empty if such maps are not supported
    """

    names: tuple[str, ...]
    palette: tuple[Colour, ...]
    table: tuple[int, ...]
    colours: Mapping[Colour, int]

    def expected(self) -> str:
        """Describe the allowed values, for errors: `0 to 149, or 255 where ignored`."""
        classes = [value for value, number in enumerate(self.table) if 0 <= number != IGNORED]
        ignored = [value for value, number in enumerate(self.table) if number == IGNORED]
        spans = _spans(classes)
        return f"{spans}, or {_spans(ignored)} where ignored" if ignored else spans

    def renumbered(self, names: Sequence[str], where: str = "classes") -> LabelClasses:
        """Return the classes numbered as in a list, for example that of a model.

        Blanks around names are ignored. Raises ValueError, with a message that begins with `where`,
        if the list lacks one of the classes.
        """
        numbers = {name.strip(): number for number, name in enumerate(names)}
        unknown = [name for name in self.names if name.strip() not in numbers]
        if unknown:
            some = ", ".join(unknown[:5]) + (" ..." if len(unknown) > 5 else "")
            raise ValueError(
                f"{where}: {len(unknown)} of the {len(self.names)} classes of the label maps are "
                f"unknown to the {len(names)} expected ({', '.join(list(names)[:3])} ...): {some}; "
                "give a class list whose names are among them"
            )
        moved = [numbers[name.strip()] for name in self.names]
        palette = list(default_palette(len(names)))
        for number, colour in zip(moved, self.palette, strict=True):
            palette[number] = colour
        new_number = {IGNORED: IGNORED, _NO_CLASS: _NO_CLASS, **dict(enumerate(moved))}
        return LabelClasses(
            tuple(names),
            tuple(palette),
            tuple(new_number[number] for number in self.table),
            {colour: new_number[number] for colour, number in self.colours.items()},
        )

    def with_palette(self, palette: Sequence[Colour]) -> LabelClasses:
        """Return the classes with the first colours of a palette, which must suffice."""
        return replace(self, palette=tuple(palette[: len(self.names)]))


def label_classes(
    names: Sequence[str],
    palette: Sequence[Colour] | None = None,
    *,
    values: Sequence[int] | None = None,
    ignored: Iterable[int] = (),
    reduce_zero_label: bool = False,
) -> LabelClasses:
    """Build the classes of label maps.

    Args:
        names: one per class, up to 255
        palette: one colour per class; None for `default_palette`
        values: of each class in the files; None for 0, 1, 2, ...
        ignored: ignored values; 255 is always ignored, unless it is the value of a class
        reduce_zero_label: 0 is ignored and 1, 2, ... are the classes, as in ADE20K

    Raises:
        ValueError: no classes or too many, a name or value twice, values outside 0..255.
    """
    n = len(names)
    if not 1 <= n <= MAX_CLASSES:
        raise ValueError(f"label maps have 1 to {MAX_CLASSES} classes, got {n}")
    for name in names:
        if list(names).count(name) > 1:
            raise ValueError(f"the class {name} is listed twice; each has one number")
    if reduce_zero_label:
        if values is not None:
            raise ValueError("give reduce_zero_label or a list of values, not both")
        values, ignored = range(1, n + 1), [0, *ignored]
    values = range(n) if values is None else values
    ignored = list(ignored)
    table = [_NO_CLASS] * 256
    table[IGNORED] = IGNORED
    for value in [*ignored, *values]:
        if not 0 <= value <= 255:
            raise ValueError(f"a value of a label map is 0 to 255, got {value}")
    if len(values) != n or len({*values, *ignored}) != n + len(set(ignored)):
        raise ValueError(
            f"expected a different value for each of {n} classes, none of them ignored, got "
            f"values {_spans(values)}, ignored {_spans(ignored) or 'none'}"
        )
    for value in ignored:
        table[value] = IGNORED
    for number, value in enumerate(values):
        table[value] = number
    if palette is not None and len(palette) != n:
        raise ValueError(f"expected a colour for each of {n} classes, got {len(palette)}")
    return LabelClasses(
        tuple(names), tuple(palette or default_palette(n)), tuple(table), colours={}
    )


def read_label_classes(spec: str, reduce_zero_label: bool = False) -> LabelClasses:
    """Read a list of classes.

    Args:
        spec: one of
            a .yaml file of names (see below);
            a text file with one name a line;
            ade20k, the 150 classes of the scene parsing benchmark, where 0 is ignored;
            voc, the 21 classes of Pascal VOC;
            a number of classes, named 0, 1, 2, ...
        reduce_zero_label: 0 is ignored and 1, 2, ... are the classes

    A YAML file is a list of names, or a mapping with `classes` (names, or name: [red, green,
    blue]), `values` and `ignored`, as in {classes: [ground, crack], values: [0, 255]}. With
    colours, RGB maps can be read too, and `ignored` may list colours.

    Raises:
        ValueError: the file is malformed, or lists a name, value or colour twice.
        FileNotFoundError: there is no such file.
    """
    if spec == "ade20k":
        return ade20k_classes()
    if spec == "voc":
        return label_classes(_VOC.split(), default_palette(21))
    if spec.isdecimal():
        names = [str(number) for number in range(int(spec))]
        return label_classes(names, reduce_zero_label=reduce_zero_label)
    path = Path(spec).expanduser()
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
    palette = []
    for number in range(count):
        levels = [0, 0, 0]
        for bit in range(9):  # of the number
            levels[bit % 3] |= (number >> bit & 1) << 7 - bit // 3
        palette.append((levels[0], levels[1], levels[2]))
    return tuple(palette)


def _read_yaml(path: Path, reduce_zero_label: bool) -> LabelClasses:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not readable as YAML: {error}") from error
    if not isinstance(content, dict):
        content = {"classes": content}
    listed = content.get("classes", content)
    if listed is content:  # a plain mapping of name: colour
        values, ignored = None, []
    else:
        values, ignored = content.get("values"), content.get("ignored", [])
        if unknown := sorted(map(str, set(content) - {"classes", "values", "ignored"})):
            raise ValueError(f"{path}: unknown keys {', '.join(unknown)}; {_FILE_FORM}")
    if not isinstance(listed, list | dict) or not all(isinstance(name, str) for name in listed):
        raise ValueError(f"{path}: the class names are not strings (quote them); {_FILE_FORM}")
    given_colours = list(listed.values()) if isinstance(listed, dict) else []
    if not _are_integers(values or []) or not isinstance(ignored, list):
        raise ValueError(f"{path}: 'values' or 'ignored' is not a list of numbers; {_FILE_FORM}")
    ignored_values = [entry for entry in ignored if isinstance(entry, int)]
    palette = [_colour(colour) for colour in given_colours] if any(given_colours) else None
    classes = label_classes(
        list(listed),
        palette,
        values=values,
        ignored=ignored_values,
        reduce_zero_label=reduce_zero_label,
    )
    if palette is None:
        return classes
    colours = dict.fromkeys([_colour(e) for e in ignored if not isinstance(e, int)], IGNORED)
    for number, colour in enumerate(palette):
        if colour in colours:
            raise ValueError(
                f"{path}: the colour {list(colour)} is listed twice; each stands for one class"
            )
        colours[colour] = number
    return replace(classes, colours=colours)


def _colour(value: Any) -> Colour:
    if not isinstance(value, list) or len(value) != 3 or not _are_integers(value):
        raise ValueError(f"a colour is [red, green, blue], 0 to 255 each, got {value}")
    red, green, blue = value
    if not 0 <= min(value) <= max(value) <= 255:
        raise ValueError(f"a colour is [red, green, blue], 0 to 255 each, got {value}")
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
