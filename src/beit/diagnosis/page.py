"""The page of a set of images, and its JSON: what is wrong, with pictures of each kind."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from beit.data.source import Source, UnreadableImage
from beit.diagnosis.checks import Check
from beit.diagnosis.faults import KINDS, OF_TEST, Fault, Scanned, class_counts, label_of, sizes_of
from beit.diagnosis.scan import Facts
from beit.draw.canvas import Pixels, opaque, panel, picture
from beit.draw.names import percent
from beit.draw.report import Cell, Gallery, Picture, Section, Table
from beit.rows.lines import printable

SHOWN = 24  # pictures of a kind
SOME = 12  # pictures of a set at most
LISTED = 50  # unreadable images in a table
CLASSES = 30  # in a table, the largest and the smallest
PIXELS = 180  # longest side of a picture


def fault_sections(train: Scanned, test: Scanned | None, faults: Sequence[Fault]) -> list[Section]:
    """Show the faults of the training images, each kind in a section."""
    sections = []
    for fault in faults:
        kind, number = KINDS[fault.kind], len(fault.images)
        other = test if test is not None and fault.kind in OF_TEST else train
        of_all = percent(number / len(train.source))
        text = f"{number} of {len(train.source)}, {of_all}. {kind.advice[0].upper()}"
        item: Gallery | Table
        if fault.kind == "unreadable":
            item = _reasons(train, fault)
        else:
            pairs = _pairs(train, other, fault)
            caption = (
                "left the image, right the one that it is like" if fault.like is not None else ""
            )
            caption += ", those least alike first" if fault.cosines is not None else ""
            item = Gallery(_first(len(pairs), number, caption), pairs)
        sections.append(Section(kind.images.capitalize(), f"{text}{kind.advice[1:]}.", [item]))
    return sections


def _first(shown: int, number: int, caption: str) -> str:
    some = f"the first {shown} of {number}" if shown < number else ""
    return "; ".join(part for part in (some, caption) if part).capitalize()


def _reasons(scanned: Scanned, fault: Fault) -> Table:
    first = fault.images[:LISTED].tolist()
    rows = [[printable(scanned.source.name(i)), printable(scanned.facts.reasons[i])] for i in first]
    return Table(_first(len(first), len(fault.images), ""), ["image", "reason"], rows)


def _pairs(scanned: Scanned, other: Scanned, fault: Fault) -> list[Picture]:
    """Draw the first images of a fault, each beside the one that it is like."""
    drawn = []
    like = fault.images if fault.like is None else fault.like
    order = np.arange(len(like)) if fault.cosines is None else np.argsort(fault.cosines)
    for place in order[:SHOWN].tolist():
        index, second = int(fault.images[place]), int(like[place])
        name, pixels = printable(scanned.source.name(index)), [_pixels(scanned.source, index)]
        if fault.like is not None:
            name += f" is like {printable(other.source.name(second))}"
            pixels.append(_pixels(other.source, second))
        caption = f"{name}, {scanned.facts.width[index]} x {scanned.facts.height[index]}"
        if fault.cosines is not None:
            caption += f", cosine {fault.cosines[place]:.3f}"
        if label := label_of(scanned.source, index):
            caption += f", {label}"
        drawn.append(picture(caption, caption, [_padded(pixels)]))
    return drawn


def _some(scanned: Scanned) -> Gallery:
    """Show some readable images from the whole set as they are read."""
    readable = np.flatnonzero(scanned.facts.readable)
    step, drawn = max(1, -(-len(readable) // SOME)), list[Picture]()
    for index in readable[::step].tolist():
        name = printable(scanned.source.name(index))
        drawn.append(picture(name, name, [[_pixels(scanned.source, index)]]))
    return Gallery("Some images, as they are read", drawn)


def _pixels(source: Source, index: int) -> Pixels:
    """Read a picture; a grey square if it has been removed meanwhile."""
    try:
        return panel(source.image(index), PIXELS)
    except UnreadableImage:
        return np.full((PIXELS, PIXELS, 3), 128, np.uint8)


def _padded(pictures: Sequence[Pixels]) -> list[Pixels]:
    """Extend pictures (h, w, 3) to one size with transparent pixels: (H, W, 4)."""
    height, width = (max(pixels.shape[side] for pixels in pictures) for side in (0, 1))
    padded = []
    for pixels in pictures:
        h, w = pixels.shape[:2]
        whole = np.zeros((height, width, 4), np.uint8)
        whole[:h, :w] = opaque(pixels)
        padded.append(whole)
    return padded


def fact_sections(scanned: Scanned, checks: Sequence[Check]) -> list[Section]:
    """Show sizes, formats and colours of a set, and its classes with their checks."""
    facts, count = scanned.facts, max(1, int(scanned.facts.readable.sum()))
    sizes: list[list[Cell]] = [
        [size, number, percent(number / count)] for size, number in sizes_of(facts).items()
    ]
    items: list[Any] = [Table("Most frequent sizes", ["width x height", "images", "share"], sizes)]
    formats: list[list[Cell]] = [
        [name, number, percent(number / count)] for name, number in facts.formats.most_common()
    ]
    if formats:
        items.append(Table("Formats as files have them", ["format", "images", "share"], formats))
    mean, deviation = facts.colours()
    low, high = facts.ends()
    rows: list[list[Cell]] = [["mean", *mean], ["standard deviation", *deviation]]
    rows += [["share at 0", *map(percent, low)], ["share at 1", *map(percent, high)]]
    grey, names = int(facts.grey.sum()), ["red", "green", "blue"]
    if len(mean) != 3:
        names = [f"channel {number}" for number in range(1, len(mean) + 1)]
    elif grey == count:
        rows, names = [row[:2] for row in rows], ["grey"]
    items.append(Table("Colours, in [0, 1]", ["", *names], rows))
    text = f"{grey} images are grey. {shorter_side(facts)}"
    items += [_some(scanned)] if facts.readable.any() else []
    sections = [Section("Sizes and colours", text, items)]
    counts = class_counts(scanned.source)
    if counts:
        shown: list[list[Cell]] = [list(pair) for pair in counts]
        caption = "Images of each class"
        if len(counts) > CLASSES:
            half = CLASSES // 2
            shown, caption = [*shown[:half], *shown[-half:]], "The largest and smallest classes"
        words = "\n\n".join(f"{check.found}: {check.advice}." for check in checks)
        sections.append(Section("Classes", words, [Table(caption, ["class", "images"], shown)]))
    return sections


def shorter_side(facts: Facts) -> str:
    """Say the least, usual and largest shorter side."""
    shorter = np.minimum(facts.height, facts.width)[facts.readable]
    if not len(shorter):
        return "No image can be read."
    low, middle, high = int(shorter.min()), int(np.median(shorter)), int(shorter.max())
    return f"Shorter sides are {low} to {high} pixels, the median {middle}."


def as_json(scanned: Scanned, faults: Sequence[Fault], other: Scanned | None) -> dict[str, Any]:
    """Return what was found of a set, every image with a fault by name, as plain values."""
    facts = scanned.facts
    mean, deviation = facts.colours()
    listed: dict[str, Any] = {}
    for fault in faults:
        entries = []
        for place, index in enumerate(fault.images.tolist()):
            entry: dict[str, Any] = {"index": index, "name": printable(scanned.source.name(index))}
            if fault.kind == "unreadable":
                entry["reason"] = printable(facts.reasons[index])
            if fault.like is not None:
                of = other if other is not None and fault.kind in OF_TEST else scanned
                entry["like"] = printable(of.source.name(int(fault.like[place])))
            if fault.cosines is not None:
                entry["cosine"] = round(float(fault.cosines[place]), 4)
            entries.append(entry)
        listed[fault.kind] = entries
    return {
        "data": scanned.spec,
        "images": len(scanned.source),
        "readable": int(facts.readable.sum()),
        "sizes": dict(sizes_of(facts)),
        "formats": dict(facts.formats),
        "grey": int(facts.grey.sum()),
        "mean": mean,
        "std": deviation,
        "ends": dict(zip(("0", "1"), facts.ends(), strict=True)),
        "classes": dict(class_counts(scanned.source)),
        "faults": listed,
    }
