"""codes.json: every code with its statistics and patches, a line each, and the images' names."""

import json
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from beit.codebook.contents import Code, Codebook, Patch

_FIELDS = ("uses", "images", "closeness", "purity", "label", "label_entropy", "position_entropy")


def codes_json(about: Mapping[str, Any], book: Codebook) -> str:
    """Return the text of codes.json; patches refer to images by number."""
    N = prod(book.grid)
    codes = (_line(_record(book.code(index))) for index in range(len(book)))
    numbers = (book.places(range(len(book))) // N).unique().tolist()
    images = (
        f'"{number}": {_line({"name": book.source.name(number), "label": book.label(number)})}'
        for number in numbers
    )
    return (
        f'{{"about": {_line(about)},\n"patch": ["image", "position", "closeness"],\n'
        '"codes": [\n' + ",\n".join(codes) + '\n],\n"images": {\n' + ",\n".join(images) + "\n}}\n"
    )


def _record(code: Code) -> dict[str, Any]:
    return {
        "code": code.index,
        **{name: getattr(code, name) for name in _FIELDS},
        "labels": code.labels,
        "nearest": code.nearest,
        "patches": {"closest": _rows(code.closest), "random": _rows(code.random)},
    }


def _rows(patches: Sequence[Patch]) -> list[tuple[int, int, float | None]]:
    return [(patch.image, patch.position, patch.closeness) for patch in patches]


def _line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
