"""Our weights files: safetensors that carry the model's configuration, normalisation included."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from beit.nn.mim import MaskedImageModel, MaskedImageModelConfig
from beit.nn.position import CLS_ROWS
from beit.nn.tokenizer import VQKD, VQKDConfig
from beit.nn.vit import VisionTransformer, ViTConfig
from beit.store.atomic import replacing
from beit.store.settings import first, from_plain

FORMAT, VERSION = "beit", "1"
Config = ViTConfig | VQKDConfig | MaskedImageModelConfig
KINDS: dict[str, tuple[type[nn.Module], type[Config]]] = {
    "VQKD": (VQKD, VQKDConfig),
    "MaskedImageModel": (MaskedImageModel, MaskedImageModelConfig),
    "VisionTransformer": (VisionTransformer, ViTConfig),
}
TABLE = "rel_pos_bias.table"


def save_weights(path: str | Path, model: nn.Module) -> None:
    """Write the model's weights and configuration to a safetensors file, in one piece."""
    kind = type(model).__name__
    if kind not in KINDS:
        raise ValueError(f"a {kind} is not saved; expected the bare model, one of {_kinds()}")
    config: Any = model.config
    assert isinstance(config, Config)
    about = {"version": VERSION, "kind": kind, "config": dataclasses.asdict(config)}
    # One entry: safetensors writes several in an order that differs from run to run.
    metadata = {FORMAT: json.dumps(about)}
    tensors = {
        name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()
    }
    with replacing(Path(path)) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode
        save_file(tensors, temporary, metadata)
        temporary.chmod(mode)  # as other files of the run; safetensors shuts out all but the owner


def read_safetensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read any safetensors file: its tensors and its metadata (empty when it has none)."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file; expected a .safetensors file")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path} is not a sound safetensors file ({error})") from error


def read_weights(path: str | Path, **overrides: Any) -> nn.Module:
    """Rebuild the model that `save_weights` wrote, in eval mode.

    Args:
        overrides: `mean` and `std` replace the file's; any other must agree with the file.
    """
    tensors, metadata = read_safetensors(path)
    return model_of(tensors, metadata, str(path), **overrides)


def model_of(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str], origin: str, **overrides: Any
) -> nn.Module:
    """Rebuild a model from the contents of one of our files; `origin` names it in errors."""
    if FORMAT not in metadata:
        raise ValueError(f"{origin} carries no {FORMAT} configuration in its metadata")
    try:
        about = json.loads(metadata[FORMAT])
        version, kind, plain = about["version"], about["kind"], about["config"]
    except (KeyError, TypeError, ValueError) as error:  # json.JSONDecodeError is a ValueError
        raise ValueError(f"{origin}: its {FORMAT} metadata cannot be read ({error!r})") from error
    if version != VERSION:
        raise ValueError(
            f"{origin} is of version {version!r}, expected {VERSION!r}; read it with a newer beit"
        )
    if not isinstance(kind, str) or kind not in KINDS:
        raise ValueError(f"{origin} holds a {kind!r}; this version of beit knows {_kinds()}")
    model_class, config_class = KINDS[kind]
    try:
        config = override(from_plain(config_class, plain, "config"), overrides)
    except (ValueError, ArithmeticError) as error:
        raise ValueError(f"{origin}: {error}") from error
    return assemble(model_class, config, tensors, origin)


def assemble(
    model_class: type[nn.Module], config: Config, tensors: Mapping[str, Tensor], origin: str
) -> nn.Module:
    """Build the configured model and fill it strictly with the tensors, by our names; eval mode.

    Nothing is allocated before names and shapes are known to agree: a forged configuration cannot
    ask for more memory than the file itself has. The default random generator is left as it was.
    """
    if num_blocks(config) > len(tensors):
        raise ValueError(
            f"{origin} says {num_blocks(config)} blocks and has {len(tensors)} tensors"
        )
    Gh, Gw = trunk(config).grid
    rows = (2 * Gh - 1) * (2 * Gw - 1) + CLS_ROWS
    tables = [tensor.shape for name, tensor in tensors.items() if name.endswith(TABLE)]
    if trunk(config).relative_bias != "none" and not any(shape[:1] == (rows,) for shape in tables):
        raise ValueError(f"{origin} has no {TABLE} of {rows} rows, for a grid of {Gh} x {Gw}")
    try:
        with torch.device("meta"):
            expected = model_class(config).state_dict()
    except (RuntimeError, ArithmeticError) as error:
        raise ValueError(f"{origin} describes a model that cannot be built ({error})") from error
    problems = [f"{name} is missing" for name in expected if name not in tensors]
    problems += [f"{name} is unexpected" for name in tensors if name not in expected]
    problems += [
        f"{name} is {tuple(tensors[name].shape)}, expected {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in tensors and tensors[name].shape != tensor.shape
    ]
    if problems:
        raise ValueError(f"{origin} does not fit a {model_class.__name__}: {first(problems)}")
    with torch.random.fork_rng(devices=[]):
        model = model_class(config)
    model.load_state_dict(tensors)
    return model.eval()


def trunk(config: Config) -> ViTConfig:
    """The configuration of the ViT that sees the images."""
    if isinstance(config, ViTConfig):
        return config
    return config.encoder if isinstance(config, VQKDConfig) else config.backbone


def num_blocks(config: Config) -> int:
    """How many Transformer blocks the model has, all parts together."""
    extra = {VQKDConfig: "decoder_depth", MaskedImageModelConfig: "head_layers"}.get(type(config))
    return trunk(config).depth + (getattr(config, extra) if extra else 0)


def override(config: Config, overrides: Mapping[str, Any]) -> Config:
    """Replace the normalisation; refuse whatever else contradicts the configuration."""
    vit = trunk(config)
    normalisation = {"mean": vit.mean, "std": vit.std}
    for name, wanted in overrides.items():
        if name in ("mean", "std"):
            normalisation[name] = None if wanted is None else tuple(wanted)
            continue
        owner = next((owner for owner in (config, vit) if hasattr(owner, name)), None)
        if owner is None:
            raise ValueError(f"unknown override {name}")
        value = getattr(owner, name)
        if name == "image_size":
            wanted = size_pair(wanted)
        if wanted != value:
            raise ValueError(f"{name}={wanted} contradicts the file, which says {value}")
    vit = dataclasses.replace(vit, mean=normalisation["mean"], std=normalisation["std"])
    if isinstance(config, VQKDConfig):
        return dataclasses.replace(config, encoder=vit)
    if isinstance(config, MaskedImageModelConfig):
        return dataclasses.replace(config, backbone=vit)
    return vit


def size_pair(size: int | tuple[int, int]) -> tuple[int, int]:
    """Read an image size given as one side or as (height, width)."""
    if isinstance(size, int):
        return size, size
    height, width = size
    return height, width


def _kinds() -> str:
    return ", ".join(KINDS)
