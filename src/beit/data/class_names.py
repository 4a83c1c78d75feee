"""Names of classes: the same ones in two sets, and how messages show them."""

import unicodedata
from collections.abc import Hashable, Iterable, Sequence
from difflib import get_close_matches
from typing import NamedTuple

_SHOWN = 5  # names in a message
_MAX_DIGITS = 18  # a longer number does not fit into int64; such a name is text


class Match(NamedTuple):
    """Classes found in a reference, as {number: number there}; and how, unless simply by name."""

    numbers: dict[int, int]
    note: str = ""


def match_classes(
    labels: Iterable[int],
    names: Sequence[str] | None,
    reference: Sequence[str] | None,
    count: int,
    here: str,
    there: str,
) -> Match:
    """Find classes of one set among those of a reference.

    Names are matched with names as in `match_names`, and with the numbers of a side without names
    if all of them are whole numbers. Otherwise the numbers are taken as they are, and a note says
    so.

    Args:
        labels: numbers of the classes to find, 0 or more
        names: of the set's numbers, or None
        reference: names of the reference's numbers, or None
        count: number of classes of the reference
        here: the set in the note
        there: the reference in the note

    Raises:
        ValueError: one side has no names and numbers cannot be taken as they are: the sides have
            different numbers of classes, or names such as 1, 2, none contradict the numbers.
    """
    if names is not None and reference is not None:
        found = match_names(names, reference)
        return Match({label: found[label] for label in labels if found[label] >= 0})
    named = reference if names is None else names
    if named is None:
        return Match({label: label for label in labels if label < count})
    values, places = list(map(whole_number, named)), _places(map(whole_number, named))
    side, other = (there, here) if names is None else (here, there)
    if None not in values:
        if names is None:
            numbers = {label: places.get(label, -1) for label in labels}
        else:
            pairs = ((label, values[label]) for label in labels)
            numbers = {k: n for k, n in pairs if n is not None and n < count and places[n] == k}
        numbers = {label: number for label, number in numbers.items() if number >= 0}
        return Match(numbers, f"{side} names its classes by the numbers of {other}")
    without = f"{other} has no class names"
    for place, value in enumerate(values):
        if value not in (None, place):
            raise ValueError(
                f"{without}, and {side} has the class {named[place]} as its number {place}, so the "
                "numbers may mean either; give both sides names"
            )
    if names is not None and len(names) != count:
        raise ValueError(
            f"{there} has {count} classes without names, {here} has {len(names)}, so they cannot "
            "be matched; give data with all its classes, or both sides names (beit evaluate also "
            "knows those of ImageNet's sets: --dataset)"
        )
    first = ", ".join(f"{number} is {name}" for number, name in enumerate(named[:3]))
    note = f"{without}: numbers are taken as those of the classes of {side} ({first}, ...)"
    return Match({label: label for label in labels if label < count}, note)


def match_names(names: Sequence[str], reference: Sequence[str]) -> list[int]:
    """Return the place of each name in a reference, -1 if it is not there.

    Composed and decomposed letters are the same (Unicode NFC), blanks around a name do not count,
    and "7" and "007" are the same if no other name of either side is that number. A name that a
    side has twice is not matched, unless both lists are equal.
    """
    if list(names) == list(reference):
        return list(range(len(names)))
    found = [-1] * len(names)
    for key in (spelled, whole_number):
        known = _places(map(key, reference))
        for value, place in _places(map(key, names)).items():
            if place >= 0 and found[place] < 0:
                found[place] = known.get(value, -1)
    return found


def spelled(name: str) -> str:
    """Return the spelling by which names are compared: Unicode NFC without blanks around it."""
    return unicodedata.normalize("NFC", name).strip()


def whole_number(name: str) -> int | None:
    """Return the number of which a name consists, as in 7 or 007; else None."""
    text = name.strip()
    is_number = text.isascii() and text.isdecimal() and len(text) <= _MAX_DIGITS
    return int(text) if is_number else None


def check_names(names: Sequence[str], where: str) -> None:
    """Raise ValueError if a name is not UTF-8, or two names are the same in two spellings."""
    earlier: dict[str, str] = {}
    for name in names:
        text = name.encode(errors="backslashreplace").decode()
        if text != name:
            raise ValueError(
                f"{where}: the name of the class {text} is not UTF-8, so that weights and reports "
                "cannot hold it; rename its folder"
            )
        other = earlier.get(spelled(name))
        if other is not None:
            raise ValueError(
                f"{where}: two classes are named {name.strip()}: {other!a} and {name!a} (composed "
                "and decomposed letters and blanks at the ends are the same); merge or rename them"
            )
        earlier[spelled(name)] = name


def nearest(name: str, known: Sequence[str]) -> str:
    """Suggest the known name that is most like an unknown one: `; did you mean X?`, or ``."""
    names = {other.casefold(): other for other in reversed(known)}
    close = get_close_matches(name.casefold(), names, n=1, cutoff=0.5)
    return f"; did you mean {names[close[0]]}?" if close else ""


def some(names: Sequence[str]) -> str:
    """List the first names for a message: `a, b, c, d, e and 3 more`."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def plural(word: str, items: Sequence[object]) -> str:
    """Return the word, in the plural unless there is one item."""
    return word if len(items) == 1 else f"{word}{'es' if word.endswith('s') else 's'}"


def _places(keys: Iterable[Hashable]) -> dict[Hashable, int]:
    """Number the keys by their places; -1 for those that occur twice. None is no key."""
    places: dict[Hashable, int] = {}
    for place, key in enumerate(keys):
        if key is not None:
            places[key] = -1 if key in places else place
    return places
