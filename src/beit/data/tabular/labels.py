"""Labels from the values of a column: whole numbers as they are, text as names of classes."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from beit.data.class_names import spelled

MAX_NUMBER = 1_000_000  # larger numbers are not numbers of classes, but of some catalogue
_WHOLE = re.compile(r"(0|-?[1-9][0-9]*)(\.0*|,0)?")  # not 007, which is a name
_FRACTION = re.compile(r"[-+]?([0-9]+[.,][0-9]*|[.,][0-9]+|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?")
_UNKNOWN = frozenset(["", "NA", "N/A", "nan", "NaN", "null", "NULL"])  # as R and pandas write

Labels = tuple[Tensor | None, list[str] | None, str]


def joined(parts: Sequence[tuple[Any, Sequence[str] | None]], column: str) -> Labels:
    """Turn the labels of one or several files into numbers of classes.

    Whole numbers, also as floats or text, stay as they are, without names; but if one is above
    `MAX_NUMBER` or negative, each distinct number is a class of that name. Text is a class name, in
    Unicode form NFC and without spaces around it; classes are numbered in the order of their names.
    Booleans are the classes False and True. Null, NaN, NA, empty text and -1 are unknown.

    Files that number their classes differently are matched by name, also with names in text; a file
    without names has those of the others.

    Args:
        parts: of each file a pyarrow array or chunked array, and what its numbers are named
        column: in errors

    Returns:
        labels (n,) int64, -1 where unknown; class names or None; and "". For other types, for
        fractions, and if no label is known, None twice, and a clause about `column` that says why.
    """
    declared = list(dict.fromkeys(tuple(names) for _, names in parts if names))
    only = declared[0] if len(declared) == 1 else ()
    places, rows = dict[tuple[bool, Any], int](), list[Tensor]()  # True is not 1
    try:
        for values, names in parts:
            encoded = _encoded(values, column)  # many rows, few distinct values
            distinct = list(map(plain, encoded.dictionary.to_pylist()))
            if declared:
                own = names or only
                distinct = [_named(v, own, column) for v in _whole(distinct, own)]
            keys = [(isinstance(value, bool), value) for value in (*distinct, None)]  # null: last
            table = torch.tensor([places.setdefault(key, len(places)) for key in keys])
            rows.append(table.index_select(0, _indices(encoded)))
        present = [value for _, value in places]
        if declared:
            union = dict.fromkeys(name for own in declared for name in own)
            class_names = [*union, *sorted({*present} - {*union, None})]
            known = {name: number for number, name in enumerate(class_names)}
        else:
            present = [None if str(v) in ("-1", "-1.0") else v for v in _whole(present)]
            known, class_names = _known(present, column)
        if not known or present.count(None) == len(present):
            raise ValueError(f"{column} is empty")
    except ValueError as error:
        return None, None, str(error)
    numbers = torch.tensor([-1 if value is None else known[value] for value in present])
    return numbers.index_select(0, torch.cat(rows)), class_names or None, ""


def _encoded(values: Any, column: str) -> Any:
    """Return a column as indices of its distinct values. Raises ValueError for other types."""
    import pyarrow
    from pyarrow import types

    if isinstance(values, pyarrow.ChunkedArray):
        values = values.unify_dictionaries().combine_chunks()
    encoded = types.is_dictionary(values.type)
    kind = values.type.value_type if encoded else values.type
    usable = (types.is_integer, types.is_floating, types.is_boolean, types.is_null, is_text)
    if not any(of_kind(kind) for of_kind in usable):
        raise ValueError(f"{column} holds {kind}; expected one number or name")
    if encoded and _all_occur(values):
        return values  # millions of rows, not decoded to be encoded again
    return (values.cast(kind) if encoded else values).dictionary_encode()


def _all_occur(encoded: Any) -> bool:
    count = len(encoded.dictionary)
    return bool(_indices(encoded).bincount(minlength=count)[:count].all())


def _indices(encoded: Any) -> Tensor:
    """Return the indices of a pyarrow dictionary array; null has that behind the last value."""
    if encoded.indices.null_count == 0:  # as a rule; without an import of pandas, which takes 0.8 s
        return torch.from_numpy(np.from_dlpack(encoded.indices).astype(np.int32))
    indices = encoded.indices.to_numpy(zero_copy_only=False)  # floats, NaN for null
    last = len(encoded.dictionary)
    return torch.from_numpy(np.nan_to_num(indices, nan=last).astype(np.int32))


def plain(value: Any) -> Any:
    """Return a label in its plain form: composed text, ints for whole floats, None if unknown."""
    if isinstance(value, str):
        text = spelled(value)
        return None if text in _UNKNOWN else text
    if isinstance(value, float) and value != value:  # NaN
        return None
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _whole(values: list[Any], names: Sequence[str] = ()) -> list[Any]:
    """Return text as whole numbers if all of it is; not if it is among the `names` of classes."""
    text = [value for value in values if isinstance(value, str)]
    if not all(map(_WHOLE.fullmatch, text)) or (names and {*text} <= {*names}):
        return values
    return [int(re.split("[.,]", v)[0]) if isinstance(v, str) else v for v in values]


def _named(value: Any, names: Sequence[str], column: str) -> str | None:
    """Return the name of a class by its number or name; None if unknown."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool | float):
        raise ValueError(f"{column} holds {value}; expected whole numbers or names")
    if value >= len(names):
        raise ValueError(f"{column} has the number {value}, which has no name")
    return names[value] if value >= 0 else None


def _known(values: Iterable[Any], column: str) -> tuple[dict[Any, int], list[str]]:
    """Number distinct values; with the names of the classes, none if they are numbers."""
    present = [value for value in values if value is not None]
    text = [value for value in present if isinstance(value, str)]
    words = [v for v in present if isinstance(v, bool) or str(v).lower() in ("true", "false")]
    numbers = [v for v in present if not isinstance(v, bool) and _WHOLE.fullmatch(str(v))]
    fractions = [v for v in present if isinstance(v, float)]
    of_text = [v for v in text if _FRACTION.fullmatch(v) and not _WHOLE.fullmatch(v)]
    if fractions or (of_text and len(of_text) + len(numbers) == len(present)):
        found = (fractions or of_text)[0]
        raise ValueError(f"{column} holds {found}; expected whole numbers or names")
    only = len(words) + len(numbers) == len(present) or any(isinstance(v, bool) for v in words)
    if words and numbers and only:
        raise ValueError(f"{column} holds {words[0]} and {numbers[0]}; expected one kind of labels")
    if text and all(value.startswith("[") and value.endswith("]") for value in text):
        raise ValueError(f"{column} holds lists, {text[0]}; expected one number or name")
    if present and all(isinstance(value, bool) for value in present):
        return {False: 0, True: 1}, ["False", "True"]
    if not text and not words and present and 0 <= min(present) and max(present) <= MAX_NUMBER:
        return {value: value for value in present}, []
    written = {value: str(*_whole([str(value)])) for value in present}  # 2 for 2.0
    order = sorted({*written.values()}, key=None if text or words else int)
    number = {name: place for place, name in enumerate(order)}
    return {value: number[name] for value, name in written.items()}, order


def is_text(kind: Any) -> bool:
    """Tell whether a pyarrow type is one of text."""
    from pyarrow import types

    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))
