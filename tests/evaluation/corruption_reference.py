"""The published corruptions, written plainly in NumPy, one image at a time, in float64.

What test_corruptions compares to and benchmarks/corruptions.py times. image: (H, W, 3) uint8;
draws: normal(shape), uniform(shape) in [0, 1), integers(low, high, shape), poisson(rates).
Returns: (H, W, 3) in 0..255, before the cut to whole numbers.
"""

import io
import math

import numpy as np
from PIL import Image

CUT = 1e-4  # ours, not published: added before a cut, so that a whole number keeps its level
STEP = 0.5 / 257  # ImageMagick rounds to 16 bits, 257 a level, and cuts that to 8


def gaussian_noise(image, draws, deviation):
    noise = draws.normal((3, *image.shape[:2])).transpose(1, 2, 0)
    return np.clip(image / 255 + deviation * noise, 0, 1) * 255


def shot_noise(image, draws, photons):
    counts = draws.poisson((image / 255 * photons).transpose(2, 0, 1)).transpose(1, 2, 0)
    return np.clip(counts / photons, 0, 1) * 255


def impulse_noise(image, draws, amount):
    chances = draws.uniform((3, *image.shape[:2])).transpose(1, 2, 0)
    image = image.astype(np.float64)
    image[chances < amount / 2] = 0
    image[chances >= 1 - amount / 2] = 255
    return image


def defocus_blur(image, draws, radius, sigma):
    reach = 8 if radius <= 8 else radius
    rows, columns = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    kernel = (rows**2 + columns**2 <= radius**2).astype(np.float64)
    kernel /= kernel.sum()
    soft = gaussian_weights(sigma, 1 if radius <= 8 else 2)
    kernel = filtered(filtered(kernel, soft, 0, "reflect"), soft, 1, "reflect")
    padded = np.pad(image / 255, ((reach, reach), (reach, reach), (0, 0)), mode="reflect")
    total = np.zeros(image.shape)
    for (row, column), weight in np.ndenumerate(kernel):
        if weight:
            total += weight * padded[row : row + len(image), column : column + image.shape[1]]
    return np.clip(total, 0, 1) * 255


def glass_blur(image, draws, sigma, reach, rounds):
    height, width = image.shape[:2]
    image = (gaussian_blurred(image / 255, sigma) * 255 + CUT).astype(np.uint8)
    for _ in range(rounds):
        moves = draws.integers(-reach, reach, (2, height, width))
        for row in range(height - reach, reach, -1):
            for column in range(width - reach, reach, -1):
                right, down = moves[:, row, column]
                image[row, column] = image[row + down, column + right]
    return gaussian_blurred(image / 255, sigma) * 255


def motion_blur(image, draws, radius, sigma):
    angle = 90 * draws.uniform((1,))[0] - 45
    return np.floor(motion_blurred(image, radius, sigma, angle) + STEP)


def motion_blurred(image, radius, sigma, angle):
    height, width = image.shape[:2]
    weights = np.exp(-(np.arange(2 * radius + 1) ** 2) / (2 * sigma**2))
    weights /= weights.sum()
    total = np.zeros(image.shape)
    for i, weight in enumerate(weights):
        right = math.ceil(i * math.cos(math.radians(angle)) - 0.5)
        down = math.ceil(i * math.sin(math.radians(angle)) - 0.5)
        rows = np.clip(np.arange(height) + down, 0, height - 1)
        columns = np.clip(np.arange(width) + right, 0, width - 1)
        total += weight * image[rows][:, columns]
    return total


def zoom_blur(image, draws, end, step):
    factors = np.arange(1, end, step)
    total = image / 255
    for factor in factors:
        total = total + zoomed(image / 255, factor)
    return total / (len(factors) + 1) * 255


