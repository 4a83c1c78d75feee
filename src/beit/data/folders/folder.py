"""A folder of images: flat, nested, by class, or with splits."""

import os
from pathlib import Path
from unicodedata import normalize

import torch
from torch import Tensor

from beit.data.class_names import some
from beit.data.folders.image_files import FileSource
from beit.data.folders.layout import find_layout
from beit.data.folders.listing import is_system, list_folder, say_once
from beit.data.spec import AS_IT_IS, Reading
from beit.data.splits import Split


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
    said = [str(listing), *layout.notes]
    labels: Tensor | None = None
    names: list[str] | None = None
    if not layout.why_unlabelled:
        folders = [image[len(layout.base) :].partition(os.sep)[0] for image in layout.images]
        composed = {folder: normalize("NFC", folder) for folder in set(folders)}
        names = sorted(set(composed.values()))
        number_of = {name: number for number, name in enumerate(names)}
        labels = torch.tensor([number_of[composed[folder]] for folder in folders])
        said.append(f"classes: {len(names)} ({some(names)})")
        if len(composed) > len(names):
            said.append("folders whose names differ only in their Unicode form are one class")
    elif any(os.sep in image for image in layout.images) and not layout.notes:
        said.append(f"no labels: {layout.why_unlabelled}")
    say_once(f"{root}: {'; '.join(said)}")
    return FileSource(root, layout.images, reading, labels, names, layout.why_unlabelled)


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
