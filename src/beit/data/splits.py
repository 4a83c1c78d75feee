"""Splits of a data set by their usual names: train, val, test."""

from collections.abc import Iterable
from typing import Literal

# What a set is opened for: training, or validation and testing.
Split = Literal["train", "test"]

_NAMES: dict[Split, tuple[str, ...]] = {
    "train": ("train", "training"),
    "test": ("val", "valid", "validation", "dev", "test", "testing", "eval"),
}


def is_split(name: str) -> bool:
    """Tell whether a folder or file has the name of a split; case does not count."""
    return any(name.lower() in names for names in _NAMES.values())


def choose_split(names: Iterable[str], split: Split, where: str) -> str:
    """Choose the split of a data set for training, or for validation and testing.

    Of several for the latter, validation comes before test.

    Raises:
        ValueError: there is none; the message begins with `where`.
    """
    by_name = {name.lower(): name for name in names}
    for name in _NAMES[split]:
        if name in by_name:
            return by_name[name]
    purpose = "training" if split == "train" else "validation or testing"
    raise ValueError(
        f"{where} has the splits {', '.join(sorted(by_name.values()))}, none of them for "
        f"{purpose}; expected one named {', '.join(_NAMES[split])}, or the path of the split itself"
    )
