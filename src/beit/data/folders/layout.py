"""Recognise the folders of an image set: classes, splits, or images beside their masks."""

import os
from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from beit.data.folders.masks import IMAGES, folders_inside, masks_among, without_masks
from beit.data.splits import TRAINING, Split, are_splits, choose_split, is_split, split_words
from beit.wording import some

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
    pictures: set[str]  # folders that were taken beside those of masks

    def inside(self, folder: str, what: str = "") -> Layout:
        """Return the layout of one of the folders, noting that it was taken."""
        where = os.path.join(self.where, folder)
        part = _find(self.folders[folder], self.split, where, self.levels - 1, self.pictures)
        images = [f"{folder}{os.sep}{image}" for image in part.images]
        if len(images) < len(self.images):
            what = f"{what} ({len(images)} images)" if what else ""
        notes = (what, *part.notes) if what else part.notes
        return Layout(images, os.path.join(folder, part.base), part.why_unlabelled, notes)


def find_layout(images: list[str], split: Split | None, where: str) -> Layout:
    """Decide which images of the folder `where` are taken, and which folders are their classes.

    Folders of splits and of masks are recognised by their names. Masks are left out. The split for
    `split` is taken; for None all are, without labels.

    Raises:
        ValueError: `split` is given, and there is none for it, or splits and classes are mixed.
    """
    kept, pictures, notes = without_masks(images)
    layout = _find(kept, split, where, _LEVELS, pictures)
    return layout._replace(notes=(*notes, *layout.notes))


def _find(
    images: list[str], split: Split | None, where: str, levels: int, pictures: set[str]
) -> Layout:
    folders = _by_folder(images)
    level = _Level(where, images, folders, folders.pop("", []), split, levels, pictures)
    if levels:
        for recognised in (_of_splits, _in_one_folder, _splits_of_classes):
            if layout := recognised(level):
                return layout
    return _splits_among_others(level) or _of_classes(level)


def _of_splits(level: _Level) -> Layout | None:
    """Recognise train/ and val/, also beside masks. A class may have such a name."""
    where, folders = level.where, level.folders
    masks = masks_among(folders)
    splits = split_words(name for name in folders if name not in masks)
    others = [name for name in folders if name not in splits and name not in masks]
    words = {*splits.values()}
    if not splits:
        return None
    listed, first = ", ".join(splits), next(iter(splits))
    if others:
        nested = any(os.sep in path for name in splits for path in folders[name])
        if not (len(words) > 1 or masks or nested):
            return None
        mixed = (
            f"{where} holds splits ({listed}) and other folders of images "
            f"({some(others + masks)}); name the folder to take, as in {where}/{first}"
        )
        return _refused(level, mixed)
    if not (len(words) > 1 or words & TRAINING) and (len(folders) > 1 or level.loose):
        return None
    what = f"has the splits {listed}: takes"
    if level.split is not None:
        chosen = choose_split(splits, level.split, where)
        return level.inside(chosen, f"{what} {chosen}{_but(masks)}")
    images = sorted(level.loose + [image for name in splits for image in level.inside(name).images])
    why = f"{where} holds splits ({listed}); name one, as in {where}/{first}"
    return Layout(images, why_unlabelled=why, notes=(f"{what} all{_but(masks)}, without labels",))


def _in_one_folder(level: _Level) -> Layout | None:
    """Recognise images/, fruit/ inside fruit/, or splits inside the only folder."""
    if len(level.folders) > 1 or level.loose:
        return None
    (name,) = level.folders
    taken = name in level.pictures  # and said
    usual = name.lower() in IMAGES or name == os.path.basename(level.where)
    layout = level.inside(name, f"takes its folder {name}" if usual and not taken else "")
    inner = layout.base != os.path.join(name, "")
    return layout if layout.notes or inner or taken or usual else None


def _splits_of_classes(level: _Level) -> Layout | None:
    """Recognise class folders that hold the splits each: apple/train, apple/test."""
    inner = _by_folder(path for paths in level.folders.values() for path in paths)
    masks = masks_among(inner)
    splits = [name for name in inner if name not in masks]
    words = split_words(splits)
    if level.loose or len(words) < len(splits) or len({*words.values()}) < 2:
        return None
    taken = splits
    if level.split is not None:
        taken = [choose_split(splits, level.split, f"each folder of {level.where}")]
    images = [image for image in level.images if image.split(os.sep)[1] in taken]
    layout = _of_classes(level._replace(images=images))
    what = f"each folder has the splits {', '.join(splits)}: takes {', '.join(taken)}"
    return layout._replace(notes=(f"{what} ({len(images)} images)",))


def _splits_among_others(level: _Level) -> Layout | None:
    """Refuse splits inside some folders but not all, or deeper: apple/train, apple/test, lime."""
    found = dict[str, str]()
    for parent, names in folders_inside(level.images).items():
        masks = masks_among(names)
        words = split_words(sorted(name for name in names if name not in masks)) if parent else {}
        found |= {os.path.join(parent, name): word for name, word in words.items()}
    if not are_splits(found.values()):
        return None
    first = os.path.join(level.where, next(name for name in found if found[name] in TRAINING))
    return _refused(
        level,
        f"{level.where} holds splits ({some([*found])}) among other folders or images; name the "
        f"folder to take, as in {first}, or give every class folder the same splits alone",
    )


def _refused(level: _Level, why: str) -> Layout:
    """Take all images without labels if no split is asked for."""
    if level.split is None:
        return Layout(level.images, why_unlabelled=why)
    raise ValueError(why)


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
    masks = masks_among(level.folders)
    odd = [name for name in level.folders if is_split(name) or name in masks]
    said = not why and 0 < len(odd) < len(level.folders)
    notes = (f"takes {', '.join(odd)} as a class",) if said else ()
    return Layout(level.images, why_unlabelled=why, notes=notes)


def _by_folder(paths: Iterable[str]) -> dict[str, list[str]]:
    """Group paths by their first folder, relative to it; "" for those in none."""
    groups = defaultdict[str, list[str]](list)
    for path in paths:
        folder, separator, rest = path.partition(os.sep)
        groups[folder if separator else ""].append(rest if separator else path)
    return groups


def _but(names: list[str]) -> str:
    return f", not {', '.join(names)}" if names else ""
