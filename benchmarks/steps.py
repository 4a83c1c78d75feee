"""Speed and memory of a pretraining step and a tokenizer step, compared with the published method.

The published method is benchmarks/reference.py, on the same parameters. Before the timing, outputs
and gradients of both are compared in float32. Each measurement has its own process. The teacher's
forward pass, image loading and augmentation are left out, because they are the same in both.

    python benchmarks/steps.py --device cuda --batch 64 128 256 --precision bf16 --compile \\
        --peak-tflops 989
    python benchmarks/steps.py --size Ti --image-size 64 --batch 4 --steps 2
"""

import argparse
import json
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import record

TASKS = ("pretraining", "tokenizer")
SEED = 0
MASKED_SHARE = 75 / 196  # as published
WARM_UP = 2
WORKER_OPTIONS = ("size", "image_size", "precision", "device", "steps")
COLUMNS = ["task", "way", "batch", "images_per_s", "step_ms", "peak_mb", "share_of_peak"]


def main() -> None:
    options = parse()
    if options.worker:
        print(json.dumps(measure(options) if options.way else compare(options)))
        return
    common = {name: getattr(options, name) for name in WORKER_OPTIONS}
    checked = record.in_fresh_process(__file__, **common)
    print(f"both ways agree: {checked['agreement']}")
    ways = ["ours", *(["ours, compiled"] if options.compile else []), "published"]
    rows = []
    for task in options.task:
        for batch in options.batch:
            for way in ways:
                row = {"task": task, "way": way, "batch": batch}
                row |= record.in_fresh_process(__file__, **common, **row)
                if options.peak_tflops:
                    flops = row["images_per_s"] * checked["flops_per_image"][task]
                    row["share_of_peak"] = flops / (options.peak_tflops * 1e12)
                rows.append(row)
    record.print_table(rows, COLUMNS if options.peak_tflops else COLUMNS[:-1])
    result = record.provenance(options.device, [SEED])
    settings = {name: value for name, value in vars(options).items() if name != "worker"}
    result["settings"] = {name: value for name, value in settings.items() if name != "way"}
    record.write_results(f"steps-{options.device}", result | checked | {"rows": rows})


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=["Ti", "S", "B", "L", "H"], default="B")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch", type=int, nargs="+", default=[64])
    parser.add_argument("--task", choices=TASKS, nargs="+", default=list(TASKS))
    parser.add_argument("--precision", choices=["32", "bf16"], default="32", help="bf16: autocast")
    parser.add_argument("--compile", action="store_true", help="measure ours compiled as well")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument(
        "--steps", type=int, default=20, help="timed steps, after two warm-up steps"
    )
    parser.add_argument("--peak-tflops", type=float, help="of the device at this precision")
    parser.add_argument("--way", help=argparse.SUPPRESS)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def build(options: argparse.Namespace) -> tuple[Any, Any]:
    """Return the pretraining model and its tokenizer, a ViT-B at most, as published."""
    import torch

    from beit.nn.mim import MaskedImageModel, MaskedImageModelConfig
    from beit.nn.tokenizer import VQKD, VQKDConfig, tokenizer_vit
    from beit.nn.vit import SIZES, vit_config

    image_size = (options.image_size, options.image_size)
    backbone = vit_config(options.size, image_size=image_size)
    width, depth, heads = SIZES[options.size if options.size in ("Ti", "S") else "B"]
    encoder = replace(tokenizer_vit(image_size), width=width, depth=depth, num_heads=heads)
    torch.manual_seed(SEED)
    model = MaskedImageModel(MaskedImageModelConfig(backbone, early_layers=backbone.depth - 3))
    vqkd = VQKD(VQKDConfig(encoder))
    return model.to(options.device), vqkd.to(options.device)


