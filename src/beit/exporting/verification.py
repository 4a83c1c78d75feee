"""Compare an export with its model on the same images, 1, 3 and 8 at a time."""

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from beit.nn.dalle import DalleTokenizer
from beit.nn.dvae import DiscreteVAE
from beit.nn.heads import ImageClassifier
from beit.nn.mim import MaskedImageModel
from beit.nn.segmenter import SemanticSegmenter
from beit.nn.tokenizer import VQKD, Tokenizer
from beit.nn.vit import VisionTransformer
from beit.weights.assemble import config_of_vit
from beit.weights.file import image_channels
from beit.wording import an

BATCHES = (1, 3, 8)
SEED = 0
MASK_RATIO = 0.4  # of the patches, for a MaskedImageModel


class Reopened(NamedTuple):
    """An export, opened again by the library it is for.

    Attributes:
        run: function of images (B, 3, H, W) float and masked (B, M) that returns `outputs`
        opened_by: a line of Python that opens the export
    """

    run: Callable[[Tensor, Tensor], Mapping[str, Tensor]]
    opened_by: str


def quoted(text: str) -> str:
    """Write text as Python does, in double quotes, so that a line for the shell stays readable."""
    return json.dumps(text, ensure_ascii=False)


class Difference(NamedTuple):
    """The difference between an export and its model in one output of a batch of images.

    Attributes:
        largest: difference between two values; of codes: how far the model rates the export's code
            below its own, at most
        scale: largest absolute value of the model's output; of codes: of its ratings
        equal: share of equal codes; None for other outputs
    """

    batch: int
    name: str
    largest: float
    scale: float
    equal: float | None = None

    def __str__(self) -> str:
        """Describe the difference in one line."""
        start = f"batch {self.batch}: {self.name}"
        if self.equal is None:
            return f"{start} {self.largest:.1e}, in values up to {self.scale:.3g}"
        others = f", the others rated {self.largest:.1e} below the best at most"
        return f"{start} {self.equal:.3%} equal{'' if self.equal == 1 else others}"


def outputs(model: nn.Module, images: Tensor, masked: Tensor | None = None) -> Mapping[str, Tensor]:
    """Run a model of any kind on images (B, 3, H, W) and, if it takes them, masked (B, M) int64.

    Returns:
        `cls` (B, D) and `patches` (B, N, D) of a VisionTransformer; `logits` of a classifier (B, Y)
        and a segmenter (B, Y, h, w); `logits` and, with patch aggregation, `cls_logits` (B, M, K)
        of a MaskedImageModel; `codes` (B, N) int64 of a tokenizer and `vectors` (B, N, C) of VQ-KD
    """
    if isinstance(model, VisionTransformer):
        cls, patches, *_ = model(images)
        return {"cls": cls, "patches": patches}
    if isinstance(model, ImageClassifier):
        return {"logits": model(images)}
    if isinstance(model, SemanticSegmenter):
        return {"logits": model(images).logits}
    if isinstance(model, MaskedImageModel):
        prediction = model(images, masked)._asdict()
        return {name: tensor for name, tensor in prediction.items() if tensor is not None}
    if isinstance(model, VQKD):
        vectors = model.embed(images)
        return {"codes": model.quantizer.nearest(vectors), "vectors": vectors}
    if isinstance(model, Tokenizer):
        return {"codes": model.encode(images)}
    raise ValueError(f"{an(type(model).__name__)} is not one of our models")


def example(model: nn.Module, count: int = max(BATCHES)) -> tuple[Tensor, Tensor]:
    """Draw a fixed batch: images (B, c, H, W), multiples of 1/255, and masked (B, M) int64."""
    config: Any = model.config
    size = (config_of_vit(config) or config).image_size
    generator = torch.Generator().manual_seed(SEED)
    shape = (count, image_channels(config), *size)
    images = torch.randint(256, shape, generator=generator) / 255
    if not isinstance(model, MaskedImageModel):
        return images, torch.zeros(count, 0, dtype=torch.int64)
    N = model.config.backbone.num_patches
    order = torch.rand(count, N, generator=generator).argsort(dim=1)
    return images, order[:, : max(2, int(MASK_RATIO * N))].sort(dim=1).values


@torch.no_grad()
def compare(model: nn.Module, export: Reopened) -> list[Difference]:
    """Run the model and its export on the same images; return the differences."""
    all_images, all_masked = example(model)
    differences = []
    for batch in BATCHES:
        images, masked = all_images[:batch], all_masked[:batch]
        expected = outputs(model, images, masked)
        for name, actual in export.run(images, masked).items():
            target = expected[name]
            if actual.shape != target.shape:
                raise ValueError(
                    f"the export gives {name} of shape {tuple(actual.shape)} for {batch} images, "
                    f"the model {tuple(target.shape)}"
                )
            if name == "codes":
                equal = (actual == target).float().mean().item()
                values = scores(model, images)
                largest = 0.0 if equal == 1 else shortfall(values, actual)
            else:
                equal, values = None, target
                largest = (actual - target).abs().max().item()
            scale = values.abs().max().item()
            differences.append(Difference(batch, name, largest, scale, equal))
    return differences


def scores(model: nn.Module, images: Tensor) -> Tensor:
    """Return a tokenizer's ratings of all codes, (B, N, K); `encode` takes the largest."""
    if isinstance(model, VQKD):
        return model.quantizer.scores(model.embed(images))
    assert isinstance(model, DiscreteVAE | DalleTokenizer)
    return model.logits(images).flatten(2).transpose(1, 2)


def shortfall(scores: Tensor, codes: Tensor) -> float:
    """Return how far the scores (B, N, K) of codes (B, N) int64 are below the best, at most."""
    chosen = scores.gather(2, codes[..., None]).squeeze(2)  # (B, N)
    return (scores.amax(dim=2) - chosen).max().item()
