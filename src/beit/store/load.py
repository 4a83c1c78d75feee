"""Opening whatever a user points at: a run, a weights file of ours, a published checkpoint."""

import argparse
import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from beit.nn.mim import MaskedImageModel
from beit.nn.tokenizer import VQKD
from beit.nn.vit import VisionTransformer
from beit.store.formats.published import from_published
from beit.store.run import RunDirectory
from beit.store.weights import FORMAT, model_of, read_safetensors

HUB = "hf://"
ZIP, PICKLE = b"PK", b"\x80"  # how files of torch 1.6 and later, and of older ones, begin
# What torch's safe unpickler raises on bytes that only begin like a checkpoint.
UNREADABLE = (RuntimeError, EOFError, LookupError, ValueError, TypeError, AttributeError)


def load(source: str | Path, **overrides: Any) -> nn.Module:
    """Load the model that `source` holds, whatever it is, in eval mode.

    Args:
        source: a run directory, a `.safetensors` file, or a `.pth` or `.pt` file, ours or in the
            published BEiT layouts. Only tensors and plain values are ever unpickled.
        overrides: settle what shapes cannot, such as `num_heads=4`, `image_size=(224, 320)`,
            `early_layers=3`, `mean=…`, `std=…`. Our own files carry all of it: there `mean` and
            `std` can be replaced and the rest must agree.
    """
    if str(source).startswith(HUB):
        raise ValueError(
            f"{source}: this version of beit reads no {HUB} sources; download the file, for "
            "instance with `hf download OWNER/NAME`, and give its path"
        )
    path = Path(source)
    if path.is_dir():
        path = _finished_weights(path)
    elif not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist; expected a run directory, a .safetensors file or a "
            ".pth or .pt file"
        )
    if path.suffix == ".safetensors":
        tensors, metadata = read_safetensors(path)
        if FORMAT in metadata:
            return model_of(tensors, metadata, str(path), **overrides)
        return from_published(tensors, origin=str(path), **overrides)
    if path.suffix in (".pth", ".pt"):
        return from_published(read_checkpoint(path), origin=str(path), **overrides)
    raise ValueError(
        f"{path} ends in {path.suffix or 'nothing'}; expected .safetensors, .pth or .pt"
    )


def load_tokenizer(source: str | Path, **overrides: Any) -> VQKD:
    """Load a model that has `encode(images) -> codes`, `vocab_size` and `grid`, in eval mode."""
    model = load(source, **overrides)
    if not isinstance(model, VQKD):
        raise ValueError(
            f"{source} holds a {type(model).__name__}, which has no encode(); expected a tokenizer"
        )
    return model


def load_backbone(
    source: str | Path, image_size: int | tuple[int, int] | None = None, **overrides: Any
) -> VisionTransformer:
    """Load the vision Transformer out of any model, in eval mode.

    Args:
        image_size: what the backbone is to take, (height, width) or one side; it must be the size
            of the model.
    """
    if image_size is not None:
        overrides["image_size"] = image_size
    model = load(source, **overrides)
    if isinstance(model, MaskedImageModel):
        return model.backbone
    if isinstance(model, VQKD):
        return model.encoder
    if isinstance(model, VisionTransformer):
        return model
    raise ValueError(f"{source} holds a {type(model).__name__}, which has no backbone")


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a `.pth` or `.pt` file onto the CPU; refuse it when it holds more than plain values.

    Training checkpoints of the published code keep their options as an `argparse.Namespace`, which
    is a plain container and let through.
    """
    with Path(path).open("rb") as file:
        beginning = file.read(2)
    if not beginning.startswith((ZIP, PICKLE)):
        raise ValueError(f"{path} is not a PyTorch checkpoint: it begins with {beginning!r}")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols; the errors say enough
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's own message advises to load it with execution allowed: not passed on.
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = f"{found[1]} among them" if found else "or is damaged"
        raise ValueError(
            f"{path} is refused: it holds more than tensors and plain values, {what}. "
            "Nothing of it was executed; save a state_dict alone"
        ) from error
    except UNREADABLE as error:
        raise ValueError(f"{path} is damaged, or not a PyTorch checkpoint ({error!r})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected tensors by name")
    if content.keys() == {"step", "state"}:
        raise ValueError(f"{path} is a checkpoint for resuming; give its run directory instead")
    return content


def _finished_weights(directory: Path) -> Path:
    """Find the weights of a finished run."""
    run = RunDirectory.open(directory)
    if not run.weights_file.is_file():
        raise ValueError(
            f"the run in {directory} is not finished: it has no {run.weights_file.name}; "
            f"continue it with --resume {directory}"
        )
    return run.weights_file
