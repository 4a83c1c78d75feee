"""The classes of ImageNet's sets, and a classifier's logit of each."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from beit.data.imagenet_names import WORDNET_ID, are_imagenet_words, timm_file, wordnet_ids


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


def read_json(path: Path) -> Any:
    """Read a JSON file; ValueError names it if it is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as JSON ({error})") from error
