"""Hugging Face transformers' BEiT: masked image modelling, classification, segmentation, backbone.

Its names are translated by the tables of `transformers_names` to those of the published code, in
both directions, and the rest is left to the readers of those. Facts were taken from transformers
5.23.
"""

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from beit.nn.block import NORM_EPS
from beit.nn.heads import ImageClassifier
from beit.nn.mim import MaskedImageModel
from beit.nn.segmenter import POOL_SIDES, SemanticSegmenter
from beit.nn.vit import VisionTransformer
from beit.run.settings import first, from_plain
from beit.weights.file import size_pair
from beit.weights.formats.names import fused, split, translated, turned
from beit.weights.formats.published import model_and_about, to_published
from beit.weights.formats.published_names import INDEX
from beit.weights.formats.published_segmentation import (
    segmenter_and_about,
    to_published_segmentation,
)
from beit.weights.formats.transformers_names import (
    BARE,
    CLASSIFIER,
    FILES,
    MASKED,
    QKV,
    QUERY_KEY_VALUE,
    SEGMENTER,
    Kind,
)

logger = logging.getLogger(__name__)

HALVES = (0.5, 0.5, 0.5)  # mean and deviation of BeitImageProcessor, unless its own file says other


def recognises(tensors: Mapping[str, Tensor]) -> bool:
    """Whether the names are those of transformers' BEiT: its ViTs have a key bias besides."""
    embedded = "embeddings.patch_embeddings.projection.weight"
    return (embedded in tensors or f"beit.{embedded}" in tensors) and not any(
        name.endswith(("key.bias", "k_proj.bias")) for name in tensors
    )


def from_transformers(
    tensors: Mapping[str, Tensor],
    *,
    origin: str = "the state",
    config: Mapping[str, Any] | None = None,
    processor: Mapping[str, Any] | None = None,
    **overrides: Any,
) -> MaskedImageModel | ImageClassifier | SemanticSegmenter | VisionTransformer:
    """Build the model that tensors of transformers' BEiT are for, in eval mode.

    The bare `BeitModel` becomes a `VisionTransformer` with the features of its `last_hidden_state`:
    with the final norm if it has one; the norm of its pooled mean is left out.

    Args:
        tensors: by the names in its files, or of its modules in memory
        origin: what errors and the log call it, such as the file's name
        config: the content of `config.json` beside the weights; without it, what shapes cannot tell
            is as in the published models, or given
        processor: the content of `preprocessor_config.json`, for mean and std
        overrides: as for the published layouts (`num_heads`, `image_size`, `mean`, `std`,
            `num_classes`, `layers`, …); they go before both files

    Raises:
        ValueError: names or shapes do not fit, or the configuration asks for what ours does not
            compute: another activation, images that are not square (transformers reads tables of
            positions with height and width exchanged), a LayerNorm of larger epsilon.
    """
    indices = [name for name in tensors if name.endswith(INDEX)]
    state = {name: tensor for name, tensor in tensors.items() if name not in indices}
    in_files = translated(state, FILES)
    state = {in_files.get(name, name): tensor for name, tensor in state.items()}
    state = fused(state, QUERY_KEY_VALUE, QKV)
    kind = _kind(state)
    told = _told_by(config or {}, kind, origin) | _normalisation(processor, origin)
    if overrides.get("num_classes") not in (None, len(told.get("class_names", ()))):
        told.pop("class_names", None)
    told |= overrides
    if kind is BARE:
        state = {name.removeprefix("beit."): tensor for name, tensor in state.items()}
    left_out = [name for name in kind.ignored if state.pop(name, None) is not None]
    if indices:
        left_out.append(f"{INDEX} ({len(indices)} tensors)")
    if kind is SEGMENTER and (spare := _idle_blocks(state)):
        left_out.append(f"idle blocks at the end ({spare})")
    names = translated(state, turned(kind.rows))
    unknown = [name for name in state if name not in names]
    if unknown:
        raise ValueError(
            f"{origin} is taken for transformers' {kind.name}, which has no (or not only) "
            f"{first(unknown)}"
        )
    notes = [f"left out {', '.join(left_out)}"] if left_out else []
    if config and config.get("layer_norm_eps", NORM_EPS) != NORM_EPS:
        notes.append(f"its layer_norm_eps of {config['layer_norm_eps']} becomes {NORM_EPS}")
    if "layers" in told and "layers" not in overrides:
        notes.append(f"the pyramid reads blocks {told['layers']}, as its out_indices say")
    if not {"mean", "std"} & told.keys():
        told |= {"mean": HALVES, "std": HALVES}
        notes.append("mean and std are 0.5, its processor's own; others are to be given")

    published = {names[name]: tensor for name, tensor in state.items()}
    where = f"{origin} (transformers' {kind.name}, by published names)"
    model: nn.Module
    if kind is SEGMENTER:
        model, about = segmenter_and_about(published, where, told)
    else:
        model, about = model_and_about(published, where, told)
    logger.info("%s: transformers' %s, %s", origin, kind.name, "; ".join([about, *notes]))
    assert isinstance(
        model, MaskedImageModel | ImageClassifier | SemanticSegmenter | VisionTransformer
    )
    return model


