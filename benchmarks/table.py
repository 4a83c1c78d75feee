"""The table of speed and memory: ours, the reference, their ratio and the goal, by one command.

Each row is measured by a module of its own, which can also be run alone: preset_step.py, steps.py,
products.py, backbone.py, peers.py, loader.py, masks.py, quantizer.py. Times are medians over rounds
in turn. Results are written after every row, so a run that is broken off keeps what it has. It
takes 14 minutes on one Zen 4 core.

    make bench
    python benchmarks/table.py --only loader quantizer
"""

import argparse
import json
import re
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import record

SEED = 0
CHAIN = record.ROOT / "docs" / "results" / "cifar10-cpu.json"
COLUMNS = ["what", "now", "reference", "ratio", "goal"]
FULL = {
    "size": "B",
    "image_size": 224,
    "batch": 8,
    "rounds": 3,
    "preset_batch": 128,
    "preset_steps": 3,
    "jpegs": 64,
    "loader_batch": 64,
    "small": 10_240,
    "vectors": 25_088,
    "codes": 8192,
}
MINIATURE = {
    "size": "Ti",
    "image_size": 32,
    "batch": 2,
    "rounds": 1,
    "preset_batch": 4,
    "preset_steps": 1,
    "jpegs": 8,
    "loader_batch": 8,
    "small": 32,
    "vectors": 500,
    "codes": 64,
}


class Row(NamedTuple):
    """A line of the table: what is measured, in words; the numbers are in the results file."""

    what: str
    now: str
    reference: str
    ratio: str
    goal: str


class Part(NamedTuple):
    """What one module measured, and its rows of the table."""

    rows: list[Row]
    result: Any


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--miniature", action="store_true", help="tiny sizes: to see that it runs")
    parser.add_argument("--results", type=Path, default=record.RESULTS, help="folder to write to")
    options = parser.parse_args()
    sizes = Namespace(**(MINIATURE if options.miniature else FULL))
    result = record.provenance("cpu", [SEED]) | {"sizes": vars(sizes), "table": [], "parts": {}}
    name = file_name(result["machine"], options.miniature)
    for part in options.only:
        start = time.perf_counter()
        rows, measured = PARTS[part](sizes)
        seconds = round(time.perf_counter() - start)
        result["table"] += [row._asdict() for row in rows]
        result["parts"][part] = {"seconds": seconds, "measured": measured}
        record.write_results(name, result, options.results, quiet=True)
        print(f"{part}: {seconds} s", flush=True)
    print(heading(result))
    print(markdown(result["table"]))
    record.write_results(name, result, options.results)


def file_name(machine: dict[str, Any], miniature: bool) -> str:
    """Name the results after the processor and its threads, one file for each kind."""
    processor = re.sub(r"[^a-z0-9]+", "-", machine["cpu"].lower()).strip("-")
    return f"table-{processor}-{machine['threads']}-threads" + "-miniature" * miniature


def heading(result: dict[str, Any]) -> str:
    machine = result["machine"]
    bf16 = {True: "with", False: "without", None: "perhaps with"}[machine["bf16_instructions"]]
    versions = ", ".join(f"{name} {machine[name]}" for name in record.PACKAGES)
    commit, _, dirty = result["commit"].partition("-")
    return (
        f"\n{machine['cpu']}, {machine['threads']} threads, {bf16} bfloat16 instructions; commit "
        f"{commit[:7]}{'-dirty' * bool(dirty)}; {versions}\n"
    )


