import platform
import subprocess
import sys
import warnings
from typing import Any

import pytest
import torch
from torch import nn

from beit.nn.block import Block
from beit.run.device import DeviceConfig, LossScaling, precision_of
from beit.run.launch import launch, layout
from beit.run.parameters import can_fuse
from beit.run.prepare import prepared

TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "6"}


def on_cpu(**changes: Any) -> DeviceConfig:
    return DeviceConfig(accelerator="cpu", **changes)


def test_torchrun_settles_processes_and_nodes() -> None:
    assert layout(on_cpu(), {}) == ("cpu", 1, 1)
    assert layout(on_cpu(devices=3), {}) == ("cpu", 3, 1)
    assert layout(on_cpu(), TORCHRUN) == ("cpu", 2, 3)
    assert layout(on_cpu(devices="auto"), TORCHRUN) == ("cpu", 2, 3)
    with pytest.raises(ValueError, match=r"devices is 4, but torchrun or srun started 2 processes"):
        layout(on_cpu(devices=4), TORCHRUN)


def test_what_the_machine_does_not_have_is_refused() -> None:
    with pytest.raises(ValueError, match="16-mixed needs a GPU"):
        layout(on_cpu(precision="16-mixed"), {})
    with pytest.raises(ValueError, match=r"device.devices is 0; expected 1 or more"):
        on_cpu(devices=0)
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="accelerator is cuda, which this machine"):
            layout(DeviceConfig(accelerator="cuda"), {})


@pytest.mark.parametrize(
    ("precision", "inside"), [("32-true", torch.float32), ("bf16-mixed", torch.bfloat16)]
)
def test_one_process_trains_without_a_warning(
    precision: Any, inside: torch.dtype, capfd: pytest.CaptureFixture[str]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fabric = launch(on_cpu(precision=precision))
        model = nn.Linear(3, 2)
        dtypes: list[torch.dtype] = []
        model.register_forward_hook(lambda module, inputs, output: dtypes.append(output.dtype))
        wrapped, optimizer = fabric.setup(model, torch.optim.AdamW(model.parameters()))
        loss = wrapped(torch.ones(4, 3)).square().mean()
        fabric.backward(loss)
        optimizer.step()
    assert fabric.world_size == 1
    assert dtypes == [inside]
    assert model.weight.dtype == model.weight.grad.dtype == torch.float32  # type: ignore[union-attr]
    given = {"precision": precision, "precision_reason": "given by device.precision"}
    assert precision_of(fabric) == given
    assert can_fuse(fabric)
    assert LossScaling(fabric).state_dict() == {}
    LossScaling(fabric).load_state_dict({})
    assert capfd.readouterr() == ("", "")


def test_a_batch_script_of_slurm_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    job = {"JOB_ID": "81", "NTASKS": "4", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}
    for name, value in job.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    fabric = launch(on_cpu())
    assert (fabric.world_size, fabric.global_rank) == (1, 0)


def test_loss_scaling_goes_on_where_it_was() -> None:
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.precision.amp import MixedPrecision

    def scaled(scale: float) -> Fabric:
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        return Fabric(accelerator="cpu", plugins=MixedPrecision("16-mixed", "cpu", scaler))

    assert not can_fuse(scaled(8.0))
    state = LossScaling(scaled(8.0)).state_dict()
    assert state["scale"] == 8.0
    fresh = scaled(2.0)
    LossScaling(fresh).load_state_dict(state)
    assert LossScaling(fresh).state_dict() == state
    with pytest.raises(ValueError, match=r"with float16 loss scaling .* without"):
        LossScaling(launch(on_cpu())).load_state_dict(state)
    with pytest.raises(ValueError, match=r"without float16 loss scaling .* with it;"):
        LossScaling(fresh).load_state_dict({})


def test_gradient_checkpointing_is_for_blocks() -> None:
    checkpointing = on_cpu(gradient_checkpointing=True)
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(Block(4, 2), Block(4, 2)))
    assert prepared(model, on_cpu()) is model
    assert not [block for block in model[1] if block.gradient_checkpointing]
    assert prepared(model, checkpointing) is model
    assert all(block.gradient_checkpointing for block in model[1])
    with pytest.raises(ValueError, match=r"gradient_checkpointing needs Transformer blocks"):
        prepared(nn.Linear(4, 4), checkpointing)


PAGES = """
import resource, sys, torch
torch.set_num_threads(1)
from beit.run.device import DeviceConfig
from beit.run.launch import keep_freed_memory, launch
checkpointing, megabytes = sys.argv[1] == "checkpointing", int(sys.argv[2])
assert keep_freed_memory(checkpointing)  # the other way, which launch changes
launch(DeviceConfig(accelerator="cpu", gradient_checkpointing=checkpointing))
faults = []
for _ in range(10):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.zeros(megabytes * 250_000).add_(1)  # 250 pages each
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
if checkpointing:
    assert min(faults) > 1000, faults
else:
    assert faults[0] > 1000 and sorted(faults)[6] < 100, faults  # glibc may move a block once
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc alone")
@pytest.mark.parametrize(
    ("way", "megabytes"),
    [
        ("fast", 64),  # above 32 MB glibc never keeps by itself
        ("checkpointing", 16),  # below that it learns to
    ],
)
def test_freed_memory_is_kept_for_the_next_step_or_given_back(way: str, megabytes: int) -> None:
    # A process of its own: the setting stays, and this one has memory left over.
    subprocess.run([sys.executable, "-c", PAGES, way, str(megabytes)], check=True)
