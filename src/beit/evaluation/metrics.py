"""Metrics of all images, by class and by corruption.

They are computed from the outcomes of `classify`, (n, 6 + corruptions) float32.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from beit.draw.classes import note_of_missed
from beit.evaluation.calibration import expected_calibration_error, reliability
from beit.evaluation.classify import CONFIDENCE, CORRUPTED, EVALUATED, NLL, PREDICTED, TOP1, TOP5
from beit.evaluation.corruptions.corrupt import (
    ALEXNET_ERRORS,
    KINDS,
    SEVERITIES,
    kind_errors,
    mean_corruption_error,
)
from beit.evaluation.target_columns import Task
from beit.nn.metrics import confusion_matrix

if TYPE_CHECKING:
    from beit.evaluation.evaluate import Config


def classification_metrics(outcomes: Tensor, task: Task) -> dict[str, Any]:
    """Compute metrics of all evaluated images and of each class, and the calibration."""
    rows = outcomes[outcomes[:, EVALUATED] > 0].double()
    bins = reliability(rows[:, CONFIDENCE], rows[:, TOP1] > 0)
    metrics = {"top1": float(rows[:, TOP1].mean())}
    if len(task.columns) > 5:
        metrics["top5"] = float(rows[:, TOP5].mean())
    classes = []
    if task.labels is not None:
        correct, total = by_class(outcomes, task)
        present = total > 0
        metrics["mean_per_class"] = float((correct[present].double() / total[present]).mean())
        counts = zip(task.class_names, correct.tolist(), total.tolist(), strict=True)
        classes = [
            {"name": name, "images": count, "top1": hits / count}
            for name, hits, count in counts
            if count
        ]
    metrics["nll"] = float(rows[:, NLL].mean())
    metrics["ece"] = expected_calibration_error(bins)
    return {
        "figures": metrics,
        "classes": classes,
        "reliability": {name: values.tolist() for name, values in bins._asdict().items()},
    }


def by_class(outcomes: Tensor, task: Task) -> tuple[Tensor, Tensor]:
    """Count the correct and the evaluated images of each class: (G,) int64 each."""
    assert task.labels is not None
    G = len(task.class_names)
    correct = torch.bincount(task.labels[outcomes[:, TOP1] > 0], minlength=G)
    return correct, torch.bincount(task.labels[outcomes[:, EVALUATED] > 0], minlength=G)


def missed_classes(outcomes: Tensor, task: Task) -> list[str]:
    """Name the classes of which no image is right, in a note; none if there are none."""
    if task.labels is None:
        return []
    advice = "check the labels, and whether --model and --data name the classes alike"
    note = note_of_missed(*by_class(outcomes, task), task.class_names, "image", advice)
    return [note] if note else []


def class_confusion(outcomes: Tensor, task: Task) -> Tensor:
    """Count targets against predictions, where classes are columns: (C, C) int64."""
    evaluated = outcomes[:, EVALUATED] > 0
    predicted = outcomes[evaluated, PREDICTED].long()
    return confusion_matrix(task.targets[evaluated, 0], predicted, len(task.columns))


def robustness_metrics(
    outcomes: Tensor, config: "Config", baseline: Mapping[str, float] | None
) -> dict[str, Any]:
    """Compute accuracies and errors of the corruptions; {} if there are none.

    `baseline` has the mean errors, by kind, of `config.reference`.
    """
    if not config.pairs:
        return {}
    evaluated = outcomes[:, EVALUATED] > 0
    shares = outcomes[evaluated, CORRUPTED:].double().mean(dim=0).tolist()
    errors, accuracy = dict[tuple[str, int], float](), dict[str, dict[str, float]]()
    for (kind, severity), share in zip(config.pairs, shares, strict=True):
        errors[kind, severity] = 1 - share
        accuracy.setdefault(kind, {})[str(severity)] = share
    metrics: dict[str, Any] = {"accuracy": accuracy, "kind_errors": kind_errors(errors)}
    metrics["mean_corruption_error"] = mean_corruption_error(errors)
    reference = config.reference
    whole = len(config.pairs) == len(KINDS) * len(SEVERITIES)
    if baseline is None and config.dataset == "imagenet" and whole:
        baseline, reference = ALEXNET_ERRORS, "AlexNet"
    if baseline is not None:
        metrics |= {"mce": mean_corruption_error(errors, baseline), "reference": reference}
    return metrics


def reference_errors(
    record: Mapping[str, Any], reference: str, pairs: Sequence[tuple[str, int]]
) -> dict[str, float]:
    """Return the mean errors by kind in `record`, the evaluate.json of a reference.

    ValueError if it lacks a measured pair (kind, severity), or these leave out a severity.
    """
    accuracy: Mapping[str, Mapping[str, float]] = record["corruptions"].get("accuracy", {})
    for kind, severity in pairs:
        if str(severity) not in accuracy.get(kind, {}):
            raise ValueError(
                f"reference {reference} has no error for {kind} at severity {severity}; "
                "evaluate it with the same corruptions, or give no reference"
            )
    severities = sorted({severity for _, severity in pairs})
    if severities != list(SEVERITIES):
        raise ValueError(
            f"reference takes means over severities 1 to 5, got severities {severities}; "
            "leave out --reference, or --severities"
        )
    return dict(record["corruptions"]["kind_errors"])
