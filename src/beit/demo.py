"""The whole job in minutes on two CPU cores: teacher, tokenizer, pretraining, probe, one report."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import Any, NamedTuple

from beit.command import presets
from beit.data.sources import open_source
from beit.draw.report import Section, Table, write_report
from beit.fetching import fetch
from beit.pretraining import pretrain
from beit.pretraining.config import Config as PretrainConfig
from beit.probing import probe
from beit.run.directory import RunDirectory
from beit.run.settings import from_plain
from beit.tokenizer import vqkd as train_tokenizer

PRESET = "demo"
LARGER = {"image_size": [64, 64], "patch_size": 16}  # for other images: as many patches
TRAIN_NAMES = ("train", "training")
TEST_NAMES = ("val", "valid", "validation", "test")
DRAWN = "shapes://10000?size=64"


@dataclass(frozen=True)
class Config:
    """Settings of `beit demo`; every other number is in the preset `demo`.

    Attributes:
        data: a folder of images or any other data string; empty fetches CIFAR-10
        output: directory to create, for the runs and report.html; empty takes the first free one of
            runs/demo, runs/demo-2, ...
        cache: where fetched data stays for the next time
    """

    data: str = ""
    output: str = ""
    cache: str = "data/cifar10"


class Sets(NamedTuple):
    """Two data strings, and the images' size where it is not the preset's."""

    train: str
    test: str
    vit: Mapping[str, Any]


class Result(NamedTuple):
    """The report, and its table of probes (None where the images have no labels)."""

    report: Path
    table: Table | None


def run(config: Config) -> Result:
    """Train a tokenizer, pretrain on its codes, probe, and write one report about it all."""
    started = time.monotonic()
    output = Path(config.output) if config.output else first_free(Path("runs/demo"))
    RunDirectory.check_new(output)
    sets = find_sets(config)
    preset: Any = presets.read_yaml(presets.path_of(PRESET))
    limit = preset[train_tokenizer.VERB]["data"]["limit"]
    images = open_source(sets.train, limit=limit)
    data = {"train": sets.train, "validation": sets.test}

    def settings(verb: str, changes: Mapping[str, Any]) -> dict[str, Any]:
        """Fit a part of the preset to the images: as many are seen, however few there are."""
        plain = merged(preset[verb], {"data": data, **changes})
        optim = plain["optim"]
        optim["epochs"] = max(1, round(optim["epochs"] * limit / len(images)))
        optim["warmup_epochs"] *= limit / len(images)
        optim["batch_size"] = min(optim["batch_size"], max(1, len(images) // 4))
        return plain

    print(f"\n1 of 3 · a tokenizer learns codes from a teacher, on {sets.train}")
    changes: dict[str, Any] = {
        "model": {"encoder": sets.vit},
        "run": {"output": str(output / "tokenizer")},
    }
    tokenizer_config = from_plain(
        train_tokenizer.Config, settings(train_tokenizer.VERB, changes), train_tokenizer.VERB
    )
    tokenizer = train_tokenizer.run(tokenizer_config)

    print("\n2 of 3 · a backbone learns to predict the codes of hidden patches")
    labelled = images.labels is not None
    changes = {
        "tokenizer": str(tokenizer.directory),
        "model": {"backbone": sets.vit},
        "run": {"output": str(output / "pretrain")},
    }
    if not labelled:
        changes["check"] = {"every": 0}
    pretrain_config = from_plain(PretrainConfig, settings(pretrain.VERB, changes), pretrain.VERB)
    pretrained = pretrain.run(pretrain_config)

    table = None
    if labelled:
        print("\n3 of 3 · what frozen features tell of the classes")
        teacher = tokenizer_config.teacher
        shared = {"train": sets.train, "test": sets.test}
        backbone = {"model": str(pretrained.directory)}
        rows = []
        models: dict[str, dict[str, Any]] = {
            "untrained backbone": {**backbone, "untrained": True},
            "pretrained backbone": backbone,
            "tokenizer's encoder": {"model": str(tokenizer.directory)},
            "teacher": {"model": f"teacher:{teacher.source}", "image_size": teacher.image_size},
        }
        for name, choice in models.items():
            plain = merged(preset["probe"], {**shared, **choice})
            rows.append(table_row(name, probe.run(from_plain(probe.Config, plain, "probe")).rows))
        columns = ["features of", "linear, [CLS]", "linear, mean", "k-NN, [CLS]", "k-NN, mean"]
        table = Table("Accuracy on images never trained on, in percent.", columns, rows)

    minutes = (time.monotonic() - started) / 60
    summary = (
        "A teacher's view of image patches was put into a codebook; a backbone learnt to predict "
        "the codes of patches it could not see. No label of these images was used for either."
        if table
        else "The images have no class folders, so there is no probe: nothing to score against."
    )
    sections = [Section("What was learned", items=[table])] if table else []
    report = write_report(
        output / "report.html",
        "beit: from images to a backbone",
        [*sections, *tokenizer.sections, *pretrained.sections],
        {"images": sets.train, "teacher": tokenizer_config.teacher.source, "preset": PRESET}
        | {"minutes": f"{minutes:.1f}"},
        summary=summary,
    )
    print("\n" + (format_table(table) if table else summary))
    print(f"\n{minutes:.1f} minutes · report: {report}")
    return Result(report, table)


def find_sets(config: Config) -> Sets:
    """Settle what is trained and what is tested on: a folder's own split, or four fifths of it."""
    if not config.data:
        try:
            files = fetch.run(fetch.Config(name="cifar10", directory=config.cache))
        except OSError as error:
            print(f"{error}\nCIFAR-10 cannot be fetched here; going on with drawn scenes, {DRAWN}")
            return Sets(f"{DRAWN}[:80%]", f"{DRAWN}[80%:]", LARGER)
        return Sets(str(files.train), str(files.test), {})
    folder = Path(config.data)
    train = next((folder / name for name in TRAIN_NAMES if (folder / name).is_dir()), None)
    test = next((folder / name for name in TEST_NAMES if (folder / name).is_dir()), None)
    if train and test:
        return Sets(str(train), str(test), LARGER)
    return Sets(f"{config.data}[:80%]", f"{config.data}[80%:]", LARGER)


def first_free(path: Path) -> Path:
    """Return the path, or where that exists the first of path-2, path-3, ... that does not."""
    numbered = (path.with_name(f"{path.name}-{number}") for number in count(2))
    return next(candidate for candidate in chain([path], numbered) if not candidate.exists())


def merged(plain: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested settings with some of them changed."""
    result = dict(plain)
    for name, value in changes.items():
        nested = isinstance(value, Mapping) and isinstance(result.get(name), Mapping)
        result[name] = merged(result[name], value) if nested else value
    return result


def table_row(name: str, rows: list[probe.Row]) -> list[str]:
    """Write one model's accuracies: linear by [CLS] and mean, then k-NN likewise."""
    by_kind = {row["features"]: row for row in rows}
    cells = [name]
    for score in ("linear", "knn"):
        for kind in ("cls", "mean"):
            row: Any = by_kind.get(kind)
            cells.append(f"{100 * row[score]:.1f}" if row else "–")
    return cells


def format_table(table: Table) -> str:
    """Lay the table out for a terminal."""
    lines = [table.columns, *table.rows]
    widths = [max(len(str(line[i])) for line in lines) for i in range(len(table.columns))]
    return "\n".join(
        "  ".join(
            f"{cell!s:<{width}}" if i == 0 else f"{cell!s:>{width}}"
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )
