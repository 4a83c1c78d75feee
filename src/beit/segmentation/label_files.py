"""Files of images and label maps, also inside a zip: ADE20K, Pascal VOC, or two folders."""

from __future__ import annotations

import logging
import os
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from beit.data.archives.files import file_path
from beit.data.archives.zipped import ZippedFiles
from beit.data.folders.image_files import MAX_FILE_BYTES, FileNames, no_fault
from beit.data.folders.listing import is_system, list_folder, say_once
from beit.data.source import UnreadableImage
from beit.data.stores.blob import LocalBlob
from beit.files import at_once, user_path
from beit.segmentation.label_classes import LabelClasses, ade20k_classes, read_label_classes
from beit.wording import some

_log = logging.getLogger(__name__)

Place = Path | zipfile.Path  # a folder on disk or inside a zip
Role = Literal["train", "validation"]

LABEL_KINDS = (
    "ADE20K (ADEChallengeData2016, a folder or the .zip), a Pascal VOC folder (VOC2012), a folder "
    "that holds images and annotations, labels or masks, IMAGES?maps=MASKS for any two folders, or "
    "shapes://COUNT?size=64&seed=0; ?split=NAME names a split, [:90%] at the end a part"
)
_SPLITS = {"train": ("training", "train"), "validation": ("validation", "val")}
_MAP_FOLDERS = ("annotations", "labels", "masks")
_OWN_CLASSES = ("labelmap.txt", "class_names.txt")  # of CVAT and labelme, in VOC's layout
MAX_LIST_BYTES = 1 << 26  # of a list of images


# ── files ───────────────────────────────────────────────────────────────────────────────────────


class FolderFiles:
    """The image files below a folder on disk, sorted; `read` raises UnreadableImage."""

    def __init__(self, root: Path) -> None:
        self.where = str(root)
        listing = list_folder(root)
        say_once(f"{root}: {listing}")
        self._root, self._names = root, FileNames(listing.images)

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        return self._names[index]

    def read(self, index: int) -> bytes:
        path = self._root / self.name(index)
        try:
            with open(path, "rb", opener=at_once) as file:
                data = file.read(MAX_FILE_BYTES + 1)
        except OSError as error:
            if no_fault(error):
                raise
            raise UnreadableImage(str(path), error.strerror or str(error)) from error
        if len(data) > MAX_FILE_BYTES:
            raise UnreadableImage(str(path), f"more than {MAX_FILE_BYTES} bytes")
        return data


Files = FolderFiles | ZippedFiles


def open_place(spec: str) -> Place:
    """Open a folder or zip file. Raises ValueError or FileNotFoundError naming it."""
    path = user_path(spec)
    if path.is_dir():
        return path
    if not path.exists():
        raise FileNotFoundError(f"{spec}: no such file or folder; expected a folder or a .zip")
    try:
        with zipfile.ZipFile(path) as archive:
            return zipfile.Path(archive)  # lists its members even after closing
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError) as error:
        raise ValueError(f"{spec}: neither a folder nor a readable zip file: {error}") from error


def open_files(place: Place) -> Files:
    """List the image files of a folder. Raises ValueError naming it if there are none."""
    if isinstance(place, Path):
        return FolderFiles(place)
    files = ZippedFiles(LocalBlob(str(place.root.filename)), place.root.infolist(), place.at)
    say_once(f"{files.where}: {files.listing}")
    return files


def read_text(place: Place) -> str:
    """Read a text file in UTF-8. Raises ValueError naming it."""
    try:
        if isinstance(place, Path):
            return place.read_text(encoding="utf-8")
        with zipfile.ZipFile(str(place.root.filename)) as archive, archive.open(place.at) as file:
            data = file.read(MAX_LIST_BYTES + 1)
        if len(data) > MAX_LIST_BYTES:
            raise ValueError(f"more than {MAX_LIST_BYTES} bytes")
        return data.decode("utf-8")
    except (zipfile.BadZipFile, zlib.error, ValueError, RuntimeError, EOFError, OSError) as error:
        if isinstance(error, OSError) and (isinstance(place, Path) or no_fault(error)):
            raise
        raise ValueError(f"{place}: not a readable text file: {error}") from error


# ── layouts ─────────────────────────────────────────────────────────────────────────────────────


class Pairs(NamedTuple):
    """Images and their label maps."""

    images: Files
    maps: Files
    places: Tensor  # (n, 2) int64: index of an image and of its map
    classes: LabelClasses | None  # if the layout defines them

    def image_file(self, index: int) -> Path | None:
        """Return the file that contains an image, the zip if it is in one."""
        place = int(self.places[index, 0])
        if isinstance(self.images, ZippedFiles):
            return file_path(self.images)
        return Path(self.images.where, self.images.name(place))

    def map_file(self, index: int) -> tuple[bytes, str]:
        """Read the map file of an image. Returns: its bytes and path. Raises UnreadableImage."""
        place = int(self.places[index, 1])
        return self.maps.read(place), f"{self.maps.where}/{self.maps.name(place)}"


