"""Open any source of weights: a run, a weights file of ours, or a file in another layout."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, TypeVar

from torch import nn

from beit.nn.heads import ImageClassifier
from beit.nn.segmenter import SemanticSegmenter
from beit.nn.tokenizer import VQKD, Tokenizer
from beit.nn.vit import VisionTransformer, resized, with_bias_per_block
from beit.run.directory import RunDirectory
from beit.run.settings import first
from beit.weights import hub, manifest
from beit.weights.file import (
    FORMAT,
    SizeUnknownError,
    kind_of,
    model_of,
    read_safetensors,
    read_shapes,
    size_pair,
)
from beit.weights.formats import (
    dalle,
    dvae,
    mmpretrain,
    published,
    published_segmentation,
    timm_beit,
    transformers_beit,
)
from beit.weights.formats.containers import named_tensors
from beit.weights.safe_pickle.files import read_checkpoint

WithHead = TypeVar("WithHead", ImageClassifier, SemanticSegmenter)

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".pkl")
# Weights in a folder that is not a run: ours, and those of transformers and timm.
FOLDER_FILES = ("weights.safetensors", "model.safetensors", "pytorch_model.bin")


class Layout(NamedTuple):
    """A family of files written by other programs."""

    what: str  # contents, in words, and the beginnings of its tensor names
    module: ModuleType  # its `recognises(tensors)` looks at names only
    build: Callable[..., nn.Module]  # (tensors, *, origin, **overrides) -> model in eval mode
    whole: bool = False  # pass the whole checkpoint to `build`, not only its tensors
    json_files: Mapping[str, str] = {}  # in the same folder, by parameter of `build`


# The first layout that recognises the names is used; layouts with distinctive names come first.
# timm's names are those of the published code, which also saves a relative_position_index.
LAYOUTS = (
    Layout(
        "transformers' BEiT (beit.embeddings.*, embeddings.*)",
        transformers_beit,
        transformers_beit.from_transformers,
        json_files={"config": "config.json", "processor": "preprocessor_config.json"},
    ),
    Layout(
        "published BEiT segmentation (backbone.*, decode_head.*)",
        published_segmentation,
        published_segmentation.from_published_segmentation,
        whole=True,
    ),
    Layout("mmpretrain's BEiT (backbone.layers.*)", mmpretrain, mmpretrain.from_mmpretrain),
    Layout("DALL-E's tokenizer (blocks.input.w)", dalle, dalle.from_dalle),
    Layout("BEiT v1's discrete VAE (codebook.weight, encoder.*)", dvae, dvae.from_dvae),
    Layout(
        "timm's BEiT (blocks.*.attn.q_bias)",
        timm_beit,
        timm_beit.from_timm,
        json_files={"config": "config.json"},
    ),
    Layout(
        "published BEiT v1 and v2: VQ-KD tokenizers (encoder.*, quantize.*), pretrained (lm_head.*)"
        " and fine-tuned models (blocks.*.attn.q_bias)",
        published,
        published.from_published,
    ),
)


def load(source: str | Path, **overrides: Any) -> nn.Module:
    """Load the model in `source`, of any kind, in eval mode and in float32.

    Args:
        source: a run directory; a `.safetensors`, `.pth`, `.pt`, `.bin` or `.pkl` file, ours or in
            one of `LAYOUTS`; a folder of transformers, timm or DALL-E; `hf://OWNER/NAME`;
            `published:NAME`. Only tensors and plain values are ever unpickled.
        overrides: settings that shapes do not determine, such as `num_heads=4`,
            `image_size=(224, 320)`, `early_layers=3`, `mean=…`, `std=…`; a different `num_classes`
            replaces the head of a classifier or segmenter. Our own files have all settings: there
            `mean`, `std` and the head can be replaced, and the others must agree.

    Raises:
        ValueError: the file is damaged, unsafe, in no known layout, or contradicts an override.
        OSError: it does not exist or cannot be downloaded.
    """
    path, overrides = _local_path(source, overrides)
    content, metadata = _read(path)
    if FORMAT in metadata:
        return model_of(content, metadata, str(path), **overrides)
    tensors = named_tensors(content, str(path))
    for layout in LAYOUTS:
        if layout.module.recognises(tensors):
            is_dalle = path.name.removeprefix("dall_e_") in dalle.FILES  # prefix of downloads
            if is_dalle and layout.module is not dalle:
                raise ValueError(
                    f"{path} has the name of DALL-E's tokenizer, but holds another model: "
                    f"{layout.what}; to load it, rename the file"
                )
            files = {key: path.with_name(name) for key, name in layout.json_files.items()}
            settings = {key: _read_json(file) for key, file in files.items() if file.is_file()}
            state = content if layout.whole else tensors
            return layout.build(state, origin=str(path), **settings, **overrides)
    raise ValueError(
        f"{path} is in no known layout: {first(list(tensors))}. Known are files of beit itself, "
        + "; ".join(layout.what for layout in LAYOUTS)
        + ". Other vision models can serve as a teacher (beit.load_teacher)"
    )


def load_tokenizer(source: str | Path, **overrides: Any) -> Tokenizer:
    """Load a model with `encode(images) -> codes`, `vocab_size` and `grid`, in eval mode."""
    model = load(source, **overrides)
    if not isinstance(model, Tokenizer):
        kind = type(model).__name__
        raise ValueError(f"{source} holds a {kind}, which has no encode(); expected a tokenizer")
    return model


def load_backbone(
    source: str | Path, image_size: int | tuple[int, int] | None = None, **overrides: Any
) -> VisionTransformer:
    """Load the vision Transformer of any model, in eval mode.

    Args:
        image_size: (height, width) or one side; positions are resized to its grid. If the file does
            not determine its own size, it must be that size.
        overrides: as for `load`, and `relative_bias="per_block"`, which copies the shared bias into
            every block, as in fine-tuning
    """
    relative_bias = overrides.pop("relative_bias", None)
    backbone = required_backbone(load_sized(source, image_size, **overrides), str(source))
    own = backbone.config.relative_bias
    if relative_bias not in (None, "per_block", own):
        raise ValueError(
            f"relative_bias={relative_bias!r} contradicts {source}, which says {own}; it can only "
            "be changed to per_block"
        )
    try:
        if relative_bias == "per_block":
            backbone = with_bias_per_block(backbone)
        return backbone if image_size is None else resized(backbone, size_pair(image_size))
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


def load_classifier(
    source: str | Path, image_size: int | tuple[int, int] | None = None, **overrides: Any
) -> ImageClassifier:
    """Load an image classifier in eval mode; the arguments are those of `load_backbone`."""
    return _load_with_head(ImageClassifier, "images", source, image_size, overrides)


def load_segmenter(
    source: str | Path, image_size: int | tuple[int, int] | None = None, **overrides: Any
) -> SemanticSegmenter:
    """Load a segmenter in eval mode; the arguments are those of `load_backbone`."""
    return _load_with_head(SemanticSegmenter, "pixels", source, image_size, overrides)


def load_sized(
    source: str | Path, image_size: int | tuple[int, int] | None, **overrides: Any
) -> nn.Module:
    """Load a model at its own image size, or at `image_size` if the file does not determine it."""
    overrides = {name: value for name, value in overrides.items() if value is not None}
    try:
        return load(source, **overrides)
    except SizeUnknownError:
        if image_size is None:
            raise
        return load(source, image_size=image_size, **overrides)


def holds_segmenter(source: str | Path) -> bool:
    """Whether a file holds a segmenter, by its tensor names; false if it cannot be opened."""
    try:
        path, _ = _local_path(source, {})
        if path.suffix == ".safetensors":
            shapes, metadata = read_shapes(path)
            names = list(shapes)
        else:
            content, metadata = _read(path)
            names = list(named_tensors(content, str(path)))
    except (ValueError, OSError):
        return False
    if FORMAT in metadata:
        return kind_of(metadata) == SemanticSegmenter.__name__
    return any(name.startswith("decode_head.") for name in names)  # published, transformers


def backbone_of(model: nn.Module) -> VisionTransformer | None:
    """Return the model's vision Transformer, or None if it has none."""
    if isinstance(model, VQKD):
        return model.encoder
    backbone = model if isinstance(model, VisionTransformer) else getattr(model, "backbone", None)
    return backbone if isinstance(backbone, VisionTransformer) else None


