"""The targets of pretraining: tokens, pixels or features; and the head that matches them."""

from dataclasses import dataclass, replace
from typing import Literal

import torch

from beit.nn.mim import MaskedImageModelConfig, Predicts
from beit.nn.target import Target
from beit.nn.targets import FeatureTarget, PixelTarget, TokenTarget
from beit.nn.vit import ViTConfig
from beit.weights.file import image_channels
from beit.weights.open import load_tokenizer
from beit.weights.teachers import check_chosen, load_teacher

MAIN_METRICS = {  # by target.kind: name in the log, title of its curves, what a percentage is of
    "tokens": ("accuracy", "Accuracy", "of the hidden patches' codes predicted right"),
    "pixels": ("explained", "Explained share", "of the variance of hidden pixels explained"),
    "features": ("cosine", "Cosine", "cosine of predicted and true features"),
}


@dataclass(frozen=True)
class TargetConfig:
    """The target of each patch, and its loss.

    Args:
        kind: tokens of a tokenizer, with cross-entropy; pixels; or features of a teacher.
        source: for tokens, the tokenizer (same as --tokenizer); for features, the teacher, as in
            teacher.source of train-tokenizer.
        loss: for pixels, mse (default) or smooth-l1; for features, cosine (default), smooth-l1 or
            mse.
        normalised: standardise the targets: pixels per patch (on by default), features per vector
            (off by default).
        image_size: size of the teacher's input images; null for the size it was trained at.
        pretrained: false for a teacher with random weights, for comparison.
        num_heads: attention heads of a teacher in a CLIP or DINO file; null for one per 64
            channels.
        channels: the channels of the images, counted from 1, that an RGB tokenizer or teacher sees
            as red, green and blue, or one channel that it sees as grey; empty for all.
    """

    kind: Predicts = "tokens"
    source: str = ""
    loss: Literal["mse", "smooth-l1", "cosine"] | None = None
    normalised: bool | None = None
    image_size: int | tuple[int, int] | None = None
    pretrained: bool = True
    num_heads: int | None = None
    channels: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        default = TargetConfig.__dataclass_fields__
        unused = {
            "tokens": ("loss", "normalised", "image_size", "pretrained", "num_heads"),
            "pixels": ("source", "image_size", "pretrained", "num_heads", "channels"),
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
        sizes = vit.image_size, vit.patch_size
        return PixelTarget(*sizes, vit.mean, vit.std, normalised, loss, vit.image_channels)
    check_chosen("target.channels", config.channels, vit.image_channels)
    if config.kind == "features":
        size, heads = config.image_size, config.num_heads
        check_seen("teacher", 3, config.channels, vit.image_channels)
        teacher = load_teacher(config.source, size, config.pretrained, heads).to(device)
        teacher.channels = config.channels
        normalised, loss = bool(config.normalised), config.loss or "cosine"
        return FeatureTarget(teacher, vit.image_size, vit.grid, normalised, loss)
    source = tokenizer or config.source
    if not source:
        raise ValueError(
            "no tokenizer given; give a run or weights file, as in --tokenizer runs/tok, which "
            "beit train-tokenizer makes"
        )
    opened = load_tokenizer(source).to(device)
    taken = image_channels(getattr(opened, "config", None))
    check_seen("tokenizer", taken, config.channels, vit.image_channels)
    return TokenTarget(opened, vit.grid, config.channels)


def check_seen(what: str, taken: int, chosen: tuple[int, ...], channels: int) -> None:
    """Raise ValueError if a tokenizer or teacher takes other channels than those it would see."""
    if taken == (3 if chosen else channels):
        return
    advice = "leave target.channels out"
    if not chosen:
        advice = f"give --model.backbone.in_channels {taken} and as many bands"
        advice += ", or name what it sees, as in --target.channels [3,2,1]" * (taken == 3)
    seen = f"target.channels names {len(chosen)}" if chosen else f"images have {channels}"
    raise ValueError(f"the {what} takes {taken} channels, but {seen}; {advice}")


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
