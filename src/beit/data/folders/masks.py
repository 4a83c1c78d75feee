"""Masks among the images of a folder: images/ beside masks/, or NAME_mask.png beside NAME.png."""

import os
import re
from collections import defaultdict
from collections.abc import Iterable

from beit.data.splits import is_split
from beit.wording import some

IMAGES = frozenset("images image imgs img jpegimages leftimg8bit".split())
_MASKS = frozenset(
    "annotation annotations groundtruth gt gtcoarse gtfine label labels labelstr labelsts mask "
    "masks seg segmentation segmentations segmentationclass segmentationobject truth".split()
)
_MASK_FILE = re.compile(rf"(.+?)[ _.-](?:{'|'.join(_MASKS)})(?:[ _-]?\d+)?", re.IGNORECASE)
# Words by which masks are classes (mask, no_mask), and names that are classes as often as masks.
_CLASSES = frozenset("no non not with without".split())
_AMBIGUOUS = frozenset("gt label seg".split())


def without_masks(images: list[str]) -> tuple[list[str], set[str], list[str]]:
    """Leave out masks: folders beside one of images, at any depth, and NAME_mask beside NAME.

    Returns the other images, the names of the folders that were taken, and notes.
    """
    left, lost, pictures, masks = set[str](), set[str](), set[str](), set[str]()
    loose, notes = {*map(os.path.dirname, images)}, list[str]()
    for parent, names in folders_inside(images).items():
        taken = _beside_masks(names | {""} if parent in loose else names)
        if taken is not None:
            others = names - {taken}
            left |= {os.path.join(parent, name) for name in others}
            lost |= {parent} if taken else set()
            pictures.add(taken or "images in no folder of their own")
            masks |= others
    if left:
        lost |= {folder for folder in _above(images) if not left.isdisjoint(_up(folder))}
        images = [path for path in images if os.path.dirname(path) not in lost]
        takes = f"takes {some(sorted(pictures))}, not {some(sorted(masks))}"
        notes.append(f"{takes} ({len(images)} images)")
    stems = {os.path.splitext(path)[0]: path for path in images}
    named = [match for match in map(_MASK_FILE.fullmatch, stems) if match and match[1] in stems]
    if named:
        those = {match[0] for match in named}
        images = [path for path in images if os.path.splitext(path)[0] not in those]
        example = f"{stems[named[0][0]]} beside {stems[named[0][1]]}"
        notes.append(f"leaves out {len(named)} masks by their names, as {example}")
    return images, pictures, notes


def _beside_masks(names: set[str]) -> str | None:
    """Return the only folder of images beside folders of masks, if there is one.

    "" among the names stands for images outside of the folders.
    """
    masks = masks_among(names)
    pictures = [name for name in names if name.lower() in IMAGES]
    if not pictures and all(map(_certainly_mask, masks)):
        pictures = [name for name in names if name not in masks]
    if not masks or len(pictures) != 1 or any(map(is_split, names - {*pictures})):
        return None
    return pictures[0]


def masks_among(names: Iterable[str]) -> list[str]:
    """Select folders of masks; none if there is nothing else, or they are classes as no_mask is."""
    names = [*names]
    masks = [name for name in names if not is_split(name) and not _MASKS.isdisjoint(_words(name))]
    classes = any(not _CLASSES.isdisjoint(_words(name)) for name in masks)
    return [] if classes or len(masks) == len(names) else masks


def _certainly_mask(name: str) -> bool:
    words = [word for word in _words(name) if not is_split(word)]
    return name.lower() not in _AMBIGUOUS and _MASKS | IMAGES | {"ground"} >= {*words}


def _words(name: str) -> list[str]:
    return re.findall(r"[^\W\d_]+", name.lower())


def folders_inside(images: list[str]) -> dict[str, set[str]]:
    """List the names of the folders inside each folder, "" for the outermost."""
    inside = defaultdict[str, set[str]](set)
    for folder in _above(images):
        for path in _up(folder):
            parent, name = os.path.split(path)
            inside[parent].add(name)
    return inside


def _above(images: list[str]) -> dict[str, None]:
    """List the folders of images, in order; "" left out."""
    return dict.fromkeys(filter(None, map(os.path.dirname, images)))


def _up(folder: str) -> list[str]:
    """List a folder and those above it: a/b, a."""
    parts = folder.split(os.sep)
    return [os.sep.join(parts[:count]) for count in range(len(parts), 0, -1)]
