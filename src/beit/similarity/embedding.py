"""Visualise embedding: one page with a map of a set's images, its clusters and every neighbour.

The vectors are those of `beit similar`, from the same index. The map is a t-SNE of them, the
clusters are spherical k-means (`beit.similarity.layout`). With labels the page says how often
neighbours and clusters share one, beside chance.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from beit.command.ending import Ending, opened
from beit.data.batches import EvalBatches
from beit.data.classes import warn_of_alike
from beit.data.source import PartSource, Source, limited, shuffled
from beit.data.sources import open_source
from beit.data.views import EvalView
from beit.draw.canvas import Pixels, shown
from beit.draw.names import percent
from beit.draw.thumbnails import shrunk
from beit.files import refuse_existing
from beit.run.device import DeviceConfig
from beit.run.progress import Progress
from beit.similarity.layout import clusters, layout, num_clusters, purity
from beit.similarity.neighbours import agreement, all_nearest
from beit.similarity.page import EmbeddingPage, write_page
from beit.similarity.vectors import (
    Embedder,
    Features,
    VectorSet,
    images_of,
    indexed,
    is_table,
    open_embedder,
    read_set,
)
from beit.weights.bands import check_bands

MOST = 4000  # images on a page by default
AGREEING = 10  # neighbours whose labels are compared


@dataclass(frozen=True)
class Config:
    """Write a page to explore the images of a set as a model sees them.

    Attributes:
        model: a model with a backbone: a run directory, a weights file, published:NAME or
            hf://OWNER/NAME; or teacher:SOURCE
        data: the images: a folder, a table or another source (docs/data.md), or a part:
            folder[:90%]; or a table of their features that beit embed wrote with this model
        output: a new .html file
        limit: show this many images, a fixed random subset; null for all, 4,000 at most
        neighbours: number of nearest images to show for each
        clusters: number of clusters; null to choose by the number of images
        features: cls, mean, or both; null for the paper's choice: cls after pretraining with
            patch aggregation, else mean (teacher: mean)
        index: .npz or .parquet file that keeps the vectors of the set; null for a file in the
            user's cache folder
        seed: of the clusters
        image_size: input size of the model, a side or [height, width]; null for the model's own
        num_heads: attention heads, if not recorded in the file and not the usual width / 64
        crop_ratio: side of the centre crop over the shorter side; null for that of the model's
            training, else 0.875
        num_workers: processes that decode images
        max_unreadable: largest share of unreadable images that does not stop the work
        device: device and precision of the model; one process
    """

    model: str
    data: str
    output: str
    limit: int | None = None
    neighbours: int = 12
    clusters: int | None = None
    features: Features | None = None
    index: str | None = None
    seed: int = 0
    image_size: int | tuple[int, int] | None = None
    num_heads: int | None = None
    crop_ratio: float | None = None
    num_workers: int = 2
    max_unreadable: float = 0.01
    device: DeviceConfig = field(default_factory=DeviceConfig)

    def __post_init__(self) -> None:
        for name in ("neighbours", "clusters", "limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if Path(self.output).suffix != ".html":
            raise ValueError(f"output is {self.output!r}; expected a name that ends in .html")


class Result(NamedTuple):
    """The page, its images, and how often neighbours share a label, beside chance (None: none)."""

    page: Path
    images: int
    agreement: float | None
    chance: float | None


def run(config: Config) -> Result:
    """Compute the missing vectors, the map and the clusters, and write the page."""
    output = Path(config.output)
    refuse_existing(output, "file")
    embedder = open_embedder(config)
    check_bands(config.model, images_of(config.data))
    images, chosen, total = _images(config, embedder)
    n = len(images.names)
    if n < 2:
        raise ValueError(f"{config.data} has one readable image; a map needs two or more")
    if images.source is None:
        raise ValueError(
            f"{config.data}: its images are not found, and the page shows them; run the command "
            "where they are, or give them as data"
        )
    notes = []
    if chosen < total:
        more = "a fixed random subset; --limit shows more or fewer"
        notes.append(f"{chosen:,} of {total:,} images, {more}")
    if n < chosen:
        notes.append(f"{chosen - n:,} of {chosen:,} images cannot be read and are left out")
    for note in notes:
        print(note)
    print(f"computing neighbours and clusters of {n:,} images", flush=True)
    near = all_nearest(images.vectors, max(config.neighbours, AGREEING))
    groups = clusters(images.vectors, min(config.clusters or num_clusters(n), n), config.seed)
    labels, names = _labels(images)
    compared = min(AGREEING, n - 1)
    shares = None if labels is None else agreement(near.rows[:, :compared], labels)
    pure = None if labels is None else purity(groups, labels, config.seed)
    cells = thumbnails(images.source, images.indices, embedder.view, _side(n), config.num_workers)
    print(f"computing the map of {n:,} images", flush=True)
    page = EmbeddingPage(
        model=config.model,
        data=config.data,
        features=embedder.features,
        note=". ".join(notes),
        names=images.names,
        labels=None if labels is None else labels.tolist(),
        label_names=names,
        places=layout(images.vectors, near.rows, near.cosines),
        neighbours=near.rows[:, : config.neighbours],
        cosines=near.cosines[:, : config.neighbours],
        groups=groups,
        central=central(images.vectors, groups),
        compared=compared,
        agreement=shares,
        purity=pure,
        thumbnails=cells,
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    write_page(output, page)
    return Result(output, n, *((None, None) if shares is None else shares))


def ending(config: Config, result: Result) -> Ending:
    """Say how often neighbours share a label; opening the page is next."""
    figure = f"{result.images:,} images"
    if result.agreement is not None and result.chance is not None:
        figure += (
            f", {percent(result.agreement)} of their {min(AGREEING, result.images - 1)} nearest "
            "have the same label "
            f"(chance {percent(result.chance)})"
        )
    return Ending(f"{result.page}, a page of the set", figure, opened(result.page))


def _images(config: Config, embedder: Embedder) -> tuple[VectorSet, int, int]:
    """Return the readable ones of the images to show, how many were to show, and of how many."""
    most = config.limit or MOST
    if not is_table(config.data):
        source = open_source(config.data)
        warn_of_alike(config.data, source)
        shown = limited(source, most)
        return indexed(shown, config.data, config.index, embedder), len(shown), len(source)
    images, _ = read_set(config.data, embedder)
    total = len(images.names)
    if total <= most:
        return images, total, total
    rows = shuffled(total)[:most].sort().values
    part = images._replace(
        names=[images.names[row] for row in rows.tolist()],
        vectors=images.vectors[rows],
        labels=None if images.labels is None else images.labels[rows],
        indices=[images.indices[row] for row in rows.tolist()],
    )
    return part, most, total


def _labels(images: VectorSet) -> tuple[Tensor | None, list[str]]:
    """Return the labels (n,) as numbers of those that occur, -1 where unknown, and their names."""
    if images.labels is None or not bool((images.labels >= 0).any()):
        return None, []
    known = images.labels >= 0
    values, first = images.labels[known].unique(return_inverse=True)
    labels = torch.full_like(images.labels, -1)
    labels[known] = first
    rows = [int((images.labels == value).nonzero()[0]) for value in values]
    return labels, [images.label(row) for row in rows]


def central(vectors: Tensor, groups: Tensor) -> list[list[int]]:
    """List the rows of vectors (n, D) by group (n,) int64, nearest to its mean direction first."""
    found = []
    for group in range(int(groups.max()) + 1):
        rows = (groups == group).nonzero().flatten()
        closeness = vectors[rows] @ vectors[rows].sum(dim=0)
        found.append(rows[closeness.argsort(descending=True, stable=True)].tolist())
    return found


def _side(count: int) -> int:
    """Return the side of a picture on the page, in pixels."""
    return 112 if count <= 1000 else 88 if count <= 2000 else 72 if count <= 4000 else 48


def thumbnails(
    source: Source, indices: Sequence[int], view: EvalView, side: int, num_workers: int
) -> Pixels:
    """Read images again as the model sees them, shrunk: (n, h, w, 3) uint8; grey if unreadable."""
    height, width = view.size
    blank = shrunk(np.full((height, width, 3), 128, np.uint8), side)
    cells = np.repeat(blank[None], len(indices), axis=0)
    order = torch.tensor(indices)
    place = order.argsort()  # a part of a source is in the source's order
    batches = EvalBatches(PartSource(source, order), view, 64, num_workers=num_workers)
    print(f"reading the pictures of {len(indices):,} images", flush=True)
    with Progress(len(batches)) as progress:
        for step, batch in enumerate(batches, start=1):
            for image, row in zip(shown(batch.images), batch.indices.tolist(), strict=True):
                cells[int(place[row])] = shrunk(image.permute(1, 2, 0).contiguous().numpy(), side)
            progress.update(step, {}, len(batch.images), 0.0)
    return cells
