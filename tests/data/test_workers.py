import faulthandler
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
from functools import partial
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from beit.data.workers import computed

LARGE = 300_000  # bytes; more than a socket holds


class Pair(NamedTuple):
    first: Tensor
    second: Tensor
    names: list[str]


def pair(number):
    pixels = torch.full((2, LARGE // 2), number, dtype=torch.uint8)
    return Pair(pixels, pixels, [str(number)])


def results(compute, tasks, workers):
    return list(computed(compute, tasks, workers, str))


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("count", [0, 1, 8])
def test_results_come_in_order_for_any_number_of_workers(workers, count):
    made = results(pair, range(count), workers)
    assert [out.names for out in made] == [[str(number)] for number in range(count)]
    for number, out in enumerate(made):
        assert out.first.eq(number).all()
        assert out.first.shape == (2, LARGE // 2)
        assert out.second is out.first
    assert multiprocessing.active_children() == []


def test_tensors_of_all_kinds_arrive():
    whole = torch.arange(12, dtype=torch.int64).view(3, 4)
    sent = [whole, whole.T, whole[1], whole[:, 1], torch.empty(0, 3, 0, 0), torch.tensor(0.5)]
    (received,) = results(lambda _: sent, [0], 1)
    for before, after in zip(sent, received, strict=True):
        assert torch.equal(before, after)
        assert before.dtype == after.dtype
        assert not after.is_shared()  # nothing in /dev/shm
        after += 1  # its own memory, to write as well


def test_workers_are_two_tasks_ahead_and_no_further():
    drawn = []
    tasks = (drawn.append(number) or number for number in range(20))
    stream = computed(abs, tasks, 2, str)
    assert drawn == []
    for number in range(10):
        assert next(stream) == number
        assert len(drawn) <= number + 4
    stream.close()
    assert multiprocessing.active_children() == []


def test_one_thread_each():
    assert results(lambda _: torch.get_num_threads(), range(2), 2) == [1, 1]


def inverse(number):
    return 6 / (number - 2)


def test_an_error_comes_in_its_turn_with_the_traceback_of_the_worker():
    stream = computed(inverse, range(6), 2, str)
    assert [next(stream), next(stream)] == [-3, -6]
    with pytest.raises(ZeroDivisionError, match=r"division by zero(.|\n)*in inverse") as caught:
        next(stream)
    assert str(caught.value) == "division by zero"
    assert multiprocessing.active_children() == []


class OddError(OSError):
    """An error that cannot be unpickled."""

    def __init__(self, name, reason):
        super().__init__(f"{name}: {reason}")


def raising(error, _):
    raise error


def test_results_and_errors_that_cannot_be_sent_are_errors_too(capfd):
    with pytest.raises(Exception, match="pickle"):
        results(lambda _: lambda: None, [0], 1)
    with pytest.raises(ChildProcessError, match=r"worker 1 of 1 .* died \(exit code 1\) while"):
        results(partial(raising, OddError("a.png", "broken")), [0], 1)
    assert "a.png: broken" in capfd.readouterr().err


def killed(number, signum):
    if number == 5:
        faulthandler.disable()
        os.kill(os.getpid(), signum)
    return number


@pytest.mark.parametrize(
    ("signum", "hint"), [("SIGKILL", "; if memory ran out, use fewer workers"), ("SIGSEGV", "$")]
)
def test_the_death_of_a_worker_names_signal_and_task(signum, hint):
    dying = partial(killed, signum=getattr(signal, signum))
    named = "image {}.png".format
    expected = rf"^data worker \d of 2 \(process \d+\) died \({signum}\) while it read image 5.png"
    with pytest.raises(ChildProcessError, match=expected + hint):
        list(computed(dying, range(100), 2, named))
    assert multiprocessing.active_children() == []


def test_an_idle_worker_that_dies_is_noticed():
    stream = computed(abs, range(100), 2, str)
    next(stream)
    idle = multiprocessing.active_children()[0]
    idle.kill()
    idle.join()
    with pytest.raises(ChildProcessError, match=r"died \(SIGKILL\)"):
        list(stream)


def cut_short(number):
    """Die in the middle of sending the result."""
    dump = pickle.dump

    def part(sizes, stream):
        dump(sizes, stream)
        stream.write(bytes(LARGE // 3))
        stream.flush()
        os.kill(os.getpid(), signal.SIGKILL)

    pickle.dump = part
    return pair(number)


def test_a_worker_that_dies_while_it_sends_is_noticed():
    with pytest.raises(ChildProcessError, match=r"died \(SIGKILL\) while it read 0"):
        results(cut_short, range(3), 1)


PROGRAM = """
import multiprocessing, signal, time, torch
from beit.data.workers import computed

signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in background shells

def slow(number):
    time.sleep(0.05 * number)
    return torch.zeros(300_000)

streams = [computed(slow, range(1000), 2, str) for _ in range(2)]
for stream in streams:
    next(stream)
print(len(multiprocessing.active_children()), flush=True)
for _ in zip(*streams):
    pass
"""


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGINT])
def test_no_worker_outlives_the_main_process(signum):
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command = [sys.executable, "-c", PROGRAM]
    with subprocess.Popen(command, **streams, start_new_session=True) as process:
        assert process.stdout.readline() == "4\n"
        if signum == signal.SIGINT:
            os.killpg(process.pid, signum)  # as Ctrl-C does
        else:
            process.send_signal(signum)
        _, errors = process.communicate(timeout=60)  # the workers hold these streams, too
    assert process.returncode == -signum
    assert errors.count("Traceback") == (signum == signal.SIGINT)


FORKED = """
import os, signal
from beit.data.workers import computed

fork = os.fork

def forked():
    child = fork()  # in the worker and in the main process: a signal before the next line
    os.kill(os.getpid(), signal.SIGINT)
    return child

os.fork = forked
next(computed(abs, range(4), 2, str))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere workers are not forked")
def test_a_signal_while_a_worker_starts_ends_the_main_process_alone():
    command = [sys.executable, "-c", FORKED]
    process = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=60)
    assert process.returncode == -signal.SIGINT
    assert process.stderr.count("Traceback") == 1
    assert "KeyboardInterrupt" in process.stderr
