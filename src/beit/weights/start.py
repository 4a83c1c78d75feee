"""Start a training from another model's weights: what fits is copied, and all of it is listed."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from torch import Tensor, nn

from beit.nn.dvae import DiscreteVAEConfig
from beit.nn.patches import Size
from beit.nn.position import resize_relative_bias, resized, with_bias_per_block
from beit.nn.vit import VisionTransformer, ViTConfig
from beit.weights.assemble import TABLE
from beit.weights.open import load_start
from beit.wording import an

# Fields of a ViT that must be those of the source, besides whether it has a layer scale.
SHAPE = ("patch_size", "in_channels", "width", "depth", "num_heads", "mlp_ratio")
# Fields that follow from the source unless they are set.
FOLLOWING = (*SHAPE, "layer_scale", "absolute_positions", "relative_bias", "mean", "std")
CODES = ("num_codes", "code_width", "l2_normalised", "levels")  # settings of a VQ-KD codebook


Kind = Literal["taken", "resized", "new", "left out", "differs"]


class Note(NamedTuple):
    """What became of a part of the source or of the new model, in words."""

    kind: Kind
    text: str


def account(origin: str, source: nn.Module, notes: Sequence[Note]) -> str:
    """List in one block what a model takes from the source it starts from."""
    lines = [f"starts from {origin}, {an(type(source).__name__)}"]
    for kind in get_args(Kind):
        if texts := [note.text for note in notes if note.kind == kind]:
            lines.append(f"  {kind}: {'; '.join(texts)}")
    return "\n".join(lines)


def load_init(
    source: str | Path,
    image_size: tuple[int, int] | None,
    num_heads: int | None,
    early_layers: int = 1,
) -> nn.Module:
    """Load the model that a training starts from.

    Args:
        image_size, num_heads, early_layers: of the new model, for a file that does not say its own
    """
    try:
        return load_start(source, image_size, early_layers, num_heads=num_heads)
    except ValueError:  # the file says another number of heads; `check_fit` lists all that differs
        return load_start(source, image_size, early_layers)


def check_fit(source: ViTConfig, target: ViTConfig, origin: str, part: str) -> None:
    """Refuse a source whose network cannot be that of the new model.

    Args:
        part: the options of the new model's network, such as model.backbone

    Raises:
        ValueError: names what differs, and the options that make it fit.
    """
    different = misfits(source, target)
    if not different:
        return
    theirs = ", ".join(f"{name} {_value(source, name)}" for name in different)
    ours = ", ".join(f"{name} {_value(target, name)}" for name in different)
    options = " ".join(f"--{part}.{name} {_value(source, name)}" for name in different)
    raise ValueError(
        f"{origin} has a ViT of {theirs}, but the settings are {ours}. To start from it give "
        f"{options}, or leave these settings out: they then follow from it"
    )


def misfits(source: ViTConfig, target: ViTConfig) -> list[str]:
    """List the fields in which two networks differ so that weights of one do not fit the other."""
    names = [n for n in SHAPE if not math.isclose(getattr(source, n), getattr(target, n))]
    if (source.layer_scale is None) != (target.layer_scale is None):
        names.append("layer_scale")
    return names


def _value(vit: ViTConfig, name: str) -> str:
    value = getattr(vit, name)
    return "null" if value is None else str(value)


def carry_network(source: VisionTransformer, target: VisionTransformer, name: str) -> list[Note]:
    """Copy the weights of a ViT that fits (`misfits`); its positions are resized.

    A relative bias that the source lacks starts at zero, which changes nothing at first.

    Args:
        name: of the network, in words
    """
    old, new = source.config, target.config
    if (old.relative_bias, new.relative_bias) == ("shared", "per_block"):
        source = with_bias_per_block(source)
    source = resized(source, new.image_size)
    state, ours = source.state_dict(), target.state_dict()
    fitting = {key: tensor for key, tensor in state.items() if key in ours}
    target.load_state_dict(ours | fitting)
    notes, taken = list[Note](), list[str]()
    parts = {"absolute positions": "pos_embed", "relative bias": TABLE, "final norm": "norm.weight"}
    for what, ending in parts.items():
        theirs = any(key.endswith(ending) for key in state)
        own = any(key.endswith(ending) for key in ours)
        both = any(key.endswith(ending) for key in fitting)
        if both and ending != "norm.weight" and old.grid != new.grid:
            grids = f"from a grid of {_grid(old.grid)} to {_grid(new.grid)}"
            notes.append(Note("resized", f"{what} of the {name}, {grids}"))
        elif both:
            taken.append(what)
        elif own:
            why = "the source has one for each block" if theirs else "the source has none"
            notes.append(Note("new", f"{what} of the {name} ({why})"))
        elif theirs:
            notes.append(Note("left out", f"{what} of the {name} (the model has none)"))
    text = f"{name} of {new.depth} blocks, {new.width} wide, {new.num_heads} heads"
    text += f", with {', '.join(taken)}" if taken else ""
    return [Note("taken", text), *notes, *normalised(old, new)]


def normalised(
    old: ViTConfig | DiscreteVAEConfig, new: ViTConfig | DiscreteVAEConfig
) -> list[Note]:
    """Say if the new model normalises images in another way."""
    ours, theirs = (f"mean {model.mean} and std {model.std}" for model in (new, old))
    text = f"images are normalised by {ours}, for the source by {theirs}"
    return [] if ours == theirs else [Note("differs", text)]


def carry_blocks(source: nn.Module, target: nn.Module, old: Size, new: Size) -> None:
    """Copy blocks of a network that fits, with their own position tables, if any, resized."""
    state = source.state_dict()
    target.load_state_dict({name: _on_grid(name, state[name], old, new) for name in state})


def _on_grid(name: str, tensor: Tensor, old: Size, new: Size) -> Tensor:
    return resize_relative_bias(tensor, old, new) if name.endswith(TABLE) else tensor


def _grid(grid: Size) -> str:
    return f"{grid[0]} x {grid[1]}"
