"""Words of messages: lists, numbers with their nouns, and the nearest name to an unknown one."""

import os
from collections.abc import Sequence
from difflib import get_close_matches
from itertools import islice
from pathlib import Path

_LOOK_AT = 1000  # names of a folder to suggest one of them


def some(names: Sequence[str], count: int = 5) -> str:
    """List the first names for a message: `a, b, c, d, e and 3 more`."""
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more


def some_names(names: Sequence[str], count: int = 5) -> str:
    """List the first names that users chose, those with a comma in quotes: `a, 'b, c', d`."""
    return some([repr(name) if "," in name else name for name in names], count)


def plural(word: str, items: Sequence[object]) -> str:
    """Return the word, in the plural unless there is one item."""
    return word if len(items) == 1 else f"{word}{'es' if word.endswith('s') else 's'}"


def amount(number: int, word: str) -> str:
    """Return a number with its word: `1 image`, `2,345 images`."""
    return f"{number:,} {plural(word, range(number))}"


def an(noun: str) -> str:
    """Return a noun after its article: `a list`, `an ImageClassifier`."""
    return f"{'an' if noun[:1].lower() in tuple('aeio') else 'a'} {noun}"


def nearest(name: str, known: Sequence[str]) -> str:
    """Suggest the known name that is most like an unknown one: `; did you mean X?`, or ``."""
    near = nearest_name(name, known)
    return f"; did you mean {near}?" if near else ""


def nearest_name(name: str, known: Sequence[str], cutoff: float = 0.5) -> str:
    """Return the known name that is most like an unknown one, or ``; case counts for nothing."""
    names = {other.casefold(): other for other in reversed(known)}
    close = get_close_matches(name.casefold(), names, n=1, cutoff=cutoff)
    return names[close[0]] if close else ""


def near_path(path: Path) -> str:
    """Suggest a path that exists and differs from one that does not in a single name."""
    missing = first_missing(path)
    try:
        with os.scandir(missing.parent) as entries:
            names = [entry.name for entry in islice(entries, _LOOK_AT)]
    except OSError:
        return ""
    below = path.relative_to(missing)
    names = [name for name in names if (missing.parent / name / below).exists()]
    near = nearest_name(missing.name, names, cutoff=0.75)
    return f"; did you mean {missing.parent / near / below}?" if near else ""


def first_missing(path: Path) -> Path:
    """Return the first of a path's parents that does not exist, or the path itself."""
    return next((part for part in reversed(path.parents) if not part.exists()), path)
