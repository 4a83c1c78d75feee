"""Recognise the folders of an image set: classes, splits, or images beside their masks."""

import os
import re
from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from beit.data.class_names import some
from beit.data.splits import Split, choose_split, is_split, split_word

_IMAGES = frozenset("images image imgs img jpegimages leftimg8bit".split())
_MASKS = frozenset(
    "annotation annotations groundtruth gt gtcoarse gtfine label labels mask masks seg "
    "segmentation segmentations segmentationclass segmentationobject truth".split()
)
_LEVELS = 4  # of folders that are looked into for splits and masks


class Layout(NamedTuple):
    """The images that are taken of a folder.

    Attributes:
        images: their paths, relative to the folder
        base: the folder that holds the class folders, relative to the folder; ends in /
        why_unlabelled: completes "images without a label: ..."; empty if there are class folders
        notes: what was taken and left out
    """

    images: list[str]
    base: str = ""
    why_unlabelled: str = ""
    notes: tuple[str, ...] = ()


class _Level(NamedTuple):
    """The images of a folder by the first folder in their paths, and what they are opened for."""

    where: str
    images: list[str]
    folders: dict[str, list[str]]
    loose: list[str]  # in no folder
    split: Split | None
    levels: int

    def inside(self, folder: str, what: str = "") -> Layout:
        """Return the layout of one of the folders, noting that it was taken."""
        where = os.path.join(self.where, folder)
        part = find_layout(self.folders[folder], self.split, where, self.levels - 1)
        images = [f"{folder}{os.sep}{image}" for image in part.images]
        if len(images) < len(self.images):
            what = f"{what} ({len(images)} images)" if what else ""
        notes = (what, *part.notes) if what else part.notes
        return Layout(images, os.path.join(folder, part.base), part.why_unlabelled, notes)


def find_layout(
    images: list[str], split: Split | None, where: str, levels: int = _LEVELS
) -> Layout:
    """Decide which images of the folder `where` are taken, and which folders are their classes.

    Folders of splits and of masks are recognised by their names. The split for `split` is taken;
    for None all are, without labels.

    Raises:
        ValueError: `split` is given, and there is none for it, or splits and classes are mixed.
    """
    folders = _by_folder(images)
    level = _Level(where, images, folders, folders.pop("", []), split, levels)
    if levels:
        for recognised in (_beside_masks, _of_splits, _in_one_folder, _splits_of_classes):
            if layout := recognised(level):
                return layout
    return _of_classes(level)


def _beside_masks(level: _Level) -> Layout | None:
    """Recognise images/ alone or beside masks/, with or without more."""
    pictures = [name for name in level.folders if name.lower() in _IMAGES]
    others = [name for name in level.folders if name not in pictures]
    alone = not others and not level.loose
    beside = any(map(_is_mask, others)) and not any(map(is_split, others))
    if len(pictures) != 1 or not (alone or beside):
        return None
    return level.inside(pictures[0], f"takes {pictures[0]}{_but(others)}")


def _of_splits(level: _Level) -> Layout | None:
    """Recognise train/ and val/, also beside masks. A class may have such a name."""
    where, folders = level.where, level.folders
    splits = [name for name in folders if is_split(name)]
    masks = [name for name in folders if _is_mask(name)]
    others = [name for name in folders if name not in splits + masks]
    words = {split_word(name) for name in splits}
    if not splits:
        return None
    listed = ", ".join(splits)
    if others:
        nested = any(os.sep in path for name in splits for path in folders[name])
        if not (len(words) > 1 or masks or nested):
            return _of_classes(level)._replace(notes=(f"takes {listed} as a class",))
        mixed = (
            f"{where} holds splits ({listed}) and other folders of images "
            f"({some(others + masks)}); name the folder to take, as in {where}/{splits[0]}"
        )
        if level.split is None:
            return Layout(level.images, why_unlabelled=mixed)
        raise ValueError(mixed)
    if not (len(words) > 1 or words & {"train", "training"}) and (len(folders) > 1 or level.loose):
        return None
    what = f"has the splits {listed}: takes"
    if level.split is not None:
        chosen = choose_split(splits, level.split, where)
        return level.inside(chosen, f"{what} {chosen}{_but(masks)}")
    images = sorted(level.loose + [image for name in splits for image in level.inside(name).images])
    why = f"{where} holds splits ({listed}); name one, as in {where}/{splits[0]}"
    return Layout(images, why_unlabelled=why, notes=(f"{what} all{_but(masks)}, without labels",))


def _in_one_folder(level: _Level) -> Layout | None:
    """Recognise splits or masks inside the only folder."""
    if len(level.folders) > 1 or level.loose:
        return None
    layout = level.inside(*level.folders)
    return layout if layout.notes else None


def _splits_of_classes(level: _Level) -> Layout | None:
    """Recognise class folders that hold the splits each: apple/train, apple/test."""
    inner = _by_folder(path for paths in level.folders.values() for path in paths)
    splits = [name for name in inner if not _is_mask(name)]
    words = {split_word(name) for name in splits}
    if level.loose or "" in words or len(words) < 2:
        return None
    taken = splits
    if level.split is not None:
        taken = [choose_split(splits, level.split, f"each folder of {level.where}")]
    images = [image for image in level.images if image.split(os.sep)[1] in taken]
    layout = _of_classes(level._replace(images=images))
    what = f"each folder has the splits {', '.join(splits)}: takes {', '.join(taken)}"
    return layout._replace(notes=(f"{what} ({len(images)} images)",))


def _of_classes(level: _Level) -> Layout:
    """Take every folder for a class, unless there are none or images lie outside of them."""
    why = ""
    if not level.folders:
        why = f"{level.where} has no class folders"
    elif level.loose:
        lie = "lies" if len(level.loose) == 1 else "lie"
        why = (
            f"{some(level.loose)} {lie} outside of the class folders of {level.where}; move what "
            "lies there into one of them, or to another place"
        )
    return Layout(level.images, why_unlabelled=why)


def _by_folder(paths: Iterable[str]) -> dict[str, list[str]]:
    """Group paths by their first folder, relative to it; "" for those in none."""
    groups = defaultdict[str, list[str]](list)
    for path in paths:
        folder, separator, rest = path.partition(os.sep)
        groups[folder if separator else ""].append(rest if separator else path)
    return groups


def _is_mask(name: str) -> bool:
    return not _MASKS.isdisjoint(re.split(r"[\W_]+", name.lower()))


def _but(names: list[str]) -> str:
    return f", not {', '.join(names)}" if names else ""
