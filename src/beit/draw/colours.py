"""Colours of charts, in light and dark pages, and one stable colour per visual token.

Without a codebook, token colours fill the sRGB gamut evenly in OKLab (lightness, chroma and hue),
the first ones farthest apart. A code has the same colour in vocabularies of all sizes. With a
codebook, similar codes have similar colours (`beit.draw.components`).
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
INK, FAINT, RULE = "#1d2127", "#626b79", "#e0e3e6"
SERIES = ("#2867b2", "#c2571a", "#1f8a70", "#a0458f", "#8a7500", "#5b6472")
# Each colour of a light page, and the CSS variable of the report that replaces it in a chart.
THEME = {INK: "--ink", FAINT: "--faint", RULE: "--rule"} | {
    colour: f"--series-{number}" for number, colour in enumerate(SERIES, 1)
}

# OKLab to the cube roots of cone responses, and cone responses to linear sRGB
# (B. Ottosson, "A perceptual color space for image processing", 2020).
_CONES = np.array(
    [
        [1.0, 0.3963377774, 0.2158037573],
        [1.0, -0.1055613458, -0.0638541728],
        [1.0, -0.0894841775, -1.2914855480],
    ]
)
_LINEAR = np.array(
    [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ]
)

# The first _ORDERED colours are chosen greedily, each farthest from those before it, from a pool of
# _POOL colours that is the same for every vocabulary.
_ORDERED, _POOL = 1024, 4096


@lru_cache(maxsize=8)
def code_colours(vocab_size: int) -> NDArray[np.uint8]:
    """Return the colours (K, 3) uint8 sRGB of all codes; the array is shared and read-only.

    They equal the first K rows for any larger vocabulary.
    """
    if vocab_size < 1:
        raise ValueError(f"vocab_size {vocab_size} must be at least 1")
    num_points = max(vocab_size, _POOL)
    # The additive recurrence of the real root of x^4 = x + 1 spreads points over the unit cube.
    points = (0.5 + np.arange(num_points)[:, None] * 1.2207440846 ** -np.arange(1.0, 4.0)) % 1.0
    hue = 2 * np.pi * points[:, 0]
    lightness = 0.40 + 0.48 * points[:, 1]
    chroma = np.sqrt(0.2 + 0.8 * points[:, 2]) * _most_chroma(lightness, hue)  # even in area
    lab = _lab(lightness, chroma, hue)

    ordered = [0]
    distance = np.full(_POOL, np.inf)
    for _ in range(_ORDERED - 1):
        np.minimum(distance, ((lab[:_POOL] - lab[ordered[-1]]) ** 2).sum(axis=1), out=distance)
        ordered.append(int(distance.argmax()))
    rest = np.setdiff1d(np.arange(num_points), ordered)
    colours = _srgb(lab[np.concatenate([ordered, rest])[:vocab_size]])
    colours.setflags(write=False)
    return colours


def place_colours(places: Values) -> NDArray[np.uint8]:
    """Colour points (n, 3) of the unit cube; near points get similar colours (n, 3) uint8 sRGB.

    The first axis is lightness, which everybody sees. The second runs from blue to yellow, which
    people with red-green colour blindness tell apart. The third runs from green to red.
    """
    lightness = 0.34 + 0.56 * places[:, 0]
    across, along = 2 * places[:, 2] - 1, 2 * places[:, 1] - 1  # green to red, blue to yellow
    hue = np.arctan2(along, across)
    strength = np.maximum(np.abs(across), np.abs(along))
    return _srgb(_lab(lightness, strength * _most_chroma(lightness, hue), hue))


def _most_chroma(lightness: Values, hue: Values) -> Values:
    """Find the largest chroma inside sRGB for each lightness and hue, by bisection."""
    low, high = np.zeros(len(hue)), np.full(len(hue), 0.4)
    for _ in range(16):
        middle = (low + high) / 2
        linear = _linear_rgb(_lab(lightness, middle, hue))
        inside = ((linear >= 0) & (linear <= 1)).all(axis=1)
        low, high = np.where(inside, middle, low), np.where(inside, high, middle)
    return low


def _lab(lightness: Values, chroma: Values, hue: Values) -> Values:
    return np.stack([lightness, chroma * np.cos(hue), chroma * np.sin(hue)], axis=1)


def _srgb(lab: Values) -> NDArray[np.uint8]:
    """Convert OKLab (n, 3) to sRGB, clipped to the gamut."""
    linear = _linear_rgb(lab).clip(0, 1)
    curved = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.round(255 * curved).astype(np.uint8)


def _linear_rgb(lab: Values) -> Values:
    linear: Values = (lab @ _CONES.T) ** 3 @ _LINEAR.T
    return linear
