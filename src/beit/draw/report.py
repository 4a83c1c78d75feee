"""The report of a run: one self-contained HTML file."""

import base64
import os
import re
import struct
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.parse import quote

import jinja2
from markupsafe import Markup, escape

from beit.draw.numbers import aligned_numbers
from beit.draw.page import script_hash
from beit.files import write_text

LEAD = 3  # pictures that come first of all
Cell = str | int | float | None


@dataclass(frozen=True)
class Table:
    """Rows of numbers or text; columns of numbers are right-aligned, None is a dash."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    folded: bool = False  # under its caption until that is clicked

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                got = f"{len(row)} cells for {len(self.columns)} columns: {list(row)}"
                raise ValueError(f"table {self.caption!r}: a row has {got}")


@dataclass(frozen=True)
class Picture:
    """One image; `alt` describes it in words."""

    caption: str
    alt: str
    data: bytes
    media_type: Literal["image/png", "image/svg+xml"]


@dataclass(frozen=True)
class Gallery:
    """Pictures of one kind under one caption, side by side where the screen has room."""

    caption: str
    pictures: Sequence[Picture]
    folded: bool = False  # under its caption until that is clicked


Item = Table | Picture | Gallery


@dataclass(frozen=True)
class Section:
    """A section; text has paragraphs after blank lines, commands after four spaces, `code`."""

    title: str
    text: str = ""
    items: Sequence[Item] = field(default_factory=list)


class Figure(NamedTuple):
    """A main result, and what to compare it with."""

    value: str
    beside: str = ""  # such as "chance 10.0%"


class Link(NamedTuple):
    """Words with the address of a page relative to the report."""

    words: str
    address: str


def link_to(source: str, page: Path) -> str | Link:
    """Link from the report `page` to that of the run `source`; its words alone without a report.

    A path that does not exist here is looked for in each folder above the report, as a run started
    elsewhere names it.
    """
    for folder in (Path(), *page.absolute().parents):
        other = folder / source / "report.html"
        if source and other.is_file() and other.absolute() != page.absolute():
            relative = Path(os.path.relpath(other.absolute(), page.absolute().parent))
            return Link(source, quote(relative.as_posix()))
    return source


def with_lead(sections: Sequence[Section]) -> tuple[Gallery | None, list[Section]]:
    """Take the first `LEAD` pictures, with the caption, out of the first gallery, if it has more.

    Returns: those pictures, and the sections with the rest
    """
    first, *others = sections
    gallery, *items = first.items
    if not isinstance(gallery, Gallery) or len(gallery.pictures) <= LEAD:
        return None, [first, *others]
    lead, rest = replace(gallery, pictures=gallery.pictures[:LEAD]), gallery.pictures[LEAD:]
    return lead, [replace(first, items=[Gallery("", rest), *items]), *others]


def write_report(
    path: str | os.PathLike[str],
    title: str,
    sections: Sequence[Section],
    facts: Mapping[str, str | Link],
    *,
    summary: str = "",
    lead: Gallery | None = None,
    figures: Mapping[str, str | Figure] | None = None,
) -> Path:
    """Write the page, replacing an older one atomically.

    Args:
        facts: what was run: command, data, seed, machine; at the end of the page
        summary: text like a section's
        lead: a few pictures, first of all
        figures: the main results, shown large
    """
    script = resources.files("beit.draw").joinpath("report.js").read_text("utf-8")
    shown = {
        name: Figure(value) if isinstance(value, str) else value
        for name, value in (figures or {}).items()
    }
    page = _template().render(
        title=title,
        sections=sections,
        facts=facts,
        figures=shown,
        summary=summary,
        lead=lead,
        script=Markup(script),
        script_hash=script_hash(script),
    )
    path = Path(path)
    write_text(path, page)
    return path


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("beit", "draw"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        paragraphs=_paragraphs, unbroken=_unbroken, embedded=embedded, columns=_columns
    )
    environment.tests.update(
        table=lambda item: isinstance(item, Table),
        gallery=lambda item: isinstance(item, Gallery),
        link=lambda item: isinstance(item, Link),
    )
    return environment.get_template("report.html.jinja")


def _paragraphs(text: str) -> Markup:
    blocks = []
    for block in re.split(r"\n\s*\n", text.strip("\n")):
        lines = block.split("\n")
        if block.strip() and all(line.startswith("    ") for line in lines):
            code = "\n".join(line[4:] for line in lines)
            blocks.append(Markup("<pre><code>{}</code></pre>").format(_unbroken(code)))
        elif block.strip():
            words = re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(" ".join(block.split()))))
            blocks.append(Markup("<p>{}</p>").format(Markup(words)))
    return Markup("\n").join(blocks)


def _unbroken(text: str) -> Markup:
    """Keep names such as CIFAR-10, and options such as --data.train, on one line."""
    name = r"(\b\w{1,12}-\d{1,4}\b|(?<![\w-])--\w[\w.-]*)"
    return Markup(re.sub(name, r'<span class="unbroken">\1</span>', str(escape(text))))


def embedded(picture: Picture) -> Markup:
    """Embed an SVG as elements, so that it takes the page's colours, and a PNG as data."""
    if picture.media_type == "image/svg+xml":
        drawing = Markup(_plain_svg(picture.data))  # checked: shapes and text only
        frame = Markup('<div class="drawing picture" role="img" aria-label="{}">{}</div>')
        return frame.format(picture.alt, drawing)
    if picture.data[:8] != b"\x89PNG\r\n\x1a\n":
        raise ValueError(f"picture {picture.alt!r} is not the PNG that its media type says")
    # The size is at a fixed place of a PNG; with it the page does not jump while it loads.
    size = struct.unpack(">II", picture.data[16:24])
    image = Markup('<img class="picture" width="{}" height="{}" alt="{}" src="{}">')
    data = base64.b64encode(picture.data).decode()
    return image.format(*size, picture.alt, f"{_PNG}{data}")