def required_backbone(model: nn.Module, origin: str) -> VisionTransformer:
    """Return the model's vision Transformer; ValueError if it has none."""
    backbone = backbone_of(model)
    if backbone is None:
        raise ValueError(f"{origin} holds a {type(model).__name__}, which has no backbone")
    return backbone


def _load_with_head(
    model_class: type[WithHead], things: str, source: str | Path, size: Any, overrides: Any
) -> WithHead:
    """Load a model that predicts classes of `things`, resized to `size`."""
    model = load_sized(source, size, **overrides)
    if not isinstance(model, model_class):
        raise ValueError(
            f"{source} holds a {type(model).__name__}, which names no classes of {things}; "
            f"expected {model_class.__name__}"
        )
    if size is not None:
        model.backbone = resized(model.backbone, size_pair(size))
    return model


def _local_path(source: str | Path, overrides: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
    """Find the local file, or DALL-E's folder; add a published file's settings to the overrides."""
    if str(source).startswith((hub.HUB, hub.PUBLISHED)):
        path = hub.fetch(str(source))
        published = manifest.find(path.name) if str(source).startswith(hub.PUBLISHED) else None
    else:
        path = _find_file(Path(source))
        published = manifest.check(path) if path.is_file() else None
    return path, overrides if published is None else manifest.settings(published, overrides)


def _find_file(path: Path) -> Path:
    """Find the weights in a folder: those of a finished run, or a file of `FOLDER_FILES`."""
    if path.is_dir():
        if not RunDirectory(path).config_file.is_file():
            for file in (path / name for name in FOLDER_FILES):
                if file.is_file():
                    return file
            if (path / "encoder.pkl").is_file():
                return path
        run = RunDirectory.open(path)
        if not run.weights_file.is_file():
            raise ValueError(
                f"the run in {path} is not finished: it has no {run.weights_file.name}; "
                f"continue it with --resume {path}"
            )
        return run.weights_file
    expected = ", ".join(SUFFIXES)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist; expected a run directory, a file ({expected}), "
            "hf://OWNER/NAME or published:NAME"
        )
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path} ends in {path.suffix or 'nothing'}; expected {expected}")
    return path


def _read(path: Path) -> tuple[Mapping[str, Any], dict[str, str]]:
    """Read the contents of a file or folder, and the metadata of a safetensors file."""
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    if path.is_dir() or path.suffix == ".pkl":
        read = dalle.read_dalle_folder if path.is_dir() else dalle.read_pickled_module
        pickled = read(path)
        if pickled is not None:
            return pickled, {}
    return read_checkpoint(path), {}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} cannot be read as JSON ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected an object")
    return content
