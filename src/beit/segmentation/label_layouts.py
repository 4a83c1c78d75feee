"""Layouts of images and label maps: ADE20K, Pascal VOC, or two folders."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from beit.segmentation.label_classes import LabelClasses, ade20k_classes, read_label_classes
from beit.segmentation.label_files import Files, Place, open_files, open_place, read_text

_log = logging.getLogger(__name__)

Role = Literal["train", "validation"]

LABEL_KINDS = (
    "ADE20K (ADEChallengeData2016, a folder or the .zip), a Pascal VOC folder (VOC2012), a folder "
    "that holds images and annotations, labels or masks, IMAGES?maps=MASKS for any two folders, or "
    "shapes://COUNT?size=64&seed=0; ?split=NAME names a split, [:90%] at the end a part"
)
_SPLITS = {"train": ("training", "train"), "validation": ("validation", "val")}
_ADE20K_SPLITS = ("training", "validation")
_MAP_FOLDERS = ("annotations", "labels", "masks")
_NAMED = 3  # images named in an error


class Pairs(NamedTuple):
    """Images and their label maps."""

    images: Files
    maps: Files
    places: Tensor  # (n, 2) int64: index of an image and of its map
    classes: LabelClasses | None  # if the layout defines them

    def map_name(self, index: int) -> str:
        """Return the path of an image's map file."""
        return f"{self.maps.where}/{self.maps.name(int(self.places[index, 1]))}"

    def map_file(self, index: int) -> tuple[bytes, str]:
        """Read the map file of an image. Returns: its bytes and name. Raises UnreadableImage."""
        return self.maps.read(int(self.places[index, 1])), self.map_name(index)


def find_pairs(path: str, split: str, role: Role, maps: str) -> Pairs:
    """Find images and their maps.

    Args:
        path: a folder or zip that holds both in a known layout, or the images alone
        split: name of the split; empty for that of the role, if there are splits
        role: of the split
        maps: the folder or zip of the maps; empty if `path` holds both

    Raises:
        ValueError: the layout is unknown, or a split, folder or map is missing or empty.
        FileNotFoundError: the path does not exist.
    """
    place = open_place(path)
    if maps:
        images = open_files(_split(path, place, split, role) or place)
        maps_place = open_place(maps)
        return _matched(images, open_files(_split(maps, maps_place, split, role) or maps_place))
    roots = [root for root in [place, *_folders(place)] if _is_voc(root) or _map_folder(root)]
    if roots and roots[0] is place:
        roots = roots[:1]
    if len(roots) > 1:
        raise ValueError(
            f"{path}: holds several sets ({', '.join(sorted(root.name for root in roots))}); "
            f"name one of them, as in {path}/{roots[0].name}"
        )
    if not roots:
        below = ", ".join(sorted(folder.name for folder in _folders(place))[:8]) or "no folders"
        raise ValueError(f"{path}: no images with label maps ({below}); expected {LABEL_KINDS}")
    if _is_voc(roots[0]):
        return _voc(path, roots[0], split, role)
    folder = _map_folder(roots[0])
    images_place = _split(path, roots[0] / "images", split, role)
    labels_place = _split(path, roots[0] / folder, split, role)
    if (images_place is None) != (labels_place is None):
        raise ValueError(
            f"{path}: only one of images and {folder} has a folder for the "
            f"{split or role} split; expected it in both"
        )
    images = open_files(images_place or roots[0] / "images")
    pairs = _matched(images, open_files(labels_place or roots[0] / folder))
    ade20k = folder == "annotations" and images_place and images_place.name in _ADE20K_SPLITS
    return pairs._replace(classes=ade20k_classes()) if ade20k else pairs


def _split(path: str, place: Place, split: str, role: Role) -> Place | None:
    """Find the folder of a split; None if there are no splits."""
    known = [name for names in _SPLITS.values() for name in names]
    folders = {folder.name: folder for folder in _folders(place)}
    for name in [split] if split else _SPLITS[role]:
        if name in folders:
            return folders[name]
    if not split and not set(known) & set(folders):
        return None
    raise ValueError(
        f"{path}: the folder {place.name} has no split {split or ' or '.join(_SPLITS[role])} "
        f"(it has {', '.join(sorted(folders)) or 'no folders'}); add it, or name another, as in "
        f"{path}?split=NAME"
    )


def _voc(path: str, root: Place, split: str, role: Role) -> Pairs:
    lists = root / "ImageSets" / "Segmentation"
    files = [lists / f"{name}.txt" for name in ([split] if split else reversed(_SPLITS[role]))]
    listed = next((file for file in files if file.is_file()), None)
    if listed is None:
        raise ValueError(
            f"{path}: no ImageSets/Segmentation/{files[0].name}; expected the list of the images "
            "of that split, one name a line"
        )
    stems = read_text(listed).split()
    if not stems:
        raise ValueError(f"{path}: {listed.name} lists no image; expected one name a line")
    images, maps = open_files(root / "JPEGImages"), open_files(root / "SegmentationClass")
    return _matched(images, maps, stems)._replace(classes=read_label_classes("voc"))


def _matched(images: Files, maps: Files, listed: Sequence[str] | None = None) -> Pairs:
    """Pair files by their names without extension: all images, or only those that are listed."""
    map_of = _index_by_stem(maps)
    if listed is None:
        stems = [os.path.splitext(images.name(index))[0] for index in range(len(images))]
        indices = list(range(len(images)))
        unused = len(map_of) - len(set(stems) & set(map_of))
        if unused:
            _log.warning("%s: %d label maps have no image", maps.where, unused)
    else:
        image_of, stems = _index_by_stem(images), list(listed)
        if missing := [stem for stem in stems if stem not in image_of]:
            raise ValueError(
                f"{images.where}: {len(missing)} images of the list are missing: {_some(missing)}"
            )
        indices = [image_of[stem] for stem in stems]
    pairs = list(zip(indices, stems, strict=True))
    if missing := [images.name(index) for index, stem in pairs if stem not in map_of]:
        raise ValueError(
            f"{images.where}: {len(missing)} of {len(stems)} images have no label map in "
            f"{maps.where}: {_some(missing)}; a map has the name of its image with another "
            f"extension ({os.path.splitext(missing[0])[0]}.png). Add the maps, or remove the images"
        )
    places = torch.tensor([[index, map_of[stem]] for index, stem in pairs])
    return Pairs(images, maps, places, None)


def _index_by_stem(files: Files) -> dict[str, int]:
    places: dict[str, int] = {}
    for index in range(len(files)):
        stem = os.path.splitext(files.name(index))[0]
        if stem in places:
            both = f"{files.name(places[stem])} and {files.name(index)}"
            raise ValueError(f"{files.where}: {both} differ only in their extension; keep one")
        places[stem] = index
    return places


def _folders(place: Place) -> list[Place]:
    visible = (entry for entry in place.iterdir() if not entry.name.startswith(("__MACOSX", ".")))
    return [entry for entry in visible if entry.is_dir()]


def _is_voc(place: Place) -> bool:
    return (place / "JPEGImages").is_dir() and (place / "SegmentationClass").is_dir()


def _map_folder(place: Place) -> str:
    """Return the name of the maps folder beside a folder `images`; empty if there is none."""
    if not (place / "images").is_dir():
        return ""
    return next((name for name in _MAP_FOLDERS if (place / name).is_dir()), "")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
