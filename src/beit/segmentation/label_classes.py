"""The classes of label maps: their names and colours, and what each value of a map file means."""

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

_NO_CLASS = -1  # in the table: a value that no map may hold
_VOC = (
    "background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse "
    "motorbike person pottedplant sheep sofa train tvmonitor"
)
_FILE_FORM = (
    "expected the key 'classes' with a list of names, or of name: [red, green, blue]; and if "
    "needed 'values', what stands for each class in the maps (0, 1, 2, ... if not given), and "
    "'ignored', a list of values or colours that do not count"
)


@dataclass(frozen=True)
class LabelClasses:
    """Names and colours of classes, and how files write them.

    Attributes:
        names: one a class
        palette: the colour each class is drawn in
        table: 256 numbers, what a value in a map file means: a class, 255 ignored, -1 a mistake
        colours: what the colours of an RGB map mean; empty where such maps are not understood
    """

    names: tuple[str, ...]
    palette: tuple[Colour, ...]
    table: tuple[int, ...]
    colours: Mapping[Colour, int]

    def expected(self) -> str:
        """Say which values a map may hold, for errors: `0 to 149, or 255 where ignored`."""
        classes = [value for value, means in enumerate(self.table) if 0 <= means != IGNORED]
        ignored = [value for value, means in enumerate(self.table) if means == IGNORED]
        said = _spans(classes)
        return f"{said}, or {_spans(ignored)} where ignored" if ignored else said

    def renumbered(self, names: Sequence[str], where: str = "classes") -> LabelClasses:
        """Give the classes the numbers that they have in a list, that of a model for example.

        Blanks around names do not count. Raises ValueError, in words that begin with `where`, if
        the list lacks one of the classes.
        """
        places = {name.strip(): place for place, name in enumerate(names)}
        strange = [name for name in self.names if name.strip() not in places]
        if strange:
            some = ", ".join(strange[:5]) + (" ..." if len(strange) > 5 else "")
            raise ValueError(
                f"{where}: {len(strange)} of the {len(self.names)} classes of the label maps are "
                f"unknown to the {len(names)} expected ({', '.join(list(names)[:3])} ...): {some}; "
                "give a class list whose names are among them"
            )
        moved = [places[name.strip()] for name in self.names]
        palette = list(default_palette(len(names)))
        for place, colour in zip(moved, self.palette, strict=True):
            palette[place] = colour
        kept = (IGNORED, _NO_CLASS)
        return LabelClasses(
            tuple(names),
            tuple(palette),
            tuple(means if means in kept else moved[means] for means in self.table),
            {
                colour: means if means in kept else moved[means]
                for colour, means in self.colours.items()
            },
        )

    def painted(self, palette: Sequence[Colour]) -> LabelClasses:
        """Draw the classes in the first colours of a palette that has as many."""
        return replace(self, palette=tuple(palette[: len(self.names)]))


def label_classes(
    names: Sequence[str],
    palette: Sequence[Colour] | None = None,
    *,
    values: Sequence[int] | None = None,
    ignored: Iterable[int] = (),
    reduce_zero_label: bool = False,
) -> LabelClasses:
    """Describe classes.

    Args:
        names: one a class, up to 255
        palette: a colour each; None draws them in `default_palette`
        values: what stands for each class in the files; None: 0, 1, 2, ...
        ignored: values that do not count; 255 never does, unless it stands for a class
        reduce_zero_label: 0 does not count and 1, 2, ... stand for the classes, as in ADE20K

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
            f"expected a value of its own for each of {n} classes, none of them ignored, got "
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
            ade20k, the 150 classes of the scene parsing benchmark, where 0 does not count;
            voc, the 21 of Pascal VOC;
            a number: so many classes, called 0, 1, 2, ...
        reduce_zero_label: 0 does not count and 1, 2, ... stand for the classes

    A YAML file is a list of names, or a mapping with `classes` (names, or name: [red, green,
    blue]), `values` and `ignored`, as in {classes: [ground, crack], values: [0, 255]}. With
    colours RGB maps are understood too, and `ignored` may list colours.

    Raises:
        ValueError: the file is not understood, or lists a name, value or colour twice.
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
    """Give ADE20K's 150 classes as published (scene parsing benchmark of 2016): 0 is ignored."""
    text = resources.files("beit.segmentation").joinpath("ade20k.yaml").read_text("utf-8")
    classes: dict[str, list[int]] = yaml.safe_load(text)
    palette = [_colour(colour) for colour in classes.values()]
    return label_classes(list(classes), palette, reduce_zero_label=True)


@cache
def default_palette(count: int) -> tuple[Colour, ...]:
    """Give `count` distinct colours, black first: those of Pascal VOC, whose palette goes on.

    Bits 0, 1, 2 of the class number are the highest of red, green and blue, the next three the
    second highest, and so on.
    """
    palette = []
    for number in range(count):
        levels = [0, 0, 0]
        for bit in range(9):  # of the number, as many as 255 classes and more need
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
    if listed is content:  # name: colour without more
        values, ignored = None, []
    else:
        values, ignored = content.get("values"), content.get("ignored", [])
        if unknown := sorted(map(str, set(content) - {"classes", "values", "ignored"})):
            raise ValueError(f"{path}: {', '.join(unknown)} is not understood; {_FILE_FORM}")
    if not isinstance(listed, list | dict) or not all(isinstance(name, str) for name in listed):
        raise ValueError(f"{path}: the names are not understood (quote them); {_FILE_FORM}")
    painted = list(listed.values()) if isinstance(listed, dict) else []
    if not _are_integers(values or []) or not isinstance(ignored, list):
        raise ValueError(f"{path}: 'values' or 'ignored' is not understood; {_FILE_FORM}")
    plain = [entry for entry in ignored if isinstance(entry, int)]
    palette = [_colour(colour) for colour in painted] if any(painted) else None
    classes = label_classes(
        list(listed), palette, values=values, ignored=plain, reduce_zero_label=reduce_zero_label
    )
    if palette is None:
        return classes
    colours = dict.fromkeys([_colour(e) for e in ignored if not isinstance(e, int)], IGNORED)
    for number, colour in enumerate(palette):
        if colour in colours:
            raise ValueError(f"{path}: the colour {list(colour)} is listed twice; each means one")
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
    """Write integers as spans: `0 to 3, 7`."""
    spans: list[list[int]] = []
    for value in sorted(values):
        if spans and value == spans[-1][1] + 1:
            spans[-1][1] = value
        else:
            spans.append([value, value])
    return ", ".join(str(a) if a == b else f"{a} to {b}" for a, b in spans)
