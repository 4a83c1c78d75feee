"""Find the tensors in checkpoints of other programs, and read those of teachers."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from beit.run.settings import first
from beit.weights.file import read_safetensors
from beit.weights.safe_pickle import records
from beit.weights.safe_pickle.files import read_checkpoint

# Entries with a model's tensors: of the published code; of DeepSpeed; timm's averaged ones; of
# OpenMMLab and timm; of BEiT v1's discrete VAE.
CONTAINERS = ("model", "module", "state_dict_ema", "state_dict", "weights")
# Of teachers: timm's averaged and plain ones, DINO's training checkpoints.
TEACHER_CONTAINERS = ("state_dict_ema", "model_ema", "state_dict", "model", "teacher")
# In TorchScript: build_intlist([...]) and the like, restore_type_tag(value, "...").
TYPED = ("build_intlist", "build_tensorlist", "build_doublelist", "build_boollist")
TORCHSCRIPT_FUNCTIONS = records.FUNCTIONS | {
    ("torch.jit._pickle", name): records.first_argument for name in (*TYPED, "restore_type_tag")
}


def unwrapped(content: Mapping[str, Any], containers: tuple[str, ...]) -> Mapping[str, Any]:
    """Return the first container in `content`, or `content` itself if it has none."""
    inner = (content[name] for name in containers if isinstance(content.get(name), Mapping))
    return next(inner, content)


def named_tensors(content: Mapping[str, Any], origin: str) -> dict[str, Tensor]:
    """Return a model's tensors without their container; other entries beside it are ignored."""
    state = unwrapped(content, CONTAINERS)
    others = [str(name) for name, value in state.items() if not isinstance(value, Tensor)]
    if others or not state:
        raise ValueError(
            f"{origin} does not hold tensors by name, nor does one of its entries "
            f"{', '.join(CONTAINERS)}; got {first(others) or 'nothing'}"
        )
    return dict(state)


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Read a teacher's tensors by name, without their container; no code in the file is run."""
    if not file.is_file():
        raise FileNotFoundError(
            f"{file} is not a file; expected weights in .safetensors, .pth or .pt, or the name of "
            "a teacher: efficientnet-lite0, timm:NAME, timm:NAME@FILE"
        )
    content: Mapping[str, Any]
    if file.suffix == ".safetensors":
        content, _ = read_safetensors(file)
    elif _is_torchscript(file):
        content = _read_torchscript(file)
    else:
        content = read_checkpoint(file)
    content = unwrapped(content, TEACHER_CONTAINERS)
    tensors = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(f"{file} holds no tensors by name")
    return tensors


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())


def _read_torchscript(path: Path) -> dict[str, Tensor]:
    """Read a TorchScript archive, such as OpenAI's CLIP files: parameters and buffers by name.

    `torch.jit.load` would compile and partly run the code in the archive. Here its objects are
    unpickled as inert records, and any other name is refused.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            root = records.zip_root(archive)
            if root is None:
                raise LookupError("it has no data.pkl")
            data = records.zip_read(archive, root + "data.pkl")
            classes = ("__torch__.",)
            module = records.unpickle(data, classes=classes, functions=TORCHSCRIPT_FUNCTIONS).value
            views = records.views(module, vars)
            return records.tensors_of(views, records.zip_storage(archive, root))
    except records.UNSOUND as error:
        raise ValueError(f"{path} is not a sound TorchScript archive ({error})") from error
