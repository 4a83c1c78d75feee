"""Our weights files: safetensors with the model's configuration in the metadata."""

import dataclasses
import json
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from beit.files import replacing, user_path
from beit.nn.dalle import DalleConfig, DalleTokenizer
from beit.nn.dvae import DiscreteVAE, DiscreteVAEConfig
from beit.nn.heads import ImageClassifier, ImageClassifierConfig
from beit.nn.mim import MaskedImageModel, MaskedImageModelConfig
from beit.nn.segmenter import SegmenterConfig, SemanticSegmenter
from beit.nn.tokenizer import VQKD, VQKDConfig
from beit.nn.vit import VisionTransformer, ViTConfig
from beit.run.settings import first, from_plain
from beit.weights.assemble import HEAD, VIT_FIELDS, assemble, config_of_vit, mismatches
from beit.weights.mistaken import instead
from beit.wording import an

logger = logging.getLogger(__name__)

FORMAT, VERSION = "beit", "1"
# The models that can be saved, and the dataclass of each one's `config`.
KINDS: dict[str, tuple[type[nn.Module], type[Any]]] = {
    "VQKD": (VQKD, VQKDConfig),
    "MaskedImageModel": (MaskedImageModel, MaskedImageModelConfig),
    "ImageClassifier": (ImageClassifier, ImageClassifierConfig),
    "DiscreteVAE": (DiscreteVAE, DiscreteVAEConfig),
    "DalleTokenizer": (DalleTokenizer, DalleConfig),
    "SemanticSegmenter": (SemanticSegmenter, SegmenterConfig),
    "VisionTransformer": (VisionTransformer, ViTConfig),
}
CLASS_FIELDS = ("class_names", "palette")  # another `num_classes` replaces them and `HEAD`
# In the error about `num_classes` of a model that is no classifier.
NO_HEAD = ". It has no head for classes; docs/python.md says how to put one on it"


class EarlyLayersUnknownError(ValueError):
    """The weights do not determine which block feeds the patch aggregation."""


class SizeUnknownError(ValueError):
    """The file does not determine the image size: its grid is not square or it has no positions."""


def save(model: nn.Module, path: str | Path, crop_ratio: float | None = None) -> None:
    """Write a model to a .safetensors file that `beit.load` opens: weights and configuration.

    An existing file is replaced, as by torch.save.

    Args:
        model: as `load`, `load_backbone` or `load_tokenizer` return it
        crop_ratio: of its evaluation images, which `beit embed`, `predict`, ... then use; None for
            that of the file which the model was loaded from

    Raises:
        ValueError: the name does not end in .safetensors, the model is of no known kind, or not
            all its numbers are finite.
    """
    if Path(path).suffix != ".safetensors":
        raise ValueError(f"path is {str(path)!r}, expected a name that ends in .safetensors")
    _check_savable(model, str(path))
    loaded = getattr(model, "crop_ratio", None)
    file = user_path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    save_weights(file, model, loaded if crop_ratio is None else crop_ratio)


def save_weights(
    path: str | Path,
    model: nn.Module,
    crop_ratio: float | None = None,
    pixel_options: Sequence[str] | None = None,
) -> None:
    """Write the model's weights and configuration to a safetensors file, atomically.

    Args:
        crop_ratio: side of the centre crop of its evaluation images over the shorter side
        pixel_options: bands and ranges of its training images (`beit.data.channels`); None for
            those of the file that the model was loaded from
    """
    _class_of(model)
    # A single entry: safetensors writes several in an order that differs between runs.
    metadata = {FORMAT: description(model, crop_ratio, pixel_options)}
    state = model.state_dict()
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    with replacing(Path(path)) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode
        save_file(tensors, temporary, metadata)
        temporary.chmod(mode)  # the default mode; safetensors gives access to the owner only


def _class_of(model: nn.Module) -> type[nn.Module]:
    """Return the class of a model that can be saved."""
    kind = type(model).__name__
    if kind not in KINDS:
        known = ", ".join(KINDS)
        bare = "the bare model (of a compiled one its _orig_mod, of DDP its module)"
        raise ValueError(f"{an(kind)} cannot be saved; expected {bare}, one of {known}")
    return KINDS[kind][0]


def _check_savable(model: nn.Module, path: str) -> None:
    """Refuse a model whose file could not be opened: changed without its configuration, or NaN."""
    model_class = _class_of(model)
    with torch.device("meta"):
        expected = model_class(model.config).state_dict()
    if problems := mismatches(model.state_dict(), expected):
        kind = model_class.__name__
        raise ValueError(
            f"{path} is not written: the model differs from its configuration, so nothing could "
            f"open it: {first(problems)}. Change model.config, too, as in model.config = "
            "dataclasses.replace(model.config, num_classes=7, class_names=None) for another linear "
            f"head, or put other parts around the {kind} and save those with torch.save"
        )
    broken = [
        name for name, value in model.state_dict().items() if not bool(value.isfinite().all())
    ]
    if broken:
        raise ValueError(
            f"{path} is not written: not all numbers are finite in {first(broken)}, and "
            "such a file is not opened; the training has failed"
        )


