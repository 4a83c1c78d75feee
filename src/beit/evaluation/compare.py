"""Results of `beit evaluate`: read again, and compared side by side."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from beit.draw.report import Section, Table, write_report
from beit.evaluation.imagenet_classes import read_json
from beit.evaluation.output import (
    FILE,
    IMAGES_FILE,
    METRICS,
    Record,
    format_metric,
    robustness_section,
)
from beit.files import write_text
from beit.rows.files import open_npz
from beit.run.environment import environment

Row = list[str | None]


def compare(sources: Sequence[str], output: Path | None) -> tuple[dict[str, dict[str, float]], str]:
    """Compare results on the same images; print the table, and write it into `output`.

    The table shows each metric in each result, and each result's difference from the first.
    Returns: the metrics of each result by its path, and the table.
    """
    records = {source: read_evaluation(source) for source in sources}
    refuse_other_images({source: record["fingerprint"] for source, record in records.items()})
    letters = {chr(ord("A") + place): source for place, source in enumerate(records)}
    rows, kinds = _rows(list(records.values()))
    a, *rest = letters
    columns = ["", *letters, *(f"{b} - {a}" for b in rest)]
    notes = [note for b in rest for note in _significance(letters, a, b)]
    counts = [record.get("images", {}).get("evaluated") for record in records.values()]
    if len(set(counts)) > 1:  # unreadable images make them differ
        pairs = zip(letters, counts, strict=True)
        notes.insert(0, "Images evaluated: " + ", ".join(f"{x} {count}" for x, count in pairs))
    notes[:0] = note_of_data(dict(zip(letters, map(data_of, records.values()), strict=True)))
    lines = [f"{letter}: {source}" for letter, source in letters.items()]
    heads: Row = [*columns]
    for name, *cells in (heads, *rows):
        lines.append(f"{name:<38}" + "".join(f"{cell or '–':>10}" for cell in cells))
    metrics = {source: record["figures"] for source, record in records.items()}
    table = "\n".join([*lines, *notes])
    print(table)
    if output is not None:
        output.mkdir(parents=True)
        content = {"figures": metrics, "notes": notes, "environment": environment("evaluate")}
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        write_text(output / "compare.json", text)
        figures = [Table("Shares in percent", columns, rows)]
        sections = [Section("Figures", "\n\n".join(notes), figures)]
        if kinds:
            sections.append(robustness_section(records))
        write_report(output / "report.html", "Evaluations side by side", sections, letters)
    return metrics, table


def read_evaluation(source: str) -> dict[str, Any]:
    """Read evaluate.json, given its path or its directory."""
    path = Path(source) / FILE if Path(source).is_dir() else Path(source)
    record = read_json(path)
    if isinstance(record, dict) and "miou" in record.get("figures", ()):
        raise ValueError(
            f"{path} is the evaluation of a segmenter; --compare and --reference take those of "
            "image classifiers. Compare mIoU in the report.html of each"
        )
    if not isinstance(record, dict) or not {"figures", "fingerprint", "corruptions"} <= set(record):
        raise ValueError(f"{path} is not a result of beit evaluate; expected an {FILE}")
    return record


def refuse_other_images(fingerprints: Mapping[str, str]) -> None:
    """Raise ValueError unless results, by path, have the same images and targets."""
    (first, expected), *others = fingerprints.items()
    for source, fingerprint in others:
        if fingerprint != expected:
            raise ValueError(
                f"{first} and {source} are not of the same images with the same classes compared; "
                "evaluate both on the same data, with the same dataset and limit"
            )


def data_of(record: Record) -> str | None:
    """Return the data string of a result; None in results without settings."""
    spec: str | None = record.get("config", {}).get("data")
    return spec


def note_of_data(data: Mapping[str, str | None]) -> list[str]:
    """Note that results, by name, have other data strings: only names and classes were compared."""
    if len(set(data.values())) < 2:
        return []
    of = ", ".join(f"{name} {spec}" for name, spec in data.items())
    return [f"Images of {of}: the same by names and classes; check that they are"]


def _rows(records: Sequence[Record]) -> tuple[list[Row], list[str]]:
    """Tabulate metrics, and errors on the corruptions that all have at the same severities."""
    names = [name for name in METRICS if name in records[0]["figures"]]
    # Means over different corruptions, or relative to different references, do not compare.
    corruptions = [record["corruptions"] for record in records]
    accuracies = [entry.get("accuracy", {}) for entry in corruptions]
    measured = [{kind: list(shares) for kind, shares in entry.items()} for entry in accuracies]
    if any(pairs != measured[0] for pairs in measured):
        names = [name for name in names if name not in ("mean_corruption_error", "mce")]
    if len({entry.get("reference") for entry in corruptions}) > 1:
        names = [name for name in names if name != "mce"]
    rows = [_row(METRICS[n], n, [record["figures"].get(n) for record in records]) for n in names]
    kinds = [k for k in measured[0] if all(m.get(k) == measured[0][k] for m in measured)]
    for kind in kinds:
        errors = [entry["kind_errors"][kind] for entry in corruptions]
        rows.append(_row(f"Error on {kind}, %", kind, errors))
    return rows, kinds


def _row(label: str, name: str, values: list[float | None]) -> Row:
    first = values[0]
    cells = [None if value is None else format_metric(name, value) for value in values]
    for value in values[1:]:
        if value is None or first is None:
            cells.append(None)
        else:
            sign = "+" if value >= first else "-"
            cells.append(sign + format_metric(name, abs(value - first)))
    return [label, *cells]


def _significance(letters: Mapping[str, str], a: str, b: str) -> list[str]:
    """Test whether results a and b differ by more than chance, if both kept images.npz."""
    evaluated, correct = [], []
    for source in (letters[a], letters[b]):
        path = (Path(source) if Path(source).is_dir() else Path(source).parent) / IMAGES_FILE
        if not path.is_file():
            return []
        with open_npz(path) as arrays:
            evaluated.append(arrays["seen"])
            correct.append(arrays["right"])
    if evaluated[0].shape != evaluated[1].shape:
        raise ValueError(
            f"{IMAGES_FILE} of {letters[a]} and of {letters[b]} have different numbers of images"
        )
    both = evaluated[0] & evaluated[1]
    only_a = int((both & correct[0] & ~correct[1]).sum())
    only_b = int((both & correct[1] & ~correct[0]).sum())
    p = mcnemar(only_a, only_b)
    counts = f"Only {a} is right on {only_a} images, only {b} on {only_b}"
    return [f"{counts}; by chance alone as unequal with p = {p:.2g} (McNemar's exact test)"]


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the two-sided p-value of McNemar's exact test that two classifiers are equally good.

    The counts are of images that only the first, or only the second, classified correctly.
    """
    if only_first < 0 or only_second < 0:
        raise ValueError(f"counts must not be negative, got {only_first} and {only_second}")
    n, ways, below = only_first + only_second, 1, 0
    for k in range(min(only_first, only_second) + 1):
        below += ways  # binomial(n, k), exactly
        ways = ways * (n - k) // (k + 1)
    p: float = 2 * below / 2**n  # of integers, which may be too large for floats
    return min(1.0, p)
