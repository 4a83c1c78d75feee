"""Randomness without a state: what is drawn at a step is a pure function of seed, epoch, index."""

from __future__ import annotations

import hashlib
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

_LENT = threading.Lock()  # the global random states; a thread may read data beside the training


def epoch_order(length: int, seed: int, epoch: int) -> Tensor:
    """Draw the order in which epoch `epoch` visits a set. Returns: (length,) int64 permutation."""
    return torch.randperm(length, generator=_generator("order", seed, epoch))


def balanced_order(
    labels: Tensor, seed: int, epoch: int, balance: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Draw as many images as a set has, those of rare classes more often than others.

    Of a class of c images a share in proportion to c ** (1 - balance) is drawn: every class as
    often as any other at 1, every image once at 0; 0.5 is the square-root sampling of Mahajan et
    al. (2018). Drawing is systematic along the images sorted by class, within a class in random
    order: how often an image comes, and a class, is what is due to it, rounded up or down.

    Args:
        labels: (n,) int64, 0 or more
        balance: in [0, 1]

    Returns: (n,) int64 indices in random order; (n,) int64, the number of each among the draws of
        the same image, from 0, so that it gets a view of its own each time
    """
    n, generator = len(labels), _generator("balance", seed, epoch)
    shuffled = torch.randperm(n, generator=generator)
    images = shuffled[labels[shuffled].argsort(stable=True)]  # class by class
    counts = torch.bincount(labels).double()
    ends = (counts**-balance)[labels[images]].cumsum(0)  # each image has a piece of this length
    first = torch.rand((), generator=generator, dtype=torch.float64)
    points = (torch.arange(n, dtype=torch.float64) + first) * (ends[-1] / n)
    drawn = torch.searchsorted(ends, points, right=True).clamp_(max=n - 1)
    turns = torch.arange(n) - torch.searchsorted(drawn, drawn)  # since the image's first
    mixed = torch.randperm(n, generator=generator)
    return images[drawn[mixed]], turns[mixed]


def sample_generator(seed: int, epoch: int, index: int, repeat: int = 0) -> torch.Generator:
    """Give the random numbers of one image's augmentation in one epoch, or of its `repeat`-th."""
    return _generator("sample", seed, epoch, index, *([repeat] if repeat else []))


def step_generator(seed: int, step: int, purpose: str) -> torch.Generator:
    """Give the random numbers that one step needs for one purpose ("masks", "revival", ...)."""
    return _generator(f"step {purpose}", seed, step)


def _generator(domain: str, *numbers: int) -> torch.Generator:
    """Seed a generator by a hash, so that neighbouring numbers give unrelated streams."""
    text = f"{domain}:{':'.join(map(str, numbers))}".encode()
    generator = torch.Generator()
    generator.manual_seed(int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little"))
    return generator


@contextmanager
def seeded(generator: torch.Generator) -> Iterator[None]:
    """Seed the global states of Python, NumPy and torch (on the CPU) for a while, from a generator.

    What they were comes back at the end. One thread at a time.
    """
    with _LENT:
        python, numpy, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()
        seed = int(torch.randint(2**32, (), generator=generator))
        random.seed(seed)
        np.random.seed(seed)
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reach the GPUs too
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
            torch.set_rng_state(torch_state)


def seed_torch(generator: torch.Generator) -> None:
    """Seed torch's global states for good, on all devices; not amid a view that a thread draws."""
    with _LENT:
        torch.manual_seed(generator.initial_seed())
