"""Which codes are shown and drawn: from what was found of a codebook to its figures and page."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from beit.codebook.book import CodeBook, CodeEntry, Seen
from beit.codebook.figures import pairs_figure, position_figure, usage_figure
from beit.codebook.gallery import Cut, Drawing, Row, gallery_figure
from beit.codebook.map import MIN_TSNE, map_figure, principal_components, tsne
from beit.codebook.report import (
    LISTED,
    Page,
    Rank,
    code_row,
    overall,
    pairs_table,
    ranked,
    report_sections,
)
from beit.draw.report import write_report
from beit.nn.code_statistics import lift

_log = logging.getLogger(__name__)

COLUMNS, ROWS = 10, 12  # patches and codes of a figure: what a page holds
PAIRED = 32  # codes of the co-occurrence figure
Layout = Literal["tsne", "none"]
Cutter = Callable[[Tensor], Iterable[tuple[int, Cut]]]


@dataclass(frozen=True)
class Choice:
    """What is shown; see the recipe's Config."""

    codes: tuple[int, ...] | None = None
    num_codes: int = 16
    rank_by: Rank | None = None
    min_uses: int = 16
    layout: Layout = "tsne"
    seed: int = 0


def write_page(
    folder: Path, choice: Choice, book: CodeBook, cutter: Cutter, about: Mapping[str, Any]
) -> None:
    """Write report.html and figures/*.png and *.svg into a folder.

    Args:
        cutter: gives the cut of each place that can be read, of places (m,) int64 sorted
        about: model, kind, data, images
    """
    bys: list[Rank] = ["use", "position_entropy", "closeness"]
    bys[1:1] = ["purity", "label_entropy"] if book.names else []
    orders = {by: ranked(book.measures, by, choice.min_uses).tolist() for by in bys}
    by: Rank = choice.rank_by or ("purity" if book.names else "use")
    shown = list(dict.fromkeys(choice.codes or orders[by][: choice.num_codes]))
    nearest = {near for code in shown for near, _ in book.entry(code).nearest}
    listed = {code for order in orders.values() for code in order[:LISTED]}
    entries = {code: book.entry(code) for code in sorted({*shown, *nearest, *listed})}
    closest, random, near = _rows(book, entries, shown, sorted(nearest), cutter)

    drawings, notes = _figures(choice, book, orders["use"], orders["position_entropy"])
    how = f"{min(ROWS, len(shown))} codes"
    how += "" if choice.codes else f", by {by.replace('_', ' ')}"
    subtitle = f"{how}, on {about['images']:,} images. Framed: the patch; around it: the image"
    for rows, name, title in (
        (closest, "closest", "The patches closest to each code"),
        (random, "random", "Patches of each code, drawn at random"),
        (near, "neighbours", "The closest patch of each code, and of the codes nearest to it"),
    ):
        short = [replace(row, cuts=row.cuts[:COLUMNS]) for row in rows[:ROWS]]
        drawings[name] = gallery_figure(short, name, title, subtitle)
    (folder / "figures").mkdir()
    for drawn in drawings.values():
        (folder / "figures" / f"{drawn.name}.png").write_bytes(drawn.png)
        (folder / "figures" / f"{drawn.name}.svg").write_bytes(drawn.svg)

    notes["rankings"] = (
        f"Codes with fewer than {choice.min_uses} uses are left out, as few patches are pure by "
        "chance. Entropies are in bits."
    )
    pairs = None
    if "cooccurrence" in drawings:
        some = torch.tensor(orders["use"][:PAIRED])
        both = book.statistics.pairs.cpu()[some][:, some]
        pairs = pairs_table(lift(book.statistics, some), both, some)
    labels = book.statistics.labels.sum(0).double().cpu()
    write_report(
        folder / "report.html",
        f"What the codes of {Path(about['model']).name} stand for",
        report_sections(
            Page(
                *(entries, shown, None if choice.codes else by, closest, random),
                *(orders, drawings, pairs, notes),
            )
        ),
        {
            "Tokenizer": f"{about['model']} ({about['kind']})",
            "Images": f"{about['images']:,} of {about['data']}",
            "Grid": f"{book.grid[0]} by {book.grid[1]}",
            "Seed": str(choice.seed),
            "Closeness": _closeness(about["kind"], book.on_sphere),
        },
        summary="Every figure is in `figures`, as PNG and SVG; every code is in `codes.json`.",
        figures=overall(book.measures, labels / labels.sum() if book.names else None),
    )


