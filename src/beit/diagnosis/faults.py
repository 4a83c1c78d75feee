"""Faults of images and of their classes, found from the facts of one pass over them."""

from collections import Counter
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from beit.data.class_names import MEND_ALIKE, alike, bare
from beit.data.classes import Labelled, empty_folders, known_classes, renumbered
from beit.data.source import Source
from beit.diagnosis.alike import Nearest
from beit.diagnosis.checks import Check
from beit.diagnosis.near import Indices, first_copies, near_ones
from beit.diagnosis.scan import Facts
from beit.wording import amount, nearest_name, plural, some, some_names

SMALLEST = 16  # pixels of the shorter side: a patch
UNLIKE = 4  # times shorter or longer than the usual side
ONE_SIZE = 0.99  # share of images of one size from which other sizes are odd
UNEVEN = 10  # times more images in the largest class than in the smallest
FEW = 1000  # images below which no size is odd
COMPARED = 500  # classes at most whose names are compared


class Kind(NamedTuple):
    """A kind of fault: a description of its images, advice, and whether it must be mended."""

    images: str
    advice: str
    must: bool = False


KINDS = {
    "unreadable": Kind(
        "cannot be read",
        "repair or remove them; a training stops if they are more than --data.max_unreadable, 1% "
        "unless set; of 20 images or more, it allows one",
    ),
    "copy": Kind("copies of another image", "remove them: their kind counts twice"),
    "near": Kind("nearly another image", "look at them; a series of photos is no fault"),
    "test_copy": Kind(
        "copies of a test image", "remove them: the test says too much of such a model", True
    ),
    "near_test": Kind("nearly a test image", "look at them; remove those that are copies"),
    "alike_test": Kind(
        "nearly a test image to the model", "look at them; remove those that are copies"
    ),
    "two_labels": Kind(
        "copies with another label", "find the right label, or remove all of them", True
    ),
    "flat": Kind("of one colour", "remove them, unless they mean something"),
    "faint": Kind(
        "nearly of one colour",
        "look at them; dark images and small objects are no fault; near copies of them are not "
        "looked for",
    ),
    "small": Kind("far smaller than the rest", "remove them, or find larger ones"),
    "long": Kind("long and narrow", "crops of them are distorted; cut them, or leave them"),
    "size": Kind("of an odd size", "look whether they belong to the set"),
    "unlabelled": Kind(
        "without a label", "label them, or leave them out by --drop; finetune and probe refuse them"
    ),
}
OF_TEST = ("test_copy", "near_test", "alike_test")  # of images that are like those of the test set
DROPPED = ("unreadable", "copy", *OF_TEST, "two_labels", "flat", "small")


class Fault(NamedTuple):
    """The images of a set that have a fault.

    Attributes:
        kind: one of `KINDS`
        images: (k,) indices in their set, rising
        like: (k,) the images that they resemble: of the test set for the kinds `OF_TEST`, else of
            their own set; None for other kinds
        cosines: (k,) of their features with those of `like`, if a model has compared them
    """

    kind: str
    images: Indices
    like: Indices | None = None
    cosines: NDArray[np.float32] | None = None


class Scanned(NamedTuple):
    """A set that was scanned: its option and data string, its images and their facts."""

    option: str
    spec: str
    source: Source
    facts: Facts


def find_faults(
    train: Scanned,
    test: Scanned | None,
    near: int,
    max_ratio: float,
    seen: Nearest | None,
    cosine: float,
) -> tuple[list[Fault], list[Fault]]:
    """Find the faults of the images of both sets, in the order of `KINDS`.

    Args:
        near: bits in which the hashes of near copies differ at most
        max_ratio: longer side over the shorter one above which an image is long
        seen: the nearest test images by the features of a model; None without a model
        cosine: from which a training image is nearly a test image to the model
    """
    # Test images come first, so that training images are the copies.
    every = [scanned.facts for scanned in (test, train) if scanned]
    num_test = len(test.facts.height) if test else 0
    clear = np.concatenate([facts.readable & ~facts.faint for facts in every])
    varied = np.concatenate([facts.readable & ~facts.flat for facts in every])
    hashes = np.concatenate([facts.hashes for facts in every])
    digests = np.concatenate([facts.digests for facts in every])
    like, leak = near_ones(hashes, clear, num_test, near)
    first = first_copies(digests, varied)
    leaked = np.flatnonzero(first[num_test:] < num_test)
    near_test = leak[num_test:].copy()
    near_test[leaked] = -1
    of_train = _of_set(train, like[num_test:] - num_test, max_ratio)
    of_train |= {
        "test_copy": Fault("test_copy", leaked, first[num_test:][leaked]),
        "near_test": Fault("near_test", *_pairs(near_test, near_test >= 0)),
    }
    if test and seen:
        found = (seen.cosines >= cosine) & ~train.facts.faint & ~test.facts.faint[seen.like]
        found[leaked], found[near_test >= 0] = False, False
        of_train["alike_test"] = Fault("alike_test", *_pairs(seen.like, found), seen.cosines[found])
    of_test = _of_set(test, like[:num_test], max_ratio) if test else {}
    return _ordered(of_train), _ordered(of_test)


def _ordered(faults: dict[str, Fault]) -> list[Fault]:
    return [faults[kind] for kind in KINDS if kind in faults and len(faults[kind].images)]


def _pairs(like: Indices, where: NDArray[np.bool_]) -> tuple[Indices, Indices]:
    images = np.flatnonzero(where)
    return images, like[images]


