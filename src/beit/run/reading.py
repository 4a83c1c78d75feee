"""One pass over a validation set; unreadable images are skipped and counted."""

from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from lightning_fabric import Fabric

from beit.data.batch import Batch
from beit.data.prefetch import prefetch
from beit.data.unreadable import Unreadable, readable
from beit.run.device import summed


class ImageBatches(Protocol):
    """This process's batches of an image set: `beit.data.batches.EvalBatches`."""

    num_images: int  # of the whole set

    def __iter__(self) -> Iterator[Batch]: ...


class Reading:
    """Iterates over batches on the device, and warns of images that cannot be read."""

    def __init__(
        self,
        batches: ImageBatches,
        fabric: Fabric,
        max_unreadable: float,
        warn: Callable[[str], None],
    ) -> None:
        """Read nothing yet.

        Args:
            max_unreadable: largest share of the set that may be unreadable
            warn: shows a line about an image
        """
        self._batches, self._fabric, self._warn = batches, fabric, warn
        self._unreadable = Unreadable(batches.num_images, max_unreadable)

    def __iter__(self) -> Iterator[Batch]:
        stream = prefetch(self._batches, self._fabric.device)
        return readable(stream, self._unreadable, self._warn)

    @property
    def unreadable(self) -> int:
        """The number of images that this process could not read."""
        return len(self._unreadable.names)

    def counts(self) -> dict[str, float]:
        """Count the images over all processes, if any could not be read.

        Returns: `val_images`, the number read, and `val_unreadable`; empty if all were read

        Raises:
            ValueError: too many images, or all, cannot be read.
        """
        total, names = self._unreadable.total, self._unreadable.names
        count = int(summed(self._fabric, torch.tensor(len(names), device=self._fabric.device)))
        self._unreadable.check(count)
        if count == total:
            first = min(names, default="see the other processes")
            raise ValueError(f"none of {total} validation images can be read: {first}")
        return {"val_images": total - count, "val_unreadable": count} if count else {}
