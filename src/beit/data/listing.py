"""The files below a folder: images, others by ending, and those that systems and programs add."""

import functools
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from beit.data.decoding import PLUGINS, extensions

_log = logging.getLogger(__name__)

# Folders and files that systems and programs add, besides those that start with a dot.
_SYSTEM = {"system volume information", "icon\r"} | set(
    "@eadir @recycle @recently-snapshot #recycle #snapshot $recycle.bin recycler __macosx "
    "lost+found thumbs.db ehthumbs.db desktop.ini".split()
)
_SNAPSHOTS = {"#snapshot", "@recently-snapshot", ".snapshot", ".zfs"}  # copies of a whole disk
# Files that usually lie beside images; not worth a word.
_SIDE_FILES = set(
    ".cfg .csv .css .html .ini .js .json .jsonl .log .mat .md .names .npy .pkl .py .rst .sh .toml "
    ".tsv .txt .xml .yaml .yml".split()
)
_RAW = set(".3fr .arw .cr2 .cr3 .dng .nef .orf .pef .raf .raw .rw2 .srw .x3f".split())
_VIDEOS = set(".3gp .avi .m4v .mkv .mov .mp4 .mpeg .mpg .webm .wmv".split())
_ADVICE = {".parquet": "name the Parquet files, as in '{}/*.parquet'"}
_ADVICE |= {".arrow": "name the folder of the Arrow files, {}"}
_ADVICE |= dict.fromkeys((".zip", ".tar", ".gz", ".tgz", ".7z", ".rar"), "unpack the archive in {}")
_NAMED = 8  # endings named in a message


class Listing(NamedTuple):
    """Files below a folder; each file is counted once.

    Attributes:
        images: paths of the images, relative to the folder, sorted
        others: number of the other files by ending
        hidden: number of images by the hidden or system folder that holds them
        ignored: number of other hidden or system files
        folders: the folder of a first file by ending
    """

    images: list[str]
    others: Counter[str]
    hidden: Counter[str]
    ignored: int
    folders: dict[str, str]

    def passed_over(self) -> str:
        """Say which files are no images and why, as in "44 .heic (install pillow-heif), 4 .txt"."""
        named = self.others.most_common(_NAMED)
        rest = len(self.others) - len(named)
        counts = [f"{count} {ending}{_reason(ending)}" for ending, count in named]
        return ", ".join(counts) + (f" and {rest} other endings" if rest else "")

    def hidden_images(self) -> str:
        """Say which images are skipped, as in "12 images in @eaDir, .thumbnails"; maybe empty."""
        return f"{self.hidden.total()} images in {', '.join(self.hidden)}" if self.hidden else ""

    def __str__(self) -> str:
        parts = [f"{len(self.images)} images"]
        if not self.others.keys() <= _SIDE_FILES:
            parts = [f"{len(self.images) + self.others.total()} files, {parts[0]}"]
            parts.append(f"not read: {self.passed_over()}")
        return "; ".join(parts + ([f"skipped {self.hidden_images()}"] if self.hidden else []))


def is_system(name: str) -> bool:
    """Tell whether a file or folder is hidden, or one that systems and programs add."""
    return name.startswith(".") or name.lower() in _SYSTEM


def system_part(path: str) -> str:
    """Return the first part of a path with / that is hidden or that systems add; maybe empty."""
    return next((part for part in path.split("/") if is_system(part)), "")


def list_folder(root: Path) -> Listing:
    """List the files below a folder. Raises ValueError that says what is there without images."""
    return checked(listed(_files(root)), str(root))


def listed(files: Iterable[tuple[str, str]]) -> Listing:
    """Sort out files: pairs of a path and the hidden or system folder it is in, if any."""
    images, others, hidden, ignored = list[str](), Counter[str](), Counter[str](), 0
    folders, readable = dict[str, str](), extensions()
    for path, system in files:
        ending = os.path.splitext(path)[1].lower()
        if system:
            # ._NAME holds what a Mac knows about NAME
            image = ending in readable and not os.path.basename(path).startswith("._")
            hidden.update([system] if image else [])
            ignored += not image
        elif ending in readable:
            images.append(path)
        else:
            ending = ending if re.fullmatch(r"\.(?!\d+$)\w{1,9}", ending) else "(none)"
            others[ending] += 1
            folders.setdefault(ending, os.path.dirname(path))
    images.sort()
    return Listing(images, others, hidden, ignored, folders)


def checked(listing: Listing, where: str) -> Listing:
    """Return a listing that has images. Raises ValueError that says what is there instead."""
    if listing.images:
        return listing
    parts = [part for part in (listing.passed_over(), listing.hidden_images()) if part]
    parts = parts or ["no files"]
    for ending, advice in _ADVICE.items():
        if ending in listing.folders:
            parts.append(advice.format(os.path.join(where, listing.folders[ending]).rstrip(os.sep)))
    raise ValueError(
        f"{where}: no images in this folder or those below it; found {'; '.join(parts)}; expected "
        "files that end in .jpg, .png, .tif or another ending of an image"
    )


@functools.cache
def say_once(message: str) -> None:
    """Log what a source holds; a run opens the same source several times."""
    _log.info("%s", message)


def _files(root: Path) -> Iterator[tuple[str, str]]:
    """Yield every file below a folder: relative path, and hidden or system folder it is in."""
    waiting = [("", "")]
    while waiting:
        folder, system = waiting.pop()
        try:
            entries = os.scandir(root / folder)
        except PermissionError:
            if system:  # lost+found is closed to most users
                continue
            raise
        with entries:
            for entry in entries:
                path, link = os.path.join(folder, entry.name), entry.is_symlink()
                inside = system or (entry.name if is_system(entry.name) else "")
                if not (os.path.isdir(root / path) if link else entry.is_dir()):
                    yield path, inside
                elif inside.lower() not in _SNAPSHOTS and not (link and _leads_back(root, path)):
                    waiting.append((path, inside))


def _leads_back(root: Path, path: str) -> bool:
    """Tell whether a link leads to a folder that it lies in."""
    target, above = os.stat(root / path), (root / path).parents
    levels = path.count(os.sep) + 1
    return any(os.path.samestat(target, os.stat(folder)) for folder in above[:levels])


def _reason(ending: str) -> str:
    if ending in PLUGINS:
        return f" (install {PLUGINS[ending]})"
    if ending in _RAW:
        return " (raw camera files are not read)"
    return " (videos are not read)" if ending in _VIDEOS else ""
