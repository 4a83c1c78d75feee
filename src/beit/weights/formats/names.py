"""Rename tensors by tables: a row is one tensor, or the same tensor in every block."""

import re
from collections.abc import Iterable, Mapping
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from beit.run.settings import first

Rows = tuple[tuple[str, str], ...]
"""Pairs of patterns: `#` matches a number, a final `*` the rest of the name, such as `weight`."""


class Architecture(NamedTuple):
    """A model class of another library."""

    name: str  # of the class, or a description
    rows: Rows  # (published, the library's)
    ignored: tuple[str, ...] = ()  # beginnings of the library's names without counterpart here


def translated(names: Iterable[str], rows: Rows) -> dict[str, str]:
    """Map each name to the right side of the first row whose left side matches the whole of it.

    Names that match no row are left out; the others keep their order.
    """
    translations = {}
    for name in names:
        for left, right in rows:
            match = _pattern(left).fullmatch(name)
            if match is not None:
                template = right.replace("#", "{}").replace("*", "{}")
                translations[name] = template.format(*match.groups())
                break
    return translations


def renamed(tensors: Mapping[str, Tensor], rows: Rows, unknown: str = "{}") -> dict[str, Tensor]:
    """Rename tensors from left to right; a name that matches no row is put into `unknown`."""
    names = translated(tensors, rows)
    return {names.get(name, unknown.format(name)): tensor for name, tensor in tensors.items()}


def to_published_names(
    tensors: Mapping[str, Tensor], architecture: Architecture, library: str, origin: str
) -> dict[str, Tensor]:
    """Rename the tensors of a library's model to the published names; refuse unknown tensors."""
    names = translated(tensors, swapped(architecture.rows))
    unknown = [name for name in tensors if name not in names]
    if unknown:
        raise ValueError(
            f"{origin} was recognised as {library}'s {architecture.name}, where these tensors are "
            f"unexpected or incomplete: {first(unknown)}"
        )
    return {names[name]: tensor for name, tensor in tensors.items()}


def swapped(rows: Rows) -> Rows:
    """Swap the sides of a table."""
    return tuple((right, left) for left, right in rows)


def fused(state: Mapping[str, Tensor], parts: tuple[str, ...], whole: str) -> dict[str, Tensor]:
    """Concatenate tensors whose names differ only in their ends, such as queries, keys and values.

    If one is missing, or shapes differ, the others are kept; strict loading then refuses them.

    Args:
        parts: ends of the names, in the order of concatenation along the first axis
        whole: end of the name of the result
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
    """Split tensors into equal parts along the first axis: the inverse of `fused`."""
    result: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.endswith(whole):
            ends = (name.removesuffix(whole) + part for part in parts)
            pieces = (piece.contiguous() for piece in tensor.chunk(len(parts)))
            result.update(zip(ends, pieces, strict=True))
        else:
            result[name] = tensor
    return result


@cache
def _pattern(side: str) -> re.Pattern[str]:
    return re.compile(re.escape(side).replace(r"\#", r"(\d+)").replace(r"\*", r"(\S+)"))