def to_transformers(model: nn.Module) -> dict[str, Tensor]:
    """Give a model's tensors by the names in transformers' files.

    `transformers_config` says for which model. What it has no place for is named in the log: the
    patch aggregation of pretraining, with a head of its own. What ours has no equal of is added: a
    norm of 1 and 0 for the pooled mean of a backbone without final norm, and, where the decoder of
    a segmenter reads the last block, a block without effect behind it, since transformers' decoder
    cannot reach the last one. Reading it back leaves both out. Tensors may share memory with the
    model's.

    Raises:
        ValueError: transformers has no such model, or computes something else: its images are
            square, its decoder is as wide as its backbone.
    """
    kind = _kind_of(model)
    if isinstance(model, SemanticSegmenter):
        published = to_published_segmentation(model)
        if _has_spare_block(model):
            published |= _idle_block(published, model.config.backbone.depth)
    else:
        published = to_published(model)
    published = {name: tensor for name, tensor in published.items() if not name.endswith(INDEX)}
    names = translated(published, kind.rows)
    left_out = [name for name in published if name not in names]
    if left_out:
        assert isinstance(model, MaskedImageModel)
        logger.info(
            "transformers' %s has no patch aggregation; left out %s", kind.name, first(left_out)
        )
    state = {names[name]: published[name] for name in names}
    if isinstance(model, VisionTransformer) and not model.config.final_norm:
        state["pooler.layernorm.weight"] = torch.ones(model.config.width)
        state["pooler.layernorm.bias"] = torch.zeros(model.config.width)
    return split(state, QUERY_KEY_VALUE, QKV)


def transformers_config(model: nn.Module) -> dict[str, Any]:
    """Write the `config.json` with which transformers builds the model of `to_transformers`."""
    kind = _kind_of(model)
    vit = _backbone(model).config
    config: dict[str, Any] = {
        "architectures": [kind.name],
        "model_type": "beit",
        "dtype": "float32",
        "hidden_size": vit.width,
        "num_hidden_layers": vit.depth,
        "num_attention_heads": vit.num_heads,
        "intermediate_size": int(vit.width * vit.mlp_ratio),
        "hidden_act": "gelu",
        "layer_norm_eps": NORM_EPS,
        "image_size": vit.image_size[0],
        "patch_size": vit.patch_size,
        "num_channels": vit.in_channels,
        "drop_path_rate": vit.drop_path,
        "layer_scale_init_value": vit.layer_scale or 0.0,
        "use_mask_token": isinstance(model, MaskedImageModel),
        "use_absolute_position_embeddings": vit.absolute_positions,
        "use_relative_position_bias": vit.relative_bias == "per_block",
        "use_shared_relative_position_bias": vit.relative_bias == "shared",
        # Where the mean is pooled, the tokens are given as they are, and normed afterwards.
        "use_mean_pooling": isinstance(model, MaskedImageModel) or not vit.final_norm,
    }
    if isinstance(model, MaskedImageModel):
        config["vocab_size"] = model.config.num_codes
    if isinstance(model, ImageClassifier | SemanticSegmenter):
        num_classes = model.config.num_classes
        labels = model.config.class_names or [f"LABEL_{i}" for i in range(num_classes)]
        config["id2label"] = {str(number): label for number, label in enumerate(labels)}
        config["label2id"] = {label: number for number, label in enumerate(labels)}
    if isinstance(model, SemanticSegmenter):
        config["num_hidden_layers"] += _has_spare_block(model)
        # Of what enters block 1, leaves block 1, leaves block 2, …, counted from 1.
        config["out_indices"] = [number + 1 for number in model.config.layers]
        config["pool_scales"] = list(POOL_SIDES)
        config["use_auxiliary_head"] = model.config.auxiliary
        config["auxiliary_channels"] = model.config.auxiliary_channels
        config["auxiliary_num_convs"] = 1
        config["auxiliary_concat_input"] = False
    return config


