"""timm's `beit` and `beitv2` models: classifiers and backbones.

The names of timm's tensors are those of the published fine-tuned models, whose code it came from,
without the position indices that it computes anew: there is no table here but the published one.
"""

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from beit.nn.heads import ImageClassifier
from beit.nn.vit import VisionTransformer
from beit.run.settings import from_plain
from beit.weights.formats.published import BACKBONE_KEYS, model_and_about, to_published
from beit.weights.formats.published_names import INDEX

logger = logging.getLogger(__name__)

PRETRAINING = ("mask_token", "lm_head.weight")  # timm has no such models
POOLED_NORM = ("fc_norm.weight", "fc_norm.bias")
HEAD = "head.weight"
ARCHITECTURE = "beitv2_base_patch16_224"  # the arguments below replace all that makes it this one


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
    """Build the model that tensors of timm's Beit are for, in eval mode.

    Without a head (``num_classes=0``) it is a `VisionTransformer` with the features of timm's
    ``forward_features``: where timm pools the mean, it leaves tokens as they are and norms the
    mean, so that norm is left out, and its ``forward`` is that norm of the patches' mean.

    Args:
        tensors: by timm's names
        origin: what errors and the log call it, such as the file's name
        config: the content of `config.json` beside the weights, for mean, std and class names.
            Without it they are ImageNet's, as those of timm's `beitv2_*` models; its `beit_*`, the
            first version's, were trained with 0.5 for both, which then has to be given.
        overrides: as for the published layout (`num_heads`, `image_size`, `mean`, `std`,
            `num_classes`, `class_names`); they go before the file

    Raises:
        ValueError: names or shapes do not fit, or the configuration is of another architecture.
    """
    headless = HEAD not in tensors
    left_out = [name for name in POOLED_NORM if headless and name in tensors]
    told = _told_by(config or {}, origin)
    if headless or overrides.get("num_classes") not in (None, len(told.get("class_names", ()))):
        told.pop("class_names", None)
    told |= overrides
    notes = [f"left out {', '.join(left_out)}, of the pooled mean"] if left_out else []
    if not {"mean", "std"} & told.keys():
        notes.append("mean and std are ImageNet's, timm's beit_* of version 1 want 0.5 for both")
    kept = {name: tensor for name, tensor in tensors.items() if name not in left_out}
    model, about = model_and_about(kept, origin, told)
    logger.info("%s: timm's Beit, %s", origin, "; ".join([about, *notes]))
    assert isinstance(model, ImageClassifier | VisionTransformer)
    return model


def to_timm(model: nn.Module) -> dict[str, Tensor]:
    """Give a classifier's or backbone's tensors by timm's names.

    `timm_arguments` says for which model. A backbone without final norm gets one of 1 and 0 for the
    mean that timm pools; reading it back leaves it out. Tensors are shared with the model.

    Raises:
        ValueError: timm has no such model.
    """
    vit = _backbone(model).config
    state = {
        name: tensor for name, tensor in to_published(model).items() if not name.endswith(INDEX)
    }
    if isinstance(model, VisionTransformer) and not vit.final_norm:
        values = (torch.ones(vit.width), torch.zeros(vit.width))
        state |= zip(POOLED_NORM, values, strict=True)
    return state


def timm_arguments(model: nn.Module) -> dict[str, Any]:
    """Return what timm's Beit is to be built with, to hold the tensors of `to_timm`.

    Either way: ``timm.models.beit.Beit(**arguments)``, or ``timm.create_model(NAME, **arguments)``
    with the name of any of its beit models.
    """
    vit = _backbone(model).config
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


def timm_config(model: nn.Module) -> dict[str, Any]:
    """Write the `config.json` of a folder that ``timm.create_model("local-dir:FOLDER")`` opens.

    The tensors lie beside it in `model.safetensors`.
    """
    vit, arguments = _backbone(model).config, timm_arguments(model)
    about: dict[str, Any] = {
        "input_size": [vit.in_channels, *vit.image_size],
        "fixed_input_size": True,
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "mean": list(vit.mean or (0.0,) * vit.in_channels),
        "std": list(vit.std or (1.0,) * vit.in_channels),
        "num_classes": arguments["num_classes"],
        "first_conv": "patch_embed.proj",
        "classifier": "head",
    }
    if isinstance(model, ImageClassifier) and model.config.class_names is not None:
        about["label_names"] = list(model.config.class_names)
    return {
        "architecture": ARCHITECTURE,
        "num_classes": arguments["num_classes"],
        "num_features": vit.width,
        "global_pool": arguments["global_pool"],
        "model_args": arguments,
        "pretrained_cfg": about,
    }


def _told_by(config: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """Take from `config.json` what shapes do not tell."""
    architecture = str(config.get("architecture", ARCHITECTURE))
    if not architecture.startswith("beit"):
        raise ValueError(f"{origin} is timm's {architecture}, expected one of its beit models")
    about = config.get("pretrained_cfg", config)  # older files had no inner part
    hints = {"mean": tuple[float, ...], "std": tuple[float, ...], "label_names": tuple[str, ...]}
    arguments = config.get("model_args") or {}
    try:
        told = {
            name: from_plain(hint, about[name], name)
            for name, hint in hints.items()
            if about.get(name)
        }
        if "img_size" in arguments:
            size = from_plain(int | tuple[int, int], arguments["img_size"], "img_size")
            told["image_size"] = size
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{origin}: its config.json is not as timm writes it ({error})") from error
    if "label_names" in told:
        told["class_names"] = told.pop("label_names")
    return told


def _backbone(model: nn.Module) -> VisionTransformer:
    """Return the ViT of a model that timm has an equal of."""
    if isinstance(model, VisionTransformer):
        return model
    if isinstance(model, ImageClassifier):
        return model.backbone
    raise ValueError(
        f"timm has no BEiT that is a {type(model).__name__}; expected an ImageClassifier or a "
        "VisionTransformer (load_backbone gives that of any model)"
    )
