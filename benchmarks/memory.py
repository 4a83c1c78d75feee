"""Peak memory of a pretraining step by model, image size, batch and gradient checkpointing.

Measured where it fits: the command's own training, two steps in a process of its own, above the
memory after the libraries were loaded. Otherwise estimated: the same model, losses, clipping and
AdamW on fake tensors, which have sizes and no memory, counting what is alive at each operator; the
tokenizer's pass comes before and needs less. Each case is estimated, so that those measured check
the estimate.

    python benchmarks/memory.py --limit-gigabytes 20
"""

import argparse
import json
import subprocess
import sys
import tempfile
import weakref
from argparse import Namespace
from pathlib import Path
from typing import Any

import record
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

SEED = 0
COLUMNS = ["size", "image_size", "batch", "checkpointing", "gigabytes", "how", "estimate"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", nargs="+", choices=["Ti", "S", "B", "L", "H"], default=["B", "L"])
    parser.add_argument("--image-size", type=int, nargs="+", default=[224, 384])
    parser.add_argument("--batch", type=int, nargs="+", default=[8, 32, 64, 256])
    parser.add_argument("--precision", choices=["32", "bf16"], default="32", help="bf16: autocast")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--limit-gigabytes", type=float, default=20.0, help="measure below this")
    parser.add_argument("--measure", type=int, default=8, help="cases at most, the smallest ones")
    parser.add_argument("--results", type=Path, default=record.RESULTS, help="folder to write to")
    parser.add_argument("--checkpointing", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--worker", choices=["measured", "estimated"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        case = Namespace(**{**vars(options), **{n: vars(options)[n][0] for n in LISTS}})
        gigabytes = measured(case) if options.worker == "measured" else estimated(case)
        print(json.dumps({"gigabytes": gigabytes}))
        return
    rows = table(options)
    record.print_table(rows, COLUMNS)
    result = record.provenance(options.device, [SEED])
    settings = {n: v for n, v in vars(options).items() if n not in ("worker", "results")}
    record.write_results(
        f"memory-{options.device}-{options.precision}",
        result | {"settings": settings, "rows": rows},
        options.results,
    )


LISTS = ("size", "image_size", "batch")


def table(options: Namespace) -> list[dict[str, Any]]:
    """Estimate every case, then measure the smallest ones below the limit."""
    rows = [
        {"size": size, "image_size": side, "batch": batch, "checkpointing": checkpointing}
        for size in options.size
        for side in options.image_size
        for batch in options.batch
        for checkpointing in (False, True)
    ]
    common = {"precision": options.precision, "device": options.device}
    for row in rows:
        case = row | common | {"worker": "estimated"}
        row["estimate"] = row["gigabytes"] = fresh(case)
        row["how"] = "estimated"
    small = sorted(rows, key=lambda row: row["estimate"])[: options.measure]
    for row in small:
        if row["estimate"] < options.limit_gigabytes:
            case = {name: row[name] for name in (*LISTS, "checkpointing")} | common
            row["gigabytes"], row["how"] = fresh(case | {"worker": "measured"}), "measured"
    return rows


def fresh(case: dict[str, Any]) -> float:
    """Return the gigabytes of a case, from a process of its own."""
    command = [sys.executable, __file__]
    for name, value in case.items():
        option = f"--{name.replace('_', '-')}"
        command += [option] * value if isinstance(value, bool) else [option, str(value)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return float(json.loads(done.stdout.splitlines()[-1])["gigabytes"])


def measured(case: Namespace) -> float:
    """Take two steps of the training; return its peak in gigabytes."""
    import trainings

    precision = {"32": "32-true", "bf16": "bf16-mixed"}[case.precision]
    device = trainings.device_config(
        case.device, precision, gradient_checkpointing=case.checkpointing
    )
    before = 0 if case.device == "cuda" else record.memory(case.device).now
    with tempfile.TemporaryDirectory() as folder:
        arguments = (Path(folder), case.size, case.image_size, case.batch, device)
        with trainings.pretraining(*arguments) as training:
            training.advance(2)
            return (record.memory(case.device).peak - before) / 1e9


class Alive(TorchDispatchMode):
    """Counts the bytes of all tensors that the code in it makes, as long as they live.

    Attributes:
        peak: the most bytes alive at the end of an operator
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = self._now = 0
        self._known = WeakIdKeyDictionary()

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), options: Any = None
    ) -> Any:
        output = function(*arguments, **(options or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage not in self._known:
                    self._known[storage] = True
                    self._now += storage.nbytes()
                    weakref.finalize(storage, self._free, storage.nbytes())
        self.peak = max(self.peak, self._now)
        return output

    def _free(self, size: int) -> None:
        self._now -= size


def estimated(case: Namespace) -> float:
    """Count the bytes alive in two steps on fake tensors; return the peak in gigabytes."""
    import trainings

    from beit.nn.mim import MaskedImageModel, MaskedImageModelConfig
    from beit.nn.tokenizer import VQKD
    from beit.nn.vit import vit_config
    from beit.run.prepare import prepared

    side = (case.image_size, case.image_size)
    backbone = vit_config(case.size, image_size=side)
    M = round(trainings.MASKED_SHARE * backbone.num_patches)
    device = trainings.device_config("cpu", gradient_checkpointing=case.checkpointing)
    config = MaskedImageModelConfig(backbone, trainings.NUM_CODES, early_layers=backbone.depth - 3)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=case.precision == "bf16")
    with FakeTensorMode(), Alive() as alive:
        vqkd = VQKD(trainings.tokenizer_of(case.size, case.image_size))  # it stays in memory
        model = prepared(MaskedImageModel(config), device).train()
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        images = torch.empty(case.batch, 3, *side, dtype=torch.uint8)
        masked = torch.zeros(case.batch, M, dtype=torch.int64)
        codes = torch.zeros(case.batch, M, dtype=torch.int64)
        for _ in range(2):
            with autocast:
                losses = model(images, masked, codes=codes)
            (losses.patch_loss + losses.cls_loss).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 3.0)
            optimizer.step()
            optimizer.zero_grad()
        del vqkd
    return alive.peak / 1e9


if __name__ == "__main__":
    main()
