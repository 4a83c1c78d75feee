"""ImageNet's validation set and the sets made to test its classifiers, laid out as published.

A classifier's logits are found by WordNet id. Of 1000 classes without such names the order is that
of sorted ids, as in all published weights.

The lists of ids and ReaL's labels are timm's: `ImageNetInfo`, and two lists and a JSON file in
`timm/data/_info` that timm reads itself but gives no function for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import torch

from beit.data.classes import Labelled, check_range, known_labels
from beit.data.sources import PartSource, Source, open_source
from beit.evaluation.truth import Task, nearest, padded, plain_task

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

_WORDNET_ID = re.compile(r"n\d{8}")
_VALIDATION = re.compile(r"ILSVRC2012_val_(\d{8})")
_BORDER = 2  # of ObjectNet, red; so much its authors cut off (objectnet-template-pytorch)
_MAPPINGS = (
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
    """Open labelled images and say which logits of a classifier are compared on them.

    Args:
        spec: the images, as for `open_source`
        dataset: how they are laid out:
            plain: any labelled source, see `plain_task`;
            imagenet, imagenet-sketch: a folder for each of the 1000 WordNet ids;
            imagenet-a, imagenet-r: for each of 200 ids, and only their logits are compared;
            imagenet-v2: folders named 0 to 999, numbers of the sorted ids (or the ids themselves);
            imagenet-real: the validation set, by the names of its files, in folders or not;
            objectnet: what is unpacked, or its folder images; see `_objectnet`
        num_classes: of the classifier
        class_names: of the classifier, if it knows them
        limit: use so many images, a fixed random subset
        present_only: of plain data, compare the logits of those classes only that images have
        real_labels: a JSON file like real.json of google-research/reassessed-imagenet, in place of
            timm's copy of it

    Raises:
        ValueError: the classes of data and classifier cannot be matched, or a folder has a name
            that is not in the list. FileNotFoundError: data or ObjectNet's mappings are missing.
    """
    if dataset == "plain":
        source = open_source(spec, limit=limit)
        return plain_task(spec, source, num_classes, class_names, present_only)
    columns = classifier_columns(num_classes, class_names)
    if dataset == "objectnet":
        return _objectnet(spec, columns, limit)
    source = open_source(spec, limit=limit)
    if dataset == "imagenet-real":
        return _real(spec, source, columns, real_labels)
    compared = compared_ids(dataset)
    ids = _class_ids(spec, source, dataset, compared)
    labels = known_labels(Labelled("data", spec, source))
    places = {wordnet_id: place for place, wordnet_id in enumerate(compared)}
    right = torch.tensor([places[wordnet_id] for wordnet_id in ids])[labels]
    missing = sorted(set(compared) - set(ids))
    notes = []
    if missing:
        some = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        notes.append(
            f"{len(missing)} of the {len(compared)} class folders are missing ({some}); "
            f"all {len(compared)} logits are compared"
        )
    own = _columns_of(compared, columns)
    return Task(source, torch.tensor(own), right[:, None], right, compared, notes)


def wordnet_ids() -> list[str]:
    """List the WordNet ids of ImageNet's 1000 classes, sorted: the order of published weights."""
    return list(_imagenet()[0])


def compared_ids(dataset: Dataset) -> list[str]:
    """List the WordNet ids whose logits are compared on a set, sorted."""
    if dataset in ("imagenet-a", "imagenet-r"):
        text = _timm_file(f"{dataset.replace('-', '_')}_synsets.txt")
        return sorted(text.split())
    return wordnet_ids()


def classifier_columns(num_classes: int, class_names: Sequence[str] | None) -> dict[str, int]:
    """Find the logit of each WordNet id that a classifier tells apart.

    Names that are WordNet ids decide. Without names, or with the words of ImageNet's classes (as
    transformers' files have them), 1000 classes are in the order of sorted ids.
    """
    if class_names is not None and all(_WORDNET_ID.fullmatch(name) for name in class_names):
        return {name: place for place, name in enumerate(class_names)}
    if num_classes == 1000 and (class_names is None or _are_imagenet_words(class_names)):
        return {name: place for place, name in enumerate(wordnet_ids())}
    told = "no class names" if class_names is None else f"names such as {class_names[0]}"
    raise ValueError(
        f"the classifier has {num_classes} classes and {told}; ImageNet's sets need its 1000 "
        "classes in the order of sorted WordNet ids, or class names that are WordNet ids "
        "(n01440764); for other classes say --dataset plain"
    )


