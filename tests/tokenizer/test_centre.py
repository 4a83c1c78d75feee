"""Features less their mean: the mean is that of all steps, and a run with it resumes to the bit."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor

from beit.run.resume import resume
from beit.tokenizer import vqkd
from beit.tokenizer.centre import Centre
from beit.tokenizer.vqkd_loop import validate
from beit.weights.open import load_tokenizer


def test_the_mean_is_that_of_the_steps_that_are_kept() -> None:
    centre, features = (
        Centre(Fabric(accelerator="cpu"), 5),
        torch.randn(4, 2, 3, 7, 5),
    )  # step, micro, B, N, T
    assert torch.equal(centre(features[0, 0]), features[0, 0])
    centre.update(torch.tensor(False))
    for step in features:
        for micro in step:
            centre(micro)
        centre.update(torch.tensor(True))
    centre(torch.full((3, 7, 5), torch.nan))
    centre.update(torch.tensor(False))
    torch.testing.assert_close(centre.mean, features.mean((0, 1, 2, 3)))
    assert centre.eval()(features[0]).shape == features[0].shape
    again = Centre(Fabric(accelerator="cpu"), 5)
    again.load_state_dict(centre.state_dict())
    assert torch.equal(again.mean, centre.mean)


def centred(config: vqkd.Config) -> vqkd.Config:
    return replace(config, teacher=replace(config.teacher, centred=True))


def test_a_centred_run_resumes_to_the_bit(
    tmp_path: Path,
    trained_tokenizer: Path,
    tokenizer_config: Any,
    interrupt_at: Any,
    same_bits: Any,
    records: Any,
) -> None:
    vqkd.run(centred(tokenizer_config(tmp_path / "whole")))
    for number, step in enumerate((5, 7)):
        interrupt_at(vqkd, centred(tokenizer_config(tmp_path / "run")), step, resume=number > 0)
    resume(vqkd, tmp_path / "run")
    same_bits(tmp_path / "whole", tmp_path / "run")
    (first, *_), (other, *_) = records(tmp_path / "whole"), records(trained_tokenizer)
    assert first["loss"] != other["loss"]


def test_micro_steps_change_memory_not_results(
    tmp_path: Path, tokenizer_config: Any, optim: Any, records: Any, same_to_rounding: Any
) -> None:
    vqkd.run(centred(tokenizer_config(tmp_path / "one")))
    vqkd.run(centred(tokenizer_config(tmp_path / "two", optim=optim(accumulate=2))))
    same_to_rounding(records(tmp_path / "one"), records(tmp_path / "two"), 5e-5)


@pytest.mark.parametrize(("spread", "constant"), [(0.0, 0.0), (1e6, 1.0)])
def test_a_constant_for_each_position_is_as_good_as_features_are_alike(
    spread: float, constant: float, trained_tokenizer: Path
) -> None:
    tokenizer = load_tokenizer(trained_tokenizer)
    shape = (tokenizer.config.encoder.num_patches, tokenizer.config.teacher_width)
    of_positions = torch.randn(shape)

    def features(batch: Any) -> Tensor:
        return of_positions + spread * torch.randn(len(batch.images), *shape)

    parts: Any = SimpleNamespace(
        fabric=Fabric(accelerator="cpu"), vqkd=tokenizer, features=features, centre=None
    )
    images = torch.zeros(400, 3, 16, 24, dtype=torch.uint8)

    class Reading(list[Any]):
        def counts(self) -> dict[str, float]:
            return {}

    reading: Any = Reading([SimpleNamespace(images=part) for part in images.split(100)])
    assert validate(parts, reading).metrics["val_constant"] == pytest.approx(constant, abs=0.06)
