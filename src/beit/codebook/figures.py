"""Figures of how a codebook is used: how often, where in the grid, which codes co-occur."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from beit.codebook.style import BLUE, GREY, ORANGE, VERMILION, SavedFigure, new_figure, saved
from beit.draw.canvas import Pixels
from beit.nn.metrics import codebook_health

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

_SEQUENTIAL = "cividis"  # looks alike with and without colour vision deficiency
_DIVERGING = "PuOr_r"  # orange above, purple below: distinct with any colour vision
_MAPS = 12  # codes whose positions are drawn


def usage_figure(uses: Tensor) -> SavedFigure:
    """Draw the uses (K,) int64 of each code, sorted, and a histogram of them; not all are zero."""
    K = len(uses)
    health = codebook_health(uses)
    ordered = uses.double().sort(descending=True).values.numpy()
    used, uniform = K - health.dead, ordered.sum() / K
    with new_figure(2.5) as figure:
        from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

        left, right = figure.subplots(1, 2)
        left.step(np.arange(1, used + 1), ordered[:used], where="mid", color=BLUE, linewidth=1.2)
        left.axhline(uniform, color=ORANGE, linewidth=1, linestyle=(0, (4, 2)))
        left.text(K, uniform * 1.08, "uniform use", ha="right", va="bottom", color=GREY)
        if health.dead:
            left.axvspan(used + 0.5, K + 0.5, color=VERMILION, alpha=0.12, linewidth=0)
        left.set(yscale="log", xlim=(0, K + 1), xlabel="codes, most used first", ylabel="uses")
        left.set_title("Uses of each code")
        left.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        left.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(round(value))))
        left.yaxis.set_minor_formatter(NullFormatter())
        _usage_histogram(right, uses)
        alt = (
            f"{used} of {K} codes are used; perplexity {health.perplexity:.1f}; the most used code "
            f"{int(ordered[0])} times; uniform use would be {uniform:.1f}"
        )
        return saved(figure, "usage", alt)


def _usage_histogram(axes: "Axes", uses: Tensor) -> None:
    """Draw a histogram of codes by uses, in bins that double: none, 1, 2-3, 4-7, ..."""
    bins = torch.where(uses > 0, uses.double().clamp(min=1).log2().floor().long() + 1, 0)
    counts = torch.bincount(bins).tolist()
    first = next((n for n, count in enumerate(counts) if n and count), 1)
    shown = [0] * bool(counts[0]) + list(range(first, len(counts)))
    colours = [VERMILION if number == 0 else BLUE for number in shown]
    bars = axes.bar(range(len(shown)), [counts[n] for n in shown], 0.86, color=colours)
    axes.bar_label(bars, padding=1.5, color=GREY)
    axes.set_xticks(range(len(shown)), map(_span, shown))
    for label in axes.get_xticklabels() if len(shown) > 7 else []:
        label.set(rotation=30, ha="right")
    axes.tick_params(axis="x", length=0)
    axes.set(xlabel="uses of a code", ylabel="codes")
    axes.margins(y=0.12)
    axes.set_title("Codes by number of uses")


def _span(number: int) -> str:
    if number < 2:
        return ("never", "once")[number]
    return f"{_short(2 ** (number - 1))}–{_short(2**number - 1)}"


def _short(count: int) -> str:
    return str(count) if count < 10_000 else f"{count / 1000:.0f}k"


def position_figure(
    positions: Tensor, grid: tuple[int, int], entropies: Tensor, codes: Tensor
) -> SavedFigure:
    """Draw how the use of codes depends on the position of a patch.

    Args:
        positions: (N, K) int64, uses of each code at each position
        grid: (Gh, Gw)
        entropies: (K,) bits, of each code over positions; NaN for unused codes
        codes: (k,) int64; the positions of the first dozen are drawn
    """
    Gh, Gw = grid
    share = positions.double() / positions.sum(1, keepdim=True).clamp(min=1)
    perplexity = (-torch.xlogy(share, share).sum(1)).exp().view(Gh, Gw).numpy()
    known = entropies[~entropies.isnan()].numpy()
    drawn = codes[:_MAPS].tolist()
    most = max(math.log2(Gh * Gw), 1e-9)
    low = min(math.floor(2 * known.min()) / 2, most - 1e-9)
    with new_figure(4.3 if drawn else 2.4) as figure:
        parts: Any = figure.subfigures(2, 1, height_ratios=(1.25, 1)) if drawn else [figure]
        left, right = parts[0].subplots(1, 2, width_ratios=(1, 1.5))
        image = left.imshow(perplexity, cmap=_SEQUENTIAL, interpolation="none")
        parts[0].colorbar(image, ax=left, label="codes (perplexity)", shrink=0.9)
        left.set(xticks=[], yticks=[], xlabel="column of the grid", ylabel="row")
        left.set_title("Different codes at each position")
        right.hist(known, bins=np.linspace(low, most, 41).tolist(), color=BLUE)
        right.axvline(most, color=ORANGE, linewidth=1, linestyle=(0, (4, 2)))
        beside: Any = {"xytext": (-4, 0), "textcoords": "offset points", "ha": "right", "va": "top"}
        place: Any = {"xy": (most, 0.97), "xycoords": ("data", "axes fraction")}
        right.annotate(f"uniform ({most:.3g} bits)", color=GREY, **place, **beside)
        right.margins(y=0.18)
        right.set(xlabel="entropy over positions, bits", ylabel="codes")
        right.set_title("How position-specific codes are")
        if drawn:
            _position_maps(parts[1], positions.view(Gh, Gw, -1), entropies, drawn)
        alt = (
            f"Perplexity of codes at each position of the {Gh} by {Gw} grid: "
            f"{perplexity.min():.1f} to {perplexity.max():.1f}; entropy of codes over positions, "
            f"median {np.median(known):.2f} of at most {most:.2f} bits"
        )
        return saved(figure, "positions", alt)


def _position_maps(
    figure: "SubFigure", positions: Tensor, entropies: Tensor, codes: Sequence[int]
) -> None:
    """Draw the uses of some codes at each position, from positions (Gh, Gw, K)."""
    grid_of_axes = figure.subplots(2, _MAPS // 2, squeeze=False).ravel()
    for axes in grid_of_axes:
        axes.axis("off")
    for axes, code in zip(grid_of_axes, codes, strict=False):
        counts = positions[..., code].numpy()
        axes.imshow(counts, cmap=_SEQUENTIAL, vmin=0, interpolation="none")
        axes.set_title(f"{code}: {entropies[code]:.2f} bits", size=7, weight="normal")
    title = "Positions of the most position-specific codes (yellow: most often)"
    figure.suptitle(title, size=8.5, weight="bold", x=0.01, ha="left")


def pairs_figure(lifts: Tensor, codes: Tensor, patches: Pixels) -> SavedFigure:
    """Draw how much more or less often than by chance two codes share an image.

    Codes that co-occur are placed next to each other.

    Args:
        lifts: (k, k) with a prior of one image, the diagonal NaN; k at least 2
        codes: (k,) int64
        patches: (k, p, p, 3), the mean patch of each code
    """
    k = len(codes)
    logs = lifts.clamp(min=2**-6).log2()
    order = _similarity_order(logs)
    cells, shown = logs[order][:, order].numpy(), codes[order].tolist()
    bound = max(1.0, float(np.nanquantile(np.abs(cells), 0.99)))
    with new_figure(6.4) as figure:
        axes = figure.subplots()
        picture = axes.imshow(cells, cmap=_DIVERGING, vmin=-bound, vmax=bound, interpolation="none")
        axes.set_facecolor("#dddddd")
        bar = figure.colorbar(picture, ax=axes, shrink=0.6, extend="both", pad=0.02)
        bar.set_label("log2 of (images with both + 1) / (expected by chance + 1)")
        axes.set_xticks(range(k), map(str, shown), rotation=90, size=6)
        axes.set_yticks(range(k), map(str, shown), size=6)
        axes.tick_params(length=0, pad=2 + 72 * 5.2 / k)  # room for the mean patches
        axes.set(xlabel="code", ylabel="code")
        axes.set_title(f"Which of the {k} most used codes share an image")
        for place, patch in enumerate(patches[order.numpy()]):
            beside = (-1.55, -0.65, place + 0.45, place - 0.45)
            below = (place - 0.45, place + 0.45, k + 0.55, k - 0.35)
            for extent in (beside, below):
                axes.imshow(patch, extent=extent, clip_on=False, interpolation="none")
        axes.set(xlim=(-0.5, k - 0.5), ylim=(k - 0.5, -0.5))
        alt = f"How often {k} codes share an image, against chance; strongest {bound:.1f} bits"
        return saved(figure, "cooccurrence", alt)


def _similarity_order(logs: Tensor) -> Tensor:
    """Order codes by the angle of their rows in the first two principal components."""
    rows = logs.nan_to_num(nan=float(logs.nan_to_num().max())).double()
    rows = rows - rows.mean(0)
    _, _, directions = torch.linalg.svd(rows, full_matrices=False)
    angle = torch.atan2(rows @ directions[1], rows @ directions[0])
    order: Tensor = angle.argsort(stable=True)
    gaps = torch.cat([angle[order][1:], angle[order][:1] + 2 * math.pi]) - angle[order]
    return order.roll(-int(gaps.argmax()) - 1)  # start after the widest gap of the circle
