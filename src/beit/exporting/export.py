"""Export a model to files for other libraries; each export is checked before it is kept.

The model is loaded in float32 on the CPU. The export is written to a hidden folder beside the
output, opened with the library it is for, and run on the same seeded images as the model, 1, 3 and
8 at a time. If no value differs by more than `atol`, it is renamed to the output; otherwise it is
deleted and the difference is reported.

Codes of a tokenizer must equal the model's except for near ties: a different code is accepted if
the model rates it within `atol` of its own (VQ-KD by the cosine, the image tokenizers by the
logit).
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch import nn

from beit.command.ending import Ending
from beit.exporting.graphs import onnx_file, torch_export_file
from beit.exporting.verification import Difference, Reopened, compare
from beit.exporting.weight_files import own_file, published_file, timm_folder, transformers_folder
from beit.files import refuse_existing, replacing, user_path
from beit.nn.heads import ImageClassifier
from beit.nn.mim import MaskedImageModel
from beit.nn.segmenter import SemanticSegmenter
from beit.nn.tokenizer import VQKD
from beit.nn.vit import VisionTransformer
from beit.weights.crop import stated_crop
from beit.weights.open import load, load_backbone
from beit.wording import an


class Format(NamedTuple):
    """An export format."""

    write: Callable[..., Reopened]  # (model, path, output): `output` is the final path, in messages
    suffixes: tuple[str, ...] = ()  # of its files; empty for a folder
    kinds: tuple[type[nn.Module], ...] = ()  # models that it supports; empty for all


PUBLISHED = (VQKD, MaskedImageModel, ImageClassifier, SemanticSegmenter, VisionTransformer)
FORMATS = {
    "safetensors": Format(own_file, (".safetensors",)),
    "published": Format(published_file, (".pth", ".safetensors"), PUBLISHED),
    "timm": Format(timm_folder, (), (ImageClassifier, VisionTransformer)),
    "transformers": Format(transformers_folder, (), PUBLISHED[1:]),
    "onnx": Format(onnx_file, (".onnx",)),
    "torch-export": Format(torch_export_file, (".pt2",)),
}

UNRECORDED = ("published", "timm", "transformers")  # formats without a place for bands and range


@dataclass(frozen=True)
class Config:
    """What to export, in which format, and where to.

    Args:
        source: any source of beit.load: a run directory, a weights file, a published checkpoint
        output: file to write, or folder for timm and transformers; it must not exist
        format: of the output
        part: the whole model, or only its vision Transformer
        image_size: side, or height and width: a backbone is resized to this size; for a whole
            model, the size of its images if the file does not contain it
        num_heads: attention heads, if the file does not contain them; null for one per 64 channels
        opset: opset of the ONNX graph; null for PyTorch's default
        atol: largest difference allowed, relative to the largest value if that is above 1
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
            raise ValueError(f"opset is for format onnx, not for {self.format}")


class Result(NamedTuple):
    """The output, its differences from the model, and a line of Python that opens it."""

    output: Path
    differences: list[Difference]
    opened_by: str

    @property
    def figures(self) -> dict[str, float]:
        """The largest difference of all values, and of a tokenizer the share of equal codes."""
        shares = [found.equal for found in self.differences if found.equal is not None]
        largest = {"largest_difference": max(found.largest for found in self.differences)}
        return largest | ({"equal_codes": min(shares)} if shares else {})


def run(config: Config) -> Result:
    """Write the export, compare it with the model, and keep it if they agree."""
    output = user_path(config.output)
    refuse_existing(output, "output")
    model = open_model(config)
    print(f"{config.source}: {type(model).__name__} as {config.format} ...", flush=True)
    output.parent.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = {} if config.opset is None else {"opset": config.opset}
    if any(pixels := getattr(model, "pixel_options", None) or ()) and config.format in UNRECORDED:
        print(f"  {config.format} records no bands or range; tell users: {' or '.join(pixels)}")
    stated = stated_crop(config.source)
    if stated is not None and config.format in ("safetensors", "timm", "transformers"):
        options["crop_ratio"] = stated[0]
    with staged(output) as path:
        export = FORMATS[config.format].write(model, path, config.output, **options)
        differences = compare(model, export)
        for difference in differences:
            print(f"  {difference}")
            allowed = config.atol * max(1.0, difference.scale)
            if not difference.largest <= allowed:  # true for NaN
                more = f"it differs from the model by more than {allowed:.1e}: {difference}"
                raise ValueError(f"{output} is not kept: {more}")
    return Result(output, differences, export.opened_by)


def ending(config: Config, result: Result) -> Ending:
    """Say how far the export is from the model; opening it is next."""
    largest = result.figures["largest_difference"]
    library = result.opened_by.partition("(")[0].rpartition(".")[0].partition(".")[0]
    code = f"import {library}; print({result.opened_by})"
    made = f"{result.output}, the model as {config.format}"
    return Ending(made, f"largest difference from the model {largest:.1e}", ("python", "-c", code))


def open_model(config: Config) -> nn.Module:
    """Load the model, or its vision Transformer; refuse it if the format does not support it."""
    settings: dict[str, Any] = {"image_size": config.image_size, "num_heads": config.num_heads}
    overrides = {key: value for key, value in settings.items() if value is not None}
    opened = load_backbone if config.part == "backbone" else load
    model = opened(config.source, **overrides).float()
    kinds = FORMATS[config.format].kinds
    if kinds and not isinstance(model, kinds):
        raise ValueError(
            f"{config.source} holds {an(type(model).__name__)}; {config.format} has "
            f"{', '.join(kind.__name__ for kind in kinds)}; --part backbone exports only the "
            "vision Transformer, if the model has one"
        )
    return model


@contextmanager
def staged(output: Path) -> Iterator[Path]:
    """Yield a path in a hidden folder beside `output`; on success its files are moved to `output`.

    Other files in the folder (the weights of a large ONNX graph) are moved first. If the block
    raises, everything is deleted; what a killed process left is deleted by the next one.
    """
    folder = output.with_name(f".{output.name}.export")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder / output.name
        files = sorted(folder.iterdir(), key=lambda file: file.name == output.name)
        for file in files:
            refuse_existing(output.with_name(file.name), "output")
        for file in files:
            with replacing(output.with_name(file.name)) as temporary:
                file.rename(temporary)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
