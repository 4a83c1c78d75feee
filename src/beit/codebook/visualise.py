"""Visualising codes: what each code of a tokenizer stands for, on any set of images.

The images are read once as a stream. Only sums (`beit.nn.code_statistics`) and a few patches of
each code (`beit.nn.reservoir`) are kept: the closest ones and a random sample. So memory does not
grow with the images. Under torchrun each process reads its share of the batches, and the result is
the same as that of one process. Then the first process reads the images of the shown patches again.

OUTPUT contains codes.json (every code with its statistics and patches), report.html, figures/*.png
and figures/*.svg, and with `explorer` explorer.html, a page to explore the codebook.
"""

import logging
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor, nn

import beit
from beit.codebook.contents import Codebook, Collected, WholeImage, codes_json, with_crops
from beit.codebook.crops import CropFile
from beit.codebook.explorer import ExplorerPage, crop_side, write_explorer
from beit.codebook.explorer_map import CodeMap
from beit.codebook.images import (
    CodebookSource,
    read_again,
    read_crops,
    read_whole_images,
)
from beit.codebook.map import Layout, Layouts, lay_out
from beit.codebook.report import Rank, ReadCrops, write_codebook_report
from beit.command.ending import Ending, beside, opened, words
from beit.data.batches import EvalBatches
from beit.data.sources import open_source
from beit.data.views import EvalView
from beit.draw.components import codebook_colours
from beit.files import refuse_existing, write_text
from beit.nn.code_statistics import CodeStatistics, code_vectors, rated
from beit.nn.reservoir import Reservoir
from beit.nn.tokenizer import VQKD, Tokenizer
from beit.rows.compute import fingerprint
from beit.run.device import DeviceConfig, precision_of
from beit.run.launch import launch
from beit.run.one_pass import one_pass
from beit.run.progress import Progress
from beit.weights.bands import check_bands
from beit.weights.crop import crop_ratio
from beit.weights.open import load_tokenizer

