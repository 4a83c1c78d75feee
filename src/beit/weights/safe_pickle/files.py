"""Read files that torch pickled: tensors and plain values only; no code in them is run."""

import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from beit.weights.mistaken import PICKLE, ZIP, instead
from beit.weights.safe_pickle.records import UNSOUND, unsound
from beit.wording import an


class Ignored:
    """Placeholder for an object in a training checkpoint that is not a weight; holds nothing."""

    def __new__(cls, *_: object) -> "Ignored":
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        pass


# In training checkpoints of the published code, besides tensors: its options, and the optimiser's
# learning rates, which are NumPy scalars. Module names depend on NumPy's release.
MULTIARRAYS = ("numpy.core.multiarray", "numpy._core.multiarray")
IGNORED_NAMES = (
    *("argparse.Namespace", "numpy.dtype", "numpy.ndarray"),
    "mmengine.logging.history_buffer.HistoryBuffer",  # of losses
    *(f"{module}.{name}" for module in MULTIARRAYS for name in ("scalar", "_reconstruct")),
)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a `.pth`, `.pt` or `.bin` file onto the CPU.

    Options and NumPy numbers of training checkpoints become `Ignored` objects. A file that names
    anything besides tensors, plain values and `IGNORED_NAMES` is refused; nothing in it is run.
    """
    path = Path(path)
    with path.open("rb") as file:
        beginning = file.read(2)
    if not beginning.startswith((ZIP, PICKLE)):
        what = instead(path) or f": it begins with {beginning!r}"
        raise ValueError(f"{path} is not a PyTorch checkpoint{what}")
    placeholders: list[Any] = [(Ignored, name) for name in IGNORED_NAMES]
    try:
        if beginning == ZIP:
            _check_sizes(path)
        with torch.serialization.safe_globals(placeholders), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's message is not shown: it advises to allow execution.
        name = re.search(r"GLOBAL (\S+)", str(error))
        more = "holds more than tensors and plain values, such as"
        what = f"{more} {name[1]}" if name else "is damaged, or torch.save did not write it"
        raise ValueError(
            f"{path} is refused: it {what}. Nothing of it was executed; save only the state_dict, "
            "with torch.save"
        ) from error
    except (*UNSOUND, MemoryError) as error:
        if not unsound(error):
            raise
        raise ValueError(
            f"{path} is damaged, or torch.save did not write it ({error!r}); download it again"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds {an(type(content).__name__)}, expected tensors by name")
    if content.keys() == {"step", "state"}:
        raise ValueError(f"{path} is a checkpoint for resuming; give its run directory instead")
    return content


def _check_sizes(path: Path) -> None:
    """Refuse an archive whose entries, which torch does not compress, are larger than the file."""
    with zipfile.ZipFile(path) as archive:
        claimed = sum(entry.file_size for entry in archive.infolist())
    size = path.stat().st_size
    if claimed > size:
        raise ValueError(f"its entries claim {claimed} bytes and the file has {size}")