def find_pairs(path: str, split: str, role: Role, maps: str) -> Pairs:
    """Find images and their maps.

    The folder or zip `path` holds both in a known layout; or it holds the images, and `maps` their
    maps. `split` is the name of a split; empty for that of the role, if there are splits.

    Raises ValueError for an unknown layout and for a split, folder or map that is missing or empty,
    FileNotFoundError for a path that does not exist.
    """
    place = open_place(path)
    if maps:
        images = open_files(_split(path, place, split, role) or place)
        maps_place = open_place(maps)
        return _matched(images, open_files(_split(maps, maps_place, split, role) or maps_place))
    roots = [root for root in (place, *_folders(place)) if _is_voc(root) or _map_folder(root)]
    if not roots:
        below = ", ".join(sorted(folder.name for folder in _folders(place))[:8]) or "no folders"
        raise ValueError(f"{path}: no images with label maps ({below}); expected {LABEL_KINDS}")
    root = roots[0]
    if len(roots) > 1 and root is not place:
        raise ValueError(
            f"{path}: holds several sets ({', '.join(sorted(each.name for each in roots))}); "
            f"name one of them, as in {path}/{root.name}"
        )
    if _is_voc(root):
        return _voc(path, root, split, role)
    folder = _map_folder(root)
    images_place = _split(path, root / "images", split, role)
    labels_place = _split(path, root / folder, split, role)
    if (images_place is None) != (labels_place is None):
        raise ValueError(
            f"{path}: only one of images and {folder} has a folder for the "
            f"{split or role} split; expected it in both"
        )
    images = open_files(images_place or root / "images")
    pairs = _matched(images, open_files(labels_place or root / folder))
    # Not by folders alone: DRIVE, as mmsegmentation lays it out, has the same.
    ade20k = folder == "annotations" and images_place and images.name(0).startswith("ADE_")
    return pairs._replace(classes=ade20k_classes()) if ade20k else pairs


def _split(path: str, place: Place, split: str, role: Role) -> Place | None:
    """Find the folder of a split; None if there are no splits."""
    folders = {folder.name: folder for folder in _folders(place)}
    names = (split,) if split else _SPLITS[role]
    for name in names:
        if name in folders:
            return folders[name]
    if not split and folders.keys().isdisjoint(_SPLITS["train"] + _SPLITS["validation"]):
        return None
    raise ValueError(
        f"{path}: the folder {place.name} has no split {' or '.join(names)} (it has "
        f"{', '.join(sorted(folders)) or 'no folders'}); add it, or name another, as in "
        f"{path}?split=NAME"
    )


def _voc(path: str, root: Place, split: str, role: Role) -> Pairs:
    lists = root / "ImageSets" / "Segmentation"
    files = [lists / f"{name}.txt" for name in ([split] if split else reversed(_SPLITS[role]))]
    listed = next((file for file in files if file.is_file()), None)
    if listed is None:
        raise ValueError(
            f"{path}: no ImageSets/Segmentation/{files[0].name}; expected the list of the images "
            "of that split, one name per line"
        )
    stems = read_text(listed).split()
    if not stems:
        raise ValueError(f"{path}: {listed.name} lists no image; expected one name per line")
    images, maps = open_files(root / "JPEGImages"), open_files(root / "SegmentationClass")
    pairs = _matched(images, maps, stems)
    if others := [name for name in _OWN_CLASSES if (root / name).is_file()]:
        say_once(f"{path}: not the classes of Pascal VOC, as it has {others[0]}; give a class list")
        return pairs
    return pairs._replace(classes=read_label_classes("voc"))


def _matched(images: Files, maps: Files, listed: Sequence[str] | None = None) -> Pairs:
    """Pair files by their names without extension: all images, or only those that are listed."""
    map_of = _index_by_stem(maps)
    if listed is None:
        pairs = [(index, os.path.splitext(images.name(index))[0]) for index in range(len(images))]
        if unused := map_of.keys() - {stem for _, stem in pairs}:
            _log.warning("%s: label maps without an image: %d", maps.where, len(unused))
    else:
        image_of = _index_by_stem(images)
        if missing := [stem for stem in listed if stem not in image_of]:
            raise ValueError(
                f"{images.where}: {len(missing)} images of the list are missing: {some(missing)}"
            )
        pairs = [(image_of[stem], stem) for stem in listed]
    if missing := [images.name(index) for index, stem in pairs if stem not in map_of]:
        raise ValueError(
            f"{images.where}: {len(missing)} of {len(pairs)} images have no label map in "
            f"{maps.where}: {some(missing)}; a map has the name of its image with another "
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
    return [entry for entry in place.iterdir() if entry.is_dir() and not is_system(entry.name)]


def _is_voc(place: Place) -> bool:
    return (place / "JPEGImages").is_dir() and (place / "SegmentationClass").is_dir()


def _map_folder(place: Place) -> str:
    """Return the name of the maps folder beside a folder `images`; empty if there is none."""
    names = [name for name in _MAP_FOLDERS if (place / name).is_dir()]
    return names[0] if names and (place / "images").is_dir() else ""
