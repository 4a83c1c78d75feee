"""What reads files that others may have made: a small valid file for each, and how it is read.

A reader makes its files in an empty folder, and returns those that are to be changed and a function
that reads them. What the function returns is of no interest; a damaged file is a ValueError or an
OSError that names it.
"""

import functools
import gzip
import io
import json
import sys
import tarfile
import types
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow
import torch
from PIL import Image
from pyarrow import ipc, parquet
from safetensors.torch import save_file
from torch import nn

from beit.command.presets import read_yaml
from beit.comparison.plan import unfold
from beit.comparison.records import _kept
from beit.comparison.runs import read_run, sample_pictures
from beit.data.classes import read_classes
from beit.data.packed import RECORD
from beit.data.pixels.decoding import decode
from beit.data.shrinking import ShrunkImages
from beit.data.source import Source, UnreadableImage
from beit.data.sources import open_source
from beit.draw.report import Gallery, Picture, Section, write_report
from beit.evaluation.imagenet_classes import read_json
from beit.nn.dalle import DalleConfig, DalleTokenizer
from beit.nn.heads import ImageClassifier, ImageClassifierConfig
from beit.nn.masking import MaskConfig
from beit.nn.mim import MaskedImageModel, MaskedImageModelConfig
from beit.nn.tokenizer import VQKD, VQKDConfig
from beit.nn.vit import ViTConfig
from beit.packing import pack
from beit.packing.record import Record as PackRecord
from beit.pretraining import pretrain
from beit.rows.files import Column, read_about, read_table, write_table
from beit.rows.part import read_array
from beit.run import checkpoint, records
from beit.run.directory import RunDirectory
from beit.run.images import check_images
from beit.run.lock import releasing
from beit.run.log import read_log
from beit.run.optim import OptimConfig
from beit.run.resume import open_run
from beit.segmentation.label_classes import label_classes, read_label_classes
from beit.segmentation.label_decoding import decode_label_map
from beit.segmentation.label_maps import open_label_maps
from beit.weights.crop import crop_in
from beit.weights.file import save_weights
from beit.weights.formats.containers import read_tensors
from beit.weights.formats.dalle import read_pickled_module, to_dalle
from beit.weights.formats.published import to_published
from beit.weights.formats.transformers_beit import to_transformers
from beit.weights.formats.transformers_config import image_processor_config, transformers_config
from beit.weights.open import load


class Prepared(NamedTuple):
    """Files to change, by their names in the folder, and what reads them."""

    files: list[str]
    read: Callable[[], object]


TRUNK = ViTConfig(image_size=(16, 16), patch_size=8, width=8, depth=1, num_heads=2)
MIM = MaskedImageModelConfig(TRUNK, num_codes=5, early_layers=1, head_layers=1)
ENCODER = ViTConfig(
    image_size=(16, 16), patch_size=8, width=8, depth=1, num_heads=2, relative_bias="none"
)
CLASSES = ["cat", "dog"]


def mim() -> MaskedImageModel:
    return MaskedImageModel(MIM).eval()


def classifier() -> ImageClassifier:
    vit = ViTConfig(**{**vars(TRUNK), "relative_bias": "per_block"})
    return ImageClassifier(ImageClassifierConfig(vit, num_classes=2)).eval()


def picture(mode: str = "RGB", size: tuple[int, int] = (7, 5)) -> Image.Image:
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)).convert(
        mode
    )


