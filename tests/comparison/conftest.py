from pathlib import Path

import pytest

TINY = """
title: Two heads
seeds: [0, 1]
stages:
  tokenizer: {verb: train-tokenizer, preset: shapes-tiny, run.seed: 0}
  pretrain: {preset: shapes-tiny, tokenizer: $tokenizer}
  probe: {preset: shapes-tiny, model: $pretrain}
cells:
  "off": {pretrain.model.head_layers: 0}
  one block: {}
figures: {"Linear, %": probe.linear.paper, Loss: pretrain.val_loss}
"""


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    """A plan of two cells and two seeds."""
    file = tmp_path / "tiny.yaml"
    file.write_text(TINY)
    return file
