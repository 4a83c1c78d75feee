"""The layouts of weights that other programs write, in the order in which they are recognised."""

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import NamedTuple

from torch import Tensor, nn

from beit.weights.formats import (
    dalle,
    dvae,
    mmpretrain,
    mmsegmentation,
    published,
    published_segmentation,
    timm_beit,
    transformers_beit,
)


class Layout(NamedTuple):
    """A family of files written by other programs."""

    what: str  # contents, in words, and the beginnings of its tensor names
    module: ModuleType  # its `recognises(tensors)` looks at names only
    build: Callable[..., nn.Module]  # (tensors, *, origin, **overrides) -> model in eval mode
    whole: bool = False  # pass a checkpoint with its `meta` to `build`, not only the tensors
    json_files: Mapping[str, str] = {}  # in the same folder, by parameter of `build`


# The first layout that recognises the names is used; layouts with distinctive names come first.
# timm's names are those of the published code, which also saves a relative_position_index.
LAYOUTS = (
    Layout(
        "transformers' BEiT and Data2VecVision (beit.embeddings.*, embeddings.*, ...)",
        transformers_beit,
        transformers_beit.from_transformers,
        json_files={"config": "config.json", "processor": "preprocessor_config.json"},
    ),
    Layout(
        "published BEiT segmentation (backbone.*, decode_head.*)",
        published_segmentation,
        published_segmentation.from_published_segmentation,
        whole=True,
    ),
    Layout(
        "mmsegmentation's BEiT (backbone.layers.*, decode_head.*)",
        mmsegmentation,
        mmsegmentation.from_mmsegmentation,
        whole=True,
    ),
    Layout("mmpretrain's BEiT (backbone.layers.*)", mmpretrain, mmpretrain.from_mmpretrain),
    Layout("DALL-E's tokenizer (blocks.input.w)", dalle, dalle.from_dalle),
    Layout("BEiT v1's discrete VAE (codebook.weight, encoder.*)", dvae, dvae.from_dvae),
    Layout(
        "timm's BEiT (blocks.*.attn.q_bias)",
        timm_beit,
        timm_beit.from_timm,
        json_files={"config": "config.json"},
    ),
    Layout(
        "published BEiT v1 and v2: VQ-KD tokenizers (encoder.*, quantize.*), pretrained (lm_head.*)"
        " and fine-tuned models (blocks.*.attn.q_bias)",
        published,
        published.from_published,
    ),
)


def layout_of(tensors: Mapping[str, Tensor]) -> Layout | None:
    """Return the first layout that recognises the names of the tensors; None if none does."""
    return next((layout for layout in LAYOUTS if layout.module.recognises(tensors)), None)
