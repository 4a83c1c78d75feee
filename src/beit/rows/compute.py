"""How a table is computed: what its values depend on, and the loop over the batches."""

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

import beit
from beit.data.batches import EvalBatches
from beit.data.prefetch import Prefetch
from beit.data.source import Source
from beit.data.unreadable import TooManyUnreadable, Unreadable, described, readable
from beit.data.views import EvalView
from beit.rows.feature_maps import FeatureMaps
from beit.rows.lines import LineStream
from beit.rows.table import RowTable
from beit.run.device import DeviceConfig, precision_of
from beit.run.progress import Progress
from beit.wording import amount

if TYPE_CHECKING:
    from lightning_fabric import Fabric


class TableConfig(Protocol):
    """Options of tokenize, embed and predict that change the values."""

    @property
    def model(self) -> str: ...
    @property
    def data(self) -> str | list[str]: ...
    @property
    def limit(self) -> int | None: ...
    @property
    def device(self) -> DeviceConfig: ...


def about_table(
    verb: str,
    config: TableConfig,
    view: EvalView,
    model: nn.Module,
    fabric: "Fabric",
    details: Mapping[str, Any],
) -> dict[str, Any]:
    """Describe how a command makes a table, as plain values; `details` are of this verb only."""
    return {
        "beit": beit.__version__,
        "verb": verb,
        "model": config.model,
        "kind": type(model).__name__,
        "weights": fingerprint(model),
        **details,
        "crop_ratio": view.crop_ratio,
        "data": config.data,
        "limit": config.limit,
        "device": fabric.device.type,
        "precision": precision_of(fabric)["precision"],
        "compile": config.device.compile,
    }


def fingerprint(model: nn.Module, settings: Mapping[str, object] | None = None) -> str:
    """Digest the weights of a model, and the settings that files beside them say: 16 hex digits."""
    digest = hashlib.blake2b(digest_size=8)
    if settings:
        digest.update(json.dumps(settings).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


class TableResult(NamedTuple):
    """The file, None for standard output, and its rows, None in all processes but the first."""

    file: Path | None
    rows: int | None


def compute_table(
    fabric: "Fabric",
    table: RowTable | LineStream | FeatureMaps,
    view: Callable[[Tensor], Tensor],
    compute: Callable[[Tensor], Mapping[str, Tensor]],
    num_workers: int,
    max_unreadable: float,
    show_progress: bool = True,
    empty: bool = False,
) -> TableResult:
    """Compute the missing parts of a table, each process its share, and merge all parts.

    Args:
        table: where the rows go, with their images
        view: (3, H, W) uint8 -> (3, H', W') uint8, the model's input
        compute: (B, 3, H', W') uint8 -> (B, *shape) for each column; B > 0, under autocast
        num_workers: processes that decode images
        max_unreadable: largest share of unreadable images that does not stop the work
        show_progress: to standard error, in the first process
        empty: allow a table without rows

    Raises:
        TooManyUnreadable: more are unreadable, or all; finished parts are kept.
    """
    first = fabric.is_global_zero
    missing = fabric.broadcast(table.begin() if first else [])
    mine = missing[fabric.global_rank :: fabric.world_size]
    numbers = [batch for part in mine for batch in table.batches(part)]
    source, batch_size = table.images, table.batch_size
    batches = EvalBatches(source, view, batch_size, num_workers=num_workers, batches=numbers)
    loader = Prefetch(batches, fabric.device)
    unreadable = Unreadable(len(source), max_unreadable)
    step, started = 0, time.perf_counter()
    with Progress(len(batches), enabled=first and show_progress) as progress, torch.no_grad():
        progress.message(table.status(missing))
        unreadable.note(table.unreadable())
        for number in mine:
            with table.part(number) as part:
                for batch in islice(loader, len(table.batches(number))):
                    values: Mapping[str, Tensor] = {}
                    for filled in readable([batch], unreadable, progress.warn):  # none if B = 0
                        with fabric.autocast():
                            values = compute(filled.images)
                    part.add(batch.indices, values, batch.unreadable)
                    step += 1
                    num_images = len(batch.indices) * fabric.world_size
                    progress.update(step, {}, num_images, loader.wait_seconds)
        fabric.barrier()
        if not first:
            return TableResult(table.output, None)
        seconds = time.perf_counter() - started
        unreadable.note(table.unreadable())  # those of the other processes too
        if not empty and unreadable.names and _has_at_most(len(unreadable.names), source):
            why = described(unreadable.names, "Repair or replace them")
            raise TooManyUnreadable(f"none of {amount(len(source), 'image')} can be read: {why}")
        with progress.aside("writing the table"):
            num_rows = table.merge()
        progress.message(summary(table, num_rows, missing, seconds))
    return TableResult(table.output, num_rows)


def _has_at_most(count: int, source: Source) -> bool:
    """Whether images have at most `count` different names; a list of files may repeat some."""
    names = set[str]()
    for index in range(len(source)):
        names.add(source.name(index))
        if len(names) > count:  # known early, however many images there are
            return False
    return True


def summary(
    table: RowTable | LineStream | FeatureMaps,
    num_rows: int,
    computed: Sequence[int],
    seconds: float,
) -> str:
    """Describe the finished table, and how fast the parts `computed` were computed."""
    texts = [amount(num_rows, "row")]
    if num_rows < len(table.images):
        texts.append(f"{len(table.images) - num_rows} unreadable")
    if computed:
        num_images = sum(len(table.indices(number)) for number in computed)
        rate = num_images / seconds
        texts.append(f"{rate:.0f} images/s" if rate >= 10 else f"{rate:.2g} images/s")
    return ", ".join(texts)
