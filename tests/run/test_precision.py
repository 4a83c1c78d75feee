import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from beit.pretraining import pretrain
from beit.run.device import DeviceConfig, precision_of
from beit.run.launch import launch
from beit.run.precision import bfloat16_unit, choose_precision
from beit.run.resume import resume


@pytest.mark.parametrize(
    ("accelerator", "unit", "name", "reason"),
    [
        ("cpu", "avx512_bf16", "bf16-mixed", "this processor has avx512_bf16"),
        ("cpu", "", "32-true", "this processor has no fast bfloat16"),
        ("cuda", "bfloat16 units", "bf16-mixed", "this cuda device has bfloat16 units"),
        ("cuda", "", "32-true", "this cuda device has no fast bfloat16"),
        ("mps", "", "32-true", "this mps device has no fast bfloat16"),
    ],
)
def test_auto_trains_in_what_the_machine_is_fast_in(
    accelerator: str, unit: str, name: str, reason: str
) -> None:
    assert choose_precision("auto", accelerator, unit, training=True) == (name, reason)
    assert choose_precision("auto", accelerator, unit, training=False).name == "32-true"
    for training in (True, False):
        given = choose_precision("16-mixed", accelerator, unit, training)
        assert given == ("16-mixed", "given by device.precision")


@pytest.mark.parametrize(
    ("capabilities", "unit"),
    [
        ({"avx512_f": True, "avx512_bf16": False, "l2_cache_size": 1048576}, ""),
        ({"avx512_bf16": True, "amx_bf16": False}, "avx512_bf16"),
        ({"avx512_bf16": True, "amx_bf16": True}, "amx_bf16"),
        ({"architecture": "aarch64"}, ""),
    ],
)
def test_the_processor_names_its_bfloat16_unit(
    capabilities: dict[str, Any], unit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert bfloat16_unit("cpu") == unit
    assert bfloat16_unit("mps") == ""


@pytest.mark.skipif(not Path("/proc/cpuinfo").is_file(), reason="the system does not list it")
def test_older_torch_asks_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = bfloat16_unit("cpu")
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert bfloat16_unit("cpu") == expected


def test_reading_is_float32_where_training_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("beit.run.launch.bfloat16_unit", lambda accelerator: "avx512_bf16")
    config = DeviceConfig(accelerator="cpu")
    assert precision_of(launch(config))["precision"] == "32-true"
    assert precision_of(launch(config, training=True))["precision"] == "bf16-mixed"
    asked = DeviceConfig(accelerator="cpu", precision="bf16-mixed")
    assert precision_of(launch(asked))["precision"] == "bf16-mixed"


def test_a_run_names_its_precision_and_another_one_when_it_resumes(
    trained_tokenizer: Path,
    pretrain_config: Callable[..., pretrain.Config],
    interrupt_at: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = pretrain_config(tmp_path / "run", trained_tokenizer)
    with monkeypatch.context() as patched, caplog.at_level(logging.INFO, "beit"):
        patched.setattr("beit.run.launch.bfloat16_unit", lambda accelerator: "avx512_bf16")
        interrupt_at(pretrain, config, 6)
    assert "precision bf16-mixed: this processor has avx512_bf16" in caplog.messages
    recorded = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert recorded["precision"] == "bf16-mixed"
    assert recorded["precision_reason"] == "this processor has avx512_bf16"
    caplog.clear()
    with caplog.at_level(logging.INFO, "beit"):
        resume(pretrain, config.run.output)
    messages = [r.getMessage() for r in caplog.records if r.name == "beit.run.launch"]
    advice = "set device.precision in its config.yaml to keep that"
    assert messages == [
        "precision 32-true: this processor has no fast bfloat16",
        f"{tmp_path / 'run'} began in precision bf16-mixed; {advice}",
    ]
    assert (tmp_path / "run" / "weights.safetensors").is_file()
