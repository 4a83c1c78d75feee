"""Memory and time of one codebook step at full size, compared with the published one-hot method.

25,088 vectors (128 images of 196 patches) x 8192 codes x 32 channels: look up codes, sum, update.
Each method runs in its own process. Memory is the peak above the memory after the inputs were
created and the libraries loaded. Fails if the two methods disagree; on a CPU also if ours takes
over 60 MB or is not 5 times as fast.

    python benchmarks/quantizer.py [--device cuda]
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import record

WAYS = ("ours", "published")
LIMIT_MB = 60  # on a CPU
EXPECTED = 5.0  # times as fast as the one-hot method, at least, on a CPU
SEED = 0


def main() -> None:
    options = parse()
    if options.worker:
        print(json.dumps(measure(options)))
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for way in WAYS:
            rows.append(
                record.in_fresh_process(
                    __file__,
                    way=way,
                    vectors=options.vectors,
                    codes=options.codes,
                    width=options.width,
                    repeats=options.repeats,
                    device=options.device,
                    keep=Path(folder, way),
                )
            )
        agreement, difference = compare(*(Path(folder, way) for way in WAYS))
    record.print_table(rows, ["way", "peak_mb", "first_s", "median_s"])
    print(f"codes agree on {agreement:.4%}; updated codebooks differ by {difference:.1e} at most")
    result = record.provenance(options.device, [SEED])
    result["sizes"] = {name: getattr(options, name) for name in ("vectors", "codes", "width")}
    result["ways"] = rows
    result["times_as_fast"] = rows[1]["median_s"] / rows[0]["median_s"]
    result["code_agreement"] = agreement
    result["largest_codebook_difference"] = difference
    record.write_results(f"quantizer-{options.device}", result)
    if options.device == "cpu" and rows[0]["peak_mb"] > LIMIT_MB:
        sys.exit(f"ours took {rows[0]['peak_mb']:.0f} MB above its inputs; expected {LIMIT_MB}")
    if options.device == "cpu" and result["times_as_fast"] < EXPECTED:
        sys.exit(f"only {result['times_as_fast']:.1f} times as fast; expected {EXPECTED}")
    # Rounding decides near ties: 25,088 x 8192 random cosines have about one.
    if agreement < 0.9999:
        sys.exit(f"codes agree on {agreement:.4%} only; expected 99.99 % or more")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vectors", type=int, default=25_088)
    parser.add_argument("--codes", type=int, default=8192)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3, help="timed steps after the first")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--keep", help=argparse.SUPPRESS)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def measure(options: argparse.Namespace) -> dict[str, object]:
    """Run one method: the first pass gives memory and results, the repeats the time."""
    import reference
    import torch

    from beit.nn.quantizer import Quantizer, unit

    torch.manual_seed(SEED)
    device = options.device
    quantizer = Quantizer(options.codes, options.width).to(device)
    vectors = unit(torch.randn(options.vectors, options.width)).to(device)
    small = Quantizer(256, options.width).to(device)

    def step(quantizer: Quantizer, vectors: torch.Tensor) -> torch.Tensor:
        if options.way == "ours":
            codes = quantizer.nearest(vectors)
            quantizer.update(quantizer.statistics(vectors, codes))
            return codes
        assignment = reference.quantize(vectors, quantizer.codebook)
        reference.update(quantizer, assignment)
        return assignment.codes

    def wait() -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    with torch.no_grad():
        step(small, vectors[:64])  # warm up libraries and threads
        wait()
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        inputs = record.memory(device).now
        start = wait()
        codes = step(quantizer, vectors)
        first = wait() - start
        peak = record.memory(device).peak - inputs
        torch.save({"codes": codes.cpu(), "codebook": quantizer.codebook.cpu()}, options.keep)
        seconds = []
        for _ in range(options.repeats):
            start = wait()
            step(quantizer, vectors)
            seconds.append(wait() - start)
    return {
        "way": options.way,
        "peak_mb": peak / 1e6,
        "first_s": first,
        "median_s": sorted(seconds)[len(seconds) // 2] if seconds else None,
    }


def compare(ours: Path, published: Path) -> tuple[float, float]:
    """Return the share of equal codes, and the largest difference of the codebooks.

    Codes with a vector that only one method assigned to them, by a near tie, are left out of the
    difference.
    """
    import torch

    first, second = (torch.load(path, weights_only=True) for path in (ours, published))
    same = first["codes"] == second["codes"]
    settled = torch.ones(len(first["codebook"]), dtype=torch.bool)
    for result in (first, second):
        settled[result["codes"][~same]] = False
    difference = (first["codebook"] - second["codebook"])[settled].abs().max()
    return same.double().mean().item(), difference.item()


if __name__ == "__main__":
    main()
