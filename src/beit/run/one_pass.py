"""One pass of a verb over the images of a set."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from beit.data.batch import Batch
from beit.data.batches import EvalBatches, TrainBatches
from beit.data.prefetch import Prefetch
from beit.data.unreadable import Unreadable, readable
from beit.run.progress import Progress

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def one_pass(
    fabric: "Fabric",
    batches: EvalBatches | TrainBatches,
    max_unreadable: float,
    progress: Progress,
) -> Iterator[Batch]:
    """Yield the batches that have images, on the device; show the progress after each.

    Unreadable images are left out and reported.

    Raises:
        TooManyUnreadable: they are a larger share of the set than `max_unreadable`
    """
    loader = Prefetch(batches, fabric.device)
    unreadable = Unreadable(batches.num_images, max_unreadable)
    for step, batch in enumerate(loader, start=1):
        yield from readable([batch], unreadable, progress.warn)  # none if it has no images
        progress.update(step, {}, len(batch.indices) * fabric.world_size, loader.wait_seconds)
