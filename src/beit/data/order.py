"""Stateless sampling: order and random numbers are pure functions of seed, epoch, index or step."""

import hashlib
import random
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

_LOCK = threading.Lock()  # of the global states: a thread can read data beside the training


def epoch_order(length: int, seed: int, epoch: int) -> Tensor:
    """Draw the order of the images of an epoch. Returns: (length,) int64 permutation."""
    return torch.randperm(length, generator=_generator("order", seed, epoch))


def balanced_order(
    labels: Tensor, seed: int, epoch: int, balance: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Draw n of n images, those of rare classes more often than others.

    A class of c images is drawn in proportion to c ** (1 - balance): at 0 every image once, at 1
    every class equally often. 0.5 is the square-root sampling of Mahajan et al. (2018). Systematic
    sampling of the images, sorted by class and in random order within a class, draws each image and
    each class its expected number of times, rounded up or down.

    From labels (n,) int64, 0 or more. Returns: (n,) int64 indices in random order; (n,) int64, the
    number of each draw among the draws of its image, from 0, which gives each draw its own view.
    """
    counts = torch.bincount(labels).double()
    return _weighted(labels, counts**-balance, _generator("balance", seed, epoch))


def mixed_order(
    origins: Tensor, shares: Sequence[float], seed: int, epoch: int
) -> tuple[Tensor, Tensor]:
    """Draw n of n images from several sets, each set its share of the draws, an image as another.

    From origins (n,) int64, the number of each image's set. Returns what `balanced_order` does; no
    set is drawn more than one time more or less than its share, and no image.
    """
    counts = torch.bincount(origins, minlength=len(shares)).double()
    weights = torch.tensor(shares, dtype=torch.float64) / counts
    return _weighted(origins, weights, _generator("mixture", seed, epoch))


def _weighted(groups: Tensor, weights: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw n of n images by the weight of an image of each group, as `balanced_order` says."""
    n = len(groups)
    shuffled = torch.randperm(n, generator=generator)
    images = shuffled[groups[shuffled].argsort(stable=True)]  # group by group
    ends = weights[groups[images]].cumsum(0)  # ends of the intervals of the images
    offset = torch.rand((), generator=generator, dtype=torch.float64)
    points = (torch.arange(n, dtype=torch.float64) + offset) * (ends[-1] / n)
    drawn = torch.searchsorted(ends, points, right=True).clamp_(max=n - 1)
    repeats = torch.arange(n) - torch.searchsorted(drawn, drawn)  # draws since the image's first
    order = torch.randperm(n, generator=generator)
    return images[drawn[order]], repeats[order]


def sample_generator(seed: int, epoch: int, index: int, repeat: int = 0) -> torch.Generator:
    """Return the generator of one view of an image: its augmentation in an epoch and repetition."""
    return _generator("sample", seed, epoch, index, *([repeat] if repeat else []))


def step_generator(seed: int, step: int, purpose: str) -> torch.Generator:
    """Return the generator of a step for one purpose ("masks", "revival", ...)."""
    return _generator(f"step {purpose}", seed, step)


def _generator(domain: str, *numbers: int) -> torch.Generator:
    """Return a generator seeded by a hash: neighbouring numbers give unrelated streams."""
    text = f"{domain}:{':'.join(map(str, numbers))}".encode()
    generator = torch.Generator()
    generator.manual_seed(int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little"))
    return generator


@contextmanager
def seeded(generator: torch.Generator) -> Iterator[None]:
    """Seed the global states of Python, NumPy and torch (CPU) from a generator inside a context.

    The previous states are restored at the end. Only one thread can be inside at a time.
    """
    with _LOCK:
        python, numpy, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()
        seed = int(torch.randint(2**32, (), generator=generator))
        random.seed(seed)
        np.random.seed(seed)
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the GPUs too
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
            torch.set_rng_state(torch_state)


def seed_torch(generator: torch.Generator) -> None:
    """Seed torch's global states on all devices, but not while a thread is inside `seeded`."""
    with _LOCK:
        torch.manual_seed(generator.initial_seed())
