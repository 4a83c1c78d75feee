"""Settings out of files: plain values of YAML or JSON, checked against a dataclass."""

import dataclasses
import types
import typing
from typing import Any, Literal

FIRST_NAMED = 5  # so many of the names that do not fit are named in an error


def first(items: list[str]) -> str:
    """Join the first few, and say how many more there are."""
    more = f" and {len(items) - FIRST_NAMED} more" if len(items) > FIRST_NAMED else ""
    return "; ".join(items[:FIRST_NAMED]) + more


def from_plain(hint: Any, value: Any, name: str) -> Any:
    """Check a plain value against a type and return it as that type: the inverse of ``asdict``.

    Args:
        hint: a dataclass, int, float, bool, str, a tuple, Literal or union of such
        value: nested dicts and lists of plain values
        name: what the value is called in errors

    Raises:
        ValueError: it does not fit; names the field, what was expected and what was found.
    """
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        hints = typing.get_type_hints(hint)
        if not isinstance(value, dict):
            raise ValueError(f"{name} is {value!r}, expected a mapping")
        unknown = [field for field in value if field not in hints]
        if unknown:
            raise ValueError(f"{name} has unknown fields: {first(unknown)}")
        fields = {field: from_plain(hints[field], entry, field) for field, entry in value.items()}
        return hint(**fields)
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        for option in options:
            try:
                return from_plain(option, value, name)
            except ValueError:
                continue
    elif origin is tuple and isinstance(value, list):
        inner = [options[0]] * len(value) if options[-1] is Ellipsis else list(options)
        if len(inner) == len(value):
            pairs = zip(inner, value, strict=True)
            return tuple(from_plain(kind, entry, name) for kind, entry in pairs)
    elif origin is Literal and value in options:
        return value
    elif hint is types.NoneType and value is None:
        return None
    elif hint is float and type(value) in (int, float):
        return float(value)
    elif hint in (int, bool, str) and type(value) is hint:
        return value
    raise ValueError(f"{name} is {value!r}, expected {getattr(hint, '__name__', hint)}")
