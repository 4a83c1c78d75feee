"""Take a model to where people use it: files for other libraries, each proved before it is kept.

1. The model is loaded, in float32, on the CPU.
2. The export is written into a hidden folder beside the output.
3. The library that it is for opens it again, and it and the model are given the same seeded images,
   1, 3 and 8 at a time.
4. Only if no value differs by more than `atol` it takes the output's name; what fails is removed
   and refused with the figure.

Codes of a tokenizer must be the model's own, but for near ties: another code passes if the model
rates it within `atol` of the one it takes (VQ-KD by its cosine, the image tokenizers by its logit).
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from beit.files import replacing
from beit.nn.dalle import DalleTokenizer
from beit.nn.dvae import DiscreteVAE
from beit.nn.heads import ImageClassifier
from beit.nn.mim import MaskedImageModel, take
from beit.nn.segmenter import SemanticSegmenter
from beit.nn.tokenizer import VQKD, Tokenizer
from beit.nn.vit import VisionTransformer
from beit.run.settings import first
from beit.weights.file import save_weights, trunk
from beit.weights.formats.graphs import (
    inputs_of,
    open_onnx,
    open_torch_export,
    outputs,
    write_onnx,
    write_torch_export,
)
from beit.weights.formats.published import to_published
from beit.weights.formats.published_segmentation import published_meta, to_published_segmentation
from beit.weights.formats.timm_beit import timm_config, to_timm
from beit.weights.formats.transformers_beit import (
    image_processor_config,
    to_transformers,
    transformers_config,
)
from beit.weights.open import load, load_backbone

BATCHES = (1, 3, 8)
SEED = 0
MASKED_SHARE = 0.4  # of the patches, for a model that predicts hidden ones


@dataclass(frozen=True)
class Config:
    """What is exported, as what, and where to.

    Args:
        source: what beit.load opens: a run directory, a weights file, a published checkpoint
        output: the file, or for timm and transformers the folder, to write; it must not exist
        format: of the output
        part: the whole model, or only the vision Transformer in it
        image_size: side, or height and width: a backbone is carried to this size; for a whole model
            it settles what the file does not say
        num_heads: attention heads, where neither the file nor the usual 64 channels a head say it
        opset: of the ONNX graph; null for PyTorch's own choice
        atol: largest difference allowed, in units of the largest value where that is above 1
    """

    source: str
    output: str
    format: Literal["safetensors", "published", "timm", "transformers", "onnx", "torch-export"]
    part: Literal["model", "backbone"] = "model"
    image_size: int | tuple[int, int] | None = None
    num_heads: int | None = None
    opset: int | None = None
    atol: float = 1e-4

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            known = ", ".join(FORMATS)
            raise ValueError(f"there is no format {self.format!r}; expected one of {known}")
        suffixes = FORMATS[self.format].suffixes
        if suffixes and Path(self.output).suffix not in suffixes:
            raise ValueError(
                f"output is {self.output!r}; expected a name ending in {' or '.join(suffixes)} "
                f"for format {self.format}"
            )
        if not self.atol > 0:
            raise ValueError(f"atol must be above 0, got {self.atol}")
        if self.opset is not None and self.format != "onnx":
            raise ValueError(f"opset is of format onnx, not of {self.format}")


class Difference(NamedTuple):
    """How far an export is from the model, in one output for one batch.

    Attributes:
        batch: images
        name: of the output
        largest: between two values; of codes, how far the export's are below the best at most
        scale: largest of the model's values; of codes, of its ratings
        equal: share of equal codes; None of other outputs
    """

    batch: int
    name: str
    largest: float
    scale: float
    equal: float | None = None


class Result(NamedTuple):
    """What was written, how it compared, and a line of Python that opens it."""

    output: Path
    differences: list[Difference]
    opened_by: str


Run = Callable[[Tensor, Tensor], Mapping[str, Tensor]]


class Written(NamedTuple):
    """An export, opened again by the library that it is for.

    Attributes:
        run: what it says of images (B, 3, H, W) float and masked (B, M), named as by `outputs`
        opened_by: a line of Python that opens it
    """

    run: Run
    opened_by: str


def run(config: Config) -> Result:
    """Write the export, compare it with the model, keep it if they agree.

    Raises:
        ValueError: the output exists, the format has no such model, or the export differs.
    """
    output = Path(config.output).expanduser()
    _refuse_existing(output)
    model = open_model(config)
    print(f"{config.source}: {type(model).__name__} as {config.format} ...", flush=True)
    output.parent.mkdir(parents=True, exist_ok=True)
    with staged(output) as path:
        written = FORMATS[config.format].write(model, path, config)
        differences = compare(model, written)
        for difference in differences:
            print(f"  {_line(difference)}")
            allowed = config.atol * max(1.0, difference.scale)
            if not difference.largest <= allowed:  # NaN is no agreement either
                raise ValueError(
                    f"{output} is not kept: it differs from the model by more than {allowed:.1e}: "
                    f"{_line(difference)}"
                )
    largest = max(difference.largest for difference in differences)
    print(f"{output}: kept, largest difference {largest:.1e}\n  {written.opened_by}")
    return Result(output, differences, written.opened_by)


def open_model(config: Config) -> nn.Module:
    """Load the model, or the vision Transformer in it, and see that the format has such a one."""
    given = {"image_size": config.image_size, "num_heads": config.num_heads}
    overrides: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    opened = load_backbone if config.part == "backbone" else load
    model = opened(config.source, **overrides).float()
    kinds = FORMATS[config.format].kinds
    if kinds and not isinstance(model, kinds):
        raise ValueError(
            f"{config.source} holds a {type(model).__name__}; {config.format} has "
            f"{', '.join(kind.__name__ for kind in kinds)}; --part backbone exports the vision "
            "Transformer alone, where there is one"
        )
    return model


@contextmanager
def staged(output: Path) -> Iterator[Path]:
    """Give a place for `output` in a hidden folder beside it; what is there at the end is moved.

    A file can have companions (the weights of a large ONNX graph), which are moved before it. When
    the block raises, nothing stays; what a killed process left is removed by the next.
    """
    folder = output.with_name(f".{output.name}.export")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder / output.name
        files = sorted(folder.iterdir(), key=lambda file: file.name == output.name)
        for file in files:
            _refuse_existing(output.with_name(file.name))
        for file in files:
            with replacing(output.with_name(file.name)) as temporary:
                file.rename(temporary)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _refuse_existing(path: Path) -> None:
    if path.exists():
        raise ValueError(f"{path} exists and is not overwritten; give another output")


# ── how the export and the model are compared ───────────────────────────────────────────────────


def example(model: nn.Module, count: int = max(BATCHES)) -> tuple[Tensor, Tensor]:
    """Draw the fixed batch: images (B, 3, H, W) float, whole 255ths, and masked (B, M) int64."""
    if isinstance(model, Tokenizer):
        size = model.image_size
    else:
        vit = trunk(model.config)
        assert vit is not None
        size = vit.image_size
    generator = torch.Generator().manual_seed(SEED)
    images = torch.randint(256, (count, 3, *size), generator=generator) / 255
    if not isinstance(model, MaskedImageModel):
        return images, torch.zeros(count, 0, dtype=torch.int64)
    N = model.config.backbone.num_patches
    order = torch.rand(count, N, generator=generator).argsort(dim=1)
    return images, order[:, : max(2, int(MASKED_SHARE * N))].sort(dim=1).values


@torch.no_grad()
def compare(model: nn.Module, written: Written) -> list[Difference]:
    """Give the fixed batch to the model and to its export, 1, 3 and 8 images at a time."""
    all_images, all_masked = example(model)
    differences = []
    for batch in BATCHES:
        images, masked = all_images[:batch], all_masked[:batch]
        expected = outputs(model, images, masked)
        for name, found in written.run(images, masked).items():
            wanted = expected[name]
            if found.shape != wanted.shape:
                raise ValueError(
                    f"the export gives {name} of shape {tuple(found.shape)} for {batch} images, "
                    f"the model {tuple(wanted.shape)}"
                )
            if name == "codes":
                equal = (found == wanted).float().mean().item()
                rated = scores(model, images)
                below = 0.0 if equal == 1 else shortfall(rated, found)
                differences.append(Difference(batch, name, below, rated.abs().max().item(), equal))
            else:
                largest = (found - wanted).abs().max().item()
                differences.append(Difference(batch, name, largest, wanted.abs().max().item()))
    return differences


def scores(model: nn.Module, images: Tensor) -> Tensor:
    """Give a tokenizer's rating of every code (B, N, K), of which `encode` takes the largest."""
    if isinstance(model, VQKD):
        return model.quantizer.scores(model.embed(images))
    assert isinstance(model, DiscreteVAE | DalleTokenizer)
    return model.logits(images).flatten(2).transpose(1, 2)


