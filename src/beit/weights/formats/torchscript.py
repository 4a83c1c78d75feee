"""Tensors of a TorchScript archive, such as OpenAI's CLIP files, read without running its code."""

import zipfile
from pathlib import Path

from torch import Tensor

from beit.weights.safe_pickle import records as inert

# build_intlist([...]) and the like, restore_type_tag(value, "...")
TYPED = ("build_intlist", "build_tensorlist", "build_doublelist", "build_boollist")
NAMES = inert.NAMES | {
    ("torch.jit._pickle", name): inert.first_argument for name in (*TYPED, "restore_type_tag")
}


def is_torchscript(path: Path) -> bool:
    """Whether the file is a zip archive that holds TorchScript code."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """Read the parameters and buffers of a TorchScript archive, by their dotted names.

    `torch.jit.load` would compile and partly run what the archive brings along. Here its object
    graph is unpickled with inert stand-ins for its classes; nothing else can be named in it.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            root = inert.zip_root(archive)
            if root is None:
                raise LookupError("it has no data.pkl")
            data = inert.zip_read(archive, root + "data.pkl")
            module = inert.unpickle(data, classes=("__torch__.",), names=NAMES).value
            return inert.tensors_of(inert.views(module, vars), inert.zip_storage(archive, root))
    except inert.UNSOUND as error:
        raise ValueError(f"{path} is not a sound TorchScript archive ({error})") from error