def encoded(kind: str, mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    picture(mode).save(file, kind)
    return file.getvalue()


# ── weights ─────────────────────────────────────────────────────────────────────────────────────


def own_weights(folder: Path) -> Prepared:
    file = folder / "own.safetensors"
    save_weights(file, mim(), 0.9)
    return Prepared([file.name], lambda: (load(file), crop_in(file)))


def tokenizer_weights(folder: Path) -> Prepared:
    file = folder / "vqkd.safetensors"
    config = VQKDConfig(ENCODER, decoder_depth=1, num_codes=5, code_width=4, teacher_width=3)
    save_weights(file, VQKD(config))
    return Prepared([file.name], lambda: load(file))


def published_weights(folder: Path) -> Prepared:
    """In the layout of the published code, in both formats of torch."""
    new, old = folder / "published_new.pth", folder / "published_old.pth"
    content = {"model": to_published(classifier())}
    torch.save(content, new)
    torch.save(content, old, _use_new_zipfile_serialization=False)

    def read() -> None:
        for file in (new, old):
            load(file)

    return Prepared([new.name, old.name], read)


def shards(folder: Path) -> Prepared:
    state = to_transformers(classifier())
    names = sorted(state)
    places = {n: f"model-0000{1 + (i % 2)}-of-00002.safetensors" for i, n in enumerate(names)}
    for file in set(places.values()):
        part = {n: state[n].contiguous().clone() for n in names if places[n] == file}
        save_file(part, folder / file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    (folder / "config.json").write_text(json.dumps(transformers_config(classifier())))
    return Prepared([index.name, *set(places.values())], lambda: load(folder))


def transformers_weights(folder: Path) -> Prepared:
    model = classifier()
    state = {name: tensor.contiguous().clone() for name, tensor in to_transformers(model).items()}
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(transformers_config(model)))
    processor = json.dumps(image_processor_config(model, 0.9))
    (folder / "preprocessor_config.json").write_text(processor)
    files = ["model.safetensors", "config.json", "preprocessor_config.json"]
    return Prepared(files, lambda: (load(folder), crop_in(folder)))


class Holder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 3)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self.inner(values)


def torchscript(folder: Path) -> Prepared:
    file = folder / "script.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(Holder(), torch.zeros(1, 2)), file)
    return Prepared([file.name], lambda: read_tensors(file))


def pickled_modules(folder: Path) -> Prepared:
    """As of DALL-E's package, which is not there when they are read."""
    package = types.ModuleType("dall_e")
    kind = type("Encoder", (Holder,), {"__module__": "dall_e.encoder"})
    inner = types.ModuleType("dall_e.encoder")
    inner.Encoder = kind  # type: ignore[attr-defined]
    sys.modules |= {"dall_e": package, "dall_e.encoder": inner}
    new, old = folder / "new.pkl", folder / "old.pkl"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = kind()
        module.make = functools.partial(nn.Linear, bias=True)
        del module.make
        torch.save(module, new)
        torch.save(module, old, _use_new_zipfile_serialization=False)
    del sys.modules["dall_e"], sys.modules["dall_e.encoder"]

    def read() -> None:
        for file in (new, old):
            read_pickled_module(file)

    return Prepared([new.name, old.name], read)


def dalle_weights(folder: Path) -> Prepared:
    model = DalleTokenizer(DalleConfig((16, 16), 5, width=4, blocks_per_group=1, code_width=3))
    file = folder / "dalle_new.pth"
    torch.save(to_dalle(model), file)
    return Prepared([file.name], lambda: load(file, image_size=(16, 16)))


# ── runs ────────────────────────────────────────────────────────────────────────────────────────


def run_directory(folder: Path) -> RunDirectory:
    optim = OptimConfig(
        batch_size=8,
        epochs=2,
        learning_rate=1e-3,
        warmup_epochs=1,
        betas=(0.9, 0.98),
        weight_decay=0.01,
    )
    settings = asdict(
        pretrain.Config(
            tokenizer="x", model=MIM, optim=optim, mask=MaskConfig(count=2, min_block=1)
        )
    )
    run = RunDirectory.create(folder / "run", settings, {"verb": "pretrain", "torch": "2"})
    run.metrics_file.write_text(
        '{"step": 1, "epoch": 0.5, "rate": 0.001, "loss": 2.5}\n'
        '{"step": 2, "epoch": 1.0, "val_loss": 2.5}\n{"step": 2, "warning": "few"}\n'
    )
    return run


def settings_of_a_run(folder: Path) -> Prepared:
    run = run_directory(folder)
    files = ["run/config.yaml", "run/environment.json"]
    return Prepared(files, lambda: (open_run(pretrain, run.path), crop_in(run.path)))


