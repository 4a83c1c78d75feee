import dataclasses

import numpy as np
import pytest

from beit.fetching.cifar import LabelledImages
from beit.fetching.fetch import DATA_SETS


@pytest.fixture
def hundred(monkeypatch):
    """A small CIFAR-100: two training images and one test image per class."""
    rng = np.random.default_rng(1)
    coarse_of = rng.permutation(np.arange(100) % 20).astype(np.uint8)
    splits = {}
    for split, times in (("train", 2), ("test", 1)):
        labels = rng.permutation(np.repeat(np.arange(100), times)).astype(np.uint8)
        pixels = rng.integers(0, 256, (len(labels), 32, 32, 3), dtype=np.uint8)
        splits[split] = LabelledImages(pixels, labels, coarse_of[labels])
    known = dataclasses.replace(DATA_SETS["cifar100"], counts={"train": 200, "test": 100})
    monkeypatch.setitem(DATA_SETS, "cifar100", known)
    return splits
