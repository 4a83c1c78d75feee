"""The report of a codebook: chooses the codes, draws the figures and writes report.html."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from beit.codebook.contents import Code, Codebook, with_crops
from beit.codebook.crops import Crop
from beit.codebook.figures import pairs_figure, position_figure, usage_figure
from beit.codebook.gallery import Row, gallery_figure, strips
from beit.codebook.map import MIN_TSNE, map_figure, principal_components, tsne
from beit.codebook.sections import (
    LISTED,
    Rank,
    code_row,
    pairs_table,
    ranked,
    report_sections,
    summary_figures,
)
from beit.codebook.style import SavedFigure
from beit.draw.report import Table, write_report
from beit.nn.code_statistics import lift

_log = logging.getLogger(__name__)

COLUMNS, ROWS = 10, 12  # patches and codes of a figure: what fits on a page
PAIRED = 32  # codes of the co-occurrence figure
Layout = Literal["tsne", "none"]
ReadCrops = Callable[[Tensor], Iterable[tuple[int, Crop]]]


def write_codebook_report(
    directory: Path,
    book: Codebook,
    read_crops: ReadCrops,
    about: Mapping[str, Any],
    *,
    codes: Sequence[int] | None,
    num_codes: int,
    rank_by: Rank | None,
    min_uses: int,
    layout: Layout,
) -> None:
    """Write report.html, figures/*.png and figures/*.svg into a directory.

    Args:
        directory: exists
        book: the codes
        read_crops: yields the crop of each readable place, for places (m,) int64 sorted
        about: model, kind, data, images and seed
        codes, num_codes, rank_by, min_uses, layout: as in `visualise.Config`
    """
    labelled = bool(book.label_names)
    measures: list[Rank] = ["use", "position_entropy", "closeness"]
    measures[1:1] = ["purity", "label_entropy"] if labelled else []
    orders = {by: ranked(book.measures, by, min_uses).tolist() for by in measures}
    by: Rank = rank_by or ("purity" if labelled else "use")
    shown = list(dict.fromkeys(codes or orders[by][:num_codes]))
    closest, random, neighbours = _gallery_rows(book, shown, read_crops)

    count = f"{min(ROWS, len(shown))} codes" + ("" if codes else f", by {by.replace('_', ' ')}")
    subtitle = f"{count}, on {about['images']:,} images. Framed: the patch; around it: the image"
    positions, entropies = book.statistics.positions.cpu(), book.measures.position_entropy
    specific = torch.tensor(orders["position_entropy"])
    pair_figures, pairs, pairs_note = _pairs(book, orders["use"])
    figures = [
        usage_figure(book.measures.uses),
        position_figure(positions, book.grid, entropies, specific),
        *pair_figures,
        *_gallery_figures(closest, random, neighbours, subtitle),
    ]
    maps, maps_note = _maps(book, layout, about["seed"])
    figures += maps
    (directory / "figures").mkdir()
    for figure in figures:
        figure.save(directory / "figures")

    rankings_note = (
        f"Codes with fewer than {min_uses} uses are left out: a few patches are pure by chance. "
        "Entropies are in bits."
    )
    sections = report_sections(
        shown=[book.code(code) for code in shown],
        by=None if codes else by,
        galleries=[
            strips(closest, "The patches closest to each code, closest first."),
            strips(random, "Patches drawn at random from all patches with the code."),
        ],
        rankings={by: [book.code(c) for c in order[:LISTED]] for by, order in orders.items()},
        figures=figures,
        pairs=pairs,
        notes={"rankings": rankings_note, "pairs": pairs_note, "maps": maps_note},
    )
    labels = book.statistics.labels.sum(0).double().cpu()
    write_report(
        directory / "report.html",
        f"What the codes of {Path(about['model']).name} stand for",
        sections,
        {
            "Tokenizer": f"{about['model']} ({about['kind']})",
            "Images": f"{about['images']:,} of {about['data']}",
            "Grid": f"{book.grid[0]} by {book.grid[1]}",
            "Seed": str(about["seed"]),
            "Closeness": _closeness(about["kind"], book.on_sphere),
        },
        summary="Every figure is in `figures`, as PNG and SVG; every code is in `codes.json`.",
        figures=summary_figures(book.measures, labels / labels.sum() if labelled else None),
    )


def _closeness(kind: str, on_sphere: bool) -> str:
    if kind != "VQKD":
        return "the code's logit"
    return "cosine of patch and code" if on_sphere else "minus the distance of patch and code"


def _gallery_rows(
    book: Codebook, shown: Sequence[int], read_crops: ReadCrops
) -> tuple[list[Row], list[Row], list[Row]]:
    """Return rows of the closest patches, random patches, and the nearest codes' closest patch."""
    codes = {index: book.code(index) for index in shown}
    others = {other for code in codes.values() for other, _ in code.nearest}
    codes |= {other: book.code(other) for other in others - set(shown)}
    places = [book.places(shown), book.places(sorted(others), closest=1, random=False)]
    crops = dict(read_crops(torch.cat(places).unique()))
    codes = {
        index: with_crops(code, lambda patch: crops.get(book.place(patch)))
        for index, code in codes.items()
    }
    closest = [code_row(codes[index], codes[index].closest) for index in shown]
    random = [code_row(codes[index], codes[index].random) for index in shown]
    return closest, random, [_neighbours_row(codes[index], codes) for index in shown]


def _neighbours_row(code: Code, codes: Mapping[int, Code]) -> Row:
    """Return the closest patch of a code, then that of each of its nearest codes."""
    patches, captions = list(code.closest[:1]), ["itself"] * len(code.closest[:1])
    for other, cosine in code.nearest:
        patch = codes[other].closest[:1]
        patches += patch
        captions += [f"{other} · {cosine:.2f}"] * len(patch)
    return code_row(code, patches, captions)


def _gallery_figures(
    closest: Sequence[Row], random: Sequence[Row], neighbours: Sequence[Row], subtitle: str
) -> list[SavedFigure]:
    galleries = (
        (closest, "closest", "The patches closest to each code"),
        (random, "random", "Patches of each code, drawn at random"),
        (neighbours, "neighbours", "The closest patch of each code and of its nearest codes"),
    )
    return [
        gallery_figure(
            [replace(row, crops=row.crops[:COLUMNS]) for row in rows[:ROWS]], name, title, subtitle
        )
        for rows, name, title in galleries
    ]


def _pairs(book: Codebook, used: Sequence[int]) -> tuple[list[SavedFigure], Table | None, str]:
    """Draw and list pairs of the most used codes. Returns: the figure and table, or why not."""
    codes, pairs = torch.tensor(used[:PAIRED]), book.statistics.pairs
    if not len(pairs):
        return [], None, f"Not counted: the table for {len(book)} codes would be too large."
    if len(codes) < 2:
        return [], None, "Only one code is used often enough, so there are no pairs."
    both = pairs.cpu()[codes][:, codes]
    table = pairs_table(lift(book.statistics, codes), both, codes)
    patches = book.mean_patches[codes.numpy()]
    return [pairs_figure(lift(book.statistics, codes, prior=1), codes, patches)], table, ""


def _maps(book: Codebook, layout: Layout, seed: int) -> tuple[list[SavedFigure], str]:
    """Draw the codebook in two dimensions. Returns: the figures, and a note about them."""
    uses = book.measures.uses
    codes = uses.argsort(descending=True, stable=True)[: int((uses > 0).sum())]
    vectors, patches = book.vectors[codes], book.mean_patches[codes.numpy()]
    places, shares = principal_components(vectors, book.on_sphere)
    x, y = (f"principal component {n + 1} ({shares[n]:.1%} of the variance)" for n in range(2))
    title = f"The {len(codes):,} used codes"
    maps = [map_figure(places, patches, "map-pca", f"{title}, by principal components", (x, y))]
    notes = ["A code is drawn as its mean patch, moved to a free place so that none is hidden."]
    if len(codes) < len(uses):
        notes.append(f"{len(uses) - len(codes):,} unused codes are left out.")
    if layout == "tsne" and len(codes) < MIN_TSNE:
        notes.append(f"No t-SNE: it needs {MIN_TSNE} codes or more.")
    elif layout == "tsne":
        try:
            places = tsne(vectors, seed, book.on_sphere)
        except ModuleNotFoundError as error:
            missing = f"No t-SNE: {error.name} is not installed; pip install scikit-learn."
            _log.warning(missing)
            notes.append(missing)
        else:
            title = f"{title}, by t-SNE: similar codes are near each other"
            maps.append(map_figure(places, patches, "map-tsne", title, ("", "")))
    return maps, " ".join(notes)
