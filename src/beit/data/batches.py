"""Batches of views: the same images in the same order whatever the workers, ranks and restarts."""

from __future__ import annotations

import multiprocessing
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from beit.data.batch import Batch
from beit.data.decoding import UnreadableImage
from beit.data.order import balanced_order, epoch_order, sample_generator
from beit.data.sources import Source

_MAX_REPLACEMENTS = 100  # unreadable images in a row


@dataclass(frozen=True)
class DataConfig:
    """What to read and how.

    Args:
        train: training images: a folder, *.parquet or shapes://COUNT, or a part: folder[:90%]
        validation: validation images, likewise; empty for none
        limit: use so many training images, a fixed random subset; null for all
        num_workers: processes that decode and cut out images; 0 does it in the training process
        cache_gigabytes: a set that fits is decoded into memory once
        max_unreadable: largest share of unreadable images that does not stop the run
    """

    train: str = ""
    validation: str = ""
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


class Key(NamedTuple):
    """What one batch is made of."""

    epoch: int
    indices: list[int]
    repeats: list[int]  # which of the epoch's views of each image it is, from 0


FIELDS = ("images", "target_images")  # of a batch, which the views of an image fill


class TrainBatches:
    """Training batches from `start_step` to `num_steps`, `accumulate` for each step.

    Steps count from 0 over all epochs. The images of a step are a consecutive piece of its epoch's
    order, cut into batches: micro-batch `a` of rank `r` is number `a * world_size + r`. So ranks,
    accumulation and batch size may trade places without a change of what a step sees. The rest of
    an epoch that does not fill a step is left out (it is another one in each epoch).

    With `repeats` a step has that many views of each of its images, one after all images had theirs
    (repeated augmentation, Hoffer et al. 2020). Steps an epoch stay as many, so an epoch shows
    1/repeats of the images, as in the usual implementation.

    With `balance` rare classes are drawn more often, see `balanced_order`; an image that an epoch
    has several times gets a view of its own each time. At 0 the order is `epoch_order`.
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
                "use a smaller batch or more images"
            )
        if repeats < 1 or step_size % repeats:
            raise ValueError(
                f"a step of {step_size} images does not divide into {repeats} views of each; "
                f"use a batch that is a multiple of {repeats}"
            )
        if not 0 <= balance <= 1:
            raise ValueError(f"balance is {balance}; expected 0 (as the data are) to 1 (all alike)")
        self._labels = source.labels if balance else None
        if balance and (self._labels is None or bool((self._labels < 0).any())):
            raise ValueError("balance needs the class of every image; this set has some without")
        self.start_step, self.num_steps, self.accumulate = start_step, num_steps, accumulate
        self._repeats, self._balance = repeats, balance
        self._length, self._seed = len(source), seed
        self._batch_size, self._rank, self._world_size = batch_size, rank, world_size
        self._loader = _loader(
            _TrainReader(source, views, seed, fields), self._keys, len(self), num_workers
        )

    def __len__(self) -> int:
        return max(0, self.num_steps - self.start_step) * self.accumulate

    def __iter__(self) -> Iterator[Batch]:
        return _batches(self._loader)

    def _keys(self) -> Iterator[Key]:
        drawn, order, turns = -1, torch.empty(0), torch.empty(0)
        distinct = self._batch_size * self.accumulate * self._world_size // self._repeats
        for step in range(self.start_step, self.num_steps):
            epoch, position = divmod(step, self.steps_per_epoch)
            if epoch != drawn:
                drawn, (order, turns) = epoch, self._order(epoch)
            piece = slice(position * distinct, (position + 1) * distinct)
            images, earlier = order[piece].tolist(), turns[piece].tolist()
            for micro in range(self.accumulate):
                first = (micro * self._world_size + self._rank) * self._batch_size
                places = [divmod(first + offset, distinct) for offset in range(self._batch_size)]
                yield Key(
                    epoch,
                    [images[place] for _, place in places],
                    [earlier[place] * self._repeats + view for view, place in places],
                )

    def _order(self, epoch: int) -> tuple[Tensor, Tensor]:
        """Give the images of an epoch, and how often it has each of them before."""
        if self._labels is not None:
            return balanced_order(self._labels, self._seed, epoch, self._balance)
        order = epoch_order(self._length, self._seed, epoch)
        return order, torch.zeros_like(order)


class EvalBatches:
    """Every image once, in order; of several ranks each takes every world_size-th batch.

    Images that cannot be read are left out, and `Batch.unreadable` names them. The last batch may
    be short, and ranks may get one batch more or less than others. `batches` selects batches by
    their numbers instead. Most callers read them through `readable`.
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
        self.num_images, self._batch_size = len(source), batch_size
        self._loader = _loader(
            _EvalReader(source, view, fields), self._keys, len(self), num_workers
        )

    def __len__(self) -> int:
        return len(self._firsts)

    def __iter__(self) -> Iterator[Batch]:
        return _batches(self._loader)

    def _keys(self) -> Iterator[Key]:
        for first in self._firsts:
            indices = list(range(first, min(first + self._batch_size, self.num_images)))
            yield Key(0, indices, [0] * len(indices))


