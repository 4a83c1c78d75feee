"""What trials of a training say of its time and memory."""

from dataclasses import replace

import pytest

from beit.diagnosis.doctor import read_options
from beit.diagnosis.prediction import Case, Machine, predict, scaled, seconds_of_step
from beit.diagnosis.trial import Measured


def test_a_step_takes_what_takes_longest():
    measured = Measured("cpu", threads=2)
    one, four = Machine(1, 8e9), Machine(4, 8e9)
    assert seconds_of_step(measured, four, 1.0, 0.5, 0) == 1.5
    assert seconds_of_step(measured, four, 1.0, 3.0, 2) == 1.5  # reading
    assert seconds_of_step(measured, four, 1.0, 0.5, 2) == 1.0  # the step
    alone = replace(measured, threads=1)
    assert seconds_of_step(alone, Machine(2, 8e9), 1.0, 1.5, 4) == 1.25  # both cores, by both
    assert seconds_of_step(measured, one, 1.0, 0.5, 2) == 1.5  # the only core
    on_gpu = Measured("cuda", transfer=0.2)
    assert seconds_of_step(on_gpu, four, 0.1, 3.0, 0) == 3.0  # it reads ahead
    assert seconds_of_step(on_gpu, four, 0.1, 3.0, 16) == 0.75  # by four cores
    assert seconds_of_step(on_gpu, four, 0.1, 0.1, 4) == 0.2  # the copy


def test_threads_of_a_step_wait_for_each_other_while_workers_have_their_cores():
    measured, two = Measured("cpu", threads=2), Machine(2, 8e9)
    step, reading = 0.178, 0.624  # 16 photos of 12 megapixels: 0.66 to 0.85 s by the clock
    assert seconds_of_step(measured, two, step, reading, 2) == pytest.approx(0.77, abs=0.01)
    assert seconds_of_step(replace(measured, threads=1), two, step, reading, 2) < 0.41
    assert seconds_of_step(measured, two, step, 0.003, 2) == pytest.approx(step, rel=0.05)


def settings(**changes):
    words = ["--data=d", "--tokenizer=t", "--preset=cifar10-cpu", "--verb=pretrain"]
    words += [f"--{name}={value}" for name, value in changes.items()]
    return read_options(words).config


def measured(**changes) -> Measured:
    seconds = {"read": 0.02, "disk": 0.03, "decode": 0.06, "again": 0.05, "views": 0.01}
    parts = {"masks, teacher or tokenizer": 0.1, "forward": 0.2, "backward": 0.3, "optimiser": 0.1}
    values = {
        "num_images": 100,
        "reading": seconds,
        "parts": parts,
        "file_bytes": 1e6,
        "image_bytes": 3e6,
    }
    values |= {
        "worker": 200_000_000,
        "host": 1_100_000_000,
        "stepping": 1_000_000_000,
        "checkpoint": 10_000_000,
        "once": 9.0,
    }
    return Measured(**(values | changes))


def case(config, found=None, memory=8e9):
    return Case(config, found or measured(), Machine(4, memory), 1000, 1)


def test_time_is_that_of_all_steps_and_validations():
    config = settings(**{"data.num_workers": 2, "optim.batch_size": 10, "optim.epochs": 4})
    found = predict(case(config), (0, 1, 0))
    assert found.reading == pytest.approx((0.09, 0.06))
    assert found.step == pytest.approx(0.7)
    assert found.first == pytest.approx(10 / 0.7) and found.later == pytest.approx(10 / 0.7)
    assert found.seconds == pytest.approx(400 * 0.7 + 9)
    assert found.workers == 1  # 0.6 s of reading beside 0.7 s of the step
    alone = replace(config, data=replace(config.data, num_workers=0))
    serial = predict(case(alone), (50, 3, 20))
    assert serial.first == pytest.approx(10 / 1.6) and serial.later == pytest.approx(10 / 1.3)
    evaluated = (50 * 3 + 20) * (0.3 / 10 + 0.06)
    assert serial.seconds == pytest.approx(100 * 1.6 + 300 * 1.3 + evaluated + 9)


def test_files_that_memory_does_not_hold_are_read_from_the_disk_again():
    config = settings(**{"optim.batch_size": 10})
    found = predict(case(config, memory=1e9), (0, 1, 0))  # 1 GB of files
    assert found.reading[1] == pytest.approx(0.05 + 0.03 + 0.01)


def test_accumulation_repeats_all_but_the_optimiser():
    config = settings(**{"optim.batch_size": 40, "optim.accumulate": 4})
    found = predict(case(config), (0, 1, 0))
    assert found.step == pytest.approx(4 * 0.6 + 0.1)


def test_memory_is_that_of_the_process_its_workers_and_the_images():
    config = settings(**{"data.num_workers": 2, "optim.batch_size": 10})
    found = predict(case(config, measured(view_bytes=1000)), (0, 1, 0))
    assert found.host == pytest.approx(1.4e9, rel=1e-3)
    held = predict(case(config, measured(in_memory=True)), (100, 1, 0))
    assert held.host == pytest.approx(1.4e9 + (900 + 100) * 3e6)
    beside = predict(case(config), (100, 1, 0))
    assert beside.host == pytest.approx(1.4e9 + 100 * 3e6, rel=1e-3)  # for validation
    alone = replace(config, data=replace(config.data, num_workers=0))
    found = predict(case(alone), (0, 1, 0))
    assert found.host == 1.1e9  # at the report
    assert held.reading == (0.01, 0.01)
    assert held.seconds > 1100 * 0.08 / 4  # all are decoded first


def test_two_small_trials_say_what_a_large_batch_takes():
    small = measured(stepping=1_000_000_000)
    double = measured(stepping=1_080_000_000, parts={"forward": 0.4, "optimiser": 0.1})
    found = scaled([(8, small), (16, double)], 64)
    assert found.parts == {"forward": pytest.approx(1.6), "optimiser": 0.1}
    assert found.stepping == 1_080_000_000 + 48 * 10_000_000
