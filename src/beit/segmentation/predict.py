"""Predicting label maps: a class for every pixel of every image of a set, as files and pictures.

Into one directory: `maps/NAME.png`, palette PNGs of the image's own size whose indices are the
classes; `overlays/NAME.png`, the same colours over the image, with a legend of what is there;
`legend.png`, all classes; `predict.json`, what made it.

A killed run goes on where it was when its command is repeated; under torchrun each process takes
every n-th of the images that are missing. Either way the files are the same.
"""

import json
import sys
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import torch
from torch import Tensor

import beit
from beit.data.decoding import UnreadableImage
from beit.data.listed import read_list
from beit.data.sources import Source, limited, open_source
from beit.data.unreadable import Unreadable
from beit.draw import canvas
from beit.files import replacing, write_text
from beit.nn.segmenter import SemanticSegmenter
from beit.nn.sliding import MapPredictor, MapViewConfig
from beit.rows.table import fingerprint
from beit.run.device import DeviceConfig, launch, prepared
from beit.run.progress import Progress
from beit.segmentation.label_classes import default_palette
from beit.segmentation.label_decoding import encode_label_map
from beit.segmentation.pictures import legend, overlay, with_legend
from beit.weights.open import load_segmenter

ABOUT, LEGEND = "predict.json", "legend.png"
MAPS, OVERLAYS = "maps", "overlays"
MAX_CLASSES = 256  # of a palette PNG


@dataclass(frozen=True)
class Config:
    """What is labelled, by what, and into which directory.

    Attributes:
        model: a segmenter: a run directory, a weights file, published:NAME or hf://OWNER/NAME
        data: images: a folder, *.parquet or shapes://COUNT, or a part: folder[:90%]; image files
            as [a.jpg,b.png]; @FILE that lists them, one a line, or - for a list on standard input
        output: a directory, new or of the same command begun before
        overlays: draw the colours over each image, too
        limit: take so many images, a fixed random subset; null for all
        image_size: side of the window that the model is to see, or [height, width]; null for the
            model's own
        num_heads: attention heads, where neither the file nor the usual 64 channels a head say it
        views: how each image is seen
        num_workers: threads that decode images ahead, for each process
        max_unreadable: largest share of unreadable images that does not stop the work
        device: where and in which precision the segmenter runs
    """

    model: str
    data: str | list[str]
    output: str
    overlays: bool = True
    limit: int | None = None
    image_size: int | tuple[int, int] | None = None
    num_heads: int | None = None
    views: MapViewConfig = MapViewConfig()
    num_workers: int = 2
    max_unreadable: float = 0.01
    device: DeviceConfig = field(default_factory=DeviceConfig)

    def __post_init__(self) -> None:
        if self.num_workers < 1:
            raise ValueError(f"num_workers is {self.num_workers}; expected 1 thread or more")


class Result(NamedTuple):
    """The directory, and how many images of the set have their map there."""

    directory: Path
    images: int


def run(config: Config) -> Result:
    """Write the label maps of all images, or go on with it."""
    fabric = launch(config.device)
    first, output = fabric.is_global_zero, Path(config.output)
    source = _images(config)
    segmenter = load_segmenter(config.model, config.image_size, num_heads=config.num_heads)
    Y = segmenter.config.num_classes
    if Y > MAX_CLASSES:
        raise ValueError(
            f"{config.model} tells {Y} classes apart; a palette PNG holds {MAX_CLASSES} at most"
        )
    names = segmenter.config.class_names or tuple(f"class {number}" for number in range(Y))
    palette = segmenter.config.palette or default_palette(Y)
    if first:
        begin(output, about_of(config, segmenter, names, palette))
        _write(output / LEGEND, canvas.png(legend(names, palette)))
    fabric.barrier()
    files = map_names([source.name(index) for index in range(len(source))])
    kinds = (MAPS, OVERLAYS) if config.overlays else (MAPS,)
    missing = [
        index
        for index, file in enumerate(files)
        if not all((output / kind / file).is_file() for kind in kinds)
    ]
    fabric.barrier()  # all processes have looked before one writes
    mine = missing[fabric.global_rank :: fabric.world_size]
    vit = segmenter.to(fabric.device).backbone
    model = prepared(segmenter, config.device)
    predictor = MapPredictor(vit.config.image_size, config.views, vit.mean)

    def classify(windows: Tensor) -> Tensor:
        with fabric.autocast():
            logits: Tensor = model(windows).logits  # (n, Y, h', w')
        return logits

    unreadable = Unreadable(len(source), config.max_unreadable)
    with Progress(len(mine), enabled=first) as progress, torch.no_grad():
        progress.message(f"{len(missing)} of {len(source)} images are to be labelled")
        images = read_ahead(source, mine, config.num_workers)
        for step, (index, image) in enumerate(zip(mine, images, strict=True)):
            if isinstance(image, UnreadableImage):
                for lost in unreadable.note([str(image)]):
                    progress.warn(f"left out, cannot be read: {lost}")
                continue
            guess = predictor(classify, image[None].to(fabric.device))  # (1, H, W)
            labels = guess[0].to("cpu", torch.uint8)
            if config.overlays:
                drawn = with_legend(overlay(image, labels, palette), names, palette, labels)
                _write(output / OVERLAYS / files[index], canvas.png(drawn))
            _write(output / MAPS / files[index], encode_label_map(labels, palette))
            progress.update(step + 1, {}, fabric.world_size, 0.0)
    fabric.barrier()
    done = sum((output / MAPS / file).is_file() for file in files)
    if first:
        print(f"{done} label maps of {len(source)} images in {output / MAPS}")
    return Result(output, done)


