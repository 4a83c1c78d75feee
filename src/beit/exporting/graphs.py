"""Export models as graphs that run without this package: ONNX and torch.export (.pt2).

A graph takes the inputs of its model: `images` (B, c, H, W) float32 in [0, 1], of any batch size
and of the model's height and width, which it normalises itself; for a `MaskedImageModel` also
`masked` (B, M) int64, of any M. `outputs` lists what it returns.
"""

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from beit.exporting.verification import Reopened, example, outputs, quoted
from beit.nn.mim import MaskedImageModel
from beit.weights.file import FORMAT, description

INPUT = "images: {}, float32 in [0, 1]; the graph normalises them itself"
DYNAMIC_AXES = {"images": {0: "batch"}, "masked": {1: "hidden"}}  # both inputs share the batch


def onnx_file(model: nn.Module, path: Path, output: str, opset: int | None = None) -> Reopened:
    """Write an ONNX graph, and open it with ONNX Runtime."""
    inputs = inputs_of(model, *example(model, count=2))
    write_onnx(model, path, inputs, opset)
    run = open_onnx(path)
    return Reopened(
        lambda images, masked: run(inputs_of(model, images, masked)),
        f"onnxruntime.InferenceSession({quoted(output)})",
    )


def torch_export_file(model: nn.Module, path: Path, output: str) -> Reopened:
    """Write a torch.export graph; its extra file `beit.json` describes the model."""
    program = traced(model, inputs_of(model, *example(model, count=2)))
    torch.export.save(program, path, extra_files={f"{FORMAT}.json": description(model)})
    module = torch.export.load(path).module()
    return Reopened(
        lambda images, masked: module(*inputs_of(model, images, masked).values()),
        f"torch.export.load({quoted(output)}).module()",
    )


def inputs_of(model: nn.Module, images: Tensor, masked: Tensor) -> dict[str, Tensor]:
    """Return the inputs of the model's graph by name; only a MaskedImageModel takes `masked`."""
    return {"images": images} | ({"masked": masked} if isinstance(model, MaskedImageModel) else {})


class Graph(nn.Module):
    """A model whose forward returns its `outputs`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, masked: Tensor | None = None) -> Mapping[str, Tensor]:
        # A traced graph does not divide uint8 by 255, so it has to refuse it.
        torch.ops.aten._assert_tensor_metadata(images, dtype=torch.float32)
        return outputs(self.model, images, masked)


@torch.no_grad()
def traced(model: nn.Module, inputs: Mapping[str, Tensor]) -> torch.export.ExportedProgram:
    """Trace a model with 2 or more images and masked patches: 1 would become a constant."""
    batch, hidden = torch.export.Dim("batch", min=1), torch.export.Dim("hidden", min=1)
    sizes = {"images": {0: batch}, "masked": {0: batch, 1: hidden}}
    dynamic = {name: sizes[name] for name in inputs}
    graph = Graph(model).eval()
    program = torch.export.export(graph, tuple(inputs.values()), dynamic_shapes=dynamic)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine
    return program


def write_onnx(
    model: nn.Module, path: Path, inputs: Mapping[str, Tensor], opset: int | None = None
) -> None:
    """Write an ONNX graph with its weights; above 2 GB they are in NAME.onnx.data beside it.

    The entry `beit` of its metadata describes the model, class names included.

    Raises:
        ValueError: PyTorch and ONNX cannot write this opset.
    """
    _check_packages()
    import onnx

    newest = onnx.defs.onnx_opset_version()
    if opset is not None and opset > newest:
        raise ValueError(f"opset is {opset}; expected {newest}, the newest of ONNX here, or less")
    with torch.no_grad():
        names = list(outputs(model, **inputs))
    program = torch.onnx.export(
        traced(model, inputs),
        dynamo=True,
        dynamic_shapes={name: DYNAMIC_AXES[name] for name in inputs},
        output_names=names,
        opset_version=opset,
        verbose=False,
    )
    assert program is not None
    written = program.model.opset_imports[""]
    if opset not in (None, written):
        raise ValueError(
            f"opset is {opset}, but the graph needs {written}; give that or a newer one"
        )
    channels = inputs["images"].shape[1]
    what = "RGB, (B, 3, H, W)" if channels == 3 else f"(B, {channels}, H, W)"
    program.model.doc_string = INPUT.format(what)
    program.model.metadata_props[FORMAT] = description(model)
    program.save(path)


def open_onnx(path: Path) -> Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]:
    """Open an ONNX graph on the CPU, as a function from inputs to outputs, tensors by name."""
    _check_packages()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()  # as torch
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        arrays = session.run(names, {name: tensor.numpy() for name, tensor in inputs.items()})
        return {name: torch.from_numpy(array) for name, array in zip(names, arrays, strict=True)}

    return run


def _check_packages() -> None:
    for name in ("onnx", "onnxruntime", "onnxscript"):
        if find_spec(name) is None:
            raise ValueError(
                f'ONNX needs the package {name}, which is not installed: pip install "beit[onnx]"'
            )