def inputs(options: argparse.Namespace, batch: int, model: Any) -> tuple[Any, Any, Any]:
    """Return images (B, 3, H, W) uint8, masked (B, M), targets (B, N, T)."""
    import torch

    from beit.nn.masking import block_masks

    generator = torch.Generator().manual_seed(SEED)
    side, grid = options.image_size, model.config.backbone.grid
    N = grid[0] * grid[1]
    images = torch.randint(0, 256, (batch, 3, side, side), generator=generator, dtype=torch.uint8)
    masked = block_masks(batch, grid, round(MASKED_SHARE * N), generator, min_block=16)
    targets = torch.randn(batch, N, 512, generator=generator)
    return images.to(options.device), masked.to(options.device), targets.to(options.device)


def as_published(model: Any, images: Any, masked: Any) -> tuple[Any, Any, Any]:
    """Return the inputs of the published code: normalised pixels, images in [0, 1], a bool mask."""
    import torch

    floats = images.float() / 255
    pixels = (floats - model.backbone.mean) / model.backbone.std
    hidden = torch.zeros(len(images), model.config.backbone.num_patches, dtype=torch.bool)
    hidden = hidden.to(masked.device).scatter_(1, masked, True)
    return pixels, floats, hidden


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Check that both methods give the same results, and count the FLOPs of an image."""
    import reference
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from beit.nn.losses import cosine_distance, masked_losses

    B = 2
    model, vqkd = build(options)
    with torch.no_grad():
        for parameter in (*model.parameters(), *vqkd.parameters()):
            parameter.add_(torch.randn_like(parameter), alpha=0.01)  # zeros would hide differences
    images, masked, targets = inputs(options, B, model)
    pixels, floats, hidden = as_published(model, images, masked)
    differences: dict[str, float] = {}

    def check(name: str, ours: torch.Tensor, published: torch.Tensor, limit: float) -> None:
        scale = published.abs().max().clamp(min=1e-12)
        difference = ((ours - published.view_as(ours)).abs().max() / scale).item()
        assert difference <= limit, f"{name}: {difference:.2g} of the largest, expected {limit}"
        differences[name] = difference

    def gradients(module: torch.nn.Module, loss: torch.Tensor) -> torch.Tensor:
        grads = torch.autograd.grad(loss, list(module.parameters()))
        return torch.cat([grad.flatten() for grad in grads])

    codes = vqkd.encode(images)
    same = (codes == reference.tokenize(vqkd, floats)).all(dim=1)
    assert same.any(), "the two tokenizers agree on no image"
    differences["images of the same codes"] = same.double().mean().item()

    with FlopCounterMode(display=False) as counted:
        logits, cls_logits = reference.mim_forward(model, pixels, hidden)
    model_flops = counted.get_total_flops() / B
    prediction = model(images, masked)
    check("logits", prediction.logits.flatten(0, 1), logits, 1e-4)
    check("cls logits", prediction.cls_logits.flatten(0, 1), cls_logits, 1e-4)
    labels = codes.gather(1, masked)
    cross_entropy = torch.nn.functional.cross_entropy
    published_loss = cross_entropy(logits, codes[hidden]) + cross_entropy(cls_logits, codes[hidden])
    ours_loss = sum(masked_losses(prediction, labels))
    check(
        "pretraining gradients",
        gradients(model, ours_loss),
        gradients(model, published_loss),
        1e-3,
    )

    images, floats, targets = images[same], floats[same], targets[same]
    output, expected = vqkd(images), reference.tokenizer_forward(vqkd, floats)
    check("features", output.features, expected.features, 1e-4)
    check("commitment", output.commitment, expected.commitment, 1e-4)
    check(
        "tokenizer gradients",
        gradients(vqkd, cosine_distance(output.features, targets) + output.commitment),
        gradients(vqkd, reference.cosine_loss(expected.features, targets) + expected.commitment),
        1e-3,
    )
    statistics = vqkd.quantizer.statistics(output.vectors, output.codes)
    check("sums of vectors", statistics[:, :-1], expected.assignment.sums, 1e-4)
    check("counts", statistics[:, -1], expected.assignment.counts, 0)

    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        rows = reference.vectors_of(vqkd, floats)
    encoder_flops = counted.get_total_flops() / len(floats)
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        vqkd.decode_task(
            reference.encode(vqkd.decoder, rows.view(len(floats), *vqkd.grid, -1).movedim(3, 1))
        )
    decoder_flops = counted.get_total_flops() / len(floats)
    lookup_flops = 2 * vqkd.quantizer.codebook.numel() * codes.shape[1]
    flops = {  # a backward pass costs two forward passes
        "pretraining": 3 * model_flops + encoder_flops + lookup_flops,
        "tokenizer": 3 * (encoder_flops + decoder_flops) + lookup_flops,
    }
    agreement = {name: float(f"{value:.2g}") for name, value in differences.items()}
    return {"agreement": agreement, "flops_per_image": flops}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Time one method for one task and batch size."""
    import torch

    device, task, way = options.device, options.task[0], options.way
    before = 0 if device == "cuda" else record.memory(device).now
    model, vqkd = build(options)
    images, masked, targets = inputs(options, options.batch[0], model)
    autocast = torch.autocast(device, torch.bfloat16, enabled=options.precision == "bf16")
    if way == "published":
        step = published_step(task, model, vqkd, (images, masked, targets), autocast)
    else:
        step = our_step(
            task, model, vqkd, (images, masked, targets), autocast, compiled="compiled" in way
        )
    for _ in range(WARM_UP):
        loss = step()
    assert bool(torch.isfinite(torch.as_tensor(loss))), f"loss is {loss}"
    wait = torch.cuda.synchronize if device == "cuda" else nullcontext
    wait()
    start = time.perf_counter()
    for _ in range(options.steps):
        step()
    wait()
    seconds = (time.perf_counter() - start) / options.steps
    return {
        "images_per_s": len(images) / seconds,
        "step_ms": seconds * 1e3,
        "peak_mb": (record.memory(device).peak - before) / 1e6,
    }


