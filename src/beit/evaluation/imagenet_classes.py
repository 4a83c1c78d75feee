"""ImageNet's 1000 classes: WordNet ids, words, and a classifier's logit of each.

The lists of ids and ReaL's labels are timm's: `ImageNetInfo`, and two lists and a JSON file in
`timm/data/_info`, which timm reads itself without a public function.
"""

import json
import re
from collections.abc import Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

WORDNET_ID = re.compile(r"n\d{8}")


def wordnet_ids() -> list[str]:
    """List the WordNet ids of ImageNet's 1000 classes, sorted: the order of published weights."""
    return [wordnet_id for wordnet_id, _ in _imagenet()]


def compared_ids(dataset: str) -> list[str]:
    """List the WordNet ids whose logits are compared on a set, sorted."""
    if dataset in ("imagenet-a", "imagenet-r"):
        return sorted(timm_file(f"{dataset.replace('-', '_')}_synsets.txt").split())
    return wordnet_ids()


def classifier_columns(num_classes: int, class_names: Sequence[str] | None) -> dict[str, int]:
    """Map the WordNet ids that a classifier distinguishes to its logits.

    Class names that are WordNet ids decide. Without names, or with the words of ImageNet's classes
    (as in transformers' files), 1000 classes are in the order of sorted ids.
    """
    if class_names is not None and all(WORDNET_ID.fullmatch(name) for name in class_names):
        return {name: number for number, name in enumerate(class_names)}
    if num_classes == 1000 and (class_names is None or are_imagenet_words(class_names)):
        return {name: number for number, name in enumerate(wordnet_ids())}
    names = "no class names" if class_names is None else f"names such as {class_names[0]}"
    raise ValueError(
        f"the classifier has {num_classes} classes and {names}; ImageNet's sets need its 1000 "
        "classes in the order of sorted WordNet ids, or class names that are WordNet ids "
        "(n01440764); for other classes use --dataset plain"
    )


def columns_of(ids: Sequence[str], columns: dict[str, int]) -> Tensor:
    """Look up the logits of WordNet ids: (C,) int64. ValueError if the classifier lacks one."""
    if missing := [wordnet_id for wordnet_id in ids if wordnet_id not in columns]:
        raise ValueError(
            f"the classifier lacks {len(missing)} of the {len(ids)} classes that this set "
            f"compares, such as {missing[0]}; for a subset of ImageNet's classes use "
            "--dataset plain with folders of that subset"
        )
    return torch.tensor([columns[wordnet_id] for wordnet_id in ids])


def are_imagenet_words(names: Sequence[str]) -> bool:
    """Tell whether 1000 names are the words of ImageNet's classes, in the order of sorted ids.

    "tench, Tinca tinca" and "tench" both match; spellings differ, so most must agree, not all.
    """
    if len(names) != len(_imagenet()):
        return False
    pairs = zip(names, (words for _, words in _imagenet()), strict=True)
    return sum(_first_word(a) == _first_word(b) for a, b in pairs) > 0.8 * len(names)


def timm_file(name: str) -> str:
    """Read a file that timm ships with its ImageNet classes."""
    file = resources.files("timm.data").joinpath("_info", name)
    if not file.is_file():
        raise FileNotFoundError(f"timm has no file {name}; expected timm 1.0.19 or newer")
    return file.read_text("utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file; ValueError names it if it is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} cannot be read as JSON ({error})") from error


def _first_word(words: str) -> str:
    return words.split(",")[0].strip().replace("_", " ").lower()


@cache
def _imagenet() -> list[tuple[str, str]]:
    """Return the sorted WordNet ids and the words for each."""
    from timm.data.imagenet_info import ImageNetInfo  # slow to import

    info = ImageNetInfo("imagenet-1k")
    pairs = sorted(zip(info.label_names(), info.label_descriptions(), strict=True))
    assert len(pairs) == 1000
    return pairs
