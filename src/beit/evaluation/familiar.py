"""Images of an evaluation that the classifier was trained on: of those its accuracy says little."""

from pathlib import Path

from beit.data.source import Source, file_of, limited
from beit.data.sources import open_source
from beit.data.spec import split_part
from beit.files import user_path
from beit.run.directory import RunDirectory


def note_of_trained(model: str, data: str, source: Source) -> list[str]:
    """Say how many of the images a run was trained on, if it was trained on the same data.

    Args:
        source: the images of `data` that are evaluated
    """
    run = RunDirectory(Path(model))
    of_run = run.config().get("data", {}) if run.config_file.is_file() else {}
    train = of_run.get("train")
    if not train or _whole(train) != _whole(data):
        return []
    try:
        trained = limited(open_source(train, split="train"), of_run.get("limit"))
    except (ValueError, OSError):  # they have changed since
        return []
    known = set(_images(trained))
    count = sum(image in known for image in _images(source))
    if not count:
        return []
    held_out = of_run.get("validation")
    advice = f"; {held_out} was held out" if held_out else ""
    of = f"{count} of the {len(source)} images"
    return [f"{model} was trained on {of}, which it knows better than new ones{advice}"]


def _whole(spec: str) -> Path:
    return user_path(split_part(spec)[0]).resolve()


def _images(source: Source) -> list[tuple[Path | None, str]]:
    return [(file_of(source, index), source.name(index)) for index in range(len(source))]
