"""Open any source of weights: a run, a weights file of ours, or a file in another layout."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from beit.data.imagenet_names import WORDS_OF, imagenet_words
from beit.nn.heads import ImageClassifier
from beit.nn.position import resized, with_bias_per_block
from beit.nn.segmenter import SemanticSegmenter
from beit.nn.tokenizer import VQKD, Tokenizer
from beit.nn.vit import VisionTransformer
from beit.run.directory import RunDirectory
from beit.run.settings import first
from beit.weights import hub, manifest
from beit.weights.assemble import TABLE
from beit.weights.bands import bands_in
from beit.weights.crop import crop_in
from beit.weights.file import (
    FORMAT,
    EarlyLayersUnknownError,
    SizeUnknownError,
    kind_of,
    model_of,
    read_shapes,
    size_pair,
)
from beit.weights.formats import dalle, mmpretrain, published, timm_beit
from beit.weights.formats.containers import named_tensors
from beit.weights.formats.prefixes import without_prefix
from beit.weights.formats.timm_beit import is_of_imagenet
from beit.weights.layouts import LAYOUTS, layout_of
from beit.weights.shards import INDEX, read_file, read_json, refuse_shard, weight_map
from beit.wording import an, near_path

logger = logging.getLogger(__name__)

WithHead = TypeVar("WithHead", ImageClassifier, SemanticSegmenter)
MAKERS = {ImageClassifier: "beit finetune", SemanticSegmenter: "beit segment"}

# Ends of names that only our own models have; files in other layouts have the published names.
OWN_NAMES = (TABLE, "quantizer.codebook")
# Layouts without mean and std, of which some files need others than ImageNet's.
GUESSED = (published, timm_beit, mmpretrain)
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".pkl", ".ckpt", ".pth.tar", INDEX)


def load(source: str | Path, **overrides: Any) -> nn.Module:
    """Load the model in `source`, of any kind, in eval mode and in float32.

    Its attribute `crop_ratio`, that of its backbone too, is what its files say of its images' crop
    (side of the centre crop over the shorter side), and `pixel_options` of the bands and ranges of
    its training images, as in ["bands=4,3,2"]; None if they say nothing.

    Args:
        source: a run directory; a file of weights (.safetensors, .pth, .pt, .bin, .pkl, .ckpt,
            .pth.tar, or the .index.json of several), ours or in a layout of docs/weights.md, also
            with names that have a prefix; a folder of transformers, timm or DALL-E;
            `hf://OWNER/NAME`; `published:NAME`; `beit:NAME`. Only tensors and plain values are
            ever unpickled.
        overrides: settings that shapes do not determine: `num_heads=4`, `image_size=(224, 320)`,
            `mean=…`, `std=…`; of a pretraining model `early_layers=3`; of a classifier or segmenter
            `class_names=(…)`, of a segmenter `layers=(2, 4, 6, 8)`. A different `num_classes`
            replaces the head of a classifier or segmenter. Our own files have all settings: there
            `mean`, `std` and the head can be replaced, and the others must agree.

    Raises:
        ValueError: the file is damaged, unsafe, in no known layout, not the model of its published
            name, or contradicts an override.
        OSError: it does not exist or cannot be downloaded.
        TypeError: the source is no name.
    """
    if not isinstance(source, str | Path):
        raise TypeError(
            f"source is {an(type(source).__name__)}; expected the name of a file, run or folder. "
            "For a model or tensors in memory, write a file first (torch.save, save_pretrained)"
        )
    if not str(source) or ("://" in str(source) and not str(source).startswith(hub.SCHEMES)):
        meant = _named(Path(source)) or _expected(Path("x"))
        raise FileNotFoundError(f"{source or 'an empty name'} cannot be opened{meant}")
    path, known = _local_path(source)
    settings = overrides if known is None else manifest.settings(known, overrides)
    shipped = str(source).startswith(hub.SHIPPED)
    model = _load(path, str(source if shipped else path), **settings)
    is_published = str(source).startswith(hub.PUBLISHED)
    if is_published and known is not None:
        _check_published(source, model, known, path)
    where = path if str(source).startswith(hub.SCHEMES) else Path(source)
    crop = crop_in(where)
    for part in (model, backbone_of(model) or model):
        part.crop_ratio = None if crop is None else crop[0]  # type: ignore[assignment]
        part.pixel_options = None if is_published else bands_in(where)  # type: ignore[assignment]
    return model


def _load(path: Path, name: str, **overrides: Any) -> nn.Module:
    """Load the model in a file or DALL-E's folder; errors about a file of ours give its `name`."""
    content, metadata = _read(path)
    if FORMAT in metadata:
        return model_of(content, metadata, name, **overrides)
    tensors = without_prefix(named_tensors(content, str(path)), layout_of, str(path))
    if any(name.endswith(OWN_NAMES) for name in tensors):
        raise ValueError(
            f"{path} holds the tensors of a model of beit without its configuration, as from "
            "torch.save(model.state_dict()); save models with beit.save(model, 'x.safetensors'), "
            "or load this file into an equal model: model.load_state_dict(torch.load(file))"
        )
    layout = layout_of(tensors)
    if layout is None:
        raise ValueError(
            f"{path} is in no known layout: {first(list(tensors))}. Known are files of beit "
            f"itself, {'; '.join(layout.what for layout in LAYOUTS)}. Other vision models can "
            "serve as a teacher (beit.load_teacher): CLIP, DINO and DINOv2 under this name, those "
            f"of timm as timm:NAME@{path}"
        )
    named_dalle = path.name.removeprefix("dall_e_") in dalle.FILES  # prefix of downloads
    if named_dalle and layout.module is not dalle:
        raise ValueError(
            f"{path} has the name of DALL-E's tokenizer, but holds another model: "
            f"{layout.what}; to load it, rename the file"
        )
    files = {key: path.with_name(name) for key, name in layout.json_files.items()}
    settings = {key: read_json(file) for key, file in files.items() if file.is_file()}
    state = {"state_dict": tensors, "meta": content.get("meta")} if layout.whole else tensors
    try:
        model = layout.build(state, origin=str(path), **settings, **overrides)
    except ValueError as error:  # a configuration's own checks do not know the file
        if str(path) in str(error):
            raise
        raise ValueError(f"{path}: {error}") from error
    unsaid = layout.module in GUESSED and not settings and manifest.of_file(path.name) is None
    if unsaid and not isinstance(model, VQKD) and not {"mean", "std"} <= overrides.keys():
        logger.warning(
            "%s does not say how its images were normalised; taken as by ImageNet's mean and std, "
            "as for BEiT v2. timm's beit_*, and BEiT v1 of ImageNet-22k, need "
            "mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)",
            path,
        )
    if manifest.is_of_imagenet(path.name) or is_of_imagenet(settings.get("config", {})):
        _name_classes(model, str(path))
    return model