def markdown(table: list[dict[str, str]]) -> str:
    lines = [COLUMNS, ["---"] * len(COLUMNS), *([row[name] for name in COLUMNS] for row in table)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def row_of(rows: list[dict[str, Any]], way: str) -> dict[str, Any]:
    return next(row for row in rows if row["way"] == way)


def faster(ours: dict[str, Any], theirs: dict[str, Any]) -> str:
    """Say how many times as fast ours is, by wall time and by CPU time."""
    by_cpu = theirs["cpu_s"] / ours["cpu_s"]
    return f"{theirs['ours_is_faster']:.2f} (by CPU time {by_cpu:.2f})"


# ── the parts ───────────────────────────────────────────────────────────────────────────────────


def preset_part(sizes: Namespace) -> Part:
    import preset_step

    options = Namespace(
        preset="demo", batch=sizes.preset_batch, steps=sizes.preset_steps, rounds=sizes.rounds + 2
    )
    result = preset_step.measure(options)
    speeds = {row["way"]: row["images_per_s"] for row in result["rows"]}
    shown = ", ".join(f"{speed:.0f} images/s in {way}" for way, speed in speeds.items())
    ratio = speeds[result["taken"]] / max(speeds.values())
    row = Row(
        "preset `demo`, tokenizer step, teacher included",
        f"{shown}; takes {result['taken']}",
        f"the faster one: {result['faster']}",
        f"{ratio:.2f}",
        "the faster one, chosen by itself",
    )
    return Part([row], result)


def step_part(sizes: Namespace) -> Part:
    import steps

    options = Namespace(
        **{name: vars(sizes)[name] for name in ("size", "image_size", "batch", "rounds")},
        task="pretraining",
        precision="32",
        device="cpu",
        compile=False,
        steps=1,
        peak_tflops=None,
    )
    result = steps.measure(options, with_products=True)
    ours, published = (row_of(result["ways"], way) for way in ("ours", "published"))
    products = result["products"]
    by_cpu = products["step_cpu_s"] / products["cpu_s"]
    what = f"ViT-{sizes.size}/16 {sizes.image_size} pretraining step, batch {sizes.batch}, float32"
    rows = [
        Row(
            what,
            f"{ours['seconds']:.3g} s",
            f"published: {published['seconds']:.3g} s",
            faster(ours, published),
            "≥ 1.3",
        ),
        Row(
            "peak memory of that step",
            f"{ours['peak_mb'] / 1e3:.2f} GB",
            f"published: {published['peak_mb'] / 1e3:.2f} GB",
            f"{ours['peak_mb'] / published['peak_mb']:.2f}",
            "",
        ),
        Row(
            "the same if malloc returns freed memory, as in the published code",
            f"{ours['returned_mb'] / 1e3:.2f} GB",
            f"published: {published['returned_mb'] / 1e3:.2f} GB",
            f"{ours['returned_mb'] / published['returned_mb']:.2f}",
            "≤ 0.75",
        ),
        Row(
            "that step over its matrix products alone",
            f"{products['step_s']:.3g} s",
            f"{products['count']} products: {products['seconds']:.3g} s",
            f"{products['step_over_products']:.2f} (by CPU time {by_cpu:.2f})",
            "≤ 1.25",
        ),
    ]
    return Part(rows, result)


def backbone_part(sizes: Namespace) -> Part:
    import backbone

    names = ("size", "image_size", "batch", "rounds")
    options = Namespace(**{n: vars(sizes)[n] for n in names}, device="cpu", compile=False)
    rows, results = [], {}
    for precision, name in (("32", "float32"), ("bf16", "bf16 autocast")):
        measured = results[name] = backbone.measure(options, precision)
        ours = row_of(measured, "ours")
        for theirs in measured[1:]:
            rows.append(
                Row(
                    f"backbone forward + backward, {name}",
                    f"{ours['seconds']:.3g} s",
                    f"{theirs['way']}: {theirs['seconds']:.3g} s",
                    faster(ours, theirs),
                    "≥ 1.1" if theirs["way"] == "timm" else "",
                )
            )
    return Part(rows, results)


def peers_part(sizes: Namespace) -> Part:
    import peers

    names = ("size", "image_size", "batch", "rounds")
    options = Namespace(**{n: vars(sizes)[n] for n in names}, device="cpu", precision="32")
    result = peers.measure(options)
    ours = row_of(result["rows"], "ours")
    methods = {"transformers": "BEiT v1", "lightly": "masked autoencoder"}
    rows = [
        Row(
            "pretraining step, other methods of other libraries",
            f"{ours['seconds']:.3g} s",
            f"{theirs['way']}, {methods[theirs['way']]}: {theirs['seconds']:.3g} s",
            faster(ours, theirs),
            "",
        )
        for theirs in result["rows"][1:]
    ]
    absent = [
        Row("pretraining step, other methods of other libraries", "", f"{name}: absent", "", "")
        for name in result["absent"]
    ]
    return Part(rows + absent, result)


def loader_part(sizes: Namespace) -> Part:
    import loader

    options = Namespace(
        images=sizes.jpegs,
        small=sizes.small,
        batch=sizes.loader_batch,
        size=sizes.image_size,
        kilobytes=100,
        device="cpu",
        rounds=sizes.rounds + 2,
    )
    result = loader.measure(options)
    ours, torchvision, published, decoding, small = result["rows"]
    goals = {"torchvision v2": "≥ 350 images/s and ≥ 1.5 times torchvision's"}
    rows = [
        Row(
            "one core, JPEG of 500 x 375 to both views",
            f"{ours['images_per_s']:.0f} images/s",
            f"{theirs['way']}: {theirs['images_per_s']:.0f} images/s",
            f"{theirs['ours_is_faster']:.2f} (by CPU time {theirs['cpu_ms'] / ours['cpu_ms']:.2f})",
            goals.get(theirs["way"], ""),
        )
        for theirs in (torchvision, published, decoding)
    ]
    beside = "beside_decoding_ms"
    rows += [
        Row(
            "of that, CPU time beside decoding",
            f"{ours[beside]:.2f} ms",
            f"torchvision v2: {torchvision[beside]:.2f} ms",
            f"{torchvision[beside] / ours[beside]:.2f}",
            "≤ 1.2 ms",
        ),
        Row(
            "one core, 32-pixel images in memory to views",
            f"{small['images_per_s']:.0f} images/s",
            "",
            "",
            "≥ 20,000 images/s",
        ),
    ]
    return Part(rows, result)


def masks_part(sizes: Namespace) -> Part:
    import masks

    result = masks.measure(rounds=sizes.rounds)
    rows = [
        Row(
            f"{result['sizes']['masks']:,} block masks, {row['threads']} threads, neighbours "
            f"{row['neighbours']}",
            f"{row['ours_s']:.3g} s",
            f"published loop: {row['published_s']:.3g} s",
            f"{row['times_as_fast']:.2f}",
            "≥ 5",
        )
        for row in result["rows"]
    ]
    return Part(rows, result)


def quantizer_part(sizes: Namespace) -> Part:
    import quantizer

    options = Namespace(
        vectors=sizes.vectors, codes=sizes.codes, width=32, rounds=sizes.rounds, device="cpu"
    )
    result = quantizer.measure(options)
    ours, published = (row_of(result["ways"], way) for way in ("ours", "published"))
    rows = [
        Row(
            f"quantizer {sizes.vectors:,} x {sizes.codes} x 32",
            f"{ours['seconds']:.3g} s",
            f"one-hot: {published['seconds']:.3g} s",
            faster(ours, published),
            "≥ 5",
        ),
        Row(
            "memory of that",
            f"{ours['peak_mb']:.0f} MB",
            f"one-hot: {published['peak_mb']:.0f} MB",
            f"{ours['peak_mb'] / published['peak_mb']:.3f}",
            "≤ 60 MB",
        ),
    ]
    return Part(rows, result)


def chain_part(sizes: Namespace) -> Part:
    """Read the last recorded run of the preset's chain; nothing is measured."""
    recorded = json.loads(CHAIN.read_text(encoding="utf-8"))
    minutes = sum(recorded["seconds"].values()) / 60
    commits = ", ".join(dict.fromkeys(recorded["commits"].values()))
    where = f"{CHAIN.relative_to(record.ROOT)}, {recorded['date']}, commits {commits}"
    what = f"preset `cifar10-cpu`, whole chain, as recorded ({where})"
    return Part([Row(what, f"{minutes:.0f} minutes", "", "", "≤ 40 minutes")], recorded["machine"])


PARTS: dict[str, Callable[[Namespace], Part]] = {
    "preset": preset_part,
    "step": step_part,
    "backbone": backbone_part,
    "peers": peers_part,
    "loader": loader_part,
    "masks": masks_part,
    "quantizer": quantizer_part,
    "chain": chain_part,
}


if __name__ == "__main__":
    main()
