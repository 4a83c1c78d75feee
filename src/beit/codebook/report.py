"""The report of a codebook: figures, and report.html with rankings, tables and galleries."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from beit.codebook.contents import Code, Codebook, Patch, with_crops
from beit.codebook.crops import Crop
from beit.codebook.figures import pairs_figure, position_figure, usage_figure
from beit.codebook.gallery import Row, gallery_figure, strips
from beit.codebook.map import Layouts, map_figure
from beit.draw.numbers import cosine_words
from beit.draw.report import Cell, Section, Table, link_to, write_report
from beit.nn.code_statistics import CodeMeasures, lift
from beit.nn.metrics import codebook_health

if TYPE_CHECKING:
    from beit.codebook.visualise import Config

COLUMNS, ROWS = 10, 12  # patches and codes of a figure: what fits on a page
PAIRED = 32  # codes of the co-occurrence figure
MIN_SHARED = 10  # images; pairs that share fewer are not listed
LISTED = 20  # codes of a ranked list
Rank = Literal["use", "purity", "label_entropy", "position_entropy", "closeness"]
ReadCrops = Callable[[Tensor], Iterable[tuple[int, Crop]]]
_HEADS: dict[Rank, str] = {
    "use": "Most used",
    "purity": "Highest purity: most often in images of one label",
    "label_entropy": "Lowest entropy over labels",
    "position_entropy": "Lowest entropy over positions",
    "closeness": "Highest mean closeness of patches",
}
_GALLERIES = {
    "closest": "The patches closest to each code",
    "random": "Patches of each code, drawn at random",
    "neighbours": "The closest patch of each code and of its nearest codes",
}


def write_codebook_report(
    directory: Path,
    book: Codebook,
    layouts: Layouts,
    read_crops: ReadCrops,
    about: Mapping[str, Any],
    config: "Config",
) -> None:
    """Write report.html, figures/*.png and figures/*.svg into an existing directory.

    Args:
        read_crops: yields the crop of each readable place, for places (m,) int64 sorted
        about: model, kind, data, images and seed
        config: which codes to show, and in which order
    """
    labelled, measures = bool(book.label_names), book.measures
    by: Rank = config.rank_by or ("purity" if labelled else "use")
    kinds = [kind for kind in _HEADS if labelled or kind not in ("purity", "label_entropy")]
    orders = {kind: ranked(measures, kind, config.min_uses).tolist() for kind in kinds}
    shown = list(dict.fromkeys(config.codes or orders[by][: config.num_codes]))
    rows = _gallery_rows(book, shown, read_crops)
    order = "" if config.codes else f", by {by.replace('_', ' ')}"
    count = f"{min(ROWS, len(shown))} codes{order}"
    subtitle = f"{count}, on {about['images']:,} images. Framed: the patch; around it: the image"
    folder = directory / "figures"
    folder.mkdir()
    drawn = {}
    for name, title in _GALLERIES.items():
        part = [row._replace(crops=row.crops[:COLUMNS]) for row in rows[name][:ROWS]]
        drawn[name] = gallery_figure(part, name, title, subtitle).save(folder)

    which = "The codes named by --codes" if config.codes else _HEADS[by]
    patch_text = (
        f"{which}. A frame marks the patch; around it is the image as the tokenizer saw it. The "
        "closest patches show a code at its best, the random ones what it is used for."
    )
    galleries = [
        strips(rows["closest"], "The patches closest to each code, closest first."),
        strips(rows["random"], "Patches drawn at random from all patches with the code.", True),
    ]
    rank_text = (
        f"Codes with fewer than {config.min_uses} uses are left out: a few patches are pure by "
        "chance. Entropies are in bits."
    )
    listed = {kind: [book.code(code) for code in orders[kind][:LISTED]] for kind in kinds}
    nearest = nearest_table([book.code(code) for code in shown])
    specific, counts = torch.tensor(orders["position_entropy"]), book.statistics.positions.cpu()
    positions = position_figure(counts, book.grid, measures.position_entropy, specific)
    sections = [
        Section("Codes and their patches", patch_text, galleries),
        Section("Code usage", items=[usage_figure(measures.uses).save(folder)]),
        Section("Ranked codes", rank_text, [ranked_table(c, kind) for kind, c in listed.items()]),
        Section("Nearest codes", items=[drawn["neighbours"], nearest]),
        Section("Positions in the image", items=[positions.save(folder)]),
        _pairs_section(folder, book, orders["use"]),
        _maps_section(folder, book, layouts),
    ]
    closeness = f"{'cosine' if book.on_sphere else 'minus the distance'} of patch and code"
    facts = {
        "Tokenizer": link_to(about["model"], directory / "report.html"),
        "Kind": about["kind"],
        "Images": f"{about['images']:,} of {about['data']}",
        "Grid": f"{book.grid[0]} by {book.grid[1]}",
        "Seed": str(about["seed"]),
        "Closeness": closeness if about["kind"] == "VQKD" else "the code's logit",
    }
    title = f"What the codes of {Path(about['model']).name} stand for"
    text = "Every figure is in `figures`, as PNG and SVG; every code is in `codes.json`."
    main = summary_figures(measures.uses, book.statistics.labels.cpu())
    write_report(directory / "report.html", title, sections, facts, summary=text, figures=main)


def ranked(measures: CodeMeasures, by: Rank, min_uses: int) -> Tensor:
    """Rank the codes: most used, highest purity, lowest entropy or closest first: (k,) int64.

    Codes for which the measure is undefined are left out, and those with fewer uses than
    `min_uses` unless all have fewer. Ties: more uses first, then the smaller index.
    """
    values = measures.uses.double() if by == "use" else getattr(measures, by).double()
    if by.endswith("entropy"):
        values = -values
    codes = measures.uses.argsort(descending=True, stable=True)
    codes = codes[(measures.uses[codes] > 0) & ~values[codes].isnan()]
    frequent = codes[measures.uses[codes] >= min_uses]
    codes = frequent if len(frequent) else codes
    return codes[values[codes].argsort(descending=True, stable=True)]


# ── figures ─────────────────────────────────────────────────────────────────────────────────────


def _gallery_rows(
    book: Codebook, shown: Sequence[int], read_crops: ReadCrops
) -> dict[str, list[Row]]:
    """Return a row for each shown code in each of `_GALLERIES`."""
    codes = {index: book.code(index) for index in shown}
    others = {other for code in codes.values() for other, _ in code.nearest}
    codes |= {other: book.code(other) for other in others - set(shown)}
    places = [book.places(shown), book.places(sorted(others), closest=1, random=False)]
    crops = dict(read_crops(torch.cat(places).unique()))
    for index, code in codes.items():
        codes[index] = with_crops(code, lambda patch: crops.get(book.place(patch)))
    return {
        "closest": [code_row(codes[index], codes[index].closest) for index in shown],
        "random": [code_row(codes[index], codes[index].random) for index in shown],
        "neighbours": [_neighbours_row(codes[index], codes) for index in shown],
    }


def code_row(code: Code, patches: Sequence[Patch], captions: Sequence[str] = ()) -> Row:
    """Return a gallery row of patches, titled with the code's uses and purity."""
    notes = [f"{code.uses:,} uses" if code.uses else "never used"]
    if code.purity is not None and code.label is not None:
        notes.append(f"{code.purity:.0%} {code.label}")
    crops = [patch.crop for patch in patches if patch.crop is not None]
    return Row(f"Code {code.index}", notes, crops, captions)


def _neighbours_row(code: Code, codes: Mapping[int, Code]) -> Row:
    """Return the closest patch of a code, then that of each of its nearest codes."""
    patches, captions = [], []
    words = cosine_words([cosine for _, cosine in code.nearest])
    nearest = [
        (other, f"{other} · {word}") for (other, _), word in zip(code.nearest, words, strict=True)
    ]
    for index, caption in [(code.index, "itself"), *nearest]:
        for patch in codes[index].closest[:1]:
            patches.append(patch)
            captions.append(caption)
    return code_row(code, patches, captions)


def _pairs_section(folder: Path, book: Codebook, used: Sequence[int]) -> Section:
    """Draw and list pairs of the most used codes, or say why not."""
    title, codes, pairs = "Codes that co-occur", torch.tensor(used[:PAIRED]), book.statistics.pairs
    if not len(pairs):
        return Section(title, f"Not counted: the table for {len(book)} codes would be too large.")
    if len(codes) < 2:
        return Section(title, "Only one code is used often enough, so there are no pairs.")
    table = pairs_table(lift(book.statistics, codes), pairs.cpu()[codes][:, codes], codes)
    smoothed, patches = lift(book.statistics, codes, prior=1), book.mean_patches[codes.numpy()]
    return Section(title, "", [pairs_figure(smoothed, codes, patches).save(folder), table])


def _maps_section(folder: Path, book: Codebook, layouts: Layouts) -> Section:
    """Draw the codebook in two dimensions."""
    codes, places, shares, near, why_not = layouts
    patches, unused = book.mean_patches[codes.numpy()], len(book) - len(codes)
    x, y = (f"principal component {n + 1} ({shares[n]:.1%} of the variance)" for n in range(2))
    title = f"The {len(codes):,} used codes"
    maps = [map_figure(places, patches, "map-pca", f"{title}, by principal components", (x, y))]
    notes = ["A code is drawn as its mean patch, moved to a free place so that none is hidden."]
    notes += [f"{unused:,} unused codes are left out."] if unused else []
    notes += [why_not] if why_not else []
    if near is not None:
        title = f"{title}, by t-SNE: similar codes are near each other"
        maps.insert(0, map_figure(near, patches, "map-tsne", title, ("", "")))
    pictures = [figure.save(folder) for figure in maps]
    return Section("The codebook in two dimensions", " ".join(notes), pictures)


# ── tables ──────────────────────────────────────────────────────────────────────────────────────


def ranked_table(codes: Sequence[Code], by: Rank) -> Table:
    """List ranked codes with their measures."""
    columns = ["Code", "Uses", "Images", "Closeness", "Positions, bits"]
    rows: list[list[Cell]] = [
        [c.index, c.uses, c.images, _rounded(c.closeness, 3), _rounded(c.position_entropy, 2)]
        for c in codes
    ]
    if any(code.purity is not None for code in codes):
        columns[-1:-1] = ["Purity, %", "Label", "Labels, bits"]
        for code, row in zip(codes, rows, strict=True):
            purity = None if code.purity is None else f"{100 * code.purity:.1f}"
            row[-1:-1] = [purity, code.label, _rounded(code.label_entropy, 2)]
    return Table(_HEADS[by], columns, rows, folded=True)


def _rounded(value: float | None, digits: int) -> str | None:
    return None if value is None else f"{value:.{digits}f}"


def nearest_table(codes: Sequence[Code]) -> Table:
    """List the nearest codes of some codes, with their cosines."""
    count = max((len(code.nearest) for code in codes), default=0)
    columns = ["Code", *(f"Nearest {place + 1}" for place in range(count))]
    words = iter(cosine_words([cosine for code in codes for _, cosine in code.nearest]))
    rows: list[list[Cell]] = [
        [code.index, *(f"{other} ({next(words)})" for other, _ in code.nearest)] for code in codes
    ]
    return Table("Nearest codes, with the cosine of their vectors", columns, rows, folded=True)


def pairs_table(lifts: Tensor, both: Tensor, codes: Tensor) -> Table:
    """List the pairs of codes (k,) that share images most often, relative to chance.

    Args:
        lifts: (k, k), symmetric
        both: (k, k), images with both
    """
    one, other = torch.triu_indices(len(codes), len(codes), offset=1)
    enough = both[one, other] >= MIN_SHARED
    one, other = one[enough], other[enough]
    order = lifts[one, other].argsort(descending=True, stable=True)[:LISTED]
    rows: list[list[Cell]] = [
        [int(codes[a]), int(codes[b]), int(both[a, b]), f"{float(lifts[a, b]):.2f}"]
        for a, b in zip(one[order], other[order], strict=True)
    ]
    caption = f"Pairs that share images most often, of those that share {MIN_SHARED} or more"
    columns = ["Code", "With", "Images with both", "Times chance"]
    return Table(caption, columns, rows, folded=True)


def summary_figures(uses: Tensor, labels: Tensor) -> dict[str, str]:
    """Return the main numbers of the codebook.

    uses: (K,) int64, patches with each code
    labels: (K, Y) int64, those of them in images of each label; Y = 0 without labels
    """
    health, K = codebook_health(uses), len(uses)
    figures = {f"of {K} codes are used": f"{K - health.dead}"}
    figures["perplexity"] = f"{health.perplexity:.0f}"
    if total := int(labels.sum()):  # images without a label count neither here nor for chance
        purity, chance = (int(most.sum()) / total for most in (labels.amax(1), labels.sum(0).max()))
        figures[f"mean purity of a patch's code (chance {chance:.1%})"] = f"{purity:.1%}"
    return figures
