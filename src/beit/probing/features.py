"""Features of a frozen model: cached for a whole set, or streamed batch by batch.

The model is any backbone that beit can load, or any teacher.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from beit.data.batch import Batch
from beit.data.batches import EvalBatches, TrainBatches
from beit.data.source import Source
from beit.data.views import CROP_RATIO, EvalView, TrainViews
from beit.nn.pooling import Kind
from beit.run.one_pass import one_pass
from beit.run.progress import Progress
from beit.weights.frozen import FeaturesByKind, FrozenModel

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from beit.probing.probe import Config


class CachedFeatures(NamedTuple):
    """Features of the readable images of a set, on the CPU."""

    features: FeaturesByKind  # (n, D) each, of [CLS] and of the mean patch
    labels: Tensor  # (n,) int64
    indices: Tensor  # (n,) int64, of the images in their source
    unreadable: list[str]  # names of the images that were left out

    def of(self, kind: Kind) -> Tensor:
        """Return the features of a kind: (n, D), or (n, 2D) for both."""
        parts = [self.features[part] for part in kind.parts]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


class FeatureReader(NamedTuple):
    """Reads features of images with a frozen model, in the precision of the fabric."""

    model: FrozenModel
    config: "Config"
    fabric: "Fabric"

    @property
    def crop_ratio(self) -> float:
        """The side of the centre crop over the shorter side."""
        return CROP_RATIO if self.config.crop_ratio is None else self.config.crop_ratio

    def cache(self, kinds: Sequence[Kind], source: Source, name: str) -> CachedFeatures:
        """Compute features of all readable images of the set `name` (step 1 of the protocol)."""
        parts = list(dict.fromkeys(part for kind in kinds for part in kind.parts))
        pieces: dict[Kind, list[Tensor]] = {part: [] for part in parts}
        labels, indices = list[Tensor](), list[Tensor]()
        dtype = torch.float16 if self.config.dtype == "float16" else torch.float32
        for features, batch in self.read_once(parts, source, name):
            for part in parts:
                pieces[part].append(features[part].to("cpu", dtype))
            labels.append(batch.labels.cpu())
            indices.append(batch.indices.cpu())
        if not labels:
            raise ValueError(f"none of the {len(source)} {name} images can be read")
        joined = {part: torch.cat(pieces.pop(part)) for part in parts}
        read = torch.cat(indices)
        missing = sorted(set(range(len(source))) - set(read.tolist()))
        return CachedFeatures(joined, torch.cat(labels), read, [source.name(i) for i in missing])

    def read_once(
        self, kinds: Sequence[Kind], source: Source, name: str
    ) -> Iterator[tuple[FeaturesByKind, Batch]]:
        """Yield the features of all readable images of the set `name`, and their batches."""
        config, view = self.config, EvalView(self.model.image_size, self.crop_ratio)
        batches = EvalBatches(source, view, config.images_per_batch, num_workers=config.num_workers)
        return self._read(kinds, batches, f"features of {len(source)} {name} images")

    def read_epochs(
        self, kinds: Sequence[Kind], source: Source, num_steps: int
    ) -> Iterator[tuple[FeaturesByKind, Batch]]:
        """Yield the features of training batches, computed again in each epoch, and the batches."""
        config, size = self.config, self.model.image_size
        fixed = partial(_fixed_views, EvalView(size, self.crop_ratio))
        batches = TrainBatches(
            source,
            TrainViews(config.view, size, size) if config.augment else fixed,
            batch_size=min(config.batch_size, len(source)),
            seed=config.seed,
            start_step=0,
            num_steps=num_steps,
            num_workers=config.num_workers,
        )
        message = f"probes of {len(source)} images, {config.epochs} passes"
        return self._read(kinds, batches, message)

    def _read(
        self, kinds: Sequence[Kind], batches: EvalBatches | TrainBatches, message: str
    ) -> Iterator[tuple[FeaturesByKind, Batch]]:
        """Yield features of batches, and the batches; show the progress."""
        with Progress(len(batches)) as progress:
            progress.message(message)
            for batch in one_pass(self.fabric, batches, self.config.max_unreadable, progress):
                with torch.no_grad(), self.fabric.autocast():
                    chunks = batch.images.split(self.config.images_per_batch)
                    parts = [self.model.read(images, kinds) for images in chunks]
                yield {kind: torch.cat([part[kind] for part in parts]) for kind in kinds}, batch


def _fixed_views(view: EvalView, image: Tensor, _: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return the evaluation view in place of a pair of random views."""
    pixels = view(image)
    return pixels, pixels
