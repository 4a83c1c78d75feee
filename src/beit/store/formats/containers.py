"""Reading the tensors of other people's files, whatever the container."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from beit.store.formats.torchscript import is_torchscript, read_torchscript
from beit.store.load import read_checkpoint
from beit.store.weights import read_safetensors

# Where checkpoints keep the tensors: timm's averaged, plain ones, DINO's training checkpoints.
CONTAINERS = ("state_dict_ema", "model_ema", "state_dict", "model", "teacher")


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Return the tensors of a file by name, without their container; nothing in it is run."""
    if not file.is_file():
        raise FileNotFoundError(
            f"{file} is not a file; expected weights in .safetensors, .pth or .pt, or the name of "
            "a teacher: efficientnet-lite0, timm:NAME, timm:NAME@FILE"
        )
    content: Mapping[str, Any]
    if file.suffix == ".safetensors":
        content, _ = read_safetensors(file)
    elif is_torchscript(file):
        content = read_torchscript(file)
    else:
        content = read_checkpoint(file)
    for key in CONTAINERS:
        inner = content.get(key)
        if isinstance(inner, Mapping):
            content = inner
            break
    tensors = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(f"{file} holds no tensors by name")
    return tensors
