"""Build a model from its configuration and tensors, strictly, of whatever file they are."""

import dataclasses
import logging
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from beit.files import out_of_memory
from beit.nn.relative_bias import CLS_ROWS
from beit.nn.vit import ViTConfig
from beit.run.settings import first
from beit.weights.formats.names import Rows, renamed
from beit.wording import an

logger = logging.getLogger(__name__)

Model = TypeVar("Model", bound=nn.Module)

VIT_FIELDS = ("backbone", "encoder")  # names of the ViT in configurations
# Fields of configurations with the number of blocks or layers of a part of the model.
DEPTH_FIELDS = ("depth", "decoder_depth", "head_layers", "num_layers", "blocks_per_group")
HEAD = ("head.weight", "head.bias")  # the last layer; a segmenter has two
TABLE = "rel_pos_bias.table"
# What models raise on absurd numbers.
UNBUILT = (RuntimeError, ArithmeticError, TypeError, ValueError)
# How often storages may be claimed on average, and how many bytes may be claimed in any case.
MAX_SHARED, MIN_HELD = 4, 2**20
MAX_INDEX = 2**30  # entries of all position indices; a ViT-L at 1024 x 1024 pixels has 0.4e9


def assemble(
    model_class: type[Model],
    config: Any,
    tensors: Mapping[str, Tensor],
    origin: str,
    fresh: Collection[str] = (),
    rows: Rows = (),
) -> Model:
    """Build a model and load the tensors, by our names, strictly; return it in eval mode.

    Other floating-point dtypes become float32, which is logged. Nothing is allocated before names
    and shapes agree and the tensors are known to be held in full, so a forged configuration cannot
    allocate more memory than the file has. The default random generator is unchanged. `fresh` names
    tensors that keep their initial values; errors have the file's names by `rows`, (ours, theirs).

    Raises:
        ValueError: the tensors do not fit the configuration, or are not finite.
    """
    _check_fit(model_class, config, tensors, origin, fresh, rows)
    refuse_inflated(tensors, origin)
    # A NaN would be the nearest code and the best class of all images.
    theirs = renamed(tensors, rows).items()
    if broken := [name for name, tensor in theirs if not bool(tensor.isfinite().all())]:
        raise ValueError(
            f"{origin}: not all numbers are finite in {first(broken)}; the file is damaged, or was "
            "written by a training that had failed: take an earlier one"
        )
    floats = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
    exact = {torch.float32, torch.bfloat16, torch.float16}  # in float32
    if others := sorted(str(dtype) for dtype in floats - exact):
        logger.info("%s: %s becomes torch.float32", origin, " and ".join(others))
    with _building(origin), torch.random.fork_rng(devices=[]):
        model = model_class(config)
    model.load_state_dict(model.state_dict() | dict(tensors))
    return model.eval()


def _check_fit(
    model_class: type[nn.Module],
    config: Any,
    tensors: Mapping[str, Tensor],
    origin: str,
    fresh: Collection[str],
    rows: Rows,
) -> None:
    """Refuse tensors whose names or shapes are not those of the model; allocate nothing."""
    blocks = num_blocks(config)
    if blocks > len(tensors):
        raise ValueError(f"{origin} claims {blocks} blocks and has {len(tensors)} tensors")
    vit = config_of_vit(config)
    if vit is not None:
        _check_grid(vit, tensors, origin)
    with _building(origin), torch.device("meta"):
        expected = model_class(config).state_dict()
    expected = {name: expected[name] for name in expected if name not in fresh}
    if problems := mismatches(renamed(tensors, rows), renamed(expected, rows)):
        only_head = all(problem.split()[0].endswith(HEAD) for problem in problems)
        advice = "; num_classes=… replaces the head by a new, untrained one" if only_head else ""
        kind = model_class.__name__
        raise ValueError(f"{origin} does not fit {an(kind)}: {first(problems)}{advice}")


@contextmanager
def _building(origin: str) -> Iterator[None]:
    """Raise ValueError that names the file if its numbers describe no model."""
    try:
        yield
    except UNBUILT as error:
        if out_of_memory(error):
            raise
        raise ValueError(f"{origin} describes a model that cannot be built ({error})") from error


def refuse_inflated(tensors: Mapping[str, Tensor], origin: str) -> None:
    """Refuse tensors that claim more elements than there are in memory.

    In a pickle a tensor can be a small storage seen many times over, or have none at all; a model
    built by its shapes would take any amount of memory. Tied weights share a storage, so each may
    be claimed a few times.
    """
    storages, claimed = dict[int, int](), 0
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.device.type != "cpu":
            kind = f"{tensor.layout}, on {tensor.device.type}"
            raise ValueError(f"{origin}: {name} is {kind}; expected a dense tensor on the CPU")
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        claimed += tensor.numel() * tensor.element_size()
    held = sum(storages.values())
    if claimed > MAX_SHARED * held + MIN_HELD:
        raise ValueError(
            f"{origin}: its tensors claim {claimed} bytes and hold {held}; save them with "
            "tensor.clone(), or take the file for forged"
        )


def mismatches(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """List the differences in names, shapes and kinds of dtype, in words."""
    problems = [f"{name} is missing" for name in expected if name not in tensors]
    problems += [f"{name} is unexpected" for name in tensors if name not in expected]
    for name, tensor in expected.items():
        found = tensors.get(name, tensor)
        if found.shape != tensor.shape:
            problems.append(f"{name} is {tuple(found.shape)}, expected {tuple(tensor.shape)}")
        elif found.is_floating_point() != tensor.is_floating_point():
            problems.append(f"{name} is {found.dtype}, expected {tensor.dtype}")
    return problems


def _check_grid(vit: ViTConfig, tensors: Mapping[str, Tensor], origin: str) -> None:
    """Refuse position tables of another grid, and grids whose index tensors would be too large."""
    if vit.relative_bias == "none":
        return
    Gh, Gw = vit.grid
    rows = (2 * Gh - 1) * (2 * Gw - 1) + CLS_ROWS
    tables = [tensor.shape for name, tensor in tensors.items() if name.endswith(TABLE)]
    if not any(shape[:1] == (rows,) for shape in tables):
        raise ValueError(f"{origin} has no {TABLE} of {rows} rows, for a grid of {Gh} x {Gw}")
    if len(tables) * (1 + Gh * Gw) ** 2 > MAX_INDEX:
        limit = "too many for a relative position bias"
        raise ValueError(f"{origin} is for a grid of {Gh} x {Gw} patches, {limit}")


def config_of_vit(config: Any) -> ViTConfig | None:
    """Return the configuration of the model's ViT: the backbone, or a tokenizer's encoder."""
    parts = (config, *(getattr(config, name, None) for name in VIT_FIELDS))
    return next((part for part in parts if isinstance(part, ViTConfig)), None)


def num_blocks(config: Any) -> int:
    """Count the blocks and layers of all parts of the model."""
    values = vars(config).items()
    total: int = sum(value for name, value in values if name in DEPTH_FIELDS)
    return total + sum(num_blocks(value) for _, value in values if dataclasses.is_dataclass(value))