def _of_set(scanned: Scanned, like: Indices, max_ratio: float) -> dict[str, Fault]:
    """Find what is wrong with the images of one set alone."""
    facts, labels = scanned.facts, scanned.source.labels
    itself, readable = np.arange(len(like)), facts.readable
    first = first_copies(facts.digests, readable & ~facts.flat)
    copy = first != itself
    pairs = {"copy": _pairs(first, copy), "near": _pairs(like, (like != itself) & ~copy)}
    flags = {"unreadable": ~readable, "flat": facts.flat, "faint": facts.faint & ~facts.flat}
    flags |= _sizes(facts, max_ratio)
    if labels is not None:
        numbers = labels.numpy()
        flags["unlabelled"] = numbers < 0
        flags["two_labels"] = _contradicted(first, numbers)
    faults = {kind: Fault(kind, *found) for kind, found in pairs.items()}
    return faults | {kind: Fault(kind, np.flatnonzero(flag)) for kind, flag in flags.items()}


def _contradicted(first: Indices, labels: Indices) -> NDArray[np.bool_]:
    """Tell which images have a copy with another label (n,)."""
    known = labels >= 0
    pairs = np.unique(np.stack([first[known], labels[known]]), axis=1)
    groups, counts = np.unique(pairs[0], return_counts=True)
    return known & np.isin(first, groups[counts > 1])


def _sizes(facts: Facts, max_ratio: float) -> dict[str, NDArray[np.bool_]]:
    """Tell which images are far smaller, longer or otherwise unlike the rest."""
    readable = facts.readable
    shorter = np.minimum(facts.height, facts.width)
    longer = np.maximum(facts.height, facts.width)
    usual = float(np.median(shorter[readable])) if readable.any() else 0.0
    small = readable & (shorter < max(SMALLEST, usual / UNLIKE))
    long = readable & (longer > max_ratio * shorter)
    odd = readable & (shorter > UNLIKE * usual)
    sizes = facts.height.astype(np.int64) << 32 | facts.width
    if readable.sum() >= FEW:
        values, counts = np.unique(sizes[readable], return_counts=True)
        if ONE_SIZE * readable.sum() <= counts.max() < readable.sum():
            odd |= readable & (sizes != values[counts.argmax()])
    return {"small": small, "long": long, "size": odd & ~small & ~long}


def label_of(source: Source, image: int) -> str:
    """Return the name of an image's class, or its number; empty without a label."""
    number = -1 if source.labels is None else int(source.labels[image])
    names = source.class_names
    return "" if number < 0 else names[number] if names else str(number)


def class_counts(source: Source) -> list[tuple[str, int]]:
    """Count the images of each class, the largest class first; empty without labels."""
    if source.labels is None:
        return []
    counts = np.bincount(source.labels[source.labels >= 0].numpy())
    names = source.class_names or [str(number) for number in range(len(counts))]
    padded = [*counts.tolist(), *[0] * (len(names) - len(counts))]
    return sorted(zip(names, padded, strict=True), key=lambda pair: -pair[1])


def class_checks(train: Scanned, test: Scanned | None) -> list[Check]:
    """Find what is wrong with the classes of the sets."""
    counts, found = class_counts(train.source), list[Check]()
    if what := alike(name for name, _ in counts):
        found.append(Check("classes", what, MEND_ALIKE, True))
    for name, count in counts if len(counts) <= COMPARED else ():
        larger = [other for other, number in counts if number > UNEVEN * count and count]
        near = "" if any(map(str.isdigit, name)) else nearest_name(name, larger, 0.8)
        if near and bare(near) != bare(name):
            what = f"class {name!r} ({amount(count, 'image')}) is spelled nearly as {near!r}"
            found.append(Check("classes", what, "if it is a mistake, write both alike"))
    if one := [name for name, count in counts if count == 1]:
        what = f"{len(one)} {plural('class', one)} with one image only: {some_names(one)}"
        them = "it" if len(one) == 1 else "them"
        found.append(Check("classes", what, f"nothing is left of {them} for a test; add images"))
    if none := [name for name, count in counts if count == 0]:
        what = f"{len(none)} {plural('class', none)} without an image: {some_names(none)}"
        found.append(Check("classes", what, "add images"))
    if empty := empty_folders(Labelled(train.option, train.spec, train.source)):
        folders = plural("folder", empty)
        what = f"no image in the class {folders} {some(list(map(repr, empty)))}"
        advice = f"delete the {folders}, or add images; finetune and probe refuse the set"
        found.append(Check("classes", what, advice))
    present = [count for _, count in counts if count]
    if len(present) > 1 and present[0] > UNEVEN * present[-1]:
        what = f"class {counts[0][0]} has {present[0]} images, the smallest {present[-1]}"
        advice = "look at balanced accuracy; beit finetune --balance 0.5 shows rare ones more often"
        found.append(Check("classes", what, advice))
    if test is None or not (_all_labelled(train.source) and _all_labelled(test.source)):
        return found
    one_set, other = (Labelled(each.option, each.spec, each.source) for each in (train, test))
    try:
        renumbered(other, known_classes(one_set), one_set.where)
    except ValueError as error:
        found.append(Check("classes", str(error), "give both sets the same classes", True))
    return found


def _all_labelled(source: Source) -> bool:
    return source.labels is not None and bool((source.labels >= 0).all())


def sizes_of(facts: Facts) -> Counter[str]:
    """Count the five most frequent sizes, as "640 x 480" (width, height)."""
    readable = facts.readable
    pairs = np.stack([facts.width[readable], facts.height[readable]])
    values, counts = np.unique(pairs, axis=1, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:5]
    return Counter({f"{values[0, i]} x {values[1, i]}": int(counts[i]) for i in order})
