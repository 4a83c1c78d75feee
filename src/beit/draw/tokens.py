"""Pictures of visual tokens: token maps, masked predictions, examples of codes, use of codes.

The colour of a code is its place in the codebook (`beit.draw.components`): similar codes have
similar colours. Functions take these `colours` (K, 3) uint8.
"""

from typing import Any

import numpy as np
from torch import Tensor

from beit.draw import canvas
from beit.draw.canvas import Pixels
from beit.draw.charts import BOTTOM, finish_axes, log_axis, new_chart, styled, themed_svg, write
from beit.draw.colours import FAINT, SERIES
from beit.draw.numbers import short_number
from beit.draw.report import Gallery, Picture
from beit.nn.code_ranks import code_ranks
from beit.nn.metrics import codebook_health


def token_maps(
    images: Tensor, codes: Tensor, grid: tuple[int, int], colours: Pixels, caption: str
) -> Gallery:
    """Show each image, its tokens with a colour for each code, and both blended.

    Args:
        images: (B, 3, H, W) uint8 or [0, 1]
        codes: (B, N) int64 in [0, K)
        grid: (Gh, Gw), N = Gh * Gw
        colours: (K, 3) of the codes
        caption: which images these are
    """
    _check(images, grid, len(colours), codes)
    pictures = []
    for index, (image, row) in enumerate(zip(images, codes.cpu().numpy(), strict=True)):
        whole = canvas.panel(image)
        tokens = canvas.cells(colours[row], grid, whole)
        words = f"{len(np.unique(row))} different codes on {len(row)} patches"
        alt = f"Image {index + 1}, its map of {grid[0]} by {grid[1]} tokens, and both blended"
        panels = [whole, tokens, canvas.blend(whole, tokens, 0.5)]
        pictures.append(canvas.picture(words, alt, [panels]))
    legend = (
        "Left to right: the image, its tokens, both blended. Similar codes have similar colours."
    )
    return Gallery(f"{caption} {legend}".strip(), pictures)


def masked_predictions(
    images: Tensor,
    masked: Tensor,
    logits: Tensor,
    codes: Tensor,
    grid: tuple[int, int],
    colours: Pixels,
    caption: str,
) -> Gallery:
    """Show image and masked image above the true and the predicted tokens of the masked patches.

    Args as for `token_maps`, and masked: (B, M) int64, the masked patches; logits: (B, M, K) of the
    code of each of them.
    """
    K = len(colours)
    _check(images, grid, K, codes)
    if logits.shape != (*masked.shape, K) or len(masked) != len(images):
        got = f"masked {tuple(masked.shape)} and logits {tuple(logits.shape)}"
        raise ValueError(f"{got} must be (B, M) and (B, M, {K}) with B = {len(images)}")
    ranks = code_ranks(logits.cpu(), codes.cpu().gather(1, masked.cpu()))
    pictures = []
    for index, image in enumerate(images):
        places, true = masked[index].cpu().numpy(), codes[index].cpu().numpy()
        guesses = true.copy()
        guesses[places] = logits[index].argmax(dim=1).cpu().numpy()
        whole, view, hidden = canvas.masked_view(image, masked[index], grid)
        panels = [canvas.over_masked(colours[row], grid, whole, hidden) for row in (true, guesses)]
        right = hidden & canvas.cells(guesses == true, grid, whole)
        canvas.mark(panels[1], right, grid)
        median, exact = np.median(ranks[index].numpy()) + 1, int((guesses == true)[places].sum())
        words = f"{exact} of {len(places)} codes right; rank of the true code: {median:g} of {K}"
        alt = (
            f"Image {index + 1}, the image with {len(places)} of {len(true)} patches masked, "
            f"their true tokens and the predicted ones: {words}"
        )
        pictures.append(canvas.picture(words, alt, [[whole, view], panels]))
    legend = (
        "Top: the image, and the masked image that the model sees. Bottom: the true and the most "
        "probable tokens of the masked patches. Similar codes have similar colours; a frame marks "
        "a token that is exactly right. Below: how many are, and the median rank of the true code "
        "among all codes by probability (1: always right)."
    )
    return Gallery(f"{caption} {legend}".strip(), pictures)


def code_examples(
    images: Tensor,
    codes: Tensor,
    grid: tuple[int, int],
    num_codes_shown: int,
    caption: str,
    *,
    num_examples: int = 6,
) -> Gallery:
    """Show patches that share a code, framed in their surroundings, for several codes.

    Examples come from different images. Codes are spread evenly from the most to the least used
    of those with enough examples.

    Args as for `token_maps`; at most `num_codes_shown` codes, each with `num_examples` patches.
    """
    _check(images, grid, int(codes.max()) + 1, codes)
    if num_codes_shown < 1 or num_examples < 1:
        got = f"num_codes_shown {num_codes_shown} and num_examples {num_examples}"
        raise ValueError(f"{got} must be at least 1")
    tokens = codes.cpu().numpy()
    used, counts = np.unique(tokens, return_counts=True)
    num_images = np.array([(tokens == code).any(axis=1).sum() for code in used])
    enough = num_images >= min(num_examples, num_images.max())
    used, counts = used[enough], counts[enough]
    order = np.argsort(-counts, kind="stable")
    picks = np.linspace(0, len(order) - 1, min(num_codes_shown, len(order))).round().astype(int)
    pictures = []
    for code, count in zip(used[order[picks]], counts[order[picks]], strict=True):
        holders = (tokens == code).any(axis=1).nonzero()[0]
        holders = holders[np.linspace(0, len(holders) - 1, num_examples).round().astype(int)]
        patches = [
            _surroundings(images[i], int((tokens[i] == code).argmax()), grid)
            for i in np.unique(holders)
        ]
        alt = f"{len(patches)} patches from different images, all of code {code}"
        pictures.append(canvas.picture(f"Code {code}, used {count} times", alt, [patches], gap=6))
    legend = "The frame marks the patch with this code; around it is the rest of the image."
    return Gallery(f"{caption} {legend}".strip(), pictures)


