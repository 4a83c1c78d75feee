"""Visualising codes: what each code of a tokenizer stands for, on any set of images.

The images stream by once. Kept are sums (`beit.nn.code_statistics`) and, for each code, the few
patches closest to it and as many drawn at random (`beit.nn.reservoir`): memory does not grow with
the images, and under torchrun, where each process takes its share of the batches, the result is
that of one process. Then the first process reads once more the images whose patches are shown.

OUTPUT holds codes.json (every code: figures, nearest codes, patches), report.html, figures/*.png
and *.svg, and with `explorer` explorer.html, a page to walk through the codebook.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor, nn

import beit
from beit.codebook.book import CodeBook, json_of
from beit.codebook.explorer import SeenImage, thumbnail
from beit.codebook.explorer_book import write_codebook
from beit.codebook.gallery import Cut, cut
from beit.codebook.page import Choice, Layout, write_page
from beit.codebook.report import Rank
from beit.data.batch import Batch
from beit.data.batches import EvalBatches
from beit.data.decoding import UnreadableImage
from beit.data.prefetch import prefetch
from beit.data.sources import PartSource, Source, open_source
from beit.data.unreadable import Unreadable, readable
from beit.data.views import EvalView
from beit.files import write_text
from beit.nn.code_statistics import CodeStatistics, code_vectors, rated
from beit.nn.reservoir import Reservoir, in_steps, random_keys
from beit.nn.tokenizer import VQKD, Tokenizer
from beit.rows.about import fingerprint
from beit.rows.lines import printable
from beit.run.device import DeviceConfig, gathered, launch, summed
from beit.run.progress import Progress
from beit.weights.open import load_tokenizer

if TYPE_CHECKING:
    from lightning_fabric import Fabric


@dataclass(frozen=True)
class Config:
    """What is shown, of which tokenizer, on which images.

    Attributes:
        model: a tokenizer: a run directory, a weights file, published:NAME or hf://OWNER/NAME
        data: images: a folder, *.parquet or shapes://COUNT, or a part: folder[:90%]
        output: a new directory
        limit: take so many images, a fixed random subset; null for all
        codes: show these codes; null for the first `num_codes` by `rank_by`
        num_codes: codes in the galleries, where `codes` does not name them
        per_code: patches kept of each code: so many of the closest, and so many at random
        rank_by: use, purity (over labels), label_entropy, position_entropy or closeness; null for
            purity where there are labels, else use
        min_uses: rankings leave out codes with fewer uses, which are pure by chance
        context: patches around a framed one, on each side
        layout: of the codebook in two dimensions, beside its principal components: tsne (needs
            scikit-learn) or none
        explorer: also write explorer.html
        explorer_images: whole images in it
        seed: of the random patches and of the layout
        image_size: side or [height, width], for a tokenizer whose file does not say it or that
            takes others than its own; null for its own
        num_heads: attention heads, where neither the file nor the usual 64 channels a head say it
        crop_ratio: side of the centre crop over the shorter side; 1 for images without a margin
        batch_size: images at a time in each process
        num_workers: processes that decode images, for each process
        max_unreadable: largest share of images that may be left out, because they cannot be read or
            are smaller than a patch
        device: where and in which precision the tokenizer runs
    """

    model: str
    data: str
    output: str
    limit: int | None = None
    codes: tuple[int, ...] | None = None
    num_codes: int = 16
    per_code: int = 16
    rank_by: Rank | None = None
    min_uses: int = 16
    context: int = 2
    layout: Layout = "tsne"
    explorer: bool = False
    explorer_images: int = 48
    seed: int = 0
    image_size: int | tuple[int, int] | None = None
    num_heads: int | None = None
    crop_ratio: float = 0.875
    batch_size: int = 128
    num_workers: int = 2
    max_unreadable: float = 0.01
    device: DeviceConfig = field(default_factory=DeviceConfig)

    def __post_init__(self) -> None:
        for name in ("num_codes", "per_code", "min_uses"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.context < 0 or self.explorer_images < 0:
            raise ValueError(
                "context and explorer_images must not be negative, got "
                f"{self.context} and {self.explorer_images}"
            )
        if self.codes is not None and not self.codes:
            raise ValueError("codes names none; name some, as in --codes [3,14], or leave it out")


class Result(NamedTuple):
    """The directory, and how many images were seen; None in all processes but the first."""

    directory: Path
    images: int | None


class Found(NamedTuple):
    """What streaming leaves: sums, and the closest and random patches of each code."""

    statistics: CodeStatistics
    closest: Reservoir
    random: Reservoir

    def megabytes(self) -> float:
        """Say how much memory it takes."""
        tensors = [*self.statistics.tensors(), self.closest.entries, self.random.entries]
        return sum(tensor.nbytes for tensor in tensors) / 1e6


def run(config: Config) -> Result:
    """Go through the images and write the directory."""
    output = Path(config.output)
    if output.exists():
        raise FileExistsError(f"{output} exists and is not overwritten; name another directory")
    fabric = launch(config.device)
    first = fabric.is_global_zero
    given = {"image_size": config.image_size, "num_heads": config.num_heads}
    overrides = {name: value for name, value in given.items() if value is not None}
    tokenizer = load_tokenizer(config.model, **overrides)
    K = tokenizer.vocab_size
    if config.codes and not 0 <= min(config.codes) <= max(config.codes) < K:
        wrong = next(code for code in config.codes if not 0 <= code < K)
        raise ValueError(f"codes names {wrong}; {config.model} has the codes 0 to {K - 1}")
    patch_size = tokenizer.image_size[0] // tokenizer.grid[0]
    source = LargeEnough(open_source(config.data, limit=config.limit), patch_size)
    names = label_names(source)
    if config.rank_by in ("purity", "label_entropy") and not names:
        raise ValueError(
            f"rank_by is {config.rank_by}, which needs labels, and {config.data} has none; rank by "
            "use, position_entropy or closeness, or give class folders or a column 'label'"
        )
    view = EvalView(tokenizer.image_size, config.crop_ratio)
    rank, world_size = fabric.global_rank, fabric.world_size
    batches = EvalBatches(
        *(source, view, config.batch_size),
        rank=rank,
        world_size=world_size,
        num_workers=config.num_workers,
    )
    unreadable = Unreadable(len(source), config.max_unreadable)
    tokenizer = tokenizer.to(fabric.device)
    rate = partial(rated, tokenizer)
    rate = cast(Any, torch.compile(rate)) if config.device.compile else rate
    # Whole numbers of 64 bits: the CPU counts where the device is neither itself nor CUDA.
    counting = fabric.device if fabric.device.type == "cuda" else torch.device("cpu")
    found = Found(
        CodeStatistics(K, tokenizer.grid, patch_size, len(names), counting),
        Reservoir(K, config.per_code, counting),
        Reservoir(K, config.per_code, counting),
    )

    loader = prefetch(batches, fabric.device)
    started = time.perf_counter()
    with Progress(len(batches), enabled=first) as progress, torch.no_grad():
        for step, batch in enumerate(readable(loader, unreadable, progress.warn), start=1):
            with fabric.autocast():
                codes, scores = rate(batch.images)  # (B, N) each
            count(found, config.seed, batch, codes, scores)
            progress.update(step, {}, len(codes) * world_size, loader.wait_seconds)
        over_all_processes(fabric, found)
        images = int(found.statistics.total)
        check_left_out(len(source) - images, len(source), config.max_unreadable)
        if not first:
            return Result(output, None)
        with progress.aside("drawing"), fabric.autocast():
            book = CodeBook(
                *(*found, code_vectors(tokenizer), tokenizer.grid, names),
                on_sphere=not isinstance(tokenizer, VQKD) or tokenizer.quantizer.l2_normalised,
            )
            about = description(config, tokenizer, images)
            looker = Looker(config, source, view, tokenizer.grid)
            device = fabric.device
            write(config, about, book, source, looker, lambda seen: rate(seen.to(device))[0])
    seconds = time.perf_counter() - started
    left_out = len(source) - images
    lost_too = f" ({left_out} left out)" if left_out else ""
    print(
        f"{images} images{lost_too} in {output}, {seconds:.1f} s; the statistics take "
        f"{found.megabytes():.1f} MB whatever the images, the process at its peak "
        f"{peak_megabytes():.0f} MB"
    )
    return Result(output, images)


def count(found: Found, seed: int, batch: Batch, codes: Tensor, scores: Tensor) -> None:
    """Take in the images of a batch, by their codes and scores (B, N)."""
    statistics = found.statistics
    device, N = statistics.total.device, codes.shape[1]
    parts = (batch.images, codes, scores, batch.labels, batch.indices)
    images, codes, scores, labels, indices = (part.to(device) for part in parts)
    statistics.add(images, codes, scores, labels)
    places = (indices[:, None] * N + torch.arange(N, device=device)).flatten()
    codes, scores = codes.flatten(), in_steps(scores).flatten()
    found.closest.add(codes, scores, places, scores)
    found.random.add(codes, random_keys(seed, places), places, scores)


def over_all_processes(fabric: "Fabric", found: Found) -> None:
    """Make of the sums and reservoirs of each process those of all images, in place."""
    if fabric.world_size == 1:
        return
    device = fabric.device
    for tensor in found.statistics.tensors():
        tensor.copy_(summed(fabric, tensor.to(device)))
    for reservoir in (found.closest, found.random):
        K = len(reservoir.entries)
        rows = gathered(fabric, reservoir.entries.to(device)).to(reservoir.entries.device)
        reservoir.entries = rows[:K].clone()
        for entries in rows[K:].split(K):
            reservoir.merge(entries)


def check_left_out(number: int, total: int, limit_share: float) -> None:
    """Refuse what is based on too few of the images, over all processes."""
    if number > limit_share * total or number == total:
        raise ValueError(
            f"{number} of {total} images are left out, more than the allowed {limit_share:.3%}; "
            "repair or remove them, or raise max_unreadable"
        )


class LargeEnough:
    """A source without the images that are smaller than a patch: they count as unreadable."""

    def __init__(self, source: Source, patch_size: int) -> None:
        self._source, self._patch_size = source, patch_size

    def __len__(self) -> int:
        return len(self._source)

    def image(self, index: int) -> Tensor:
        image = self._source.image(index)
        _, height, width = image.shape
        if min(height, width) < self._patch_size:
            P = self._patch_size
            reason = f"{height} x {width} pixels are smaller than a patch of {P} x {P}"
            raise UnreadableImage(self.name(index), reason)
        return image

    def name(self, index: int) -> str:
        return printable(self._source.name(index))

    @property
    def labels(self) -> Tensor | None:
        return self._source.labels

    @property
    def class_names(self) -> list[str] | None:
        return self._source.class_names


def label_names(source: Source) -> list[str]:
    """Name the labels, by number where the source does not; none without labels."""
    if source.labels is None or not bool((source.labels >= 0).any()):
        return []
    names = [printable(name) for name in source.class_names or []]
    return names + [f"label {number}" for number in range(len(names), int(source.labels.max()) + 1)]


def peak_megabytes() -> float:
    """Say how much memory this process has had at most; NaN where the system does not tell."""
    if sys.platform == "win32":
        return float("nan")
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)


def description(config: Config, tokenizer: Tokenizer, images: int) -> dict[str, Any]:
    """Say what the result depends on, in plain values."""
    return {
        "beit": beit.__version__,
        "verb": "visualise codes",
        "model": config.model,
        "kind": type(tokenizer).__name__,
        "weights": fingerprint(cast(nn.Module, tokenizer)),  # every tokenizer is one
        "vocab_size": tokenizer.vocab_size,
        "grid": tokenizer.grid,
        "image_size": tokenizer.image_size,
        "data": config.data,
        "images": images,
        "limit": config.limit,
        "per_code": config.per_code,
        "crop_ratio": config.crop_ratio,
        "seed": config.seed,
        "precision": config.device.precision,
    }


# ── what is written ─────────────────────────────────────────────────────────────────────────────


class Looker:
    """Reads images again for the patches that are shown, each image once, in order."""

    def __init__(
        self, config: Config, source: Source, view: EvalView, grid: tuple[int, int]
    ) -> None:
        self._config, self._source, self._view, self._grid = config, source, view, grid

    def cuts(self, places: Tensor) -> Iterator[tuple[int, Cut]]:
        """Cut patches out; places (m,) int64 sorted. Gives each place with its cut."""
        N = prod(self._grid)
        images = (places // N).unique()
        if not len(images):
            return
        wanted = places.tolist()
        config = self._config
        batches = EvalBatches(
            *(PartSource(self._source, images), self._view, config.batch_size),
            num_workers=config.num_workers,
        )
        place = 0
        for batch in batches:
            for image, index in zip(batch.images, images[batch.indices].tolist(), strict=True):
                while place < len(wanted) and wanted[place] // N <= index:
                    if wanted[place] // N == index:  # else it has become unreadable meanwhile
                        position = wanted[place] % N
                        yield wanted[place], cut(image, position, self._grid, config.context)
                    place += 1

    def whole(
        self, number: int, book: CodeBook, encode: Callable[[Tensor], Tensor]
    ) -> dict[int, SeenImage]:
        """Take so many images, evenly from the first to the last, and their codes (B, N)."""
        total = len(self._source)
        indices = torch.linspace(0, total - 1, min(number, total)).round().long().unique()
        part = PartSource(self._source, indices)
        found = {}
        for batch in EvalBatches(part, self._view, self._config.batch_size) if len(part) else []:
            codes = encode(batch.images).cpu().numpy()
            for image, row, place in zip(batch.images, codes, batch.indices.tolist(), strict=True):
                index = int(indices[place])
                small = thumbnail(image.permute(1, 2, 0).numpy())
                label = book.label(self._source, index)
                found[index] = SeenImage(self._source.name(index), small, row, label)
        return found


def write(
    config: Config,
    about: dict[str, Any],
    book: CodeBook,
    source: Source,
    looker: Looker,
    encode: Callable[[Tensor], Tensor],
) -> None:
    """Write the directory in one piece: an interruption leaves none."""
    output = Path(config.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    choice = Choice(
        *(config.codes, config.num_codes, config.rank_by, config.min_uses),
        *(config.layout, config.seed),
    )
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as temporary:
        folder = Path(temporary) / output.name
        folder.mkdir()
        write_text(folder / "codes.json", json_of(about, book, source))
        write_page(folder, choice, book, looker.cuts, about)
        if config.explorer:
            whole = looker.whole(config.explorer_images, book, encode)
            path = folder / "explorer.html"
            write_codebook(path, book, looker.cuts, source, whole, about)
        folder.rename(output)
