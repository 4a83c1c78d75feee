"""Upload a finished run or an export to the Hugging Face hub, with a model card.

A command of its own, so that you can look at the files first and repeat a failed upload.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from beit.command.ending import Ending, words
from beit.exporting.card import model_card
from beit.files import user_path, write_text
from beit.run.directory import RunDirectory
from beit.weights import hub


@dataclass(frozen=True)
class Config:
    """What to upload, and where to.

    Args:
        source: a run directory, or a file or folder that beit export wrote
        repository: OWNER/NAME in the hub, created if it does not exist
        run: for an export: the run directory of the model, which the card describes
        probe: output directory of a beit probe whose accuracies are added to the card
        license: licence of the weights, as the hub's identifier, such as mit; empty for none
        private: create a private repository
        dry_run: write the card, list the files, and upload nothing
    """

    source: str
    repository: str
    run: str = ""
    probe: str = ""
    license: str = ""
    private: bool = False
    dry_run: bool = False

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", self.repository):
            raise ValueError(f"repository is {self.repository!r}; expected OWNER/NAME")


class Result(NamedTuple):
    """The card, the files by name in the repository, and its address; None after a dry run."""

    card: Path
    files: dict[str, Path]
    address: str | None


def run(config: Config) -> Result:
    """Write the card unless it exists, and upload it with the files."""
    source = user_path(config.source)
    files = _files(source)
    card = source / hub.CARD if source.is_dir() else source.with_name(f"{source.name}.md")
    if card.is_file():
        print(f"{card}: exists and is used; delete it to write a new one")
    else:
        directory = RunDirectory.open(_run_of(config, source))
        probe = user_path(config.probe) / "probe.json" if config.probe else None
        text = model_card(directory, config.repository, files, probe, config.license)
        write_text(card, text)
        print(f"{card}: written")
    for name, path in files.items():
        print(f"  {name}  {path.stat().st_size / 1e6:.1f} MB")
    if config.dry_run:
        return Result(card, files, None)
    address = hub.push(config.repository, files, card.read_text("utf-8"), config.private)
    return Result(card, files, address)


def ending(config: Config, result: Result) -> Ending:
    """Say what was pushed; opening it is next, or pushing after a dry run."""
    size = sum(path.stat().st_size for path in result.files.values()) / 1e6
    figure = f"{len(result.files)} files, {size:.1f} MB"
    if result.address is None:
        asked = {"run": config.run, "probe": config.probe, "license": config.license}
        private = ["--private"] if config.private else []
        then = words("push", config.source, config.repository, **asked) + private
        return Ending(f"{result.card}, a model card; nothing was pushed", figure, then)
    code = f"import beit; print(beit.load({f'hf://{config.repository}'!r}))"
    return Ending(result.address, figure, ("python", "-c", code))


def _files(source: Path) -> dict[str, Path]:
    """List the files to upload: weights, configuration and log of a run, or all of an export."""
    if source.is_file():
        return {source.name: source}
    if not source.is_dir():
        expected = "expected a run directory, or what beit export wrote"
        raise FileNotFoundError(f"{source} does not exist; {expected}")
    directory = RunDirectory(source)
    if directory.config_file.is_file():
        if not directory.weights_file.is_file():
            missing = directory.weights_file.name
            raise ValueError(f"the run in {source} is not finished: it has no {missing}")
        # No reports, which contain images of the data set, and no checkpoints.
        candidates = [directory.weights_file, directory.config_file, directory.metrics_file]
    else:
        candidates = sorted(source.iterdir())
    visible = (path for path in candidates if path.is_file() and not path.name.startswith("."))
    files = {path.name: path for path in visible if path.name != hub.CARD}
    if not files:
        raise ValueError(f"{source} has no files to push")
    return files


def _run_of(config: Config, source: Path) -> Path:
    """Find the run directory that the card describes."""
    if config.run:
        return user_path(config.run)
    if RunDirectory(source).config_file.is_file():
        return source
    raise ValueError(
        f"{source} is not a run directory; name the run it was exported from by --run, "
        "or write a model card yourself, beside it"
    )
