"""Models as graphs that run without this package: ONNX and torch.export (.pt2).

A graph takes what its model takes: `images` (B, 3, H, W) float in [0, 1], of any batch and of the
model's height and width, which it normalises itself; a `MaskedImageModel` takes `masked` (B, M)
int64 besides, of any M. What it gives, and by which names, is said by `outputs`.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from beit.nn.heads import ImageClassifier
from beit.nn.mim import MaskedImageModel
from beit.nn.segmenter import SemanticSegmenter
from beit.nn.tokenizer import VQKD, Tokenizer
from beit.nn.vit import VisionTransformer
from beit.weights.file import FORMAT, VERSION

INPUT = "images: RGB, (B, 3, H, W), float in [0, 1]; the graph normalises them itself"
NAMED = {"images": {0: "batch"}, "masked": {1: "hidden"}}  # sizes that vary; batch is of both

Opened = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]  # inputs to outputs, by name


def outputs(model: nn.Module, images: Tensor, masked: Tensor | None = None) -> Mapping[str, Tensor]:
    """Run a model of any kind; name what it says.

    Args:
        images: (B, 3, H, W) uint8 in 0..255 or float in [0, 1]
        masked: (B, M) int64, for a MaskedImageModel only

    Returns:
        `cls` (B, D) and `patches` (B, N, D) of a VisionTransformer; `logits` of a classifier (B, Y)
        and a segmenter (B, Y, h, w); `logits` and, with patch aggregation, `cls_logits` (B, M, K)
        of a MaskedImageModel; `codes` (B, N) int64 of a tokenizer and `vectors` (B, N, C) of VQ-KD.
    """
    if isinstance(model, VisionTransformer):
        features = model(images)
        return {"cls": features.cls, "patches": features.patches}
    if isinstance(model, ImageClassifier):
        return {"logits": model(images)}
    if isinstance(model, SemanticSegmenter):
        return {"logits": model(images).logits}
    if isinstance(model, MaskedImageModel):
        named = model(images, masked)._asdict()
        return {name: tensor for name, tensor in named.items() if tensor is not None}
    if isinstance(model, VQKD):
        vectors = model.embed(images)
        return {"codes": model.quantizer.nearest(vectors), "vectors": vectors}
    if isinstance(model, Tokenizer):
        return {"codes": model.encode(images)}
    raise ValueError(f"a {type(model).__name__} is not one of our models")


def inputs_of(model: nn.Module, images: Tensor, masked: Tensor) -> dict[str, Tensor]:
    """Name what the model's graph takes; `masked` is left out where it has no use."""
    return {"images": images} | ({"masked": masked} if isinstance(model, MaskedImageModel) else {})


class Graph(nn.Module):
    """A model as one function of tensors."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, masked: Tensor | None = None) -> Mapping[str, Tensor]:
        """Run the model: see `outputs`."""
        return outputs(self.model, images, masked)


@torch.no_grad()
def traced(model: nn.Module, inputs: Mapping[str, Tensor]) -> torch.export.ExportedProgram:
    """Trace a model into a graph for any number of images.

    inputs: by name, 2 images or more and 2 masked patches or more: 1 is taken for a constant
    """
    batch, hidden = torch.export.Dim("batch", min=1), torch.export.Dim("hidden", min=1)
    sizes = {"images": {0: batch}, "masked": {0: batch, 1: hidden}}
    program = torch.export.export(
        Graph(model).eval(),
        tuple(inputs.values()),
        dynamic_shapes={name: sizes[name] for name in inputs},
    )
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine
    return program


def write_torch_export(model: nn.Module, path: Path, inputs: Mapping[str, Tensor]) -> None:
    """Write a .pt2 file, weights included; its extra file `beit.json` describes the model."""
    torch.export.save(traced(model, inputs), path, extra_files={f"{FORMAT}.json": described(model)})


def open_torch_export(path: Path) -> Opened:
    """Open a .pt2 file by torch."""
    module = torch.export.load(path).module()
    return lambda inputs: module(*inputs.values())


def write_onnx(
    model: nn.Module, path: Path, inputs: Mapping[str, Tensor], opset: int | None = None
) -> None:
    """Write an ONNX graph, weights included, or beside it in NAME.onnx.data above 2 GB.

    Its metadata has the entry `beit`, which describes the model, class names included.
    """
    _need_onnx()
    with torch.no_grad():
        names = list(outputs(model, **inputs))
    program = torch.onnx.export(
        traced(model, inputs),
        dynamo=True,
        dynamic_shapes={name: NAMED[name] for name in inputs},
        output_names=names,
        opset_version=opset,
        verbose=False,
    )
    assert program is not None
    program.model.doc_string = INPUT
    program.model.metadata_props[FORMAT] = described(model)
    program.save(path)


def open_onnx(path: Path) -> Opened:
    """Open an ONNX graph by ONNX Runtime, on the CPU, with as many threads as torch has."""
    _need_onnx()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        arrays = session.run(names, {name: tensor.numpy() for name, tensor in inputs.items()})
        return {name: torch.from_numpy(array) for name, array in zip(names, arrays, strict=True)}

    return run


def described(model: nn.Module) -> str:
    """Describe a model in JSON, as our weights files do: version, kind, configuration."""
    config: Any = model.config
    kind = type(model).__name__
    return json.dumps({"version": VERSION, "kind": kind, "config": dataclasses.asdict(config)})


def _need_onnx() -> None:
    for name in ("onnx", "onnxruntime", "onnxscript"):
        if find_spec(name) is None:
            raise ValueError(
                f'ONNX needs the package {name}, which is not installed: pip install "beit[onnx]"'
            )
