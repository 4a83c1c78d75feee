"""Opening the images of a table or of label maps."""

import sys
from collections.abc import Sequence

from beit.data.listed import read_list
from beit.data.sources import Source, limited, open_source

STANDARD_INPUT = ("-", ["-"])  # as data: a list of image files is read there


def open_images(data: str | Sequence[str], limit: int | None) -> Source:
    """Open data as `open_source` does; for "-" read a list of files from standard input."""
    if data in STANDARD_INPUT:
        return limited(read_list(sys.stdin.buffer.read(), "standard input"), limit)
    return open_source(data, limit=limit)
