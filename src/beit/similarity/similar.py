"""Similar: find the images of a set that a model sees as nearest to a photo.

Every image of the set becomes one vector: its [CLS] token, the mean of its patches, or both. Near
are vectors with a large cosine. The vectors are computed once and kept in an index
(`beit.similarity.vectors`); a later call computes those of new and changed files only. A table that
`beit embed` wrote can stand for the set.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from beit.command.ending import Ending, beside, words
from beit.data.channels import compare_pixels, pixel_options
from beit.data.shrinking import Shrinking
from beit.data.source import Source, UnreadableImage, file_of
from beit.data.sources import open_source
from beit.data.spec import split_query
from beit.files import refuse_existing, user_path, write_bytes
from beit.rows.lines import printable
from beit.run.device import DeviceConfig
from beit.similarity.neighbours import NEARLY_IDENTICAL, mean_cosine, nearest
from beit.similarity.picture import Match, Row, similar_picture
from beit.similarity.vectors import (
    Embedder,
    Features,
    VectorSet,
    images_of,
    indexed,
    is_table,
    open_embedder,
    read_set,
    vector_of,
)
from beit.weights.bands import check_bands

ALIKE = 0.99  # mean cosine of a set above which a cosine says little


@dataclass(frozen=True)
class Config:
    """Find the images nearest to photos.

    Attributes:
        model: a model with a backbone: a run directory, a weights file, published:NAME or
            hf://OWNER/NAME; or teacher:SOURCE
        photos: image files, or names of images of the set, such as test.parquet[17]
        data: the set to search: a folder, a table or another source (docs/data.md), or a part:
            folder[:90%]; or a table of its features that beit embed wrote with this model
        output: a new .png file with the photos and their nearest images; null for none
        neighbours: number of nearest images to list for each photo
        features: cls, mean, or both; null for the paper's choice: cls after pretraining with
            patch aggregation, else mean (teacher: mean)
        index: .npz or .parquet file that keeps the vectors of the set; null for a file in the
            user's cache folder
        image_size: input size of the model, a side or [height, width]; null for the model's own
        num_heads: attention heads, if not recorded in the file and not the usual width / 64
        crop_ratio: side of the centre crop over the shorter side; null for that of the model's
            training, else 0.875
        num_workers: processes that decode images
        max_unreadable: largest share of unreadable images that does not stop the work
        device: device and precision of the model; one process
    """

    model: str
    photos: list[str] = field(default_factory=list)
    data: str = ""
    output: str | None = None
    neighbours: int = 10
    features: Features | None = None
    index: str | None = None
    image_size: int | tuple[int, int] | None = None
    num_heads: int | None = None
    crop_ratio: float | None = None
    num_workers: int = 2
    max_unreadable: float = 0.01
    device: DeviceConfig = field(default_factory=DeviceConfig)

    def __post_init__(self) -> None:
        if self.neighbours < 1:
            raise ValueError(f"neighbours must be at least 1, got {self.neighbours}")
        if not self.photos:
            raise ValueError(
                "no photo given: beit similar MODEL PHOTO ... --data FOLDER; to see the neighbours "
                "of all images of a folder, beit visualise embedding MODEL FOLDER"
            )
        if not self.data:
            raise ValueError("data is missing: the images to search, as in --data FOLDER")
        if self.output is not None and Path(self.output).suffix != ".png":
            raise ValueError(f"output is {self.output!r}; expected a name that ends in .png")


class Neighbour(NamedTuple):
    """An image of the set, and the cosine of its vector with the photo's."""

    name: str
    cosine: float
    label: str  # empty if unknown


class Result(NamedTuple):
    """The nearest images of each photo, nearest first; the picture, if there is one."""

    neighbours: dict[str, list[Neighbour]]
    picture: Path | None


def run(config: Config) -> Result:
    """Print the nearest images of each photo, and draw them."""
    picture = None if config.output is None else Path(config.output)
    refuse_existing(picture, "file")
    embedder = open_embedder(config)
    files = {name: _opened(name) for name in config.photos if _is_file(name)}
    of_set = images_of(config.data)
    check_bands(config.model, of_set)
    compare_pixels(pixel_options(of_set), f"{config.data} has", *files)
    layer, whole = None, is_table(config.data)
    if whole:
        images, layer = read_set(config.data, embedder)
        _check_names(config.photos, files, images.names)
    else:
        source = open_source(config.data)
        _check_names(config.photos, files, [printable(source.name(i)) for i in range(len(source))])
        images = indexed(source, config.data, config.index, embedder)
    photos = [_photo(n, files.get(n), images, embedder, layer, whole) for n in config.photos]
    print(_scale(images, embedder.features))
    found: dict[str, list[Neighbour]] = {}
    rows = []
    for name, photo in zip(config.photos, photos, strict=True):
        near = nearest(photo.vector[None], images.vectors, config.neighbours, [photo.rows])
        matches = [
            (row, Neighbour(images.names[row], cosine, images.label(row)))
            for row, cosine in zip(near.rows[0].tolist(), near.cosines[0].tolist(), strict=True)
            if row >= 0
        ]
        found[name] = [neighbour for _, neighbour in matches]
        print(f"\n{printable(name)}")
        for rank, neighbour in enumerate(found[name], 1):
            print(_line(rank, neighbour))
        if picture is not None:
            rows.append(_drawn(name, photo, matches, images))
    if picture is not None:
        picture.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(picture, similar_picture(rows))
    return Result(found, picture)