def _class_ids(
    spec: str, source: Source, dataset: Dataset, compared: Sequence[str]
) -> Sequence[str]:
    """Find the WordNet id of each class number of the source."""
    names = source.class_names
    thousand = len(compared) == 1000
    if thousand and (names is None or _are_imagenet_words(names)):
        data = Labelled("data", spec, source)
        check_range(data, known_labels(data), 1000)
        return compared
    if names is None:
        known_labels(Labelled("data", spec, source))
        raise ValueError(
            f"data {spec}: the classes have numbers but no names, and {dataset} numbers its 200 "
            "in no fixed way; give folders named by WordNet ids"
        )
    ids = list(names)
    if dataset == "imagenet-v2" and not _WORDNET_ID.fullmatch(names[0]):
        ids = [
            # The number decides, never the order: as text 10 comes before 2.
            compared[int(name)] if re.fullmatch(r"\d{1,3}", name) else name
            for name in names
        ]
    known = set(compared)
    for name, wordnet_id in zip(names, ids, strict=True):
        if wordnet_id not in known:
            expected = (
                "a number from 0 to 999"
                if dataset == "imagenet-v2"
                else f"one of its {len(compared)} WordNet ids, such as {compared[0]}"
            )
            raise ValueError(
                f"data {spec}: {name} is no class folder of {dataset}; expected {expected}"
                + nearest(name, compared)
            )
    return ids


def _real(spec: str, source: Source, columns: dict[str, int], labels_file: str | None) -> Task:
    """Judge by ReaL's labels: any of an image's is right; images without are left out.

    Beyer et al., "Are we done with ImageNet?", 2020.
    """
    labels = _real_labels(labels_file)
    kept, right = [], []
    for index in range(len(source)):
        name = source.name(index)
        found = _VALIDATION.search(Path(name).name)
        if found is None:
            raise ValueError(
                f"data {spec}: {name} is not named as ImageNet's validation images are "
                "(ILSVRC2012_val_00000001.JPEG), by which ReaL's labels are found"
            )
        number = int(found[1])
        if not 1 <= number <= len(labels):
            raise ValueError(
                f"data {spec}: {name} has the number {number}; "
                f"{labels_file or 'ReaL'} has labels of 1 to {len(labels)}"
            )
        if labels[number - 1]:
            kept.append(index)
            right.append(labels[number - 1])
    if not kept:
        raise ValueError(f"data {spec}: none of the {len(source)} images has a label of ReaL's")
    notes = [f"images without a label of ReaL's, left out: {len(source) - len(kept)}"]
    part = PartSource(source, torch.tensor(kept))
    ids = wordnet_ids()
    own = torch.tensor(_columns_of(ids, columns))
    return Task(part, own, padded(right), None, ids, notes)


