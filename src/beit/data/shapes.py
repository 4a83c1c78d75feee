"""Drawn scenes (`shapes://COUNT`): labelled images and label maps of any size, without a download.

A scene has a textured ground, one large shape, and a few small shapes that may cover it. Its class
is the kind of the large shape; colour, texture, position and rotation are independent of the class.
"""

import math
import re
from collections.abc import Callable
from typing import Any, Self
from urllib.parse import parse_qsl

import numpy as np
import numpy.typing as npt
import torch
from numpy.random import Generator as Rng
from torch import Tensor

Array = npt.NDArray[np.floating[Any]]
Pixels = npt.NDArray[np.uint8]
Place = tuple[float, float]  # row, column

_SIZE = re.compile(r"(\d+)(?:x(\d+))?")
_MAX_SIDE = 4096
_MAX_SMALL = 3
_MIN_CONTRAST = 0.25  # mean distance between a shape's colours and the ground's


def _star(x: Array, y: Array) -> Array:
    sector = 2 * math.pi / 5
    angle = np.abs(np.mod(np.arctan2(x, -y), sector) - sector / 2)  # 0 in a notch, pi/5 at a tip
    radius = np.hypot(x, y)
    # The edge from the notch, at radius 0.42, to the tip.
    edge_x, edge_y = math.cos(math.pi / 5) - 0.42, math.sin(math.pi / 5)
    across = (radius * np.cos(angle) - 0.42) * edge_y - radius * np.sin(angle) * edge_x
    return np.asarray(across / math.hypot(edge_x, edge_y), dtype=np.float32)


# Signed distance to the outline, negative inside, in units of the radius; accurate near it.
_OUTLINES: dict[str, Callable[[Array, Array], Array]] = {
    "disc": lambda x, y: np.hypot(x, y) - 1,
    "ring": lambda x, y: np.abs(np.hypot(x, y) - 0.75) - 0.25,
    "square": lambda x, y: np.maximum(np.abs(x), np.abs(y)) - 0.75,
    "triangle": lambda x, y: np.maximum(np.abs(x) * 0.866 - y * 0.5, y) - 0.5,
    "bar": lambda x, y: np.maximum(np.abs(x) - 1, np.abs(y) - 0.35),
    "cross": lambda x, y: np.maximum(
        np.maximum(np.abs(x), np.abs(y)) - 1, np.minimum(np.abs(x), np.abs(y)) - 0.3
    ),
    "star": _star,
    "crescent": lambda x, y: np.maximum(np.hypot(x, y) - 1, 0.8 - np.hypot(x - 0.5, y)),
    "half disc": lambda x, y: np.maximum(np.hypot(x, y + 0.4) - 1, -0.4 - y),
    "bow tie": lambda x, y: np.maximum((np.abs(y) - np.abs(x)) * 0.7071, np.abs(x) - 0.75),
}
KINDS = list(_OUTLINES)


class ShapesSource:
    """`count` scenes, each a pure function of (seed, index). Class: index modulo 10."""

    def __init__(self, count: int, size: tuple[int, int] = (64, 64), seed: int = 0) -> None:
        if count < 1:
            raise ValueError(f"shapes://: the number of scenes must be at least 1, got {count}")
        if not all(8 <= side <= _MAX_SIDE for side in size):
            raise ValueError(f"shapes://: size must be from 8 to {_MAX_SIDE} pixels, got {size}")
        self.count, self.size, self.seed = count, size, seed
        self.labels = torch.arange(count) % len(KINDS)
        self.class_names, self.why_unlabelled = list(KINDS), ""

    @classmethod
    def from_spec(cls, spec: str) -> Self:
        """Read `shapes://COUNT[?size=64&seed=0]`; size may be HEIGHTxWIDTH."""
        expected = "expected shapes://COUNT?size=64&seed=0 (size may be HEIGHTxWIDTH)"
        count, _, query = spec.removeprefix("shapes://").partition("?")
        options = dict(parse_qsl(query, keep_blank_values=True))
        unknown = sorted(set(options) - {"size", "seed"})
        size = _SIZE.fullmatch(options.get("size", "64"))
        seed = options.get("seed", "0")
        if unknown or size is None or not count.isdecimal() or not seed.isdecimal():
            raise ValueError(f"{spec}: not understood; {expected}")
        height = int(size[1])
        return cls(int(count), (height, int(size[2] or height)), int(seed))

    def __len__(self) -> int:
        return self.count

    def image(self, index: int) -> Tensor:
        return self.scene(index)[0]

    def label_map(self, index: int) -> Tensor:
        """Return the kind of shape at each pixel: (H, W) uint8, 0 for ground, else 1 + class."""
        return self.scene(index)[1]

    def scene(self, index: int) -> tuple[Tensor, Tensor]:
        """Draw an image together with its label map."""
        colours, kinds = _draw(self.seed, index, self.size)
        return torch.from_numpy(colours), torch.from_numpy(kinds)

    def name(self, index: int) -> str:
        height, width = self.size
        return f"shapes://{index}?size={height}x{width}&seed={self.seed}"


