"""A column of a table that names the split of each row: train, val, test."""

import re
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor

from beit.data.folders.listing import say_once, warn_once
from beit.data.splits import TRAINING, WORDS, Split, choose_split, split_word
from beit.data.tabular.labels import joined
from beit.wording import amount, nearest_name, some

_USUAL = frozenset("split datasplit fold subset set dataset partition".split())
_LIKELY = 0.7  # of a name of a split in another spelling: tset, but not extra


def rows_of_split(
    columns: Iterable[str],
    read: Callable[[str], list[tuple[Any, list[str] | None]]],
    where: str,
    split: Split | None,
    place: Callable[[int], str],
) -> Tensor | None:
    """Find the rows for `split` by the first column whose values are names of splits, with train.

    `read` returns a column as `joined` of `beit.data.tabular.labels` takes it, and `place` names a
    row in messages. Returns the rows' numbers; None if `split` is, or if there is no such column:
    then all rows are taken, and a line says so of a column that is only named like one of splits.

    Raises:
        ValueError: some values of a column are names of splits and others are not (for None, where
            all rows are taken anyway, this is a warning), or there is no row for this purpose; the
            message begins with `where`
    """
    unused = list[str]()
    for column in columns:
        if re.sub(r"[\W_]", "", column.lower()) not in _USUAL:
            continue
        labels, names, _ = joined(read(column), column)
        if labels is None:
            continue
        numbers = [number for number in labels.unique().tolist() if number >= 0]
        present = {str(number if names is None else names[number]): number for number in numbers}
        words = {name: split_word(name) for name in present}
        odd = [name for name, word in words.items() if not word]
        if 0 < len(odd) < len(present):
            first = {name: int((labels == present[name]).nonzero()[0]) for name in odd}
            fault = _unknown(f"{where}: column {column!r}", first, place)
            if split is not None:
                raise ValueError(fault)
            warn_once(fault)
        elif odd or TRAINING.isdisjoint(words.values()):
            lack = "which are no names of splits" if odd else "but no rows for training"
            unused.append(f"{where}: column {column!r} has {some([*present])}, {lack}")
        elif split is not None:
            chosen = choose_split(present, split, f"{where}, column {column!r},")
            rows: Tensor = (labels == present[chosen]).nonzero().flatten()
            found = f"{len(rows)} of {len(labels)} rows, those of the split {chosen}"
            nameless = int((labels < 0).sum())
            also = f"; left out, without a split: {amount(nameless, 'row')}" if nameless else ""
            say_once(f"{where}: {found} in column {column!r}; it has {', '.join(present)}{also}")
            return rows
    for what in unused if split is not None else ():
        advice = "to hold some out, write train and test into a column 'split'"
        say_once(f"{what}: all rows are taken; {advice}")
    return None


def _unknown(column: str, first: dict[str, int], place: Callable[[int], str]) -> str:
    """Say which values of a column of splits are no names of splits, by the first row of each."""
    near = next((near for name in first if (near := nearest_name(name, WORDS, _LIKELY))), "")
    hint = f"did you mean {near}? " if near else ""
    found = some([f"{name!r} ({place(row)})" for name, row in first.items()], 3)
    what = "which is no name of a split" if len(first) == 1 else "which are no names of splits"
    return (
        f"{column} has {found}, {what} (train, val, test, ...); {hint}expected one in each row, or "
        "nothing to leave the row out; rename the column if it does not name splits"
    )
