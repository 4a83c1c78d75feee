"""Opening whatever a user points at: a run, a weights file of ours, weights in others' layouts."""

import json
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from beit.nn.heads import ImageClassifier
from beit.nn.segmenter import SemanticSegmenter
from beit.nn.tokenizer import VQKD, Tokenizer
from beit.nn.vit import VisionTransformer, resized, with_bias_per_block
from beit.run.directory import RunDirectory
from beit.run.settings import first
from beit.weights.file import (
    FORMAT,
    kind_of,
    model_of,
    read_names,
    read_safetensors,
    size_pair,
)
from beit.weights.formats.containers import named_tensors
from beit.weights.formats.published_config import SizeUnknownError
from beit.weights.safe_pickle.files import read_checkpoint

FORMATS = "beit.weights.formats"
HUB, PUBLISHED = "hf://", "published:"
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".pkl")
# In a folder that is no run: our name for weights, and transformers' names.
FOLDER_FILES = ("weights.safetensors", "model.safetensors", "pytorch_model.bin")


class Layout(NamedTuple):
    """A family of files that others write.

    Attributes:
        what: it holds, in words, and how its names begin
        module: which of `beit.weights.formats` reads it: with `recognises(tensors)`, by names
            alone, and the builder
        builder: `builder(tensors, *, origin, **overrides)` gives the model in eval mode
        whole: the builder takes the whole checkpoint, tensors and what is said of them
        beside: JSON files in the same folder that the builder takes, by parameter
    """

    what: str
    module: str
    builder: str
    whole: bool = False
    beside: Mapping[str, str] = {}


# The first whose module recognises the names reads the file. Those with names of their own come
# first. The last two share theirs: timm's files have no relative_position_index, and what the
# published code saves has it wherever there is a relative bias.
LAYOUTS = (
    Layout(
        "transformers' BEiT (beit.embeddings.*, embeddings.*)",
        "transformers_beit",
        "from_transformers",
        beside={"config": "config.json", "processor": "preprocessor_config.json"},
    ),
    Layout(
        "published BEiT segmentation (backbone.*, decode_head.*)",
        "published_segmentation",
        "from_published_segmentation",
        whole=True,
    ),
    Layout("mmpretrain's BEiT (backbone.layers.*)", "mmpretrain", "from_mmpretrain"),
    Layout("DALL-E's tokenizer (blocks.input.w)", "dalle", "from_dalle"),
    Layout("BEiT v1's discrete VAE (codebook.weight, encoder.*)", "dvae", "from_dvae"),
    Layout(
        "timm's BEiT (blocks.*.attn.q_bias)",
        "timm_beit",
        "from_timm",
        beside={"config": "config.json"},
    ),
    Layout(
        "published BEiT v1 and v2: VQ-KD tokenizers (encoder.*, quantize.*), pretrained (lm_head.*)"
        " and fine-tuned models (blocks.*.attn.q_bias)",
        "published",
        "from_published",
    ),
)


def load(source: str | Path, **overrides: Any) -> nn.Module:
    """Load the model that `source` holds, whatever it is, in eval mode and in float32.

    Args:
        source: a run directory; a `.safetensors`, `.pth`, `.pt`, `.bin` or `.pkl` file, ours or in
            one of `LAYOUTS`; a folder of transformers or of DALL-E; `hf://OWNER/NAME`;
            `published:NAME`. Only tensors and plain values are ever unpickled.
        overrides: settle what shapes cannot, such as `num_heads=4`, `image_size=(224, 320)`,
            `early_layers=3`, `mean=…`, `std=…`; `num_classes` replaces the head of a classifier of
            another size. Our own files carry all of it: there `mean` and `std` can be replaced, a
            head likewise, and the rest must agree.

    Raises:
        ValueError: the file is damaged, is refused, is in no known layout, or contradicts an
            override. FileNotFoundError, OSError: it is not there or cannot be fetched.
    """
    path, overrides = _located(source, overrides)
    content, metadata = _read(path)
    if FORMAT in metadata:
        return model_of(content, metadata, str(path), **overrides)
    tensors = named_tensors(content, str(path))
    for layout in LAYOUTS:
        module = import_module(f"{FORMATS}.{layout.module}")
        if module.recognises(tensors):
            told = {key: _json(path.with_name(file)) for key, file in layout.beside.items()}
            told = {key: value for key, value in told.items() if value is not None}
            if layout.module != "dalle":
                _refuse_dalles_name(path, layout)
            build = getattr(module, layout.builder)
            state = content if layout.whole else tensors
            model: nn.Module = build(state, origin=str(path), **told, **overrides)
            return model
    raise ValueError(
        f"{path} is in no known layout: {first(list(tensors))}. Known are files of beit itself, "
        + "; ".join(layout.what for layout in LAYOUTS)
        + ". Other vision models can serve as a teacher (beit.load_teacher)"
    )


def load_tokenizer(source: str | Path, **overrides: Any) -> Tokenizer:
    """Load a model that has `encode(images) -> codes`, `vocab_size` and `grid`, in eval mode."""
    model = load(source, **overrides)
    if not isinstance(model, Tokenizer):
        raise ValueError(
            f"{source} holds a {type(model).__name__}, which has no encode(); expected a tokenizer"
        )
    return model


