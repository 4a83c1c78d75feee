"""The clean list, `--write`: a file that names the images without faults."""

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path

from beit.data.source import Source
from beit.data.sources import open_source
from beit.data.spec import pixel_query
from beit.diagnosis.faults import label_of
from beit.diagnosis.scan import file_of_image
from beit.files import refuse_existing, write_bytes


def check_writable(path: str, source: Source) -> None:
    """Refuse, before anything is read, a list that exists or of images that are no files."""
    refuse_existing(Path(path), "file for write")
    if file_of_image(source, 0) is None:
        raise ValueError(
            f"write is {path}, but a list names image files and {source.name(0)} is none: an image "
            "in a table or an archive, or a drawn one; leave write out, the JSON of --output lists "
            "the images to remove"
        )


def is_table(path: str) -> bool:
    """Tell whether a clean list is a table, which keeps labels."""
    return path.lower().endswith(".csv")


def as_data(path: str, spec: str) -> str:
    """Return a clean list as `--data` takes it, its pixels read as those of `spec`."""
    options = pixel_query(spec)
    return f"{'' if is_table(path) else '@'}{path}{options and f'?{options}'}"


def write_clean(path: str, source: Source, kept: Sequence[int]) -> list[int]:
    """Write the files of the images `kept`: one per line, or with labels if the name ends in .csv.

    Names that hold a line break are separated by zero bytes, as by `find -print0`. A table is text
    in UTF-8: files with other names, or with a line break in theirs, are left out. Its paths are
    relative if all files are in its folder or below it, so that both can be moved together.

    Returns: the images written
    """
    if not kept:
        raise ValueError(f"{path}: no image is left to list; give fewer kinds in --drop")
    files = {i: os.path.abspath(file) for i in kept if (file := file_of_image(source, i))}
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    if not is_table(path):
        encoded = [os.fsencode(file) for file in files.values()]
        broken = any(b"\n" in file or file.endswith(b"\r") for file in encoded)
        end = b"\0" if broken else b"\n"
        write_bytes(Path(path), end.join(encoded) + end)
        return list(files)
    folder = os.path.abspath(Path(path).parent)
    if os.path.commonpath([folder, *files.values()]) == folder:
        files = {i: os.path.relpath(file, folder) for i, file in files.items()}
    rows = {i: (file, label_of(source, i)) for i, file in files.items() if _fits_table(file)}
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("path", "label"), *rows.values()])
    write_bytes(Path(path), text.getvalue().encode())
    written = open_source(path)
    if [label_of(written, row) for row in range(len(written))] != [
        label for _, label in rows.values()
    ]:
        Path(path).unlink()
        raise ValueError(
            f"{path}: labels of these classes cannot be kept in a table, as a class named NA; "
            "write a list, as in --write clean.txt"
        )
    return list(rows)


def _fits_table(name: str) -> bool:
    """Tell whether a name is text of one line without blanks at its ends."""
    is_text = not any("\ud800" <= letter <= "\udfff" for letter in name)
    return is_text and name.splitlines() == [name.strip()]
