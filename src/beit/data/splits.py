"""Splits of a data set by their usual names: train, val, test."""

import re
from collections import defaultdict
from collections.abc import Iterable
from typing import Literal

# What a set is opened for: training, or validation and testing.
Split = Literal["train", "test"]

_NAMES: dict[Split, tuple[str, ...]] = {
    "train": ("train", "training"),
    "test": ("val", "valid", "validation", "dev", "test", "testing", "eval"),
}
_BY_NNUNET = {"imagestr": "train", "imagests": "test"}
TRAINING = frozenset(_NAMES["train"])
WORDS = [word for words in _NAMES.values() for word in words]
_WORD = "|".join(WORDS)
_IMAGES = "images?|imgs?|data"
_WHOLE = re.compile(
    rf"(?:(?:seg|{_IMAGES})[\W_]*)?({_WORD})(?:[\W_]*(?:set|{_IMAGES}|dataset))?[\d\W_]*"
)
_WITHIN = re.compile(rf"(?<![^\W\d_])({_WORD})(?:set|data)?(?![^\W\d_])")


def split_word(name: str) -> str:
    """Return the word of a split that a folder or file is named by: train for Train and train2017.

    The name may have a word for images or sets besides: trainset, test_images. Empty if the name is
    not that of a split.
    """
    match = _WHOLE.fullmatch(name.lower())
    return match[1] if match else _BY_NNUNET.get(name.lower(), "")


def is_split(name: str) -> bool:
    """Tell whether a folder or file has the name of a split; case and numbers do not count."""
    return bool(split_word(name))


def split_words(names: Iterable[str]) -> dict[str, str]:
    """Return the word of each split among the names of folders that lie side by side.

    A word within another name counts if there are splits for training and for something else:
    fruit_train is a split beside fruit_test, bullet_train beside car is none.
    """
    names = [*names]
    within = {name: word for name in names if (word := _word_within(name))}
    if are_splits(within.values()):
        return within
    return {name: word for name in names if (word := split_word(name))}


def are_splits(words: Iterable[str]) -> bool:
    """Tell whether there is a split for training and another one among the words of splits."""
    different = {*words}
    return len(different) > 1 and not TRAINING.isdisjoint(different)


def _word_within(name: str) -> str:
    found = {*_WITHIN.findall(name.lower())}
    return split_word(name) or (found.pop() if len(found) == 1 else "")


def choose_split(names: Iterable[str], split: Split, where: str) -> str:
    """Choose the split of a data set for training, or for validation and testing.

    Of several for the latter, validation comes before test.

    Raises:
        ValueError: there is none, or two have the same word; the message begins with `where`.
    """
    all_names, by_word = sorted(names), defaultdict[str, list[str]](list)
    for name in all_names:
        by_word[_word_within(name)].append(name)
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
