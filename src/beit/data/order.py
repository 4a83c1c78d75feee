"""Stateless sampling: order and random numbers are pure functions of seed, epoch, index or step."""

import hashlib
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

_LOCK = threading.Lock()  # of the global states: a thread can read data beside the training


def epoch_order(length: int, seed: int, epoch: int) -> Tensor:
    """Draw the order of the images of an epoch. Returns: (length,) int64 permutation."""
    return torch.randperm(length, generator=generator_of("order", seed, epoch))


def sample_generator(seed: int, epoch: int, index: int, repeat: int = 0) -> torch.Generator:
    """Return the generator of one view of an image: its augmentation in an epoch and repetition."""
    return generator_of("sample", seed, epoch, index, *([repeat] if repeat else []))


def step_generator(seed: int, step: int, purpose: str) -> torch.Generator:
    """Return the generator of a step for one purpose ("masks", "revival", ...)."""
    return generator_of(f"step {purpose}", seed, step)


def generator_of(domain: str, *numbers: int) -> torch.Generator:
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
