"""ImageNet's validation set and the sets made to test its classifiers, laid out as published.

The logits of a classifier are found by WordNet id. 1000 classes without such names are taken to be
in the order of sorted ids, as in all published weights.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from beit.data.classes import Labelled, check_range, known_labels
from beit.data.sources import PartSource, Source, open_source
from beit.evaluation.imagenet_classes import (
    WORDNET_ID,
    are_imagenet_words,
    classifier_columns,
    columns_of,
    compared_ids,
    read_json,
    timm_file,
    wordnet_ids,
)
from beit.evaluation.objectnet import objectnet_task
from beit.evaluation.target_columns import Task, nearest, padded, plain_task

Dataset = Literal[
    "plain",
    "imagenet",
    "imagenet-a",
    "imagenet-r",
    "imagenet-sketch",
    "imagenet-v2",
    "imagenet-real",
    "objectnet",
]

_VALIDATION = re.compile(r"ILSVRC2012_val_(\d{8})")


def open_task(
    spec: str,
    dataset: Dataset,
    num_classes: int,
    class_names: Sequence[str] | None,
    *,
    limit: int | None = None,
    present_only: bool = False,
    real_labels: str | None = None,
) -> Task:
    """Open labelled images and find which logits of a classifier are compared on them.

    Args:
        spec: the images, as for `open_source`
        dataset: how they are laid out:
            plain: any labelled source, see `plain_task`;
            imagenet, imagenet-sketch: a folder for each of the 1000 WordNet ids;
            imagenet-a, imagenet-r: for each of 200 ids, and only their logits are compared;
            imagenet-v2: folders named 0 to 999, numbers of the sorted ids (or the ids themselves);
            imagenet-real: the validation set, by the names of its files, in folders or not;
            objectnet: the unpacked archive, or its folder images; see `objectnet_task`
        num_classes: of the classifier
        class_names: of the classifier, if known
        limit: use this many images, a fixed random subset
        present_only: for plain data, compare only the logits of classes that have images
        real_labels: a JSON file like real.json of google-research/reassessed-imagenet, in place of
            timm's copy

    Raises:
        ValueError: the classes of data and classifier cannot be matched, or a folder has a name
            that is not in the list. FileNotFoundError: data or ObjectNet's mappings are missing.
    """
    if dataset == "plain":
        source = open_source(spec, limit=limit)
        return plain_task(spec, source, num_classes, class_names, present_only)
    columns = classifier_columns(num_classes, class_names)
    if dataset == "objectnet":
        return objectnet_task(spec, columns, limit)
    source = open_source(spec, limit=limit)
    if dataset == "imagenet-real":
        return _real_task(spec, source, columns, real_labels)
    compared = compared_ids(dataset)
    ids = _class_ids(spec, source, dataset, compared)
    labels = known_labels(Labelled("data", spec, source))
    places = {wordnet_id: place for place, wordnet_id in enumerate(compared)}
    labels = torch.tensor([places[wordnet_id] for wordnet_id in ids])[labels]
    missing = sorted(set(compared) - set(ids))
    notes = []
    if missing:
        some = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        notes.append(
            f"{len(missing)} of the {len(compared)} class folders are missing ({some}); "
            f"all {len(compared)} logits are compared"
        )
    return Task(source, columns_of(compared, columns), labels[:, None], labels, compared, notes)


def _class_ids(
    spec: str, source: Source, dataset: Dataset, compared: Sequence[str]
) -> Sequence[str]:
    """Return the WordNet id of each class number of the source."""
    names = source.class_names
    if len(compared) == 1000 and (names is None or are_imagenet_words(names)):
        data = Labelled("data", spec, source)
        check_range(data, known_labels(data), 1000)
        return compared
    if names is None:
        known_labels(Labelled("data", spec, source))
        raise ValueError(
            f"data {spec}: the classes have numbers but no names, and the 200 classes of {dataset} "
            "have no fixed numbers; give folders named by WordNet ids"
        )
    ids = list(names)
    expected = f"one of its {len(compared)} WordNet ids, such as {compared[0]}"
    if dataset == "imagenet-v2":
        expected = "a number from 0 to 999"
        if not WORDNET_ID.fullmatch(names[0]):
            # The number decides, not the order: as text 10 comes before 2.
            ids = [
                compared[int(name)] if re.fullmatch(r"\d{1,3}", name) else name for name in names
            ]
    known = set(compared)
    for name, wordnet_id in zip(names, ids, strict=True):
        if wordnet_id not in known:
            raise ValueError(
                f"data {spec}: {name} is not a class folder of {dataset}; expected {expected}"
                + nearest(name, compared)
            )
    return ids


def _real_task(spec: str, source: Source, columns: dict[str, int], labels_file: str | None) -> Task:
    """Take ReaL's labels: any of an image's labels is correct; images without labels are left out.

    Beyer et al., "Are we done with ImageNet?", 2020.
    """
    labels = _read_real_labels(labels_file)
    indices, targets = [], []
    for index in range(len(source)):
        name = source.name(index)
        match = _VALIDATION.search(Path(name).name)
        if match is None:
            raise ValueError(
                f"data {spec}: {name} is not named like ImageNet's validation images "
                "(ILSVRC2012_val_00000001.JPEG), by which ReaL's labels are found"
            )
        number = int(match[1])
        if not 1 <= number <= len(labels):
            raise ValueError(
                f"data {spec}: {name} has the number {number}; "
                f"{labels_file or 'ReaL'} has labels of 1 to {len(labels)}"
            )
        if labels[number - 1]:
            indices.append(index)
            targets.append(labels[number - 1])
    if not indices:
        raise ValueError(f"data {spec}: none of the {len(source)} images has a ReaL label")
    notes = [f"images without a label of ReaL's, left out: {len(source) - len(indices)}"]
    part = PartSource(source, torch.tensor(indices))
    ids = wordnet_ids()
    return Task(part, columns_of(ids, columns), padded(targets), None, ids, notes)


def _read_real_labels(path: str | None) -> list[list[int]]:
    """Read the classes of each validation image, by its number."""
    if path is None:
        content = json.loads(timm_file("imagenet_real_labels.json"))
    else:
        content = read_json(Path(path))
    if not isinstance(content, list) or not all(map(_are_classes, content)):
        raise ValueError(
            f"{path or 'imagenet_real_labels.json'} does not hold ReaL's labels; expected a list "
            "with a list of class numbers, 0 to 999, for each validation image"
        )
    return content


def _are_classes(row: Any) -> bool:
    return isinstance(row, list) and all(isinstance(n, int) and 0 <= n < 1000 for n in row)
