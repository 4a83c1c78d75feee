"""Speed and memory of a pretraining step and a tokenizer step, compared with the published method.

Ours is the training of the command itself (benchmarks/trainings.py): masks, tokenizer, forward,
losses, backward, clipping, AdamW, metrics. The published method is benchmarks/reference.py, on
copies of the same weights, with the same images, masks and rates; the losses and gradient norms of
all steps must agree in float32. Speed is measured in turn in one process. Peak memory is of a
process of its own, above the memory after the libraries were loaded. Image loading is left out, and
of the tokenizer's step the teacher, too: both are the same in both.

    python benchmarks/steps.py --device cuda --batch 64 128 256 --precision bf16 --compile \\
        --peak-tflops 989
    python benchmarks/steps.py --size Ti --image-size 64 --batch 4
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import record

TASKS = ("pretraining", "tokenizer")
SEED = 0
# Relative difference of loss and gradient norm over the measured steps in float32. Rounding of
# near zero gradients decides the sign of AdamW's first steps, so it grows with the steps.
AGREEMENT = 1e-4
COLUMNS = [
    *("task", "way", "batch", "seconds", "cpu_s", "images_per_s", "ours_is_faster"),
    *("start_s", "peak_mb", "returned_mb"),
]


def main() -> None:
    options = parse()
    if options.worker:
        print(json.dumps(peak(options)))
        return
    rows, measured = [], []
    for task in options.task:
        for batch in options.batch:
            arguments = options_of(options, task=task, batch=batch)
            result = measure(arguments)
            measured.append({"task": task, "batch": batch} | result)
            rows += [{"task": task, "batch": batch} | row for row in result["ways"]]
    record.print_table(rows, COLUMNS + ["share_of_peak"] * bool(options.peak_tflops))
    for result in measured:
        print(f"{result['task']}, batch {result['batch']}: {result['agreement']}")
    result = record.provenance(options.device, [SEED])
    result["settings"] = {
        n: v for n, v in vars(options).items() if n not in ("worker", "way", "return_memory")
    }
    record.write_results(f"steps-{options.device}", result | {"measured": measured})


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=["Ti", "S", "B", "L", "H"], default="B")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch", type=int, nargs="+", default=[64])
    parser.add_argument("--task", choices=TASKS, nargs="+", default=list(TASKS))
    parser.add_argument("--precision", choices=["32", "bf16"], default="32", help="bf16: autocast")
    parser.add_argument("--compile", action="store_true", help="measure ours compiled as well")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds, after one of warm-up")
    parser.add_argument("--steps", type=int, default=1, help="steps of each way in a round")
    parser.add_argument("--peak-tflops", type=float, help="of the device at this precision")
    parser.add_argument("--way", choices=["ours", "published"], help=argparse.SUPPRESS)
    parser.add_argument("--return-memory", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def options_of(options: argparse.Namespace, **changes: Any) -> argparse.Namespace:
    return argparse.Namespace(**(vars(options) | changes))


def begin(options: argparse.Namespace, folder: Path, compiled: bool = False) -> Any:
    """Return our training, not yet entered."""
    import trainings

    precision = {"32": "32-true", "bf16": "bf16-mixed"}[options.precision]
    device = trainings.device_config(options.device, precision, compile=compiled)
    build = trainings.pretraining if options.task == "pretraining" else trainings.tokenizer
    return build(folder, options.size, options.image_size, options.batch, device)


def measure(options: argparse.Namespace, with_products: bool = False) -> dict[str, Any]:
    """Time ours, ours compiled if asked for, and the published method for one task and batch.

    `start_s` is the time of a way's first steps, with compilation.

    Args:
        with_products: time the matrix products of our step as well
    """
    import trainings
    from torch.utils.flop_counter import FlopCounterMode

    losses: dict[str, list[dict[str, float]]] = {"ours": [], "published": []}
    steps, device = options.steps, options.device
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        teacher = trainings.FixedTeacher()
        stack.enter_context(trainings.without_teacher(teacher))
        resting = [record.memory(device).now]
        ours = stack.enter_context(begin(options, folder))
        resting.append(record.memory(device).now)
        published = published_step(options, ours, folder, teacher)
        resting.append(record.memory(device).now)

        def published_steps() -> None:
            losses["published"] += [published() for _ in range(steps)]

        def our_steps() -> None:
            losses["ours"].append(ours.advance(steps))

        ways: dict[str, Callable[[], object]] = {"ours": our_steps, "published": published_steps}
        if options.compile:
            compiled = stack.enter_context(begin(options, folder, compiled=True))
            resting.append(record.memory(device).now)
            ways["ours, compiled"] = partial(compiled.advance, steps)
        built = zip(ways, pairwise(resting), strict=True)
        first = {
            way: first_round(ways[way], after - before, device) for way, (before, after) in built
        }
        timings = record.in_turn(ways, options.rounds, warm_up=0, device=device)
        agreement = agree(losses["ours"], losses["published"], steps)
        counted = FlopCounterMode(display=False)
        ours.advance(within=counted)
        result: dict[str, Any] = {"agreement": agreement, "flops": counted.get_total_flops()}
        if with_products:
            result["products"] = products_of(ours, options)
    if options.precision == "32" and max(agreement.values()) > AGREEMENT:
        raise SystemExit(f"ours and the published method differ: {agreement}")
    rows = record.timing_rows(timings, options.batch * steps)
    for row in rows:
        row["seconds"] /= steps
        row["cpu_s"] /= steps
        row |= first[row["way"]]
        if device == "cpu" and "compiled" not in row["way"]:
            row |= cpu_peaks(options, row["way"])
        if options.peak_tflops and row["way"] != "published":
            share = result["flops"] / row["seconds"] / (options.peak_tflops * 1e12)
            row["share_of_peak"] = share
    return {"ways": rows} | result


def first_round(way: Callable[[], object], resting: int, device: str) -> dict[str, float]:
    """Take the first steps of a way: their time, with compilation, and on a GPU their memory.

    Args:
        resting: bytes of the way when it was built
    """
    before, start = record.restart_peak(device), time.perf_counter()
    way()
    first = {"start_s": time.perf_counter() - start}
    if device == "cuda":
        first["peak_mb"] = (record.memory(device).peak - before + resting) / 1e6
    return first


def products_of(training: Any, options: argparse.Namespace) -> dict[str, Any]:
    """Time the matrix products of a training's step, in turn with the step."""
    from products import Products

    products = Products()
    training.advance(within=products)
    ways = {"step": training.advance, "products": products.replay()}
    timings = record.in_turn(ways, options.rounds, device=options.device)
    return {
        "count": len(products.products),
        "flops": products.flops(),
        "step_s": timings["step"].seconds,
        "step_cpu_s": timings["step"].cpu_seconds,
        "seconds": timings["products"].seconds,
        "cpu_s": timings["products"].cpu_seconds,
        "step_over_products": timings["products"].against(timings["step"]),
    }


