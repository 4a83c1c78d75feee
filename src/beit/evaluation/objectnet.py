"""ObjectNet (Barbu et al. 2019), with its authors' mappings from folders to ImageNet classes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import torch

from beit.data.classes import Labelled, known_labels
from beit.data.sources import PartSource, open_source
from beit.evaluation.imagenet_classes import columns_of, read_json, wordnet_ids
from beit.evaluation.target_columns import Task, nearest, padded

_BORDER = 2  # pixels, red; cut off as by its authors (objectnet-template-pytorch)
_MAPPINGS = (
    "folder_to_objectnet_label.json",
    "objectnet_to_imagenet_1k.json",
    "pytorch_to_imagenet_2012_id.json",
    "imagenet_to_label_2012_v2",
)


class Mappings(NamedTuple):
    """The authors' mappings.

    Attributes:
        label_of: ObjectNet's label of each folder
        targets_of: classes of ImageNet, numbers of sorted WordNet ids, by ObjectNet's label
    """

    label_of: dict[str, str]
    targets_of: dict[str, list[int]]


def objectnet_task(spec: str, columns: dict[str, int], limit: int | None) -> Task:
    """Open ObjectNet, with targets from its authors' mappings.

    An image of a folder that maps to ImageNet classes is correct if the largest of all 1000 logits
    belongs to one of these classes. Other folders (200 of 313) are left out, and a red border of
    two pixels is cut off. The authors' evaluation code does the same
    (abarbu/objectnet-template-pytorch), except that its score divides by the images of all 313
    classes; the paper's figures do not (its issue 16). Others compare only the logits of the
    overlapping classes (wise-ft) and get higher figures.

    The four files of `mappings` were read in wise-ft's copy, whose line numbers begin at 0. Neither
    the images nor the archive itself were available.
    """
    root = Path(spec).expanduser()
    if (root / "images").is_dir():
        spec, mappings_folder = str(root / "images"), root / "mappings"
    else:
        whole = Path(re.sub(r"\[\d*%?:\d*%?\]$", "", spec)).expanduser()
        mappings_folder = whole.parent / "mappings"
    label_of, targets_of = read_mappings(mappings_folder)
    source = open_source(spec, limit=limit)
    labels, folders = known_labels(Labelled("data", spec, source)), source.class_names or []
    for folder in folders:
        if folder not in label_of:
            raise ValueError(
                f"data {spec}: {folder} is not a class folder of ObjectNet"
                + nearest(folder, list(label_of))
            )
    shared = [folder for folder in folders if label_of[folder] in targets_of]
    number_of = {folder: number for number, folder in enumerate(shared)}
    shared_labels = torch.tensor([number_of.get(folder, -1) for folder in folders])[labels]
    indices = (shared_labels >= 0).nonzero().flatten()
    if not len(indices):
        raise ValueError(f"data {spec}: no image of a class that ObjectNet shares with ImageNet")
    task_labels = shared_labels[indices]
    names = [label_of[folder] for folder in shared]
    note = (
        f"{len(shared)} of {len(folders)} class folders are of classes that ImageNet has; "
        f"images of the others, left out: {len(labels) - len(indices)}"
    )
    return Task(
        PartSource(source, indices),
        columns_of(wordnet_ids(), columns),
        padded([targets_of[name] for name in names])[task_labels],
        task_labels,
        names,
        [note],
        border=_BORDER,
    )


def read_mappings(folder: Path) -> Mappings:
    """Read the four files of ObjectNet's folder `mappings`."""
    for file in _MAPPINGS:
        if not (folder / file).is_file():
            raise FileNotFoundError(
                f"{folder / file} is missing; expected ObjectNet as unpacked, with the folders "
                "images and mappings side by side"
            )
    label_of, words_of, line_of = (read_json(folder / file) for file in _MAPPINGS[:3])
    lines = (folder / _MAPPINGS[3]).read_text(encoding="utf-8").splitlines()
    try:
        numbers: dict[str, list[int]] = {}  # of the sorted WordNet ids, by the words for a class
        for number, line in line_of.items():
            numbers.setdefault(lines[line].strip(), []).append(int(number))
        targets_of = {
            label: sorted(n for words in several.split("; ") for n in numbers[words])
            for label, several in words_of.items()
        }
        return Mappings(dict(label_of), targets_of)
    except (KeyError, IndexError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{folder}: its files do not fit together ({type(error).__name__}: {error}); "
            "expected those of ObjectNet 1.0"
        ) from error
