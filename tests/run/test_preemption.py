"""Signals to a training: what is saved, what is raised, and that the resumed run is the same."""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import distributed

import beit
from beit import cli
from beit.pretraining import loop, pretrain
from beit.pretraining.targets import TargetConfig
from beit.run import preemption
from beit.run.agreement import Agreement
from beit.run.directory import RunDirectory
from beit.run.finished import is_finished
from beit.run.preemption import Interrupted, Preempted, _Stop, stoppable
from beit.run.progress import Progress
from beit.run.resume import resume


@pytest.fixture
def config(pretrain_config, tmp_path):
    """A run of ten steps on pixels: checkpoints at 4, 8, 10, validations at 5, 10."""
    return pretrain_config(tmp_path / "run", "", target=TargetConfig("pixels"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory, pretrain_config):
    run = tmp_path_factory.mktemp("whole") / "run"
    pretrain.run(pretrain_config(run, "", target=TargetConfig("pixels")))
    return run


@pytest.fixture
def signal_at(monkeypatch):
    """Send a signal within a step, before the step is saved."""

    def arrange(step, number):
        update = Progress.update

        def signalled(self, at, *rest):
            if at == step:
                signal.raise_signal(number)
            return update(self, at, *rest)

        monkeypatch.setattr(Progress, "update", signalled)

    return arrange


@pytest.mark.parametrize(
    ("step", "number", "code"),
    [(3, signal.SIGTERM, 75), (5, signal.SIGUSR1, 75), (7, signal.SIGINT, 130)],
)
def test_a_signal_in_a_step_loses_nothing(
    step, number, code, config, whole, signal_at, monkeypatch, same_bits, capsys
):
    signal_at(step, number)
    stop = Interrupted if number == signal.SIGINT else Preempted
    with pytest.raises(stop) as raised, stoppable():
        pretrain.run(config)
    run = RunDirectory(Path(config.run.output))
    name = f"{signal.Signals(number).name}{' (Ctrl-C)' * (code == 130)}"
    assert str(raised.value) == (
        f"stopped by {name}; the checkpoint of step {step} is saved; go on with: beit pretrain "
        f"--resume {run.path}"
    )
    assert run.saved_step() == step  # at 5, too, where a validation follows
    monkeypatch.undo()
    resume(pretrain, run.path)
    same_bits(whole, run.path)


def test_what_runs_trainings_says_itself_how_to_resume(config, signal_at):
    signal_at(3, signal.SIGINT)
    with pytest.raises(Interrupted, match=r"step 3 is saved; again$"), stoppable("again"):
        pretrain.run(config)


def test_a_signal_in_a_validation_stops_at_once(config, whole, monkeypatch, same_bits):
    def signalled(*_):
        signal.raise_signal(signal.SIGTERM)
        raise AssertionError("the validation went on")

    monkeypatch.setattr(loop, "validate", signalled)
    with pytest.raises(Preempted, match="checkpoint of step 5 is saved"), stoppable():
        pretrain.run(config)
    monkeypatch.undo()
    resume(pretrain, config.run.output)
    same_bits(whole, Path(config.run.output))


def test_a_signal_before_the_first_step_leaves_nothing(config, monkeypatch):
    def signalled(*_):
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(pretrain, "build", signalled)
    with pytest.raises(Preempted, match=r"run began; start it again$"), stoppable():
        pretrain.run(config)
    assert not Path(config.run.output).exists()


def test_a_trial_is_stopped_at_once(config, signal_at):
    signal_at(3, signal.SIGTERM)  # of the trial, which measures the time of a step
    budget = replace(config, run=replace(config.run, budget="1h"))
    with pytest.raises(Preempted, match=r"^stopped by SIGTERM$"), stoppable():
        pretrain.run(budget)


class Toy:
    """A training of several processes, in a step or not."""

    def __init__(self, at_once):
        self.may_stop_at_once = lambda: at_once


def test_a_second_signal_stops_at_once_but_one_that_came_twice_does_not(monkeypatch):
    seconds = [10.0]
    monkeypatch.setattr(preemption.time, "monotonic", lambda: seconds[0])
    stop = _Stop("")
    stop.training = Toy(False)
    stop.handle(signal.SIGTERM, None)
    stop.handle(signal.SIGINT, None)
    seconds[0] += 0.5
    stop.handle(signal.SIGINT, None)  # torchrun passes on what the terminal has sent to all
    assert stop.asked == signal.SIGTERM
    seconds[0] += 1.0
    with pytest.raises(Interrupted):
        stop.handle(signal.SIGINT, None)
    monkeypatch.setattr(preemption.os, "getpid", lambda: 1)
    stop.handle(signal.SIGTERM, None)  # in a worker that was forked


class Finalized:
    def __del__(self):
        signal.raise_signal(signal.SIGTERM)


def finalize():
    """Python prints an error that is raised in a finalizer, and goes on."""
    Finalized()


def swallow():
    with suppress(Preempted):
        signal.raise_signal(signal.SIGTERM)


def convert():
    try:
        signal.raise_signal(signal.SIGTERM)
    except Preempted:
        raise ValueError("no shape") from None


@pytest.mark.parametrize("lose", [finalize, swallow, convert])
def test_a_stop_is_not_lost_where_it_comes_up(lose, capsys):
    hook = sys.unraisablehook
    with pytest.raises(Preempted, match="SIGTERM"), stoppable():
        lose()
        for _ in range(1000):
            time.sleep(0.01)
    assert sys.unraisablehook is hook
    assert not capsys.readouterr().err


def test_a_stop_that_is_underway_is_not_disturbed():
    done = []
    with pytest.raises(Preempted), stoppable():
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            time.sleep(4 * preemption.AGAIN)
            done.append("cleared up")
    assert done
    with pytest.raises(ValueError, match="no signal"), stoppable():
        raise ValueError("no signal")


def test_handlers_are_put_back_and_ignored_signals_stay_ignored(monkeypatch):
    before = [signal.getsignal(number) for number in preemption.SIGNALS]
    ignored = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        with stoppable():
            assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN
            inner = signal.getsignal(signal.SIGTERM)
            with stoppable():
                assert signal.getsignal(signal.SIGTERM) is inner
            assert signal.getsignal(signal.SIGTERM) is inner
    finally:
        signal.signal(signal.SIGUSR1, ignored)
    assert [signal.getsignal(number) for number in preemption.SIGNALS] == before
    handlers = []

    def elsewhere():
        with stoppable():
            handlers.extend(signal.getsignal(number) for number in preemption.SIGNALS)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert handlers == before


def test_processes_agree_a_step_later(tmp_path, monkeypatch):
    distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        agreement = Agreement(torch.device("cpu"))
        asked = [0, signal.SIGTERM, 0, 0]
        told = [agreement.highest(number, step < 4) for step, number in enumerate(asked, 1)]
        assert told == [0, 0, signal.SIGTERM, 0]
    finally:
        distributed.destroy_process_group()


def test_the_command_that_goes_on_has_its_launcher(monkeypatch, tmp_path):
    run = RunDirectory.create(tmp_path / "a b", {}, {"verb": "pretrain"})
    stop = _Stop("")
    stop.run = run.path
    assert str(stop.error(signal.SIGTERM)) == (
        f"stopped by SIGTERM; no checkpoint yet; go on with: beit pretrain --resume '{run.path}'"
    )
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert "go on with: torchrun --nproc_per_node 8 -m beit pretrain" in stop._state()
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "slurm-7.0")
    assert "go on with: srun beit pretrain" in stop._state()
    run.weights_file.touch()
    assert str(stop.error(signal.SIGTERM)) == "stopped by SIGTERM"