def _objectnet(spec: str, columns: dict[str, int], limit: int | None) -> Task:
    """Judge by ObjectNet's mappings, as its authors do.

    An image of a folder that maps to ImageNet classes is right if the largest of all 1000 logits is
    one of these classes'; other folders (200 of 313) are left out, and a red border of two pixels
    is cut off. So does the authors' evaluation code (abarbu/objectnet-template-pytorch), except
    that its score divides by the images of all 313 classes; the paper's figures do not (its issue
    16). Others compare the logits of the overlapping classes only (wise-ft) and get higher figures.

    The four files of `mappings` were read in wise-ft's copy of them, whose line numbers begin at 0;
    neither the images nor the archive itself were at hand.
    """
    root = Path(spec).expanduser()
    if (root / "images").is_dir():
        spec, mappings = str(root / "images"), root / "mappings"
    else:
        whole = Path(re.sub(r"\[\d*%?:\d*%?\]$", "", spec)).expanduser()
        mappings = whole.parent / "mappings"
    for file in _MAPPINGS:
        if not (mappings / file).is_file():
            raise FileNotFoundError(
                f"{mappings / file} is missing; expected ObjectNet as unpacked, with the folders "
                "images and mappings side by side"
            )
    label_of, imagenet_of, line_of = (_mapping(mappings / file) for file in _MAPPINGS[:3])
    lines = (mappings / _MAPPINGS[3]).read_text(encoding="utf-8").splitlines()
    try:
        numbers: dict[str, list[int]] = {}  # of the sorted ids, by the words for a class
        for number, line in line_of.items():
            numbers.setdefault(lines[line].strip(), []).append(int(number))
        right_of = {
            label: sorted(n for words in said.split("; ") for n in numbers[words])
            for label, said in imagenet_of.items()
        }
    except (KeyError, IndexError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{mappings}: its files do not fit together ({type(error).__name__}: {error}); "
            "expected those of ObjectNet 1.0"
        ) from error

    source = open_source(spec, limit=limit)
    labels, folders = known_labels(Labelled("data", spec, source)), source.class_names or []
    for folder in folders:
        if folder not in label_of:
            raise ValueError(
                f"data {spec}: {folder} is no class folder of ObjectNet"
                + nearest(folder, list(label_of))
            )
    shared = [folder for folder in folders if label_of[folder] in right_of]
    place = {folder: number for number, folder in enumerate(shared)}
    group_of = torch.tensor([place.get(folder, -1) for folder in folders])
    kept = (group_of[labels] >= 0).nonzero().flatten()
    if not len(kept):
        raise ValueError(f"data {spec}: no image of a class that ObjectNet shares with ImageNet")
    groups = group_of[labels[kept]]
    right = padded([right_of[label_of[folder]] for folder in shared])[groups]
    left_out = len(labels) - len(kept)
    shares = f"{len(shared)} of {len(folders)} class folders are of classes that ImageNet has"
    notes = [f"{shares}; images of the others, left out: {left_out}"]
    own = torch.tensor(_columns_of(wordnet_ids(), columns))
    names = [label_of[folder] for folder in shared]
    part = PartSource(source, kept)
    return Task(part, own, right, groups, names, notes, border=_BORDER)


def _columns_of(ids: Sequence[str], columns: dict[str, int]) -> list[int]:
    lacking = [wordnet_id for wordnet_id in ids if wordnet_id not in columns]
    if lacking:
        raise ValueError(
            f"the classifier lacks {len(lacking)} of the {len(ids)} classes that this set "
            f"compares, such as {lacking[0]}; for a part of ImageNet's classes say "
            "--dataset plain with folders of that part"
        )
    return [columns[wordnet_id] for wordnet_id in ids]


def _are_imagenet_words(names: Sequence[str]) -> bool:
    """Tell whether 1000 names are words for ImageNet's classes, in the order of sorted ids.

    "tench, Tinca tinca" and "tench" are both good; spellings differ, so most must agree, not all.
    """
    words = _imagenet()[1]
    if len(names) != len(words):
        return False
    same = [_first_word(name) == _first_word(word) for name, word in zip(names, words, strict=True)]
    return sum(same) > len(words) * 0.8


def _first_word(words: str) -> str:
    return words.split(",")[0].strip().replace("_", " ").lower()


@cache
def _imagenet() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Give the sorted WordNet ids and the words for them."""
    from timm.data.imagenet_info import ImageNetInfo  # slow to import

    info = ImageNetInfo("imagenet-1k")
    pairs = sorted(zip(info.label_names(), info.label_descriptions(), strict=True))
    assert len(pairs) == 1000
    return tuple(name for name, _ in pairs), tuple(words for _, words in pairs)


def _real_labels(path: str | None) -> list[list[int]]:
    """Read the classes of each validation image, by its number."""
    if path is None:
        content = json.loads(_timm_file("imagenet_real_labels.json"))
    else:
        content = _json(Path(path))
    if not isinstance(content, list) or not all(map(_is_classes, content)):
        raise ValueError(
            f"{path or 'imagenet_real_labels.json'} does not hold ReaL's labels; expected a list "
            "with a list of class numbers, 0 to 999, for each validation image"
        )
    return content


def _mapping(path: Path) -> dict[str, Any]:
    content = _json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected an object")
    return content


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} cannot be read as JSON ({error})") from error


def _is_classes(row: Any) -> bool:
    return isinstance(row, list) and all(isinstance(n, int) and 0 <= n < 1000 for n in row)


def _timm_file(name: str) -> str:
    """Read a file that timm ships beside its ImageNet classes."""
    file = resources.files("timm.data").joinpath("_info", name)
    if not file.is_file():
        raise FileNotFoundError(
            f"timm has no {name} beside its data; expected timm 1.0.19 or newer"
        )
    return file.read_text("utf-8")
