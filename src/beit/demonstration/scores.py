"""What the demo measures: probes beside untrained weights, chance and the teacher; few labels."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from beit.draw.names import percent
from beit.draw.report import Cell, Figure, Table
from beit.probing import probe
from beit.wording import amount

UNTRAINED, PRETRAINED, TEACHER = "untrained backbone", "pretrained backbone", "teacher"
ENCODER = "tokenizer's encoder"
GAIN = (
    "Pretraining is worth what the backbone gains over its untrained weights. The teacher, trained "
    "elsewhere on far more images, shows how far one can get with more. Of each model the better "
    "of its features counts. A linear probe is a linear classifier trained on features that stay "
    "as they are; k-NN asks the nearest training images for their class. [CLS] is a vector that "
    "the network has for the whole image, mean is the mean of its patches (`docs/glossary.md`)."
)
BEHIND = (
    "Here the tokenizer's encoder is ahead of the backbone in the linear probe: it learns from the "
    "teacher's features themselves, the backbone only from their codes. With longer pretraining a "
    "backbone can pass the encoder of a briefly trained tokenizer; `docs/results/study.md` has "
    "figures."
)
FEW = (
    "Two classifiers of the same network, fine-tuned with the same few labels: one starts from the "
    "pretrained backbone, the other from random weights."
)


class FewLabels(NamedTuple):
    """What fine-tuning with few labels reaches on the test images."""

    labels: int
    pretrained: float  # top-1 from the pretrained backbone
    fresh: float  # from random weights

    def table(self) -> Table:
        """Compare both starts."""
        rows: list[list[Cell]] = [
            [name, f"{100 * top1:.1f}"]
            for name, top1 in (("random weights", self.fresh), (PRETRAINED, self.pretrained))
        ]
        caption = f"Top-1 accuracy on the test images with {self.labels} labels, in percent."
        return Table(caption, ["fine-tuned from", "top-1"], rows)

    def figure(self) -> Figure:
        """Return the gain in points."""
        gain = f"{100 * (self.pretrained - self.fresh):+.1f} points"
        words = f"{percent(self.pretrained)} right, from random weights {percent(self.fresh)}"
        return Figure(gain, words)


def learned(probes: Mapping[str, probe.Result]) -> str:
    """Explain the table of probes, and why an encoder is ahead of the backbone if it is."""
    encoder, backbone = (_best(probes[model], "linear") for model in (ENCODER, PRETRAINED))
    return f"{GAIN} {BEHIND}" if encoder > backbone else GAIN


def _best(result: probe.Result, score: str) -> float:
    return max(float(row[score]) for row in result.rows)  # type: ignore[literal-required]


def gained(probes: Mapping[str, probe.Result]) -> dict[str, Figure]:
    """Return the pretrained backbone's best accuracies, beside those to compare them with."""
    figures, images = {}, amount(probes[PRETRAINED].images, "image")
    for name, score in (("linear probe", "linear"), ("nearest neighbours", "knn")):
        before, after, ceiling = (
            _best(probes[model], score) for model in (UNTRAINED, PRETRAINED, TEACHER)
        )
        gain = f"{100 * (after - before):+.1f} points"
        beside = f"{percent(after)} of {images} right; untrained {percent(before)}, "
        beside += f"chance {percent(probes[PRETRAINED].chance)}, teacher {percent(ceiling)}"
        if ceiling > after > before:
            way = (after - before) / (ceiling - before)
            beside += f": {percent(way)} of the way from untrained to the teacher"
        figures[f"gain by pretraining, {name}"] = Figure(gain, beside)
    return figures


def probe_table(probes: Mapping[str, probe.Result]) -> Table:
    """List the accuracies of all models, below those of guessing."""
    rows: list[list[Cell]] = []
    chance = f"{100 * next(iter(probes.values())).chance:.1f}"
    rows.append(["chance: always the most frequent class", *[chance] * 4])
    for name, result in probes.items():
        by_features: dict[str, Any] = {row["features"]: row for row in result.rows}
        places = [(score, features) for score in ("linear", "knn") for features in ("cls", "mean")]
        found = [by_features[f][score] if f in by_features else None for score, f in places]
        rows.append([name, *("–" if share is None else f"{100 * share:.1f}" for share in found)])
    columns = ["features of", "linear, [CLS]", "linear, mean", "k-NN, [CLS]", "k-NN, mean"]
    images = amount(next(iter(probes.values())).images, "image")
    return Table(f"Accuracy on {images} never trained on, in percent.", columns, rows)
