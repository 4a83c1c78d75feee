"""Write and read the JSON files of Hugging Face transformers' BEiT (5.23)."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from beit.nn.block import NORM_EPS
from beit.nn.heads import ImageClassifier
from beit.nn.mim import MaskedImageModel
from beit.nn.segmenter import POOL_SIDES, SemanticSegmenter
from beit.nn.vit import VisionTransformer, ViTConfig
from beit.run.settings import from_plain
from beit.weights.assemble import config_of_vit
from beit.weights.file import size_pair
from beit.weights.formats.names import Architecture
from beit.weights.formats.transformers_names import BARE, CLASSIFIER, MASKED, SEGMENTER
from beit.wording import an

MODEL_TYPES = ("beit", "data2vec-vision")  # the same network
HALVES = (0.5, 0.5, 0.5)  # default mean and std of BeitImageProcessor
OTHER_FILTERS = {0: "nearest", 1: "Lanczos", 2: "bilinear", 4: "box", 5: "Hamming"}  # of Pillow
ARCHITECTURES = {
    MaskedImageModel: MASKED,
    ImageClassifier: CLASSIFIER,
    SemanticSegmenter: SEGMENTER,
    VisionTransformer: BARE,
}


def architecture_of(model: nn.Module) -> Architecture:
    """Return the transformers class that computes the same as the model; refuse it if none does."""
    if type(model) not in ARCHITECTURES:
        known = ", ".join(known.__name__ for known in ARCHITECTURES)
        kind = type(model).__name__
        raise ValueError(f"transformers has no BEiT that is {an(kind)}; expected one of {known}")
    height, width = _vit_of(model).image_size
    if height != width:
        raise ValueError(
            f"the model takes images of {height} x {width}, and transformers reads BEiT's "
            "positions wrongly unless images are square; export it for a square image_size"
        )
    if isinstance(model, MaskedImageModel) and not model.config.backbone.final_norm:
        kind = MASKED.name
        raise ValueError(f"transformers' {kind} has a final norm, and the model has none")
    if isinstance(model, SemanticSegmenter):
        if model.config.head != "upernet":
            raise ValueError(
                f"this segmenter has a {model.config.head} head, and transformers' "
                "BeitForSemanticSegmentation has UPerNet only; export it as safetensors"
            )
        channels, D = model.config.channels, model.config.backbone.width
        if channels != D:
            sizes = f"{channels} channels over a backbone of width {D}"
            theirs = "transformers' is always as wide as its backbone"
            raise ValueError(f"the decoder has {sizes}, and {theirs}")
    return ARCHITECTURES[type(model)]


def needs_spare_block(model: nn.Module) -> bool:
    """Whether a segmenter needs one more block: transformers' decoder cannot read the last one."""
    if not isinstance(model, SemanticSegmenter):
        return False
    return model.config.layers[-1] == model.config.backbone.depth


