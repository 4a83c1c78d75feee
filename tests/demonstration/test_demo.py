from pathlib import Path
from typing import Any

import pytest

from beit.demonstration import demo, sets
from beit.pretraining import pretrain
from beit.pretraining.config import Config as PretrainConfig
from beit.pretraining.targets import TargetConfig
from beit.run.watching import watched_by
from beit.tokenizer import vqkd


def test_trainings_are_fitted_to_the_number_of_images() -> None:
    options = ["--tokenizer=runs/t", "--data.train=[x]", "--check.every=0"]
    config = demo.from_preset("pretrain", PretrainConfig, options)
    assert (config.tokenizer, config.data.train, config.check.every) == ("runs/t", "[x]", 0)
    few = demo.fitted(config, 300).optim
    assert (few.epochs, few.batch_size) == (133, 75)  # 2 epochs of 20,000 images
    assert few.warmup_epochs / few.epochs == pytest.approx(0.2 * 20_000 / 300 / 133)
    assert demo.fitted(config, 20_000) == config


def test_the_first_free_name_is_taken(tmp_path: Path) -> None:
    assert demo.first_free(tmp_path / "demo") == tmp_path / "demo"
    for name in ("demo", "demo-2"):
        (tmp_path / name).mkdir()
    assert demo.first_free(tmp_path / "demo") == tmp_path / "demo-3"


def test_probes_have_enough_images_for_an_accuracy_when_the_time_is_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(demo, "seconds_to_read", lambda images: 1.0)
    images = demo.open_source("shapes://300?size=64")
    assert demo.probe_limits(images, "1s") == ["--limit=100", "--test_limit=50"]
    assert demo.probe_limits(images, "1h") == ["--limit=600", "--test_limit=300"]


def test_an_output_that_exists_is_refused_with_what_the_demo_has(tmp_path: Path) -> None:
    with pytest.raises(FileExistsError, match=r"name another directory$"):
        demo.run(demo.Config(data="photos", output=str(tmp_path)))


def test_an_interrupted_demo_with_the_same_settings_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs = []

    def stop(config: vqkd.Config) -> None:
        outputs.append(Path(config.run.output).parent.name)
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo.vqkd, "run", stop)
    first, other = demo.Config(data="shapes://100?size=64"), demo.Config(data="shapes://90?size=64")
    for config in (first, first, other, first):
        with pytest.raises(KeyboardInterrupt):
            demo.run(config)
    (tmp_path / "runs/demo/report.html").touch()
    with pytest.raises(KeyboardInterrupt):
        demo.run(first)
    assert outputs == ["demo", "demo", "demo-2", "demo", "demo-3"]


def test_a_demo_of_drawn_scenes_does_not_resume_with_cifar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs = []

    def stop(config: vqkd.Config) -> None:
        outputs.append((Path(config.run.output).parent.name, config.data.train))
        assert not config.data.shrink  # images of the demo's own are small
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo.vqkd, "run", stop)
    drawn, fetched = sets.Sets("shapes://100", "shapes://9"), sets.Sets("shapes://90", "shapes://9")
    for found in (drawn, fetched, drawn):
        monkeypatch.setattr(demo, "find_sets", lambda data, cache, found=found: found)
        with pytest.raises(KeyboardInterrupt):
            demo.run(demo.Config())
    assert outputs == [
        ("demo", "shapes://100"),
        ("demo-2", "shapes://90"),
        ("demo", "shapes://100"),
    ]


def test_its_trainings_resume_or_are_taken_as_they_are(
    tmp_path: Path, pretrain_config: Any, same_bits: Any
) -> None:
    whole, half = (
        pretrain_config(tmp_path / name, "", target=TargetConfig("pixels")) for name in "ab"
    )
    metrics = demo.trained(pretrain, whole).metrics

    def stop(step: int, figures: object) -> None:
        if step == 6:  # the last checkpoint is of step 4
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), watched_by(stop):
        pretrain.run(half)
    resumed, taken = demo.trained(pretrain, half), demo.trained(pretrain, half)
    same_bits(tmp_path / "a", tmp_path / "b")
    assert resumed.metrics == taken.metrics == metrics
    assert [part.title for part in resumed.sections] == [part.title for part in taken.sections]


def test_nothing_is_made_of_a_folder_that_does_not_exist(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "demo"
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        demo.run(demo.Config(data=str(tmp_path / "absent"), output=str(output)))
    with pytest.raises(ValueError, match="for minutes write 3m"):
        demo.run(demo.Config(data="shapes://100?size=64", output=str(output), budget="3"))
    assert not output.exists()
    assert not capsys.readouterr().out


def test_a_training_after_a_slow_one_has_a_part_of_its_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    budgets, seconds = [], iter([0.0, 10.0, 300.0])
    monkeypatch.setattr(demo.time, "monotonic", lambda: next(seconds, 300.0))

    def slow(training: object, config: vqkd.Config) -> demo.Trained:
        budgets.append(config.run.budget)
        if len(budgets) == 2:
            raise KeyboardInterrupt
        return demo.Trained(tmp_path / "tokenizer", {}, [])

    monkeypatch.setattr(demo, "trained", slow)
    config = demo.Config("shapes://100?size=64", str(tmp_path / "demo"), budget="60s")
    with pytest.raises(KeyboardInterrupt):
        demo.run(config)
    assert budgets == ["22s", "10s"]


def test_unreadable_images_are_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def stop(config: object) -> None:
        seen.append(config)
        raise RuntimeError

    monkeypatch.setattr(demo.vqkd, "run", stop)
    data = "shapes://100?size=64"
    config = demo.Config(data=data, output=str(tmp_path / "demo"), max_unreadable=0.25)
    with pytest.raises(RuntimeError):
        demo.run(config)
    assert seen[0].data.max_unreadable == 0.25
    assert seen[0].data.shrink


def test_few_labels_compare_two_starts_of_one_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def finetuned(config: demo.FinetuneConfig) -> demo.Trained:
        seen.append(config)
        return demo.Trained(Path(config.run.output), {"val_top1": 0.75 - len(seen) / 4}, [])

    monkeypatch.setattr(demo.finetune, "run", finetuned)
    pretrain_config = demo.from_preset("pretrain", PretrainConfig, ["--tokenizer=runs/t"])
    pretrained = demo.Trained(tmp_path / "pretrain", {}, [])
    data = ["--data=shapes://300", "--validation=shapes://60"]
    few = demo.finetune_both(pretrain_config, pretrained, data, 300)
    assert few == demo.FewLabels(300, pretrained=0.5, fresh=0.25)
    assert few.figure() == ("+25.0 points", "50.0% right, from random weights 25.0%")
    start, fresh = seen
    assert start.init == str(tmp_path / "pretrain") and fresh.init is None
    assert fresh.backbone == pretrain_config.model.backbone
    assert start.optim == fresh.optim and start.data == fresh.data
    assert start.optim.epochs == 33  # 20 of 500 labels
    assert demo.finetune.build_mixer(start.mix, 10, 75) is None  # which would need even batches
