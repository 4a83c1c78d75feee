"""Launch the processes of a command on their devices, by lightning-fabric."""

from __future__ import annotations

import ctypes
import inspect
import logging
import os
import sys
import weakref
from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

import torch

from beit.run import budget, preemption, records
from beit.run.changes import keep_settings
from beit.run.device import DeviceConfig, gathered, precision_of
from beit.run.directory import RunDirectory
from beit.run.extension import ExtendedRun
from beit.run.journal import TrainingConfig
from beit.run.lock import Lock, hold, reserve
from beit.run.precision import bfloat16_unit, choose_precision
from beit.run.profile import StepProfile
from beit.run.skipping import guards
from beit.run.tracking import tracking
from beit.run.watching import watchers

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from lightning_fabric.strategies.ddp import DDPStrategy

T = TypeVar("T")
logger = logging.getLogger(__name__)


class Layout(NamedTuple):
    """The processes of a run: `devices` on each of `num_nodes` nodes, one device per process."""

    accelerator: str
    devices: int
    num_nodes: int


def layout(config: DeviceConfig, environment: Mapping[str, str]) -> Layout:
    """Choose the devices of a run, from its configuration and torchrun's environment variables.

    The command gives the tasks of srun the same variables (`beit.command.slurm`).
    """
    available = {"cpu": 1}
    if torch.backends.mps.is_available():
        available = {"mps": 1, **available}
    if torch.cuda.is_available():
        available = {"cuda": torch.cuda.device_count(), **available}
    accelerator = next(iter(available)) if config.accelerator == "auto" else config.accelerator
    if accelerator not in available:
        raise ValueError(
            f"device.accelerator is {accelerator}, which this machine does not have; "
            f"it has {', '.join(available)}"
        )
    if config.precision == "16-mixed" and accelerator == "cpu":
        raise ValueError(
            "device.precision 16-mixed needs a GPU; use bf16-mixed or 32-true on the CPU"
        )

    devices = available[accelerator] if config.devices == "auto" else config.devices
    num_nodes = config.num_nodes
    if "TORCHELASTIC_RUN_ID" in environment:
        started = int(environment["LOCAL_WORLD_SIZE"])
        if config.devices not in ("auto", 1, started):
            raise ValueError(
                f"device.devices is {config.devices}, but torchrun or srun started {started} "
                "processes on this node; leave device.devices out"
            )
        devices, num_nodes = started, int(environment["WORLD_SIZE"]) // started
    if accelerator != "cpu" and devices > available[accelerator]:
        raise ValueError(
            f"device.devices is {devices}, but this machine has {available[accelerator]} "
            f"{accelerator} device{'s' * (available[accelerator] > 1)}"
        )
    return Layout(accelerator, devices, num_nodes)


def launch(
    config: DeviceConfig, training: bool = False, profile: int = 0, track: str = ""
) -> Fabric:
    """Start the run's processes, or join those that torchrun started, and return their Fabric.

    Without `training`, precision auto is float32 (`choose_precision`).

    Args:
        profile: steps to profile, `run.profile`
        track: trackers, `run.track`
    """
    from lightning_fabric import Fabric  # slow to import
    from lightning_fabric.plugins.environments.lightning import LightningEnvironment
    from lightning_fabric.strategies.launchers import subprocess_script

    from beit.run import ranks

    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it logs each choice
    accelerator, devices, num_nodes = layout(config, os.environ)
    if config.shard and not training:
        raise ValueError("device.shard is for trainings; leave it out")
    if accelerator == "cpu":
        keep_freed_memory(not config.gradient_checkpointing)
    unit = bfloat16_unit(accelerator)
    precision, reason = choose_precision(config.precision, accelerator, unit, training)
    # Fabric takes any process of a Slurm job for one of several, also a batch script, which is one
    # alone. The command has given torchrun's variables to those that srun started.
    alone = "SLURM_NTASKS" in os.environ and "TORCHELASTIC_RUN_ID" not in os.environ
    callbacks: list[Any] = [StepProfile(profile)] if profile else []
    fabric = Fabric(
        callbacks=callbacks + (_of_training(track) if training else []),
        plugins=[LightningEnvironment()] if alone else None,
        accelerator=accelerator,
        devices=devices,
        num_nodes=num_nodes,
        precision=cast(Any, precision),
        strategy=_strategy(config, training, precision) if devices * num_nodes > 1 else "auto",
    )
    cast(Any, fabric.strategy.precision).reason = reason  # see `precision_of`
    cast(Any, subprocess_script)._launch_process_observer = ranks.observe
    fabric.launch()
    ranks.watch(fabric, config.timeout)
    fabric.call("after_launch", fabric)
    return fabric


