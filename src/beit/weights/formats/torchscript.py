"""Read tensors from TorchScript archives, such as OpenAI's CLIP files; their code is not run."""

import zipfile
from pathlib import Path

from torch import Tensor

from beit.weights.safe_pickle import records

# build_intlist([...]) and the like, restore_type_tag(value, "...")
TYPED = ("build_intlist", "build_tensorlist", "build_doublelist", "build_boollist")
FUNCTIONS = records.FUNCTIONS | {
    ("torch.jit._pickle", name): records.first_argument for name in (*TYPED, "restore_type_tag")
}


def is_torchscript(path: Path) -> bool:
    """Whether the file is a zip archive with TorchScript code."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """Read the parameters and buffers of a TorchScript archive, by dotted name.

    `torch.jit.load` would compile and partly run the code in the archive. Here its objects are
    unpickled as inert records, and any other name is refused.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            root = records.zip_root(archive)
            if root is None:
                raise LookupError("it has no data.pkl")
            data = records.zip_read(archive, root + "data.pkl")
            module = records.unpickle(data, classes=("__torch__.",), functions=FUNCTIONS).value
            views = records.views(module, vars)
            return records.tensors_of(views, records.zip_storage(archive, root))
    except records.UNSOUND as error:
        raise ValueError(f"{path} is not a sound TorchScript archive ({error})") from error
