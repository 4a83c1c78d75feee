"""The sections of a codebook's report: rankings, tables and galleries."""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from beit.codebook.contents import Code, Patch
from beit.codebook.gallery import Row
from beit.codebook.style import SavedFigure
from beit.draw.report import Cell, Gallery, Item, Section, Table
from beit.nn.code_statistics import CodeMeasures
from beit.nn.metrics import codebook_health

Rank = Literal["use", "purity", "label_entropy", "position_entropy", "closeness"]
LISTED = 20  # codes of a ranked list
_HEADS = {
    "use": "Most used",
    "purity": "Highest purity: most often in images of one label",
    "label_entropy": "Lowest entropy over labels",
    "position_entropy": "Lowest entropy over positions",
    "closeness": "Highest mean closeness of patches",
}


def ranked(measures: CodeMeasures, by: Rank, min_uses: int) -> Tensor:
    """Rank the codes: most used, highest purity, lowest entropy or closest first: (k,) int64.

    Codes for which the measure is undefined are left out, and those with fewer uses than
    `min_uses` unless all have fewer. Ties: more uses first, then the smaller index.
    """
    values = measures.uses.double() if by == "use" else getattr(measures, by).double()
    if by in ("label_entropy", "position_entropy"):
        values = -values
    codes = measures.uses.argsort(descending=True, stable=True)
    codes = codes[(measures.uses[codes] > 0) & ~values[codes].isnan()]
    frequent = codes[measures.uses[codes] >= min_uses]
    codes = frequent if len(frequent) else codes
    return codes[values[codes].argsort(descending=True, stable=True)]


def code_row(code: Code, patches: Sequence[Patch], captions: Sequence[str] = ()) -> Row:
    """Return a gallery row of patches, titled with the code's uses and purity."""
    notes = [f"{code.uses:,} uses" if code.uses else "never used"]
    if code.purity is not None and code.label is not None:
        notes.append(f"{code.purity:.0%} {code.label}")
    crops = [patch.crop for patch in patches if patch.crop is not None]
    return Row(f"Code {code.index}", notes, crops, captions)


def ranked_table(codes: Sequence[Code], by: Rank) -> Table:
    """List ranked codes with their measures."""
    labelled = any(code.purity is not None for code in codes)
    columns = ["Code", "Uses", "Images", "Closeness"]
    columns += ["Purity, %", "Label", "Labels, bits"] if labelled else []
    columns += ["Positions, bits"]
    rows: list[list[Cell]] = []
    for code in codes:
        row: list[Cell] = [code.index, code.uses, code.images, _rounded(code.closeness, 3)]
        if labelled:
            purity = None if code.purity is None else f"{100 * code.purity:.1f}"
            row += [purity, code.label, _rounded(code.label_entropy, 2)]
        rows.append([*row, _rounded(code.position_entropy, 2)])
    return Table(_HEADS[by], columns, rows)


def _rounded(value: float | None, digits: int) -> str | None:
    return None if value is None else f"{value:.{digits}f}"


def nearest_table(codes: Sequence[Code]) -> Table:
    """List the nearest codes of some codes, with their cosines."""
    count = max((len(code.nearest) for code in codes), default=0)
    columns = ["Code", *(f"Nearest {place + 1}" for place in range(count))]
    rows: list[list[Cell]] = [
        [code.index, *(f"{other} ({cosine:.2f})" for other, cosine in code.nearest)]
        for code in codes
    ]
    return Table("Nearest codes, with the cosine of their vectors", columns, rows)


def pairs_table(lifts: Tensor, both: Tensor, codes: Tensor, min_images: int = 10) -> Table:
    """List the pairs of codes that share images most often, relative to chance.

    Args:
        lifts: (k, k), symmetric
        both: (k, k), images with both
        codes: (k,) int64
        min_images: pairs that share fewer images are left out
    """
    k = len(codes)
    one, other = torch.triu_indices(k, k, offset=1)
    enough = both[one, other] >= min_images
    one, other = one[enough], other[enough]
    order = lifts[one, other].argsort(descending=True, stable=True)[:LISTED]
    rows: list[list[Cell]] = [
        [int(codes[a]), int(codes[b]), int(both[a, b]), f"{float(lifts[a, b]):.2f}"]
        for a, b in zip(one[order], other[order], strict=True)
    ]
    caption = f"Pairs that share images most often, of those that share {min_images} or more"
    return Table(caption, ["Code", "With", "Images with both", "Times chance"], rows)


def report_sections(
    shown: Sequence[Code],
    by: Rank | None,
    galleries: Sequence[Gallery],
    rankings: Mapping[Rank, Sequence[Code]],
    figures: Sequence[SavedFigure],
    pairs: Table | None,
    notes: Mapping[str, str],
) -> list[Section]:
    """Return the sections of the report.

    Args:
        shown: the codes of the galleries
        by: what they are ranked by, None if they were named
        galleries: of their patches
        rankings: the first codes by each measure
        figures: named usage, positions, cooccurrence, neighbours, map-pca and map-tsne
        pairs: table of pairs, or None
        notes: text of the sections rankings, pairs and maps
    """
    named = {figure.name: figure.picture() for figure in figures}

    def pictures(*names: str) -> list[Item]:
        return [named[name] for name in names if name in named]

    which = "The codes named by --codes" if by is None else _HEADS[by]
    tables = [ranked_table(codes, measure) for measure, codes in rankings.items()]
    co_occurring = [*pictures("cooccurrence"), *([pairs] if pairs else [])]
    return [
        Section(
            "Codes and their patches",
            f"{which}. A frame marks the patch; around it is the image as the tokenizer saw it. "
            "The closest patches show a code at its best, the random ones what it is used for.",
            galleries,
        ),
        Section("Code usage", items=pictures("usage")),
        Section("Ranked codes", notes["rankings"], tables),
        Section("Nearest codes", "", [*pictures("neighbours"), nearest_table(shown)]),
        Section("Positions in the image", items=pictures("positions")),
        Section("Codes that co-occur", notes["pairs"], co_occurring),
        Section("The codebook in two dimensions", notes["maps"], pictures("map-tsne", "map-pca")),
    ]


def summary_figures(measures: CodeMeasures, label_shares: Tensor | None) -> dict[str, str]:
    """Return the main numbers of the codebook, for the top of the page.

    label_shares: (Y,) of the patches, None without labels
    """
    health = codebook_health(measures.uses)
    K = len(measures.uses)
    figures = {
        f"of {K} codes are used": f"{K - health.dead}",
        "perplexity": f"{health.perplexity:.0f}",
    }
    if label_shares is not None:
        labelled = ~measures.purity.isnan()
        weights = measures.uses[labelled].double()
        purity = float((measures.purity[labelled] * weights).sum() / weights.sum())
        chance = float(label_shares.max())
        figures[f"mean purity of a patch's code (chance {chance:.1%})"] = f"{purity:.1%}"
    return figures
