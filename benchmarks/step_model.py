"""A model of a pretraining step: its FLOPs, its bytes, and what follows for several GPUs.

Nothing is measured here. The formulas are those of docs/performance.md; tests/benchmarks compares
the FLOPs with those that PyTorch counts. The speed of the processor and of the links is given.

    python benchmarks/step_model.py --size B --batch 2048 --tflops 400 --gpus 1 8 64
"""

import argparse
from typing import NamedTuple

import record

CODES, CODE_WIDTH, MASKED_SHARE, PATCH, MLP_RATIO = 8192, 32, 75 / 196, 16, 4
AGGREGATION = 2  # blocks
SIZES = {"Ti": (192, 12, 3), "S": (384, 12, 6), "B": (768, 12, 12), "L": (1024, 24, 16)}
FLOAT = 4  # bytes
# Values that a block writes for each token, in units of D: norms 2, queries, keys and values 3,
# attended 1, projected 1, hidden layer 4 before and 4 after GELU, output 1, both sums 2.
BLOCK_VALUES = 18
READS_AND_WRITES = 6  # forward: written and read; backward: read, and the gradient of each twice


class Step(NamedTuple):
    """What a step of a batch of images costs."""

    flops: float
    weights: int
    weight_bytes: float  # read or written, for weights, gradients and moments
    activation_bytes: float  # likewise
    gradient_bytes: float  # to be summed over the processes


def block_flops(n: int, D: int, asked: int | None = None) -> float:
    """Return the FLOPs of a block for n tokens, of which only some are asked for after it."""
    m = n if asked is None else asked
    keys_and_values, attention = 4 * n * D**2, 4 * m * n * D
    return keys_and_values + attention + m * D**2 * (2 + 2 + 4 * MLP_RATIO)


def forward_flops(size: str, image_size: int, asked_only: bool = False) -> dict[str, float]:
    """Return the FLOPs of an image, forward.

    Args:
        asked_only: in last blocks only the patches that are asked for are computed
    """
    D, depth, _ = SIZES[size]
    N = (image_size // PATCH) ** 2
    n, M = N + 1, round(MASKED_SHARE * N)
    embedding = 2 * N * D * 3 * PATCH**2
    last = block_flops(n, D, M + 1) if asked_only else block_flops(n, D)
    last_aggregation = block_flops(n, D, M) if asked_only else block_flops(n, D)
    E, tokenizer_depth, _ = SIZES[size if size in ("Ti", "S") else "B"]
    tokenizer_last = block_flops(n, E, N) if asked_only else block_flops(n, E)
    return {
        "embedding": embedding,
        "blocks": (depth - 1) * block_flops(n, D) + last,
        "aggregation": (AGGREGATION - 1) * block_flops(n, D) + last_aggregation,
        "heads": 2 * 2 * M * D * CODES,
        "tokenizer": 2 * N * E * 3 * PATCH**2
        + (tokenizer_depth - 1) * block_flops(n, E)
        + tokenizer_last
        + 2 * N * E * (E + CODE_WIDTH),
        "codebook": 2 * N * CODES * CODE_WIDTH,
    }


def num_weights(size: str, image_size: int) -> int:
    """Return the number of weights of the pretraining model."""
    D, depth, heads = SIZES[size]
    side = image_size // PATCH
    biases, scales, norms = (2 + 1 + MLP_RATIO + 1) * D, 2 * D, 4 * D
    block = (4 + 2 * MLP_RATIO) * D**2 + biases + scales + norms
    table = ((2 * side - 1) ** 2 + 3) * heads
    embedding = 3 * PATCH**2 * D + D
    return (depth + AGGREGATION) * block + table + embedding + 2 * D + 2 * D + (D + 1) * CODES


def step_of(size: str, image_size: int, batch: int, asked_only: bool = False) -> Step:
    """Return the costs of a step."""
    D, depth, _ = SIZES[size]
    parts = forward_flops(size, image_size, asked_only)
    learned = parts["blocks"] + parts["aggregation"] + parts["heads"]
    # The backward pass takes two products for one; pixels need no gradient.
    flops = 3 * learned + 2 * parts["embedding"] + parts["tokenizer"] + parts["codebook"]
    weights = num_weights(size, image_size)
    # Forward and both backward products read or write the weights or gradients; clipping reads
    # gradients and scales them; AdamW reads weight, gradient and moments and writes all but one.
    per_weight = 3 + 3 + 7
    tokens = batch * ((image_size // PATCH) ** 2 + 1)
    values = tokens * D * BLOCK_VALUES * (depth + AGGREGATION) * READS_AND_WRITES
    return Step(
        flops=batch * flops,
        weights=weights,
        weight_bytes=float(FLOAT * per_weight * weights),
        activation_bytes=float(FLOAT * values),
        gradient_bytes=float(FLOAT * weights),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="B")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=2048, help="of all GPUs together")
    parser.add_argument("--tflops", type=float, required=True, help="that one GPU reaches")
    parser.add_argument("--link", type=float, default=300, help="GB/s of a GPU in its machine")
    parser.add_argument("--network", type=float, default=40, help="GB/s of a GPU to another one")
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--per-machine", type=int, default=8)
    parser.add_argument("--images", type=float, default=1.281e6 * 300, help="of the whole run")
    options = parser.parse_args()
    step = step_of(options.size, options.image_size, options.batch, asked_only=True)
    print(f"derived, not measured, for {options.tflops:g} TFLOP/s that a GPU reaches")
    print(
        f"{step.weights / 1e6:.1f} M weights, {step.flops / options.batch / 1e9:.1f} GFLOP an image"
    )
    rows = []
    for gpus in options.gpus:
        compute = step.flops / gpus / (options.tflops * 1e12)
        bandwidth = options.link if gpus <= options.per_machine else options.network
        exchange = 2 * (gpus - 1) / gpus * step.gradient_bytes / (bandwidth * 1e9)
        slowest = max(compute, exchange + compute / 3)  # the exchange overlaps the backward pass
        rows.append(
            {
                "gpus": gpus,
                "images a GPU": options.batch // gpus,
                "compute_ms": compute * 1e3,
                "exchange_ms": exchange * 1e3,
                "images_per_s": options.batch / slowest,
                "hours": options.images / options.batch * slowest / 3600,
            }
        )
    record.print_table(rows, list(rows[0]))


if __name__ == "__main__":
    main()