def test_a_process_that_fabric_has_started_does_not_end_with_an_error(monkeypatch):
    """Fabric kills the first process, which says what is saved, if another one fails."""

    def codes(together):
        errors = (_Stop("").error(number, together) for number in (signal.SIGTERM, signal.SIGINT))
        return [error.exit_code for error in errors]

    assert codes(True) == codes(False) == [75, 130]
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert (codes(True), codes(False)) == ([0, 0], [75, 130])
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert codes(True) == [75, 130]


def test_a_run_is_finished_with_its_weights_and_no_later_checkpoint(tmp_path):
    run = RunDirectory.create(tmp_path / "run", {}, {"verb": "pretrain"})
    assert run.saved_step() is None
    (run.checkpoints / "step-000000007.pt").touch()
    assert (run.saved_step(), is_finished(run)) == (7, False)
    run.weights_file.touch()
    os.utime(run.weights_file, (9e9, 9e9))
    assert is_finished(run)
    (run.checkpoints / "step-000000008.pt").touch()
    os.utime(run.checkpoints / "step-000000008.pt", (9e9 + 1, 9e9 + 1))
    assert not is_finished(run)


@pytest.mark.parametrize("verb", ["presets", "pretrain", "ablate"])
def test_only_trainings_say_how_they_go_on(verb, monkeypatch, capsys):
    def interrupted(*_):
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(cli, "find_module", interrupted)
    assert cli.main([verb]) == 130
    advice = {"ablate": " by SIGINT (Ctrl-C); repeat the command to resume"}
    advice["pretrain"] = " by SIGINT (Ctrl-C)"
    assert capsys.readouterr().err == f"beit: stopped{advice.get(verb, '')}\n"