def _of_training(track: str) -> list[Any]:
    """Return the callbacks of a training, which its journal calls."""
    callbacks = [records.Opener(), *watchers(), *budget.callbacks(), *preemption.callbacks()]
    return callbacks + guards() + tracking(track)


def _strategy(config: DeviceConfig, training: bool, precision: str) -> DDPStrategy:
    """Return what several processes do: average gradients (DDP), or share them out (FSDP2).

    With DDP every parameter must have a gradient in each step. Buffers are not synchronised:
    whatever updates them must be reduced first.
    """
    from lightning_fabric.strategies.ddp import DDPStrategy
    from torch.nn.parallel import DistributedDataParallel

    timeout = timedelta(minutes=config.timeout)
    if config.shard and training:
        from beit.run.sharding import ShardedStrategy

        if precision == "16-mixed":
            raise ValueError(
                "device.shard does not work with the loss scaling of device.precision 16-mixed; "
                "use bf16-mixed or 32-true"
            )
        return ShardedStrategy(timeout=timeout)
    # torch 2.15 renamed the option that synchronises buffers in each forward pass.
    known = inspect.signature(DistributedDataParallel).parameters
    switch = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    settings: dict[str, Any] = {"find_unused_parameters": False, switch: False}
    return DDPStrategy(gradient_as_bucket_view=True, timeout=timeout, **settings)


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4  # of glibc's malloc.h


def keep_freed_memory(keep: bool) -> bool:
    """Set whether malloc keeps freed memory or returns it to the system.

    Each step allocates the same hundreds of megabytes. If they are returned, their pages are mapped
    and zeroed again in the next step: a sixth of a step's time on a CPU. If they are kept, memory
    is fragmented and its use grows (docs/diary.md).

    Returns: False if the C library cannot do it
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # not glibc
        return False
    settings = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: 2**31 - 1}
    if not keep:  # map each block of 1 MiB or more on its own
        settings = {M_MMAP_MAX: 2**16, M_MMAP_THRESHOLD: 2**20, M_TRIM_THRESHOLD: 2**20}
    return all(mallopt(name, value) for name, value in settings.items())


def launch_run(config: TrainingConfig, directory: RunDirectory | None) -> Fabric:
    """Launch the processes of a training, lock its directory, and log its precision.

    A new run must not have an existing directory. A run that resumes in another precision warns.
    """
    run = Path(config.run.output) if directory is None else directory.path
    preemption.of_run(run)
    if directory is None:
        RunDirectory.check_new(config.run.output)
    fabric = launch(
        config.device, training=True, profile=config.run.profile, track=config.run.track
    )
    enter = partial(reserve, run) if directory is None else partial(_go_on, directory)
    if lock := in_first_process(fabric, enter):
        weakref.finalize(fabric, lock.release)
    refuse_late_files(fabric, directory)
    precision, reason = precision_of(fabric).values()
    if not fabric.is_global_zero:
        return fabric
    logger.info("precision %s: %s", precision, reason)
    if directory is not None:
        before = directory.environment().get("precision", precision)
        if before != precision:
            text = "%s began in precision %s; set device.precision in its config.yaml to keep that"
            logger.warning(text, directory.path, before)
    return fabric


def _go_on(directory: RunDirectory) -> Lock | None:
    """Lock a run to resume, and record its settings, which have been checked."""
    lock = hold(directory.path)
    if isinstance(directory, ExtendedRun):
        directory.record()
    keep_settings(directory)
    return lock


def in_first_process(fabric: Fabric, act: Callable[[], T]) -> T | None:
    """Call a function in the first process; if it fails, all processes raise its error."""
    result, error = None, None
    if fabric.is_global_zero:
        try:
            result = act()
        except (ValueError, OSError) as raised:
            error = raised
    if error := fabric.broadcast(error):
        raise error
    return result


def refuse_late_files(fabric: Fabric, directory: RunDirectory | None) -> None:
    """Refuse a run of which the processes see different checkpoints, or some of them none.

    They would train different weights. Network file systems may show new files late.
    """
    step = -1 if directory is None else directory.saved_step() or 0
    steps = {*gathered(fabric, torch.tensor([step], device=fabric.device)).tolist()}
    if len(steps) > 1:
        names = ", ".join("no run" if step < 0 else f"step {step}" for step in sorted(steps))
        raise ValueError(
            f"the processes see different checkpoints of the run ({names}): its file system shows "
            "new files late. Start again in a minute"
        )
