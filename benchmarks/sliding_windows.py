"""Sliding-window segmentation: images per second with windows in batches and one by one.

    python benchmarks/sliding_windows.py [--device cuda] [--size B] [--window 512] [--batch 8]

The published method runs the network on each window alone, pads its logits to the image size and
adds them. Ours is also timed with one window at a time, to separate the effect of batches from that
of the summation. Weights and images are random. A time is the minimum over the rounds, on the CPU
in CPU time (set OMP_NUM_THREADS=1, or waiting threads are counted).
"""

import argparse
import time

import record

SEED = 0
TARGET = 1.5  # expected speed-up over one by one
SIZES = {  # width, depth, heads, patch
    "tiny": (96, 4, 3, 16),
    "Ti": (192, 12, 3, 16),
    "B": (768, 12, 12, 16),
    "L": (1024, 24, 16, 16),
}


def main() -> None:
    options = parse()
    import torch

    from beit.nn.sliding import sliding_logits

    torch.manual_seed(SEED)
    model = build(options)
    height, width = options.image
    images = torch.rand(options.images, 3, height, width, device=options.device)
    window = (options.window, options.window)
    stride = (2 * options.window // 3,) * 2

    def classify(windows):
        with torch.autocast(options.device, torch.bfloat16, enabled=options.bf16):
            return model.predict(windows)

    def coarsely(windows):
        with torch.autocast(options.device, torch.bfloat16, enabled=options.bf16):
            return model(windows).logits

    ways = {
        "published": lambda image: one_by_one(classify, image, window, stride),
        "ours, 1 window": lambda image: sliding_logits(coarsely, image, window, stride, 1),
        f"ours, {options.batch} windows": lambda image: sliding_logits(
            coarsely, image, window, stride, options.batch
        ),
    }
    clock = time.process_time if options.device == "cpu" else time.perf_counter
    best = dict.fromkeys(ways, float("inf"))
    logits = {}
    with torch.no_grad():
        for _ in range(options.rounds + 1):  # the first round warms up
            for name, way in ways.items():
                synchronise(options.device)
                start = clock()
                for image in images:
                    logits[name] = way(image[None])
                synchronise(options.device)
                best[name] = min(best[name], clock() - start)
    reference = logits["published"]
    rows = [
        {
            "way": name,
            "images_per_second": len(images) / seconds,
            "ratio": best["published"] / seconds,
            "largest_difference": float((logits[name] - reference).abs().max()),
        }
        for name, seconds in best.items()
    ]
    record.print_table(rows, list(rows[0]))
    result = record.provenance(options.device, [SEED])
    result["sizes"] = {**vars(options), "threads": torch.get_num_threads()}
    result["largest_logit"] = float(reference.abs().max())
    result["ways"], result["target"] = rows, TARGET
    name = f"{options.device}-{options.size}-{options.window}-of-{height}x{width}"
    record.write_results(f"sliding-windows-{name}", result)
    met = "met" if rows[-1]["ratio"] >= TARGET else "not met"
    print(f"{rows[-1]['ratio']:.2f} times as fast as one by one; target {TARGET}: {met}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--size", default="tiny", choices=list(SIZES))
    parser.add_argument("--window", type=int, default=64)
    parser.add_argument("--image", type=int, nargs=2, default=[150, 222], help="height, width")
    parser.add_argument("--classes", type=int, default=21)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--bf16", action="store_true")
    return parser.parse_args()


def build(options: argparse.Namespace):
    from beit.nn.segmenter import LAYERS, SegmenterConfig, SemanticSegmenter
    from beit.nn.vit import ViTConfig

    width, depth, heads, patch = SIZES[options.size]
    backbone = ViTConfig(
        (options.window, options.window),
        patch,
        width=width,
        depth=depth,
        num_heads=heads,
        relative_bias="per_block",
    )
    layers = LAYERS.get(depth, (1, 2, 3, 4))
    config = SegmenterConfig(backbone, options.classes, layers)
    return SemanticSegmenter(config).eval().to(options.device)


def one_by_one(classify, image, window, stride):
    """Average the logits of windows as the published code does."""
    import torch
    from torch.nn import functional as F

    _, _, H, W = image.shape
    h, w = window
    total, counts = 0, image.new_zeros(1, 1, H, W)
    for row in range(max(H - h + stride[0] - 1, 0) // stride[0] + 1):
        for column in range(max(W - w + stride[1] - 1, 0) // stride[1] + 1):
            bottom, right = min(row * stride[0] + h, H), min(column * stride[1] + w, W)
            top, left = max(bottom - h, 0), max(right - w, 0)
            logits = classify(image[:, :, top:bottom, left:right])
            total = total + F.pad(logits.float(), (left, W - right, top, H - bottom))
            counts[:, :, top:bottom, left:right] += 1
    assert bool(torch.all(counts > 0))
    return total / counts


def synchronise(device: str) -> None:
    import torch

    if device == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
