"""Labels from the values of a column: whole numbers as they are, text as names of classes."""

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from beit.data.class_names import spelled

MAX_NUMBER = 1_000_000  # larger numbers are not numbers of classes, but of some catalogue
_WHOLE = re.compile(r"(0|-?[1-9][0-9]*)(\.0*)?")  # not 007, which is a name

Labels = tuple[Tensor | None, list[str] | None, str]


def numbered(values: Any, column: str = "the column of labels") -> Labels:
    """Turn a pyarrow array or chunked array of labels into numbers of classes.

    Whole numbers, also as floats or text, stay as they are, without names; but if one is above
    `MAX_NUMBER` or negative, each distinct number is a class of that name. Text is a class name, in
    Unicode form NFC and without spaces around it; classes are numbered in the order of their names.
    Booleans are the classes False and True. Null, NaN, empty text and -1 are unknown.

    Returns:
        labels (n,) int64, -1 where unknown; class names or None; and "". For other types, and if
        no label is known, None twice, and a clause about `column` that says why.
    """
    import pyarrow
    from pyarrow import types

    if isinstance(values, pyarrow.ChunkedArray):
        values = values.combine_chunks()
    if types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    usable = (types.is_integer, types.is_floating, types.is_boolean, types.is_null, is_text)
    if not any(of_kind(values.type) for of_kind in usable):
        expected = "expected one number or name for each image"
        return None, None, f"{column} holds {values.type}; {expected}"
    encoded = values.dictionary_encode()  # many rows, few distinct values
    distinct = list(map(_plain, encoded.dictionary.to_pylist()))
    if all(v is None or (isinstance(v, str) and _WHOLE.fullmatch(v)) for v in distinct):
        distinct = [None if v is None else int(v.split(".")[0]) for v in distinct]
    distinct = [None if v == -1 else v for v in distinct]
    present = sorted({v for v in distinct if v is not None})
    if not present:
        return None, None, f"{column} is empty"
    if fractions := [v for v in present if isinstance(v, float)]:
        return None, None, f"{column} holds {fractions[0]}; expected whole numbers or names"
    if isinstance(present[0], bool):
        present = [False, True]
    as_is = type(present[0]) is int and present[0] >= 0 and present[-1] <= MAX_NUMBER
    number = {v: v if as_is else place for place, v in enumerate(present)}
    table = torch.tensor([*(-1 if v is None else number[v] for v in distinct), -1])  # null: last
    indices = encoded.indices.fill_null(len(distinct)).to_numpy(zero_copy_only=False)
    names = None if as_is else list(map(str, present))
    return table[torch.tensor(indices)], names, ""


def _plain(value: Any) -> Any:
    """Return a label in its plain form: composed text, ints for whole floats, None if unknown."""
    if isinstance(value, str):
        return spelled(value) or None
    if isinstance(value, float):
        return None if value != value else int(value) if value.is_integer() else value
    return value


def is_text(kind: Any) -> bool:
    """Tell whether a pyarrow type is one of text."""
    from pyarrow import types

    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def joined(parts: Sequence[tuple[Any, list[str] | None]], column: str) -> Labels:
    """Join the labels of several files: chunked arrays, and what their numbers are named, if known.

    Files that number their classes differently are matched by name; a file without names has those
    of the others. Returns what `numbered` does.
    """
    import pyarrow
    from pyarrow import types

    kinds = list(dict.fromkeys(v.type for v, _ in parts if not types.is_null(v.type)))
    declared = list(dict.fromkeys(tuple(names) for _, names in parts if names))
    if not declared or not all(map(types.is_integer, kinds)):
        kind = kinds[0] if len(kinds) == 1 else pyarrow.string()
        try:
            chunks = [chunk for values, _ in parts for chunk in values.cast(kind).chunks]
        except pyarrow.ArrowException:
            kinds_found = " and ".join(map(str, kinds))
            return None, None, f"{column} holds {kinds_found} in different files"
        return numbered(pyarrow.chunked_array(chunks, kind), column)
    union = dict.fromkeys(name for names in declared for name in names)
    numbers = {name: number for number, name in enumerate(union)}
    labels = []
    for values, names in parts:
        own = names or (declared[0] if len(declared) == 1 else ())
        found = torch.tensor(values.cast(pyarrow.int64()).fill_null(-1).to_numpy())
        if len(found) and int(found.max()) >= len(own):
            return None, None, f"{column} has the number {int(found.max())}, which has no name"
        table = torch.tensor([*(numbers[name] for name in own), -1])
        labels.append(table[found.clamp(min=-1)])
    known = torch.cat(labels)
    if not bool((known >= 0).any()):
        return None, None, f"{column} is empty"
    return known, list(union), ""
