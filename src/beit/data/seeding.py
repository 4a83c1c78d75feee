"""Seed the global random states of Python, NumPy and torch from a generator."""

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

_LOCK = threading.Lock()  # of the global states: a thread can read data beside the training


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
