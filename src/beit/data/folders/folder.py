"""A folder of images: flat, nested, by class, or with splits."""

import os
from pathlib import Path
from unicodedata import normalize

import torch
from torch import Tensor

from beit.data.folders.image_files import FileSource
from beit.data.folders.layout import Layout, find_layout
from beit.data.folders.listing import is_system, list_folder, say_once
from beit.data.spec import AS_IT_IS, Reading
from beit.data.splits import Split
from beit.wording import some_names


def open_folder(root: Path, reading: Reading = AS_IT_IS, split: Split | None = None) -> FileSource:
    """Open the images below `root`, sorted by path. The log says what was taken and what was not.

    Hidden files and those that systems add are skipped. If `root` holds splits, the one for `split`
    is taken; for None all are, without labels. If every image is in a folder, the first folder
    level gives the labels.

    Raises:
        ValueError: there is no image or no split for this purpose, or splits and classes are mixed
    """
    listing = list_folder(root)
    layout = find_layout(listing.images, split, str(root))
    labels, names, notes = labels_of(layout)
    say_once(f"{root}: {'; '.join([str(listing), *layout.notes, *notes])}")
    return FileSource(root, layout.images, reading, labels, names, layout.why_unlabelled)


def labels_of(layout: Layout) -> tuple[Tensor | None, list[str] | None, list[str]]:
    """Return the labels of a layout's images (n,) int64, the names of the classes, and notes."""
    if layout.why_unlabelled:
        unsaid = any(os.sep in image for image in layout.images) and not layout.notes
        return None, None, [f"no labels: {layout.why_unlabelled}"] if unsaid else []
    folders = [image[len(layout.base) :].partition(os.sep)[0] for image in layout.images]
    composed = {folder: normalize("NFC", folder) for folder in set(folders)}
    names = sorted(set(composed.values()))
    number_of = {name: number for number, name in enumerate(names)}
    notes = [f"classes: {len(names)} ({some_names(names)})"]
    if len(composed) > len(names):
        notes.append("folders whose names differ only in their Unicode form are one class")
    return torch.tensor([number_of[composed[folder]] for folder in folders]), names, notes


def class_folders(root: Path, split: Split | None = None) -> list[str]:
    """List the class folders that `open_folder` finds, also those without images; maybe none.

    Names are sorted and in Unicode's composed form (NFC), like those of the classes.
    """
    layout = find_layout(list_folder(root).images, split, str(root))
    if layout.why_unlabelled:
        return []
    entries = (root / layout.base).iterdir()
    names = {entry.name for entry in entries if entry.is_dir() and not is_system(entry.name)}
    return sorted({normalize("NFC", name) for name in names})
