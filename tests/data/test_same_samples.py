"""The same images in every kind of source give the same samples, to the bit."""

import io
import multiprocessing
import tarfile
import zipfile
from pathlib import Path

import fsspec
import pyarrow
import pytest
import torch
from PIL import Image
from pyarrow import parquet
from torch import distributed

from beit.data.batches import TrainBatches
from beit.data.sources import open_source
from beit.data.stores import remote
from beit.data.views import TrainViews, ViewConfig
from beit.pretraining import pretrain
from beit.run.resume import resume as resume_run

VIEWS = TrainViews(ViewConfig(color_jitter=0.4), (8, 8), (12, 12))
CLASSES = ("apple", "lime")


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    """Thirteen photos of two classes: the names of sources by kind."""
    root = tmp_path_factory.mktemp("same")
    generator = torch.Generator().manual_seed(1)
    for number in range(13):
        path = root / "fruit" / CLASSES[number // 7] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        size = 14 + number % 3, 17 - number % 2, 3
        pixels = torch.randint(0, 256, size, generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(path)
    files = sorted((root / "fruit").rglob("*.png"))
    names = [str(path.relative_to(root / "fruit")) for path in files]
    with (
        tarfile.open(root / "fruit.tar", "w") as tar,
        zipfile.ZipFile(root / "f.zip", "w") as archive,
    ):
        for path, name in zip(reversed(files), reversed(names), strict=True):
            tar.add(path, f"fruit/{name}")
            archive.write(path, name)
    for shard, part in enumerate((files[:5], files[5:])):
        with tarfile.open(root / f"x-{shard}.tar", "w") as tar:
            for path in part:
                label = str(CLASSES.index(path.parent.name)).encode()
                for ending, data in (("png", path.read_bytes()), ("cls", label)):
                    info = tarfile.TarInfo(f"{path.stem}.{ending}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    (root / "list").write_text("".join(f"{path}\n" for path in files))
    columns = {
        "image": [path.read_bytes() for path in files],
        "label": [path.parent.name for path in files],
    }
    parquet.write_table(pyarrow.table(columns), root / "x.parquet", row_group_size=4)
    store = fsspec.filesystem("memory")
    for path in sorted(root.rglob("*")):
        if path.is_file():
            store.pipe(f"/same/{path.relative_to(root)}", path.read_bytes())
    found = {"folder": "fruit", "tar": "fruit.tar", "shards": "x-{0..1}.tar", "zip": "f.zip"}
    found = {kind: f"{root}/{name}" for kind, name in found.items()}
    found |= {"list": f"@{root}/list", "rows": f"{root}/x.parquet"}
    for kind, name in (("tar", "fruit.tar"), ("folder", "fruit"), ("rows", "x.parquet")):
        found[f"{kind} in a store"] = f"memory://same/{name}"
    yield found | {"mixture": f"{{{root}/fruit.tar: 0.2, {root}/x-*.tar: 0.8}}"}
    store.rm("/same", recursive=True)


@pytest.fixture(autouse=True)
def _caches(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    remote._kept.cache_clear()
    yield
    remote._kept.cache_clear()


def samples(spec, start=0, workers=0, rank=0, processes=1):
    """Returns the images, targets, labels and indices of two epochs and a bit, from a step on."""
    batches = TrainBatches(
        open_source(spec, split="train"),
        VIEWS,
        batch_size=4 // processes,
        seed=5,
        start_step=start,
        num_steps=7,
        rank=rank,
        world_size=processes,
        num_workers=workers,
    )
    return [[b.images, b.target_images, b.labels, b.indices] for b in batches]


def samples_of_two(spec, folder, **options):
    """Returns the same of two processes, each with its half, gathered over gloo."""
    folder.mkdir()
    context = multiprocessing.get_context("fork")  # what is in memory:// is in them too
    arguments = [(rank, spec, folder, options) for rank in range(2)]
    started = [context.Process(target=be_one_of_two, args=each) for each in arguments]
    for process in started:
        process.start()
    for process in started:
        process.join()
    assert [process.exitcode for process in started] == [0, 0]
    return torch.load(folder / "samples")


def be_one_of_two(rank, spec, folder, options):
    distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    gathered = []
    for batch in samples(spec, rank=rank, processes=2, **options):
        halves = [[torch.empty_like(field) for _ in range(2)] for field in batch]
        for half, field in zip(halves, batch, strict=True):
            distributed.all_gather(half, field)
        gathered.append([torch.cat(half) for half in halves])
    if rank == 0:
        torch.save(gathered, folder / "samples")
    distributed.barrier()
    distributed.destroy_process_group()


def same(first, second, labels=True):
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        for place, (left, right) in enumerate(zip(one, other, strict=True)):
            assert torch.equal(left, right) or (place == 2 and not labels)


KINDS = (
    "tar",
    "shards",
    "zip",
    "list",
    "rows",
    "tar in a store",
    "folder in a store",
    "rows in a store",
)
LESS_OFTEN = [kind for kind in KINDS if kind != "shards"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_source_gives_the_samples_of_the_folder(kinds, kind):
    same(samples(kinds[kind]), samples(kinds["folder"]), labels=kind != "list")


@pytest.mark.parametrize(
    "kind",
    ["folder", "shards", "mixture", *(pytest.param(k, marks=pytest.mark.slow) for k in LESS_OFTEN)],
)
def test_workers_processes_and_interruptions_change_no_sample(kinds, kind, tmp_path):
    whole = samples(kinds[kind])  # epochs of three steps
    for workers in (1, 4):
        same(samples(kinds[kind], workers=workers), whole)
    same(samples_of_two(kinds[kind], tmp_path / "two", workers=1), whole)
    same(samples(kinds[kind], start=2), whole[2:])
    same(samples_of_two(kinds[kind], tmp_path / "resumed", start=4), whole[4:])


def test_parts_are_the_same_images_in_folder_tar_and_zip(kinds):
    for part in ("[:60%]", "[60%:]"):
        names = [open_source(f"{kinds[kind]}{part}") for kind in ("folder", "tar", "zip")]
        listed = [[source.name(index) for index in range(len(source))] for source in names]
        assert listed[0] == listed[1] == listed[2] and 0 < len(listed[0]) < 13


@pytest.mark.parametrize("kind", [pytest.param("shards", marks=pytest.mark.slow), "mixture"])
def test_a_resumed_training_has_the_weights_of_an_uninterrupted_one(
    kinds, kind, tmp_path, trained_tokenizer, pretrain_config, optim, interrupt_at, same_bits
):
    def config(name):
        base = pretrain_config(tmp_path / name, Path(trained_tokenizer), optim=optim(batch_size=4))
        data = type(base.data)(train=kinds[kind], num_workers=0)
        return type(base)(**{**vars(base), "data": data})

    pretrain.run(config("whole"))
    interrupt_at(pretrain, config("broken"), 5)  # the second of three steps of its epoch
    resume_run(pretrain, str(tmp_path / "broken"))
    same_bits(tmp_path / "whole", tmp_path / "broken")
