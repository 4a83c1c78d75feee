"""Images that a model has learned from: of those its metrics say little about new images."""

from collections.abc import Callable, Collection, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from beit.data.pixels.decoding import extensions
from beit.data.source import Named, file_of
from beit.data.spec import split_part
from beit.files import user_path
from beit.run.directory import RunDirectory
from beit.run.journal import Journal


class ImageSet(NamedTuple):
    """The images of a set, the option that named it and the option's value."""

    option: str
    spec: str
    images: Named


def note_of_trained(
    model: str, data: str, images: Named, open_trained: Callable[[Mapping[str, Any]], Named]
) -> list[str]:
    """Say how many of the images of `data` a run was trained on, as `shared_images` counts them.

    It also says if its best weights were chosen on them. Training images of a store or the hub,
    which may take long to open, are compared only if `data` is the same.

    Args:
        open_trained: opens the training images by the options `data` of the run
    """
    run = RunDirectory(Path(model))
    settings = run.config() if run.config_file.is_file() else {}
    of_run = settings.get("data", {})
    train, held_out = of_run.get("train"), of_run.get("validation")
    notes = list[str]()
    if settings.get("keep") == "best" and held_out == data:
        chosen = "the best weights of the run were chosen on these images"
        notes.append(f"{model}: {chosen}, so the figures are a little too good")
    if not train or ("://" in train and _whole(train) != _whole(data)):
        return notes
    try:
        trained = open_trained(of_run)
    except (ValueError, OSError):  # they have changed since
        return notes
    if not (count := shared_images(images, data, trained, train)):
        return notes
    advice = f"; {held_out} was held out" if held_out else ""
    of = f"{count} of the {len(images)} images"
    return [*notes, f"{model} was trained on {of}, which it knows better than new ones{advice}"]


def warn_of_shared(journal: Journal, sets: Mapping[str, Any]) -> None:
    """Log what `note_of_shared` says of a run's validation images, once; `sets` are by option."""
    data: Any = journal.config.data
    trained = ImageSet("--data", data.train, sets["data.train"])
    held_out = ImageSet("--validation", data.validation, sets["data.validation"])
    if held_out.images is not None and not journal.resumed:
        for note in note_of_shared(held_out, trained):
            journal.log_warning(note)


def note_of_shared(held_out: ImageSet, trained: ImageSet) -> list[str]:
    """Say how many images of a set are training images too; nothing if there are none.

    Images of stores and the hub are not compared: two splits may name theirs alike.
    """
    (option, spec, images), (other_option, other_spec, others) = held_out, trained
    if any("://" in each and not each.startswith("shapes://") for each in (spec, other_spec)):
        return []
    if not (count := shared_images(images, spec, others, other_spec)):
        return []
    of = f"{count} of the {len(images)} images of {option} {spec} are in {other_option}"
    return [f"{of} {other_spec} too; metrics on these say little about new images"]


def shared_images(images: Named, spec: str, others: Named, other_spec: str) -> int:
    """Count the images that are among others; they are the same if their files are.

    A copy of a file is another image here. The strings name the sets.
    """
    names = {_last(images.name(index)) for index in range(len(images))}
    known = set(_identities(others, other_spec, names))
    return sum(image in known for image in _identities(images, spec, names))


def _whole(spec: str) -> Path:
    return user_path(split_part(spec)[0]).resolve()


def _last(name: str) -> str:
    return name.rpartition("/")[2]


def _identities(images: Named, spec: str, names: Collection[str]) -> Iterator[tuple[Path, str]]:
    """Yield what tells images of these names from all others: file, name in a table or archive."""
    whole, folder_of = _whole(spec), cache(Path.resolve)
    for index in range(len(images)):
        if _last(name := images.name(index)) not in names:  # most of a large training set
            continue
        file = file_of(images, index)
        if file is None:
            yield Path() if "://" in name else whole, name  # drawn: the name says all
        else:
            alone = file.suffix.lower() in extensions()
            yield folder_of(file.parent) / file.name, "" if alone else name
