"""The frozen model that a probe reads: any backbone that beit can load, or any teacher."""

from collections.abc import Callable, Collection
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from beit.nn.mim import MaskedImageModel
from beit.nn.pooling import Kind, Layer, Tokens, pooled
from beit.nn.vit import VisionTransformer, resized
from beit.weights.file import size_pair
from beit.weights.open import backbone_of, load_sized
from beit.weights.teachers import load_teacher

TEACHER = "teacher:"


class FrozenModel(NamedTuple):
    """A model in eval mode.

    Attributes:
        read: `read(images, kinds)` maps images (B, 3, H, W), uint8 or float in [0, 1], to float32
            features of each kind: (B, D); (B, 2D) for both; (B, N, D) for attentive
        image_size: (height, width) of its input
        width: D
        depth: blocks whose raw outputs it returns; 0 for a teacher
        has_cls: whether its tokens include [CLS]; those of a teacher do not
        paper: what the paper probes of the final features (BEiT v2, section 3.2): cls after
            pretraining with patch aggregation, else mean; also mean if a file holds only a
            backbone, which does not say how it was pretrained; None for a teacher
    """

    read: Callable[[Tensor, Collection[Kind]], dict[Kind, Tensor]]
    image_size: tuple[int, int]
    width: int
    depth: int = 0
    has_cls: bool = False
    paper: Literal["cls", "mean"] | None = None


def open_frozen_model(
    source: str,
    image_size: int | tuple[int, int] | None = None,
    num_heads: int | None = None,
    untrained: int | None = None,
    device: torch.device | str = "cpu",
) -> FrozenModel:
    """Open a model for probing.

    Args:
        source: whatever `beit.load` opens, or teacher:SOURCE
        image_size: of its input; None for its own
        num_heads: if the file does not say it and a head does not have the usual 64 channels
        untrained: the same architecture with fresh weights drawn from this seed (fixed for a
            teacher); None for its own weights
        device: where it computes
    """
    if source.startswith(TEACHER):
        name = source.removeprefix(TEACHER)
        teacher = load_teacher(name, image_size, untrained is None, num_heads).to(device)

        def read_teacher(images: Tensor, kinds: Collection[Kind]) -> dict[Kind, Tensor]:
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

    def read(images: Tensor, kinds: Collection[Kind]) -> dict[Kind, Tensor]:
        features = vit(images, layers={kind.layer for kind in kinds} - {None})
        tokens: dict[Layer, Tokens] = {None: Tokens(features.cls, features.patches)}
        for block, output in features.layers.items():
            tokens[block] = Tokens(output[:, 0], output[:, 1:])
        return {kind: pooled(tokens[kind.layer], kind.pooling) for kind in kinds}

    aggregated = isinstance(model, MaskedImageModel) and model.config.head_layers > 0
    paper: Literal["cls", "mean"] = "cls" if aggregated else "mean"
    config = vit.config
    return FrozenModel(read, config.image_size, config.width, config.depth, True, paper)