def image_processor_config(model: nn.Module) -> dict[str, Any]:
    """Write the `preprocessor_config.json` for it: resize to the model's size, normalise."""
    vit = _backbone(model).config
    size = {"height": vit.image_size[0], "width": vit.image_size[1]}
    return {
        "image_processor_type": "BeitImageProcessor",
        "do_resize": True,
        "size": size,
        "resample": 3,  # bicubic
        "do_center_crop": False,
        "crop_size": size,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": vit.mean is not None,
        "image_mean": list(vit.mean or HALVES),
        "image_std": list(vit.std or HALVES),
        "do_reduce_labels": False,
    }


def _kind(state: Mapping[str, Tensor]) -> Kind:
    """Tell which model tensors are of, by the head among them."""
    if "lm_head.weight" in state:
        return MASKED
    if "decode_head.classifier.weight" in state:
        return SEGMENTER
    return CLASSIFIER if "classifier.weight" in state else BARE


def _kind_of(model: nn.Module) -> Kind:
    """Tell which model of transformers computes what ours does.

    Raises:
        ValueError: none does. Its images are square, its decoder is as wide as its backbone.
    """
    kinds = {
        MaskedImageModel: MASKED,
        ImageClassifier: CLASSIFIER,
        SemanticSegmenter: SEGMENTER,
        VisionTransformer: BARE,
    }
    if type(model) not in kinds:
        raise ValueError(
            f"transformers has no BEiT that is a {type(model).__name__}; expected one of "
            f"{', '.join(known.__name__ for known in kinds)}"
        )
    height, width = _backbone(model).config.image_size
    if height != width:
        raise ValueError(
            f"the model takes images of {height} x {width}, and transformers reads BEiT's "
            "positions wrongly unless images are square; export it for square ones (image_size)"
        )
    if isinstance(model, MaskedImageModel) and not model.config.backbone.final_norm:
        raise ValueError("transformers' BeitForMaskedImageModeling has a final norm, the model not")
    if isinstance(model, SemanticSegmenter) and model.config.head != "upernet":
        raise ValueError(
            f"this segmenter has a {model.config.head} head, and transformers' "
            "BeitForSemanticSegmentation is UPerNet alone; export it as safetensors"
        )
    if isinstance(model, SemanticSegmenter):
        channels, D = model.config.channels, model.config.backbone.width
        if channels != D:
            raise ValueError(
                f"the decoder has {channels} channels over a backbone of width {D}, and "
                "transformers' is always as wide as its backbone"
            )
    return kinds[type(model)]


def _backbone(model: nn.Module) -> VisionTransformer:
    backbone = model if isinstance(model, VisionTransformer) else model.backbone
    assert isinstance(backbone, VisionTransformer)
    return backbone


