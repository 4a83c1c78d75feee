"""Put a finished run, or what beit export wrote, into the Hugging Face hub with a model card.

It stands alone, instead of being an option of training or export: what is pushed lies on disk and
was looked at before, and a push that failed is repeated without computing anything again.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from beit.exporting.card import model_card
from beit.files import write_text
from beit.run.directory import RunDirectory
from beit.weights import hub


@dataclass(frozen=True)
class Config:
    """What is pushed, and where to.

    Args:
        source: a run directory, or a file or folder that beit export wrote
        repository: OWNER/NAME in the hub, made if it is not there
        run: of an export: the run directory that it comes from, for the card
        probe: output directory of a beit probe, whose accuracies the card shows
        license: of the weights, by the hub's name for it, such as mit; empty leaves it unsaid
        private: make a new repository private
        dry_run: write the card, say what would be pushed, and stop
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
    """What was, or would be, pushed: names in the repository; its address unless it was dry."""

    card: Path
    files: dict[str, Path]
    address: str | None


def run(config: Config) -> Result:
    """Write the card if there is none yet, and upload it with the files."""
    source = Path(config.source).expanduser()
    files = _files(source)
    card = source / hub.CARD if source.is_dir() else source.with_name(f"{source.name}.md")
    if card.is_file():
        print(f"{card}: taken as it is; remove it to have it written anew")
    else:
        origin = RunDirectory.open(_origin(config, source))
        probe = Path(config.probe).expanduser() / "probe.json" if config.probe else None
        text = model_card(origin, config.repository, files, probe, config.license)
        write_text(card, text)
        print(f"{card}: written")
    for name, path in files.items():
        print(f"  {name}  {path.stat().st_size / 1e6:.1f} MB")
    if config.dry_run:
        print(f"nothing was pushed; without --dry_run it goes to {config.repository}")
        return Result(card, files, None)
    text = card.read_text(encoding="utf-8")
    address = hub.push(config.repository, files, text, config.private)
    print(f"pushed to {address}")
    return Result(card, files, address)


def _files(source: Path) -> dict[str, Path]:
    """Choose what is pushed: of a run its weights, configuration and log, of an export all.

    Reports and checkpoints stay: the one has pictures of the data in it, the others are for
    resuming.
    """
    if source.is_file():
        return {source.name: source}
    if not source.is_dir():
        raise FileNotFoundError(
            f"{source} does not exist; expected a run directory, or what beit export wrote"
        )
    directory = RunDirectory(source)
    if directory.config_file.is_file():
        if not directory.weights_file.is_file():
            raise ValueError(
                f"the run in {source} is not finished: it has no {directory.weights_file.name}"
            )
        chosen = [directory.weights_file, directory.config_file, directory.metrics_file]
    else:
        chosen = sorted(source.iterdir())
    files = {
        path.name: path
        for path in chosen
        if path.is_file() and path.name != hub.CARD and not path.name.startswith(".")
    }
    if not files:
        raise ValueError(f"{source} has no files to push")
    return files


def _origin(config: Config, source: Path) -> Path:
    """Find the run that the card tells of."""
    if config.run:
        return Path(config.run).expanduser()
    if RunDirectory(source).config_file.is_file():
        return source
    raise ValueError(
        f"{source} is not a run directory; name the run it was exported from by --run, "
        "or write a model card yourself beside it"
    )