def our_step(
    task: str, model: Any, vqkd: Any, batch: tuple[Any, Any, Any], autocast: Any, compiled: bool
) -> Callable[[], Any]:
    """Return a training step as in the recipes."""
    import torch

    from beit.nn.losses import cosine_distance

    images, masked, targets = batch
    learner = (model if task == "pretraining" else vqkd).train()
    fused = True
    optimizer = torch.optim.AdamW(learner.parameters(), lr=1e-5, weight_decay=0.05, fused=fused)
    forward = torch.compile(learner) if compiled else learner

    def pretraining() -> torch.Tensor:
        with torch.no_grad(), autocast:
            target = vqkd.encode(images, masked)  # (B, M)
        with autocast:
            output = forward(images, masked, codes=target)
        loss = output.patch_loss + output.cls_loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learner.parameters(), 3.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    def tokenizer() -> torch.Tensor:
        with autocast:
            output = forward(images)
        loss = cosine_distance(output.features, targets) + output.commitment
        loss.backward()
        statistics = vqkd.quantizer.statistics(output.vectors, output.codes)
        optimizer.step()
        optimizer.zero_grad()
        vqkd.quantizer.update(statistics)
        return loss.detach()

    return pretraining if task == "pretraining" else tokenizer


def published_step(
    task: str, model: Any, vqkd: Any, batch: tuple[Any, Any, Any], autocast: Any
) -> Callable[[], Any]:
    """Return a training step in the manner of the published code."""
    import reference

    images, masked, targets = batch
    pixels, floats, hidden = as_published(model, images, masked)
    learner = (model if task == "pretraining" else vqkd).train()
    optimizer = reference.weight_by_weight(learner.parameters(), rate=1e-5, decay=0.05)
    if task == "tokenizer":
        return lambda: reference.tokenizer_step(vqkd, optimizer, floats, targets, autocast)
    return lambda: reference.pretraining_step(
        model, vqkd, optimizer, pixels, floats, hidden, autocast
    )


if __name__ == "__main__":
    main()
