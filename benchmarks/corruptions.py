"""Corruptions: milliseconds per image of our batched code and of a NumPy loop over images.

    python benchmarks/corruptions.py [--side 32] [--images 256] [--numpy_images 16]

The loop is the reference of the tests (tests/evaluation/corruption_reference.py): one image after
the other, with NumPy and Pillow as in the published scripts, and glass blur pixel by pixel. Our
code uses one generator per image, as in evaluation. Both run all severities. A time is the minimum
over the rounds, in CPU time. Tables that our code builds once per severity are built before. Totals
are over all 15 kinds, and over all but glass blur, the slowest kind of the loop.
"""

import argparse
import sys
import time

import record

SEED = 0
TARGET = 10  # expected speed-up over the 15 kinds


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
    print(f"all 15 kinds: {total['ratio']:.1f} times as fast; target {TARGET}: {met}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--images", type=int, default=256, help="batch size of our code")
    parser.add_argument("--numpy_images", type=int, default=16, help="images for the loop")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--severities", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    return parser.parse_args()


def measure(options: argparse.Namespace) -> list[dict[str, object]]:
    """Time each kind at each severity, our code and the loop in turn."""
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
    """Random numbers of the loop, from NumPy."""

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
