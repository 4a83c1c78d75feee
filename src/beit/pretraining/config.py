"""Settings of `beit pretrain`."""

from dataclasses import dataclass
from typing import Literal

from beit.data.batches import DataConfig
from beit.data.views import ViewConfig
from beit.nn.masking import MaskConfig
from beit.nn.mim import MaskedImageModelConfig
from beit.pretraining.targets import TargetConfig
from beit.run.device import DeviceConfig
from beit.run.directory import RunConfig
from beit.run.optim import OptimConfig


@dataclass(frozen=True)
class CheckConfig:
    """k-NN accuracy on labelled images, during training.

    Args:
        every: epochs between two checks; 0 for none.
        train: labelled images among which neighbours are searched; empty for the training images.
        test: labelled images to classify; empty for the validation images.
        limit: largest number of images, for train and for test.
    """

    every: int = 0
    train: str = ""
    test: str = ""
    limit: int = 5000

    def __post_init__(self) -> None:
        if self.every < 0 or self.limit < 1:
            raise ValueError(
                "check.every must be 0 (no check) or more and check.limit 1 or more, got "
                f"{self.every} and {self.limit}"
            )


@dataclass(frozen=True)
class Config:
    """Settings of `beit pretrain`; the defaults are the published ViT-B/16 recipe, 300 epochs.

    Args:
        data: the images.
        tokenizer: a run directory or weights file of a trained tokenizer, published:NAME, or
            hf://OWNER/NAME.
        init: initial weights: any run or weights file of a ViT, published:NAME, hf://OWNER/NAME;
            weights that fit are copied, and its network sets model.backbone. null for random
            weights.
        target: the target of the prediction, if not the codes of the tokenizer.
        view: how training views are cropped and augmented.
        model: the network to pretrain.
        mask: which patches are masked.
        predict: the masked patches, or all patches.
        optim: the optimiser and its schedule.
        check: k-NN accuracy during training.
        crop_ratio: side of the centre crop of validation images, as a share of the shorter side.
        validate_every: epochs between two validations; the last step always has one.
        run: where and how often to write.
        device: devices and precision.
    """

    data: DataConfig = DataConfig()
    tokenizer: str = ""
    init: str | None = None
    target: TargetConfig = TargetConfig()
    view: ViewConfig = ViewConfig()
    model: MaskedImageModelConfig = MaskedImageModelConfig()
    mask: MaskConfig = MaskConfig()
    predict: Literal["masked", "all"] = "masked"
    optim: OptimConfig = OptimConfig(
        batch_size=2048,
        epochs=300,
        learning_rate=1.5e-3,
        warmup_epochs=10,
        betas=(0.9, 0.98),
        weight_decay=0.05,
        clip=3.0,
    )
    check: CheckConfig = CheckConfig()
    crop_ratio: float = 0.875
    validate_every: int = 1
    run: RunConfig = RunConfig()
    device: DeviceConfig = DeviceConfig()

    def __post_init__(self) -> None:
        if self.validate_every < 1:
            raise ValueError(f"validate_every is {self.validate_every}; expected 1 epoch or more")
        num_patches = self.model.backbone.num_patches
        if not 1 <= self.mask.number(num_patches) <= num_patches:
            raise ValueError(
                f"mask.count is {self.mask.count}, but an image has "
                f"{num_patches} patches; expected 1 to that many"
            )
        if self.tokenizer and self.target.kind != "tokens":
            raise ValueError(
                f"a tokenizer is given, {self.tokenizer}, but target.kind is {self.target.kind}; "
                "leave one of the two out"
            )
        if self.tokenizer and self.target.source not in ("", self.tokenizer):
            raise ValueError(
                f"two tokenizers are given: {self.tokenizer}, and as target.source "
                f"{self.target.source}; leave one of them out"
            )
