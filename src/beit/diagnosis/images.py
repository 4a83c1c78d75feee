"""What is wrong with a set of images, and with it beside its test set."""

import re
from collections.abc import Sequence
from contextlib import suppress
from shlex import quote
from typing import TYPE_CHECKING

import numpy as np

from beit.data.channels import channels_of, compare_pixels, pixel_options
from beit.data.source import Source, limited
from beit.data.sources import open_source, open_test_split
from beit.data.spec import split_part, split_query
from beit.data.unreadable import OPTION, allowed
from beit.diagnosis.alike import nearest_test_images
from beit.diagnosis.checks import CLASSES, CUT_OFF, Check, Findings
from beit.diagnosis.clean import as_data, check_writable, is_table, write_clean
from beit.diagnosis.faults import (
    KINDS,
    OF_TEST,
    Fault,
    Scanned,
    class_checks,
    class_counts,
    find_faults,
    label_of,
)
from beit.diagnosis.page import as_json, fact_sections, fault_sections, shorter_side
from beit.diagnosis.scan import FAINT, scan
from beit.draw.names import percent
from beit.draw.report import Section
from beit.rows.lines import printable
from beit.weights.bands import check_bands
from beit.wording import plural, some_names

if TYPE_CHECKING:
    from beit.diagnosis.doctor import Config

CLIPPED = 0.01  # share of values at the high end of a range above which it may be too small
DARK = 0.2  # of a range, which may be too wide if the brightest pixels are darker on average
LABEL = re.compile(r"name one: \?(label=[^\s&]+)$")  # if there is one choice of a column of labels


def check_images(config: "Config") -> Findings:
    """Read every image once, compare them and write the clean list."""
    train, test = open_sets(config)
    if config.model and test is None:
        raise ValueError(
            f"model is {config.model}, but there are no test images to compare with: {config.data} "
            "has no split for testing; name some, as in --test held-out"
        )
    if config.write:
        check_writable(config.write, train)
    workers, channels = config.num_workers, channels_of(config.data)
    scanned = Scanned("data", config.data, train, scan(train, workers, "images", channels))
    other = None
    if test is not None:
        if config.test:
            compare_pixels(pixel_options(config.data), f"{config.data} has", config.test)
        facts = scan(test, workers, "test images", channels)
        other = Scanned("test", config.test or config.data, test, facts)
    seen = None
    if config.model and test is not None:
        check_bands(config.model, config.data)
        seen = nearest_test_images(train, test, config.model, config.num_workers)
    faults, test_faults = find_faults(
        scanned, other, config.near, config.max_ratio, seen, config.cosine
    )
    classes = class_checks(scanned, other)
    checks = [Check("images", _about(scanned)), *_channels(scanned)]
    if train.labels is None and train.why_unlabelled:
        checks.append(Check("labels", f"none: {train.why_unlabelled}"))
    checks += [_check(fault, scanned, other, config.max_unreadable) for fault in faults]
    checks += classes
    sections = fault_sections(scanned, other, faults) + fact_sections(scanned, classes)
    values = {"train": as_json(scanned, faults, other)}
    if other is not None:
        checks.append(Check("test images", _about(other)))
        of_test = [_check(fault, other, None, config.max_unreadable) for fault in test_faults]
        checks += [check._replace(name=f"test: {check.name}") for check in of_test]
        sections += [
            Section(f"Test images: {section.title.lower()}", section.text, section.items)
            for section in fault_sections(other, None, test_faults)
        ]
        values["test"] = as_json(other, test_faults, None)
    if config.write:
        checks += _written(config.write, scanned, faults, config.drop)
    figures = {"images": float(len(train))}
    figures |= {fault.kind: float(len(fault.images)) for fault in faults}
    figures |= {CLASSES: float(len(classes))} if classes else {}
    figures |= {CUT_OFF: share} if (share := _cut_off(scanned)) else {}
    return Findings(f"Images of {config.data}", checks, sections, values, figures)


def open_sets(config: "Config") -> tuple[Source, Source | None]:
    """Open the images, those for training of data with splits, and those to test on, if any."""
    whole, test = open_source(config.data, split="train"), None
    if config.test:
        test = open_source(config.test, split="test")
    else:
        with suppress(ValueError):  # a split for training and no other
            test = open_test_split(config.data, whole)
    return limited(whole, config.limit), None if test is None else limited(test, config.limit)


def _about(scanned: Scanned) -> str:
    facts, source = scanned.facts, scanned.source
    number = f"{len(source)} of {scanned.spec}"
    names = source.class_names
    classes = "" if names is None else f", {len(names)} {plural('class', names)}"
    if not facts.readable.any():
        return f"{number}{classes}. {shorter_side(facts)}"
    mean, deviation = ([round(value, 3) for value in values] for values in facts.colours())
    return f"{number}{classes}. {shorter_side(facts)} Mean {mean}, standard deviation {deviation}"