def load_tokenizer(source: str | Path, **overrides: Any) -> Tokenizer:
    """Load a model with `encode(images) -> codes`, `vocab_size` and `grid`, in eval mode.

    Args:
        source: as for `load`
        overrides: as for `load`; for DALL-E's encoder, `decoder` is the file of its decoder

    Raises:
        ValueError, OSError: as `load`, or it holds another kind of model.
    """
    model = load(source, **overrides)
    if not isinstance(model, Tokenizer):
        kind = type(model).__name__
        advice = "as beit train-tokenizer makes, or beit:cifar10-small-tokenizer"
        raise ValueError(
            f"{source} holds {an(kind)}, which has no encode(); expected a tokenizer, {advice}"
        )
    return model


def load_backbone(
    source: str | Path, image_size: int | tuple[int, int] | None = None, **overrides: Any
) -> VisionTransformer:
    """Load the vision Transformer of any model, in eval mode.

    Args:
        source: as for `load`
        image_size: (height, width) or one side; positions are resized to its grid. If the file does
            not determine its own size, it must be that size.
        overrides: as for `load`, and `relative_bias="per_block"`, which copies the shared bias into
            every block, as in fine-tuning

    Raises:
        ValueError, OSError: as `load`, or it has no vision Transformer, or none of that size.
    """
    relative_bias = overrides.pop("relative_bias", None)
    backbone = required_backbone(load_start(source, image_size, **overrides), str(source))
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


def load_start(
    source: str | Path,
    image_size: int | tuple[int, int] | None,
    unknown_early: int = 1,
    **overrides: Any,
) -> nn.Module:
    """Load a model as by `load_sized`; nobody is asked which block feeds its patch aggregation.

    Args:
        unknown_early: that block, if the file does not determine it; the default is for callers
            that do not use the aggregation
    """
    try:
        return load_sized(source, image_size, **overrides)
    except EarlyLayersUnknownError:
        return load_sized(source, image_size, early_layers=unknown_early, **overrides)


def holds_segmenter(source: str | Path) -> bool:
    """Whether a file holds a segmenter, by its tensor names; false if it cannot be opened."""
    try:
        path, _ = _local_path(source)
        metadata: Mapping[str, str] = {}
        if path.suffix == ".safetensors":
            shapes, metadata = read_shapes(path)
            names = list(shapes)
        elif path.name.endswith(INDEX):
            names = list(weight_map(path))
        else:
            content, metadata = _read(path)
            names = list(named_tensors(content, str(path)))
    except (ValueError, OSError):
        return False
    if FORMAT in metadata:
        return kind_of(metadata) == SemanticSegmenter.__name__
    return any("decode_head." in name for name in names)  # of others, also under a prefix


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
        raise ValueError(f"{origin} holds {an(type(model).__name__)}, which has no backbone")
    return backbone


def _load_with_head(
    model_class: type[WithHead], things: str, source: str | Path, size: Any, overrides: Any
) -> WithHead:
    """Load a model that predicts classes of `things`, resized to `size`."""
    model = load_sized(source, size, **overrides)
    if not isinstance(model, model_class):
        raise ValueError(
            f"{source} holds {an(type(model).__name__)}, which names no classes of {things}; "
            f"expected {model_class.__name__}, as {MAKERS[model_class]} --model {source} makes"
        )
    return model if size is None else resized(model, size_pair(size))