def description(
    model: nn.Module,
    crop_ratio: float | None = None,
    pixel_options: Sequence[str] | None = None,
) -> str:
    """Describe a model in JSON: version of the format, kind, configuration, images."""
    config: Any = model.config
    about = {"version": VERSION, "kind": type(model).__name__, "config": dataclasses.asdict(config)}
    if pixel_options is None:
        pixel_options = getattr(model, "pixel_options", None)
    images = {"crop_ratio": crop_ratio, "pixel_options": pixel_options}
    return json.dumps(about | {name: value for name, value in images.items() if value is not None})


def read_safetensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the tensors and the metadata, possibly empty, of any safetensors file."""
    with _opened(Path(path)) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}


def read_shapes(path: Path) -> tuple[dict[str, list[int]], dict[str, str]]:
    """Read the shapes by name and the metadata of a safetensors file, without its tensors."""
    with _opened(path) as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}
        return shapes, file.metadata() or {}


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file; expected a .safetensors file")
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        other = f": it is truncated, damaged, or in another format ({error}); download it again"
        what = instead(path) or other
        size = path.stat().st_size
        raise ValueError(
            f"{path}, of {size} bytes, is not a sound safetensors file{what}"
        ) from error


def kind_of(metadata: Mapping[str, str]) -> str:
    """Return the key of `KINDS` in the metadata of one of our files; empty if damaged."""
    try:
        return str(json.loads(metadata[FORMAT])["kind"])
    except (KeyError, TypeError, ValueError, RecursionError):
        return ""


def model_of(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str], origin: str, **overrides: Any
) -> nn.Module:
    """Build a model from the contents of one of our files, in eval mode.

    Args:
        origin: name of the file in errors and the log
        overrides: see `beit.weights.open.load`
    """
    try:
        about = json.loads(metadata[FORMAT])
        version, kind, plain = about["version"], about["kind"], about["config"]
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{origin}: its {FORMAT} metadata cannot be read ({error!r})") from error
    if version != VERSION:
        expected = f"expected {VERSION!r}; use a newer beit"
        raise ValueError(f"{origin} has format version {version!r}, {expected}")
    if not isinstance(kind, str) or kind not in KINDS:
        known = ", ".join(KINDS)
        raise ValueError(f"{origin} holds a {kind!r}; this version of beit knows {known}")
    model_class, config_class = KINDS[kind]
    try:
        config = from_plain(config_class, plain, "config")
        fresh: Collection[str] = ()
        if isinstance(config, ImageClassifierConfig | SegmenterConfig):
            config, fresh = with_classes(config, overrides.pop("num_classes", None), tensors)
        config = override(config, overrides)
    except (ValueError, ArithmeticError) as error:
        raise ValueError(f"{origin}: {error}") from error
    if fresh:
        new = f"replaced by new ones for {config.num_classes} classes, near zero"
        logger.info("%s: left out %s (%s)", origin, ", ".join(fresh), new)
        tensors = {name: tensor for name, tensor in tensors.items() if name not in fresh}
    return assemble(model_class, config, tensors, origin, fresh)


def image_channels(config: Any) -> int:
    """Return the number of channels of the images that a model of ours takes."""
    vit = config_of_vit(config)
    channels: int = getattr(config, "in_channels", 3) if vit is None else vit.image_channels
    return channels


def override(config: Any, overrides: Mapping[str, Any]) -> Any:
    """Replace mean and std; refuse other overrides that differ from the configuration."""
    vit = config_of_vit(config)
    changed: dict[str, Any] = {}
    for name, value in overrides.items():
        owner = vit if hasattr(vit, name) else config
        if not hasattr(owner, name):
            known = "num_classes, mean, std" if hasattr(config, "num_classes") else "mean, std"
            more = NO_HEAD if name == "num_classes" else ""
            raise ValueError(f"takes no override {name}; expected {known}{more}")
        current = getattr(owner, name)
        if name == "image_size":
            value = size_pair(value)
        if name in ("mean", "std"):
            changed[name] = None if value is None else three(value)
        elif value != current:
            raise ValueError(f"{name}={value} contradicts the file, which says {current}")
    if vit is None or vit is config:
        return dataclasses.replace(config, **changed)
    field = next(name for name in VIT_FIELDS if getattr(config, name, None) is vit)
    return dataclasses.replace(config, **{field: dataclasses.replace(vit, **changed)})


def with_classes(
    config: ImageClassifierConfig | SegmenterConfig, num_classes: int | None, names: Collection[str]
) -> tuple[ImageClassifierConfig | SegmenterConfig, list[str]]:
    """Change the number of classes; return also which `names` then keep their initial values."""
    if num_classes is None or num_classes == config.num_classes:
        return config, []
    changed: dict[str, Any] = {name: None for name in CLASS_FIELDS if hasattr(config, name)}
    changed["num_classes"] = num_classes
    return dataclasses.replace(config, **changed), [name for name in names if name.endswith(HEAD)]


def three(value: float | Sequence[float]) -> tuple[float, ...]:
    """Return a mean or std as a tuple; one number stands for all channels."""
    return (float(value),) * 3 if isinstance(value, int | float) else tuple(value)


def size_pair(size: int | tuple[int, int]) -> tuple[int, int]:
    """Return (height, width) of an image size given as one side or as a pair."""
    if isinstance(size, int):
        return size, size
    if not isinstance(size, tuple | list) or len(size) != 2:
        raise ValueError(f"image_size is {size!r}, expected one side or (height, width)")
    return size[0], size[1]