def zoomed(image, factor):
    for axis in (0, 1):
        side = image.shape[axis]
        box = math.ceil(side / factor)
        large = round(box * factor)
        places = (np.arange(side) + (large - side) // 2) * ((box - 1) / (large - 1))
        below = np.minimum(places.astype(int), box - 2)
        shape = [1] * image.ndim
        shape[axis] = -1
        share = (places - below).reshape(shape)
        first = (side - box) // 2
        lower, upper = (image.take(first + below + i, axis) for i in (0, 1))
        image = lower * (1 - share) + upper * share
    return image


def snow(image, draws, mean, deviation, zoom, threshold, radius, sigma, share):
    flakes = mean + deviation * draws.normal((1, *image.shape[:2]))[0]
    angle = 90 * draws.uniform((1,))[0] - 135
    flakes = zoomed(flakes, zoom)
    flakes[flakes < threshold] = 0
    flakes = (np.clip(flakes, 0, 1) * 255 + CUT).astype(np.uint8)
    flakes = np.floor(motion_blurred(flakes, radius, sigma, angle) + STEP)[..., None] / 255
    image = image / 255
    grey = (image @ [0.299, 0.587, 0.114])[..., None]
    image = share * image + (1 - share) * np.maximum(image, grey * 1.5 + 0.5)
    return np.clip(image + flakes + np.rot90(flakes, 2), 0, 1) * 255


def fog(image, draws, thickness, decay):
    height, width = image.shape[:2]
    side = 2 ** math.ceil(math.log2(max(height, width)))
    clouds = plasma(draws.uniform((side * side,)), side, decay)[:height, :width, None]
    brightest = image.max() / 255
    image = image / 255 + thickness * clouds
    return np.clip(image * brightest / (brightest + thickness), 0, 1) * 255


def plasma(chances, side, decay):
    heights, wibble, step = np.zeros((side, side)), 100.0, side
    chances = iter(np.split(2 * chances[:-1] - 1, _plasma_parts(side)))
    while step >= 2:
        half, edge = step // 2, np.arange(0, side, step)
        n, grid = len(edge), np.ix_
        mid, after, before = edge + half, (edge + step) % side, (edge - half) % side
        noise = next(chances).reshape(3, n, n) * wibble * wibble
        corners = heights[grid(edge, edge)]
        right, below = heights[grid(edge, after)], heights[grid(after, edge)]
        heights[grid(mid, mid)] = (corners + right + below + heights[grid(after, after)]) / 4
        heights[grid(mid, mid)] += noise[0]
        centres = heights[grid(mid, mid)]
        heights[grid(edge, mid)] = (corners + right + centres + heights[grid(before, mid)]) / 4
        heights[grid(edge, mid)] += noise[1]
        heights[grid(mid, edge)] = (corners + below + centres + heights[grid(mid, before)]) / 4
        heights[grid(mid, edge)] += noise[2]
        step, wibble = half, wibble / decay
    heights -= heights.min()
    return heights / heights.max()


def _plasma_parts(side):
    counts = [3 * 4**level for level in range(int(math.log2(side)))]
    return np.cumsum(counts)[:-1]


def frost(image, draws, weight, frost_weight):
    """Stand in for a photograph (the benchmark's): two fractals and a blend."""
    height, width = image.shape[:2]
    side = 2 ** math.ceil(math.log2(max(height, width)))
    ground, veins = (plasma(draws.uniform((side * side,)), side, decay) for decay in (2.0, 1.6))
    ice = 0.2 + 0.35 * ground + 0.45 * (1 - np.abs(2 * veins - 1)) ** 4
    ice = ice[:height, :width, None] * np.array([0.86, 0.94, 1.0]) * 255
    return np.clip(weight * image + frost_weight * ice, 0, 255)


def brightness(image, draws, amount):
    """Through hue, saturation and value, as published."""
    image = image / 255
    value, low = image.max(-1), image.min(-1)
    chroma = value - low
    red, green, blue = image.transpose(2, 0, 1)
    some = np.where(chroma == 0, 1, chroma)
    hue = np.where(
        value == red,
        (green - blue) / some,
        np.where(value == green, 2 + (blue - red) / some, 4 + (red - green) / some),
    )
    hue = np.where(chroma == 0, 0, hue) % 6
    saturation = np.where(value == 0, 0, chroma / np.where(value == 0, 1, value))
    value = np.clip(value + amount, 0, 1)
    channels = []
    for offset in (5, 3, 1):
        place = (offset + hue) % 6
        fall = np.clip(np.minimum(place, 4 - place), 0, 1)
        channels.append(value - value * saturation * fall)
    return np.stack(channels, -1) * 255


def contrast(image, draws, factor):
    image = image / 255
    means = image.mean((0, 1), keepdims=True)
    return np.clip((image - means) * factor + means, 0, 1) * 255


def elastic_transform(image, draws, reach, sigma, shift):
    height, width = image.shape[:2]
    shifts = (2 * draws.uniform((3, 2)) - 1) * shift
    noise = 2 * draws.uniform((2, height, width)) - 1
    centre, side = np.array([width // 2, height // 2]), min(height, width) // 3
    points = np.array(
        [centre + side, [centre[0] + side, centre[1] - side], centre - side], dtype=np.float64
    )
    rows, columns = np.mgrid[:height, :width].astype(np.float64)
    back = np.linalg.solve(np.column_stack([points + shifts, np.ones(3)]), points)
    x, y = (columns * back[0, i] + rows * back[1, i] + back[2, i] for i in (0, 1))
    image = bilinear(image / 255, x, y, reflect_101)
    if reach:
        weights = gaussian_weights(sigma, int(3 * sigma + 0.5))
        right, down = (
            reach * filtered(filtered(field, weights, 0, "symmetric"), weights, 1, "symmetric")
            for field in noise
        )
        image = bilinear(image, columns + right, rows + down, reflect_edges)
    return np.clip(image, 0, 1) * 255


def bilinear(image, x, y, reflect):
    height, width = image.shape[:2]
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    across, along = (x - left)[..., None], (y - top)[..., None]
    rows = [reflect(top + i, height) for i in (0, 1)]
    columns = [reflect(left + i, width) for i in (0, 1)]
    upper, lower = (
        image[row, columns[0]] * (1 - across) + image[row, columns[1]] * across for row in rows
    )
    return upper * (1 - along) + lower * along


def reflect_101(places, side):
    places = places % (2 * side - 2)
    return np.minimum(places, 2 * side - 2 - places)


def reflect_edges(places, side):
    places = places % (2 * side)
    return np.minimum(places, 2 * side - 1 - places)


def pixelate(image, draws, share):
    height, width = image.shape[:2]
    picture = Image.fromarray(image)
    picture = picture.resize((int(width * share), int(height * share)), Image.Resampling.BOX)
    return np.asarray(picture.resize((width, height), Image.Resampling.BOX)).astype(np.float64)


def jpeg_compression(image, draws, quality):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    with Image.open(file) as picture:
        return np.asarray(picture).astype(np.float64)


def gaussian_blurred(image, sigma):
    weights = gaussian_weights(sigma, int(4 * sigma + 0.5))
    return filtered(filtered(image, weights, 0, "edge"), weights, 1, "edge")


def gaussian_weights(sigma, half):
    weights = np.exp(-(np.arange(-half, half + 1) ** 2) / (2 * sigma**2))
    return weights / weights.sum()


def filtered(values, weights, axis, mode):
    half = len(weights) // 2
    margins = [(half, half) if i == axis else (0, 0) for i in range(values.ndim)]
    padded = np.moveaxis(np.pad(values, margins, mode=mode), axis, 0)
    side = values.shape[axis]
    total = sum(weight * padded[i : i + side] for i, weight in enumerate(weights))
    return np.moveaxis(total, 0, axis)
