"""Tables of names, theirs beside ours: one row for a tensor, or for the same one in every block."""

import re
from collections.abc import Iterable, Mapping
from functools import cache

import torch
from torch import Tensor

Rows = tuple[tuple[str, str], ...]
"""Pairs of patterns; `#` stands for a number and a final `*` for the rest, such as `weight`."""


def translated(names: Iterable[str], rows: Rows) -> dict[str, str]:
    """Give each name that is on a table's left side its right side, in the order of the names.

    A row has to match the whole name, the first one that does counts; names without one are left
    out of the result.
    """
    found = {}
    for name in names:
        for left, right in rows:
            match = _pattern(left).fullmatch(name)
            if match is not None:
                found[name] = right.replace("#", "{}").replace("*", "{}").format(*match.groups())
                break
    return found


def turned(rows: Rows) -> Rows:
    """Swap the sides of a table."""
    return tuple((right, left) for left, right in rows)


def fused(state: Mapping[str, Tensor], parts: tuple[str, ...], whole: str) -> dict[str, Tensor]:
    """Stack tensors whose names differ in their ends only, such as queries, keys and values.

    Where one is missing, or the shapes differ, the others stay as they are: what is strict about
    names refuses them.

    Args:
        parts: how the names end, in the order of stacking along the first axis
        whole: how the name of the stack ends
    """
    result: dict[str, Tensor] = {}
    for name, tensor in state.items():
        part = next((part for part in parts if name.endswith(part)), "")
        stem = name.removesuffix(part)
        group = [state[stem + part] for part in parts if stem + part in state] if part else []
        if len(group) < len(parts) or len({tensor.shape for tensor in group}) > 1:
            result[name] = tensor
        elif part == parts[0]:
            result[stem + whole] = torch.cat(group)
    return result


def split(state: Mapping[str, Tensor], parts: tuple[str, ...], whole: str) -> dict[str, Tensor]:
    """Cut stacked tensors into equal parts along the first axis: the inverse of `fused`."""
    result = {}
    for name, tensor in state.items():
        if not name.endswith(whole):
            result[name] = tensor
            continue
        stem = name.removesuffix(whole)
        for part, piece in zip(parts, tensor.chunk(len(parts)), strict=True):
            result[stem + part] = piece.contiguous()
    return result


@cache
def _pattern(side: str) -> re.Pattern[str]:
    return re.compile(re.escape(side).replace(r"\#", r"(\d+)").replace(r"\*", "(.+)"))
