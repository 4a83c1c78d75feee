"""A skipped step computed again gives the same numbers, and the image that broke it."""

import math
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from beit.cli import main
from beit.data.shapes import ShapesSource
from beit.nn.patches import PatchEmbed
from beit.pretraining import loop, pretrain
from beit.replaying import replay
from beit.replaying.replay import Config
from beit.run.directory import RunDirectory
from beit.run.skipping import record_file

GREY = 17  # the image that breaks the model


def grey_images_break(patched: pytest.MonkeyPatch) -> None:
    """Make image 17 all grey; in training such images become NaN."""
    read, forward = ShapesSource.image, PatchEmbed.forward

    def image(source: ShapesSource, index: int) -> Tensor:
        return torch.full_like(read(source, index), 99) if index == GREY else read(source, index)

    def broken(module: PatchEmbed, images: Tensor) -> Tensor:
        patches = forward(module, images)
        grey = (images.amax((2, 3)) == images.amin((2, 3))).all(dim=1)
        return torch.where(grey[:, None, None] & module.training, math.nan, patches)

    patched.setattr(ShapesSource, "image", image)
    patched.setattr(PatchEmbed, "forward", broken)


@pytest.fixture
def grey_image(monkeypatch: pytest.MonkeyPatch) -> None:
    grey_images_break(monkeypatch)


@pytest.fixture(scope="module")
def broken(
    tmp_path_factory: pytest.TempPathFactory,
    trained_tokenizer: Path,
    pretrain_config: Callable[..., Any],
    optim: Callable[..., Any],
) -> Path:
    """A run with a validation, two micro-steps and skipped steps."""
    output = tmp_path_factory.mktemp("replay") / "run"
    settings = pretrain_config(output, trained_tokenizer)
    with pytest.MonkeyPatch.context() as patched:
        grey_images_break(patched)
        pretrain.run(replace(settings, optim=optim(clip=3.0, accumulate=2)))
    return output


def files(run: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in run.rglob("*") if file.is_file()}


def test_trackers_hear_nothing_of_a_replay(broken: Path, grey_image: None) -> None:
    config = RunDirectory(broken).config_file
    text = config.read_text()
    assert text.count("track: ''") == 1
    config.write_text(text.replace("track: ''", "track: not-on-this-machine"))
    try:
        assert replay.run(Config(str(broken))).same
    finally:
        config.write_text(text)


def test_the_same_nan_of_the_same_image(broken: Path, grey_image: None, capsys: Any) -> None:
    before = files(broken)
    steps = [int(file.stem[5:]) for file in sorted((broken / "skipped").iterdir())]
    result = replay.run(Config(str(broken)))
    assert result.same
    assert (result.step, result.rank) == (steps[0], 0)
    assert result.fault == "the loss is nan"
    assert result.first is not None
    assert result.first.where == "output of backbone.patch_embed"
    assert result.first.images == [GREY]
    assert len(result.images) == 1
    assert f"{GREY}" in result.images[0]
    assert math.isnan(result.norm)
    assert next(name for name, value in result.losses if math.isnan(value)) == "loss"
    assert "mask_token" in result.weights
    assert files(broken) == before
    assert main(["replay", str(broken), str(steps[-1])]) == 0
    printed = capsys.readouterr().out
    assert "the loss is nan; computed again: first in the output of backbone.patch_embed" in printed
    with pytest.raises(ValueError, match=rf"no record of step 99; it has: {steps[0]}"):
        replay.run(Config(str(broken), 99))


def test_a_step_that_is_finite_here_says_so(broken: Path, caplog: Any) -> None:
    result = replay.run(Config(str(broken), float32=True))
    assert (result.first, result.weights, result.same) == (None, [], False)
    assert "these are not the numbers of the record" in caplog.text


def test_a_gradient_that_is_not_finite(
    tmp_path: Path,
    trained_tokenizer: Path,
    pretrain_config: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of a finite loss: the function that gave it is named, and the line that called it."""
    predict = loop.predict

    def steep(parts: Any, batch: Any, masked: Tensor) -> dict[str, Tensor]:
        measured = predict(parts, batch, masked)
        if 5 in batch.indices:
            root = (measured["patch_loss"] * 0).sqrt()  # 0, with the slope inf * 0
            measured["patch_loss"] = measured["patch_loss"] + root
        return measured

    monkeypatch.setattr(loop, "predict", steep)
    pretrain.run(pretrain_config(tmp_path / "run", trained_tokenizer))
    result = replay.run(Config(str(tmp_path / "run")))
    assert result.fault == "the norm of the gradient is nan"
    assert result.same
    assert "Backward" in result.function
    assert "loop.py" in result.function
    assert result.weights
    assert all(math.isfinite(value) for _, value in result.losses)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["train-tokenizer", "train-tokenizer --kind dvae", "finetune", "segment"]
)
def test_every_training_can_be_replayed(
    name: str,
    tmp_path: Path,
    trainings: dict[str, tuple[Any, Callable[..., Any]]],
    breaks: Callable[[Collection[int]], None],
) -> None:
    training, make = trainings[name]
    breaks({6})
    training.run(make(output=tmp_path / "run"))
    result = replay.run(Config(str(tmp_path / "run")))
    assert (result.step, result.same) == (6, True)
    assert result.first is not None
    assert len(result.images) == 1


def test_what_cannot_be_replayed(trained_tokenizer: Path, broken: Path) -> None:
    with pytest.raises(ValueError, match="has recorded no skipped step"):
        replay.run(Config(str(trained_tokenizer)))
    step = int(next((broken / "skipped").iterdir()).stem[5:])
    file = record_file(RunDirectory(broken), step)
    torch.save({"step": step, "state": {"model": {}}}, file)
    with pytest.raises(ValueError, match="is not a record of a skipped step"):
        replay.run(Config(str(broken), step))
    file.write_bytes(b"torn")
    with pytest.raises(ValueError, match=r"step-0.*\.pt is damaged"):
        replay.run(Config(str(broken), step))
