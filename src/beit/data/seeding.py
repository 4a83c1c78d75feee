"""The global random states of Python, NumPy and torch, seeded from a generator."""

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

_LENT = threading.Lock()  # the global random states; a thread may read data beside the training


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
