"""Say what a file is that was expected to hold weights, by its first bytes."""

from pathlib import Path

ZIP, PICKLE = b"PK", b"\x80"  # first bytes of files of torch 1.6 and later, and of older ones


def instead(path: Path) -> str:
    """Return what the file is and what to do, beginning with a semicolon; empty if unknown."""
    with path.open("rb") as file:
        beginning = file.read(32)
    if not beginning:
        return "; it is empty: download it again"
    if beginning.startswith(b"version https://git-lfs"):
        return "; it is a pointer of Git LFS: run git lfs pull in its folder, or download the file"
    if beginning.lstrip().startswith(b"<"):
        return "; it is a web page: download the file itself"
    if path.suffix != ".safetensors" and beginning[8:9] == b"{":
        return "; it is a safetensors file: rename it to .safetensors"
    if path.suffix == ".safetensors" and beginning.startswith((ZIP, PICKLE)):
        return "; it is a PyTorch checkpoint: rename it to .pth"
    return ""