def logs(folder: Path) -> Prepared:
    run = run_directory(folder)

    def read() -> None:
        read_log(run.metrics_file)
        read_run(run.path, "run")

    return Prepared(["run/metrics.jsonl", "run/environment.json", "run/config.yaml"], read)


def checkpoints(folder: Path) -> Prepared:
    run = run_directory(folder)
    state = {"model": mim().state_dict(), "means": {"loss": (1.0, 2.0)}, "names": ["a", b"b"]}
    file = records.save(run, 4, state)
    return Prepared([f"run/checkpoints/{file.name}"], lambda: checkpoint.latest(run))


def image_lists(folder: Path) -> Prepared:
    run = run_directory(folder)
    source = open_source("shapes://9?size=8")
    lists = {"data.train": {"images": "\n".join(source.name(i) for i in range(9)), "classes": []}}
    run.images_file.write_bytes(gzip.compress(json.dumps(lists).encode(), mtime=0))
    return Prepared(
        [f"run/{run.images_file.name}"], lambda: check_images(run, {"data.train": source}, False)
    )


def reports(folder: Path) -> Prepared:
    picture_ = Picture("a", "b", encoded("PNG"), "image/png")
    items = [Gallery("c", [picture_])]
    file = write_report(folder / "report.html", "T", [Section("S", items=items)], {})
    return Prepared([file.name], lambda: sample_pictures(file, 4))


# ── settings ────────────────────────────────────────────────────────────────────────────────────


def settings_files(folder: Path) -> Prepared:
    file = folder / "settings.yaml"
    file.write_text(
        "pretrain:\n  data: {train: photos}\n  optim: {epochs: 3, betas: [0.9, 0.98]}\n"
    )
    return Prepared([file.name], lambda: read_yaml(file))


def plans(folder: Path) -> Prepared:
    file = folder / "plan.yaml"
    file.write_text(
        "title: T\nseeds: [0, 1]\nstages:\n  tok: {verb: train-tokenizer, data.train: x}\n"
        "  pretrain: {tokenizer: run:tok, optim: {epochs: 3}}\nfigures: {loss: pretrain.val_loss}\n"
        "grid:\n  pretrain.optim.epochs: [1, 2]\n  tok.data.train: {a: {tok.data.limit: 3}, b: }\n"
        "reference: ''\n"
    )
    return Prepared([file.name], lambda: unfold(read_yaml(file), str(file), {}))


def class_lists(folder: Path) -> Prepared:
    names, classes = folder / "names.txt", folder / "classes.yaml"
    names.write_text("cat\ndog\n")
    classes.write_text("classes: {ground: [0, 0, 0], crack: [255, 0, 0]}\nignored: [255]\n")

    def read() -> None:
        read_classes(str(names))
        read_label_classes(str(names))
        read_label_classes(str(classes))

    return Prepared([names.name, classes.name], read)


def json_files(folder: Path) -> Prepared:
    file = folder / "labels.json"
    file.write_text("[[1], [2, 3]]")
    return Prepared([file.name], lambda: read_json(file))


# ── images and labels ───────────────────────────────────────────────────────────────────────────


def every_image(source: Source) -> None:
    for index in range(min(len(source), 3)):
        try:
            source.image(index)
        except UnreadableImage as error:
            assert source.name(index) in str(error)


def images(folder: Path) -> Prepared:
    """Of all formats that can be decoded here."""
    files = {
        f"a.{kind.lower()}": encoded(kind) for kind in ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF")
    }
    files |= {"b.png": encoded("PNG", "P"), "c.png": encoded("PNG", "LA"), "a.ppm": encoded("PPM")}
    files |= {"d.tiff": tiff(), "e.jpeg": encoded("JPEG", "CMYK"), "f.npy": array()}
    for name, kind in (
        ("a.jp2", "JPEG2000"),
        ("a.avif", "AVIF"),
        ("a.heif", "HEIF"),
        ("a.jxl", "JXL"),
    ):
        try:
            files[name] = encoded(kind)
        except (KeyError, OSError):
            continue
    for name, data in files.items():
        (folder / name).write_bytes(data)

    def read() -> None:
        for name in files:
            data = (folder / name).read_bytes()
            if data != files[name]:  # the others are as they were
                decode(data, name)

    return Prepared(list(files), read)


