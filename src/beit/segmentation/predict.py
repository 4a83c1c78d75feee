"""Predict label maps: write a class for every pixel of every image of a set.

The output directory holds `maps/NAME.png`, palette PNGs of the image's size whose indices are the
classes; `overlays/NAME.png`, the image under the same colours, with a legend of its classes;
`legend.png`, all classes; `predict.json`, how the files were made.

An interrupted run resumes when its command is repeated; under torchrun each process labels its
share of the missing images. The files are always the same.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

import beit
from beit.command.ending import Ending, opened
from beit.data.batches import EvalBatches
from beit.data.source import Source, file_of
from beit.data.sources import open_images
from beit.draw import canvas
from beit.files import write_bytes, write_text
from beit.nn.segmenter import SemanticSegmenter
from beit.nn.sliding import MapViewConfig
from beit.rows.compute import fingerprint
from beit.run.device import DeviceConfig, precision_of
from beit.run.launch import launch
from beit.run.one_pass import one_pass
from beit.run.progress import Progress
from beit.segmentation.label_classes import default_palette
from beit.segmentation.label_decoding import encode_label_map
from beit.segmentation.pictures import Palette, legend, overlay, with_legend
from beit.segmentation.validation import map_predictor
from beit.weights.bands import check_bands
from beit.weights.open import load_segmenter

if TYPE_CHECKING:
    from lightning_fabric import Fabric

ABOUT, LEGEND = "predict.json", "legend.png"
MAPS, OVERLAYS = "maps", "overlays"
MAX_CLASSES = 256  # of a palette PNG


@dataclass(frozen=True)
class Config:
    """Compute label maps of images.

    Attributes:
        model: a segmenter: a run directory, a weights file, published:NAME or hf://OWNER/NAME
        data: images: a folder, a table or another source (docs/data.md), or a part: folder[:90%];
            image files as [a.jpg,b.png]; @FILE that lists them, one per line, or - for a list on
            standard input
        output: a directory, new or of an earlier start of the same command
        overlays: write overlays too: the colours drawn over each image
        limit: use this many images, a fixed random subset; null for all
        image_size: size of the model's window, a side or [height, width]; null for the model's own
        num_heads: attention heads, if not recorded in the file and not the usual width / 64
        views: windows, scales and mirror images of each image
        num_workers: processes that decode images, for each process
        max_unreadable: largest share of unreadable images that does not stop the work
        device: device and precision of the segmenter
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
        if self.num_workers < 0:
            raise ValueError(f"num_workers is {self.num_workers}; expected 0 or more")


class Result(NamedTuple):
    """The directory, and how many images of the set have a map in it."""

    directory: Path
    images: int


def run(config: Config) -> Result:
    """Write the label maps of all images, or resume."""
    fabric = launch(config.device)
    output, source = Path(config.output), open_images(config.data, config.limit)
    segmenter = load_segmenter(config.model, config.image_size, num_heads=config.num_heads)
    check_bands(config.model, config.data)
    Y = segmenter.config.num_classes
    if Y > MAX_CLASSES:
        raise ValueError(f"{config.model} has {Y} classes; a palette PNG has {MAX_CLASSES} at most")
    names = segmenter.config.class_names or tuple(f"class {number}" for number in range(Y))
    palette = segmenter.config.palette or default_palette(Y)
    images = [source.name(index) for index in range(len(source))]
    files = map_names(images)
    if fabric.is_global_zero:
        about = about_of(config, fabric, segmenter, names, palette)
        begin(output, about | {"list_of_images": checksum_of_numbered(images, files)})
        _write(output / LEGEND, canvas.png(legend(names, palette)))
    fabric.barrier()
    folders = (MAPS, OVERLAYS) if config.overlays else (MAPS,)
    todo = [
        index
        for index, file in enumerate(files)
        if not all(is_later(output / folder / file, file_of(source, index)) for folder in folders)
    ]
    fabric.barrier()  # no process writes before all have looked
    for index, image, labels in predict_maps(fabric, segmenter, source, todo, config):
        if config.overlays:
            drawn = with_legend(overlay(image.cpu(), labels, palette), names, palette, labels)
            _write(output / OVERLAYS / files[index], canvas.png(drawn))
        _write(output / MAPS / files[index], encode_label_map(labels, palette))
    fabric.barrier()
    num_done = sum((output / MAPS / file).is_file() for file in files)
    return Result(output, num_done)


def ending(config: Config, result: Result) -> Ending:
    """Say how many images have label maps; looking at them is next."""
    shown = result.directory / (OVERLAYS if config.overlays else MAPS)
    made = f"{result.directory / MAPS}, a label map of each image"
    return Ending(made, f"{result.images:,} images", opened(shown))