def _closeness(kind: str, on_sphere: bool) -> str:
    if kind != "VQKD":
        return "the code's logit"
    return "cosine of patch and code" if on_sphere else "minus the distance of patch and code"


def _rows(
    book: CodeBook,
    entries: Mapping[int, CodeEntry],
    shown: Sequence[int],
    nearest: Sequence[int],
    cutter: Cutter,
) -> tuple[list[Row], list[Row], list[Row]]:
    """Look up the patches: the closest and random ones of codes, and the neighbours' closest."""
    wanted = [book.places(shown), book.places(nearest, closest=1)]
    cuts = dict(cutter(torch.cat(wanted).unique()))

    def seen(patches: Sequence[Seen]) -> list[Cut]:
        places = [book.place(patch) for patch in patches]
        return [cuts[place] for place in places if place in cuts]

    closest = [code_row(entries[code], seen(entries[code].closest)) for code in shown]
    random = [code_row(entries[code], seen(entries[code].random)) for code in shown]
    near = []
    for code in shown:
        there, captions = list[Cut](), list[str]()
        for other, cosine in [(code, 1.0), *entries[code].nearest]:
            found = seen(entries[other].closest[:1])
            there += found
            captions += ["itself" if other == code else f"{other} · {cosine:.2f}"] * len(found)
        near.append(code_row(entries[code], there, captions))
    return closest, random, near


def _figures(
    choice: Choice, book: CodeBook, used: Sequence[int], bound: Sequence[int]
) -> tuple[dict[str, Drawing], dict[str, str]]:
    """Draw usage, places, pairs and maps; and say what is not drawn, and why.

    Args:
        used: codes, the most used first
        bound: codes, the most bound to a place first
    """
    statistics, found = book.statistics, book.measures
    positions = statistics.positions.cpu()
    drawn = [
        usage_figure(found.uses),
        position_figure(positions, book.grid, found.position_entropy, torch.tensor(bound)),
    ]
    notes, some = dict[str, str](), torch.tensor(used[:PAIRED])
    if not len(statistics.pairs):
        notes["pairs"] = f"Not counted: {len(found.uses)} codes would make too large a table."
    elif len(some) < 2:
        notes["pairs"] = "Only one code is used enough: there are no pairs."
    else:
        patches = book.mean_patches[some.numpy()]
        drawn.append(pairs_figure(lift(statistics, some, prior=1), some, patches))
    maps, notes["maps"] = _maps(choice, book)
    return {drawing.name: drawing for drawing in [*drawn, *maps]}, notes


def _maps(choice: Choice, book: CodeBook) -> tuple[list[Drawing], str]:
    uses = book.measures.uses
    codes = uses.argsort(descending=True, stable=True)[: int((uses > 0).sum())]
    vectors, patches = book.vectors[codes], book.mean_patches[codes.numpy()]
    places, shares = principal_components(vectors, book.on_sphere)
    x, y = (f"principal component {n + 1} ({shares[n]:.1%} of the variance)" for n in range(2))
    what = f"The {len(codes):,} codes that are used"
    drawn = [map_figure(places, patches, "map-pca", f"{what}, by principal components", (x, y))]
    said = ["A code is drawn as its mean patch, moved to a free place, so that none hides another."]
    if len(codes) < len(uses):
        said.append(f"{len(uses) - len(codes):,} codes without uses are left out.")
    if choice.layout == "tsne" and len(codes) < MIN_TSNE:
        said.append(f"No t-SNE: it needs {MIN_TSNE} codes or more.")
    elif choice.layout == "tsne":
        try:
            places = tsne(vectors, choice.seed, book.on_sphere)
        except ModuleNotFoundError as error:
            missing = f"No t-SNE: {error.name} is not installed; pip install scikit-learn."
            _log.warning(missing)
            said.append(missing)
        else:
            title = f"{what}, by t-SNE: neighbours stay neighbours"
            drawn.append(map_figure(places, patches, "map-tsne", title, ("", "")))
    return drawn, " ".join(said)