class _Failure(NamedTuple):
    """An error of the user's, carried out of a worker without its traceback."""

    message: str


class _TrainReader(Dataset[Batch | _Failure]):
    def __init__(
        self, source: Source, views: Callable[..., Any], seed: int, fields: tuple[str, ...]
    ) -> None:
        self.source, self.views, self.seed, self.fields = source, views, seed, fields
        self.labels = source.labels

    def __getitem__(self, key: Key) -> Batch | _Failure:
        indices, unreadable, seen = list[int](), list[str](), list[tuple[Tensor, ...]]()
        for index, repeat in zip(key.indices, key.repeats, strict=True):
            read = self._read(index, unreadable)
            if isinstance(read, _Failure):
                return read
            image, actual = read
            seen.append(self.views(image, sample_generator(self.seed, key.epoch, index, repeat)))
            indices.append(actual)
        return _batch(seen, self.fields, self.labels, indices, unreadable)

    def _read(self, index: int, unreadable: list[str]) -> tuple[Tensor, int] | _Failure:
        """Read an image, or the next one in the source's order that can be read, and its index."""
        first = None
        for attempt in range(min(len(self.source), _MAX_REPLACEMENTS)):
            actual = (index + attempt) % len(self.source)
            try:
                return self.source.image(actual), actual
            except UnreadableImage as error:
                unreadable.append(str(error))
                first = first or str(error)
            except ValueError as error:  # a label map with unknown classes, for example
                return _Failure(str(error))
        return _Failure(
            f"{attempt + 1} images in a row cannot be read, the first of them is {first}; "
            "repair or remove them"
        )


class _EvalReader(Dataset[Batch | _Failure]):
    def __init__(
        self, source: Source, view: Callable[[Tensor], Any], fields: tuple[str, ...]
    ) -> None:
        self.source, self.view, self.fields = source, view, fields
        self.labels = source.labels

    def __getitem__(self, key: Key) -> Batch | _Failure:
        indices, unreadable, seen = list[int](), list[str](), list[tuple[Tensor, ...]]()
        for index in key.indices:
            try:
                view = self.view(self.source.image(index))
            except UnreadableImage as error:
                unreadable.append(str(error))
                continue
            except ValueError as error:  # a label map with unknown classes, for example
                return _Failure(str(error))
            seen.append(view if isinstance(view, tuple) else (view,))
            indices.append(index)
        return _batch(seen, self.fields, self.labels, indices, unreadable)


def _batch(
    views: list[tuple[Tensor, ...]],
    fields: tuple[str, ...],
    labels: Tensor | None,
    shown: list[int],
    unreadable: list[str],
) -> Batch:
    """Stack the views of images, one tensor for each of the fields."""
    indices = torch.tensor(shown, dtype=torch.int64)
    known = torch.full_like(indices, -1) if labels is None else labels[indices]
    if not views:
        nothing = torch.empty(0, 3, 0, 0, dtype=torch.uint8)
        return Batch(nothing, nothing, known, indices, unreadable)
    stacked: dict[str, Tensor] = {}
    for place, name in enumerate(fields):
        same = place > 0 and views[0][place] is views[0][0]  # both views of one size
        tensors = [view[place] for view in views]
        stacked[name] = stacked[fields[0]] if same else torch.stack(tensors)
    stacked.setdefault("target_images", stacked["images"])
    return Batch(**stacked, labels=known, indices=indices, unreadable=unreadable)


class _Keys(Sampler[Key]):
    def __init__(self, keys: Callable[[], Iterator[Key]], length: int) -> None:
        self._keys, self._length = keys, length

    def __iter__(self) -> Iterator[Key]:
        return self._keys()

    def __len__(self) -> int:
        return self._length


def _loader(
    reader: Dataset[Batch | _Failure],
    keys: Callable[[], Iterator[Key]],
    length: int,
    num_workers: int,
) -> DataLoader[Batch | _Failure]:
    """Build one loader for the whole run: a key is a batch, so workers live as long as it does."""
    # Forked workers share what is decoded in memory; elsewhere it would be copied to each.
    fork = num_workers > 0 and sys.platform == "linux"
    with warnings.catch_warnings():
        # A machine with fewer cores than workers is the user's choice, shown as waiting time.
        warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
        return DataLoader(
            reader,
            batch_size=None,
            sampler=cast(Any, _Keys(keys, length)),
            num_workers=num_workers,
            collate_fn=cast(Any, _unchanged),
            generator=torch.Generator(),  # the loader draws a seed; not from the global state
            multiprocessing_context=multiprocessing.get_context("fork") if fork else None,
        )


def _unchanged(batch: Batch | _Failure) -> Batch | _Failure:
    return batch


def _batches(loader: DataLoader[Batch | _Failure]) -> Iterator[Batch]:
    with warnings.catch_warnings():
        # Python 3.12 and later warn of a fork beside threads; the workers use none of them.
        warnings.filterwarnings("ignore", ".*multi-threaded", DeprecationWarning)
        warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
        batches = iter(loader)
    for batch in batches:
        if isinstance(batch, _Failure):
            raise ValueError(batch.message)
        yield batch