def _check_published(
    source: str | Path, model: nn.Module, known: manifest.PublishedFile, path: Path
) -> None:
    """Refuse a file that has the name of a published one and holds a model of other sizes."""
    what, holds = an(known.model), an(type(model).__name__)
    vit = backbone_of(model)
    if what == holds and vit is not None:
        sizes = {"width": vit.config.width, "depth": vit.config.depth}
        sizes["patch"] = vit.config.patch_size
        named = {name: known.shapes[name] for name in sizes if name in known.shapes}
        what, holds = str(named), str({name: sizes[name] for name in named})
    if what != holds:
        raise ValueError(
            f"{source} is {what} ({known.what}), but {path} holds {holds}: it is another file of "
            "this name. Delete it, and it is downloaded again; if it is yours, move it and give "
            "its path"
        )


def _name_classes(model: nn.Module, origin: str) -> None:
    """Give a classifier of ImageNet's 1000 or 21,841 classes their words, unless it has names."""
    if isinstance(model, ImageClassifier) and model.classes is None:
        number = model.config.num_classes
        if number in WORDS_OF:  # not another head
            model.config = replace(model.config, class_names=imagenet_words(number))
            logger.info("%s: its classes are ImageNet's %d", origin, number)


def _local_path(source: str | Path) -> tuple[Path, manifest.PublishedFile | None]:
    """Find the local file, or DALL-E's folder; which published file it is by its name, if any."""
    if str(source).startswith(hub.SCHEMES):
        path = hub.fetch(str(source))
        return path, manifest.find(path.name) if str(source).startswith(hub.PUBLISHED) else None
    path = _find_file(Path(source))
    return path, manifest.check(path) if path.is_file() else None


def _find_file(path: Path) -> Path:
    """Find the file of weights, or DALL-E's folder, at a path."""
    if path.is_dir():
        return _find_in_folder(path)
    if str(path).startswith("teacher:"):
        name = str(path).removeprefix("teacher:")
        raise ValueError(
            f"{path} is a teacher, which has features, but no codes, classes or vision Transformer "
            f"of beit; open it with beit.load_teacher({name!r}), or use beit embed or beit similar"
        )
    if not path.is_file():
        meant = _named(path) or near_path(path) or _expected(path)
        raise FileNotFoundError(f"{path} does not exist{meant}")
    if not path.name.endswith(SUFFIXES):
        expected = ", ".join(SUFFIXES)
        raise ValueError(f"{path} ends in {path.suffix or 'nothing'}; expected {expected}")
    refuse_shard(path)
    return path


def _find_in_folder(path: Path) -> Path:
    """Find the weights in a folder: those of a finished run, or of a repository."""
    if RunDirectory(path).config_file.is_file():
        run = RunDirectory.open(path)
        if not run.weights_file.is_file():
            raise ValueError(
                f"the run in {path} is not finished: it has no {run.weights_file.name}; "
                f"go on with: beit {run.verb()} --resume {path}"
            )
        return run.weights_file
    file = hub.weights_in(path)
    if file is not None or (path / "encoder.pkl").is_file():
        return file or path
    for shard in sorted(path.glob("*-of-*")):  # without their index
        refuse_shard(shard)
    files = [file.name for file in sorted(path.iterdir()) if file.name.endswith(SUFFIXES)]
    raise FileNotFoundError(
        f"{path} is not a run directory: it has no config.yaml, nor has it "
        f"{hub.WEIGHTS}, {' or '.join(hub.THEIRS)}"
        + (f"; give one of its files: {first(files)}" if files else "")
    )


def _named(path: Path) -> str:
    """Say which source has the name that was given as a path; empty if none has."""
    if str(path).startswith("timm:"):
        own = f"{hub.HUB}timm/{path.name[5:]}.TAG"
        return f"; did you mean teacher:{path}? timm's BEiT weights in the hub are {own}"
    if str(path).startswith(("efficientnet-lite", "python:")):
        return f"; did you mean teacher:{path}?"
    if (name := path.stem.partition("-")[0]) in manifest.names():
        return f"; did you mean {hub.PUBLISHED}{name}?"
    return f"; did you mean {hub.SHIPPED}{path.stem}?" if path.stem in hub.shipped() else ""


def _expected(path: Path) -> str:
    """Say what is expected instead of a path that does not exist."""
    in_hub = ""
    if hub.REPOSITORY.fullmatch(str(path)) and not path.name.endswith(SUFFIXES):
        in_hub = f", as in {hub.HUB}{path}"
    return (
        f"; expected a run directory, a file ({', '.join(SUFFIXES)}), hf://OWNER/NAME{in_hub}, "
        "published:NAME or beit:NAME"
    )


def _read(path: Path) -> tuple[Mapping[str, Any], dict[str, str]]:
    """Read the contents of a file or folder, and the metadata of a safetensors file."""
    if path.is_dir() or path.suffix == ".pkl":
        read = dalle.read_dalle_folder if path.is_dir() else dalle.read_pickled_module
        pickled = read(path)
        if pickled is not None:
            return pickled, {}
    return read_file(path)
