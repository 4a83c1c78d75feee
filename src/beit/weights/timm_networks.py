"""timm networks as teachers: create them, build ViTs from tensors, read their feature maps."""

import difflib
import logging
import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from beit.data.stores.hub import first_line, unreachable
from beit.run.settings import first
from beit.weights.assemble import mismatches
from beit.weights.formats.clip import from_clip
from beit.weights.formats.containers import read_tensors
from beit.weights.formats.published_config import num_heads_of, shape_of
from beit.wording import an

logger = logging.getLogger(__name__)


def timm_network(
    name: str, image_size: tuple[int, int] | None, pretrained: bool, file: Path | None = None
) -> Any:
    """Create a timm model; its `pretrained_cfg` describes its training.

    Random weights are always the same; the default random generator is unchanged.

    Args:
        image_size: (height, width) for which a model of fixed size is built; None: its default
        pretrained: load the weights of `file`, or those in the hub if there is no file
    """
    import timm

    cfg = _config(name)
    options: dict[str, Any] = {"pretrained": pretrained}
    if file is not None:
        options["pretrained_cfg_overlay"] = _file_overlay(cfg, file)
        if others := other_weights(name):
            logger.warning(
                "timm:%s@%s: read as the weights %s, mean %s and std %s; of the same architecture "
                "are others, such as %s, which see images or features otherwise: if the file is "
                "theirs, name it so, as in timm:%s@FILE",
                *(name, file, cfg.tag, cfg.mean, cfg.std, first(others), others[0]),
            )
    if image_size is not None and cfg.fixed_input_size:
        options["img_size"] = image_size
    if "quickgelu" not in name and _has_quick_gelu(cfg):
        options["act_layer"] = "quick_gelu"  # used in training, according to timm's note
    try:
        if pretrained and file is None:
            options["pretrained_cfg_overlay"] = _hub_overlay(name, cfg)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return timm.create_model(name, **options)
    except OSError as error:
        raise OSError(
            f"the pretrained weights of timm:{name} could not be loaded from the hub "
            f"({first_line(error)}); without a network, download the file elsewhere and give "
            f"timm:{name}@FILE, or pretrained=False for random weights"
        ) from error
    except (RuntimeError, AssertionError) as error:
        # PyTorch names all tensors, a kind or a tensor a line.
        what, *lines = [shorten(line, 160) for line in str(error).splitlines()] or [""]
        listed = f"{what} {first(lines)}" if lines else what
        raise ValueError(f"timm:{name}{f'@{file}' if file else ''}: {listed}") from error
    except TypeError as error:
        if "img_size" not in str(error):
            raise
        raise ValueError(f"timm:{name} takes images of {cfg.input_size[1:]} only") from error


def other_weights(name: str) -> list[str]:
    """List timm's weights of an architecture, if named without a tag, that its default are unlike.

    They normalise images otherwise, or have another activation, or are fine-tuned or not: a file
    does not say it.
    """
    import timm

    def read_as(cfg: Any) -> tuple[object, ...]:
        return cfg.mean, cfg.std, _has_quick_gelu(cfg), "_clip_" in name and "ft_" in cfg.tag

    tags = [] if "." in name else timm.list_pretrained(f"{name}.*")
    usual = read_as(timm.get_pretrained_cfg(name)) if tags else ()
    return [tag for tag in tags if read_as(timm.get_pretrained_cfg(tag)) != usual]


def _has_quick_gelu(cfg: Any) -> bool:
    return any("natively QuickGELU" in note for note in cfg.notes or ())


def _config(name: str) -> Any:
    """Look up timm's configuration of a model, with or without a tag."""
    import timm

    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        near = ", ".join(difflib.get_close_matches(architecture, timm.list_models(), n=3))
        raise ValueError(f"timm has no model {architecture}; near it: {near or 'none'}")
    known = timm.list_pretrained(architecture + ".*")
    if tag and name not in known:
        listed = ", ".join(known) or "none"
        raise ValueError(f"timm has no weights of the name {name}; known: {listed}")
    return timm.get_pretrained_cfg(name)


