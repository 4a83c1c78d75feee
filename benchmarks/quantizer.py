"""Memory and time of one codebook step at full size, compared with the published one-hot method.

25,088 vectors (128 images of 196 patches) x 8192 codes x 32 channels: look up codes, sum, update.
Time is measured in turn in one process; memory in a process for each method, the peak above the
memory after the inputs were created and the libraries loaded. Fails if ours reaches 60 MB, or if
the two methods disagree.

    python benchmarks/quantizer.py [--device cuda]
"""

import argparse
import json
import sys
from functools import partial
from typing import Any

import record

WAYS = ("ours", "published")
LIMIT_MB = 60
SEED = 0


def main() -> None:
    options = parse()
    if options.worker:
        print(json.dumps(peak(options)))
        return
    result = measure(options)
    record.print_table(result["ways"], ["way", "seconds", "cpu_s", "ours_is_faster", "peak_mb"])
    print(
        f"codes agree on {result['code_agreement']:.4%}; updated codebooks differ by "
        f"{result['largest_codebook_difference']:.1e} at most"
    )
    provenance = record.provenance(options.device, [SEED])
    provenance["sizes"] = {name: getattr(options, name) for name in ("vectors", "codes", "width")}
    record.write_results(f"quantizer-{options.device}", provenance | result)
    ours = result["ways"][0]["peak_mb"]
    if ours >= LIMIT_MB:
        sys.exit(f"ours took {ours:.0f} MB above its inputs; expected < {LIMIT_MB}")
    # Rounding decides near ties: 25,088 x 8192 random cosines have about one.
    if result["code_agreement"] < 0.9999:
        sys.exit(f"codes agree on {result['code_agreement']:.4%} only; expected 99.99 % or more")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vectors", type=int, default=25_088)
    parser.add_argument("--codes", type=int, default=8192)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3, help="timed steps, after two of warm-up")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Time both methods in turn in one process, and measure the memory of each in its own."""
    quantizers, steps = {}, {}
    for way in WAYS:
        quantizer, vectors = inputs(options)
        quantizers[way], steps[way] = quantizer, partial(step, way, quantizer, vectors)
    results = {way: (steps[way]().cpu(), quantizers[way].codebook.cpu().clone()) for way in WAYS}
    rows = record.timing_rows(record.in_turn(steps, options.rounds, device=options.device))
    names = ("vectors", "codes", "width", "device")
    settings = {name: getattr(options, name) for name in names}
    for row in rows:
        row["peak_mb"] = record.in_fresh_process(__file__, way=row["way"], **settings)["mb"]
    agreement, difference = compare(*results.values())
    return {
        "ways": rows,
        "code_agreement": agreement,
        "largest_codebook_difference": difference,
    }


def inputs(options: argparse.Namespace) -> tuple[Any, Any]:
    """Return a codebook (K, C) and unit vectors (n, C), the same for each way."""
    import torch

    from beit.nn.quantizer import Quantizer, unit

    torch.manual_seed(SEED)
    quantizer = Quantizer(options.codes, options.width).to(options.device)
    return quantizer, unit(torch.randn(options.vectors, options.width)).to(options.device)


def step(way: str, quantizer: Any, vectors: Any) -> Any:
    """Look up codes and update the codebook; return the codes."""
    import reference
    import torch

    with torch.no_grad():
        if way == "ours":
            codes = quantizer.nearest(vectors)
            quantizer.update(quantizer.statistics(vectors, codes))
            return codes
        assignment = reference.quantize(vectors, quantizer.codebook)
        reference.update(quantizer, assignment)
        return assignment.codes


def peak(options: argparse.Namespace) -> dict[str, float]:
    """Measure the memory of a step above its inputs and the libraries."""
    quantizer, vectors = inputs(options)
    small, _ = inputs(argparse.Namespace(**(vars(options) | {"vectors": 1, "codes": 256})))
    step(options.way, small, vectors[:64])  # warm up libraries and threads
    before = record.restart_peak(options.device)
    step(options.way, quantizer, vectors)
    return {"mb": (record.memory(options.device).peak - before) / 1e6}


def compare(ours: tuple[Any, Any], published: tuple[Any, Any]) -> tuple[float, float]:
    """Return the share of equal codes, and the largest difference of the codebooks.

    Codes with a vector that only one method assigned to them, by a near tie, are left out of the
    difference.

    Args:
        ours: codes (n,) and updated codebook (K, C); likewise of the published method
    """
    import torch

    same = ours[0] == published[0]
    settled = torch.ones(len(ours[1]), dtype=torch.bool)
    for codes, _ in (ours, published):
        settled[codes[~same]] = False
    difference = (ours[1] - published[1])[settled].abs().max()
    return same.double().mean().item(), difference.item()


if __name__ == "__main__":
    main()
