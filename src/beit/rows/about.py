"""How a table was made: the facts that its values depend on, kept in its metadata."""

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

import beit
from beit.run.device import DeviceConfig

if TYPE_CHECKING:
    from lightning_fabric import Fabric


class TableConfig(Protocol):
    """Options of tokenize, embed and predict that change the values."""

    @property
    def model(self) -> str: ...
    @property
    def data(self) -> str | list[str]: ...
    @property
    def limit(self) -> int | None: ...
    @property
    def crop_ratio(self) -> float: ...
    @property
    def device(self) -> DeviceConfig: ...


def about_table(
    verb: str, config: TableConfig, model: nn.Module, fabric: "Fabric", details: Mapping[str, Any]
) -> dict[str, Any]:
    """Describe how a command makes a table, as plain values; `details` are of this verb only."""
    return {
        "beit": beit.__version__,
        "verb": verb,
        "model": config.model,
        "kind": type(model).__name__,
        "weights": fingerprint(model),
        **details,
        "crop_ratio": config.crop_ratio,
        "data": config.data,
        "limit": config.limit,
        "device": fabric.device.type,
        "precision": config.device.precision,
        "compile": config.device.compile,
    }


def fingerprint(model: nn.Module) -> str:
    """Digest the weights of a model: 16 hex digits."""
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
