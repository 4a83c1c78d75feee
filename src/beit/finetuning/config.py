"""Settings of `beit finetune`."""

from dataclasses import dataclass
from typing import Literal

from beit.data.batches import DataConfig
from beit.data.views import ViewConfig
from beit.finetuning.mixing import MixConfig
from beit.finetuning.views import AugmentConfig
from beit.nn.vit import ViTConfig
from beit.run.device import DeviceConfig
from beit.run.directory import RunConfig
from beit.run.optim import OptimConfig


@dataclass(frozen=True)
class Config:
    """Settings of `beit finetune`; the defaults are the published recipe for ViT-B/16.

    Args:
        data: the labelled images.
        init: initial weights: a run directory or weights file of a pretrained model, a tokenizer
            (its encoder) or a classifier, published:NAME, hf://OWNER/NAME; null for random weights.
        backbone: the network to train from random weights; null if there are initial weights.
        image_size: (height, width) of images; positions of the initial weights are resized. null:
            as in the initial weights.
        num_heads: attention heads of the initial weights, if their file does not contain them and a
            head is not 64 wide.
        init_classes: class names of the initial weights, if these are a classifier whose file has
            no names; a list as for classes.
        carry_classes: if the initial weights are a classifier with other classes, keep the rows of
            the old head for classes with the same name; false, as published, for a head with random
            weights.
        classes: a file with the name of one class folder per line, in the order of class numbers,
            or timm:NAME, such as timm:imagenet-22k; null for the sorted folders of the data.
        num_classes: number of classes; null for the number in the training set.
        pooling: input of the head, the mean of the patches or the [CLS] token.
        init_scale: factor of the head's random initial weights.
        drop_path: rate of stochastic depth in the last block, increasing linearly from 0.
        balance: 0 shows every image once per epoch, 1 shows every class equally often; for values
            between, a class of c images is drawn in proportion to c ** (1 - balance).
        view: how training views are cropped.
        augment: augmentation of the views.
        mix: mixup and CutMix of a batch.
        optim: the optimiser and its schedule.
        layer_decay: ratio of the learning rates of a layer and the next one; null for none.
        average: decay of a moving average of the weights, which is validated and saved instead of
            the weights (published: off, or 0.9999); null for none.
        keep: save the weights with the best top-1 on the validation set, as published, or the last
            weights; without a validation set, the last.
        crop_ratio: side of the centre crop of validation images, as a share of the shorter side;
            null for the published values: 0.875, or 1 from 384 pixels on.
        validate_every: epochs between two validations; the last step always has one.
        run: where and how often to write.
        device: devices and precision.
    """

    data: DataConfig = DataConfig()
    init: str | None = None
    backbone: ViTConfig | None = None
    image_size: tuple[int, int] | None = None
    num_heads: int | None = None
    init_classes: str | None = None
    carry_classes: bool = False
    classes: str | None = None
    num_classes: int | None = None
    pooling: Literal["mean", "cls"] = "mean"
    init_scale: float = 0.001
    drop_path: float = 0.2
    balance: float = 0.0
    view: ViewConfig = ViewConfig(min_scale=0.08, color_jitter=0.0)
    augment: AugmentConfig = AugmentConfig()
    mix: MixConfig = MixConfig()
    optim: OptimConfig = OptimConfig(
        batch_size=1024,
        epochs=100,
        learning_rate=5e-4,
        final_rate=1e-6,
        warmup_epochs=20,
        betas=(0.9, 0.999),
        weight_decay=0.05,
    )
    layer_decay: float | None = 0.6
    average: float | None = None
    keep: Literal["best", "last"] = "best"
    crop_ratio: float | None = None
    validate_every: int = 1
    run: RunConfig = RunConfig()
    device: DeviceConfig = DeviceConfig()

    def __post_init__(self) -> None:
        if (self.init is None) == (self.backbone is None):
            raise ValueError(
                "give either initial weights, as in --model runs/pretrained or --model "
                "published:NAME, or a network to train from random weights (--backbone), got "
                + ("none" if self.init is None else "both")
            )
        if self.backbone is not None:
            for name in ("image_size", "num_heads"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name} is for --model; use backbone.{name} instead")
            if self.carry_classes or self.init_classes is not None:
                raise ValueError("init_classes and carry_classes are for --model")
            if self.backbone.drop_path:
                raise ValueError("backbone.drop_path is not used; use drop_path instead")
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"drop_path is {self.drop_path}; expected 0 or more and below 1")
        if not 0 <= self.balance <= 1:
            raise ValueError(f"balance is {self.balance}; expected 0 (as the data are) to 1")
        if self.num_classes is not None and self.num_classes < 2:
            raise ValueError(f"num_classes is {self.num_classes}; expected 2 or more")
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay is {self.layer_decay}; expected above 0 and at most 1")
        if self.average is not None and not 0 <= self.average < 1:
            raise ValueError(f"average is {self.average}; expected 0 or more and below 1")
        if self.validate_every < 1:
            raise ValueError(f"validate_every is {self.validate_every}; expected 1 epoch or more")