def _told_by(config: Mapping[str, Any], kind: Kind, origin: str) -> dict[str, Any]:
    """Take from `config.json` what shapes do not tell; refuse what ours does not compute."""
    for name, wanted in (
        ("model_type", "beit"),
        ("hidden_act", "gelu"),
        ("pool_scales", list(POOL_SIDES)),
    ):
        found = config.get(name, wanted)
        if (list(found) if isinstance(found, tuple) else found) != wanted:
            raise ValueError(f"{origin}: its {name} is {found!r}, expected {wanted!r}")
    if "layer_norm_eps" in config and not 0 <= _plain(config, "layer_norm_eps", float, origin) <= (
        NORM_EPS
    ):
        raise ValueError(
            f"{origin}: its layer_norm_eps is {config['layer_norm_eps']}, expected {NORM_EPS} or "
            "less"
        )
    told: dict[str, Any] = {}
    if "num_attention_heads" in config:
        told["num_heads"] = _plain(config, "num_attention_heads", int, origin)
    if "image_size" in config:
        height, width = size_pair(_plain(config, "image_size", int | tuple[int, int], origin))
        if height != width:
            raise ValueError(
                f"{origin} takes images of {height} x {width}, for which transformers exchanges "
                "height and width of its position tables; such a model is not read"
            )
        told["image_size"] = height
    labels = config.get("id2label")
    if kind in (CLASSIFIER, SEGMENTER) and isinstance(labels, Mapping):
        by_number = {str(number): str(label) for number, label in labels.items()}
        numbers = range(len(by_number))
        names = tuple(by_number.get(str(number), "") for number in numbers)
        if names != tuple(f"LABEL_{number}" for number in numbers):  # what it calls unnamed ones
            told["class_names"] = names
    if kind is SEGMENTER and "out_indices" in config:
        indices = _plain(config, "out_indices", tuple[int, ...], origin)
        told["layers"] = tuple(number - 1 for number in indices)
    return told


def _normalisation(processor: Mapping[str, Any] | None, origin: str) -> dict[str, Any]:
    """Take mean and std from `preprocessor_config.json`."""
    if processor is None:
        return {}
    if not processor.get("do_normalize", True):
        return {"mean": None, "std": None}
    values = {"image_mean": HALVES, "image_std": HALVES} | dict(processor)
    return {
        "mean": _plain(values, "image_mean", tuple[float, ...], origin),
        "std": _plain(values, "image_std", tuple[float, ...], origin),
    }


def _plain(config: Mapping[str, Any], name: str, hint: Any, origin: str) -> Any:
    """Read a value of a JSON file, which must be of a type."""
    value = config[name]
    try:
        return from_plain(hint, list(value) if isinstance(value, tuple) else value, name)
    except ValueError as error:
        raise ValueError(f"{origin}: its {error}") from error


def _has_spare_block(model: SemanticSegmenter) -> bool:
    """Whether transformers' segmenter needs one more block: its decoder cannot read the last."""
    return model.config.layers[-1] == model.config.backbone.depth


def _idle_block(published: Mapping[str, Tensor], number: int) -> dict[str, Tensor]:
    """Make a block that adds nothing to its tokens, shaped like the one before `number`."""
    before, prefix = f"backbone.blocks.{number - 1}.", f"backbone.blocks.{number}."
    return {
        name.replace(before, prefix): (
            torch.ones_like(tensor)
            if name.endswith(("norm1.weight", "norm2.weight"))
            else torch.zeros_like(tensor)
        )
        for name, tensor in published.items()
        if name.startswith(before)
    }


def _idle_blocks(state: dict[str, Tensor]) -> int:
    """Take away the blocks at the end that add nothing to their tokens; return how many."""
    stem = "beit.encoder.layer."
    numbers = {name.removeprefix(stem).split(".")[0] for name in state if name.startswith(stem)}
    for count, number in enumerate(sorted(map(int, numbers), reverse=True)):
        prefix = f"{stem}{number}."
        written = [
            state.get(f"{prefix}{layer}.{kind}")
            for layer in ("attention.output.dense", "output.dense")
            for kind in ("weight", "bias")
        ]
        if any(tensor is None or tensor.any() for tensor in written):
            return count
        for name in [name for name in state if name.startswith(prefix)]:
            del state[name]
    return len(numbers)
