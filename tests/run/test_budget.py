import time
from dataclasses import replace
from itertools import accumulate
from types import SimpleNamespace

import pytest
import yaml
from tests.conftest import tokenizer_config

from beit.nn.vit import ViTConfig
from beit.run import budget
from beit.run.budget import (
    Sets,
    Times,
    affordable,
    evaluations,
    seconds_needed,
    seconds_of,
    seconds_of_step,
    shortened,
)
from beit.segmentation.config import Config as SegmentConfig
from beit.tokenizer import vqkd

TIMES = Times(step=2.0, image=0.5, report=3.0, once=10.0)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("30m", 1800), ("2h", 7200), ("1h30m", 5400), ("0.5m", 30)]
)
def test_a_duration_has_units(text, seconds):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["30", 30, "", "half an hour", "0m", "-1h", "30m1h"])
def test_other_durations_are_refused(text):
    with pytest.raises(ValueError, match="expected a time as in 30m, 2h, 1h30m or 90s") as error:
        seconds_of(text)
    assert ("for minutes write 30m" in str(error.value)) == (text in ("30", 30))


def test_a_busy_moment_does_not_count_but_the_wait_for_images_does():
    steps = [9.0, 9.0, 9.0, 9.0, *(2.0, 2.0), *(2.0, 2.0), *(2.0, 30.0), *(2.0, 2.0)]
    ends = list(accumulate(steps))
    assert seconds_of_step(ends, [0.0] * 12) == 2.0
    bursts = list(accumulate(4.0 * (number == 9) for number in range(12)))
    ends = [end + wait for end, wait in zip(ends, bursts, strict=True)]
    assert seconds_of_step(ends, bursts) == 2.0 + 4.0 / 8


def test_a_run_needs_its_steps_one_reading_and_its_validations(tmp_path):
    config = replace(tokenizer_config(tmp_path), validate_every=1)  # 10 steps of 8 images
    assert seconds_needed(config, Sets(range(43)), TIMES) == 10 + 10 * 2 + 43 * 0.5 + 3
    sets = Sets(range(43), range(13))  # twice 13 images of 2 / 8 + 0.5 seconds
    assert seconds_needed(config, sets, TIMES) == 10 + 10 * 2 + 43 * 0.5 + 26 * 0.75 + 3


def test_as_many_steps_as_fit_with_the_validations_of_the_shorter_run(tmp_path):
    config = tokenizer_config(tmp_path)
    config = replace(config, optim=replace(config.optim, epochs=1000), validate_every=1)
    sets = Sets(range(43), range(13))  # an epoch: 5 steps, validation, report, 22.75 seconds
    assert affordable(10 + 43 * 0.5 + 4 * 22.75 - 3, config, sets, TIMES) == 20
    assert affordable(1e6, config, sets, TIMES) == 5000
    assert affordable(1.0, config, sets, TIMES) == 0


def test_a_shorter_run_keeps_the_shares_of_its_warm_up_and_intervals(tmp_path):
    config = tokenizer_config(tmp_path)
    optim = replace(config.optim, epochs=200, warmup_epochs=10)
    config = replace(config, optim=optim, validate_every=50)
    assert shortened(config, 43, 1000) is config
    shorter = shortened(config, 43, 417)
    assert shorter.optim.epochs == 83.4
    assert shorter.optim.warmup_epochs == pytest.approx(83.4 / 20)
    assert shorter.optim.schedule(43).total_steps == 417
    assert evaluations(shorter, shorter.validate_every, 43) <= evaluations(config, 50, 43) == 4
    assert shortened(config, 43, 0).optim.schedule(43).total_steps == 1


def test_a_training_that_counts_steps_is_shortened_too():
    config = SegmentConfig(backbone=ViTConfig())
    shorter = shortened(config, 100, 1600)
    assert (shorter.optim.steps, shorter.optim.warmup_steps) == (1600, 15)
    assert shorter.validate_every == 160


@pytest.mark.parametrize(("allowed", "steps"), [("1h", 10), ("0.01s", 1)])
def test_a_run_records_what_was_chosen_and_not_the_budget(allowed, steps, tmp_path, caplog, capsys):
    config = tokenizer_config(tmp_path / "run")
    config = replace(config, run=replace(config.run, budget=allowed))
    result = vqkd.run(config)
    written = yaml.safe_load((result.directory / "config.yaml").read_text())
    assert (written["run"]["budget"], written["run"]["fitted_to"]) == ("", allowed)
    assert f"{steps} step{'s' * (steps > 1)} of" in written["run"]["chosen"][-1]
    assert ("hardly anything in fewer than 100 steps" in caplog.text) == (steps < 10)  # shortened
    assert ("minutes, over the budget of 0.01s: the" in capsys.readouterr().err) == (steps < 10)
    assert ("The trial took" in caplog.text) == (steps < 10)
    last = (result.directory / "metrics.jsonl").read_text().splitlines()[-1]
    assert f'"step": {steps},' in last


@pytest.mark.parametrize(
    ("step", "reason"), [(0.5, "other programs may"), (2.0, "validations and reports took longer")]
)
def test_an_overrun_is_explained(step, reason):
    said = list[str]()
    about = SimpleNamespace(run=SimpleNamespace(fitted_to="1m"))
    fabric = SimpleNamespace(is_global_zero=True)
    journal = SimpleNamespace(fabric=fabric, config=about, message=said.append)
    overrun = budget._Overrun(time.monotonic() - 120.0, 60.0, 90.0, step)
    overrun._steps, overrun._seconds = 10, 10.0
    overrun.after_finish(journal)
    assert said == [
        "2.0 minutes, over the budget of 1m: the trial took 1.5 of them, a step 1 s, "
        f"{step:.2g} s when it was timed; {reason}" + " have used the machine" * (step < 1)
    ]


def test_a_budget_leaves_the_run_as_it_is_otherwise(tmp_path, monkeypatch):
    monkeypatch.setattr(budget, "measured", lambda *arguments: Times(0.1, 0.0, 0.0, 0.0))
    config = tokenizer_config(tmp_path / "one")
    timed = replace(config, run=replace(config.run, output=str(tmp_path / "two"), budget="1s"))
    short = vqkd.run(timed)
    assert budget.callbacks() == []  # it was of that run alone
    epochs = yaml.safe_load((short.directory / "config.yaml").read_text())["optim"]["epochs"]
    assert 0 < epochs < 2
    optim = replace(config.optim, epochs=epochs, warmup_epochs=epochs / 2)
    vqkd.run(replace(config, optim=optim))
    logs = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("one", "two")]
    assert logs[0] == logs[1]