def about_of(
    config: Config,
    segmenter: SemanticSegmenter,
    names: Sequence[str],
    palette: Sequence[tuple[int, int, int]],
) -> dict[str, Any]:
    """Say what the files depend on."""
    return {
        "beit": beit.__version__,
        "model": config.model,
        "weights": fingerprint(segmenter),
        "window": list(segmenter.backbone.config.image_size),
        "data": config.data,
        "limit": config.limit,
        "views": {k: v for k, v in asdict(config.views).items() if k != "batch_size"}
        | {"scales": list(config.views.scales)},
        "precision": config.device.precision,
        "classes": [
            {"index": number, "name": name, "colour": list(colour)}
            for number, (name, colour) in enumerate(zip(names, palette, strict=True))
        ],
    }


def begin(output: Path, about: dict[str, Any]) -> None:
    """Make the directory, or see that it was begun by the same command."""
    file = output / ABOUT
    if not output.exists():
        output.mkdir(parents=True)
        write_text(file, json.dumps(about, indent=2, ensure_ascii=False) + "\n")
        return
    if not file.is_file():
        raise FileExistsError(f"{output} exists and is not overwritten; name another directory")
    try:
        before = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} cannot be read as JSON ({error})") from error
    if before != about:
        keys = about.keys() | (before.keys() if isinstance(before, dict) else set())
        other = [key for key in sorted(keys) if not isinstance(before, dict)
                 or before.get(key) != about.get(key)]  # fmt: skip
        raise FileExistsError(
            f"{output} was begun with another {', '.join(other)}; name another directory, or "
            "repeat the command that began it"
        )


def map_names(names: Sequence[str]) -> list[str]:
    """Name the files of images: their own paths below the data, ending in .png.

    Where two would have one name the old ending stays, and names that leave the folder, or are
    none of files, begin with the image's number; all do where names would still be alike.
    """
    paths = [PurePosixPath(name) for name in names]
    plain = [
        None
        if path.is_absolute() or ".." in path.parts or not path.name or "://" in name
        else str(path.with_suffix(""))
        for name, path in zip(names, paths, strict=True)
    ]
    numbered = [
        f"{number:06d}.png"
        if "://" in name or not path.stem.strip(".")
        else f"{number:06d}-{path.stem}.png"
        for number, (name, path) in enumerate(zip(names, paths, strict=True))
    ]
    stems = Counter(plain)
    found = []
    for number, (path, stem) in enumerate(zip(paths, plain, strict=True)):
        if stem is None:
            found.append(numbered[number])
        else:
            found.append(f"{stem if stems[stem] == 1 else path}.png")
    return found if len(set(found)) == len(found) else numbered


def read_ahead(
    source: Source, indices: Sequence[int], num_workers: int
) -> Iterator[Tensor | UnreadableImage]:
    """Read images in order, the next few by threads meanwhile."""

    def read(index: int) -> Tensor | UnreadableImage:
        try:
            return source.image(index)
        except UnreadableImage as error:
            return error

    waiting: deque[Future[Tensor | UnreadableImage]] = deque()
    with ThreadPoolExecutor(num_workers) as pool:
        for index in indices:
            waiting.append(pool.submit(read, index))
            if len(waiting) > num_workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _images(config: Config) -> Source:
    """Open the data: standard input is a list of files."""
    if config.data in ("-", ["-"]):
        return limited(read_list(sys.stdin.buffer.read(), "standard input"), config.limit)
    return open_source(config.data, limit=config.limit)


def _write(path: Path, content: bytes) -> None:
    """Write a file in one piece; it is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_bytes(content)
