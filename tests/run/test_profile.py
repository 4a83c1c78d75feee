"""Where the time of some steps goes: what is written, and that the run is the same."""

import gzip
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from beit.pretraining import pretrain
from beit.run.directory import RunConfig
from beit.run.profile import KINDS, OTHER, kind_of
from beit.tokenizer import vqkd as train_tokenizer


def shares(run):
    """Read the two tables: {name: percent} each."""
    tables = (run / "profile.md").read_text().split("operator:")
    return [
        {name: int(share) for name, share in re.findall(r"\| (.+) \| [\d.]+ \| (\d+)% \|", table)}
        for table in tables
    ]


@pytest.fixture(scope="module")
def profiled(tmp_path_factory, trained_tokenizer, pretrain_config):
    """A pretraining whose sixth to eighth step are profiled."""
    config = pretrain_config(tmp_path_factory.mktemp("profile") / "run", trained_tokenizer)
    pretrain.run(replace(config, run=replace(config.run, profile=3)))
    return Path(config.run.output)


def test_a_profile_has_all_parts_of_a_step(profiled):
    parts, operators = shares(profiled)
    assert set(parts) == {
        *("data wait", "masks, teacher or tokenizer", "forward", "loss", "backward"),
        *("metrics and clipping", "optimiser", "rest of the step"),
    }
    assert set(operators) == {*KINDS, OTHER}
    for table in (parts, operators):
        assert sum(table.values()) == pytest.approx(100, abs=5)  # rounded, each to a percent
    assert parts["forward"] > 0
    assert operators["matrix products"] > 0


def test_the_trace_can_be_opened(profiled):
    file = profiled / "trace.json.gz"
    events = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
    steps = [event for event in events if event["name"] == "Optimizer.step#AdamW.step"]
    assert len(steps) == 3


def test_a_profile_does_not_change_the_run(
    tmp_path, profiled, same_bits, trained_tokenizer, pretrain_config
):
    pretrain.run(pretrain_config(tmp_path / "run", trained_tokenizer))
    same_bits(tmp_path / "run", profiled)


def test_a_run_that_ends_first_is_profiled_to_its_end(tmp_path, tokenizer_config):
    run = RunConfig(str(tmp_path / "run"), profile=100)
    train_tokenizer.run(tokenizer_config(tmp_path / "run", run=run))
    assert (tmp_path / "run/profile.md").read_text().startswith("5 steps after 5 of warm-up")


def test_operators_by_kind():
    kinds = {
        "aten::addmm": "matrix products",
        "aten::_scaled_dot_product_flash_attention_for_cpu": "attention",
        "aten::_softmax": "attention",
        "aten::_log_softmax": OTHER,
        "aten::native_layer_norm_backward": "normalisation and activation",
        "aten::_fused_adamw_": "optimiser and clipping",
        "aten::copy_": OTHER,
    }
    assert {name: kind_of(name) for name in kinds} == kinds


def test_a_negative_number_of_steps_is_refused():
    with pytest.raises(ValueError, match=r"run.profile is -1; expected 0 \(none\) or more"):
        RunConfig(profile=-1)
