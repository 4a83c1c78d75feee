"""A data set of the user's own as a source: python:MODULE:NAME gives a map-style data set."""

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from beit.data.own_code import OWN, call
from beit.data.pixels.decoding import rgb_of
from beit.data.shrinking import Shrinking
from beit.data.source import UnreadableImage
from beit.data.views import resized
from beit.wording import an


class OwnSource:
    """Images of a data set with `len(dataset)` and `dataset[i]`, an image or (image, ...).

    An image is a PIL image, or uint8: an array (H, W, 3) or (H, W), a tensor (3, H, W). As in
    torchvision, `dataset.targets` are the classes, -1 where unknown, and `dataset.classes` their
    names; both may be missing. An OSError makes an image unreadable; other errors end the run.
    """

    def __init__(self, spec: str, shrinking: Shrinking | None = None) -> None:
        dataset = call(spec)
        if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
            raise ValueError(
                f"{spec} gives {an(type(dataset).__name__)}; expected a data set with __len__ and "
                "__getitem__"
            )
        self._spec, self._dataset, self._shrinking = spec, dataset, shrinking
        self._length = len(dataset)
        if not self._length:
            raise ValueError(f"{spec} has no images")
        targets, classes = getattr(dataset, "targets", None), getattr(dataset, "classes", None)
        self.class_names = None if classes is None else [str(name) for name in classes]
        self.labels = None if targets is None else self._checked(targets)
        self.why_unlabelled = "the data set has no attribute targets" if targets is None else ""

    def __len__(self) -> int:
        return self._length

    def image(self, index: int) -> Tensor:
        try:
            item = self._dataset[index]
            image = self._pixels(item[0] if isinstance(item, tuple | list) else item)
        except OSError as error:
            raise UnreadableImage(self.name(index), str(error)) from error
        except LookupError as error:  # which says only what was not there
            raise ValueError(f"{self.name(index)}: {type(error).__name__} {error}") from error
        if self._shrinking is not None:
            height, width = image.shape[-2:]
            image = resized(image[None], self._shrinking.need.size_for(height, width))[0]
        return image

    def name(self, index: int) -> str:
        return f"{self._spec.removeprefix(OWN)}/{index}"

    def _checked(self, targets: Any) -> Tensor:
        """Return the labels (n,) int64."""
        labels = torch.as_tensor(targets)
        count = len(self.class_names) if self.class_names else torch.iinfo(torch.int64).max
        if labels.is_floating_point() or labels.shape != (self._length,):
            what = f"{labels.dtype} of shape {tuple(labels.shape)}"
            raise ValueError(
                f"{self._spec}: targets are {what}, expected an integer for each "
                f"of {self._length} images"
            )
        if not -1 <= int(labels.min()) <= int(labels.max()) < count:
            raise ValueError(
                f"{self._spec}: targets are {int(labels.min())} to {int(labels.max())}; expected "
                f"-1 for unknown, or the number of one of {count} classes, from 0"
            )
        return labels.to(torch.int64)

    def _pixels(self, image: Any) -> Tensor:
        """Return an item's image as (3, H, W) uint8."""
        if isinstance(image, Image.Image):
            return rgb_of(image)
        array = image.numpy() if isinstance(image, Tensor) else image
        if isinstance(array, np.ndarray) and array.dtype == np.uint8 and 0 not in array.shape:
            if isinstance(image, Tensor):
                array = array.transpose(1, 2, 0) if array.ndim == 3 else array
            if array.ndim == 2:
                array = np.repeat(array[..., None], 3, axis=2)
            if array.ndim == 3 and array.shape[2] == 3:
                return torch.from_numpy(np.array(array.transpose(2, 0, 1), order="C"))
        found = type(image).__name__
        if hasattr(image, "shape"):
            found += f" of {image.dtype} and shape {tuple(image.shape)}"
        raise ValueError(
            f"{self._spec}: an image is {an(found)}; expected a PIL image, or uint8: an array "
            "(H, W, 3) or (H, W), or a tensor (3, H, W)"
        )
