"""Hugging Face transformers' BEiT: masked image modelling, classification, segmentation, backbone.

Its Data2VecVision is the same network, under another prefix.

`transformers_names` translates to and from the names of the published code; the readers of the
published layouts do the rest. Facts are from transformers 5.23.
"""

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from beit.nn.block import NORM_EPS
from beit.nn.heads import ImageClassifier
from beit.nn.mim import MaskedImageModel
from beit.nn.segmenter import SemanticSegmenter
from beit.nn.vit import VisionTransformer
from beit.run.settings import first
from beit.weights.formats import transformers_names as names
from beit.weights.formats.names import (
    Architecture,
    fused,
    renamed,
    split,
    to_published_names,
    translated,
)
from beit.weights.formats.published import model_and_summary, to_published
from beit.weights.formats.published_names import INDEX
from beit.weights.formats.published_segmentation import segmenter_and_summary
from beit.weights.formats.transformers_config import (
    HALVES,
    architecture_of,
    needs_spare_block,
    normalisation_of,
    processor_notes,
    refuse_contradictions,
    settings_of,
    size_note,
)

logger = logging.getLogger(__name__)


def recognises(tensors: Mapping[str, Tensor]) -> bool:
    """Whether the names are those of transformers' BEiT; its plain ViT also has a key bias."""
    embedded = "embeddings.patch_embeddings.projection.weight"
    return any(
        prefix + embedded in tensors for prefix in ("", "beit.", names.DATA2VEC)
    ) and not any(name.endswith(("key.bias", "k_proj.bias")) for name in tensors)


def from_transformers(
    tensors: Mapping[str, Tensor],
    *,
    origin: str = "the state",
    config: Mapping[str, Any] | None = None,
    processor: Mapping[str, Any] | None = None,
    **overrides: Any,
) -> MaskedImageModel | ImageClassifier | SemanticSegmenter | VisionTransformer:
    """Build the model from the tensors of transformers' BEiT, in eval mode.

    The bare `BeitModel` becomes a `VisionTransformer` with the features of its `last_hidden_state`,
    after the final norm if it has one; the norm of its pooled mean is left out.

    Args:
        tensors: by the names in files, or those of the modules in memory
        config: content of `config.json`; without it, what shapes do not determine is as in the
            published models, or overridden
        processor: content of `preprocessor_config.json`, for mean and std; what it does otherwise
            than beit is logged
        overrides: as for the published layouts; they take precedence over both files

    Raises:
        ValueError: names or shapes do not fit or contradict the configuration, or it is not
            supported: another activation, images that are not square (transformers reads position
            tables with height and width exchanged), a larger LayerNorm epsilon.
    """
    state, architecture, left_out = _in_file_names(tensors)
    settings = settings_of(config or {}, architecture, origin)
    settings |= {} if processor is None else normalisation_of(processor, origin)
    if overrides.get("num_classes") not in (None, len(settings.get("class_names", ()))):
        settings.pop("class_names", None)
    settings |= overrides
    notes = [f"left out {', '.join(left_out)}"] if left_out else []
    if config and config.get("layer_norm_eps", NORM_EPS) != NORM_EPS:
        notes.append(f"its layer_norm_eps of {config['layer_norm_eps']} becomes {NORM_EPS}")
    if "layers" in settings and "layers" not in overrides:
        notes.append(f"the pyramid reads blocks {settings['layers']}, from its out_indices")
    notes += processor_notes(processor or {})
    if not {"mean", "std"} <= settings.keys():
        settings = {"mean": HALVES, "std": HALVES} | settings
        logger.warning(
            "%s does not say how its images were normalised: there is no preprocessor_config.json. "
            "Taken as by mean and std 0.5, the default of transformers' BEiT; for others give "
            "mean=… and std=…",
            origin,
        )
    published = to_published_names(state, architecture, "transformers", origin)
    where = f"{origin} (transformers' {architecture.name}, by published names)"
    build = segmenter_and_summary if architecture is names.SEGMENTER else model_and_summary
    model, about = build(published, where, settings)
    logger.info("%s: transformers' %s, %s", origin, architecture.name, "; ".join([about, *notes]))
    assert isinstance(
        model, MaskedImageModel | ImageClassifier | SemanticSegmenter | VisionTransformer
    )
    refuse_contradictions(config or {}, model, origin)
    if note := size_note(processor or {}, model):
        logger.warning("%s: %s", origin, note)
    return model


def to_transformers(model: nn.Module) -> dict[str, Tensor]:
    """Return the model's tensors by the names in transformers' files.

    The patch aggregation of pretraining, which transformers does not have, is left out and logged.
    What transformers needs besides is added, and left out again by `from_transformers`: a norm of 1
    and 0 for the pooled mean of a backbone without final norm and, if the decoder of a segmenter
    reads the last block, an idle block after it, since transformers' decoder cannot read the last
    one. Tensors may share memory with the model's.
    """
    architecture = architecture_of(model)
    published = to_published(model)
    if needs_spare_block(model):
        assert isinstance(model, SemanticSegmenter)
        published |= _idle_block(published, model.config.backbone.depth)
    published = {name: tensor for name, tensor in published.items() if not name.endswith(INDEX)}
    translations = translated(published, architecture.rows)
    left_out = [name for name in published if name not in translations]
    if left_out:
        assert isinstance(model, MaskedImageModel)
        why = f"transformers' {architecture.name} has no patch aggregation"
        logger.info("%s; left out %s", why, first(left_out))
    state = {theirs: published[name] for name, theirs in translations.items()}
    if isinstance(model, VisionTransformer) and not model.config.final_norm:
        state["pooler.layernorm.weight"] = torch.ones(model.config.width)
        state["pooler.layernorm.bias"] = torch.zeros(model.config.width)
    return split(state, names.QUERY_KEY_VALUE, names.QKV)


def _in_file_names(
    tensors: Mapping[str, Tensor],
) -> tuple[dict[str, Tensor], Architecture, list[str]]:
    """Rename tensors as in files, with fused queries, keys and values; leave out the unused.

    Returns: the tensors, the architecture that their names tell, and what was left out
    """
    indices = [name for name in tensors if name.endswith(INDEX)]
    state = {
        name.replace(names.DATA2VEC, "beit.", 1): tensor
        for name, tensor in tensors.items()
        if name not in indices
    }
    state = fused(renamed(state, names.FILES), names.QUERY_KEY_VALUE, names.QKV)
    architecture = _recognised(state)
    if architecture is names.BARE:
        state = {name.removeprefix("beit."): tensor for name, tensor in state.items()}
    left_out = [name for name in architecture.ignored if state.pop(name, None) is not None]
    if indices:
        left_out.append(f"{INDEX} ({len(indices)} tensors)")
    if architecture is names.SEGMENTER and (count := _remove_idle_blocks(state)):
        left_out.append(f"idle blocks at the end ({count})")
    return state, architecture, left_out


def _recognised(state: Mapping[str, Tensor]) -> Architecture:
    """Recognise the architecture by its head."""
    if "lm_head.weight" in state:
        return names.MASKED
    if "decode_head.classifier.weight" in state:
        return names.SEGMENTER
    return names.CLASSIFIER if "classifier.weight" in state else names.BARE


def _idle_block(published: Mapping[str, Tensor], number: int) -> dict[str, Tensor]:
    """Create a block that adds 0 to its tokens, with the shapes of the block before `number`."""
    before, prefix = f"backbone.blocks.{number - 1}.", f"backbone.blocks.{number}."
    norms = ("norm1.weight", "norm2.weight")
    return {
        name.replace(before, prefix): torch.full_like(tensor, name.endswith(norms))
        for name, tensor in published.items()
        if name.startswith(before)
    }


def _remove_idle_blocks(state: dict[str, Tensor]) -> int:
    """Remove the blocks at the end that add 0 to their tokens; return their number."""
    stem = "beit.encoder.layer."
    numbers = {name.removeprefix(stem).split(".")[0] for name in state if name.startswith(stem)}
    for count, number in enumerate(sorted(map(int, numbers), reverse=True)):
        prefix = f"{stem}{number}."
        outputs = [
            state.get(f"{prefix}{layer}.{kind}")
            for layer in ("attention.output.dense", "output.dense")
            for kind in ("weight", "bias")
        ]
        if any(tensor is None or tensor.any() for tensor in outputs):
            return count
        for name in [name for name in state if name.startswith(prefix)]:
            del state[name]
    return len(numbers)
