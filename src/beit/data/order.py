"""The stateless sample order: what is drawn at a step is a pure function of seed, epoch, index."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def epoch_order(length: int, seed: int, epoch: int) -> Tensor:
    """Draw the order in which epoch `epoch` visits a set. Returns: (length,) int64 permutation."""
    return torch.randperm(length, generator=_generator("order", seed, epoch))


def sample_generator(seed: int, epoch: int, index: int) -> torch.Generator:
    """Give the random numbers of one image's augmentation in one epoch."""
    return _generator("sample", seed, epoch, index)


def step_generator(seed: int, step: int, purpose: str) -> torch.Generator:
    """Give the random numbers that one step needs for one purpose ("masks", "revival", ...)."""
    return _generator(f"step {purpose}", seed, step)


def _generator(domain: str, *numbers: int) -> torch.Generator:
    """Seed a generator by a hash, so that neighbouring numbers give unrelated streams."""
    text = f"{domain}:{':'.join(map(str, numbers))}".encode()
    generator = torch.Generator()
    generator.manual_seed(int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little"))
    return generator
