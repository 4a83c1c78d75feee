"""Images of an evaluation that the classifier was trained on: of those its accuracy says little."""

from collections.abc import Collection, Iterator
from functools import cache
from pathlib import Path

from beit.data.pixels.decoding import extensions
from beit.data.source import Source, file_of, limited
from beit.data.sources import open_source
from beit.data.spec import split_part
from beit.files import user_path
from beit.run.directory import RunDirectory


def note_of_trained(model: str, data: str, source: Source) -> list[str]:
    """Say how many of the images a run was trained on; images are the same if their files are.

    A copy of a file is another image here. Training images of a store or the hub, which may take
    long to open, are compared only if `data` is the same.

    Args:
        source: the images of `data` that are evaluated
    """
    run = RunDirectory(Path(model))
    of_run = run.config().get("data", {}) if run.config_file.is_file() else {}
    train = of_run.get("train")
    if not train or ("://" in train and _whole(train) != _whole(data)):
        return []
    try:
        trained = limited(open_source(train, split="train"), of_run.get("limit"))
    except (ValueError, OSError):  # they have changed since
        return []
    names = {_last(source.name(index)) for index in range(len(source))}
    known = set(_images(trained, train, names))
    count = sum(image in known for image in _images(source, data, names))
    if not count:
        return []
    held_out = of_run.get("validation")
    advice = f"; {held_out} was held out" if held_out else ""
    of = f"{count} of the {len(source)} images"
    return [f"{model} was trained on {of}, which it knows better than new ones{advice}"]


def _whole(spec: str) -> Path:
    return user_path(split_part(spec)[0]).resolve()


def _last(name: str) -> str:
    return name.rpartition("/")[2]


def _images(source: Source, spec: str, names: Collection[str]) -> Iterator[tuple[Path, str]]:
    """Yield what tells images of these names from all others: file, name in a table or archive."""
    whole, folder_of = _whole(spec), cache(Path.resolve)
    for index in range(len(source)):
        if _last(name := source.name(index)) not in names:  # most of a large training set
            continue
        file = file_of(source, index)
        if file is None:
            yield whole, name
        else:
            alone = file.suffix.lower() in extensions()
            yield folder_of(file.parent) / file.name, "" if alone else name