def tiff() -> bytes:
    import tifffile

    file = io.BytesIO()
    values = np.arange(7 * 5 * 4, dtype=np.uint16).reshape(5, 7, 4)
    tifffile.imwrite(file, values, photometric="minisblack", planarconfig="contig")
    return file.getvalue()


def array() -> bytes:
    file = io.BytesIO()
    np.save(file, np.arange(7 * 5 * 4, dtype=np.float32).reshape(5, 7, 4))
    return file.getvalue()


def rows_of_images(folder: Path) -> Prepared:
    """Parquet, Arrow, and a folder that `datasets` saved."""
    data = encoded("PNG")
    table = pyarrow.table(
        {"image": [{"bytes": data, "path": None}] * 3, "label": [0, 1, 0], "split": ["train"] * 3}
    )
    features = {"label": {"_type": "ClassLabel", "names": CLASSES}}
    about = {"huggingface": json.dumps({"info": {"features": features}})}
    table = table.replace_schema_metadata(about)
    parquet.write_table(table, folder / "a.parquet")
    saved = folder / "saved"
    saved.mkdir()
    for file in (folder / "a.arrow", saved / "data.arrow"):
        with ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table)
    state = {"_data_files": [{"filename": "data.arrow"}]}
    (saved / "state.json").write_text(json.dumps(state))
    (saved / "dataset_info.json").write_text(json.dumps({"features": features}))

    def read() -> None:
        for path in (folder / "a.parquet", folder / "a.arrow", saved):
            every_image(open_source(str(path)))

    files = [
        "a.parquet",
        "a.arrow",
        "saved/state.json",
        "saved/dataset_info.json",
        "saved/data.arrow",
    ]
    return Prepared(files, read)


