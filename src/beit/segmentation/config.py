"""Settings of `beit segment`."""

from dataclasses import dataclass
from typing import Literal

from beit.nn.sliding import MapViewConfig
from beit.nn.vit import ViTConfig
from beit.run.device import DeviceConfig
from beit.run.directory import RunConfig
from beit.segmentation.optim import StepOptimConfig
from beit.segmentation.views import SegmentViewConfig


@dataclass(frozen=True)
class SegmentDataConfig:
    """The images and label maps (docs/segmentation.md).

    Args:
        train: images with label maps: ADE20K (folder or zip), a Pascal VOC folder, a folder of
            images and masks, shapes://COUNT, or a part of such a source: folder[:90%]
        validation: validation images, in the same form; of a set with splits, the validation split
            is used; empty for none
        maps: the folder of the training label maps, if they are not found from the images
        validation_maps: the folder of the validation label maps
        classes: the classes: a file, ade20k, voc, or a number; empty for the classes of the data
        reduce_zero_label: ignore 0 in the maps; classes are 1, 2, ...
        limit: maximum number of training images, a fixed random subset; null for all
        num_workers: processes that read images; 0 reads in the training process
        cache_gigabytes: keep decoded images in memory if the whole set fits into this size
        max_unreadable: stop if a larger share of the images cannot be read
    """

    train: str = ""
    validation: str = ""
    maps: str = ""
    validation_maps: str = ""
    classes: str = ""
    reduce_zero_label: bool = False
    limit: int | None = None
    num_workers: int = 2
    cache_gigabytes: float = 2.0
    max_unreadable: float = 0.01

    def __post_init__(self) -> None:
        if self.num_workers < 0:
            raise ValueError(f"num_workers must not be negative, got {self.num_workers}")
        if self.cache_gigabytes < 0:
            raise ValueError(f"cache_gigabytes must not be negative, got {self.cache_gigabytes}")
        if not 0 <= self.max_unreadable <= 1:
            raise ValueError(f"max_unreadable is a share in [0, 1], got {self.max_unreadable}")


@dataclass(frozen=True)
class HeadConfig:
    """The decoder; the defaults are those of the published base model.

    Args:
        kind: the published UPerNet with its pyramid, or a linear layer on each patch.
        layers: numbers of the four blocks, counted from 1, that feed the pyramid; null: as in the
            initial weights if these are a segmenter, else the published blocks at depth 12 and 24,
            or evenly spaced blocks.
        channels: channels of the decoder's feature maps; 0 for the backbone's width, as published.
        auxiliary: add an auxiliary head.
        auxiliary_channels: channels of the auxiliary head's feature map.
        auxiliary_weight: weight of the auxiliary head's loss.
        dropout: rate at which whole channels are dropped before a classification layer.
    """

    kind: Literal["upernet", "linear"] = "upernet"
    layers: tuple[int, ...] | None = None
    channels: int = 0
    auxiliary: bool = True
    auxiliary_channels: int = 256
    auxiliary_weight: float = 0.4
    dropout: float = 0.1

    def __post_init__(self) -> None:
        if not self.auxiliary_weight >= 0:
            raise ValueError(
                f"head.auxiliary_weight is {self.auxiliary_weight}; expected 0 or more"
            )


@dataclass(frozen=True)
class Config:
    """Settings of `beit segment`; the defaults are the published ADE20K recipe of v2 ViT-B/16.

    Args:
        data: images with label maps.
        init: initial weights: a run directory or weights file of any model with a ViT,
            published:NAME, hf://OWNER/NAME; the decoder of a segmenter is also used. null for
            random weights.
        backbone: the network to train from random weights; null if there are initial weights.
        image_size: (height, width) of crops; positions of the initial weights are resized. null: as
            in the initial weights.
        num_heads: attention heads of the initial weights, if their file does not contain them and a
            head is not 64 wide.
        mean: per-channel mean that normalises images in [0, 1]; null: as in the initial weights.
            Published: ImageNet's, for any initial weights.
        std: per-channel standard deviation, likewise.
        head: the decoder.
        drop_path: rate of stochastic depth in the last block, increasing linearly from 0.
        view: how training crops are drawn.
        optim: the optimiser and its schedule, in steps.
        layer_decay: ratio of the learning rates of a layer and the next one; null for none.
        validate_every: steps between two validations; the last step always has one.
        validation_views: sliding windows and scales for validation images.
        validation_batch: validation images per batch; more than one needs images of one size.
        keep: save the weights with the best mIoU on the validation set, or the last weights;
            without a validation set, the last.
        run: where and how often to write.
        device: devices and precision.
    """

    data: SegmentDataConfig = SegmentDataConfig()
    init: str | None = None
    backbone: ViTConfig | None = None
    image_size: tuple[int, int] | None = None
    num_heads: int | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    head: HeadConfig = HeadConfig()
    drop_path: float = 0.15
    view: SegmentViewConfig = SegmentViewConfig()
    optim: StepOptimConfig = StepOptimConfig()
    layer_decay: float | None = 0.75
    validate_every: int = 16_000
    validation_views: MapViewConfig = MapViewConfig()
    validation_batch: int = 1
    keep: Literal["best", "last"] = "best"
    run: RunConfig = RunConfig()
    device: DeviceConfig = DeviceConfig()

    def __post_init__(self) -> None:
        if (self.init is None) == (self.backbone is None):
            raise ValueError(
                "give either initial weights (--model SOURCE) or a network to train from random "
                "weights (--backbone), not " + ("neither" if self.init is None else "both")
            )
        if self.backbone is not None:
            for name in ("image_size", "num_heads", "mean", "std"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name} is for --model; use backbone.{name} instead")
            if self.backbone.drop_path:
                raise ValueError("backbone.drop_path is not used; use drop_path instead")
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"drop_path is {self.drop_path}; expected 0 or more and below 1")
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay is {self.layer_decay}; expected above 0 and at most 1")
        if self.validate_every < 1:
            raise ValueError(f"validate_every is {self.validate_every}; expected 1 step or more")
        if self.validation_batch < 1:
            raise ValueError(f"validation_batch is {self.validation_batch}; expected 1 or more")
