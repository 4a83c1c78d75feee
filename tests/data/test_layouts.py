"""The same images in every layout are the same images, in the same order, of the same classes."""

import csv
import json

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from pyarrow import parquet

from beit.data.sources import open_source
from beit.nn.tokenizer import VQKD, VQKDConfig
from beit.tables import tokenize
from beit.weights.file import save_weights

CLASSES = ["fig", "lime", "plum"]


def class_folders(root, count):
    """Class folders of noisy images; returns their folder and (path, class), sorted by path."""
    random, images = np.random.default_rng(0), []
    for number in range(count):
        name = CLASSES[number * 7 % 3]
        path = root / name / f"{number:04d}.{('png', 'jpg')[number % 2]}"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(random.integers(0, 255, (5 + number % 3, 6, 3), np.uint8)).save(path)
        images.append((path, name))
    return root, sorted(images)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return class_folders(tmp_path_factory.mktemp("fruit"), 20)


def rows(images, order=CLASSES, whole=True):
    """A table in the layout of `datasets`, with bytes or only with paths."""
    features = {"label": {"names": list(order), "_type": "ClassLabel"}, "image": {"_type": "Image"}}
    about = {"huggingface": json.dumps({"info": {"features": features}})}
    values = [{"bytes": p.read_bytes() if whole else None, "path": str(p)} for p, _ in images]
    table = pa.table({"image": values, "label": [order.index(name) for _, name in images]})
    return table.replace_schema_metadata(about)


def write_csv(path, images):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([("file_name", "label"), *((str(p), name) for p, name in images)])
    return str(path)


def folder_with_metadata(root, images):
    """The images side by side, with metadata.csv in another order."""
    for number, (path, _) in enumerate(images):
        (root / f"{number:04d}{path.suffix}").write_bytes(path.read_bytes())
    names = [(f"{n:04d}{p.suffix}", name) for n, (p, name) in enumerate(images)]
    with (root / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file_name", "label"), *reversed(names)])
    return str(root)


def split_files(root, images):
    """Two Parquet files of rows, the second with its classes in another order."""
    parquet.write_table(rows(images[:9]), root / "0.parquet", row_group_size=4)
    parquet.write_table(rows(images[9:], ["plum", "fig", "lime"]), root / "1.parquet")
    return str(root)


def arrow(root, images):
    with pa.OSFile(str(root / "a.arrow"), "wb") as sink:
        with pa.ipc.new_stream(sink, rows(images).schema) as writer:
            writer.write_table(rows(images), max_chunksize=6)
    return str(root)


def json_lines(root, images):
    lines = (json.dumps({"path": str(path), "class": name}) for path, name in images)
    (root / "rows.jsonl").write_text("\n".join(lines))
    return str(root / "rows.jsonl")


def text_labels(root, images):
    columns = {"img": [p.read_bytes() for p, _ in images], "class": [name for _, name in images]}
    parquet.write_table(pa.table(columns), root / "a.parquet")
    return str(root / "a.parquet")


def paths_only(root, images):
    parquet.write_table(rows(images, whole=False), root / "a.parquet")
    return str(root)


def split_folders(root, images):
    for path, name in images:
        copy = root / "train" / name / path.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    other = root / "val" / "fig" / "0.png"
    other.parent.mkdir(parents=True)
    Image.new("RGB", (6, 6)).save(other)
    return str(root)


def write_list(root, images):
    (root / "list.txt").write_text("\n".join(str(path) for path, _ in images))
    return f"@{root / 'list.txt'}"


UNLABELLED = {"list": write_list}
LAYOUTS = {
    "csv": lambda root, images: write_csv(root / "labels.csv", images),
    "json lines": json_lines,
    "metadata": folder_with_metadata,
    "parquet files": split_files,
    "parquet of paths": paths_only,
    "parquet of bytes and text": text_labels,
    "arrow": arrow,
    "splits": split_folders,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_has_the_same_images_and_classes(layout, files, tmp_path):
    folder, images = files
    first = open_source(str(folder))
    source = open_source(LAYOUTS[layout](tmp_path, images), split="train")
    assert len(source) == len(first) == 20
    assert source.class_names == first.class_names == CLASSES
    assert source.labels.tolist() == first.labels.tolist()
    for index in torch.randperm(20, generator=torch.Generator().manual_seed(0)).tolist():
        assert torch.equal(source.image(index), first.image(index))


@pytest.mark.slow
def test_every_layout_gives_the_same_codes_byte_for_byte(tmp_path, vit, monkeypatch):
    torch.manual_seed(0)
    encoder = vit(image_size=(16, 16))
    tokenizer = VQKD(VQKDConfig(encoder, decoder_depth=1, num_codes=300, code_width=5))
    torch.nn.init.normal_(tokenizer.quantizer.codebook)
    save_weights(tmp_path / "tokenizer.safetensors", tokenizer)
    (tmp_path / "folder").mkdir()
    folder, images = class_folders(tmp_path / "folder", 2000)

    def codes(data):
        output = f"{data.replace('/', '_')}.parquet"
        config = tokenize.Config(str(tmp_path / "tokenizer.safetensors"), data, output)
        tokenize.run(config)
        return np.stack(parquet.read_table(output)["codes"].to_numpy()).tobytes()

    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    expected = codes(str(folder))
    assert len(expected) == 2000 * 4 * 2  # 4 patches, uint16
    for name, make in (LAYOUTS | UNLABELLED).items():
        (tmp_path / name).mkdir()
        data = make(tmp_path / name, images)
        assert codes(f"{data}/train" if name == "splits" else data) == expected, name
