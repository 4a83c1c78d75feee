"""The files below a folder: images, others by ending, and those that systems and programs add."""

import functools
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from beit.data.pixels.decoding import ARRAY, PLUGINS, extensions
from beit.wording import some

_log = logging.getLogger(__name__)

# Folders and files that systems and programs add, besides those that start with a dot.
_SYSTEM = {"system volume information", "icon\r"} | set(
    "@eadir @recycle @recently-snapshot #recycle #snapshot $recycle.bin recycler __macosx "
    "lost+found thumbs.db ehthumbs.db desktop.ini".split()
)
_SNAPSHOTS = {"#snapshot", "@recently-snapshot", ".snapshot", ".zfs"}  # copies of a whole disk
# Files that usually lie beside images; not reported.
_SIDE_FILES = set(
    ".cfg .csv .css .html .ini .js .json .jsonl .log .mat .md .names .npy .pkl .py .rst .sh .toml "
    ".tsv .txt .xml .yaml .yml".split()
)
_RAW = set(".3fr .arw .cr2 .cr3 .dng .nef .orf .pef .raf .raw .rw2 .srw .x3f".split())
_VIDEOS = set(".3gp .avi .m4v .mkv .mov .mp4 .mpeg .mpg .webm .wmv".split())
_ADVICE = {
    ".parquet": "name the Parquet files, as in '{}/*.parquet'",
    ".arrow": "name the folder of the Arrow files, {}",
    **dict.fromkeys((".zip", ".tar"), "name the archive itself, or unpack it, in {}"),
    **dict.fromkeys((".gz", ".tgz", ".7z", ".rar"), "unpack the archive in {}"),
}
_NAMED = 8  # endings named in a message


class Listing(NamedTuple):
    """Files below a folder.

    Attributes:
        images: paths of the images, relative to the folder, sorted
        others: number of the other files by ending
        hidden: number of images by the hidden or system folder or file that holds them
    """

    images: list[str]
    others: Counter[str]
    hidden: Counter[str]

    def __str__(self) -> str:
        parts = [f"{len(self.images)} images"]
        if not self.others.keys() <= (_SIDE_FILES if self.images else set()):
            counts = [f"{n} {ending}{_reason(ending)}" for ending, n in self.others.most_common()]
            parts = [f"{len(self.images) + self.others.total()} files, {parts[0]}"]
            parts.append(f"not read: {some(counts, _NAMED)}")
        if self.hidden:
            parts.append(f"skipped {self.hidden.total()} images in {some([*self.hidden])}")
        return "; ".join(parts)


def is_system(name: str) -> bool:
    """Tell whether a file or folder is hidden, or one that systems and programs add."""
    return name.startswith(".") or name.lower() in _SYSTEM


def list_folder(root: Path) -> Listing:
    """List the files below a folder. Raises ValueError that says what is there without images."""
    return listed(_files(root), str(root))


def listed(paths: Iterable[str], where: str) -> Listing:
    """Find the images among the files of a folder `where`, given by their paths relative to it.

    Arrays, `.npy`, are images if there is no other image; else they are what lies beside images.

    Raises ValueError that says what is there if there is no image.
    """
    images, others, hidden = list[str](), Counter[str](), Counter[str]()
    arrays = list[str]()
    folder_of, readable = dict[str, str](), extensions()  # the folder of a first file by ending
    for path in paths:
        ending = os.path.splitext(path)[1].lower()
        system = next((part for part in path.split(os.sep) if is_system(part)), "")
        if system:
            if ending in readable and not os.path.basename(path).startswith("._"):
                hidden[system] += 1  # but not ._NAME, which holds what a Mac knows about NAME
        elif ending in readable:
            images.append(path)
        else:
            ending = ending if re.fullmatch(r"\.(?!\d+$)\w{1,9}", ending) else "(none)"
            others[ending] += 1
            if ending == ARRAY:
                arrays.append(path)
            folder_of.setdefault(ending, os.path.join(where, os.path.dirname(path)).rstrip(os.sep))
    if not images and arrays:
        images = arrays
        del others[ARRAY]
    listing = Listing(sorted(images), others, hidden)
    if images:
        return listing
    advice = [advice.format(folder_of[end]) for end, advice in _ADVICE.items() if end in others]
    expected = "expected files that end in .jpg, .png, .tif or another ending of an image"
    raise ValueError(
        f"{where}: no images in this folder or those below it; found "
        f"{'; '.join([str(listing), *(advice or [expected])])}"
    )


@functools.cache
def say_once(message: str) -> None:
    """Log what a source holds; a run opens the same source several times."""
    _log.info("%s", message)


@functools.cache
def warn_once(message: str) -> None:
    """Warn of what a source holds, once however often it is opened."""
    _log.warning("%s", message)


def _files(root: Path) -> Iterator[str]:
    """Yield the relative path of every file below a folder, except in snapshots of a disk."""
    waiting = [""]
    while waiting:
        folder = waiting.pop()
        try:
            entries = os.scandir(os.path.join(root, folder))
        except PermissionError:
            if any(map(is_system, folder.split(os.sep))):  # lost+found is closed to most users
                continue
            raise
        with entries:
            for entry in entries:
                path, link = os.path.join(folder, entry.name), entry.is_symlink()
                if not (os.path.isdir(entry.path) if link else entry.is_dir()):
                    yield path
                elif link and _leads_back(root, path):
                    continue
                elif entry.name.lower() not in _SNAPSHOTS:
                    waiting.append(path)


def _leads_back(root: Path, path: str) -> bool:
    """Tell whether a link leads to a folder that it lies in, the root or one above it too."""
    target, above = os.stat(root / path), (root / path).absolute().parents
    return any(os.path.samestat(target, os.stat(folder)) for folder in above)


def _reason(ending: str) -> str:
    if ending in PLUGINS:
        return f" (install {PLUGINS[ending]})"
    if ending in _RAW:
        return " (raw camera files are not read)"
    return " (videos are not read)" if ending in _VIDEOS else ""