_PNG = "data:image/png;base64,"
_DRAWING = {"svg", "g", "defs", "path", "use", "text", "image"}


def _plain_svg(data: bytes) -> str:
    """Return the SVG's text after checking that it has no script, outer link or entity."""
    source = data.decode()
    if "<!" in source or "<?" in source:
        raise ValueError("an SVG in a report has no declaration, comment or entity")
    for element in ElementTree.fromstring(source).iter():
        tag = element.tag.rpartition("}")[2]
        if tag not in _DRAWING:
            raise ValueError(f"an SVG in a report only draws: <{tag}> is not allowed")
        for attribute, value in element.attrib.items():
            name = attribute.lower()
            inner = value.startswith(_PNG if tag == "image" else "#")
            link = "href" in name and not inner
            outer = "url(" in value.lower() and name != "data-hover"  # words that a script reads
            if link or name.startswith("on") or outer:
                raise ValueError(f"an SVG in a report only draws: {attribute}= is not allowed")
    return source


def _columns(table: Table) -> list[tuple[list[str], bool]]:
    """Return the text of each column, and whether all of it is numbers (for right alignment)."""
    columns = []
    for index in range(len(table.columns)):
        values = [row[index] for row in table.rows]
        written = iter(aligned_numbers([value for value in values if isinstance(value, float)]))
        words = []
        for value in values:
            if isinstance(value, float):
                words.append(next(written))
            else:
                words.append("–" if value is None else str(value))
        present = [word for word in words if word != "–"]
        columns.append((words, bool(present) and all(map(_NUMBER.fullmatch, present))))
    return columns


_NUMBER = re.compile(r"[-+±−]?\d[\d.,]*(e-?\d+)?( ?± ?[\d.]+)?( ?(%|[kMGT]|ms|s|min|h))?")
