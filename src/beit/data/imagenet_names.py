"""ImageNet's classes: WordNet ids and words, from the lists in timm (`timm/data/_info`)."""

import re
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

# By the number of classes: ImageNet-1k, and all of ImageNet, called 21k and 22k.
WORDS_OF = {1000: "imagenet_synsets.txt", 21_841: "imagenet22k_synsets.txt"}
WORDNET_ID = re.compile(r"n\d{8}")


def wordnet_ids() -> list[str]:
    """List the WordNet ids of ImageNet's 1000 classes, sorted: the order of published weights."""
    return list(_imagenet(1000))


def imagenet_words(classes: int = 1000) -> tuple[str, ...]:
    """Return the words for ImageNet's 1000 or 21,841 classes, in the order of published weights.

    The first of 1000 is "tench, Tinca tinca". Some words are those of several classes, as "crane".
    """
    if classes not in WORDS_OF:
        raise ValueError(f"classes is {classes!r}; expected {' or '.join(map(str, WORDS_OF))}")
    return tuple(_imagenet(classes).values())


def are_imagenet_words(names: Sequence[str]) -> bool:
    """Tell whether 1000 names are the words of ImageNet's classes, in the order of sorted ids.

    "tench, Tinca tinca" and "tench" both match; spellings differ, so most must agree, not all.
    """
    if len(names) != 1000:
        return False
    pairs = zip(names, imagenet_words(), strict=True)
    return sum(_first_word(a) == _first_word(b) for a, b in pairs) > 0.8 * len(names)


def in_one_language(
    one: Sequence[str], other: Sequence[str]
) -> tuple[Sequence[str], Sequence[str]]:
    """Return two lists of class names, words of ImageNet's classes as WordNet ids if one has ids.

    Only all words in the order of sorted ids are replaced, as in `are_imagenet_words`.
    """
    are_ids = [all(map(WORDNET_ID.fullmatch, names)) for names in (one, other)]
    if are_ids == [True, False] and are_imagenet_words(other):
        return one, wordnet_ids()
    if are_ids == [False, True] and are_imagenet_words(one):
        return wordnet_ids(), other
    return one, other


def timm_file(name: str) -> str:
    """Read a file of timm's about ImageNet, without the seconds of importing timm."""
    timm = find_spec("timm")
    file = Path(timm.origin if timm and timm.origin else "").parent / "data" / "_info" / name
    if not file.is_file():
        raise FileNotFoundError(f"timm has no file {name}; expected timm 1.0.19 or newer")
    return file.read_text("utf-8")


def _first_word(words: str) -> str:
    return words.split(",")[0].strip().replace("_", " ").lower()


@cache
def _imagenet(classes: int) -> dict[str, str]:
    """Return the words for each WordNet id, sorted by id."""
    lines = timm_file("imagenet_synset_to_lemma.txt").splitlines()
    words = dict(line.split("\t") for line in lines)
    return {name: words[name] for name in sorted(timm_file(WORDS_OF[classes]).split())}