def _file_overlay(cfg: Any, file: Path) -> dict[str, Any]:
    """Set a local file of weights, and the number of classes in it."""
    tensors = read_tensors(file)
    overlay: dict[str, Any] = {"file": str(file), "custom_load": False}
    if isinstance(cfg.classifier, str):
        # If the numbers differ, timm drops the classifier and does not load the rest strictly.
        classifier = (from_clip(tensors) or tensors).get(f"{cfg.classifier}.weight")
        overlay["num_classes"] = 0 if classifier is None else len(classifier)
    return overlay


def _hub_overlay(name: str, cfg: Any) -> dict[str, Any]:
    """If the hub cannot be reached, set the file in its cache; raise OSError if there is none."""
    from huggingface_hub import try_to_load_from_cache

    if not cfg.has_weights:
        raise ValueError(
            f"timm has no pretrained weights for {name}; give timm:{name}@FILE or "
            "pretrained=False for random ones"
        )
    reason = unreachable()
    if reason is None:
        return {}
    for filename in ("model.safetensors", "pytorch_model.bin"):
        path = try_to_load_from_cache(cfg.hf_hub_id, filename) if cfg.hf_hub_id else None
        if isinstance(path, str):
            return {"file": path}
    raise OSError(reason)


def plain_vit(
    state: Mapping[str, Tensor],
    image_size: tuple[int, int] | None,
    num_heads: int | None,
    norm_eps: float,
    activation: str = "gelu",
    clip: bool = False,
) -> Any:
    """Build timm's ViT with [CLS] and learned positions, and load the tensors strictly, in float32.

    Sizes are derived from shapes. No other memory is allocated and no random number is drawn.

    Args:
        state: tensors of CLIP's tower or DINO's backbone, by timm's names; with registers, there
            are positions of patches only
        image_size: (height, width), to which positions are resized; None: that of its training
        num_heads: None: one per 64 channels
        activation: of the MLP, by timm's name
        clip: use a norm before the blocks, and a projection `head` without bias
    """
    from timm.layers.mlp import SwiGLUPacked
    from timm.layers.pos_embed import resample_abs_pos_embed
    from timm.models.vision_transformer import VisionTransformer

    tensors = {name: tensor.float() for name, tensor in state.items()}
    shape = partial(shape_of, tensors, origin="the file")
    width, _, patch_size, _ = shape("patch_embed.proj.weight", 4)
    registers = "reg_token" in tensors
    num_prefix = 0 if registers else 1  # of the positions
    num_patches = shape("pos_embed", 3)[1] - num_prefix
    hidden = shape("blocks.0.mlp.fc1.weight", 2)[0]
    mlp: dict[str, Any] = {"act_layer": activation}
    if hidden == 2 * shape("blocks.0.mlp.fc2.weight", 2)[1]:
        mlp = {"mlp_layer": SwiGLUPacked, "act_layer": "silu"}  # of DINOv2's giant
    side = math.isqrt(max(num_patches, 0))
    if side < 1 or side**2 != num_patches:
        raise ValueError(f"its {num_patches} patch positions are not a square grid")
    with torch.device("meta"):
        network: Any = VisionTransformer(
            img_size=image_size or (side * patch_size, side * patch_size),
            patch_size=patch_size,
            num_classes=0,
            embed_dim=width,
            depth=sum(name.endswith(".norm1.weight") for name in tensors),
            num_heads=num_heads_of(width, None, num_heads, "the file"),
            norm_layer=partial(nn.LayerNorm, eps=norm_eps),
            pre_norm=clip,
            init_values=1e-5 if "blocks.0.ls1.gamma" in tensors else None,
            reg_tokens=shape("reg_token", 3)[1] if registers else 0,
            no_embed_class=registers,
            mlp_ratio=(hidden + 0.5) / width,  # timm rounds down
            **mlp,
        )
        if clip:
            # Any shape if the file has none: the check below then says that it is missing.
            network.head = nn.Linear(width, len(tensors.get("head.weight", [0])), bias=False)
    grid = network.patch_embed.grid_size
    if grid != (side, side):  # bicubic, antialiased where it shrinks
        positions = tensors["pos_embed"]
        tensors["pos_embed"] = resample_abs_pos_embed(positions, grid, (side, side), num_prefix)
    if problems := mismatches(tensors, network.state_dict()):
        raise ValueError(f"{first(problems)}; for another model of timm give timm:NAME@FILE")
    network.load_state_dict(tensors, assign=True)
    return network


