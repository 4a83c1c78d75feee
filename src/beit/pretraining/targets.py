"""Opening what pretraining predicts: a tokenizer, pixels, a teacher; and the head that fits it."""

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
    """What is predicted of a patch, and how it is compared.

    Args:
        kind: tokens of a tokenizer, by cross-entropy; pixels; or features of a teacher.
        source: of tokens the tokenizer, which --tokenizer names too; of features the teacher, as
            train-tokenizer's teacher.source.
        loss: of pixels mse (null) or smooth-l1; of features cosine (null), smooth-l1 or mse.
        normalised: less their mean and over their deviation: of pixels by patch, which null does;
            of features by vector, which null does not.
        image_size: of a teacher, which images are resized to; null: the size it was trained at.
        pretrained: false: a teacher with random weights, for comparison.
        num_heads: attention heads of a teacher in CLIP's or DINO's file; null: one per 64 channels.
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
        strange = {
            "tokens": ("loss", "normalised", "image_size", "pretrained", "num_heads"),
            "pixels": ("source", "image_size", "pretrained", "num_heads"),
            "features": (),
        }[self.kind]
        for name in strange:
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
    chosen: TargetConfig, tokenizer: str, vit: ViTConfig, device: torch.device
) -> Target:
    """Open what is predicted for a backbone.

    Args:
        tokenizer: where the tokenizer is, if not in `chosen.source`

    Raises:
        ValueError: there is no tokenizer, the file is none, or its grid is not the backbone's.
    """
    if chosen.kind == "pixels":
        normalised, loss = chosen.normalised is not False, chosen.loss or "mse"
        return PixelTarget(vit.image_size, vit.patch_size, vit.mean, vit.std, normalised, loss)
    if chosen.kind == "features":
        size, heads = chosen.image_size, chosen.num_heads
        teacher = load_teacher(chosen.source, size, chosen.pretrained, heads).to(device)
        normalised, loss = bool(chosen.normalised), chosen.loss or "cosine"
        return FeatureTarget(teacher, vit.image_size, vit.grid, normalised, loss)
    source = tokenizer or chosen.source
    if not source:
        raise ValueError(
            "no tokenizer given; name a run or weights file, as in --tokenizer runs/tok"
        )
    return TokenTarget(load_tokenizer(source).to(device), vit.grid)


def fitting(model: MaskedImageModelConfig, target: Target) -> MaskedImageModelConfig:
    """Return the model's numbers with those of its head filled in or checked."""
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
