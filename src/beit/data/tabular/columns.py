"""Columns of a table: which holds the images or the names of their files, and which the labels."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from beit.data.tabular.labels import is_text
from beit.wording import nearest, some

# Usual names; case does not count. The first one of images, or of files, is taken.
_IMAGES = "image img picture photo jpg jpeg png webp".split()
_FILES = (
    "file_name filename file file_path filepath path image_path image_file image_name name".split()
)
_LABELS = (
    "label labels fine_label coarse_label class classes class_label class_name class_id "
    "label_name label_id category category_name category_id target species"
).split()
ENCODED, FILE = "encoded images", "names of files"


def content(kind: Any) -> str:
    """Return ENCODED or FILE if a column of a pyarrow type can hold images, else the type."""
    from pyarrow import types

    if types.is_struct(kind):
        usable = {"bytes": (ENCODED, "null"), "path": (FILE, "null")}
        fits = [content(f.type) in usable[f.name] for f in kind if f.name in usable]
        return ENCODED if fits and all(fits) else str(kind)
    if types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind):
        return ENCODED
    return FILE if is_text(kind.value_type if types.is_dictionary(kind) else kind) else str(kind)


def image_column(contents: Mapping[str, str], where: str, wanted: str | None = None) -> str:
    """Choose the column of images, or of the names of their files, by the content of each.

    It is the `wanted` one; else one with a usual name of images; else the only one of encoded
    images; else one with a usual name of files. Raises ValueError if there is none, several are
    possible, or it cannot hold images.
    """
    names = [_existing(contents, where, wanted)] if wanted else []
    names = names or _named(_IMAGES, contents)[:1]
    names = names or [name for name, what in contents.items() if what == ENCODED]
    names = names or [name for name in _named(_FILES, contents) if contents[name] == FILE][:1]
    advice = f"it has {', '.join(contents)}; name the right one with ?image=COLUMN"
    if len(names) != 1:
        what = "several columns hold images"
        what = what if names else "no column of images or names of files, as 'image' or 'file'"
        raise ValueError(f"{where}: {what}; {advice}")
    if contents[names[0]] not in (ENCODED, FILE):
        raise ValueError(
            f"{where}: column {names[0]!r} holds {contents[names[0]]}; expected one image per row, "
            f"as {{bytes, path}}, bytes, or the path of a file; {advice}"
        )
    return names[0]


def label_column(
    columns: Collection[str],
    where: str,
    wanted: str | None = None,
    declared: Iterable[str] = (),
    images: str | None = None,
) -> tuple[str | None, str]:
    """Choose the column of labels: the `wanted` one, `label`, or the only one that can be it.

    That is one with a usual name of labels, or whose class names are `declared`. It is never that
    of the `images`, unless it is wanted. Returns the column and "", or None and a clause that says
    why. Raises ValueError if the `wanted` one is missing.
    """
    if wanted:
        return _existing(columns, where, wanted), ""
    others = [column for column in columns if column != images]
    possible = list(dict.fromkeys([*_named(_LABELS, others), *declared]))
    if len(possible) == 1 or possible[:1] == ["label"]:
        return possible[0], ""
    what, names = ("several columns", possible) if possible else ("no column", others)
    choice = f"; name one: {some([f'?label={name}' for name in names])}" if names else ""
    return None, f"{where} has {what} of labels{choice}"


def _existing(columns: Collection[str], where: str, wanted: str) -> str:
    if wanted in columns:
        return wanted
    hint = nearest(wanted, list(columns))
    raise ValueError(f"{where}: no column {wanted!r}; it has {', '.join(columns)}{hint}")


def _named(known: list[str], columns: Iterable[str]) -> list[str]:
    """Return the columns with known names, in the order of these."""
    found = [column for column in columns if column.lower() in known]
    return sorted(found, key=lambda column: known.index(column.lower()))
