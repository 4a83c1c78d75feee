"""The string that names a set of images: SOURCE?option=value&...[first%:end%]."""

import os
import re
from typing import NamedTuple, Self
from urllib.parse import unquote

from torch import Tensor

from beit.data.shrinking import Shrinking
from beit.data.source import Named, shuffled_by_name

# some/folder[:90%] and some/folder[90%:] split the images at random, always in the same way
PART = re.compile(r"(?P<whole>.+)\[(?:(?P<first>\d+)%)?:(?:(?P<end>\d+)%)?\]")
_EXPECTED = "label=COLUMN, image=COLUMN, range=LOW:HIGH or bands=1,2,3, joined by &"
_BANDS = re.compile(r"(?P<first>\d{1,4})(?:-(?P<last>\d{1,4}))?")
_OPTIONS = {"label", "image", "range", "bands"}
_NEARLY = re.compile(r"\?\w+(=|$)|\[[^]]*[:%][^]]*\]")  # options or a part, in other spellings
_QUERY = re.compile(r"(?P<path>.+?)\?(?P<query>[a-z]+=.*)")


class Reading(NamedTuple):
    """How the rows and pixels of a source are read; None where the source says it itself.

    Attributes:
        label: column of the labels in a table
        image: column of the images in a table
        range: values that become 0 and 255: low and high for all bands, or for one after the other
        bands: numbers of the bands, from 1, that become channels: red, green and blue if there are
            three; one for grey
        shrinking: how images are shrunk once decoded; not an option of the string
    """

    label: str | None = None
    image: str | None = None
    range: tuple[float, ...] | None = None
    bands: tuple[int, ...] | None = None
    shrinking: Shrinking | None = None

    @classmethod
    def parse(cls, query: str, spec: str) -> Self:
        """Read `label=COLUMN&range=0:4095`. Raises ValueError that names `spec`."""
        pairs = [part.partition("=") for part in query.split("&")]
        options = {name: unquote(value) for name, _, value in pairs}  # a column may be named a+b
        if len(options) < len(pairs):
            raise ValueError(f"{spec}: an option is given twice; expected {_EXPECTED}")
        if unknown := sorted(set(options) - _OPTIONS):
            raise ValueError(f"{spec}: unknown option {unknown[0]!r}; expected {_EXPECTED}")
        if empty := [name for name, value in options.items() if not value]:
            raise ValueError(f"{spec}: {empty[0]} has no value; expected {_EXPECTED}")
        bands = _bands(options["bands"], spec) if "bands" in options else None
        ends = _range(options["range"], spec) if "range" in options else None
        if ends and len(ends) not in (2, 2 * len(bands or ())):
            raise ValueError(
                f"{spec}: range has {len(ends) // 2} pairs and bands {len(bands or ())} numbers; "
                "expected one LOW:HIGH for all bands, or one for each"
            )
        return cls(options.get("label"), options.get("image"), ends, bands)

    @property
    def channels(self) -> int:
        """The number of channels of an image (c): 3 unless two bands or more are named."""
        return len(self.bands) if self.bands and len(self.bands) > 1 else 3

    @property
    def pixel_options(self) -> str:
        """The options that decide what pixels mean, always spelled alike; empty if files say it.

        The bands 1, 2 and 3 are left out: they are the colours of most files.
        """
        ends = [f"{value:.12g}" for value in self.range or ()]
        pairs = [":".join(pair) for pair in zip(ends[::2], ends[1::2], strict=True)]
        options = list[str]()
        if self.bands and self.bands != (1, 2, 3):
            first, last = self.bands[0], self.bands[-1]
            whole = len(self.bands) > 2 and self.bands == (*range(first, last + 1),)
            numbers = f"{first}-{last}" if whole else ",".join(map(str, self.bands))
            options.append(f"bands={numbers}")
        if pairs:
            options.append(f"range={','.join(pairs if len({*pairs}) > 1 else pairs[:1])}")
        return "&".join(options)


AS_IT_IS = Reading()


def _range(text: str, spec: str) -> tuple[float, ...]:
    values = list[float]()
    for pair in text.split(","):
        low, _, high = pair.partition(":")
        try:
            ends = float(low), float(high)
        except ValueError:
            ends = 0.0, 0.0
        if not -float("inf") < ends[0] < ends[1] < float("inf"):
            raise ValueError(f"{spec}: range is {text!r}; expected LOW:HIGH, as in range=0:4095")
        values += ends
    return tuple(values)


def _bands(text: str, spec: str) -> tuple[int, ...]:
    numbers = list[int]()
    for part in text.split(","):
        match = _BANDS.fullmatch(part)
        first = int(match["first"]) if match else 0
        last = int(match["last"] or first) if match else 0
        if not 1 <= first <= last:
            raise ValueError(
                f"{spec}: bands is {text!r}; expected numbers from 1: three for red, green and "
                "blue, as in bands=4,3,2, one for grey, or as many as the model has channels, as "
                "in bands=1-13 or bands=1-4,8"
            )
        numbers += range(first, last + 1)
    return tuple(numbers)


def split_part(spec: str) -> tuple[str, re.Match[str] | None]:
    """Split `SOURCE[:90%]` into SOURCE and the match of `PART`; None if there is no part."""
    part = PART.fullmatch(spec)
    if part is None or os.path.exists(spec):
        return spec, None
    return part["whole"], part


def cut(source: Named, part: re.Match[str]) -> Tensor:
    """Return the indices of the images in a part. Raises ValueError if there are none."""
    total, first, end = len(source), int(part["first"] or 0), int(part["end"] or 100)
    if max(first, end) > 100:
        raise ValueError(f"{part[0]}: expected a part of at most 100%, as in [:90%] or [90%:]")
    indices = shuffled_by_name(source)[total * first // 100 : total * end // 100]
    if not len(indices):
        raise ValueError(f"{part[0]}: none of the {total} images is in this part; make it larger")
    return indices


def expected(spec: str, kinds: str) -> str:
    """Complete "no such file; expected ...": the `kinds` of data, or how to write options."""
    if not _NEARLY.search(spec):
        return kinds
    return f"SOURCE?option=value[:90%], the part last and in whole percent, with {_EXPECTED}"


def pixel_query(spec: str) -> str:
    """Return the options `range` and `bands` of a source as they are written; empty without."""
    whole, _ = split_part(spec)
    match = None if os.path.exists(whole) else _QUERY.fullmatch(whole)
    options = match["query"].split("&") if match else []
    return "&".join(option for option in options if option.startswith(("range=", "bands=")))


def split_query(spec: str) -> tuple[str, Reading]:
    """Split `SOURCE?label=COLUMN` into SOURCE and how to read it."""
    match = _QUERY.fullmatch(spec)
    if match is None or os.path.exists(spec):
        return spec, AS_IT_IS
    return match["path"], Reading.parse(match["query"], spec)