def _surroundings(image: Tensor, patch: int, grid: tuple[int, int]) -> Pixels:
    """Crop a patch with its neighbours, shifted inside the image, and frame the patch."""
    (_, H, W), (Gh, Gw) = image.shape, grid
    row, column = divmod(patch, Gw)
    rows, columns = min(3, Gh), min(3, Gw)
    top, left = min(max(row - 1, 0), Gh - rows), min(max(column - 1, 0), Gw - columns)
    cut = image[:, top * H // Gh : (top + rows) * H // Gh]
    cut = cut[:, :, left * W // Gw : (left + columns) * W // Gw]
    pixels = canvas.panel(cut, side=108).copy()
    h, w = pixels.shape[:2]
    y, x = (row - top) * h // rows, (column - left) * w // columns
    bottom, right = y + h // rows, x + w // columns
    for inset, colour in ((0, 0), (1, 0), (2, 255), (3, 255), (4, 255)):
        pixels[y + inset : bottom - inset, [x + inset, right - 1 - inset]] = colour
        pixels[[y + inset, bottom - 1 - inset], x + inset : right - inset] = colour
    return pixels


def usage_plot(counts: Tensor, caption: str) -> Picture:
    """Draw how often each code is used, in descending order, on a logarithmic axis.

    counts: (K,) non-negative numbers, not all zero; caption: which images were counted
    """
    if counts.ndim != 1 or not len(counts) or bool((counts < 0).any()) or not bool(counts.sum()):
        expected = "(K,) non-negative numbers, not all zero"
        raise ValueError(f"counts must be {expected}; got {tuple(counts.shape)}")
    K = len(counts)
    health = codebook_health(counts.cpu())
    ordered = counts.cpu().double().sort(descending=True).values.numpy()
    num_used, mean = K - health.dead, float(ordered.sum()) / K
    used = f"{num_used} of {K} codes used ({health.usage:.1%})"
    used += f", {health.dead} unused" if health.dead else ""
    spread = f"perplexity {short_number(health.perplexity)} ({health.perplexity / K:.1%} of {K})"
    ranks = np.unique(np.linspace(0, num_used - 1, min(num_used, 150)).round().astype(int))
    x, y = np.append(0, ranks + 1), ordered[np.append(0, ranks)]
    top = 66
    with styled():
        figure = new_chart("How often each code is used (log)", top + 160 + BOTTOM)
        write(figure, 0, 31, used, color=FAINT)
        write(figure, 0, 47, spread, color=FAINT)
        axes = figure.add_axes((0, 0, 1, 1))
        log_axis(axes, np.append(y, mean))
        axes.set_xlim(0, K)
        low = axes.get_ylim()[0]
        step: dict[str, Any] = {"step": "pre"} if num_used <= 50 else {}
        axes.fill_between(x, y, low, color=SERIES[0], alpha=0.16, linewidth=0, **step)
        style = "steps-pre" if step else "default"
        axes.plot(x, y, color=SERIES[0], linewidth=1.8, drawstyle=style, clip_on=False)
        axes.axhline(mean, color=FAINT, linewidth=1, linestyle=(0, (4, 3)))
        offset: dict[str, Any] = {"xytext": (-2, 6), "textcoords": "offset points"}
        axes.annotate("uniform use", (K, mean), ha="right", color=FAINT, **offset)
        finish_axes(axes, top, "codes, most used first")
        data = themed_svg(figure)
    alt = f"How often each code is used, in descending order: {used}, {spread}"
    return Picture(caption, alt, data, "image/svg+xml")


def _check(images: Tensor, grid: tuple[int, int], vocab_size: int, codes: Tensor) -> None:
    expected, got = (len(images), grid[0] * grid[1]), tuple(codes.shape)
    if images.ndim != 4:
        raise ValueError(f"images must be (B, c, H, W), got {tuple(images.shape)}")
    if got != expected:
        raise ValueError(f"codes must be (B, N) = {expected} for grid {grid}, got {got}")
    low, high = map(int, codes.aminmax()) if codes.numel() else (0, 0)
    if low < 0 or high >= vocab_size:
        raise ValueError(f"codes must lie in [0, {vocab_size}), got {low} to {high}")