if TYPE_CHECKING:
    from lightning_fabric import Fabric

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Config:
    """What to show, of which tokenizer, on which images.

    Attributes:
        model: a tokenizer: a run directory, a weights file, published:NAME or hf://OWNER/NAME
        data: images: a folder, a table or another source (docs/data.md), or a part: folder[:90%]
        output: a new directory
        limit: number of images to use, a fixed random subset; null for all
        codes: show these codes; null for the first `num_codes` by `rank_by`
        num_codes: number of codes in the galleries if `codes` is null
        per_code: closest patches to keep for each code, and as many random ones
        rank_by: use, purity (over labels), label_entropy, position_entropy or closeness; null for
            purity if there are labels, else use
        min_uses: codes with fewer uses are left out of rankings; they are pure by chance
        context: patches shown on each side of a framed patch
        layout: layout of the codebook in two dimensions besides its principal components: tsne
            (needs scikit-learn) or none
        explorer: also write explorer.html
        explorer_images: number of whole images in it
        seed: seed of the random patches and of the layout
        image_size: side or [height, width]; for a tokenizer whose file does not contain it, or
            that accepts other sizes; null for its own
        num_heads: attention heads, if the file does not contain them and a head is not 64 wide
        crop_ratio: side of the centre crop over the shorter side; null for that of the model's
            training, else 0.875
        batch_size: images per batch and process
        num_workers: worker processes that decode images, for each process
        max_unreadable: largest allowed share of images that cannot be read or are smaller than a
            patch
        device: device and precision of the tokenizer
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
    crop_ratio: float | None = None
    batch_size: int = 128
    num_workers: int = 2
    max_unreadable: float = 0.01
    device: DeviceConfig = field(default_factory=DeviceConfig)

    def __post_init__(self) -> None:
        for name in ("num_codes", "per_code", "min_uses"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.context < 0 or self.explorer_images < 0:
            both = f"{self.context} and {self.explorer_images}"
            raise ValueError(f"context and explorer_images must not be negative, got {both}")
        if self.codes is not None and not self.codes:
            raise ValueError("codes is empty; name some, as in --codes [3,14], or leave it out")


class Result(NamedTuple):
    """The directory, and the number of images; None in all processes but the first.

    Attributes:
        codes: number of codes that occur
        vocab_size: number of codes
    """

    directory: Path
    images: int | None
    codes: int = 0
    vocab_size: int = 0


def run(config: Config) -> Result:
    """Process the images and write the directory."""
    output = Path(config.output)
    refuse_existing(output)
    fabric = launch(config.device)
    first = fabric.is_global_zero
    sizes = {"image_size": config.image_size, "num_heads": config.num_heads}
    overrides = {name: value for name, value in sizes.items() if value is not None}
    tokenizer = load_tokenizer(config.model, **overrides)
    check_bands(config.model, config.data)
    K = tokenizer.vocab_size
    if invalid := [code for code in config.codes or () if not 0 <= code < K]:
        raise ValueError(f"codes names {invalid[0]}; {config.model} has the codes 0 to {K - 1}")
    patch_size = tokenizer.image_size[0] // tokenizer.grid[0]
    source = CodebookSource(open_source(config.data, limit=config.limit), patch_size)
    names = source.class_names or []
    if config.rank_by in ("purity", "label_entropy") and not names:
        raise ValueError(
            f"rank_by is {config.rank_by}, which needs labels, and {config.data} has none; rank by "
            "use, position_entropy or closeness, or use class folders or a column 'label'"
        )
    view = EvalView(tokenizer.image_size, crop_ratio(config.model, config.crop_ratio))
    size, workers, world_size = config.batch_size, config.num_workers, fabric.world_size
    batches = EvalBatches(
        *(source, view, size), rank=fabric.global_rank, world_size=world_size, num_workers=workers
    )
    tokenizer = tokenizer.to(fabric.device)
    rate = partial(rated, tokenizer)
    rate = cast(Any, torch.compile(rate)) if config.device.compile else rate
    # Sums are int64, which devices other than CPU and CUDA may not support.
    counting = fabric.device if fabric.device.type == "cuda" else torch.device("cpu")
    collected = Collected(
        CodeStatistics(K, tokenizer.grid, patch_size, len(names), counting),
        Reservoir(K, config.per_code, counting),
        Reservoir(K, config.per_code, counting),
    )

    started = time.perf_counter()
    with Progress(len(batches), enabled=first) as progress, torch.no_grad():
        for batch in one_pass(fabric, batches, config.max_unreadable, progress):
            with fabric.autocast():
                codes, scores = rate(batch.images)  # (B, N) each
            collected.add(config.seed, batch, codes, scores)
        collected.reduce(fabric)
        images = int(collected.statistics.total)
        left_out = len(source) - images
        if left_out > config.max_unreadable * len(source) or not images:  # of all processes
            raise ValueError(
                f"{left_out} of {len(source)} images are left out, more than the allowed "
                f"{100 * config.max_unreadable:.4g}%; repair or remove them, or raise "
                "max_unreadable"
            )
        if not first:
            return Result(output, None)
        with progress.aside("drawing"), fabric.autocast():
            on_sphere = not isinstance(tokenizer, VQKD) or tokenizer.quantizer.l2_normalised
            vectors, grid = code_vectors(tokenizer), tokenizer.grid
            book = Codebook(collected, vectors, grid, source, names, on_sphere)
            read = partial(read_again, source, view, size, workers)
            crops = partial(read_crops, read, grid, config.context)
            whole_images = read_whole_images(
                *(read, book, config.explorer_images),
                lambda part: rate(part.to(fabric.device))[0],
                _features_of(tokenizer, fabric.device),
            )
            about = _about(config, view, fabric, tokenizer, images)
            _write(config, about, book, crops, whole_images)
    seconds = time.perf_counter() - started
    left_out_note = f" ({left_out} left out)" if left_out else ""
    logger.info(
        f"{images} images{left_out_note}, {seconds:.1f} s; the statistics take "
        f"{collected.megabytes():.1f} MB, independent of the number of images"
    )
    return Result(output, images, int((collected.statistics.uses > 0).sum()), K)


def ending(config: Config, result: Result) -> Ending:
    """Say how many codes are used; the explorer is next, or looking at it."""
    report, page = result.directory / "report.html", result.directory / "explorer.html"
    figure = f"{result.codes:,} of {result.vocab_size:,} codes occur in {result.images:,} images"
    if config.explorer:
        return Ending(f"{page}, a page to browse the codebook", figure, opened(page))
    explorer = beside(result.directory, "explorer")
    then = words("visualise explorer", config.model, config.data, output=explorer)
    return Ending(f"{result.directory}, what each code stands for; report {report}", figure, then)


def _features_of(tokenizer: Tokenizer, device: torch.device) -> Callable[[Tensor], Tensor] | None:
    """Return a function from images to their patch tokens (B, N, D); None for discrete VAEs.

    They are the features of `beit visualise features`.
    """
    if not isinstance(tokenizer, VQKD):
        return None
    encoder = tokenizer.encoder
    return lambda images: encoder(images.to(device)).patches


def _about(
    config: Config, view: EvalView, fabric: "Fabric", tokenizer: Tokenizer, images: int
) -> dict[str, Any]:
    """Return everything that the result depends on, as plain values."""
    return {
        "beit": beit.__version__,
        "verb": "visualise codes",
        "model": config.model,
        "kind": type(tokenizer).__name__,
        "weights": fingerprint(cast(nn.Module, tokenizer)),  # every tokenizer is a module
        "vocab_size": tokenizer.vocab_size,
        "grid": tokenizer.grid,
        "image_size": tokenizer.image_size,
        "data": config.data,
        "images": images,
        "limit": config.limit,
        "per_code": config.per_code,
        "crop_ratio": view.crop_ratio,
        "seed": config.seed,
        "precision": precision_of(fabric)["precision"],
    }


def _write(
    config: Config,
    about: dict[str, Any],
    book: Codebook,
    read_crops: ReadCrops,
    whole_images: Iterable[WholeImage],
) -> None:
    """Write the directory atomically: after an interruption there is none."""
    output = Path(config.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as temporary:
        directory = Path(temporary) / output.name
        directory.mkdir()
        write_text(directory / "codes.json", codes_json(about, book))
        layouts = lay_out(book, config.layout, config.seed)
        write_codebook_report(directory, book, layouts, read_crops, about, config)
        if config.explorer:
            _write_explorer(directory, about, book, layouts, read_crops, whole_images)
        directory.rename(output)


def _write_explorer(
    directory: Path,
    about: dict[str, Any],
    book: Codebook,
    layouts: Layouts,
    read_crops: ReadCrops,
    whole_images: Iterable[WholeImage],
) -> None:
    """Write the explorer's page; the crops are kept in a temporary file, not in memory."""
    K = len(book)
    places = book.places(range(K), random=False)
    with tempfile.TemporaryFile(dir=directory) as file:
        crops = CropFile(file, places, crop_side(K))
        for place, crop in read_crops(places):
            crops.add(place, crop)
        page = ExplorerPage(
            tokenizer=Path(about["model"]).name,
            data=about["data"],
            num_codes=K,
            grid=book.grid,
            codes=(
                with_crops(book.code(index), lambda patch: crops.find(book.place(patch)))
                for index in range(K)
            ),
            images=whole_images,
            facts={"Images": f"{about['images']:,}"},
            colours=codebook_colours(book.vectors),  # as in `beit visualise tokens`
            code_map=CodeMap.of(book, layouts),
        )
        write_explorer(directory / "explorer.html", page)