def transformers_config(model: nn.Module) -> dict[str, Any]:
    """Return the content of `config.json` for the tensors of `to_transformers`."""
    architecture, vit = architecture_of(model), _vit_of(model)
    config: dict[str, Any] = {
        "architectures": [architecture.name],
        "model_type": "beit",
        "dtype": "float32",
        "hidden_size": vit.width,
        "num_hidden_layers": vit.depth + needs_spare_block(model),
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
        # With mean pooling, transformers does not norm the tokens, but their mean.
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
        # Index 1 is the input of the first block, index 2 its output.
        config["out_indices"] = [number + 1 for number in model.config.layers]
        config["pool_scales"] = list(POOL_SIDES)
        config["use_auxiliary_head"] = model.config.auxiliary
        config["auxiliary_channels"] = model.config.auxiliary_channels
        config |= {"auxiliary_num_convs": 1, "auxiliary_concat_input": False}
    return config


def image_processor_config(model: nn.Module, crop_ratio: float = 1.0) -> dict[str, Any]:
    """Return the content of `preprocessor_config.json`: resize, crop to the image size, normalise.

    Args:
        crop_ratio: side of the centre crop over that of the resized image
    """
    vit = _vit_of(model)
    crop_size = dict(zip(("height", "width"), vit.image_size, strict=True))
    size = {name: int(side / crop_ratio) for name, side in crop_size.items()}  # as `EvalView`
    return {
        "image_processor_type": "BeitImageProcessor",
        "do_resize": True,
        "size": size,
        "resample": 3,  # bicubic
        "do_center_crop": crop_ratio < 1,
        "crop_size": crop_size,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": vit.mean is not None,
        "image_mean": list(vit.mean or HALVES),
        "image_std": list(vit.std or HALVES),
        "do_reduce_labels": False,
    }


def settings_of(
    config: Mapping[str, Any], architecture: Architecture, origin: str
) -> dict[str, Any]:
    """Read settings that shapes do not determine from `config.json`; refuse unsupported ones."""
    kind = config.get("model_type", "beit")
    if kind not in MODEL_TYPES:
        known = " or ".join(MODEL_TYPES)
        raise ValueError(f"{origin}: its model_type is {kind!r}, expected {known}")
    fixed = {"hidden_act": "gelu", "pool_scales": list(POOL_SIDES)}
    for name, expected in fixed.items():
        value = config.get(name, expected)
        if (list(value) if isinstance(value, tuple) else value) != expected:
            raise ValueError(f"{origin}: its {name} is {value!r}, expected {expected!r}")
    if "layer_norm_eps" in config:
        epsilon = _value(config, "layer_norm_eps", float, origin)
        if not 0 <= epsilon <= NORM_EPS:
            limit = f"expected {NORM_EPS} or less"
            raise ValueError(f"{origin}: its layer_norm_eps is {epsilon}, {limit}")
    settings: dict[str, Any] = {}
    if "num_attention_heads" in config:
        settings["num_heads"] = _value(config, "num_attention_heads", int, origin)
    if "image_size" in config:
        height, width = size_pair(_value(config, "image_size", int | tuple[int, int], origin))
        if height != width:
            raise ValueError(
                f"{origin} takes images of {height} x {width}, for which transformers exchanges "
                "height and width of its position tables; such a model cannot be read"
            )
        settings["image_size"] = height
    labels = config.get("id2label")
    if architecture in (CLASSIFIER, SEGMENTER) and isinstance(labels, Mapping):
        by_number = {str(number): str(label) for number, label in labels.items()}
        numbers = list(map(str, range(len(by_number))))
        names = tuple(by_number.get(number, "") for number in numbers)
        if names != tuple(f"LABEL_{number}" for number in numbers):  # its default names
            settings["class_names"] = names
    if architecture is SEGMENTER and "out_indices" in config:
        indices = _value(config, "out_indices", tuple[int, ...], origin)
        if min(indices, default=2) < 2:
            raise ValueError(
                f"{origin}: its out_indices are {indices}; expected four from 2 on, the output of "
                "the first block: 1 is its input"
            )
        settings["layers"] = tuple(number - 1 for number in indices)
    return settings


def refuse_contradictions(config: Mapping[str, Any], model: nn.Module, origin: str) -> None:
    """Refuse a `config.json` of another network than the one that the tensors are of."""
    vit = _vit_of(model)
    ours: dict[str, Any] = {"hidden_size": vit.width, "patch_size": vit.patch_size}
    if not isinstance(model, SemanticSegmenter):  # it may have had idle blocks
        ours["num_hidden_layers"] = vit.depth
    if isinstance(model, ImageClassifier):
        ours["use_mean_pooling"] = model.config.pooling == "mean"
    for name, value in ours.items():
        if (theirs := config.get(name, value)) != value:
            raise ValueError(
                f"{origin}: its config.json says {name} {theirs}, and its tensors have {value}: "
                "one of the two is of another model"
            )


def normalisation_of(
    processor: Mapping[str, Any], origin: str, hint: Any = tuple[float, ...]
) -> dict[str, Any]:
    """Read mean and std from `preprocessor_config.json`, for images in [0, 1].

    Without normalisation they are None, or 0 and the inverse of another scale than that.
    """
    normalises = processor.get("do_normalize", True)
    neutral = {"image_mean": (0.0,) * 3, "image_std": (1.0,) * 3}
    values = {"image_mean": HALVES, "image_std": HALVES} | dict(processor)
    values |= {} if normalises else neutral
    names = ("mean", "std")
    read = {name: _value(values, f"image_{name}", hint, origin) for name in names}
    scale = 1.0  # of the values that mean and std are for
    if processor.get("do_rescale", True):
        scale = 255 * _value({"rescale_factor": 1 / 255} | values, "rescale_factor", float, origin)
        if not scale > 0:
            raise ValueError(f"{origin}: its rescale_factor is {scale / 255}; expected it above 0")
    elif max(read["mean"], default=0) > 1:
        scale = 255.0
    if abs(scale - 1) < 1e-6:
        return read if normalises else {"mean": None, "std": None}
    return {name: tuple(value / scale for value in read[name]) for name in names}


def processor_notes(processor: Mapping[str, Any]) -> list[str]:
    """Say what an image processor does otherwise than beit."""
    code, notes = processor.get("resample"), list[str]()
    if isinstance(code, int) and code in OTHER_FILTERS:
        notes.append(f"resizes by {OTHER_FILTERS[code]} interpolation, beit bicubically")
    if not processor.get("do_resize", True):
        notes.append("does not resize, beit does")
    if not processor.get("do_rescale", True):
        notes.append("does not rescale values, beit takes images in [0, 1] or 0 to 255 as uint8")
    return [f"its image processor {note}" for note in notes]


def size_note(processor: Mapping[str, Any], model: nn.Module) -> str:
    """Say that an image processor makes images of another size than the model's; else empty."""
    side = processor.get("crop_size" if processor.get("do_center_crop") else "size")
    size = (side.get("height"), side.get("width")) if isinstance(side, Mapping) else (side, side)
    ours, resizes = _vit_of(model).image_size, processor.get("do_resize", True)
    if not resizes or size == ours or not all(isinstance(side, int) for side in size):
        return ""
    return (
        f"its image processor makes images of {size[0]} x {size[1]}, and the model is opened for "
        f"{ours[0]} x {ours[1]}; for theirs give image_size={size} to beit.load_backbone, "
        "load_classifier or load_segmenter"
    )


def _vit_of(model: nn.Module) -> ViTConfig:
    vit = config_of_vit(model.config)
    assert vit is not None
    return vit


def _value(config: Mapping[str, Any], name: str, hint: Any, origin: str) -> Any:
    """Read a value of a JSON file and check its type."""
    value = config[name]
    try:
        return from_plain(hint, list(value) if isinstance(value, tuple) else value, name)
    except ValueError as error:
        raise ValueError(f"{origin}: its {error}") from error