def _draw(seed: int, index: int, size: tuple[int, int]) -> tuple[Pixels, Pixels]:
    """Draw scene `index`. Returns: colours (3, H, W) uint8; kinds (H, W) uint8, 0 for ground."""
    rng = np.random.default_rng([seed, index])
    height, width = size
    rows = np.arange(height, dtype=np.float32)[:, None]
    columns = np.arange(width, dtype=np.float32)[None, :]
    ground = rng.random((2, 3))
    scene = _textured(rng, rows, columns, ground, min(size))
    kinds = np.zeros(size, dtype=np.uint8)
    side = min(height, width) / 2
    large = side * rng.uniform(0.55, 0.8)
    top, left = (half + rng.uniform(-1, 1) * (half - large) for half in (height / 2, width / 2))
    _paint(rng, scene, kinds, index % len(KINDS), large, (top, left), ground)
    for _ in range(rng.integers(0, _MAX_SMALL + 1)):
        small = large * rng.uniform(0.2, 0.35)
        place = (rng.uniform(0, height), rng.uniform(0, width))
        _paint(rng, scene, kinds, int(rng.integers(len(KINDS))), small, place, ground)
    grain = rng.standard_normal(size, dtype=np.float32) * np.float32(rng.uniform(0, 0.04))
    np.clip((scene + grain) * 255 + 0.5, 0, 255, out=scene)
    return scene.astype(np.uint8), kinds


def _paint(
    rng: Rng, scene: Array, kinds: Pixels, kind: int, radius: float, place: Place, ground: Array
) -> None:
    """Draw an antialiased shape into scene (3, H, W) and kinds (H, W), in place."""
    _, height, width = scene.shape
    reach = radius * 1.1 + 1  # largest distance of a shape's pixels from its centre
    top, bottom = max(0, int(place[0] - reach)), min(height, int(place[0] + reach) + 1)
    left, right = max(0, int(place[1] - reach)), min(width, int(place[1] + reach) + 1)
    rows = np.arange(top, bottom, dtype=np.float32)[:, None] + np.float32(0.5 - place[0])
    columns = np.arange(left, right, dtype=np.float32)[None, :] + np.float32(0.5 - place[1])
    angle = rng.uniform(0, 2 * math.pi)
    cos, sin = np.float32(math.cos(angle) / radius), np.float32(math.sin(angle) / radius)
    distance = _OUTLINES[KINDS[kind]](columns * cos + rows * sin, rows * cos - columns * sin)
    cover = np.clip(0.5 - distance * np.float32(radius), 0, 1)
    colours = rng.random((2, 3))
    while np.abs(colours[:, None] - ground[None]).mean(axis=-1).min() < _MIN_CONTRAST:
        colours = rng.random((2, 3))
    paint = _textured(rng, rows, columns, colours, radius)
    part = scene[:, top:bottom, left:right]
    part += (paint - part) * cover
    kinds[top:bottom, left:right][cover > 0.5] = kind + 1


def _textured(rng: Rng, rows: Array, columns: Array, colours: Array, scale: float) -> Array:
    """Fill an area with two colours (2, 3): plain, gradient, stripes, checks or dots."""
    first, second = colours.astype(np.float32)[:, :, None, None]
    style = rng.integers(5)
    angle, period = rng.uniform(0, 2 * math.pi), scale * rng.uniform(0.2, 0.5)
    cos, sin = np.float32(math.cos(angle)), np.float32(math.sin(angle))
    along, across = columns * cos + rows * sin, rows * cos - columns * sin
    turn = np.float32(2 * math.pi / max(period, 4.0))
    if style == 0:
        share = np.zeros_like(along)
    elif style == 1:
        share = np.clip(along / np.float32(2 * scale) + np.float32(0.5), 0, 1)
    elif style == 2:
        share = np.clip(np.sin(along * turn) * 2 + np.float32(0.5), 0, 1)
    elif style == 3:
        share = np.clip(np.sin(along * turn) * np.sin(across * turn) * 4 + np.float32(0.5), 0, 1)
    else:
        share = np.clip((np.cos(along * turn) + np.cos(across * turn)) * 2 - np.float32(1.5), 0, 1)
    return np.asarray(first + (second - first) * share, dtype=np.float32)