def text_tables(folder: Path) -> Prepared:
    for name in ("a.png", "b.png"):
        (folder / name).write_bytes(encoded("PNG"))
    (folder / "t.csv").write_text("image,label,split\na.png,cat,train\nb.png,dog,train\n")
    (folder / "t.tsv").write_text("image\tlabel\na.png\t0\nb.png\t1\n")
    lines = [{"file_name": "a.png", "label": "cat"}, {"file_name": "b.png", "label": "dog"}]
    (folder / "t.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "list.txt").write_text(f"{folder}/a.png\n{folder}/b.png\n")

    def read() -> None:
        for name in ("t.csv", "t.tsv", "t.jsonl"):
            open_source(f"{folder}/{name}")
        open_source(f"@{folder}/list.txt")

    return Prepared(["t.csv", "t.tsv", "t.jsonl", "list.txt"], read)


def archives(folder: Path) -> Prepared:
    """Tar shards of WebDataset's kind, and a zip of class folders."""
    with tarfile.open(folder / "a.tar", "w") as archive:
        for number, name in enumerate(CLASSES):
            for ending, content in (
                ("png", encoded("PNG")),
                ("cls", b"%d" % number),
                ("json", json.dumps({"label": name, "split": "train"}).encode()),
            ):
                member = tarfile.TarInfo(f"{number:03}.{ending}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        for name in CLASSES:
            archive.writestr(f"{name}/a.png", encoded("PNG"))

    def read() -> None:
        every_image(open_source(f"{folder}/a.tar"))
        every_image(open_source(f"{folder}/a.zip"))

    return Prepared(["a.tar", "a.zip"], read)


def shards_of_pack(folder: Path) -> Path:
    for name in CLASSES:
        (folder / "photos" / name).mkdir(parents=True)
        (folder / "photos" / name / "a.png").write_bytes(encoded("PNG"))
    pack.run(pack.Config(str(folder / "photos"), str(folder / "packed"), num_workers=0))
    return folder / "packed"


def packed_images(folder: Path) -> Prepared:
    shards = shards_of_pack(folder)
    files = [f"packed/{path.name}" for path in shards.glob("*.*") if path.name[0] != "."]
    return Prepared(files, lambda: every_image(open_source(str(shards))))


def indexes_of_shards(folder: Path) -> Prepared:
    shards = shards_of_pack(folder)
    [index] = [path.relative_to(folder) for path in shards.glob(".*.index")]
    return Prepared([str(index)], lambda: every_image(open_source(str(shards))))


def records_of_packing(folder: Path) -> Prepared:
    shards = shards_of_pack(folder)
    settings = json.loads((shards / RECORD).read_text())["settings"]

    def read() -> None:
        with releasing():
            PackRecord(shards, settings)

    return Prepared([f"packed/{RECORD}"], read)


def records_of_ablations(folder: Path) -> Prepared:
    file = folder / "measured.jsonl"
    record = {"run": "a-1", "metrics": {"loss": 2.5}, "hours": 0.5, "environment": {"torch": "2"}}
    file.write_text(f"{json.dumps(record)}\n" * 2)
    return Prepared([file.name], lambda: _kept(file))


def label_zips(folder: Path) -> Prepared:
    """Images with label maps in a zip: two folders, and Pascal VOC's layout."""
    label = io.BytesIO()
    Image.fromarray(np.eye(5, 7, dtype=np.uint8)).save(label, "PNG")
    with zipfile.ZipFile(folder / "maps.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("a", "b"):
            archive.writestr(f"s/images/{name}.png", encoded("PNG"))
            archive.writestr(f"s/labels/{name}.png", label.getvalue())
    with zipfile.ZipFile(folder / "voc.zip", "w") as archive:
        archive.writestr("v/JPEGImages/a.jpg", encoded("JPEG"))
        archive.writestr("v/SegmentationClass/a.png", label.getvalue())
        archive.writestr("v/ImageSets/Segmentation/train.txt", "a\n")

    def read() -> None:
        for name, classes in (("maps.zip", "2"), ("voc.zip", "")):
            maps = open_label_maps(f"{folder}/{name}", classes=classes)
            for index in range(min(len(maps), 2)):
                try:
                    maps.image(index)
                    maps.label_map(index)
                except UnreadableImage:
                    pass

    return Prepared(["maps.zip", "voc.zip"], read)


def label_map(folder: Path) -> Prepared:
    file = folder / "map.png"
    Image.fromarray(np.eye(5, 7, dtype=np.uint8)).save(file)
    classes = label_classes(CLASSES)
    return Prepared([file.name], lambda: decode_label_map(file.read_bytes(), str(file), classes))


# ── tables of ours, and caches ──────────────────────────────────────────────────────────────────


def own_tables(folder: Path) -> Prepared:
    columns = [Column("index", "int64"), Column("cls", "float32", (3,))]
    values = {"index": np.arange(4), "cls": np.ones((4, 3), np.float32)}
    files = [folder / "table.npz", folder / "table.parquet"]
    for file in files:
        about = json.dumps({"verb": "similar"})
        write_table(file, file.suffix, columns, 1, lambda _, c: values[c.name], about)

    def read() -> None:
        for file in files:
            read_table(file)
            read_about(file)
        read_array(files[0], "index")

    return Prepared([file.name for file in files], read)


def shrunk_images(folder: Path) -> Prepared:
    kept, file = ShrunkImages(str(folder / "kept"), 1.0), folder / "kept" / "aa" / "x"
    kept.write(file, torch.zeros(3, 5, 7, dtype=torch.uint8))
    return Prepared(["kept/aa/x"], lambda: kept.read(file))


READERS: Mapping[str, Callable[[Path], Prepared]] = {
    reader.__name__: reader
    for reader in (
        *(own_weights, tokenizer_weights, published_weights, shards, transformers_weights),
        *(torchscript, pickled_modules, dalle_weights),
        *(settings_of_a_run, logs, checkpoints, image_lists, reports),
        *(settings_files, plans, class_lists, json_files),
        *(images, rows_of_images, text_tables, label_zips, label_map, own_tables, shrunk_images),
        *(archives, packed_images, indexes_of_shards, records_of_packing, records_of_ablations),
    )
}