def cpu_peaks(options: argparse.Namespace, way: str) -> dict[str, float]:
    """Measure the memory of a way in fresh processes.

    Our command keeps freed memory, for speed; `returned_mb` is its peak without that. The published
    code returns it.
    """
    names = ("size", "image_size", "batch", "task", "precision", "device")
    case = {name: getattr(options, name) for name in names} | {"way": way}
    returned = record.in_fresh_process(__file__, **case, return_memory=True)["mb"]
    if way == "published":
        return {"peak_mb": returned, "returned_mb": returned}
    return {"peak_mb": record.in_fresh_process(__file__, **case)["mb"], "returned_mb": returned}


def agree(
    ours: list[dict[str, float]], published: list[dict[str, float]], steps: int
) -> dict[str, float]:
    """Return the largest relative difference of each metric that both have, over all rounds."""
    differences: dict[str, float] = {}
    for number, means in enumerate(ours):
        theirs = published[number * steps : (number + 1) * steps]
        for name in theirs[0].keys() & means.keys():
            expected = sum(metrics[name] for metrics in theirs) / steps
            difference = abs(means[name] - expected) / abs(expected)
            assert difference == difference, f"{name} is {means[name]} and {expected}"
            differences[name] = max(differences.get(name, 0.0), float(f"{difference:.2g}"))
    return differences


def published_step(
    options: argparse.Namespace, ours: Any, folder: Path, teacher: Any
) -> Callable[[], dict[str, float]]:
    """Return a step of the published method, from the weights, images and masks of ours."""
    import copy

    import reference
    import torch
    import trainings

    from beit.run.parameters import parameter_groups
    from beit.weights.open import load_tokenizer

    device, batch = options.device, ours.batch
    model = copy.deepcopy(ours.parts["model"]).train()
    groups = parameter_groups(model, trainings.DECAY)
    optimizer = reference.weight_by_weight(groups, trainings.RATE, trainings.BETAS)
    autocast = torch.autocast(device, torch.bfloat16, enabled=options.precision == "bf16")
    floats = batch.target_images.float() / 255
    if options.task == "tokenizer":
        targets = teacher.features(batch.images, model.grid)
        return partial(reference.tokenizer_step, model, optimizer, floats, targets, autocast)
    vqkd = load_tokenizer(folder / "tokenizer.safetensors").to(device)
    pixels = (batch.images.float() / 255 - model.backbone.mean) / model.backbone.std
    masks = iter(hidden_patches(options, model.config.backbone.grid))

    def step() -> dict[str, float]:
        return reference.pretraining_step(
            model, vqkd, optimizer, pixels, floats, next(masks).to(device), autocast
        )

    return step


def hidden_patches(options: argparse.Namespace, grid: tuple[int, int]) -> list[Any]:
    """Return the masks (B, N) bool of our training's steps, those that the measurement takes."""
    import torch
    import trainings

    from beit.data.order import step_generator
    from beit.nn.masking import MaskConfig, draw_masks

    N = grid[0] * grid[1]
    mask = MaskConfig(count=round(trainings.MASKED_SHARE * N))
    maps = []
    for step in range(1, (options.rounds + 1) * options.steps + 1):
        generator = step_generator(SEED, step, "masks")
        masked = draw_masks(mask, options.batch, grid, generator)
        hidden = torch.zeros(options.batch, N, dtype=torch.bool)
        maps.append(hidden.scatter_(1, masked, True))
    return maps


def peak(options: argparse.Namespace) -> dict[str, float]:
    """Measure the memory of two steps of one way, the second with the optimiser's moments."""
    import reference  # noqa: F401  # memory of libraries does not count
    import trainings

    from beit.run import launch

    options = options_of(options, task=options.task[0], batch=options.batch[0], rounds=1, steps=1)
    teacher = trainings.FixedTeacher()
    before = 0 if options.device == "cuda" else record.memory(options.device).now
    with tempfile.TemporaryDirectory() as folder, trainings.without_teacher(teacher):
        if options.return_memory:
            keep = launch.keep_freed_memory
            launch.keep_freed_memory = lambda _: keep(False)
        training = begin(options, Path(folder))
        if options.way == "published":
            with training:
                step = published_step(options, training, Path(folder), teacher)
            del training.parts, training.journal
        else:
            training.__enter__()
            step = training.advance
        step()
        step()
        memory = record.memory(options.device).peak - before
        if options.way == "ours":
            training.__exit__()
    return {"mb": memory / 1e6}


if __name__ == "__main__":
    main()