def ending(config: Config, result: Result) -> Ending:
    """Say the largest cosine; a page of the whole set is next."""
    made = "no files; --output near.png draws the nearest images"
    if result.picture is not None:
        made = f"{result.picture}, a picture of the nearest images"
    found = [(match, name) for name, matches in result.neighbours.items() for match in matches]
    figure = "no neighbours"
    if found:
        best, photo = max(found, key=lambda pair: pair[0].cosine)
        of = f" to {printable(photo)}:" if len(config.photos) > 1 else ""
        figure = f"nearest{of} {best.name}, cosine {best.cosine:.3f}"
    output = beside(config.output or "map.html", "map.html")
    return Ending(
        made, figure, words("visualise embedding", config.model, config.data, output=output)
    )


class _Photo(NamedTuple):
    """A photo: its vector, the rows of the set that are itself, and itself if it is a file."""

    vector: Tensor  # (D,)
    rows: list[int]
    source: Source | None
    label: str = ""


def _path(name: str) -> Path:
    """Return the path of a photo, which may name its bands, as in cell.tif?bands=1-5."""
    return user_path(split_query(name)[0])


def _is_file(name: str) -> bool:
    """Tell whether a photo is a file; else it is a name in the set, such as shapes://3?size=..."""
    return "://" not in name and _path(name).exists()


def _opened(name: str, shrinking: Shrinking | None = None) -> Source:
    """Open one image file; ValueError if it is none, or cannot be read."""
    file = f"{_path(name)}{name.removeprefix(split_query(name)[0])}"
    source = open_source(file, shrinking=shrinking)
    if len(source) != 1:
        raise ValueError(f"{name} holds {len(source)} images; expected one image file")
    try:
        source.image(0)
    except UnreadableImage as error:
        advice = "" if "SOURCE?" in str(error) else "; give another photo"
        raise ValueError(f"{error}{advice}") from error
    return source


def _check_names(photos: Sequence[str], files: Collection[str], names: Sequence[str]) -> None:
    """Raise an error, before anything is computed, for a photo that is neither file nor name."""
    known = set(names)
    for name in photos:
        if name not in files and printable(name) not in known:
            raise FileNotFoundError(
                f"{name}: no such file, and no image of the set has this name (the first is "
                f"{names[0]!r}); give an image file, or the name of an image of --data"
            )


def _photo(
    name: str,
    source: Source | None,
    images: VectorSet,
    embedder: Embedder,
    layer: int | None,
    whole: bool,
) -> _Photo:
    """Compute the vector of a photo, or find it by its name in the set.

    It is read as those of the set were: `whole`, or reduced.
    """
    if source is not None:
        rows = _itself(_path(name), images)
        read = source if whole else _opened(name, embedder.shrinking)
        return _Photo(vector_of(read.image(0), embedder, layer), rows, source)
    if printable(name) not in images.names:
        raise ValueError(f"{name} cannot be read; give another photo")
    row = images.names.index(printable(name))
    return _Photo(images.vectors[row], [row], None, images.label(row))


def _itself(path: Path, images: VectorSet) -> list[int]:
    """Return the rows of the set whose file is that of the photo."""
    if images.source is None:
        return []
    resolved = path.resolve()
    files = (file_of(images.source, index) for index in images.indices)
    return [
        row
        for row, file in enumerate(files)
        if file is not None and file.name == path.name and file.resolve() == resolved
    ]


def _scale(images: VectorSet, features: str) -> str:
    """Say how near two images of the set are on average, without which a cosine says little."""
    if len(images.names) < 2:
        return "the set has one image only"
    mean = mean_cosine(images.vectors)
    text = f"cosine of {features}; two images of the set have {mean:.3f} on average"
    if mean > ALIKE:
        text += ": this model hardly tells these images apart; a cosine near 1 says little"
    return text


def _line(rank: int, neighbour: Neighbour) -> str:
    label = f"  {neighbour.label}" if neighbour.label else ""
    twin = "  (nearly identical)" if neighbour.cosine > NEARLY_IDENTICAL else ""
    return f"{rank:4}  {neighbour.cosine:.3f}  {neighbour.name}{label}{twin}"


def _drawn(
    name: str, photo: _Photo, matches: list[tuple[int, Neighbour]], images: VectorSet
) -> Row:
    """Read the images of one row of the picture; those not found are left grey."""
    source = photo.source or images.source
    index = 0 if photo.source is not None else images.indices[photo.rows[0]]
    first = Match(_pixels(source, index), Path(name).name, photo.label)
    return [first] + [
        Match(
            _pixels(images.source, images.indices[row]),
            f"{near.cosine:.3f} {near.label}".strip(),
            Path(near.name).name,
        )
        for row, near in matches
    ]


def _pixels(source: Source | None, index: int) -> Tensor | None:
    if source is None:
        return None
    try:
        return source.image(index)
    except UnreadableImage:
        return None
