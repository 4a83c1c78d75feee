"""The images of the demo: a folder, CIFAR-10, or, where nothing can be fetched, drawings."""

from pathlib import Path
from typing import NamedTuple

from beit.fetching import fetch

LARGER = ("image_size=[64,64]", "patch_size=16")  # as many patches as the preset's, for CIFAR-10
TRAIN_NAMES = ("train", "training")
TEST_NAMES = ("val", "valid", "validation", "test")
DRAWINGS = Path(__file__).parent / "drawings"
INSTEAD = (
    "The demo goes on with 2,018 drawings that come with the package. Photos of your own: "
    "beit demo --data FOLDER"
)


class Sets(NamedTuple):
    """Data strings, and whether they are CIFAR-10."""

    train: str
    test: str
    cifar: bool = False

    @property
    def vit(self) -> tuple[str, ...]:
        """Options of the ViTs that differ from the preset's."""
        return () if self.cifar else LARGER


def find_sets(data: str, cache: str) -> Sets:
    """Choose the training and test images: a folder's own split, or its first 80 % and the rest.

    Args:
        data: empty for CIFAR-10, kept in the folder `cache`, or the drawings of the package
    """
    if not data:
        try:
            files = fetch.run(fetch.Config(name="cifar10", directory=cache))
        except OSError as error:
            print(f"{error}\n{INSTEAD}")
            return Sets(str(DRAWINGS / "train.parquet"), str(DRAWINGS / "test.parquet"))
        return Sets(str(files.train), f"{files.test}[:50%]", cifar=True)
    folder = Path(data)
    train = next((folder / name for name in TRAIN_NAMES if (folder / name).is_dir()), None)
    test = next((folder / name for name in TEST_NAMES if (folder / name).is_dir()), None)
    if train and test:
        return Sets(str(train), str(test))
    return Sets(f"{data}[:80%]", f"{data}[80%:]")
