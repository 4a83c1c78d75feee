"""Splits of a data set by their usual names: train, val, test."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Literal

# What a set is opened for: training, or validation and testing.
Split = Literal["train", "test"]

_NAMES: dict[Split, tuple[str, ...]] = {
    "train": ("train", "training"),
    "test": ("val", "valid", "validation", "dev", "test", "testing", "eval"),
}


def split_word(name: str) -> str:
    """Return the word of a split that a folder or file is named by: train for Train and train2017.

    Empty if the name is not that of a split.
    """
    word = name.lower().rstrip("0123456789_-")
    return word if any(word in words for words in _NAMES.values()) else ""


def is_split(name: str) -> bool:
    """Tell whether a folder or file has the name of a split; case and numbers do not count."""
    return bool(split_word(name))


def choose_split(names: Iterable[str], split: Split, where: str) -> str:
    """Choose the split of a data set for training, or for validation and testing.

    Of several for the latter, validation comes before test.

    Raises:
        ValueError: there is none, or two have the same word; the message begins with `where`.
    """
    all_names, by_word = sorted(names), defaultdict[str, list[str]](list)
    for name in all_names:
        by_word[split_word(name)].append(name)
    fitting = next((by_word[word] for word in _NAMES[split] if word in by_word), [])
    if len(fitting) == 1:
        return fitting[0]
    purpose = "training" if split == "train" else "validation or testing"
    has = f"{where} has the splits {', '.join(all_names)}"
    if fitting:
        raise ValueError(f"{has}, several of them for {purpose}; name one by its path")
    raise ValueError(
        f"{has}, none of them for {purpose}; expected one named {', '.join(_NAMES[split])}, or the "
        "path of the split itself"
    )
