"""Configurations of training runs that take about a second, and what is asked of every run."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from beit.data.batches import DataConfig
from beit.data.views import ViewConfig
from beit.nn.mim import MaskedImageModelConfig
from beit.nn.tokenizer import VQKDConfig
from beit.nn.vit import ViTConfig
from beit.recipes import pretrain, train_tokenizer
from beit.store.run import RunConfig
from beit.store.teachers import TeacherConfig
from beit.train.fabric import DeviceConfig
from beit.train.optim import OptimConfig

DATA = DataConfig(
    train="shapes://43?size=24", validation="shapes://13?size=24&seed=1", num_workers=0
)  # 5 steps of 8 an epoch, and 3 images left over
CPU = DeviceConfig(accelerator="cpu")


def vit(**changes: Any) -> ViTConfig:
    """The numbers of a ViT on a grid of 2 x 3."""
    settings = {"image_size": (16, 24), "patch_size": 8, "width": 12, "depth": 2, "num_heads": 3}
    return ViTConfig(**(settings | changes))


def optim(**changes: Any) -> OptimConfig:
    settings = {
        "batch_size": 8,
        "epochs": 2,
        "learning_rate": 1e-3,
        "warmup_epochs": 1,
        "betas": (0.9, 0.98),
        "weight_decay": 0.01,
    }
    return OptimConfig(**(settings | changes))


def tokenizer_config(output: Path, **changes: Any) -> train_tokenizer.Config:
    """A run of ten steps: revivals at 3, 6, 9, checkpoints at 4, 8, 10, log lines at both."""
    settings: dict[str, Any] = {
        "data": DATA,
        "view": ViewConfig(min_scale=0.5, color_jitter=0.0),
        "model": VQKDConfig(
            encoder=vit(absolute_positions=True, relative_bias="none", layer_scale=None),
            decoder_depth=1,
            num_codes=11,
            code_width=5,
            teacher_width=0,
        ),
        "teacher": TeacherConfig("timm:test_efficientnet", image_size=32, pretrained=False),
        "codebook": train_tokenizer.CodebookConfig(revive_every=3),
        "optim": optim(),
        "run": RunConfig(str(output), log_every=3, checkpoint_every=4),
        "device": CPU,
    }
    return train_tokenizer.Config(**(settings | changes))


def pretrain_config(output: Path, tokenizer: Path, **changes: Any) -> pretrain.Config:
    """A run of ten steps: checkpoints at 4, 8, 10, log lines at these and at 3, 6, 9."""
    settings: dict[str, Any] = {
        "data": DATA,
        "tokenizer": str(tokenizer),
        "view": ViewConfig(min_scale=0.5, color_jitter=0.2),
        "model": MaskedImageModelConfig(
            backbone=vit(drop_path=0.1), num_codes=0, early_layers=1, head_layers=1
        ),
        "mask": pretrain.MaskConfig(count=2, min_block=1),
        "optim": optim(clip=3.0),
        "run": RunConfig(str(output), log_every=3, checkpoint_every=4),
        "device": CPU,
    }
    return pretrain.Config(**(settings | changes))


@pytest.fixture(name="vit", scope="session")
def _vit() -> Callable[..., ViTConfig]:
    return vit


@pytest.fixture(name="optim", scope="session")
def _optim() -> Callable[..., OptimConfig]:
    return optim


@pytest.fixture(name="tokenizer_config", scope="session")
def _tokenizer_config() -> Callable[..., train_tokenizer.Config]:
    return tokenizer_config


@pytest.fixture(name="pretrain_config", scope="session")
def _pretrain_config() -> Callable[..., pretrain.Config]:
    return pretrain_config


@pytest.fixture(scope="session")
def trained_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a finished tokenizer run."""
    output = tmp_path_factory.mktemp("recipes") / "tokenizer"
    train_tokenizer.run(tokenizer_config(output))
    return output


# ── what is asked of every run ──────────────────────────────────────────────────────────────────


@pytest.fixture
def records() -> Callable[[Path], list[dict[str, Any]]]:
    """Reads the metrics log of a run."""

    def read(run: Path) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]

    return read


@pytest.fixture
def same_bits() -> Callable[[Path, Path], None]:
    """Asserts that two runs have the same metrics log and the same weights, to the bit."""

    def check(first: Path, second: Path) -> None:
        logs = [(run / "metrics.jsonl").read_bytes() for run in (first, second)]
        assert logs[0] == logs[1]
        weights = [load_file(run / "weights.safetensors") for run in (first, second)]
        assert_same_tensors(*weights)

    return check


@pytest.fixture
def thrifty(monkeypatch: pytest.MonkeyPatch) -> Iterator[DeviceConfig]:
    """A CPU with gradient checkpointing, of which the test must make use."""
    used: list[Any] = []

    def counted(function: Any, *arguments: Any, **settings: Any) -> Any:
        used.append(function)
        return checkpoint(function, *arguments, **settings)

    monkeypatch.setattr("beit.nn.block.checkpoint", counted)
    yield DeviceConfig(accelerator="cpu", gradient_checkpointing=True)
    assert used


def assert_same_tensors(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    assert not [name for name in first if not torch.equal(first[name], second[name])]


class Interrupted(Exception):  # noqa: N818
    """Stands for whatever ends a process in the middle of a step."""


@pytest.fixture
def interrupt_at(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs a recipe until it has trained a step, and breaks it off there."""

    def interrupt(recipe: Any, config: Any, step: int, resume: bool = False) -> None:
        update = recipe.Progress.update

        def broken(self: Any, at: int, *rest: Any) -> Any:
            if at == step:
                raise Interrupted
            return update(self, at, *rest)

        with monkeypatch.context() as patched:
            patched.setattr(recipe.Progress, "update", broken)
            with pytest.raises(Interrupted):
                if resume:
                    recipe.resume(config.run.output)
                else:
                    recipe.run(config)

    return interrupt


@pytest.fixture
def same_to_rounding() -> Callable[[Any, Any, float], None]:
    """Asserts that two metrics logs tell the same figures, up to a relative difference."""

    def check(first: list[dict[str, Any]], second: list[dict[str, Any]], rel: float) -> None:
        assert len(first) == len(second)
        for one, other in zip(first, second, strict=True):
            assert one.keys() == other.keys()
            for name in one:
                expected = pytest.approx(one[name], rel=rel, abs=rel)
                assert other[name] == expected, f"{name} at step {one['step']}"

    return check
