"""Export weights: for beit.load (our own file, the published layout), timm and transformers."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from beit.data.views import CROP_RATIO
from beit.exporting.verification import Reopened, outputs, quoted
from beit.files import write_text
from beit.nn.mim import MaskedImageModel
from beit.nn.patches import grey, take
from beit.nn.segmenter import SemanticSegmenter
from beit.nn.tokenizer import VQKD
from beit.nn.vit import VisionTransformer
from beit.run.settings import first
from beit.weights.assemble import config_of_vit
from beit.weights.file import save_weights
from beit.weights.formats.published import to_published
from beit.weights.formats.published_segmentation import published_meta
from beit.weights.formats.timm_beit import timm_config, to_timm
from beit.weights.formats.transformers_beit import to_transformers
from beit.weights.formats.transformers_config import image_processor_config, transformers_config
from beit.weights.open import load

# Settings that a published file may not determine. If it does not even determine the shapes, those
# up to `layers` are needed.
VIT_SETTINGS = ("num_heads", "image_size", "mean", "std")
MODEL_SETTINGS = {VQKD: "decay", MaskedImageModel: "early_layers", SemanticSegmenter: "layers"}
SHAPE_SETTINGS = ("num_heads", "image_size", "early_layers", "layers")


def own_file(
    model: nn.Module, path: Path, output: str, crop_ratio: float | None = None
) -> Reopened:
    """Write our own weights file."""
    save_weights(path, model, crop_ratio)
    return _reopened(model, path, {}, f"beit.load({quoted(output)})")


def published_file(model: nn.Module, path: Path, output: str) -> Reopened:
    """Write a state dict of the published code; a .pth file has it in the usual container."""
    state = to_published(model)
    if path.suffix == ".safetensors":
        _save_tensors(state, path)
    elif isinstance(model, SemanticSegmenter):
        torch.save({"state_dict": state, "meta": published_meta(model.config)}, path)
    else:
        torch.save({"model": state}, path)
    config: Any = model.config
    settings = {name: getattr(config_of_vit(config), name) for name in VIT_SETTINGS}
    if type(model) in MODEL_SETTINGS:
        name = MODEL_SETTINGS[type(model)]
        settings[name] = getattr(config, name)
    needed = "".join(f", {name}={value!r}" for name, value in _needed(path, settings).items())
    return _reopened(model, path, settings, f"beit.load({quoted(output)}{needed})")


def _save_tensors(state: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors to a safetensors file, which does not allow shared memory."""
    copies = {name: tensor.detach().clone().contiguous() for name, tensor in state.items()}
    save_file(copies, path, {"format": "pt"})


def timm_folder(
    model: nn.Module, path: Path, output: str, crop_ratio: float = CROP_RATIO
) -> Reopened:
    """Write a folder for timm.create_model: weights and configuration, with the crop."""
    import timm
    from timm.data.config import resolve_model_data_config

    _write_folder(path, to_timm(model), {"config": timm_config(model, crop_ratio)})
    network: Any = timm.create_model(f"local-dir:{path}", pretrained=True).eval()
    data = resolve_model_data_config(network)
    mean, std = (torch.tensor(data[name]).view(-1, 1, 1) for name in ("mean", "std"))

    def run(images: Tensor, masked: Tensor) -> Mapping[str, Tensor]:
        pixels = (_channels(model, images) - mean) / std
        if isinstance(model, VisionTransformer):
            return _features(network.forward_features(pixels))
        return {"logits": network(pixels)}

    name = quoted(f"local-dir:{output}")
    return Reopened(run, f"timm.create_model({name}, pretrained=True)")


def transformers_folder(
    model: nn.Module, path: Path, output: str, crop_ratio: float = CROP_RATIO
) -> Reopened:
    """Write a folder for from_pretrained: weights, configuration, image processor with the crop."""
    try:
        import transformers
    except ImportError as error:
        raise ValueError(
            'format transformers needs that package, which is missing: pip install "beit[hf]"'
        ) from error

    if isinstance(model, MaskedImageModel) and model.aggregation:
        print("  without the patch aggregation, which transformers does not have")
    config = transformers_config(model)
    share = 1.0 if isinstance(model, SemanticSegmenter) else crop_ratio
    settings = {"config": config, "preprocessor_config": image_processor_config(model, share)}
    _write_folder(path, to_transformers(model), settings)
    (kind,) = config["architectures"]
    network, info = getattr(transformers, kind).from_pretrained(path, output_loading_info=True)
    problems = [
        f"{what}: {first(sorted(map(str, names)))}" for what, names in info.items() if names
    ]
    if problems:
        raise ValueError(f"{output} is not kept: transformers reports {'; '.join(problems)}")
    processor = transformers.AutoImageProcessor.from_pretrained(path)

    def run(images: Tensor, masked: Tensor) -> Mapping[str, Tensor]:
        levels = _channels(model, images) * 255
        pixels = processor(
            images=list(levels),
            return_tensors="pt",
            input_data_format="channels_first",
            do_resize=False,
            do_center_crop=False,
        )
        if isinstance(model, VisionTransformer):
            return _features(network(**pixels).last_hidden_state)
        if isinstance(model, MaskedImageModel):
            N = model.config.backbone.num_patches
            hidden = torch.zeros(len(masked), N).scatter_(1, masked, 1).bool()  # (B, N)
            return {"logits": take(network(**pixels, bool_masked_pos=hidden).logits, masked)}
        return {"logits": network(**pixels).logits}

    return Reopened(run, f"transformers.{kind}.from_pretrained({quoted(output)})")


def _channels(model: nn.Module, images: Tensor) -> Tensor:
    """Return images (B, 3, H, W) as other libraries take them: grey for a model of one channel."""
    vit = config_of_vit(model.config)
    return grey(images) if vit is not None and vit.in_channels == 1 else images


def _features(tokens: Tensor) -> dict[str, Tensor]:
    """Split tokens (B, 1+N, D) into the outputs of a VisionTransformer."""
    return {"cls": tokens[:, 0], "patches": tokens[:, 1:]}


def _write_folder(path: Path, state: Mapping[str, Tensor], settings: Mapping[str, Any]) -> None:
    """Write model.safetensors and, by their names, JSON files."""
    path.mkdir()
    _save_tensors(state, path / "model.safetensors")
    for name, content in settings.items():
        write_text(path / f"{name}.json", json.dumps(content, indent=2) + "\n")


def _opened(path: Path, **overrides: Any) -> nn.Module:
    """Open a written file by beit.load, without log messages: they would name its hidden folder."""
    log = logging.getLogger("beit")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        return load(path, **overrides)
    finally:
        log.setLevel(level)


def _needed(path: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Select the settings that beit.load does not derive correctly from the file."""
    needed: dict[str, Any] = {}
    try:
        config: Any = _opened(path).config
    except ValueError:  # shapes do not determine enough
        needed = {name: settings[name] for name in SHAPE_SETTINGS if name in settings}
        config = _opened(path, **needed).config
    vit = config_of_vit(config)
    for name, value in settings.items():
        if getattr(vit, name, getattr(config, name, None)) != value:
            needed[name] = value
    return needed


def _reopened(
    model: nn.Module, path: Path, overrides: Mapping[str, Any], opened_by: str
) -> Reopened:
    """Open a file with beit.load; every tensor must equal the model's."""
    loaded = _opened(path, **overrides)
    for name, tensor in model.state_dict().items():
        if not torch.equal(tensor, loaded.state_dict()[name]):
            raise ValueError(f"{path.name} is not kept: its {name} differs from the model's")
    return Reopened(lambda images, masked: outputs(loaded, images, masked), opened_by)
