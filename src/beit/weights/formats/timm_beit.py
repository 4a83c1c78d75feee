"""timm's `beit` and `beitv2` models: classifiers and backbones.

Tensor names are those of the published fine-tuned models, without the position indices.
"""

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from beit.nn.heads import ImageClassifier
from beit.nn.vit import VisionTransformer, ViTConfig
from beit.run.settings import from_plain
from beit.weights.formats.published import BACKBONE_KEYS, model_and_summary, to_published
from beit.weights.formats.published_names import INDEX
from beit.wording import an

logger = logging.getLogger(__name__)

PRETRAINING = ("mask_token", "lm_head.weight")  # timm has no such models
POOLED_NORM = ("fc_norm.weight", "fc_norm.bias")
HEAD = "head.weight"
ARCHITECTURE = "beitv2_base_patch16_224"  # any beit model will do: the arguments replace its own


def recognises(tensors: Mapping[str, Tensor]) -> bool:
    """Whether the names are those of timm's Beit: published ones without position indices."""
    return tensors.keys() >= BACKBONE_KEYS and not any(
        name in PRETRAINING or name.endswith(INDEX) for name in tensors
    )


def from_timm(
    tensors: Mapping[str, Tensor],
    *,
    origin: str = "the state",
    config: Mapping[str, Any] | None = None,
    **overrides: Any,
) -> ImageClassifier | VisionTransformer:
    """Build the model from the tensors of timm's Beit, in eval mode.

    Without a head (``num_classes=0``) it is a `VisionTransformer` with the features of timm's
    ``forward_features``. If timm pools the mean, it norms the mean and not the tokens: that norm is
    left out, and timm's ``forward`` is the norm of the patches' mean.

    Args:
        tensors: by timm's names
        config: content of `config.json`, for mean, std and class names. Without it mean and std are
            ImageNet's, as for timm's `beitv2_*` models; its `beit_*` models (version 1) need 0.5
            for both as overrides.
        overrides: as for the published layout; they take precedence over the file
    """
    headless = HEAD not in tensors
    left_out = [name for name in POOLED_NORM if headless and name in tensors]
    settings = _settings_of(config or {}, origin)
    if headless or overrides.get("num_classes") not in (None, len(settings.get("class_names", ()))):
        settings.pop("class_names", None)
    settings |= overrides
    notes = [f"left out {', '.join(left_out)}, of the pooled mean"] if left_out else []
    pretrained = (config or {}).get("pretrained_cfg") or {}
    for name, ours in (("interpolation", "bicubic"), ("crop_mode", "center")):
        if (theirs := pretrained.get(name) or ours) != ours:
            notes.append(f"its {name} is {theirs}, beit's {ours}")
    kept = {name: tensor for name, tensor in tensors.items() if name not in left_out}
    model, about = model_and_summary(kept, origin, settings)
    logger.info("%s: timm's Beit, %s", origin, "; ".join([about, *notes]))
    assert isinstance(model, ImageClassifier | VisionTransformer)
    return model


def to_timm(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a classifier or backbone by timm's names.

    A backbone without final norm gets a norm of 1 and 0 for the mean that timm pools, which
    `from_timm` leaves out again. Tensors are shared with the model.
    """
    vit = _vit_of(model)
    published = to_published(model)
    state = {name: published[name] for name in published if not name.endswith(INDEX)}
    if isinstance(model, VisionTransformer) and not vit.final_norm:
        values = (torch.ones(vit.width), torch.zeros(vit.width))
        state |= zip(POOLED_NORM, values, strict=True)
    return state


def timm_arguments(model: nn.Module) -> dict[str, Any]:
    """Return the arguments of ``timm.models.beit.Beit`` for the tensors of `to_timm`.

    They are also those of ``timm.create_model`` with the name of any of its beit models.
    """
    vit = _vit_of(model)
    return {
        "img_size": vit.image_size,
        "patch_size": vit.patch_size,
        "in_chans": vit.in_channels,
        "num_classes": model.config.num_classes if isinstance(model, ImageClassifier) else 0,
        "global_pool": "token" if vit.final_norm else "avg",
        "embed_dim": vit.width,
        "depth": vit.depth,
        "num_heads": vit.num_heads,
        "mlp_ratio": vit.mlp_ratio,
        "drop_path_rate": vit.drop_path,
        "init_values": vit.layer_scale,
        "use_abs_pos_emb": vit.absolute_positions,
        "use_rel_pos_bias": vit.relative_bias == "per_block",
        "use_shared_rel_pos_bias": vit.relative_bias == "shared",
    }


def timm_config(model: nn.Module, crop_ratio: float) -> dict[str, Any]:
    """Return the content of `config.json` beside `model.safetensors`, for timm's `local-dir:`."""
    vit, arguments = _vit_of(model), timm_arguments(model)
    pretrained: dict[str, Any] = {
        "input_size": [vit.in_channels, *vit.image_size],
        "fixed_input_size": True,
        "interpolation": "bicubic",
        "crop_pct": crop_ratio,
        "mean": list(vit.mean or (0.0,) * vit.in_channels),
        "std": list(vit.std or (1.0,) * vit.in_channels),
        "num_classes": arguments["num_classes"],
        "first_conv": "patch_embed.proj",
        "classifier": "head",
    }
    if isinstance(model, ImageClassifier) and model.config.class_names is not None:
        pretrained["label_names"] = list(model.config.class_names)
    return {
        "architecture": ARCHITECTURE,
        "num_classes": arguments["num_classes"],
        "num_features": vit.width,
        "global_pool": arguments["global_pool"],
        "model_args": arguments,
        "pretrained_cfg": pretrained,
    }


def _settings_of(config: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """Read from `config.json` what shapes do not determine."""
    architecture = str(config.get("architecture", ARCHITECTURE))
    if not architecture.startswith("beit"):
        raise ValueError(f"{origin} is timm's {architecture}, expected one of its beit models")
    pretrained = config.get("pretrained_cfg", config)  # older files have no inner part
    arguments = config.get("model_args") or {}
    fields = (  # our name, timm's, where, type
        ("mean", "mean", pretrained, tuple[float, ...]),
        ("std", "std", pretrained, tuple[float, ...]),
        ("class_names", "label_names", pretrained, tuple[str, ...]),
        ("image_size", "img_size", arguments, int | tuple[int, int]),
    )
    try:
        return {
            ours: from_plain(hint, values[theirs], theirs)
            for ours, theirs, values, hint in fields
            if values.get(theirs)
        }
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{origin}: its config.json is not as timm writes it ({error})") from error


def is_of_imagenet(config: Mapping[str, Any]) -> bool:
    """Whether a `config.json` is of a classifier that was trained last on ImageNet-1k or -22k."""
    pretrained = config.get("pretrained_cfg")
    tag = pretrained.get("tag") if isinstance(pretrained, Mapping) else None
    return isinstance(tag, str) and tag.endswith(("in1k", "in22k"))


def _vit_of(model: nn.Module) -> ViTConfig:
    """Return the configuration of the ViT; refuse models that timm does not have."""
    if isinstance(model, VisionTransformer):
        return model.config
    if isinstance(model, ImageClassifier):
        return model.backbone.config
    known = "an ImageClassifier or a VisionTransformer (load_backbone returns that of any model)"
    raise ValueError(f"timm has no BEiT that is {an(type(model).__name__)}; expected {known}")
