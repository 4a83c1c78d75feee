"""Find the tensors in checkpoints of other programs, and read those of teachers."""

import logging
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from beit.run.settings import first
from beit.weights.assemble import refuse_inflated
from beit.weights.safe_pickle import records
from beit.weights.shards import read_file, refuse_shard

logger = logging.getLogger(__name__)

# Entries with a model's tensors: of the published code; of DeepSpeed; timm's averaged ones; of
# OpenMMLab, timm and Lightning; of BEiT v1's discrete VAE; of PyTorch's tutorials; averaged ones.
OTHERS = ("model_state_dict", "net")
CONTAINERS = ("model", "module", "state_dict_ema", "state_dict", "weights", *OTHERS, "model_ema")
# Of teachers: timm's averaged and plain ones, DINO's training checkpoints, and others as above.
TEACHER_CONTAINERS = ("state_dict_ema", "model_ema", "state_dict", "model", "teacher", *OTHERS)
# In TorchScript: build_intlist([...]) and the like, restore_type_tag(value, "...").
TYPED = ("build_intlist", "build_tensorlist", "build_doublelist", "build_boollist")
TORCHSCRIPT_FUNCTIONS = records.FUNCTIONS | {
    ("torch.jit._pickle", name): records.first_argument for name in (*TYPED, "restore_type_tag")
}


def unwrapped(
    content: Mapping[str, Any], containers: tuple[str, ...], origin: str
) -> Mapping[str, Any]:
    """Return the first container in `content`, or `content` itself if it has none."""
    held = [name for name in containers if isinstance(content.get(name), Mapping)]
    if len(held) > 1:
        logger.warning("%s has weights in %s; used: %s", origin, ", ".join(held), held[0])
    return content[held[0]] if held else content


def named_tensors(content: Mapping[str, Any], origin: str) -> dict[str, Tensor]:
    """Return a model's tensors without their container; other entries beside it are ignored."""
    state = unwrapped(content, CONTAINERS, origin)
    others = [repr(name) for name, value in state.items() if not _is_named_tensor(name, value)]
    if others or not state:
        got = f"other entries: {first(others)}" if others else "nothing"
        raise ValueError(
            f"{origin} does not hold tensors by name, nor does one of its entries "
            f"{', '.join(CONTAINERS)}; got {got}"
        )
    return dict(state)


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Read a teacher's tensors by name, without their container; no code in the file is run."""
    if not file.is_file():
        raise FileNotFoundError(
            f"{file} is not a file; expected weights in .safetensors, .pth or .pt, or the name of "
            "a teacher: efficientnet-lite0 to 2, timm:NAME, timm:NAME@FILE, "
            "published:clip_vit_b16, published:dino_vitb16"
        )
    refuse_shard(file)
    content = _read_torchscript(file) if _is_torchscript(file) else read_file(file)[0]
    content = unwrapped(content, TEACHER_CONTAINERS, str(file))
    tensors = {name: value for name, value in content.items() if _is_named_tensor(name, value)}
    if not tensors:
        raise ValueError(f"{file} holds no tensors by name")
    refuse_inflated(tensors, str(file))
    return tensors


def _is_named_tensor(name: object, value: object) -> bool:
    return isinstance(name, str) and isinstance(value, Tensor)


def _is_torchscript(path: Path) -> bool:
    try:
        if not zipfile.is_zipfile(path):
            return False
        with zipfile.ZipFile(path) as archive:
            return any("/code/" in name for name in archive.namelist())
    except records.UNSOUND as error:
        if not records.unsound(error):
            raise
        raise ValueError(f"{path} is not a sound PyTorch archive ({error})") from error


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
        if not records.unsound(error):
            raise
        raise ValueError(f"{path} is not a sound TorchScript archive ({error})") from error
