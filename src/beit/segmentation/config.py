"""Settings of `beit segment`."""

from dataclasses import dataclass
from typing import Literal

from beit.nn.sliding import MapViewConfig
from beit.nn.vit import ViTConfig
from beit.run.device import DeviceConfig
from beit.run.directory import RunConfig
from beit.run.optim import StepOptimConfig
from beit.segmentation.views import SegmentViewConfig


@dataclass(frozen=True)
class SegmentDataConfig:
    """What to read and how (docs/segmentation.md).

    Args:
        train: images with label maps: ADE20K (folder or zip), a Pascal VOC folder, a folder of
            images and masks, shapes://COUNT, or a part of one: folder[:90%]
        validation: likewise, the validation split of a set that has several; empty for none
        maps: the folder of the training label maps, where `train` does not lead to it
        validation_maps: of those of validation
        classes: the list of classes: a file, ade20k, voc, or how many; empty for what the data say
        reduce_zero_label: in the maps 0 does not count and 1, 2, ... are the classes
        limit: use so many training images, a fixed random subset; null for all
        num_workers: processes that decode and cut out images; 0 does it in the training process
        cache_gigabytes: a set that fits is decoded into memory once
        max_unreadable: largest share of unreadable images that does not stop the run
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
    """What stands on the backbone; the defaults are the published base model's.

    Args:
        kind: the published UPerNet with its pyramid, or one linear layer on each patch.
        layers: numbers of four blocks, from 1, that feed the pyramid; null for those of the start,
            the published ones at depth 12 and 24, evenly spaced ones at others.
        channels: of the decoder's maps; 0 for the backbone's width, as published.
        auxiliary: whether there is an auxiliary head.
        auxiliary_channels: of its map.
        auxiliary_weight: of its loss.
        dropout: rate at which whole maps are dropped before a classification layer.
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
        init: what to start from: a run directory or weights file of any model with a ViT,
            published:NAME, hf://OWNER/NAME; of a segmenter its decoder comes along, too. Null to
            start from fresh weights.
        backbone: the network to start afresh; null with init.
        image_size: (height, width) of a crop, to which the positions of init are carried; null for
            its own.
        num_heads: of init, where its file does not say it and a head is not 64 wide.
        mean: per-channel mean that the segmenter takes off images in [0, 1]; null for that of
            init. Published: ImageNet's, whatever the start had.
        std: likewise the deviation that it divides by.
        head: what stands on the backbone.
        drop_path: rate of stochastic depth in the last block, growing linearly from 0.
        view: how a training crop is drawn.
        optim: the optimiser and its schedule, in steps.
        layer_decay: learning rate of a layer over that of the layer after it; null for all alike.
        validate_every: steps between two validations; the end always has one.
        validation_views: how validation images are seen.
        validation_batch: validation images at a time; more than one need images of one size.
        keep: the weights of the best mIoU on the validation set, or the last; without a validation
            set the last.
        run: where and how often to write.
        device: what to compute on.
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
                "give what to start from (--init SOURCE) or the numbers of a network that starts "
                "afresh (--backbone), not " + ("neither" if self.init is None else "both")
            )
        if self.backbone is not None:
            for name in ("image_size", "num_heads", "mean", "std"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name} is for --init; say backbone.{name} instead")
            if self.backbone.drop_path:
                raise ValueError("backbone.drop_path is not used; say drop_path instead")
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"drop_path is {self.drop_path}; expected 0 or more and below 1")
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay is {self.layer_decay}; expected above 0 and at most 1")
        if self.validate_every < 1:
            raise ValueError(f"validate_every is {self.validate_every}; expected 1 step or more")
        if self.validation_batch < 1:
            raise ValueError(f"validation_batch is {self.validation_batch}; expected 1 or more")