@torch.no_grad()
def predict_maps(
    fabric: "Fabric", segmenter: SemanticSegmenter, source: Source, todo: list[int], config: Config
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Label this process's share of the images `todo`, one by one.

    Yields: an index, the image (3, H, W) uint8, and its classes (H, W) uint8 on the CPU.
    """
    mine = todo[fabric.global_rank :: fabric.world_size]
    predict = map_predictor(fabric, segmenter, config.views, config.device)
    workers, view = config.num_workers, Tensor.contiguous  # whole images
    batches = EvalBatches(source, view, 1, num_workers=workers, batches=mine)
    with Progress(len(mine), enabled=fabric.is_global_zero) as progress:
        progress.message(f"{len(todo)} of {len(source)} images to label")
        for batch in one_pass(fabric, batches, config.max_unreadable, progress):
            predicted = predict(batch.images)[0].to("cpu", torch.uint8)  # (H, W)
            yield int(batch.indices), batch.images[0], predicted


def about_of(
    config: Config,
    fabric: "Fabric",
    segmenter: SemanticSegmenter,
    names: Sequence[str],
    palette: Palette,
) -> dict[str, Any]:
    """Describe what the files depend on."""
    views = {name: value for name, value in asdict(config.views).items() if name != "batch_size"}
    colours = enumerate(zip(names, map(list, palette), strict=True))
    vit = segmenter.config.backbone
    return {
        "beit": beit.__version__,
        "model": config.model,
        "weights": fingerprint(segmenter, {"mean": vit.mean, "std": vit.std}),
        "window": list(vit.image_size),
        "data": config.data,
        "limit": config.limit,
        "views": views | {"scales": list(config.views.scales)},
        "precision": precision_of(fabric)["precision"],
        "classes": [{"index": c, "name": name, "colour": colour} for c, (name, colour) in colours],
    }


def begin(output: Path, about: dict[str, Any]) -> None:
    """Make the directory, or check that the same command began it."""
    file = output / ABOUT
    if not output.exists():
        output.mkdir(parents=True)
        write_text(file, json.dumps(about, indent=2, ensure_ascii=False) + "\n")
    elif not file.is_file():
        raise FileExistsError(f"{output} exists and is not overwritten; name another directory")
    try:
        before = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} cannot be read as JSON ({error})") from error
    if before != about:
        before = before if isinstance(before, dict) else {}
        keys = sorted(about.keys() | before.keys())
        differing = ", ".join(key for key in keys if before.get(key) != about.get(key))
        repeat = "name another directory, or repeat the command that began it"
        raise FileExistsError(f"{output} was begun with another {differing}; {repeat}")


def is_later(file: Path, image: Path | None) -> bool:
    """Tell whether a file was written, and after the last change of its image."""
    try:
        written = file.stat().st_mtime_ns
        return image is None or image.stat().st_mtime_ns <= written
    except FileNotFoundError:
        return False


def checksum_of_numbered(names: Sequence[str], files: Sequence[str]) -> str | None:
    """Digest the names of images whose maps are named by their numbers; None if there are none.

    The same number can stand for another image once the list of images has changed.
    """
    pairs = zip(names, files, strict=True)
    numbered = [name for name, file in pairs if file not in (f"{_stem(name)}.png", f"{name}.png")]
    text = "\0".join(numbered).encode(errors="surrogateescape")
    return hashlib.blake2b(text, digest_size=8).hexdigest() if numbered else None


def map_names(names: Sequence[str]) -> list[str]:
    """Return the file names of maps: the images' paths below the data, ending in .png.

    Two images that differ in the suffix only keep it: a.jpg.png. A name outside the folder, or not
    of a file, is replaced by the image's number and stem. If names still collide, all are replaced.
    """
    paths, plain, numbered = list(map(PurePosixPath, names)), list(map(_stem, names)), []
    for number, (name, path) in enumerate(zip(names, paths, strict=True)):
        stem = "" if "://" in name or not path.stem.strip(".") else f"-{path.stem}"
        numbered.append(f"{number:06d}{stem}.png")
    counts = Counter(plain)
    files = [
        number_name if stem is None else f"{stem if counts[stem] == 1 else path}.png"
        for path, stem, number_name in zip(paths, plain, numbered, strict=True)
    ]
    return files if len(set(files)) == len(files) else numbered


def _stem(name: str) -> str | None:
    """Return the path of an image without its suffix; None outside the folder, or of no file."""
    path = PurePosixPath(name)
    outside = path.is_absolute() or ".." in path.parts or not path.name or "://" in name
    return None if outside else str(path.with_suffix(""))


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, content)
