"""Export folders that other libraries open: timm and Hugging Face transformers."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from beit.exporting.verification import Reopened
from beit.exporting.weight_files import save_tensors
from beit.files import write_text
from beit.nn.mim import MaskedImageModel, take
from beit.nn.vit import VisionTransformer
from beit.run.settings import first
from beit.weights.formats.timm_beit import timm_config, to_timm
from beit.weights.formats.transformers_beit import to_transformers
from beit.weights.formats.transformers_config import image_processor_config, transformers_config


def timm_folder(model: nn.Module, path: Path, output: str) -> Reopened:
    """Write a folder for timm.create_model: weights and configuration."""
    import timm
    from timm.data.config import resolve_model_data_config

    path.mkdir()
    save_tensors(to_timm(model), path / "model.safetensors")
    _write_json(timm_config(model), path / "config.json")
    network: Any = timm.create_model(f"local-dir:{path}", pretrained=True).eval()
    data = resolve_model_data_config(network)
    mean, std = (torch.tensor(data[name]).view(-1, 1, 1) for name in ("mean", "std"))

    def run(images: Tensor, masked: Tensor) -> Mapping[str, Tensor]:
        pixels = (images - mean) / std
        if isinstance(model, VisionTransformer):
            return _features(network.forward_features(pixels))
        return {"logits": network(pixels)}

    return Reopened(run, f'timm.create_model("local-dir:{output}", pretrained=True)')


def transformers_folder(model: nn.Module, path: Path, output: str) -> Reopened:
    """Write a folder for from_pretrained: weights, configuration, image processor."""
    try:
        import transformers
    except ImportError as error:
        raise ValueError(
            'format transformers needs that package, which is missing: pip install "beit[hf]"'
        ) from error

    if isinstance(model, MaskedImageModel) and model.aggregation:
        print("  without the patch aggregation, which transformers does not have")
    path.mkdir()
    config = transformers_config(model)
    save_tensors(to_transformers(model), path / "model.safetensors")
    _write_json(config, path / "config.json")
    _write_json(image_processor_config(model), path / "preprocessor_config.json")
    (kind,) = config["architectures"]
    network, info = getattr(transformers, kind).from_pretrained(path, output_loading_info=True)
    problems = [
        f"{what}: {first(sorted(map(str, names)))}" for what, names in info.items() if names
    ]
    if problems:
        raise ValueError(f"{output} is not kept: transformers reports {'; '.join(problems)}")
    processor = transformers.AutoImageProcessor.from_pretrained(path)

    def run(images: Tensor, masked: Tensor) -> Mapping[str, Tensor]:
        pixels = processor(images=list((images * 255).round().byte()), return_tensors="pt")
        if isinstance(model, VisionTransformer):
            return _features(network(**pixels).last_hidden_state)
        if isinstance(model, MaskedImageModel):
            N = model.config.backbone.num_patches
            hidden = torch.zeros(len(masked), N).scatter_(1, masked, 1).bool()  # (B, N)
            return {"logits": take(network(**pixels, bool_masked_pos=hidden).logits, masked)}
        return {"logits": network(**pixels).logits}

    return Reopened(run, f"transformers.{kind}.from_pretrained({output!r})")


def _features(tokens: Tensor) -> dict[str, Tensor]:
    """Split tokens (B, 1+N, D) into the outputs of a VisionTransformer."""
    return {"cls": tokens[:, 0], "patches": tokens[:, 1:]}


def _write_json(content: Mapping[str, Any], path: Path) -> None:
    write_text(path, json.dumps(content, indent=2) + "\n")
