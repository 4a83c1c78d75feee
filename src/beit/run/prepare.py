"""Gradient checkpointing and torch.compile of a model, as configured."""

from typing import cast

import torch
from torch import nn

from beit.nn.block import Block
from beit.run.device import DeviceConfig


def prepared(model: nn.Module, config: DeviceConfig) -> nn.Module:
    """Apply gradient checkpointing and torch.compile to a model, as configured.

    Raises:
        ValueError: the model has no Transformer blocks to checkpoint.
    """
    if config.gradient_checkpointing:
        blocks = [module for module in model.modules() if isinstance(module, Block)]
        if not blocks:
            raise ValueError(
                "device.gradient_checkpointing needs Transformer blocks, and this model has none; "
                "leave it out, and raise optim.accumulate to use less memory"
            )
        for block in blocks:
            block.gradient_checkpointing = True
    return cast(nn.Module, torch.compile(model)) if config.compile else model
