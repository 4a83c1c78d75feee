"""The demo: train a tokenizer, pretrain on its codes, probe and report, in minutes on two cores."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain, count
from pathlib import Path
from typing import Any, NamedTuple

from beit.command.options import parse
from beit.data.sources import open_source
from beit.draw.report import Section, Table, write_report
from beit.fetching import fetch
from beit.pretraining import pretrain
from beit.pretraining.config import Config as PretrainConfig
from beit.probing import probe
from beit.probing.charts import format_table
from beit.run.directory import RunDirectory
from beit.run.journal import Result as Trained
from beit.tokenizer import vqkd

PRESET = "demo"
LARGER = ("image_size=[64,64]", "patch_size=16")  # the same number of patches as the preset's
TRAIN_NAMES = ("train", "training")
TEST_NAMES = ("val", "valid", "validation", "test")
SHAPES = "shapes://10000?size=64"


@dataclass(frozen=True)
class Config:
    """Settings of `beit demo`; all others are in the preset `demo`.

    Attributes:
        data: a folder of images or any other data string; empty fetches CIFAR-10
        output: new directory for the runs and report.html; empty takes the first free one of
            runs/demo, runs/demo-2, ...
        cache: directory in which fetched data and the teacher's features are kept
    """

    data: str = ""
    output: str = ""
    cache: str = "data/cifar10"


class Sets(NamedTuple):
    """Data strings, and options of the ViTs that differ from the preset's."""

    train: str
    test: str
    vit: tuple[str, ...] = LARGER


class Result(NamedTuple):
    """The report, and its table of probes (None for images without labels)."""

    report: Path
    table: Table | None


def run(config: Config) -> Result:
    """Train a tokenizer, pretrain on its codes, probe, and write one report."""
    started = time.monotonic()
    output = Path(config.output) if config.output else first_free(Path("runs/demo"))
    RunDirectory.check_new(output)
    sets = find_sets(config)
    data = [f"--data.train={sets.train}", f"--data.validation={sets.test}"]

    print(f"\n1 of 3 · a tokenizer learns codes from a teacher, on {sets.train}")
    vit = [f"--model.encoder.{option}" for option in sets.vit]
    folders = [f"--run.output={output / 'tokenizer'}", f"--teacher.cache={config.cache}/teacher"]
    tokenizer_config = from_preset(vqkd.VERB, vqkd.Config, [*data, *vit, *folders])
    images = open_source(sets.train, limit=tokenizer_config.data.limit)
    tokenizer_config = fitted(tokenizer_config, len(images))
    tokenizer = vqkd.run(tokenizer_config)

    print("\n2 of 3 · a backbone learns to predict the codes of masked patches")
    options = [f"--model.backbone.{option}" for option in sets.vit]
    options += [f"--tokenizer={tokenizer.directory}", f"--run.output={output / 'pretrain'}"]
    options += ["--check.every=0"] if images.labels is None else []
    pretrain_config = from_preset(pretrain.VERB, PretrainConfig, [*data, *options])
    pretrained = pretrain.run(fitted(pretrain_config, len(images)))

    table = None
    if images.labels is not None:
        print("\n3 of 3 · probes measure how well frozen features separate the classes")
        table = probe_all(sets, tokenizer, pretrained, tokenizer_config.teacher)

    minutes = f"{(time.monotonic() - started) / 60:.1f}"
    summary = "The images have no class folders, so there is no probe and no score."
    if table:
        summary = (
            "A tokenizer learnt a codebook from a teacher's features of image patches; a backbone "
            "learnt to predict the codes of masked patches. Neither used labels of these images."
        )
    sections = [Section("What was learned", items=[table])] if table else []
    sections += [*tokenizer.sections, *pretrained.sections]
    teacher = tokenizer_config.teacher.source
    facts = {"images": sets.train, "teacher": teacher, "preset": PRESET, "minutes": minutes}
    title = "beit: from images to a backbone"
    report = write_report(output / "report.html", title, sections, facts, summary=summary)
    print("\n" + (format_table(table) if table else summary))
    print(f"\n{minutes} minutes · report: {report}")
    return Result(report, table)


def from_preset(verb: str, config_class: type, options: Sequence[str]) -> Any:
    """Build a verb's Config from the preset and these options."""
    return parse(verb, config_class, [f"--preset={PRESET}", *options])


def fitted(config: Any, num_images: int) -> Any:
    """Fit a training to the number of images: it takes about as many samples as the preset's."""
    optim, share = config.optim, config.data.limit / num_images
    epochs, warmup = max(1, round(optim.epochs * share)), optim.warmup_epochs * share
    size = min(optim.batch_size, max(1, num_images // 4))
    optim = replace(optim, epochs=epochs, warmup_epochs=warmup, batch_size=size)
    return replace(config, optim=optim)


def probe_all(sets: Sets, tokenizer: Trained, pretrained: Trained, teacher: Any) -> Table:
    """Probe the untrained and the pretrained backbone, the tokenizer's encoder and the teacher."""
    backbone = f"--model={pretrained.directory}"
    models = {
        "untrained backbone": [backbone, "--untrained"],
        "pretrained backbone": [backbone],
        "tokenizer's encoder": [f"--model={tokenizer.directory}"],
        "teacher": [f"--model=teacher:{teacher.source}", f"--image_size={teacher.image_size}"],
    }
    rows = []
    for name, options in models.items():
        options = [f"--train={sets.train}", f"--test={sets.test}", *options]
        result = probe.run(from_preset("probe", probe.Config, options))
        by_features: dict[str, Any] = {row["features"]: row for row in result.rows}
        places = [(score, features) for score in ("linear", "knn") for features in ("cls", "mean")]
        found = [by_features[f][score] if f in by_features else None for score, f in places]
        rows.append([name, *("–" if share is None else f"{100 * share:.1f}" for share in found)])
    columns = ["features of", "linear, [CLS]", "linear, mean", "k-NN, [CLS]", "k-NN, mean"]
    return Table("Accuracy on images never trained on, in percent.", columns, rows)


def find_sets(config: Config) -> Sets:
    """Choose the training and test images: a folder's own split, or its first 80 % and the rest."""
    if not config.data:
        try:
            files = fetch.run(fetch.Config(name="cifar10", directory=config.cache))
        except OSError as error:
            print(f"{error}\nCIFAR-10 cannot be fetched; using drawn scenes instead, {SHAPES}")
            return Sets(f"{SHAPES}[:80%]", f"{SHAPES}[80%:]")
        return Sets(str(files.train), str(files.test), ())
    folder = Path(config.data)
    train = next((folder / name for name in TRAIN_NAMES if (folder / name).is_dir()), None)
    test = next((folder / name for name in TEST_NAMES if (folder / name).is_dir()), None)
    if train and test:
        return Sets(str(train), str(test))
    return Sets(f"{config.data}[:80%]", f"{config.data}[80%:]")


def first_free(path: Path) -> Path:
    """Return the first of path, path-2, path-3, ... that does not exist."""
    numbered = (path.with_name(f"{path.name}-{number}") for number in count(2))
    return next(candidate for candidate in chain([path], numbered) if not candidate.exists())
