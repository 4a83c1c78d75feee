"""Start pretraining from another model's weights: backbone, mask token, aggregation and head."""

from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from beit.nn.mim import MaskedImageModel
from beit.nn.target import Target
from beit.nn.targets import TokenTarget
from beit.pretraining.config import Config
from beit.run.directory import RunDirectory
from beit.run.found import found
from beit.weights.open import load_tokenizer, required_backbone
from beit.weights.start import Note, account, carry_blocks, carry_network, check_fit, load_init


def start_from(origin: str, config: Config, mim: MaskedImageModel, target: Target) -> str:
    """Copy what fits of the model in `origin` to a new one. Returns: the account of it.

    Raises:
        ValueError: its backbone does not fit.
    """
    vit = mim.config.backbone
    source = load_init(origin, vit.image_size, vit.num_heads, mim.config.early_layers)
    backbone = required_backbone(source, origin)
    check_fit(backbone.config, vit, origin, "model.backbone")
    notes = carry_network(backbone, mim.backbone, "backbone")
    if isinstance(source, MaskedImageModel):
        mim.mask_token.data.copy_(source.mask_token)
        notes += [Note("taken", "mask token"), *carry_aggregation(source, mim)]
        notes += carry_heads(source, mim, *same_target(origin, config, target))
    else:
        parts = ["mask token", *(["aggregation"] if mim.aggregation else []), "head"]
        notes.append(Note("new", f"{', '.join(parts)} (the source has none)"))
    return account(origin, source, notes)


def carry_aggregation(source: MaskedImageModel, mim: MaskedImageModel) -> list[Note]:
    """Copy the patch aggregation if as many blocks get the patches of the same block."""
    theirs, ours = (
        f"{model.config.head_layers} blocks after block {model.config.early_layers}"
        + (", with a relative bias each" * (model.config.backbone.relative_bias == "per_block"))
        for model in (source, mim)
    )
    if not mim.aggregation:
        return [Note("left out", f"aggregation of {theirs}")] if source.aggregation else []
    if not source.aggregation or theirs != ours:
        why = f"the source's has {theirs}" if source.aggregation else "the source has none"
        return [Note("new", f"aggregation of {ours} ({why})")]
    grids = source.config.backbone.grid, mim.config.backbone.grid
    carry_blocks(source.aggregation, mim.aggregation, *grids)
    return [Note("taken", f"aggregation of {ours}")]


def carry_heads(
    source: MaskedImageModel, mim: MaskedImageModel, same: bool, why: str
) -> list[Note]:
    """Copy the heads if they predict the same: kind, number, normalisation and target.

    Args:
        same: whether the targets are the same
        why: how that is known, or why they differ
    """
    fields = ("predicts", "head_width", "normalised")
    theirs, ours = (
        tuple(getattr(model.config, field) for field in fields) for model in (source, mim)
    )
    head = f"head for {ours[1]} " + {"tokens": "codes"}.get(ours[0], f"values, {ours[0]}")
    if theirs != ours or not same:
        others = ", ".join(f"{field} {value}" for field, value in zip(fields, theirs, strict=True))
        return [
            Note("new", f"{head} ({why if theirs == ours else f'that of the source: {others}'})")
        ]
    notes = [Note("taken", f"{head}{f' ({why})' if why else ''}")]
    mim.head.load_state_dict(source.head.state_dict())
    for name in ("cls_norm", "cls_head"):
        old, new = getattr(source, name), getattr(mim, name)
        if old is not None and new is not None:
            new.load_state_dict(old.state_dict())
        elif new is not None:
            notes.append(Note("new", f"{name} (the source has none)"))
        elif old is not None:
            notes.append(Note("left out", f"{name} (the head is shared)"))
    return notes


def same_target(origin: str, config: Config, target: Target) -> tuple[bool, str]:
    """Tell whether a pretrained model predicts the same codes or features, and how that is known.

    Only a run names its tokenizer or teacher. That of other models is taken for the same, in words.
    """
    run, ours = RunDirectory(Path(origin)), asdict(config.target)
    if target.kind == "pixels":
        return True, ""
    if not run.config_file.is_file():
        what = "tokenizer" if target.kind == "tokens" else "teacher"
        return True, f"as many as the source's, which does not name its {what}"
    settings = run.config()
    theirs = settings.get("target") or {}
    name = found(run, settings.get("tokenizer") or theirs.get("source") or "")
    seen, seen_here = ([*(each.get("channels") or ())] for each in (theirs, ours))
    if seen != seen_here:
        return False, f"those of the source are of {f'channels {seen}' if seen else 'all channels'}"
    if not isinstance(target, TokenTarget):
        teacher = {**theirs, "source": name}
        same = all(teacher.get(field) == ours[field] for field in ("source", "pretrained"))
        return same, "of the same teacher" if same else f"the source's teacher is {name}"
    try:
        other = load_tokenizer(name)
    except (ValueError, OSError):
        return True, f"as many as the source's, whose tokenizer {name} cannot be opened to compare"
    assert isinstance(other, nn.Module)
    assert isinstance(target.tokenizer, nn.Module)
    if same_weights(other, target.tokenizer):
        return True, "of the same tokenizer"
    return False, f"the source's are of another tokenizer, {name}"


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    """Whether two models have the same tensors by the same names."""
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(
        torch.equal(tensor.cpu(), second[name].cpu()) for name, tensor in first.items()
    )
