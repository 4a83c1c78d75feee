"""The tokenizer's step of a preset for CPUs, teacher included, in float32 and bfloat16 autocast.

The command's own training with the preset's settings, on drawn images. Says which of the two
precisions the preset takes on this machine.

    python benchmarks/preset_step.py --preset demo
"""

import argparse
import tempfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import record

PRECISIONS = {"float32": "32-true", "bf16 autocast": "bf16-mixed"}
SEED = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="demo")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="of each precision in a round")
    options = parser.parse_args()
    result = measure(options)
    columns = ["way", "seconds", "cpu_s", "images_per_s", "ours_is_faster"]
    record.print_table(result["rows"], columns)
    print(f"the preset takes {result['taken']}, the faster one is {result['faster']}")
    result = record.provenance("cpu", [SEED]) | {"settings": vars(options)} | result
    record.write_results(f"preset-step-{options.preset}", result)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Time the preset's step in both precisions, and read which one the preset takes."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        ways = {}
        for name, precision in PRECISIONS.items():
            training = stack.enter_context(begin(options, folder / name, precision))
            ways[name] = partial(training.advance, options.steps)
        timings = record.in_turn(ways, options.rounds)
    with tempfile.TemporaryDirectory() as other:
        with begin(options, Path(other, "own"), None) as training:
            taken = training.journal.fabric.strategy.precision.precision
    rows = record.timing_rows(timings, options.batch * options.steps)
    names = {precision: name for name, precision in PRECISIONS.items()}
    faster = min(timings, key=lambda name: timings[name].seconds)
    return {"rows": rows, "taken": names[taken], "faster": faster}


def begin(options: argparse.Namespace, output: Path, precision: str | None) -> Any:
    """Return the training of the preset, with its own precision for None."""
    import trainings

    from beit.command.options import parse
    from beit.tokenizer import vqkd

    batch = options.batch
    arguments = [f"--preset={options.preset}", f"--data.train=shapes://{batch}?size=32"]
    arguments += ["--data.validation=", "--data.limit=null", f"--optim.batch_size={batch}"]
    arguments += [f"--optim.epochs={trainings.EPOCHS}", f"--validate_every={trainings.EPOCHS}"]
    arguments += ["--run.checkpoint_every=1000000000", "--run.log_every=1000000000"]
    arguments += [f"--run.output={output}", "--device.accelerator=cpu"]
    if precision:
        arguments.append(f"--device.precision={precision}")
    return trainings.Stepwise(vqkd, parse("train-tokenizer", vqkd.Config, arguments))


if __name__ == "__main__":
    main()
