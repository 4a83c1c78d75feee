"""The teacher's features of training views, cut from maps of whole images that are computed once.

The map of a whole image is cut by a view's box, mirrored views from the map of the mirror image.
This differs from the teacher's features of the view itself: docs/tokenizer.md has the figures.
"""

from collections.abc import Callable

import torch
from lightning_fabric import Fabric
from torch import Tensor

from beit.data.batch import Batch
from beit.data.batches import DataConfig
from beit.data.source import Source
from beit.data.views import TrainViews, resized
from beit.nn.losses import cosine_distance
from beit.nn.map_crops import crop_maps
from beit.rows.compute import compute_table, fingerprint
from beit.rows.feature_maps import FeatureMaps
from beit.weights.teachers import Teacher, TeacherConfig


def compute_maps(
    named: TeacherConfig,
    teacher: Teacher,
    images: Source,
    views: TrainViews,
    data: DataConfig,
    fabric: Fabric,
) -> FeatureMaps:
    """Compute the missing maps in the folder `named.cache`, each process its share, and open them.

    If views are mirrored, mirror images have maps of their own. They double time and size.
    """
    kind, size, sides = fabric.device.type, views.size, 1 + (views.config.flip > 0)
    with fabric.autocast():
        autocast = torch.is_autocast_enabled(kind)
        precision = str(torch.get_autocast_dtype(kind)) if autocast else "torch.float32"
    about: dict[str, object] = {
        "teacher": named.source,
        "num_heads": named.num_heads,
        "image_size": teacher.image_size,
        "weights": fingerprint(teacher),
        "view_size": size,
        "device": kind,
        "precision": precision,
        **teacher.settings,
    }
    if named.channels:
        about["channels"] = named.channels
    if data.shrink:
        about["shrunk"] = views.need
    maps = FeatureMaps(named.cache, images, (sides, *teacher.grid, teacher.width), about)

    def whole(image: Tensor) -> Tensor:
        """Resize an image (3, H, W) uint8 as a view of all of it."""
        return resized(image[None], size)[0]

    def compute(batch: Tensor) -> dict[str, Tensor]:
        """Compute the maps (B, 1 or 2, h, w, T) of images and their mirror images."""
        features = [
            teacher.features(side, teacher.grid) for side in (batch, batch.flip(-1))[:sides]
        ]
        return {"maps": torch.stack(features, 1).unflatten(2, teacher.grid)}

    compute_table(fabric, maps, whole, compute, data.num_workers, data.max_unreadable)
    maps.open()
    return maps


class CachedFeatures:
    """Cuts the features of training views from the maps of `compute_maps`."""

    def __init__(
        self,
        maps: FeatureMaps,
        grid: tuple[int, int],
        exact: Callable[[Batch], Tensor],
        say: Callable[[str], None],
    ) -> None:
        """Take open maps.

        Args:
            grid: of the features
            exact: computes the teacher's features (B, N, T) of a batch, for one comparison
            say: shows a line of text: the error on the first batch
        """
        self._maps, self._grid, self._exact, self._say = maps, grid, exact, say
        self._compared = False

    def __call__(self, batch: Batch) -> Tensor:
        """Return the features (B, N, T) float32 of a batch's images, by its crops."""
        top, left, height, width, mirrored = batch.crops.unbind(1)
        left = torch.where(mirrored > 0, 1 - left - width, left)  # in the mirror image
        rows = self._maps.rows(batch.indices.tolist())
        chosen = [maps[int(side)] for maps, side in zip(rows, mirrored.tolist(), strict=True)]
        maps = torch.stack(chosen).to(batch.images.device)  # (B, h, w, T)
        features = crop_maps(maps, torch.stack((top, left, height, width), 1), self._grid)
        if not self._compared:
            self._compared = True
            error = cosine_distance(features, self._exact(batch))
            self._say(
                "teacher.cache: features of crops differ from the teacher's by a cosine distance "
                f"of {error:.4f} on {len(features)} images"
            )
        return features
