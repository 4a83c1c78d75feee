"""Batches of views, the same for any number of workers and processes and after any restart."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from beit.data.batch import Batch
from beit.data.mixture import mixture_of
from beit.data.order import epoch_order
from beit.data.prefetch import on_device
from beit.data.reader import Key, Reader, with_colours
from beit.data.resident import ResidentReader, resident_reader
from beit.data.source import Source, UnreadableImage
from beit.data.unreadable import described
from beit.data.weighted_order import balanced_order, mixed_order
from beit.data.workers import computed

FIELDS = ("images", "target_images")  # fields of a batch that hold the views of an image


@dataclass(frozen=True)
class DataConfig:
    """Data sets and how to read them.

    Args:
        train: training images: a folder, a table (.csv, .parquet), *.tar, a zip or shapes://COUNT;
            a part of a source: folder[:90%]; with options: folder?range=0:4095 (docs/data.md); or
            several sources with weights: {folder: 0.7, *.tar: 0.3}
        validation: validation images, in the same form; empty for none
        limit: number of training images to use, a fixed random subset; null for all
        num_workers: processes that decode and crop images, for each training process; 0: that
            process itself
        cache_gigabytes: keep decoded images in memory if the whole set fits into this size
        shrink: shrink images to the size that the largest view needs, and keep shrunk image files
            on disk
        shrink_cache: folder of shrunk images, shared by runs; empty for a folder in the user's
            cache
        shrink_gigabytes: largest size of that folder; 0 to keep nothing on disk
        max_unreadable: largest share of unreadable images; above it the run stops
    """

    train: str = ""
    validation: str = ""
    limit: int | None = None
    num_workers: int = 2
    cache_gigabytes: float = 2.0
    shrink: bool = False
    shrink_cache: str = ""
    shrink_gigabytes: float = 20.0
    max_unreadable: float = 0.01

    def __post_init__(self) -> None:
        for name in ("num_workers", "cache_gigabytes", "shrink_gigabytes"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if not 0 <= self.max_unreadable <= 1:
            raise ValueError(f"max_unreadable is a share in [0, 1], got {self.max_unreadable}")


class TrainBatches:
    """Training batches from `start_step` to `num_steps`, `accumulate` for each step.

    Steps count from 0 over all epochs. The images of a step are a consecutive slice of its epoch's
    order, cut into batches: micro-batch `a` of rank `r` is number `a * world_size + r`. A step has
    the same images for any split of its size into ranks, accumulation and batch size. The rest of
    an epoch that does not fill a step is left out; it differs in each epoch.

    With `repeats`, a step has that many views of each of its images (repeated augmentation, Hoffer
    et al. 2020): first one view of every image, then the next of every image. The number of steps
    does not change, so an epoch shows 1/repeats of the images, as in the usual implementation.

    With `balance`, rare classes are drawn more often, see `balanced_order`; each repetition of an
    image in an epoch has its own view. At 0 the order is `epoch_order`, of a mixture `mixed_order`.

    Batches are on the CPU, or on a CUDA `device`, which then changes their colours, and cuts their
    crops if all images have one size and are in memory.
    """

    def __init__(
        self,
        source: Source,
        views: Callable[[Tensor, torch.Generator], tuple[Tensor, ...]],
        *,
        batch_size: int,
        seed: int,
        start_step: int,
        num_steps: int,
        accumulate: int = 1,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        repeats: int = 1,
        balance: float = 0.0,
        fields: tuple[str, ...] = FIELDS,
        device: torch.device | str = "cpu",
    ) -> None:
        if batch_size < 1 or accumulate < 1 or not 0 <= rank < world_size:
            raise ValueError(
                "batch_size and accumulate must be at least 1 and rank in [0, world_size), got "
                f"batch_size {batch_size}, accumulate {accumulate}, rank {rank} of {world_size}"
            )
        step_size = batch_size * accumulate * world_size
        self.steps_per_epoch = len(source) // step_size
        if not self.steps_per_epoch:
            raise ValueError(
                f"a step takes {step_size} images ({batch_size} a batch x {accumulate} accumulated "
                f"x {world_size} processes), but there are only {len(source)}; "
                "give a smaller optim.batch_size, or more images"
            )
        if repeats < 1 or step_size % repeats:
            raise ValueError(
                f"a step of {step_size} images does not divide into {repeats} views of each; "
                f"use a batch that is a multiple of {repeats}"
            )
        if not 0 <= balance <= 1:
            raise ValueError(f"balance is {balance}; expected 0 (natural) to 1 (uniform)")
        self._labels = source.labels if balance else None
        if balance and (self._labels is None or bool((self._labels < 0).any())):
            raise ValueError("balance needs the class of every image; some images have no label")
        self._mixture = mixture_of(source)
        if balance and self._mixture is not None:
            raise ValueError("balance and a mixture both say how often images come; leave one out")
        self.start_step, self.num_steps, self.accumulate = start_step, num_steps, accumulate
        self._repeats, self._balance = repeats, balance
        self._batch_size, self._rank, self._world_size = batch_size, rank, world_size
        self._reader, self._num_workers = Reader(source, views, fields, seed), num_workers
        self._device = torch.device(device)
        self._resident = resident_reader(source, views, seed, self._device)
        self._seed, self.source, self.num_images = seed, source, len(source)
        self._images_per_step = step_size // repeats

    def __len__(self) -> int:
        return max(0, self.num_steps - self.start_step) * self.accumulate

    @property
    def reading(self) -> tuple[Reader, ResidentReader | None, torch.device]:
        """How batches are read: image by image, or if it is not None whole; and their device."""
        return self._reader, self._resident, self._device

    def read_with(self, reader: Reader) -> None:
        """Read images with another reader."""
        self._reader = reader

    def __iter__(self) -> Iterator[Batch]:
        reader, resident, device = self._reader, self._resident, self._device
        todo = (self._keys(), self._num_workers, reader.named)
        if device.type != "cuda":
            return computed(resident or reader, *todo)
        if resident is not None:
            images = resident.images.to(device)
            return (resident.cut(drawn, images) for drawn in computed(resident.draw, *todo))
        read = computed(reader.read, *todo)
        return (with_colours(on_device(batch, device), changes) for batch, changes in read)

    def _keys(self) -> Iterator[Key]:
        order_epoch, order, repeats = -1, torch.empty(0), torch.empty(0)  # images; earlier draws
        distinct = self._images_per_step
        for step in range(self.start_step, self.num_steps):
            epoch, position = divmod(step, self.steps_per_epoch)
            if epoch != order_epoch and self._labels is not None:
                order, repeats = balanced_order(self._labels, self._seed, epoch, self._balance)
            elif epoch != order_epoch and self._mixture is not None:
                order, repeats = mixed_order(*self._mixture, self._seed, epoch)
            elif epoch != order_epoch:
                order = epoch_order(self.num_images, self._seed, epoch)
                repeats = torch.zeros_like(order)
            order_epoch = epoch
            step_slice = slice(position * distinct, (position + 1) * distinct)
            images, earlier = order[step_slice].tolist(), repeats[step_slice].tolist()
            for micro in range(self.accumulate):
                first = (micro * self._world_size + self._rank) * self._batch_size
                places = [divmod(first + offset, distinct) for offset in range(self._batch_size)]
                views = [earlier[place] * self._repeats + view for view, place in places]
                yield Key(epoch, [images[place] for _, place in places], views)


class EvalBatches:
    """Every image once, in order; each rank gets every world_size-th batch.

    Unreadable images are left out and named in `Batch.unreadable`. The last batch can be smaller,
    and ranks can differ by one batch. `batches` selects batches by their numbers instead. Most
    callers wrap the batches in `readable`.
    """

    def __init__(
        self,
        source: Source,
        view: Callable[[Tensor], Tensor | tuple[Tensor, ...]],
        batch_size: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        batches: Sequence[int] | None = None,
        fields: tuple[str, ...] = FIELDS[:1],
    ) -> None:
        if batch_size < 1 or not 0 <= rank < world_size:
            raise ValueError(
                "batch_size must be at least 1 and rank in [0, world_size), "
                f"got batch_size {batch_size}, rank {rank} of {world_size}"
            )
        self._firsts: Sequence[int] = range(rank * batch_size, len(source), world_size * batch_size)
        if batches is not None:
            self._firsts = [number * batch_size for number in batches]
        self.source, self.num_images, self._batch_size = source, len(source), batch_size
        self._reader, self._num_workers = Reader(source, view, fields, None), num_workers

    def __len__(self) -> int:
        return len(self._firsts)

    def __iter__(self) -> Iterator[Batch]:
        return computed(self._reader, self._keys(), self._num_workers, self._reader.named)

    def _keys(self) -> Iterator[Key]:
        for first in self._firsts:
            indices = list(range(first, min(first + self._batch_size, self.num_images)))
            yield Key(0, indices, [0] * len(indices))


def first_images(source: Source, view: Callable[[Tensor], Tensor], count: int) -> Tensor:
    """Return the first `count` readable images (B, 3, H, W) uint8; ValueError if there is none."""
    images, unreadable = list[Tensor](), list[str]()
    for index in range(len(source)):
        try:
            images.append(view(source.image(index)))
        except UnreadableImage as error:
            unreadable.append(str(error))
        if len(images) == count:
            break
    if not images:
        why = described(unreadable, "Repair or replace them")
        raise ValueError(f"none of {len(source)} images can be read: {why}")
    return torch.stack(images)
