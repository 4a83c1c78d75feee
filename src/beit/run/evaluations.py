"""What `beit evaluate` leaves behind: read again, and set side by side."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from beit.nn.metrics import mcnemar

FILE, IMAGES_FILE = "evaluate.json", "images.npz"
NAMES = {
    "top1": "Top-1, %",
    "top5": "Top-5, %",
    "mean_per_class": "Mean per class, %",
    "nll": "NLL",
    "ece": "ECE, %",
    "mean_corruption_error": "Mean corruption error, %",
    "mce": "mCE relative to the reference, %",
}


class Comparison(NamedTuple):
    """Results side by side.

    Attributes:
        letters: what each result is called in the table: A, B, ... and where it is
        columns: heads of the table
        rows: name of a figure, its value in each result, the differences from the first result's
        kinds: of corruption, that all results have at the same severities
        notes: whether differences are more than chance, where results kept what they got right
    """

    letters: dict[str, str]
    columns: list[str]
    rows: list[list[str | None]]
    kinds: list[str]
    notes: list[str]


def read_evaluation(source: str) -> dict[str, Any]:
    """Read evaluate.json, named itself or by its directory."""
    path = Path(source) / FILE if Path(source).is_dir() else Path(source)
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} cannot be read as JSON ({error})") from error
    if not isinstance(record, dict) or not {"figures", "fingerprint", "corruptions"} <= set(record):
        raise ValueError(f"{path} is no result of beit evaluate; expected an {FILE}")
    return record


def refuse_other_images(fingerprints: Mapping[str, str]) -> None:
    """Refuse results, by where they are, that are not of the same images and right answers."""
    (first, one), *others = fingerprints.items()
    for source, other in others:
        if other != one:
            raise ValueError(
                f"{first} and {source} are not of the same images with the same classes compared; "
                "evaluate both on the same data, with the same dataset and limit"
            )


def compared(records: Mapping[str, Mapping[str, Any]]) -> Comparison:
    """Set results, by where they are, side by side; ValueError if they are of other images."""
    refuse_other_images({source: record["fingerprint"] for source, record in records.items()})
    letters = {chr(ord("A") + place): source for place, source in enumerate(records)}
    first = next(iter(records.values()))
    names = [name for name in NAMES if name in first["figures"]]
    # Averages over other corruptions, or relative to other classifiers, do not compare.
    shares = [record["corruptions"].get("accuracy", {}) for record in records.values()]
    references = [record["corruptions"].get("reference") for record in records.values()]
    measured = [{kind: list(by_severity) for kind, by_severity in s.items()} for s in shares]
    if any(one != measured[0] for one in measured):
        names = [name for name in names if name not in ("mean_corruption_error", "mce")]
    if any(one != references[0] for one in references):
        names = [name for name in names if name != "mce"]
    rows = [
        _row(NAMES[name], name, [record["figures"].get(name) for record in records.values()])
        for name in names
    ]
    kinds = [k for k in measured[0] if all(m.get(k) == measured[0][k] for m in measured)]
    for kind in kinds:
        errors = [record["corruptions"]["kind_errors"][kind] for record in records.values()]
        rows.append(_row(f"Error on {kind}, %", kind, errors))
    notes = []
    a, *rest = letters
    for b in rest:
        notes += _significance(letters, a, b)
    heads = ["", *letters, *(f"{b} - {a}" for b in rest)]
    return Comparison(letters, heads, rows, kinds, notes)


def written(name: str, value: float) -> str:
    """Write a figure for people: shares in percent."""
    return f"{value:.4f}" if name == "nll" else f"{100 * value:.2f}"


def _row(label: str, name: str, values: list[float | None]) -> list[str | None]:
    first = values[0]
    cells = [None if value is None else written(name, value) for value in values]
    for value in values[1:]:
        if value is None or first is None:
            cells.append(None)
        else:
            sign = "+" if value >= first else "-"
            cells.append(sign + written(name, abs(value - first)))
    return [label, *cells]


def _significance(letters: Mapping[str, str], a: str, b: str) -> list[str]:
    """Test whether two results differ by more than chance, where both kept their images."""
    seen, right = [], []
    for source in (letters[a], letters[b]):
        path = (Path(source) if Path(source).is_dir() else Path(source).parent) / IMAGES_FILE
        if not path.is_file():
            return []
        with np.load(path, allow_pickle=False) as arrays:
            seen.append(arrays["seen"])
            right.append(arrays["right"])
    if seen[0].shape != seen[1].shape:
        raise ValueError(
            f"{IMAGES_FILE} of {letters[a]} and of {letters[b]} have different numbers of images"
        )
    both = seen[0] & seen[1]
    only_a = int((both & right[0] & ~right[1]).sum())
    only_b = int((both & right[1] & ~right[0]).sum())
    p = mcnemar(only_a, only_b)
    counts = f"Only {a} is right on {only_a} images, only {b} on {only_b}"
    return [f"{counts}; by chance alone as unequal with p = {p:.2g} (McNemar's exact test)"]