def shortfall(scores: Tensor, codes: Tensor) -> float:
    """Tell how far the scores (B, N, K) of codes (B, N) int64 are below the best, at most."""
    chosen = scores.gather(2, codes[..., None]).squeeze(2)  # (B, N)
    return (scores.amax(dim=2) - chosen).max().item()


def _line(difference: Difference) -> str:
    batch, name, largest, scale, equal = difference
    if equal is None:
        return f"batch {batch}: {name} {largest:.1e}, in values up to {scale:.3g}"
    others = "" if equal == 1 else f", the others rated {largest:.1e} below the best at most"
    return f"batch {batch}: {name} {equal:.3%} equal{others}"


# ── one function a format: write it, then open it by the library that it is for ─────────────────


def own_file(model: nn.Module, path: Path, config: Config) -> Written:
    """Write our own weights file."""
    save_weights(path, model)
    return Written(_loaded(model, path), f"beit.load({config.output!r})")


def published_file(model: nn.Module, path: Path, config: Config) -> Written:
    """Write the state dict of the published code; a .pth file has it in its usual container."""
    if isinstance(model, SemanticSegmenter):
        state = to_published_segmentation(model)
        checkpoint = {"state_dict": state, "meta": published_meta(model.config)}
    else:
        state = to_published(model)
        checkpoint = {"model": state}
    if path.suffix == ".pth":
        torch.save(checkpoint, path)
    else:
        _save_tensors(state, path)
    told = _untold(model)
    needed = "".join(f", {name}={value!r}" for name, value in _needed(path, told).items())
    return Written(_loaded(model, path, told), f"beit.load({config.output!r}{needed})")


