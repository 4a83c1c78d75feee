"""Sources of size: our readers beside those of webdataset and datasets, and an index of millions.

Drawn JPEGs of 100 KB lie in a folder, in tar shards as WebDataset names them, in a zip and in a
Parquet file. Each reader gives the encoded bytes and the label of every image, from the first to
the last and, where it can, in random order; all must give the same. One process, files in the
page cache.

    python -m pip install webdataset datasets        # in an environment of their own
    python benchmarks/sources.py
    python benchmarks/sources.py --names 14000000    # the index alone

With --names: tar shards of 10,000 made-up names each; one of them is indexed for its time, the
others get copies of that index. Then the indices are opened, and four workers name random images.
"""

import argparse
import io
import json
import multiprocessing
import os
import random
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterable
from hashlib import blake2b
from pathlib import Path
from typing import Any

import record
from loader import draw_jpegs

SEED = 0
DRAWN = 50  # different JPEGs
SHARDS = 4
PER_SHARD = 10_000  # made-up names
WORKERS = 4

Pairs = Iterable[tuple[bytes, int]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--kilobytes", type=int, default=100)
    parser.add_argument("--names", type=int, default=0, help="made-up names to index")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--results", type=Path, default=record.RESULTS)
    options = parser.parse_args()
    if options.images % (10 * SHARDS):
        parser.error(
            f"--images must be a multiple of {10 * SHARDS}, for ten classes and the shards"
        )
    about = record.provenance("cpu", [SEED])
    if options.names:
        index = index_of(options.names)
        print(json.dumps(index, indent=2))
        record.write_results("sources-index", about | {"index": index}, options.results)
        return
    rows = measure(options)
    record.print_table(rows, ["reader", "order", "images_per_s", "images_per_cpu_s", "same"])
    about["machine"] |= {name: record.installed(name) for name in ("webdataset", "datasets")}
    about["settings"] = {name: getattr(options, name) for name in ("images", "kilobytes", "rounds")}
    record.write_results("sources-cpu", about | {"rows": rows}, options.results)


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = os.environ["HF_HOME"] = folder
        root = Path(folder)
        expected = write(root, options.images, options.kilobytes * 1000)
        order = random.Random(SEED).sample(range(options.images), options.images)
        ways: dict[tuple[str, str], Callable[[], Pairs]] = {}
        for kind, spec in (
            ("folder", "folder"),
            ("tar", "x-*.tar"),
            ("zip", "x.zip"),
            ("Parquet", "x.parquet"),
            ("Arrow", "x.arrow"),
        ):
            read, count = ours(str(root / spec))
            ways[f"ours, {kind}", "in order"] = lambda r=read, n=count: map(r, range(n))
            ways[f"ours, {kind}", "random"] = lambda r=read: map(r, order)
        ways |= theirs(root, order)
        rows = []
        digests = {each: [digest(pair) for pair in way()] for each, way in ways.items()}
        timings = record.in_turn(
            {each: lambda w=way: [len(data) for data, _ in w()] for each, way in ways.items()},
            options.rounds,
        )
        for (reader, how), timing in timings.items():
            right = [expected[place] for place in order] if how == "random" else expected
            row = {"reader": reader, "order": how, "images_per_s": options.images / timing.seconds}
            row["images_per_cpu_s"] = options.images / timing.cpu_seconds
            rows.append(row | {"same": digests[reader, how] == right})
        return rows


def write(root: Path, count: int, size: int) -> list[str]:
    """Write the images in all forms. Returns: a digest of bytes and label for each."""
    import pyarrow
    from pyarrow import ipc, parquet

    (root / "drawn").mkdir()
    drawn = [path.read_bytes() for path in draw_jpegs(root / "drawn", DRAWN, size)]
    images = [(f"{n:06}", drawn[n % DRAWN], n * 10 // count) for n in range(count)]
    with zipfile.ZipFile(root / "x.zip", "w") as archive:
        for name, data, label in images:
            path = root / "folder" / str(label) / f"{name}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            archive.write(path, f"{label}/{name}.jpg")
    for shard in range(SHARDS):
        with tarfile.open(root / f"x-{shard}.tar", "w") as tar:
            for name, data, label in images[shard * count // SHARDS :][: count // SHARDS]:
                for ending, content in (("jpg", data), ("cls", str(label).encode())):
                    info = tarfile.TarInfo(f"{name}.{ending}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    rows = [{"bytes": data, "path": f"{name}.jpg"} for name, data, _ in images]
    table = pyarrow.table({"image": rows, "label": [label for *_, label in images]})
    parquet.write_table(table, root / "x.parquet", row_group_size=100)
    with ipc.new_file(str(root / "x.arrow"), table.schema) as file:
        file.write_table(table, max_chunksize=100)
    return [digest((data, label)) for _, data, label in images]


def ours(spec: str) -> tuple[Callable[[int], tuple[bytes, int]], int]:
    """Return what reads the bytes and label of an image from one of our sources, undecoded."""
    from beit.data.archives.source import FilesSource
    from beit.data.folders.image_files import FileSource
    from beit.data.sources import open_source
    from beit.data.tabular.rows import RowSource

    source: Any = open_source(spec)
    labels = source.labels.tolist()

    def read(index: int) -> tuple[bytes, int]:
        if isinstance(source, FilesSource):
            part, place = source._place(index)
            return part.read(place), labels[index]
        if isinstance(source, FileSource):
            return source.file(index).read_bytes(), labels[index]
        assert isinstance(source, RowSource)
        group = max(g for g, start in enumerate(source._starts) if start <= index)
        value = source._values(group)[index - source._starts[group]].as_py()
        return value["bytes"], labels[index]

    return read, len(source)


def theirs(root: Path, order: list[int]) -> dict[tuple[str, str], Callable[[], Pairs]]:
    """Return the readers of webdataset and datasets, of those that are installed."""
    ways: dict[tuple[str, str], Callable[[], Pairs]] = {}
    shards = [str(root / f"x-{shard}.tar") for shard in range(SHARDS)]
    if record.installed("webdataset"):
        import webdataset

        def by_webdataset() -> Pairs:
            samples: Any = webdataset.WebDataset(shards, shardshuffle=False, empty_check=False)
            return ((sample["jpg"], int(sample["cls"])) for sample in samples)

        ways["webdataset, tar", "in order"] = by_webdataset
    if record.installed("datasets"):
        import datasets

        datasets.disable_progress_bars()
        for kind, files, image, label in (
            ("webdataset", shards, "jpg", "cls"),
            ("parquet", [str(root / "x.parquet")], "image", "label"),
        ):
            table: Any = datasets.load_dataset(kind, data_files=files, split="train")
            table = table.cast_column(image, datasets.Image(decode=False))
            stream: Any = datasets.load_dataset(
                kind, data_files=files, split="train", streaming=True
            ).cast_column(image, datasets.Image(decode=False))

            def pairs(rows: Iterable[Any], image: str = image, label: str = label) -> Pairs:
                return ((row[image]["bytes"], int(row[label])) for row in rows)

            name = "tar" if kind == "webdataset" else "Parquet"
            ways[f"datasets, {name} to Arrow", "in order"] = lambda t=table, p=pairs: p(t)
            ways[f"datasets, {name} to Arrow", "random"] = lambda t=table, p=pairs: p(
                t[place] for place in order
            )
            ways[f"datasets, {name}, streamed", "in order"] = lambda s=stream, p=pairs: p(s)
    return ways


def digest(pair: tuple[bytes, int]) -> str:
    return f"{blake2b(pair[0], digest_size=8).hexdigest()} {pair[1]}"


# ── an index of millions ────────────────────────────────────────────────────────────────────────


def index_of(count: int) -> dict[str, Any]:
    """Make up shards, open their indices in a fresh process, and name images in four workers."""
    with tempfile.TemporaryDirectory() as folder:
        seconds = make_up(Path(folder), count)
        size = sum(path.stat().st_size for path in Path(folder).glob(".*.index"))
        opened = record.in_fresh_process(__file__, folder=folder)
    return opened | {"index_bytes": size, "cpu_seconds_to_index_a_shard": seconds}


def make_up(folder: Path, count: int) -> float:
    """Write a shard and, for others, empty files with indices. Returns: CPU seconds to index it."""
    import pyarrow
    from pyarrow import ipc

    from beit.data.archives.tar_index import _checksum, read_index
    from beit.data.stores.blob import LocalBlob

    first = folder / "x-00000.tar"
    with tarfile.open(first, "w") as tar:
        for number in range(PER_SHARD):
            for ending, data in (("jpg", b""), ("cls", str(number % 1000).encode())):
                info = tarfile.TarInfo(f"n{0:08}_{number:06}.{ending}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    began = time.process_time()
    table = read_index(LocalBlob(first))
    seconds = time.process_time() - began
    about = json.loads(table.schema.metadata[b"beit"])
    place = table.column_names.index("digest")
    for shard in range(1, count // PER_SHARD):
        path = folder / f"x-{shard:05}.tar"
        path.touch()
        names = [f"n{shard:08}_{number:06}.jpg".encode() for number in range(PER_SHARD)]
        digests = [int.from_bytes(blake2b(n, digest_size=8).digest(), "little") for n in names]
        changed = table.set_column(0, "name", pyarrow.array(names, pyarrow.binary()))
        changed = changed.set_column(place, "digest", pyarrow.array(digests, pyarrow.uint64()))
        about["key"] |= {"size": 0, "stamp": LocalBlob(path).stamp}
        text = json.dumps(about).encode()
        changed = changed.replace_schema_metadata({b"beit": text, b"digest": _checksum(text)})
        with ipc.new_file(str(path.with_name(f".{path.name}.index")), changed.schema) as file:
            file.write_table(changed)
    return seconds


def open_index(folder: str) -> dict[str, Any]:
    """Open all shards, draw an epoch, and let workers name images. Returns: seconds and memory."""
    import torch

    from beit.data.order import epoch_order
    from beit.data.sources import open_source
    from beit.data.workers import computed

    torch.set_num_threads(1)
    before, began, used_cpu = memory(), time.monotonic(), time.process_time()
    source = open_source(folder, split="train")
    seconds, used_cpu, after = time.monotonic() - began, time.process_time() - used_cpu, memory()
    order = epoch_order(len(source), SEED, 0)
    shares = order[: WORKERS * 50_000].view(WORKERS, -1).tolist()

    def name(share: list[int]) -> None:
        assert source.labels is not None
        for index in share:
            assert source.name(index).startswith("n") and int(source.labels[index]) < 1000

    naming = computed(name, shares, WORKERS, str)
    for _ in shares:
        next(naming)  # workers end with the iterator, not with their task
    workers = [str(process.pid) for process in multiprocessing.active_children()]
    total = sum(map(memory, ["self", *workers]))
    result = {"names": len(source), "seconds_to_open": seconds, "cpu_seconds_to_open": used_cpu}
    result["workers"] = WORKERS
    return result | {"bytes_before": before, "bytes_open": after, "bytes_with_workers": total}


def memory(process: str = "self") -> int:
    """Return the memory of a process, its part of what it shares with others (PSS)."""
    text = Path("/proc", process, "smaps_rollup").read_text()
    [line] = [line for line in text.splitlines() if line.startswith("Pss:")]
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    import sys

    if "--worker" in sys.argv:
        print(json.dumps(open_index(sys.argv[sys.argv.index("--folder") + 1])))
    else:
        main()
