"""Speed of block masks against the published loop, with one and two threads, idle and busy.

4,096 masks of 75 patches on a grid of 14 x 14, smallest block 16. Both ways take turns in one
process, so that changes of the machine's load affect both; medians. Busy: one process for each core
computes beside them.

    python benchmarks/masks.py
"""

import multiprocessing
import os
import random
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import record
import torch

from beit.nn.masking import block_masks

BATCH, GRID, COUNT, MIN_BLOCK = 4096, (14, 14), 75, 16
LOOP_MASKS = 512  # of the published loop in each round; its time is scaled to all masks
SEED = 0
EXPECTED = 5.0  # times as fast as the loop, at least


def main() -> None:
    result = record.provenance("cpu", [SEED]) | measure()
    record.print_table(result["rows"], list(result["rows"][0]))
    record.write_results("masks", result)
    slowest = min(row["times_as_fast"] for row in result["rows"])
    if slowest < EXPECTED:
        raise SystemExit(f"only {slowest:.1f} times as fast as the published loop")


def measure(rounds: int = 7) -> dict[str, object]:
    """Time both ways with one and two threads, idle and beside busy processes.

    Returns: sizes, and rows of the seconds of each way, by threads and load
    """
    before, rows = torch.get_num_threads(), []
    for busy in (False, True):
        for threads in (1, 2):
            torch.set_num_threads(threads)
            with neighbours(busy):
                ours, loop = seconds_in_turn(rounds)
            rows.append(
                {
                    "threads": threads,
                    "neighbours": "busy" if busy else "none",
                    "ours_s": ours,
                    "published_s": loop,
                    "times_as_fast": loop / ours,
                }
            )
    torch.set_num_threads(before)
    sizes = {"masks": BATCH, "grid": GRID, "masked": COUNT, "min_block": MIN_BLOCK}
    return {"sizes": sizes, "rounds": rounds, "rows": rows}


def seconds_in_turn(rounds: int) -> tuple[float, float]:
    """Return the median seconds that our masks and those of the published loop take."""
    generator = torch.Generator().manual_seed(SEED)
    draws, single = random.Random(SEED), np.random.default_rng(SEED)
    ours, loop = [], []
    for _ in range(rounds):
        start = time.perf_counter()
        block_masks(BATCH, GRID, COUNT, generator, MIN_BLOCK)
        ours.append(time.perf_counter() - start)
        start = time.perf_counter()
        for _ in range(LOOP_MASKS):
            published_mask(draws, single)
        loop.append((time.perf_counter() - start) * BATCH / LOOP_MASKS)
    return statistics.median(ours), statistics.median(loop)


def published_mask(draws: random.Random, single: np.random.Generator) -> np.ndarray:
    """Draw one mask (Gh, Gw) as the published code does: patch by patch, in Python."""
    mask, hidden = np.zeros(GRID, dtype=int), 0
    while hidden < COUNT:
        added = add_block(mask, COUNT - hidden, draws)
        if added == 0:
            break
        hidden += added
    visible = np.flatnonzero(mask == 0)
    mask.flat[single.choice(visible, COUNT - hidden, replace=False)] = 1
    return mask


def add_block(mask: np.ndarray, room: int, draws: random.Random) -> int:
    """Hide the first of ten rectangles that fits. Returns: the number of patches it adds."""
    Gh, Gw = GRID
    for _ in range(10):
        area = draws.uniform(MIN_BLOCK, room)
        aspect = np.exp(draws.uniform(np.log(0.3), np.log(1 / 0.3)))
        height, width = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
        if height >= Gh or width >= Gw:
            continue
        top, left = draws.randint(0, Gh - height), draws.randint(0, Gw - width)
        covered = mask[top : top + height, left : left + width].sum()
        if not 0 < height * width - covered <= room:
            continue
        added = 0
        for row in range(top, top + height):
            for column in range(left, left + width):
                if mask[row, column] == 0:
                    mask[row, column] = 1
                    added += 1
        return added
    return 0


@contextmanager
def neighbours(busy: bool) -> Iterator[None]:
    """Run a computing process for each core of this one, if `busy`."""
    started = []
    if busy:
        context = multiprocessing.get_context("spawn")
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        started = [context.Process(target=compute, daemon=True) for _ in range(cores or 1)]
    for process in started:
        process.start()
    try:
        if started:
            time.sleep(2)  # until they compute
        yield
    finally:
        for process in started:
            process.terminate()
            process.join()


def compute() -> None:
    total = 0
    while True:
        total = (total * 3 + 1) % 1_000_003


if __name__ == "__main__":
    main()