def _untold(model: nn.Module) -> dict[str, Any]:
    """List what a published file may leave open, and beit.load can be told."""
    config: Any = model.config
    vit = trunk(config)
    told = {name: getattr(vit, name) for name in ("num_heads", "image_size", "mean", "std")}
    own = {VQKD: "decay", MaskedImageModel: "early_layers", SemanticSegmenter: "layers"}
    name = own.get(type(model))
    return told if name is None else told | {name: getattr(config, name)}


def _needed(path: Path, told: Mapping[str, Any]) -> dict[str, Any]:
    """Pick what the file alone does not tell, or not rightly."""
    needed: dict[str, Any] = {}
    try:
        config: Any = load(path).config
    except ValueError:  # shapes alone do not tell enough
        shape = ("num_heads", "image_size", "early_layers", "layers")
        needed = {name: told[name] for name in shape if name in told}
        config = load(path, **needed).config
    vit = trunk(config)
    for name, value in told.items():
        if getattr(vit, name, getattr(config, name, None)) != value:
            needed[name] = value
    return needed


def _loaded(model: nn.Module, path: Path, overrides: Mapping[str, Any] | None = None) -> Run:
    """Open a file by beit.load; it must hold every tensor of the model."""
    read = load(path, **(overrides or {}))
    found = read.state_dict()
    for name, tensor in model.state_dict().items():
        if not torch.equal(tensor, found[name]):
            raise ValueError(f"{path.name} is not kept: {name} in it is not the model's")
    return lambda images, masked: outputs(read, images, masked)


def timm_folder(model: nn.Module, path: Path, config: Config) -> Written:
    """Write a folder for timm.create_model: weights and configuration."""
    import timm
    from timm.data.config import resolve_model_data_config

    path.mkdir()
    _save_tensors(to_timm(model), path / "model.safetensors")
    _write_json(timm_config(model), path / "config.json")
    theirs: Any = timm.create_model(f"local-dir:{path}", pretrained=True).eval()
    data = resolve_model_data_config(theirs)
    mean, std = (torch.tensor(data[name]).view(-1, 1, 1) for name in ("mean", "std"))

    def run(images: Tensor, masked: Tensor) -> Mapping[str, Tensor]:
        pixels = (images - mean) / std
        if isinstance(model, VisionTransformer):
            return _tokens(theirs.forward_features(pixels))
        return {"logits": theirs(pixels)}

    return Written(run, f'timm.create_model("local-dir:{config.output}", pretrained=True)')


