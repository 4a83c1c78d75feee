"""Features of a frozen model: cached for a whole set, or streamed batch by batch.

The model is any backbone that beit can load, or any teacher.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor

from beit.data.batch import Batch
from beit.data.batches import EvalBatches, TrainBatches
from beit.data.prefetch import prefetch
from beit.data.source import Source
from beit.data.unreadable import Unreadable, readable
from beit.data.views import EvalView, TrainViews
from beit.nn.mim import MaskedImageModel
from beit.nn.pooling import Kind, Layer, Tokens, pooled
from beit.nn.position import resized
from beit.nn.vit import VisionTransformer
from beit.run.progress import Progress
from beit.weights.crop import DEFAULT
from beit.weights.file import size_pair
from beit.weights.open import backbone_of, load_sized
from beit.weights.teachers import load_teacher

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from beit.probing.probe import Config

TEACHER = "teacher:"
FeaturesByKind = dict[Kind, Tensor]


class FrozenModel(NamedTuple):
    """A model in eval mode.

    `read(images, kinds)` maps images (B, 3, H, W), uint8 or float in [0, 1], to float32 features of
    each kind: (B, D); (B, 2D) for both; (B, N, D) for attentive. `paper` is what the paper probes
    of the final features (BEiT v2, section 3.2): cls after pretraining with patch aggregation, else
    mean; also mean if a file holds only a backbone, which does not say how it was pretrained.
    """

    read: Callable[[Tensor, Collection[Kind]], FeaturesByKind]
    image_size: tuple[int, int]  # (height, width) of its input
    width: int  # D
    depth: int = 0  # blocks whose raw outputs it returns; 0 for a teacher
    has_cls: bool = False  # whether its tokens include [CLS]; those of a teacher do not
    paper: Literal["cls", "mean"] | None = None  # None for a teacher


def open_frozen_model(
    source: str,
    image_size: int | tuple[int, int] | None = None,
    num_heads: int | None = None,
    untrained: int | None = None,
    device: torch.device | str = "cpu",
) -> FrozenModel:
    """Open whatever `beit.load` opens, or teacher:SOURCE, for probing.

    Args:
        image_size: of its input; None for its own
        num_heads: if the file does not say it and a head does not have the usual 64 channels
        untrained: the same architecture with fresh weights drawn from this seed (fixed for a
            teacher); None for its own weights
    """
    if source.startswith(TEACHER):
        name = source.removeprefix(TEACHER)
        teacher = load_teacher(name, image_size, untrained is None, num_heads).to(device)

        def read_teacher(images: Tensor, kinds: Collection[Kind]) -> FeaturesByKind:
            tokens = Tokens(None, teacher.features(images, teacher.grid))
            return {kind: pooled(tokens, kind.pooling) for kind in kinds}

        return FrozenModel(read_teacher, teacher.image_size, teacher.width)

    size = None if image_size is None else size_pair(image_size)
    model = load_sized(source, size, num_heads=num_heads)
    backbone = backbone_of(model)
    if backbone is None:
        raise ValueError(f"{source} holds a {type(model).__name__}, which has no backbone")
    if size is not None:
        try:
            backbone = resized(backbone, size)
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from error
    if untrained is not None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(untrained)
            backbone = VisionTransformer(backbone.config)
    vit = backbone.to(device).eval()

    def read(images: Tensor, kinds: Collection[Kind]) -> FeaturesByKind:
        features = vit(images, layers={kind.layer for kind in kinds} - {None})
        tokens: dict[Layer, Tokens] = {None: Tokens(features.cls, features.patches)}
        for block, output in features.layers.items():
            tokens[block] = Tokens(output[:, 0], output[:, 1:])
        return {kind: pooled(tokens[kind.layer], kind.pooling) for kind in kinds}

    aggregated = isinstance(model, MaskedImageModel) and model.config.head_layers > 0
    paper: Literal["cls", "mean"] = "cls" if aggregated else "mean"
    config = vit.config
    return FrozenModel(read, config.image_size, config.width, config.depth, True, paper)


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
        return DEFAULT if self.config.crop_ratio is None else self.config.crop_ratio

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
        return self._read(kinds, batches, f"features of {len(source)} {name} images", len(source))

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
        return self._read(kinds, batches, message, len(source))

    def _read(
        self, kinds: Sequence[Kind], batches: EvalBatches | TrainBatches, message: str, total: int
    ) -> Iterator[tuple[FeaturesByKind, Batch]]:
        """Yield features of batches, and the batches; show the progress."""
        loader = prefetch(batches, self.fabric.device)
        unreadable = Unreadable(total, self.config.max_unreadable)
        with Progress(len(batches)) as progress:
            progress.message(message)
            for step, batch in enumerate(readable(loader, unreadable, progress.warn), start=1):
                with torch.no_grad(), self.fabric.autocast():
                    chunks = batch.images.split(self.config.images_per_batch)
                    parts = [self.model.read(images, kinds) for images in chunks]
                yield {kind: torch.cat([part[kind] for part in parts]) for kind in kinds}, batch
                progress.update(step, {}, len(batch.labels), loader.wait_seconds)


def _fixed_views(view: EvalView, image: Tensor, _: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return the evaluation view in place of a pair of random views."""
    pixels = view(image)
    return pixels, pixels
