import pytest
import torch

from beit.weights.formats.names import fused, split, swapped, translated

ROWS = (
    ("layers.#.first.weight", "blocks.#.one"),
    ("layers.#.*", "blocks.#.other.*"),
    ("head", "classifier"),
)


def test_names_take_the_first_row_that_they_match_as_a_whole():
    names = ["layers.12.first.weight", "layers.3.first.bias", "head", "headless", "a.layers.1.x"]
    assert translated(names, ROWS) == {
        "layers.12.first.weight": "blocks.12.one",
        "layers.3.first.bias": "blocks.3.other.first.bias",
        "head": "classifier",
    }
    assert translated(["layers.x.first", "layersX1.a", "layers.1."], ROWS) == {}


def test_a_table_swapped_is_its_inverse():
    names = ["layers.12.first.weight", "layers.0.x.y", "head"]
    there = translated(names, ROWS)
    assert list(translated(there.values(), swapped(ROWS)).values()) == names


def test_tensors_are_stacked_in_the_order_of_the_parts_and_cut_again():
    parts, whole = ("q.w", "k.w", "v.w"), "qkv.w"
    state = {f"1.{part}": torch.full((2, 3), float(i)) for i, part in enumerate(parts)}
    state = dict(reversed(state.items())) | {"q": torch.ones(1)}
    stacked = fused(state, parts, whole)
    assert stacked.keys() == {"1.qkv.w", "q"}
    assert stacked["1.qkv.w"][:, 0].tolist() == [0, 0, 1, 1, 2, 2]
    back = split(stacked, parts, whole)
    assert back.keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in back.items())


@pytest.mark.parametrize("other", [{}, {"1.k": torch.ones(3)}], ids=["missing", "another shape"])
def test_incomplete_groups_are_unchanged(other):
    state = {"1.q": torch.ones(2), "2.q": torch.ones(2), "2.k": torch.ones(2), **other}
    stacked = fused(state, ("q", "k"), "qk")
    assert stacked.keys() == {"1.q", "2.qk", *other}
    assert stacked["1.q"] is state["1.q"]
