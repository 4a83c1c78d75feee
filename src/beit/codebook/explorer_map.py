"""The map of the explorer: where each code is, and its picture."""

from math import ceil, sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from beit.codebook.contents import Codebook
from beit.codebook.map import Layouts
from beit.draw.canvas import Pixels
from beit.draw.page import base64_of
from beit.draw.thumbnails import LOSSLESS, tiled, webp

_STEPS = 65_535  # of a coordinate
_SMALL = 2**18  # pixels of all pictures that are encoded without loss


class CodeMap(NamedTuple):
    """A codebook in two dimensions.

    Attributes:
        places: (K, 2), the second upwards; NaN for codes that are not on the map
        patches: (K, p, p, 3), a picture of each code
        method: how the places were found
    """

    places: NDArray[np.floating]
    patches: Pixels
    method: str

    @staticmethod
    def of(book: Codebook, layouts: Layouts) -> "CodeMap":
        """Place the used codes as in the report, each with its mean patch."""
        method = "principal components" if layouts.near is None else "t-SNE"
        places = np.full((len(book), 2), np.nan)
        places[layouts.codes.numpy()] = layouts.components if layouts.near is None else layouts.near
        return CodeMap(places, book.mean_patches, method)

    def sheet(self, num_codes: int) -> bytes:
        """Encode the pictures as one square WebP sheet, in the order of the codes."""
        shape, finite = self.places.shape, bool(np.isfinite(self.places).all(axis=-1).any())
        if shape != (num_codes, 2) or len(self.patches) != num_codes or not finite:
            raise ValueError(
                f"the map needs places ({num_codes}, 2), some of them finite, and {num_codes} "
                f"patches; got {shape}, finite: {finite}, and {len(self.patches)}"
            )
        side = ceil(sqrt(num_codes))
        sheet = tiled(self.patches, side, side)
        return webp(sheet, LOSSLESS if sheet[..., 0].size <= _SMALL else 88)

    def summary(self) -> dict[str, object]:
        """Return the codes on the map and their places, both coordinates on one scale."""
        codes = np.flatnonzero(np.isfinite(self.places).all(axis=1))
        places = self.places[codes]
        low, high = places.min(axis=0), places.max(axis=0)
        length = max(float((high - low).max()), 1e-12)
        steps = np.round(((places - (low + high) / 2) / length + 0.5) * _STEPS).astype("<u2")
        return {
            "cell": self.patches.shape[1:3],
            "codes": codes.tolist(),
            "places": base64_of(steps.tobytes()),
            "method": self.method,
        }
