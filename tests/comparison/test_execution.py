from pathlib import Path

import pytest

from beit.command import presets
from beit.comparison import execution
from beit.comparison.execution import command, environments
from beit.comparison.plan import unfold
from beit.comparison.planned_runs import STAGE_VERBS, Chain, planned_chains


@pytest.fixture
def chains(plan: Path) -> list[Chain]:
    return planned_chains(unfold(presets.read_yaml(plan), str(plan), STAGE_VERBS), str(plan))


def test_arguments_are_those_of_the_command(chains: list[Chain], tmp_path: Path) -> None:
    run = chains[2].runs["pretrain"]
    tokenizer = run.references["tokenizer"]
    assert command(run, tmp_path, "")[1:] == [
        *("-m", "beit", "pretrain", "--preset=shapes-tiny", "--model.head_layers=0"),
        *("--run.seed=1", f"--tokenizer={tmp_path}/runs/{tokenizer}"),
        f"--run.output={tmp_path}/runs/{run.name}",
    ]
    launched = command(run, tmp_path, "torchrun --nproc_per_node 2 -m beit")
    assert launched[:5] == ["torchrun", "--nproc_per_node", "2", "-m", "beit"]


def test_interrupted_training_resumes_and_a_probe_restarts(
    chains: list[Chain], tmp_path: Path
) -> None:
    runs = chains[0].runs
    begun, probed = (runs[stage].directory(tmp_path) for stage in ("pretrain", "probe"))
    for directory in (begun, probed):
        directory.mkdir(parents=True)
    command(runs["pretrain"], tmp_path, "")
    assert not begun.exists()  # without a configuration it cannot resume
    begun.mkdir()
    (begun / "config.yaml").write_text("run: {}")
    resumed = command(runs["pretrain"], tmp_path, "")
    assert resumed[1:] == ["-m", "beit", "pretrain", f"--resume={begun}"]
    (probed / "probe.json").write_text("{}")
    assert "--seed=0" in command(runs["probe"], tmp_path, "")
    assert not probed.exists()


def test_runs_share_gpus_or_use_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution.torch.cuda, "device_count", lambda: 0)
    assert environments(1, "") == [{}]
    assert environments(2, "") == [{"OMP_NUM_THREADS": "1"}] * 2
    monkeypatch.setattr(execution.torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    gpus = [environment["CUDA_VISIBLE_DEVICES"] for environment in environments(3, "")]
    assert gpus == ["4", "6", "4"]
    assert environments(2, "torchrun") == [{}, {}]
