"""Trainings of the package that take one step at a time, to be measured in turn with others.

A `Stepwise` training is the command's own: `recipe.run(config)` with its loop, in a thread of its
own. Only its journal differs: it waits before each step, and gives the first batch again and again,
so that no image is read while a step is timed.
"""

import io
import threading
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext, redirect_stderr
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, Self
from unittest.mock import patch

import torch
from torch import nn

from beit.data.batch import Batch
from beit.data.batches import DataConfig
from beit.nn.masking import MaskConfig
from beit.nn.mim import MaskedImageModelConfig
from beit.nn.tokenizer import VQKD, VQKDConfig, tokenizer_vit
from beit.nn.vit import SIZES, vit_config
from beit.pretraining import pretrain
from beit.pretraining.config import Config as PretrainConfig
from beit.run.device import DeviceConfig
from beit.run.directory import RunConfig
from beit.run.journal import Journal
from beit.run.optim import OptimConfig
from beit.tokenizer import vqkd as train_tokenizer
from beit.weights.file import save_weights

MASKED_SHARE = 75 / 196  # as published
EPOCHS = 10**6  # of one step each: a training ends when its measurement does
RATE, BETAS, DECAY = 1e-4, (0.9, 0.98), 0.05
NUM_CODES, TEACHER_WIDTH = 8192, 512


class Ended(BaseException):
    """Ends a training between two steps."""


class Stepwise:
    """A training that takes steps when it is told to; a context manager, which ends it.

    Attributes:
        journal: of the training
        parts: of its checkpoints: model, optimizer
        batch: the images of every step
    """

    journal: Journal
    parts: dict[str, Any]
    batch: Batch

    def __init__(self, recipe: ModuleType, config: Any) -> None:
        self._recipe, self._config = recipe, config
        self._go, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self._error: BaseException | None = None
        self._ending = False
        self._within: AbstractContextManager[Any] = nullcontext()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        """Build the training, up to its first step."""
        stderr = redirect_stderr(io.StringIO())  # the progress would be drawn over the results
        with patch.object(self._recipe, "Journal", _stepwise_journal(self)), stderr:
            self._thread.start()
            self._wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending = True
        self._go.release()
        self._thread.join()

    def advance(
        self, steps: int = 1, within: AbstractContextManager[Any] | None = None
    ) -> dict[str, float]:
        """Take some steps, each in a context if one is given; return the means of their metrics."""
        self._within = within or nullcontext()
        for _ in range(steps):
            self._go.release()
            self._wait()
        return self.journal.means.read()

    def _run(self) -> None:
        try:
            self._recipe.run(self._config)
        except Ended:
            pass
        except BaseException as error:  # raised in the thread that waits
            self._error = error
        finally:
            self._done.release()

    def _wait(self) -> None:
        self._done.acquire()
        if self._error is not None:
            raise self._error

    def _pause(self) -> AbstractContextManager[Any]:
        """Wait for the next step, in the training's thread; return the context to take it in."""
        self._done.release()
        self._go.acquire()
        if self._ending:
            raise Ended
        return self._within


def _stepwise_journal(training: Stepwise) -> type[Journal]:
    class StepwiseJournal(Journal):
        def begin(self, batches: Iterable[Batch], **parts: Any) -> None:
            training.journal, training.parts = self, parts
            super().begin(batches, **parts)
            [training.batch] = super().micro_batches()

        def steps(self) -> Iterator[int]:
            for step in super().steps():
                with training._pause():
                    yield step

        def micro_batches(self) -> Iterator[Batch]:
            yield training.batch

    return StepwiseJournal


def device_config(device: str, precision: str = "32-true", **options: Any) -> DeviceConfig:
    return DeviceConfig(accelerator=device, precision=precision, **options)  # type: ignore[arg-type]


def pretraining(
    folder: Path, size: str, image_size: int, batch: int, device: DeviceConfig
) -> Stepwise:
    """Return a pretraining of a named size by the published recipe, with a tokenizer at random.

    Args:
        folder: an existing one, for the tokenizer and the run
    """
    sides = (image_size, image_size)
    backbone = vit_config(size, image_size=sides)  # type: ignore[arg-type]
    tokenizer = folder / "tokenizer.safetensors"
    if not tokenizer.exists():
        torch.manual_seed(0)
        vqkd = VQKD(tokenizer_of(size, image_size))
        vqkd.quantizer.initialised.fill_(True)
        save_weights(tokenizer, vqkd)
    N = backbone.num_patches
    config = PretrainConfig(
        data=images_of(batch, image_size),
        tokenizer=str(tokenizer),
        model=MaskedImageModelConfig(backbone, NUM_CODES, early_layers=backbone.depth - 3),
        mask=MaskConfig(count=round(MASKED_SHARE * N)),
        optim=optim(batch, clip=3.0),
        validate_every=EPOCHS,
        run=run_in(folder),
        device=device,
    )
    return Stepwise(pretrain, config)


def tokenizer_of(size: str, image_size: int) -> VQKDConfig:
    """Return the tokenizer of a size: a ViT-B at most, as published."""
    width, depth, heads = SIZES[size if size in ("Ti", "S") else "B"]
    encoder = replace(tokenizer_vit((image_size,) * 2), width=width, depth=depth, num_heads=heads)
    return VQKDConfig(encoder, num_codes=NUM_CODES, teacher_width=TEACHER_WIDTH)


class FixedTeacher(nn.Module):
    """Gives the same features for any images, so that a step is measured without its teacher."""

    width, settings = TEACHER_WIDTH, None

    def to(self, device: Any) -> Self:
        self._device = device
        return self

    def features(self, images: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """Return features (B, N, T)."""
        if not hasattr(self, "_features"):
            generator = torch.Generator().manual_seed(0)
            shape = (len(images), grid[0] * grid[1], self.width)
            self._features = torch.randn(shape, generator=generator).to(self._device)
        return self._features


def tokenizer(
    folder: Path, size: str, image_size: int, batch: int, device: DeviceConfig
) -> Stepwise:
    """Return a training of VQ-KD by the published recipe; enter it within `without_teacher`."""
    config = train_tokenizer.Config(
        data=images_of(batch, image_size),
        model=tokenizer_of(size, image_size),
        codebook=train_tokenizer.CodebookConfig(kmeans=False),
        optim=optim(batch),
        validate_every=EPOCHS,
        run=run_in(folder),
        device=device,
    )
    return Stepwise(train_tokenizer, config)


def without_teacher(teacher: FixedTeacher) -> AbstractContextManager[Any]:
    return patch.object(train_tokenizer, "load_teacher", lambda *_: teacher)


def images_of(batch: int, image_size: int) -> DataConfig:
    """Return the settings of a set of one batch."""
    return DataConfig(train=f"shapes://{batch}?size={image_size}", num_workers=0)


def optim(batch: int, clip: float | None = None) -> OptimConfig:
    """Return the settings of AdamW at a constant rate."""
    return OptimConfig(
        batch_size=batch,
        epochs=EPOCHS,
        learning_rate=RATE,
        final_rate=RATE,
        warmup_epochs=0,
        betas=BETAS,
        weight_decay=DECAY,
        clip=clip,
    )


def run_in(folder: Path) -> RunConfig:
    """Return the settings of a new run in a folder, without logs or checkpoints."""
    output = folder / f"run-{len(list(folder.iterdir()))}"
    return RunConfig(output=str(output), log_every=10**9, checkpoint_every=10**9)
