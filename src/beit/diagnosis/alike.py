"""Near copies of test images by features: what a frozen model sees as nearly the same.

Features of the test images are kept in half precision in a file that is mapped into memory. Each
batch of training images is compared with them; of a training image only the nearest test image and
its cosine are kept.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from beit.data.batches import EvalBatches
from beit.data.prefetch import Prefetch
from beit.data.source import Source, limited
from beit.data.views import EvalView
from beit.nn.pooling import Kind
from beit.nn.quantizer import unit
from beit.run.device import DeviceConfig
from beit.run.launch import launch
from beit.run.progress import Progress
from beit.weights.frozen import FrozenModel, open_frozen_model

BATCH = 64
BLOCK = 1 << 14  # test images that a batch is compared with at once
CENTRE = 1000  # training images whose mean is the centre


class Nearest(NamedTuple):
    """The test image that a model sees as nearest to each of n training images.

    Attributes:
        like: (n,) int64 index in the test set; -1 for an unreadable image
        cosines: (n,) float32 of their features less those of the mean image; -1 likewise
    """

    like: NDArray[np.int64]
    cosines: NDArray[np.float32]


def nearest_test_images(train: Source, test: Source, model: str, num_workers: int) -> Nearest:
    """Compare each training image with each test image, by the features of a model.

    Args:
        model: as for `open_frozen_model`; its features are those that the paper reads
    """
    fabric = launch(DeviceConfig())
    frozen = open_frozen_model(model, device=fabric.device)
    like, cosines = np.full(len(train), -1), np.full(len(train), -1.0, np.float32)
    sample = limited(train, CENTRE)
    total = len(sample) + len(test) + len(train)
    with tempfile.TemporaryDirectory() as folder, Progress(total) as progress:
        progress.message(f"comparing features of {len(train)} images with {len(test)} of the test")

        def features(source: Source, done: int) -> Iterator[tuple[Tensor, Tensor]]:
            for indices, rows in _features(source, frozen, fabric.device, num_workers):
                done += len(indices)
                progress.update(done, {}, len(indices), 0.0)
                yield indices, rows

        centre = torch.cat([rows for _, rows in features(sample, 0)]).mean(dim=0)
        size = len(test) * frozen.width
        file = str(Path(folder, "test"))
        known = torch.from_file(file, shared=True, size=size, dtype=torch.float16)
        known = known.view(len(test), frozen.width)  # 0 for unreadable images
        for indices, rows in features(test, len(sample)):
            known[indices] = unit(rows - centre).half()
        for indices, rows in features(train, len(sample) + len(test)):
            cosine, nearest = _best(unit(rows - centre), known)
            like[indices], cosines[indices] = nearest.numpy(), cosine.numpy()
        del known
    return Nearest(like, cosines)


def _features(
    source: Source, model: FrozenModel, device: torch.device, num_workers: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield indices (B,) of readable images, and their features (B, D) on the CPU."""
    kind = Kind(None, model.paper or "mean")
    view = EvalView(model.image_size, crop_ratio=1.0)
    batches = EvalBatches(source, view, BATCH, num_workers=num_workers)
    for batch in Prefetch(batches, device):
        if len(batch.indices):
            with torch.no_grad():
                yield batch.indices.cpu(), model.read(batch.images, [kind])[kind].cpu()


def _best(vectors: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest cosine (B,) of each vector with those that are known, and which it is."""
    best, which = torch.full((len(vectors),), -1.0), torch.full((len(vectors),), -1)
    for start in range(0, len(known), BLOCK):
        cosines, places = (vectors @ known[start : start + BLOCK].float().T).max(dim=1)
        which = torch.where(cosines > best, places + start, which)
        best = torch.maximum(best, cosines)
    return best, which
