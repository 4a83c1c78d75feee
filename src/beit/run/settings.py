"""Read settings from YAML or JSON: plain values, checked against a dataclass."""

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

MAX_LISTED = 5  # items named in an error message


def first(items: list[Any]) -> str:
    """Join the first items and count the others: `a; b; c; d; e and 2 more`."""
    more = f" and {len(items) - MAX_LISTED} more" if len(items) > MAX_LISTED else ""
    return "; ".join(map(str, items[:MAX_LISTED])) + more


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings by their dotted names; tuples as lists."""
    values: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            values |= flat(value, f"{prefix}{name}.")
        else:
            values[f"{prefix}{name}"] = list(value) if isinstance(value, tuple) else value
    return values


def from_plain(hint: Any, value: Any, name: str) -> Any:
    """Convert a plain value to a type, strictly: the inverse of ``asdict``.

    Args:
        hint: a dataclass, int, float, bool, str, or a tuple, Literal or union of these
        value: nested dicts and lists of plain values
        name: of the value, for error messages

    Raises:
        ValueError: the value does not fit the type. The message names the field, the expected
            type and the value.
    """
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _dataclass_from(hint, value, name)
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


def _dataclass_from(kind: Any, value: Any, name: str) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"{name} is {value!r}, expected a mapping")
    hints, none = typing.get_type_hints(kind), dataclasses.MISSING
    if unknown := [field for field in value if field not in hints]:
        raise ValueError(f"{name} has unknown fields: {first(unknown)}")
    fields = dataclasses.fields(kind)
    required = [f.name for f in fields if f.default is none and f.default_factory is none]
    if missing := [field for field in required if field not in value]:
        raise ValueError(f"{name} lacks {first(missing)}")
    return kind(**{field: from_plain(hints[field], entry, field) for field, entry in value.items()})