def transformers_folder(model: nn.Module, path: Path, config: Config) -> Written:
    """Write a folder for from_pretrained: weights, configuration, image processor."""
    try:
        import transformers
    except ImportError as error:
        raise ValueError(
            'format transformers needs that package, which is missing: pip install "beit[hf]"'
        ) from error

    if isinstance(model, MaskedImageModel) and model.aggregation:
        print("  without the patch aggregation, which transformers does not have")
    path.mkdir()
    about = transformers_config(model)
    _save_tensors(to_transformers(model), path / "model.safetensors")
    _write_json(about, path / "config.json")
    _write_json(image_processor_config(model), path / "preprocessor_config.json")
    (kind,) = about["architectures"]
    theirs, loading = getattr(transformers, kind).from_pretrained(path, output_loading_info=True)
    wrong = [
        f"{what}: {first(sorted(map(str, names)))}" for what, names in loading.items() if names
    ]
    if wrong:
        raise ValueError(f"{config.output} is not kept: transformers says {'; '.join(wrong)}")
    processor = transformers.AutoImageProcessor.from_pretrained(path)

    def run(images: Tensor, masked: Tensor) -> Mapping[str, Tensor]:
        pixels = processor(images=list((images * 255).round().byte()), return_tensors="pt")
        if isinstance(model, VisionTransformer):
            return _tokens(theirs(**pixels).last_hidden_state)
        if isinstance(model, MaskedImageModel):
            N = model.config.backbone.num_patches
            hidden = torch.zeros(len(masked), N).scatter_(1, masked, 1).bool()  # (B, N)
            return {"logits": take(theirs(**pixels, bool_masked_pos=hidden).logits, masked)}
        return {"logits": theirs(**pixels).logits}

    return Written(run, f"transformers.{kind}.from_pretrained({config.output!r})")


def _tokens(tokens: Tensor) -> dict[str, Tensor]:
    """Name the parts of tokens (B, 1+N, D)."""
    return {"cls": tokens[:, 0], "patches": tokens[:, 1:]}


def _save_tensors(state: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors to a safetensors file, each with memory of its own."""
    own = {name: tensor.detach().clone().contiguous() for name, tensor in state.items()}
    save_file(own, path, {"format": "pt"})


def _write_json(content: Mapping[str, Any], path: Path) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def onnx_file(model: nn.Module, path: Path, config: Config) -> Written:
    """Write an ONNX graph, for any batch."""
    write_onnx(model, path, inputs_of(model, *example(model, count=2)), config.opset)
    session = open_onnx(path)
    return Written(
        lambda images, masked: session(inputs_of(model, images, masked)),
        f"onnxruntime.InferenceSession({config.output!r})",
    )


def torch_export_file(model: nn.Module, path: Path, config: Config) -> Written:
    """Write the graph of torch.export, for any batch."""
    write_torch_export(model, path, inputs_of(model, *example(model, count=2)))
    module = open_torch_export(path)
    return Written(
        lambda images, masked: module(inputs_of(model, images, masked)),
        f"torch.export.load({config.output!r}).module()",
    )


class Format(NamedTuple):
    """How a format is written.

    Attributes:
        write: writes and opens it
        suffixes: of its files; none for a folder
        kinds: models that it has; none for all
    """

    write: Callable[[nn.Module, Path, Config], Written]
    suffixes: tuple[str, ...] = ()
    kinds: tuple[type[nn.Module], ...] = ()


PUBLISHED = (VQKD, MaskedImageModel, ImageClassifier, SemanticSegmenter, VisionTransformer)
FORMATS = {
    "safetensors": Format(own_file, (".safetensors",)),
    "published": Format(published_file, (".pth", ".safetensors"), PUBLISHED),
    "timm": Format(timm_folder, (), (ImageClassifier, VisionTransformer)),
    "transformers": Format(transformers_folder, (), PUBLISHED[1:]),
    "onnx": Format(onnx_file, (".onnx",)),
    "torch-export": Format(torch_export_file, (".pt2",)),
}
