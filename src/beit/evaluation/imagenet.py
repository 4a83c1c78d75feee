"""ImageNet's validation set and the sets made to test its classifiers, laid out as published.

The logits of a classifier are found by WordNet id. 1000 classes without such names are taken to be
in the order of sorted ids, as in all published weights.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from beit.data.classes import Labelled, check_range, known_labels
from beit.data.imagenet_names import WORDNET_ID, are_imagenet_words, timm_file, wordnet_ids
from beit.data.source import PartSource
from beit.data.sources import open_source
from beit.data.spec import split_part
from beit.evaluation.imagenet_classes import (
    classifier_columns,
    columns_of,
    compared_ids,
    read_json,
)
from beit.evaluation.target_columns import Task, padded, plain_task
from beit.files import user_path
from beit.wording import nearest, some

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
_OBJECTNET_BORDER = 2  # pixels, red; cut off as by its authors (objectnet-template-pytorch)
_OBJECTNET_MAPPINGS = (
    "folder_to_objectnet_label.json",
    "objectnet_to_imagenet_1k.json",
    "pytorch_to_imagenet_2012_id.json",
    "imagenet_to_label_2012_v2",
)


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
            objectnet: the unpacked archive, or its folder images; see `_objectnet_task`
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
        data = Labelled("data", spec, open_source(spec, split="test", limit=limit))
        return plain_task(data, num_classes, class_names, present_only)
    columns = classifier_columns(num_classes, class_names)
    if dataset == "objectnet":
        return _objectnet_task(spec, columns, limit)
    data = Labelled("data", spec, open_source(spec, split="test", limit=limit))
    if dataset == "imagenet-real":
        return _real_task(data, columns, real_labels)
    compared = compared_ids(dataset)
    ids = _class_ids(data, dataset, compared)
    places = {wordnet_id: place for place, wordnet_id in enumerate(compared)}
    labels = torch.tensor([places[wordnet_id] for wordnet_id in ids])[known_labels(data)]
    numbers = f"{data.where} has no class names: its labels are numbers of the sorted WordNet ids"
    notes = [numbers] if data.source.class_names is None else []
    if missing := sorted(set(compared) - set(ids)):
        notes.append(
            f"{len(missing)} of the {len(compared)} class folders are missing ({some(missing)}); "
            f"all {len(compared)} logits are compared"
        )
    return Task(
        data.source, columns_of(compared, columns), labels[:, None], labels, compared, notes
    )


def _class_ids(data: Labelled, dataset: Dataset, compared: Sequence[str]) -> Sequence[str]:
    """Return the WordNet id of each class number of the source."""
    names = data.source.class_names
    if len(compared) == 1000 and (names is None or are_imagenet_words(names)):
        check_range(data, known_labels(data), 1000)
        return compared
    if names is None:
        known_labels(data)
        raise ValueError(
            f"{data.where}: the classes have numbers but no names, and the 200 classes of "
            f"{dataset} have no fixed numbers; give folders named by WordNet ids"
        )
    ids, expected = names, f"one of its {len(compared)} WordNet ids, such as {compared[0]}"
    if dataset == "imagenet-v2":
        expected = "a number from 0 to 999"
        if not WORDNET_ID.fullmatch(names[0]):
            # The number decides, not the order: as text 10 comes before 2.
            ids = [compared[int(n)] if re.fullmatch(r"\d{1,3}", n) else n for n in names]
    known = set(compared)
    for name, wordnet_id in zip(names, ids, strict=True):
        if wordnet_id not in known:
            message = (
                f"{data.where}: {name} is not a class folder of {dataset}; expected {expected}"
            )
            raise ValueError(message + nearest(name, compared))
    return ids


def _real_task(data: Labelled, columns: dict[str, int], labels_file: str | None) -> Task:
    """Take ReaL's labels: any of an image's labels is correct; images without labels are left out.

    Beyer et al., "Are we done with ImageNet?", 2020.
    """
    labels = _read_real_labels(labels_file)
    indices, targets = [], []
    for index in range(len(data.source)):
        name = data.source.name(index)
        match = _VALIDATION.search(Path(name).name)
        if match is None:
            raise ValueError(
                f"{data.where}: {name} is not named like ImageNet's validation images "
                "(ILSVRC2012_val_00000001.JPEG), by which ReaL's labels are found"
            )
        number = int(match[1])
        if not 1 <= number <= len(labels):
            raise ValueError(
                f"{data.where}: {name} has the number {number}; "
                f"{labels_file or 'ReaL'} has labels of 1 to {len(labels)}"
            )
        if labels[number - 1]:
            indices.append(index)
            targets.append(labels[number - 1])
    if not indices:
        raise ValueError(f"{data.where}: none of the {len(data.source)} images has a ReaL label")
    notes = [f"images without a label of ReaL's, left out: {len(data.source) - len(indices)}"]
    part, ids = PartSource(data.source, torch.tensor(indices)), wordnet_ids()
    return Task(part, columns_of(ids, columns), padded(targets), None, ids, notes)


def _read_real_labels(path: str | None) -> list[list[int]]:
    """Read the classes of each validation image, by its number."""
    file = "imagenet_real_labels.json"
    content = json.loads(timm_file(file)) if path is None else read_json(Path(path))
    if not isinstance(content, list) or not all(map(_are_classes, content)):
        raise ValueError(
            f"{path or file} does not hold ReaL's labels; expected a list "
            "with a list of class numbers, 0 to 999, for each validation image"
        )
    return content


def _are_classes(row: Any) -> bool:
    return isinstance(row, list) and all(isinstance(n, int) and 0 <= n < 1000 for n in row)


def _objectnet_task(spec: str, columns: dict[str, int], limit: int | None) -> Task:
    """Open ObjectNet (Barbu et al. 2019), with targets from its authors' mappings.

    An image of a folder that maps to ImageNet classes is correct if the largest of all 1000 logits
    belongs to one of these classes. Other folders (200 of 313) are left out, and a red border of
    two pixels is cut off. The authors' evaluation code does the same
    (abarbu/objectnet-template-pytorch), except that its score divides by the images of all 313
    classes; the paper's figures do not (its issue 16). Others compare only the logits of the
    overlapping classes (wise-ft) and get higher figures.

    The four files of `mappings` were read in wise-ft's copy, whose line numbers begin at 0. Neither
    the images nor the archive itself were available.
    """
    root = user_path(spec)
    if (root / "images").is_dir():
        spec = str(root / "images")
    else:
        root = user_path(split_part(spec)[0]).parent
    label_of, targets_of = _read_objectnet_mappings(root / "mappings")
    data = Labelled("data", spec, open_source(spec, split="test", limit=limit))
    labels, folders = known_labels(data), data.source.class_names or []
    for folder in folders:
        if folder not in label_of:
            message = f"{data.where}: {folder} is not a class folder of ObjectNet"
            raise ValueError(message + nearest(folder, list(label_of)))
    shared = [folder for folder in folders if label_of[folder] in targets_of]
    numbers = torch.tensor([shared.index(name) if name in shared else -1 for name in folders])
    indices = (numbers[labels] >= 0).nonzero().flatten()
    if not len(indices):
        raise ValueError(f"{data.where}: no image of a class that ObjectNet shares with ImageNet")
    note = (
        f"{len(shared)} of {len(folders)} class folders are of classes that ImageNet has; "
        f"images of the others, left out: {len(labels) - len(indices)}"
    )
    labels, names = numbers[labels[indices]], [label_of[folder] for folder in shared]
    targets = padded([targets_of[name] for name in names])[labels]
    columns_of_all = columns_of(wordnet_ids(), columns)
    part = PartSource(data.source, indices)
    return Task(part, columns_of_all, targets, labels, names, [note], _OBJECTNET_BORDER)


def _read_objectnet_mappings(folder: Path) -> tuple[dict[str, str], dict[str, list[int]]]:
    """Return ObjectNet's label of each folder, and the ImageNet classes of each such label.

    The classes are numbers of sorted WordNet ids.
    """
    for file in _OBJECTNET_MAPPINGS:
        if not (folder / file).is_file():
            raise FileNotFoundError(
                f"{folder / file} is missing; expected ObjectNet as unpacked, with the folders "
                "images and mappings side by side"
            )
    label_of, words_of, line_of = (read_json(folder / file) for file in _OBJECTNET_MAPPINGS[:3])
    lines = (folder / _OBJECTNET_MAPPINGS[3]).read_text(encoding="utf-8").splitlines()
    try:
        numbers: dict[str, list[int]] = {}  # by the words for a class
        for number, line in line_of.items():
            numbers.setdefault(lines[line].strip(), []).append(int(number))
        targets_of = {
            label: sorted(n for words in several.split("; ") for n in numbers[words])
            for label, several in words_of.items()
        }
        return dict(label_of), targets_of
    except (KeyError, IndexError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{folder}: its files do not fit together ({type(error).__name__}: {error}); "
            "expected those of ObjectNet 1.0"
        ) from error
