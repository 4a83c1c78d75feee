"""What the benchmarks measure with: turns, trainings step by step, matrix products, memory."""

import importlib
import json
from argparse import Namespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

SIZES = {"size": "Ti", "image_size": 32, "batch": 2}


@pytest.fixture
def training(tmp_path):
    """A pretraining of a ViT-Ti on four patches, at its first step."""
    trainings = importlib.import_module("trainings")
    device = trainings.device_config("cpu")
    with trainings.pretraining(tmp_path, *SIZES.values(), device) as built:
        yield built


def test_ways_take_turns_and_warm_up_does_not_count():
    record = importlib.import_module("record")
    order = []
    ways = {name: lambda name=name: order.append(name) for name in ("ours", "theirs")}
    timings = record.in_turn(ways, rounds=2, warm_up=1)
    assert order == ["ours", "theirs"] * 3
    assert [len(timing.wall) for timing in timings.values()] == [2, 2]


def test_a_ratio_is_the_median_of_the_rounds():
    record = importlib.import_module("record")
    ours, theirs = record.Timing([1.0, 2.0, 9.0], [0.0] * 3), record.Timing([2.0] * 3, [0.0] * 3)
    assert ours.against(theirs) == 1.0
    assert ours.seconds == 2.0


def test_a_training_takes_the_steps_it_is_told_to(training):
    assert training.journal.step == 1  # waits before it
    first, both = training.advance(), training.advance(2)
    assert training.journal.step == 4
    assert first["loss"] != both["loss"]
    assert {"loss", "accuracy", "grad_norm"} <= both.keys()


def test_a_tokenizer_is_trained_without_its_teacher(tmp_path):
    trainings = importlib.import_module("trainings")
    device = trainings.device_config("cpu")
    with trainings.without_teacher(trainings.FixedTeacher()):
        with trainings.tokenizer(tmp_path, *SIZES.values(), device) as built:
            assert {"loss", "reconstruction"} <= built.advance().keys()


def test_an_error_of_a_training_is_raised_here(tmp_path):
    trainings = importlib.import_module("trainings")
    with pytest.raises(ValueError, match="image size"):
        trainings.pretraining(tmp_path, "Ti", 33, 2, trainings.device_config("cpu")).__enter__()


def test_products_are_all_that_count_flops(training):
    products = importlib.import_module("products").Products()
    counted = FlopCounterMode(display=False)
    training.advance(within=counted)
    training.advance(within=products)
    assert products.flops() == pytest.approx(counted.get_total_flops(), rel=1e-5)
    products.replay()()


def test_products_by_hand():
    module = importlib.import_module("products")
    left, right = torch.randn(3, 5), torch.randn(7, 5)
    with module.Products() as products:
        torch.nn.functional.linear(left, right, torch.randn(7))
        left @ right.T
        left + 1
    assert [product.flops for product in products.products] == [2 * 3 * 5 * 7] * 2
    assert products.products[1].operands[1].strides == (1, 5)


def test_fused_attention_is_two_products_forward_and_five_backward():
    module = importlib.import_module("products")
    q, k, v = (torch.randn(2, 3, 4, 6, requires_grad=True) for _ in range(3))
    with module.Products() as products:
        output = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        assert len(products.products) == 2
        output.sum().backward()
    assert len(products.products) == 7
    assert products.flops() == 7 * 2 * (2 * 3) * 4 * 4 * 6


def test_memory_alive_by_hand():
    memory = importlib.import_module("memory")
    with memory.FakeTensorMode(), memory.Alive() as alive:
        first = torch.empty(100)  # 400 bytes
        second = first + 1
        del first
        third = second.view(10, 10) * 2
    assert alive.peak == 800
    del second, third


def test_checkpointing_needs_less_memory():
    memory, sizes = importlib.import_module("memory"), SIZES | {"image_size": 64, "batch": 16}
    with_, without = (
        memory.estimated(Namespace(**sizes, precision="32", checkpointing=checkpointing))
        for checkpointing in (True, False)
    )
    assert with_ < without


def test_disagreement_is_found():
    steps = importlib.import_module("steps")
    ours, published = [{"loss": 1.0}, {"loss": 2.5}], [{"loss": v} for v in (1.0, 1.0, 2.0, 2.0)]
    assert steps.agree(ours, published, steps=2) == {"loss": 0.25}


def test_the_chain_is_read_from_its_record():
    table = importlib.import_module("table")
    seconds = json.loads(table.CHAIN.read_text(encoding="utf-8"))["seconds"]
    assert table.chain_part(Namespace()).rows[0].now == f"{sum(seconds.values()) / 60:.0f} minutes"
