"""One pass over a validation set; unreadable images are skipped and counted."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Protocol

from lightning_fabric import Fabric
from torch import distributed

from beit.data.batch import Batch
from beit.data.prefetch import Prefetch
from beit.data.unreadable import TooManyUnreadable, Unreadable, described, readable


class ImageBatches(Protocol):
    """This process's batches of an image set: `beit.data.batches.EvalBatches`."""

    num_images: int  # of the whole set
    source: Any  # beit.data.source.Source

    def __iter__(self) -> Iterator[Batch]: ...


class Reading:
    """Iterates over batches on the device, and warns of images that cannot be read.

    If too many cannot be read, all processes raise TooManyUnreadable at the end of the pass: one
    that raised alone would leave the others waiting.
    """

    def __init__(
        self,
        batches: ImageBatches,
        fabric: Fabric,
        max_unreadable: float,
        warn: Callable[[str], None],
        show: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        """Read nothing yet.

        Args:
            max_unreadable: largest share of the set that may be unreadable
            warn: shows a line about an image
            show: shows how many images of how many are done
        """
        self._batches, self._fabric, self._warn, self._show = batches, fabric, warn, show
        self._unreadable = Unreadable(batches.num_images, max_unreadable)

    def __iter__(self) -> Iterator[Batch]:
        stream, done = Prefetch(self._batches, self._fabric.device), 0
        self._show(done, self._unreadable.total)
        with suppress(TooManyUnreadable):  # raised below
            for batch in readable(stream, self._unreadable, self._warn):
                yield batch
                done += len(batch.indices) * self._fabric.world_size
                self._show(min(done, self._unreadable.total), self._unreadable.total)
        self._unreadable.note(shared_names(self._fabric, self._unreadable.names))

    @property
    def unreadable(self) -> int:
        """The number of images that could not be read, by any process after a whole pass."""
        return len(self._unreadable.names)

    def counts(self) -> dict[str, float]:
        """Count the images over all processes after a pass, if any could not be read.

        Returns: `val_images`, the number read, and `val_unreadable`; empty if all were read

        Raises:
            TooManyUnreadable: none can be read.
        """
        total, count = self._unreadable.total, self.unreadable
        if count == total:
            why = described(self._unreadable.names, "Repair or replace them")
            raise TooManyUnreadable(f"none of {total} validation images can be read: {why}")
        return {"val_images": total - count, "val_unreadable": count} if count else {}


def shared_names(fabric: Fabric, names: set[str]) -> set[str]:
    """Return the union of the names that each process gives."""
    everyone = [names] * fabric.world_size
    if fabric.world_size > 1:
        distributed.all_gather_object(everyone, names)
    return set().union(*everyone)
