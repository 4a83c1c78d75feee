"""The targets of pretraining: tokens, pixels or features; and the head that matches them."""

from dataclasses import dataclass, replace
from typing import Literal

import torch

from beit.nn.mim import MaskedImageModelConfig
from beit.nn.target_metrics import Target
from beit.nn.targets import FeatureTarget, PixelTarget, TokenTarget
from beit.nn.vit import ViTConfig
from beit.weights.open import load_tokenizer
from beit.weights.teachers import load_teacher


@dataclass(frozen=True)
class TargetConfig:
    """The target of each patch, and its loss.

    Args:
        kind: tokens of a tokenizer, with cross-entropy; pixels; or features of a teacher.
        source: for tokens, the tokenizer, the same as --tokenizer; for features, the teacher, as
            in train-tokenizer's teacher.source.
        loss: for pixels, mse (default) or smooth-l1; for features, cosine (default), smooth-l1 or
            mse.
        normalised: standardise the targets; pixels per patch, on by default; features per vector,
            off by default.
        image_size: size of the teacher's input images; null for the size it was trained at.
        pretrained: false for a teacher with random weights, for comparison.
        num_heads: attention heads of a teacher in a CLIP or DINO file; null for one per 64
            channels.
    """

    kind: Literal["tokens", "pixels", "features"] = "tokens"
    source: str = ""
    loss: Literal["mse", "smooth-l1", "cosine"] | None = None
    normalised: bool | None = None
    image_size: int | tuple[int, int] | None = None
    pretrained: bool = True
    num_heads: int | None = None

    def __post_init__(self) -> None:
        default = TargetConfig.__dataclass_fields__
        unused = {
            "tokens": ("loss", "normalised", "image_size", "pretrained", "num_heads"),
            "pixels": ("source", "image_size", "pretrained", "num_heads"),
            "features": (),
        }[self.kind]
        for name in unused:
            if getattr(self, name) != default[name].default:
                raise ValueError(
                    f"target.{name} is {getattr(self, name)!r}, which is not an option of "
                    f"target.kind {self.kind}; leave it out, or choose another kind"
                )
        if self.kind == "pixels" and self.loss == "cosine":
            raise ValueError("target.loss is cosine; expected mse or smooth-l1 for pixels")
        if self.kind == "features" and not self.source:
            raise ValueError(
                "target.kind features needs a teacher; name one, as in "
                "--target.source efficientnet-lite0 or --target.source timm:NAME"
            )


def load_target(
    config: TargetConfig, tokenizer: str, vit: ViTConfig, device: torch.device
) -> Target:
    """Open the target of a backbone.

    Args:
        tokenizer: source of the tokenizer, if not given as `config.source`

    Raises:
        ValueError: no tokenizer is given, or it is not a tokenizer or has another grid.
    """
    if config.kind == "pixels":
        normalised, loss = config.normalised is not False, config.loss or "mse"
        return PixelTarget(vit.image_size, vit.patch_size, vit.mean, vit.std, normalised, loss)
    if config.kind == "features":
        size, heads = config.image_size, config.num_heads
        teacher = load_teacher(config.source, size, config.pretrained, heads).to(device)
        normalised, loss = bool(config.normalised), config.loss or "cosine"
        return FeatureTarget(teacher, vit.image_size, vit.grid, normalised, loss)
    source = tokenizer or config.source
    if not source:
        raise ValueError(
            "no tokenizer given; give a run or weights file, as in --tokenizer runs/tok, which "
            "beit train-tokenizer makes"
        )
    return TokenTarget(load_tokenizer(source).to(device), vit.grid)


def match_target(model: MaskedImageModelConfig, target: Target) -> MaskedImageModelConfig:
    """Return the model's configuration with the head's width set, or checked, for the target."""
    if model.predicts not in ("tokens", target.kind):
        raise ValueError(
            f"model.predicts is {model.predicts}, but target.kind is {target.kind}; give "
            "target.kind alone"
        )
    if target.kind != "tokens":
        if model.target_width not in (0, target.width):
            raise ValueError(
                f"model.target_width is {model.target_width}, but the {target.kind} of a patch "
                f"are {target.width} numbers; give that, or 0 to take it from the target"
            )
        return replace(
            model,
            num_codes=0,
            predicts=target.kind,
            target_width=target.width,
            normalised=target.normalised,
        )
    if model.num_codes not in (0, target.width):
        raise ValueError(
            f"model.num_codes is {model.num_codes}, but the tokenizer has {target.width} "
            "codes; give that number, or 0 to take it from the tokenizer"
        )
    return replace(model, num_codes=target.width)
