from typing import Any

import pytest

from beit.comparison.plan import flat, unfold

STAGES = {
    "tokenizer": {"verb": "train-tokenizer", "preset": "p", "optim": {"epochs": 4, "clip": None}},
    "pretrain": {"preset": "p", "tokenizer": "$tokenizer", "model.head_layers": 2},
}


def plan(**changes: Any) -> dict[str, Any]:
    content = {"stages": STAGES, "cells": {"a": {}}, "figures": {"Loss": "pretrain.val_loss"}}
    return {name: value for name, value in (content | changes).items() if value is not None}


def fields(content: dict[str, Any], changes: dict[str, Any] | None = None) -> list[Any]:
    """Return the name of every cell and the fields of its stages."""
    cells = unfold(content, "plan.yaml", changes or {}).cells
    return [
        (name, {stage.name: dict(stage.fields) for stage in stages})
        for name, stages in cells.items()
    ]


def test_nested_and_dotted_names_are_the_same() -> None:
    nested = {"a": {"b": {"c": 1}, "d.e": [2, 3]}, "f": None}
    assert flat(nested) == {"a.b.c": 1, "a.d.e": [2, 3], "f": None}


def test_cells_change_the_stages_they_name() -> None:
    cells = {"one": {"pretrain": {"model": {"head_layers": 1}}}, "none": {"pretrain": None}}
    tokenizer = {"optim.epochs": 4, "optim.clip": None}
    assert fields(plan(cells=cells)) == [
        (
            "one",
            {
                "tokenizer": tokenizer,
                "pretrain": {"tokenizer": "$tokenizer", "model.head_layers": 1},
            },
        ),
        ("none", {"tokenizer": tokenizer}),
    ]


def test_a_grid_is_every_choice_of_one_value_an_axis() -> None:
    grid = {
        "pretrain.model.head_layers": [1, 2],
        "start": {"k-means": {}, "random": {"tokenizer.codebook.kmeans": False}},
    }
    rows = fields(plan(cells=None, grid=grid))
    assert [name for name, _ in rows] == [
        "head_layers 1, k-means",
        "head_layers 1, random",
        "head_layers 2, k-means",
        "head_layers 2, random",
    ]
    depths = [stages["pretrain"]["model.head_layers"] for _, stages in rows]
    starts = [stages["tokenizer"].get("codebook.kmeans") for _, stages in rows]
    assert (depths, starts) == ([1, 1, 2, 2], [None, False, None, False])


def test_changes_apply_to_stages_but_not_to_fields_a_cell_sets() -> None:
    cells = {"a": {}, "b": {"tokenizer.optim.epochs": 7}}
    rows = fields(plan(cells=cells), {"tokenizer.optim.epochs": 1})
    assert [stages["tokenizer"]["optim.epochs"] for _, stages in rows] == [1, 7]


def test_verbs_presets_seeds_and_references() -> None:
    cells = {"a": {"pretrain.preset": "q"}}
    unfolded = unfold(plan(cells=cells, seeds=[3, 5]), "plan.yaml", {})
    tokenizer, pretrain = unfolded.cells["a"]
    assert (tokenizer.verb, tokenizer.preset, tokenizer.references) == ("train-tokenizer", "p", {})
    assert (pretrain.verb, pretrain.preset) == ("pretrain", "q")
    assert pretrain.references == {"tokenizer": "tokenizer"}
    assert unfolded.seeds == (3, 5)
    assert unfolded.columns == {"Loss": ("pretrain", "val_loss")}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sedes": [1]}, "plan.yaml has an unknown field 'sedes'; did you mean seeds?"),
        ({"seeds": [1, 1]}, "seeds is \\[1, 1\\], expected a list of different numbers"),
        ({"seeds": 2}, "seeds is 2, expected a list"),
        ({"stages": {}}, "has no stages"),
        ({"stages": {"probes": {}}}, "unknown verb 'probes'; did you mean probe?"),
        ({"grid": {"a": [1]}}, "expected cells or a grid, got both"),
        ({"cells": {"a": {"pretrian.model": 1}}}, "cell 'a': unknown stage 'pretrian'; did you me"),
        ({"cells": {"a": {"pretrain": 3}}}, "expected fields of stage 'pretrain', or null"),
        ({"cells": {"a": {"tokenizer": None}}}, "'a', stage 'pretrain': tokenizer is \\$tokenizer"),
        ({"cells": {False: {}}}, "cells: a name reads as False; put off, on, yes, no in quotes"),
        ({"cells": {"a": {"pretrain.verb": "probe"}}}, "the verb of stage 'pretrain' cannot be ch"),
        ({"cells": None, "grid": {"pretrain.x": 4}}, "grid axis 'pretrain.x': expected a list"),
        ({"figures": {}}, "has no figures"),
        ({"figures": {"Loss": "pretrian.loss"}}, "figure 'Loss': expected STAGE.FIGURE, got .*did"),
        ({"reference": "b"}, "reference is 'b', expected the name of a cell"),
        ({"paper": {"b": {}}}, "plan.yaml, paper has an unknown cell 'b'"),
    ],
)
def test_invalid_plans_are_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        unfold(plan(**changes), "plan.yaml", {})
