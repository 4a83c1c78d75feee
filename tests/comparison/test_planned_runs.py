from pathlib import Path
from typing import Any

import pytest

from beit.command import presets
from beit.comparison import ablate
from beit.comparison.plan import unfold
from beit.comparison.planned_runs import Chain, planned_chains


def chains_of(file: Path, changes: dict[str, Any] | None = None) -> list[Chain]:
    return planned_chains(unfold(presets.read_yaml(file), str(file), changes or {}))


@pytest.mark.parametrize("name", sorted(file.stem for file in ablate.PLANS.glob("*.yaml")))
def test_every_shipped_plan_is_valid(name: str) -> None:
    file = ablate.plan_file(f"plans/{name}.yaml")
    chains = chains_of(file)
    figures = presets.read_yaml(file)["figures"]
    assert {f.partition(".")[0] for f in figures.values()} <= {s for c in chains for s in c.runs}
    assert name in file.read_text().partition("title:")[0]  # the head comment says how to run it


def test_equal_settings_are_one_run(plan: Path) -> None:
    chains = chains_of(plan)
    assert [(chain.cell, chain.seed) for chain in chains] == [
        ("off", 0),
        ("one block", 0),
        ("off", 1),
        ("one block", 1),
    ]
    names = {s: {chain.runs[s].name for chain in chains} for s in ("tokenizer", "pretrain")}
    assert [len(group) for group in names.values()] == [1, 4]  # the tokenizer sets its own seed
    # A cell that sets the preset's value, or the default, changes nothing.
    text = plan.read_text()
    plan.write_text(text.replace("one block: {}", "one block: {pretrain.mask.kind: block}"))
    again = {chain.runs["pretrain"].name for chain in chains_of(plan)}
    assert again == names["pretrain"]
    plan.write_text(text.replace("run.seed: 0", "run.seed: 7"))  # all later stages depend on it
    assert again.isdisjoint(chain.runs["pretrain"].name for chain in chains_of(plan))


def test_names_do_not_change_between_releases(plan: Path) -> None:
    """An ablation that was begun with an earlier release resumes its runs."""
    runs = chains_of(plan)[0].runs
    assert [run.name for run in runs.values()] == [
        "tokenizer-3e1d85c887",
        "pretrain-b49015dffb",
        "probe-eb6010a4f8",
    ]


def test_two_cells_with_the_same_settings_are_refused(plan: Path) -> None:
    """As when YAML's merge of an anchor brings back what a cell was meant to leave out."""
    text = plan.read_text()
    plan.write_text(text.replace("one block: {}", "one block: {}\n  twin: {}"))
    with pytest.raises(ValueError, match=r"cells 'one block' and 'twin' have the same settings"):
        chains_of(plan)
