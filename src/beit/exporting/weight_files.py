"""Export files that beit.load opens: our own, and those of the published code."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from beit.exporting.verification import Reopened, outputs
from beit.nn.mim import MaskedImageModel
from beit.nn.segmenter import SemanticSegmenter
from beit.nn.tokenizer import VQKD
from beit.weights.file import config_of_vit, save_weights
from beit.weights.formats.published import to_published
from beit.weights.formats.published_segmentation import published_meta
from beit.weights.open import load

# Settings that a published file may not determine. If it does not even determine the shapes, those
# up to `layers` are needed.
VIT_SETTINGS = ("num_heads", "image_size", "mean", "std")
MODEL_SETTINGS = {VQKD: "decay", MaskedImageModel: "early_layers", SemanticSegmenter: "layers"}
SHAPE_SETTINGS = ("num_heads", "image_size", "early_layers", "layers")


def own_file(model: nn.Module, path: Path, output: str) -> Reopened:
    """Write our own weights file."""
    save_weights(path, model)
    return _reopened(model, path, {}, f"beit.load({output!r})")


def published_file(model: nn.Module, path: Path, output: str) -> Reopened:
    """Write a state dict of the published code; a .pth file has it in the usual container."""
    state = to_published(model)
    if path.suffix == ".safetensors":
        save_tensors(state, path)
    elif isinstance(model, SemanticSegmenter):
        torch.save({"state_dict": state, "meta": published_meta(model.config)}, path)
    else:
        torch.save({"model": state}, path)
    settings = _settings(model)
    needed = "".join(f", {name}={value!r}" for name, value in _needed(path, settings).items())
    return _reopened(model, path, settings, f"beit.load({output!r}{needed})")


def save_tensors(state: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors to a safetensors file, which does not allow shared memory."""
    copies = {name: tensor.detach().clone().contiguous() for name, tensor in state.items()}
    save_file(copies, path, {"format": "pt"})


def _settings(model: nn.Module) -> dict[str, Any]:
    """Return the settings that a published file may not determine, as overrides of beit.load."""
    config: Any = model.config
    vit = config_of_vit(config)
    settings = {name: getattr(vit, name) for name in VIT_SETTINGS}
    name = MODEL_SETTINGS.get(type(model))
    return settings if name is None else settings | {name: getattr(config, name)}


def _needed(path: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Select the settings that beit.load does not derive correctly from the file."""
    needed: dict[str, Any] = {}
    try:
        config: Any = load(path).config
    except ValueError:  # shapes do not determine enough
        needed = {name: settings[name] for name in SHAPE_SETTINGS if name in settings}
        config = load(path, **needed).config
    vit = config_of_vit(config)
    for name, value in settings.items():
        if getattr(vit, name, getattr(config, name, None)) != value:
            needed[name] = value
    return needed


def _reopened(
    model: nn.Module, path: Path, overrides: Mapping[str, Any], opened_by: str
) -> Reopened:
    """Open a file with beit.load; every tensor must equal the model's."""
    loaded = load(path, **overrides)
    tensors = loaded.state_dict()
    for name, tensor in model.state_dict().items():
        if not torch.equal(tensor, tensors[name]):
            raise ValueError(f"{path.name} is not kept: its {name} differs from the model's")
    return Reopened(lambda images, masked: outputs(loaded, images, masked), opened_by)