def test_an_error_in_clearing_up_is_told_too(monkeypatch, capsys):
    def full(*_):
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            raise OSError(28, "No space left on device", "runs/x/metrics.jsonl")

    monkeypatch.setattr(cli, "find_module", full)
    assert cli.main(["pretrain"]) == 130
    told, stopped = capsys.readouterr().err.splitlines()
    assert told == "beit: while it stopped: runs/x/metrics.jsonl: No space left on device"
    assert stopped == "beit: stopped by SIGINT (Ctrl-C)"


def test_in_python_the_command_is_a_call(monkeypatch, caplog):
    def stopped(*_):
        raise Preempted("stopped by SIGTERM; go on with: beit pretrain --resume runs/x")

    monkeypatch.setattr(cli, "find_module", stopped)
    with pytest.raises(SystemExit) as raised:
        beit.pretrain()
    assert raised.value.code == 75
    assert str(raised.value) == 'stopped by SIGTERM; go on with: beit.resume("runs/x")'
    assert caplog.messages == [str(raised.value)]  # Python does not show it
    monkeypatch.setattr(cli, "find_module", lambda *_: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt, match="stopped by SIGINT"):
        beit.pretrain()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


# ── real processes ──────────────────────────────────────────────────────────────────────────────

SHORT = [
    *("--preset", "shapes-tiny", "--target.kind", "pixels", "--check.every", "0"),
    *("--data", "shapes://197?size=32", "--validation", "shapes://40?size=32&seed=1"),
    *("--data.num_workers", "2", "--device.precision", "32-true"),
    *("--optim.batch_size", "16", "--optim.epochs", "5"),
    *("--run.log_every", "3", "--run.checkpoint_every", "7"),
]


def start(run: Path, processes: int, *options: str) -> "subprocess.Popen[str]":
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command = [sys.executable, *(launcher if processes > 1 else []), "-m", "beit", "pretrain"]
    return subprocess.Popen(
        [*command, *SHORT, "--output", str(run), "--resume", "auto", *options],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def ended(process: "subprocess.Popen[str]") -> tuple[int, str]:
    _, errors = process.communicate(timeout=300)
    return process.returncode, errors


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("processes", [1, 2])
def test_real_processes_stop_and_go_on_to_the_same_bits(processes, tmp_path, same_bits):
    """Of two processes one gets the signal; of one its loader workers get it too."""
    assert ended(start(tmp_path / "whole", processes))[0] == 0
    training, log = start(tmp_path / "run", processes), tmp_path / "run" / "metrics.jsonl"
    while not (log.exists() and '"step": 6' in log.read_text()):
        assert training.poll() is None, ended(training)
        time.sleep(0.005)
    if processes == 1:
        os.killpg(training.pid, signal.SIGTERM)
    else:
        os.kill(children(training.pid)[1], signal.SIGTERM)
    code, errors = ended(training)
    assert "beit: stopped by SIGTERM; the checkpoint of step " in errors
    assert code == 75 if processes == 1 else "exitcode  : 75" in errors, errors
    assert ended(start(tmp_path / "run", processes))[0] == 0
    same_bits(tmp_path / "whole", tmp_path / "run")
    code, errors = ended(start(tmp_path / "run", processes))
    assert code == 0
    assert "is finished: nothing is left to train" in errors
