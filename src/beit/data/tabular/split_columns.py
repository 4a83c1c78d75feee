"""A column of a table that names the split of each row: train, val, test."""

import re
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor

from beit.data.folders.listing import say_once
from beit.data.splits import TRAINING, Split, choose_split, split_word
from beit.data.tabular.labels import joined

_USUAL = frozenset("split datasplit fold subset set dataset partition".split())


def rows_of_split(
    columns: Iterable[str],
    read: Callable[[str], list[tuple[Any, list[str] | None]]],
    where: str,
    split: Split | None,
) -> Tensor | None:
    """Find the rows for `split` by a column whose values are all names of splits, train among them.

    `read` returns a column as `joined` of `beit.data.tabular.labels` takes it. Returns the rows'
    numbers; None if `split` is, or if there is no such column: then all rows are taken.

    Raises:
        ValueError: there is no row for this purpose; the message begins with `where`.
    """
    if split is None:
        return None
    for column in columns:
        if re.sub(r"[\W_]", "", column.lower()) not in _USUAL:
            continue
        labels, names, _ = joined(read(column), column)
        if labels is None or names is None:
            continue
        present = [names[number] for number in labels.unique().tolist() if number >= 0]
        words = {split_word(name) for name in present}
        if "" not in words and words & TRAINING:
            chosen = choose_split(present, split, f"{where}, column {column!r},")
            rows = (labels == names.index(chosen)).nonzero().flatten()
            found = f"{len(rows)} of {len(labels)} rows, those of the split {chosen}"
            say_once(f"{where}: {found} in column {column!r}; it has {', '.join(present)}")
            return rows
    return None
