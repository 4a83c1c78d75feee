"""The page about a codebook: what is known of each code, ranked lists, tables, sections."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from beit.codebook.book import CodeEntry
from beit.codebook.gallery import Cut, Drawing, Row, strips
from beit.draw.report import Cell, Item, Section, Table
from beit.nn.code_statistics import CodeMeasures
from beit.nn.metrics import codebook_health

Rank = Literal["use", "purity", "label_entropy", "position_entropy", "closeness"]
LISTED = 20  # codes of a ranked list
_HEADS = {
    "use": "Most used",
    "purity": "Purest: most often in images of one label",
    "label_entropy": "Least spread over labels",
    "position_entropy": "Most bound to a place in the image",
    "closeness": "With the closest patches on average",
}


def ranked(found: CodeMeasures, by: Rank, min_uses: int) -> Tensor:
    """Order the codes, the first the most used, purest, least spread or closest: (k,) int64.

    Codes without the measure or with fewer uses than `min_uses` are left out, unless all are; of
    equals the more used one comes first, then the smaller number.
    """
    values = found.uses.double() if by == "use" else getattr(found, by).double()
    if by in ("label_entropy", "position_entropy"):
        values = -values
    codes = found.uses.argsort(descending=True, stable=True)
    codes = codes[(found.uses[codes] > 0) & ~values[codes].isnan()]
    often = codes[found.uses[codes] >= min_uses]
    codes = often if len(often) else codes
    return codes[values[codes].argsort(descending=True, stable=True)]


def code_row(entry: CodeEntry, cuts: Sequence[Cut], captions: Sequence[str] = ()) -> Row:
    """Title a code's patches with what is known of it."""
    notes = [f"{entry.uses:,} uses" if entry.uses else "never used"]
    if entry.purity is not None and entry.label is not None:
        notes.append(f"{entry.purity:.0%} {entry.label}")
    return Row(f"Code {entry.code}", notes, cuts, captions)


def ranked_table(entries: Mapping[int, CodeEntry], codes: Sequence[int], by: Rank) -> Table:
    """List codes with their figures."""
    labelled = any(entry.purity is not None for entry in entries.values())
    columns = ["Code", "Uses", "Images", "Closeness"]
    columns += ["Purity, %", "Label", "Labels, bits"] if labelled else []
    columns += ["Places, bits"]
    rows: list[list[Cell]] = []
    for code in codes[:LISTED]:
        entry = entries[code]
        row: list[Cell] = [code, entry.uses, entry.images, _rounded(entry.closeness, 3)]
        if labelled:
            purity = None if entry.purity is None else f"{100 * entry.purity:.1f}"
            row += [purity, entry.label, _rounded(entry.label_entropy, 2)]
        rows.append([*row, _rounded(entry.position_entropy, 2)])
    return Table(_HEADS[by], columns, rows)


def _rounded(value: float | None, digits: int) -> str | None:
    return None if value is None else f"{value:.{digits}f}"


def nearest_table(entries: Mapping[int, CodeEntry], codes: Sequence[int]) -> Table:
    """List the codes nearest to some codes, with their cosines."""
    count = max((len(entries[code].nearest) for code in codes), default=0)
    columns = ["Code", *(f"Nearest {place + 1}" for place in range(count))]
    rows: list[list[Cell]] = [
        [code, *(f"{other} ({cosine:.2f})" for other, cosine in entries[code].nearest)]
        for code in codes
    ]
    return Table("Nearest codes, with the cosine of their vectors", columns, rows)


def pairs_table(lifts: Tensor, both: Tensor, codes: Tensor, min_images: int = 10) -> Table:
    """List the pairs that share an image most, measured against chance.

    Args:
        lifts: (k, k), symmetric
        both: (k, k), images with both
        codes: (k,) int64
        min_images: of a pair, to be listed
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
    caption = f"Pairs that share an image most, of those that share {min_images} or more"
    return Table(caption, ["Code", "With", "Images with both", "Times chance"], rows)


@dataclass(frozen=True)
class Page:
    """What the sections are made of.

    Attributes:
        entries: of all codes that any part shows
        shown: the codes of the galleries
        by: what these are ranked by, None where they were named
        closest, random: their patches
        rankings: codes in order, by what they are ranked by
        drawings: by name: usage, positions, cooccurrence, neighbours, map-pca, map-tsne
        pairs: the table of pairs, if there is one
        notes: by section, what else is to be said
    """

    entries: Mapping[int, CodeEntry]
    shown: Sequence[int]
    by: Rank | None
    closest: Sequence[Row]
    random: Sequence[Row]
    rankings: Mapping[Rank, Sequence[int]]
    drawings: Mapping[str, Drawing]
    pairs: Table | None
    notes: Mapping[str, str]


def report_sections(page: Page) -> list[Section]:
    """Write the report."""
    which = "The codes asked for" if page.by is None else _HEADS[page.by]
    gallery: list[Item] = [
        strips(page.closest, "The patches closest to each code, the closest first."),
        strips(page.random, "Patches drawn at random of all that have the code."),
    ]
    drawn = page.drawings
    sections = [
        Section(
            "Codes and their patches",
            f"{which}. A frame marks the patch, around it is the image as the tokenizer saw it. "
            "The closest patches are a code's best side; those at random say what it stands for.",
            gallery,
        ),
        Section("How often codes are used", page.notes.get("usage", ""), [_of(drawn, "usage")]),
        Section(
            "Codes in order",
            page.notes.get("rankings", ""),
            [ranked_table(page.entries, codes, by) for by, codes in page.rankings.items()],
        ),
        Section(
            "Nearest codes",
            page.notes.get("neighbours", ""),
            [*_if(drawn, "neighbours"), nearest_table(page.entries, page.shown)],
        ),
        Section("Where in the image", "", [_of(drawn, "positions")]),
    ]
    if page.pairs is not None or "pairs" in page.notes:
        items: list[Item] = [*_if(drawn, "cooccurrence"), *([page.pairs] if page.pairs else [])]
        sections.append(Section("Codes that come together", page.notes.get("pairs", ""), items))
    maps: list[Item] = [*_if(drawn, "map-tsne"), *_if(drawn, "map-pca")]
    sections.append(Section("The codebook in two dimensions", page.notes.get("maps", ""), maps))
    return sections


def _of(drawn: Mapping[str, Drawing], name: str) -> Item:
    return drawn[name].picture("")


def _if(drawn: Mapping[str, Drawing], name: str) -> list[Item]:
    return [_of(drawn, name)] if name in drawn else []


def overall(found: CodeMeasures, label_shares: Tensor | None) -> dict[str, str]:
    """Say of the whole codebook what matters, for the head of the page.

    label_shares: (Y,) of the patches, None without labels
    """
    health = codebook_health(found.uses)
    K = len(found.uses)
    said = {
        f"of {K} codes are used": f"{K - health.dead}",
        "perplexity": f"{health.perplexity:.0f}",
    }
    if label_shares is not None:
        labelled = ~found.purity.isnan()
        weights = found.uses[labelled].double()
        purity = float((found.purity[labelled] * weights).sum() / weights.sum())
        chance = float(label_shares.max())
        said[f"mean purity of a patch's code (chance {chance:.1%})"] = f"{purity:.1%}"
    return said
