"""Files that torch pickled: tensors and plain values are read, nothing in them is run."""

import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

ZIP, PICKLE = b"PK", b"\x80"  # how files of torch 1.6 and later, and of older ones, begin
# What torch's safe unpickler raises on bytes that only begin like a checkpoint.
UNREADABLE = (
    RuntimeError,
    EOFError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    MemoryError,
    zipfile.BadZipFile,
)


class ReadPast:
    """Stands for an object of a training checkpoint that is no weight: takes all, does nothing."""

    def __new__(cls, *_: object) -> "ReadPast":
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        pass


# In training checkpoints of the published code, besides tensors: its options, and the optimiser's
# learning rates, which come out of a NumPy table. Names differ by NumPy's release.
READ_PAST = (
    "argparse.Namespace",
    "numpy.dtype",
    "numpy.ndarray",
    *(
        f"numpy.{core}.multiarray.{name}"
        for core in ("core", "_core")
        for name in ("scalar", "_reconstruct")
    ),
)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a `.pth`, `.pt` or `.bin` file onto the CPU; refuse it if it names anything to run.

    Options and NumPy numbers of training checkpoints become `ReadPast` objects.

    Raises:
        ValueError: it is no such file, is damaged, is a run's own checkpoint, or holds more than
            tensors, plain values and what is read past. Nothing of it was executed.
    """
    path = Path(path)
    with path.open("rb") as file:
        beginning = file.read(2)
    if not beginning.startswith((ZIP, PICKLE)):
        raise ValueError(f"{path} is not a PyTorch checkpoint: it begins with {beginning!r}")
    inert: list[Any] = [(ReadPast, name) for name in READ_PAST]
    try:
        if beginning == ZIP:
            _check_claims(path)
        with torch.serialization.safe_globals(inert), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols; the errors say enough
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's own message advises to load it with execution allowed: not passed on.
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = f"{found[1]} among them" if found else "or is damaged"
        raise ValueError(
            f"{path} is refused: it holds more than tensors and plain values, {what}. "
            "Nothing of it was executed; save a state_dict alone"
        ) from error
    except UNREADABLE as error:
        raise ValueError(f"{path} is damaged, or not a PyTorch checkpoint ({error!r})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected tensors by name")
    if content.keys() == {"step", "state"}:
        raise ValueError(f"{path} is a checkpoint for resuming; give its run directory instead")
    return content


def _check_claims(path: Path) -> None:
    """Refuse an archive whose entries claim more bytes than the file has, before memory is asked.

    torch writes its entries uncompressed.
    """
    with zipfile.ZipFile(path) as archive:
        claimed = sum(entry.file_size for entry in archive.infolist())
    size = path.stat().st_size
    if claimed > size:
        raise ValueError(f"its entries claim {claimed} bytes and the file has {size}")
