import random

import numpy as np
import torch

from beit.data.order import (
    epoch_order,
    sample_generator,
    seed_torch,
    seeded,
    step_generator,
)


def numbers(generator):
    return torch.rand(4, generator=generator).tolist()


def test_epoch_order_is_a_permutation_of_its_own():
    order = epoch_order(11, seed=3, epoch=5)
    assert order.dtype == torch.int64
    assert order.sort().values.tolist() == list(range(11))
    assert order.tolist() == epoch_order(11, seed=3, epoch=5).tolist()
    assert order.tolist() != epoch_order(11, seed=3, epoch=6).tolist()
    assert order.tolist() != epoch_order(11, seed=4, epoch=5).tolist()


def test_generators_depend_on_each_argument_and_nothing_else():
    torch.manual_seed(1)
    streams = [
        numbers(generator)
        for generator in (
            sample_generator(0, 1, 2),
            sample_generator(0, 2, 1),
            sample_generator(1, 0, 2),
            sample_generator(0, 12, 0),
            sample_generator(0, 1, 2, repeat=1),
            sample_generator(0, 1, 2, repeat=2),
            step_generator(0, 12, "masks"),
            step_generator(0, 12, "revival"),
            step_generator(1, 2, "masks"),
        )
    ]
    assert len({tuple(stream) for stream in streams}) == len(streams)
    torch.manual_seed(2)
    assert numbers(sample_generator(0, 1, 2)) == streams[0]
    assert numbers(step_generator(0, 12, "masks")) == streams[6]


def test_seeds_are_fixed_for_good():
    """A run that goes on under a later version must draw the same numbers."""
    assert sample_generator(0, 1, 2).initial_seed() == SAMPLE_SEED
    assert step_generator(7, 123, "masks").initial_seed() == STEP_SEED
    assert epoch_order(7, seed=3, epoch=2).tolist() == [3, 2, 1, 5, 6, 4, 0]


def draws() -> tuple[float, float, float]:
    return random.random(), float(np.random.random()), float(torch.rand(()))


def test_global_states_are_seeded_inside_and_restored_at_the_end():
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    undisturbed = draws()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    with seeded(sample_generator(0, 1, 2)):
        inside = draws()
    assert draws() == undisturbed
    with seeded(sample_generator(0, 1, 2)):
        assert draws() == inside
    with seeded(sample_generator(0, 1, 3)):
        assert not {*draws()} & {*inside}


def test_torch_is_seeded_by_a_generator():
    drawn = []
    for index in (2, 3, 2):
        seed_torch(sample_generator(0, 1, index))
        drawn.append(float(torch.rand(())))
    assert drawn[0] == drawn[2] != drawn[1]


SAMPLE_SEED = 12662170671434128924
STEP_SEED = 1276809698809704104
