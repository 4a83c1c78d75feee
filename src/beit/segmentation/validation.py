"""Validation of a segmenter during training."""

from collections.abc import Callable
from functools import partial
from itertools import islice
from typing import NamedTuple

import torch
from lightning_fabric import Fabric
from torch import Tensor

from beit.nn.confusion import map_figures, pixel_confusion
from beit.nn.segmenter import SemanticSegmenter
from beit.nn.sliding import MapPredictor, MapViewConfig
from beit.run.device import DeviceConfig, summed
from beit.run.prepare import prepared
from beit.run.reading import Reading

EXAMPLES = 6  # images kept for the report


class Example(NamedTuple):
    """An image (3, H, W) uint8 and its true and predicted label maps (H, W) uint8."""

    image: Tensor
    label_map: Tensor
    predicted: Tensor


class Validated(NamedTuple):
    """The results of a segmenter on the validation set.

    Attributes:
        metrics: val_miou, val_mean_accuracy, val_pixel_accuracy
        confusion: (Y, Y) int64, pixels of all images, true classes by row
        examples: of the first images
    """

    metrics: dict[str, float]
    confusion: Tensor
    examples: list[Example]


def map_predictor(
    fabric: Fabric,
    segmenter: SemanticSegmenter,
    views: MapViewConfig,
    device: DeviceConfig | None = None,
) -> Callable[[Tensor], Tensor]:
    """Return a function from images (B, 3, H, W) uint8 to their classes (B, H, W) int64.

    Args:
        device: how to prepare the segmenter; None for a segmenter that is being trained
    """
    vit = segmenter.to(fabric.device).eval().backbone
    model = segmenter if device is None else prepared(segmenter, device)

    def classify(windows: Tensor) -> Tensor:
        with fabric.autocast():
            logits: Tensor = model(windows).logits  # (n, Y, h', w')
        return logits

    return partial(MapPredictor(vit.config.image_size, views, vit.mean), classify)


@torch.no_grad()
def validate(
    fabric: Fabric, segmenter: SemanticSegmenter, views: MapViewConfig, reading: Reading
) -> Validated:
    """Predict the label maps of the validation images and count their pixels."""
    Y, predict = segmenter.config.num_classes, map_predictor(fabric, segmenter, views)
    confusion = torch.zeros(Y, Y, dtype=torch.int64, device=fabric.device)
    examples: list[Example] = []
    for batch in reading:
        predicted = predict(batch.images)  # (B, H, W)
        confusion += pixel_confusion(batch.label_maps, predicted, Y)
        maps = zip(batch.images, batch.label_maps, predicted, strict=True)
        examples += [
            Example(image.cpu(), label_map.cpu(), labels.to("cpu", torch.uint8))
            for image, label_map, labels in islice(maps, EXAMPLES - len(examples))
        ]
    confusion = summed(fabric, confusion).cpu()
    figures = map_figures(confusion)
    names = ("miou", "mean_accuracy", "pixel_accuracy")
    metrics = {f"val_{name}": float(getattr(figures, name)) for name in names}
    return Validated(metrics | reading.counts(), confusion, examples)
