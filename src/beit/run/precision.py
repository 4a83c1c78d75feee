"""The precision of a run: what `device.precision` says, or for auto what the machine is fast in."""

from pathlib import Path
from typing import NamedTuple

import torch


class Precision(NamedTuple):
    """A precision by its name in lightning-fabric, and why a run takes it."""

    name: str
    reason: str


def choose_precision(wanted: str, accelerator: str, unit: str, training: bool) -> Precision:
    """Choose the precision of a run; only auto leaves a choice.

    A training takes bfloat16 autocast where the machine computes bfloat16 natively: elsewhere it
    takes up to twice the time of float32. Commands that only read a finished model take
    float32 everywhere, so that codes, features and scores are the same on every machine.

    Args:
        wanted: `device.precision`
        accelerator: cpu, cuda or mps
        unit: what computes bfloat16 there, from `bfloat16_unit`; empty for nothing
    """
    if wanted != "auto":
        return Precision(wanted, "given by device.precision")
    if not training:
        return Precision("32-true", "finished models give the same numbers on every machine")
    machine = "this processor" if accelerator == "cpu" else f"this {accelerator} device"
    if unit:
        return Precision("bf16-mixed", f"{machine} has {unit}")
    return Precision("32-true", f"{machine} has no fast bfloat16")


def bfloat16_unit(accelerator: str) -> str:
    """Name what computes bfloat16 natively on this machine; empty if nothing does."""
    if accelerator == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return "bfloat16 units" if native else ""
    if accelerator == "cpu":
        return next((name for name in ("amx_bf16", "avx512_bf16") if name in _instructions()), "")
    return ""


def _instructions() -> set[str]:
    """List the processor's instruction sets; empty if the system does not tell."""
    if hasattr(torch.cpu, "get_capabilities"):  # new in torch 2.11
        known = torch.cpu.get_capabilities()
        return {name for name, present in known.items() if present is True}
    file = Path("/proc/cpuinfo")
    return set(file.read_text(encoding="utf-8").split()) if file.is_file() else set()