def _channels(scanned: Scanned) -> list[Check]:
    """Say how a range fits, and which options fit a model to other channels than RGB."""
    facts, ranged = scanned.facts, _has_range(scanned)
    mean, deviation = ([float(f"{value:.4g}") for value in values] for values in facts.colours())
    if (len(mean) == 3 and not ranged) or not facts.readable.any():
        return []
    low, high = ([percent(share) for share in shares] for shares in facts.ends())
    if len(mean) == 3:
        least, most = (percent(max(shares)) for shares in facts.ends())
        text, advice = f"{least} of values at its low end, {most} at its high end", ""
        if _cut_off(scanned):
            advice = "if these are cut off, give a larger range"
        elif (bright := max(facts.bright())) < DARK:
            text += f"; the brightest pixel of an image is at {percent(bright)} of it on average"
            levels = f"the images use {round(256 * bright)} of 256 levels"
            advice = f"{levels}; if no image of this kind is brighter, give a smaller range"
        return [Check("range", text, advice)]
    found = f"{len(mean)} channels; values at 0 {', '.join(low)}, at 255 {', '.join(high)}"
    if flat := [number for number, value in enumerate(deviation, 1) if value < FAINT / 255]:
        numbers = ", ".join(map(str, flat))
        advice = (
            "give each band its own values of black and white, as in range=0:3000,0:400 for two"
        )
        return [Check("channels", f"{found}; nearly one value in channel {numbers}", advice, True)]
    values = f"[{','.join(map(str, mean))}] --PART.std [{','.join(map(str, deviation))}]"
    part = "where PART is model.backbone in pretrain, model.encoder or of a discrete VAE model in "
    part += "train-tokenizer, backbone in finetune"
    return [
        Check("channels", found, f"--PART.in_channels {len(mean)} --PART.mean {values}, {part}")
    ]


def _cut_off(scanned: Scanned) -> float:
    """Return the share of values at the high end of a given range if it may be too small, or 0."""
    share = max(scanned.facts.ends()[1])
    return share if _has_range(scanned) and share > CLIPPED else 0.0


def _has_range(scanned: Scanned) -> bool:
    return any("range=" in text for text in pixel_options(scanned.spec))


def _check(fault: Fault, scanned: Scanned, test: Scanned | None, max_unreadable: float) -> Check:
    kind, number, source = KINDS[fault.kind], len(fault.images), scanned.source
    share = number / len(source)
    many = number > allowed(len(source), max_unreadable)
    must = kind.must or (fault.kind == "unreadable" and many)
    first = int(fault.images[0])
    example = printable(source.name(first))
    if fault.like is not None:
        pair = test if test and fault.kind in OF_TEST else scanned
        example += f", like {printable(pair.source.name(int(fault.like[0])))}"
    advice = kind.advice
    if fault.kind == "flat" and _has_range(scanned):
        advice += "; if their files have several values, the range is wrong for them"
    if fault.kind == "unreadable":
        reason = printable(scanned.facts.reasons[first])
        example += f": {reason}"
        if (option := OPTION.search(reason)) is not None:
            label = None if source.labels is not None else LABEL.search(source.why_unlabelled)
            options = "&".join(found[1] for found in (label, option) if found)
            whole, _ = split_part(scanned.spec)
            joint = "?" if split_query(whole)[0] == whole else "&"
            named = f"{whole}{joint}{options}{scanned.spec.removeprefix(whole)}"
            advice = f"give this in the string of the data: beit doctor {quote(named)}"
    return Check(
        fault.kind, f"{number} ({percent(share)}) {kind.images}, as {example}", advice, must
    )


def _written(
    path: str, scanned: Scanned, faults: Sequence[Fault], drop: Sequence[str]
) -> list[Check]:
    """Write the list of clean images, and say what it has, and which classes it lacks."""
    source = scanned.source
    dropped = np.zeros(len(source), np.bool_)
    for fault in faults:
        if fault.kind in drop:
            dropped[fault.images] = True
    kept = np.flatnonzero(~dropped).tolist()
    written = write_clean(path, source, kept)
    advice = f"for any verb: --data {quote(as_data(path, scanned.spec))}"
    if source.labels is not None and not is_table(path):
        advice += "; a list has no labels, --write NAME.csv keeps them"
    checks = [Check("clean list", f"{len(written)} of {len(source)} images in {path}", advice)]
    left = {label_of(source, image) for image in written}
    if lost := [name for name, count in class_counts(source) if count and name not in left]:
        have = "has" if len(lost) == 1 else "have"
        what = f"{plural('class', lost)} {some_names(lost)} {have} no image left in {path}"
        advice = "look at their images; --drop says which kinds are left out"
        checks.append(Check("clean list", what, advice))
    return checks