def load_backbone(
    source: str | Path, image_size: int | tuple[int, int] | None = None, **overrides: Any
) -> VisionTransformer:
    """Load the vision Transformer out of any model, in eval mode.

    Args:
        image_size: what the backbone is to take, (height, width) or one side; positions are carried
            to its grid. Where the file does not tell its own size, it must be this one.
        overrides: as for `load`, and `relative_bias="per_block"`, which gives every block a copy of
            the shared bias, as fine-tuning does
    """
    relative_bias = overrides.pop("relative_bias", None)
    model = load_sized(source, image_size, **overrides)
    backbone = backbone_of(model)
    if backbone is None:
        raise ValueError(f"{source} holds a {type(model).__name__}, which has no backbone")
    if relative_bias not in (None, "per_block", backbone.config.relative_bias):
        raise ValueError(
            f"relative_bias={relative_bias!r} contradicts {source}, which says "
            f"{backbone.config.relative_bias}; it can become per_block"
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
    model = load_sized(source, image_size, **overrides)
    if not isinstance(model, ImageClassifier):
        raise ValueError(
            f"{source} holds a {type(model).__name__}, which names no classes of images; expected "
            "an ImageClassifier"
        )
    if image_size is not None:
        model.backbone = resized(model.backbone, size_pair(image_size))
    return model


def load_segmenter(
    source: str | Path, image_size: int | tuple[int, int] | None = None, **overrides: Any
) -> SemanticSegmenter:
    """Load a segmenter in eval mode; the arguments are those of `load_backbone`."""
    model = load_sized(source, image_size, **overrides)
    if not isinstance(model, SemanticSegmenter):
        raise ValueError(
            f"{source} holds a {type(model).__name__}, which names no classes of pixels; "
            "expected a SemanticSegmenter"
        )
    if image_size is not None:
        model.backbone = resized(model.backbone, size_pair(image_size))
    return model


def load_sized(
    source: str | Path, image_size: int | tuple[int, int] | None, **overrides: Any
) -> nn.Module:
    """Load a model at its own size; where its file does not tell that, at `image_size`.

    Overrides that are None are left out.
    """
    overrides = {name: value for name, value in overrides.items() if value is not None}
    try:
        return load(source, **overrides)
    except SizeUnknownError:
        if image_size is None:
            raise
        return load(source, image_size=image_size, **overrides)


def holds_segmenter(source: str | Path) -> bool:
    """Tell by the names in a file, without building the model, whether it is a segmenter.

    False for what cannot be opened: opening it for use says why.
    """
    try:
        path, _ = _located(source, {})
        if path.suffix == ".safetensors":
            names, metadata = read_names(path)
        else:
            content, metadata = _read(path)
            names = list(named_tensors(content, str(path)))
    except (ValueError, OSError):
        return False
    if FORMAT in metadata:
        return kind_of(metadata) == SemanticSegmenter.__name__
    return any(name.startswith("decode_head.") for name in names)  # published, transformers


def backbone_of(model: nn.Module) -> VisionTransformer | None:
    """Return the vision Transformer that sees the images, if the model has one."""
    if isinstance(model, VQKD):
        return model.encoder
    found = model if isinstance(model, VisionTransformer) else getattr(model, "backbone", None)
    return found if isinstance(found, VisionTransformer) else None


def _located(source: str | Path, overrides: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
    """Find the local file, or DALL-E's folder, and complete the overrides of a published file."""
    from beit.weights import hub, manifest

    if str(source).startswith((HUB, PUBLISHED)):
        path = hub.fetch(str(source))
        published = manifest.find(path.name) if str(source).startswith(PUBLISHED) else None
    else:
        path = _file_of(Path(source))
        published = manifest.check(path) if path.is_file() else None
    return path, overrides if published is None else manifest.settings(published, overrides)


def _file_of(path: Path) -> Path:
    """Find the weights in a folder: those of a finished run, or as others name them."""
    if path.is_dir():
        if RunDirectory(path).config_file.is_file():
            return _finished_weights(path)
        files = (path / name for name in FOLDER_FILES)
        found = next((file for file in files if file.is_file()), None)
        if found is not None:
            return found
        if (path / "encoder.pkl").is_file():
            return path
        return _finished_weights(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist; expected a run directory, a file "
            f"({', '.join(SUFFIXES)}), hf://OWNER/NAME or published:NAME"
        )
    if path.suffix not in SUFFIXES:
        raise ValueError(
            f"{path} ends in {path.suffix or 'nothing'}; expected {', '.join(SUFFIXES)}"
        )
    return path


def _read(path: Path) -> tuple[Mapping[str, Any], dict[str, str]]:
    """Read what a file or folder holds, and the metadata of a safetensors file."""
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    if path.is_dir() or path.suffix == ".pkl":
        from beit.weights.formats.dalle import read_dalle_folder, read_pickled_module

        pickled = read_dalle_folder(path) if path.is_dir() else read_pickled_module(path)
        if pickled is not None:
            return pickled, {}
    return read_checkpoint(path), {}


def _refuse_dalles_name(path: Path, layout: Layout) -> None:
    """Raise ValueError if another model lies in a file of the name that DALL-E's have."""
    if path.suffix == ".pkl":
        from beit.weights.formats.dalle import FILES

        if path.name.removeprefix("dall_e_") in FILES:  # published as these, fetched with that
            raise ValueError(
                f"{path} has the name of DALL-E's tokenizer, but holds another model: "
                f"{layout.what}; if it is the one you want, give the file another name"
            )


def _finished_weights(directory: Path) -> Path:
    """Find the weights of a finished run."""
    run = RunDirectory.open(directory)
    if not run.weights_file.is_file():
        raise ValueError(
            f"the run in {directory} is not finished: it has no {run.weights_file.name}; "
            f"continue it with --resume {directory}"
        )
    return run.weights_file


def _json(path: Path) -> dict[str, Any] | None:
    """Read a JSON object that lies beside the weights; None where there is none."""
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} cannot be read as JSON ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected an object")
    return content
