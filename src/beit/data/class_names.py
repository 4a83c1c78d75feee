"""Names of classes: which are the same in two sets."""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from beit.data.imagenet_names import in_one_language
from beit.wording import some

_MAX_DIGITS = 18  # a longer number does not fit into int64; such a name is text
MEND_ALIKE = "each is a class of its own; write them alike if they are one"


class Match(NamedTuple):
    """Classes that a reference has too, and a note on how they were matched, unless by name."""

    numbers: dict[int, int]  # in the reference, by the set's own number
    note: str = ""


def match_classes(
    labels: Iterable[int],
    names: Sequence[str] | None,
    reference: Sequence[str] | None,
    count: int,
    here: str,
    there: str,
) -> Match:
    """Find classes, by their numbers, among those of a reference with `count` classes.

    Names are matched with names as in `match_names`, and the words of ImageNet's 1000 classes with
    their WordNet ids. A side without names is matched by number: with the names of the other side
    if all of these are whole numbers, else with its numbers as they are, and a note says so. `here`
    and `there` are the set and the reference in messages.

    Raises:
        ValueError: numbers cannot be taken as they are, because the set with names has more or
            fewer classes, or because some of the names are other numbers, as in 1, 2, none.
    """
    if names is not None and reference is not None:
        found = match_names(*in_one_language(names, reference))
        return Match({label: found[label] for label in labels if found[label] >= 0})
    if (named := reference if names is None else names) is None:
        return Match({label: label for label in labels if label < count})
    side, other = (there, here) if names is None else (here, there)
    values = list(map(whole_number, named))
    if None not in values:
        pairs = {value: place for value, place in _places(values).items() if place >= 0}
        if names is not None:
            pairs = {place: value for value, place in pairs.items() if value < count}
        numbers = {label: pairs[label] for label in labels if label in pairs}
        return Match(numbers, f"{side} names its classes by the numbers of {other}")
    reason = ""
    if wrong := [n for n, value in enumerate(values) if value not in (None, n)]:
        reason = f"{side} has the class {named[wrong[0]]} as its number {wrong[0]}"
    elif names is not None and len(names) != count:
        reason = f"{here} has {len(names)} classes, {there} {count}"
    if reason:
        raise ValueError(
            f"{other} has no class names, and {reason}, so that classes cannot be matched; use two "
            "sets with names, or name the set (beit evaluate --dataset imagenet, ...)"
        )
    first = ", ".join(f"{number} is {name}" for number, name in enumerate(named[:3]))
    note = f"{other} has no class names: numbers are taken as those of {side} ({first}, ...)"
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


def bare(name: str) -> str:
    """Return what names have in common that differ in case, blanks, - and _ only."""
    return re.sub(r"[\s_-]+", "", spelled(name).casefold())


def alike(names: Iterable[str]) -> str:
    """Say which names of classes differ in case, blanks, - and _ only; nothing if none do."""
    known = dict[str, list[str]]()
    for name in names:
        known.setdefault(bare(name), []).append(name)
    groups = [sorted(group) for group in known.values() if len(group) > 1]
    if not groups:
        return ""
    case = all(len({*map(str.casefold, group)}) == 1 for group in groups)
    found = some([" and ".join(map(repr, group)) for group in groups])
    return f"classes {found} differ in {'case' if case else 'case, blanks, - or _'} only"


def check_names(names: Sequence[str], where: str) -> None:
    """Raise ValueError if a name is not UTF-8, or two names are the same in two spellings."""
    earlier = dict[str, str]()
    for name in names:
        if (text := name.encode(errors="backslashreplace").decode()) != name:
            raise ValueError(
                f"{where}: the name of the class {text} is not UTF-8, so that weights and reports "
                "cannot hold it; rename its folder"
            )
        if (other := earlier.get(spelled(name))) is not None:
            raise ValueError(
                f"{where}: two classes are named {name.strip()}: {other!a} and {name!a} (composed "
                "and decomposed letters and blanks at the ends are the same); merge or rename them"
            )
        earlier[spelled(name)] = name


def _places(keys: Iterable[Any]) -> dict[Any, int]:
    """Number the keys by their places; -1 for those that occur twice. None is no key."""
    places = dict[Any, int]()
    for place, key in enumerate(keys):
        if key is not None:
            places[key] = -1 if key in places else place
    return places
