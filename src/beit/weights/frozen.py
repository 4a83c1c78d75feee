"""A frozen model that gives features of whole images: any backbone, or any teacher."""

from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from beit.nn.mim import MaskedImageModel
from beit.nn.pooling import Kind, Layer, Tokens, pooled
from beit.nn.position import resized
from beit.nn.vit import VisionTransformer
from beit.weights.file import size_pair
from beit.weights.open import load_start, required_backbone
from beit.weights.teachers import Teacher, load_teacher

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
    network: nn.Module = nn.Identity()  # what computes them
    grid: tuple[int, int] = (1, 1)  # (Gh, Gw) of its patches

    def settings(self, source: str) -> dict[str, Any]:
        """Return what its features depend on besides its weights; it was opened from `source`."""
        if isinstance(vit := self.network, VisionTransformer):
            config = vit.config
            return {"num_heads": config.num_heads, "mean": config.mean, "std": config.std}
        assert isinstance(self.network, Teacher)
        return {"model": source, **self.network.settings}

    def check_layer(self, layer: Layer, source: str) -> None:
        """Raise ValueError for a block that the model, opened from `source`, does not have."""
        if layer is not None and not 1 <= layer <= self.depth:
            blocks = f"the blocks of {source} are 1 to {self.depth}"
            blocks = blocks if self.depth else f"{source} gives its final features only"
            raise ValueError(f"layer is {layer}; {blocks}")

    def columns(
        self, kinds: Mapping[str, Kind], compiled: bool = False
    ) -> Callable[[Tensor], dict[str, Tensor]]:
        """Return a function from images (B, 3, H, W) to the features of each column."""
        read = torch.compile(self.read) if compiled else self.read

        def compute(images: Tensor) -> dict[str, Tensor]:
            features = read(images, kinds.values())
            return {name: features[kind] for name, kind in kinds.items()}

        return compute


def open_frozen_model(
    source: str,
    image_size: int | tuple[int, int] | None = None,
    num_heads: int | None = None,
    untrained: int | None = None,
    device: torch.device | str = "cpu",
) -> FrozenModel:
    """Open whatever `beit.load` opens, or teacher:SOURCE, to read its features.

    Args:
        image_size: of its input; None for its own
        num_heads: if the file does not say it and a head does not have the usual 64 channels
        untrained: the same architecture with fresh weights drawn from this seed (fixed for a
            teacher); None for its own weights
    """
    if source.startswith(TEACHER):
        name = source.removeprefix(TEACHER)
        return _of_teacher(load_teacher(name, image_size, untrained is None, num_heads).to(device))
    size = None if image_size is None else size_pair(image_size)
    model = load_start(source, size, num_heads=num_heads)
    backbone = required_backbone(model, source)
    if size is not None:
        try:
            backbone = resized(backbone, size)
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from error
    if untrained is not None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(untrained)
            backbone = VisionTransformer(backbone.config)
    aggregated = isinstance(model, MaskedImageModel) and model.config.head_layers > 0
    return _of_backbone(backbone.to(device).eval(), "cls" if aggregated else "mean")


def _of_teacher(teacher: Teacher) -> FrozenModel:
    def read(images: Tensor, kinds: Collection[Kind]) -> FeaturesByKind:
        tokens = Tokens(None, teacher.features(images, teacher.grid))
        return {kind: pooled(tokens, kind.pooling) for kind in kinds}

    sizes = (teacher.image_size, teacher.width)
    return FrozenModel(read, *sizes, network=teacher, grid=teacher.grid)


def _of_backbone(vit: VisionTransformer, paper: Literal["cls", "mean"]) -> FrozenModel:
    def read(images: Tensor, kinds: Collection[Kind]) -> FeaturesByKind:
        features = vit(images, layers={kind.layer for kind in kinds} - {None})
        tokens: dict[Layer, Tokens] = {None: Tokens(features.cls, features.patches)}
        for block, output in features.layers.items():
            tokens[block] = Tokens(output[:, 0], output[:, 1:])
        return {kind: pooled(tokens[kind.layer], kind.pooling) for kind in kinds}

    config = vit.config
    return FrozenModel(
        read, config.image_size, config.width, config.depth, True, paper, vit, config.grid
    )
