"""One part of a table: the rows of consecutive images, collected batch by batch."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from beit.data.source import Source
from beit.rows.files import TEXT, Array, Column, open_npz


class Part:
    """The rows of one part in memory; str columns are not computed, so they are not kept."""

    def __init__(self, columns: Sequence[Column], images: Source) -> None:
        self.num_images = 0  # so far, unreadable ones included
        self._images, self._columns = images, [c for c in columns if c.dtype != TEXT]
        self._indices, self._unreadable = list[Array](), list[str]()
        self._values = {c.name: [np.empty((0, *c.shape), c.dtype)] for c in self._columns}

    def add(
        self, indices: Tensor, values: Mapping[str, Tensor], unreadable: Sequence[str] = ()
    ) -> None:
        """Add the next batch, as `EvalBatches` yields it.

        Args:
            indices: (B,) int64, the image of each row
            values: (B, *shape) by column, of any dtype that holds the column's; unused for B = 0
            unreadable: "name: reason" of the batch's images that have no row

        Raises ValueError if a number is not finite in its column's type.
        """
        indices = indices.cpu()
        self.num_images += len(indices) + len(unreadable)
        self._indices.append(indices.numpy())
        self._unreadable += unreadable
        for column in self._columns if len(indices) else ():
            rows, dtype = values[column.name].detach(), getattr(torch, column.dtype)
            rows = rows.to(dtype) if rows.is_floating_point() else rows  # fewer bytes to copy
            rows = rows.cpu().to(dtype)
            assert rows.shape[1:] == column.shape, f"{column.name}: {tuple(rows.shape)}"
            if rows.is_floating_point() and not bool(rows.isfinite().all()):
                bad = int((~rows.flatten(1).isfinite()).any(dim=1).nonzero()[0])
                raise ValueError(
                    f"{column.name} of {self._images.name(int(indices[bad]))} is not finite in "
                    f"{column.dtype}; use a wider type or device.precision, or check the weights"
                )
            self._values[column.name].append(rows.numpy())

    def content(self) -> dict[str, Array]:
        """Return the arrays to keep, by name."""
        columns = {name: np.concatenate(batches) for name, batches in self._values.items()}
        unreadable = np.array(json.dumps(list(dict.fromkeys(self._unreadable))))
        return {"index": np.concatenate(self._indices), "unreadable": unreadable} | columns


def read_array(file: Path, name: str) -> Array:
    """Read one array of a part's file only."""
    with open_npz(file, "delete it and run the command again") as part:
        return np.asarray(part[name])