def map_reader(network: Any, stride: int | None, source: str) -> Callable[[Any, Tensor], Tensor]:
    """Return a function of a timm network and normalised images (B, 3, H, W): its map (B, T, h, w).

    Args:
        stride: of the map; None: the network's last one
        source: name of the network in errors
    """
    if stride is None:
        return clip_map if _has_projection(network) else token_map
    strides = [info["reduction"] for info in getattr(network, "feature_info", ())]
    has_maps = hasattr(network, "forward_intermediates") and len(set(strides)) > 1
    if not has_maps or stride not in strides:
        known = ", ".join(f"stride{known}" for known in sorted(set(strides)))
        advice = f"expected one of {known}" if has_maps else "leave the layer out"
        raise ValueError(f"{source} has no layer stride{stride}; {advice}")
    return partial(_inner_map, index=len(strides) - 1 - strides[::-1].index(stride))


def clip_map(network: Any, images: Tensor) -> Tensor:
    """Return the patch tokens after the final norm, times the projection, as (B, T, h, w)."""
    tokens: Tensor = network.forward_features(images)[:, network.num_prefix_tokens :]
    tokens = F.linear(tokens, network.head.weight).transpose(1, 2)  # (B, T, N)
    return torch.unflatten(tokens, 2, network.patch_embed.grid_size)  # (B, T, h, w)


def token_map(network: Any, images: Tensor) -> Tensor:
    """Return patch tokens after the final norm, or the last map of a convolutional network."""
    features = network.forward_features(images)
    if not isinstance(features, Tensor) or features.ndim not in (3, 4):
        raise ValueError(
            f"{an(type(network).__name__)} gives no single feature map; choose another"
        )
    if features.ndim == 4:
        channels_last = getattr(network, "output_fmt", "NCHW") == "NHWC"
        return features.permute(0, 3, 1, 2) if channels_last else features
    if isinstance(getattr(network, "norm", None), nn.Identity) and hasattr(network, "fc_norm"):
        features = network.fc_norm(features)  # with mean pooling, this is the final norm
    patches = features[:, getattr(network, "num_prefix_tokens", 0) :]
    grid = getattr(getattr(network, "patch_embed", None), "grid_size", None)
    if grid is None or grid[0] * grid[1] != patches.shape[1]:
        # A hierarchical network does not give its last grid; forward_intermediates does.
        return _inner_map(network, images, index=None, norm=True)
    return torch.unflatten(patches.transpose(1, 2), 2, grid)  # (B, T, h, w)


def _inner_map(network: Any, images: Tensor, index: int | None, norm: bool = False) -> Tensor:
    """An intermediate map by timm's index; None: the last. Later layers are not computed."""
    indices = 1 if index is None else [index]
    options = {"stop_early": True, "output_fmt": "NCHW", "intermediates_only": True}
    maps: list[Tensor] = network.forward_intermediates(images, indices, norm=norm, **options)
    return maps[-1]


def _has_projection(network: Any) -> bool:
    """Whether a timm network is a CLIP ViT with its projection, not fine-tuned to classes."""
    cfg, head = network.pretrained_cfg, getattr(network, "head", None)
    return (
        "_clip_" in cfg["architecture"]
        and "ft_" not in (cfg.get("tag") or "")
        and isinstance(getattr(network, "norm", None), nn.LayerNorm)
        and isinstance(head, nn.Linear)
        and (head.bias is None or not head.bias.any())
    )
