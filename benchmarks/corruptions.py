"""Corrupted images: milliseconds an image, ours against a NumPy loop over images, in one run.

    python benchmarks/corruptions.py [--side 32] [--images 256] [--numpy_images 16]

The loop is the reference of the tests (tests/evaluation/corruption_reference.py): one image after
the other, NumPy and Pillow over its pixels as the published scripts have it, but glass blur pixel
by pixel. Ours draws its numbers from a generator an image, as in use. Both do all severities; a
time is the least of the rounds, by the processor's clock. Tables that ours makes once for
a severity are made before. Totals are over the 15 kinds, and without glass blur, the loop's
slowest.
"""

import argparse
import sys
import time

import record

SEED = 0
TARGET = 10  # times as fast over the 15 kinds: issue 4


def main() -> None:
    options = parse()
    import torch

    rows = measure(options)
    total = {"kind": "all 15", **summed(rows)}
    others = {"kind": "but glass_blur", **summed([r for r in rows if r["kind"] != "glass_blur"])}
    record.print_table([*rows, total, others], ["kind", "ours_ms", "numpy_ms", "ratio"])
    result = record.provenance("cpu", [SEED])
    result["sizes"] = {**vars(options), "threads": torch.get_num_threads()}
    result["kinds"], result["total"], result["total_but_glass_blur"] = rows, total, others
    result["target"] = TARGET
    record.write_results(f"corruptions-{options.side}", result)
    met = "met" if total["ratio"] >= TARGET else "not met"
    print(f"all 15 kinds: {total['ratio']:.1f} times as fast; {TARGET} asked for: {met}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--images", type=int, default=256, help="a batch of ours")
    parser.add_argument("--numpy_images", type=int, default=16, help="those that the loop does")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--severities", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    return parser.parse_args()


def measure(options: argparse.Namespace) -> list[dict[str, object]]:
    """Time each kind at each severity, ours and the loop in turn."""
    import numpy as np
    import torch

    from beit.data.shapes import ShapesSource
    from beit.evaluation.corruptions.corrupt import KINDS, PARAMETERS, corrupt, published_side

    sys.path.insert(0, str(record.ROOT / "tests" / "evaluation"))
    import corruption_reference as reference

    source = ShapesSource(options.images, (options.side, options.side), SEED)
    images = torch.stack([source.image(index) for index in range(options.images)])
    pictures = images[: options.numpy_images].permute(0, 2, 3, 1).contiguous().numpy()
    draws = Draws(np.random.default_rng(SEED))
    rows = []
    for kind in KINDS:
        lists = PARAMETERS[kind][published_side(options.side, options.side)]
        plain = getattr(reference, kind)
        ours = loop = 0.0
        for severity in options.severities:
            corrupt(images[:2], kind, severity, seed=SEED, indices=range(2))
            least_ours = least_loop = float("inf")
            for _ in range(options.rounds):
                start = time.process_time()
                corrupt(images, kind, severity, seed=SEED, indices=range(options.images))
                least_ours = min(least_ours, time.process_time() - start)
                start = time.process_time()
                for picture in pictures:
                    values = plain(picture, draws, *lists[severity - 1])
                    np.clip(values, 0, 255).astype(np.uint8)
                least_loop = min(least_loop, time.process_time() - start)
            ours += 1e3 * least_ours / len(images) / len(options.severities)
            loop += 1e3 * least_loop / len(pictures) / len(options.severities)
        rows.append({"kind": kind, "ours_ms": ours, "numpy_ms": loop, "ratio": loop / ours})
    return rows


def summed(rows: list[dict[str, object]]) -> dict[str, float]:
    ours, numpy = (sum(row[name] for row in rows) for name in ("ours_ms", "numpy_ms"))
    return {"ours_ms": ours, "numpy_ms": numpy, "ratio": numpy / ours}


class Draws:
    """The numbers of the loop, by NumPy."""

    def __init__(self, generator) -> None:
        self.generator = generator

    def normal(self, shape):
        return self.generator.standard_normal(shape)

    def uniform(self, shape):
        return self.generator.random(shape)

    def integers(self, low, high, shape):
        return self.generator.integers(low, high, shape)

    def poisson(self, rates):
        return self.generator.poisson(rates)


if __name__ == "__main__":
    main()
