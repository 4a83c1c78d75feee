"""Colours of charts, in light and dark pages, and of points in a space, as codes are.

Similar codes have similar colours (`beit.draw.components`).
"""

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
