import json
from dataclasses import asdict, fields, replace

import pytest
import timm
import torch
from safetensors.torch import save_file

from beit.pretraining import pretrain
from beit.pretraining.targets import TargetConfig
from beit.run.changes import FREE, check_settings, keep_settings, recorded, weight_changes
from beit.run.directory import RunConfig, RunDirectory
from beit.run.resume import resume
from beit.tokenizer import vqkd as train_tokenizer
from beit.weights.teachers import TeacherConfig


def test_of_a_run_only_seed_and_skipping_lead_to_other_weights():
    others = {f"run.{field.name}" for field in fields(RunConfig)} - set(FREE)
    assert others == {"run.seed", "run.skip_spikes"}


@pytest.fixture
def run(tmp_path, pretrain_config):
    config = pretrain_config(tmp_path / "run", "runs/tokenizer")
    config = replace(config, data=replace(config.data, train="photos?range=0:4095", validation=""))
    return RunDirectory.create(tmp_path / "run", asdict(config), {"verb": "pretrain"})


def edit(run, before, now):
    text = run.config_file.read_text()
    assert text.count(before) == 1, before
    run.config_file.write_text(text.replace(before, now))


@pytest.mark.parametrize(
    ("before", "now", "named"),
    [
        ("seed: 0", "seed: 1", "run.seed: 0 -> 1"),
        ("learning_rate: 0.001", "learning_rate: 0.002", "optim.learning_rate: 0.001 -> 0.002"),
        ("batch_size: 8", "batch_size: 4", "optim.batch_size: 8 -> 4"),
        ("count: 2", "count: 3", "mask.count: 2 -> 3"),
        ("width: 12", "width: 24", "model.backbone.width: 12 -> 24"),
        ("range=0:4095", "range=0:255", "data.train: photos?range=0:4095 -> photos?range=0:255"),
        ("train: photos?range=0:4095", "train: shapes://9", "-> shapes://9"),
        ("validation: ''", "validation: others", 'data.validation: "" -> others'),
        ("runs/tokenizer", "runs/other", "tokenizer: runs/tokenizer -> runs/other"),
    ],
)
def test_what_leads_to_other_weights_is_refused(run, before, now, named):
    edit(run, before, now)
    with pytest.raises(ValueError, match="not what the checkpoints were trained with") as raised:
        check_settings(pretrain.Config, run)
    assert named in str(raised.value)
    assert f"new run with it: beit pretrain --config {run.config_file} " in str(raised.value)
    moved = f"beit pretrain --resume {run.path} --accept_changed_data true"
    assert (moved in str(raised.value)) == named.startswith(("data.", "tokenizer", "-> shapes"))


def test_each_change_is_named(run):
    edit(run, "seed: 0", "seed: 1")
    edit(run, "epochs: 2", "epochs: 3")
    with pytest.raises(ValueError, match=r"optim.epochs: 2 -> 3; run.seed: 0 -> 1\. Undo"):
        check_settings(pretrain.Config, run)
    with pytest.raises(ValueError, match=r"with: run.seed: 0 -> 1\. Undo"):
        check_settings(pretrain.Config, run, intended=["optim.epochs"])


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ("log_every: 3", "log_every: 1"),
        ("keep_last: 2", "keep_last: 9"),
        ("num_workers: 0", "num_workers: 3"),
        ("stop_after: null", "stop_after: 7"),
        ("photos?range", "/elsewhere/photos?range"),
        ("  muon_rate: 1.0\n", ""),  # a default that an older version did not write
    ],
)
def test_what_leads_to_the_same_weights_is_not(run, before, now, caplog):
    edit(run, before, now)
    check_settings(pretrain.Config, run)
    assert not caplog.records


def test_other_rounding_is_said(run, caplog):
    edit(run, "accumulate: 1", "accumulate: 2")
    check_settings(pretrain.Config, run)
    assert "resumes with optim.accumulate: 1 -> 2: weights are the same only to" in caplog.text


def test_moved_files_are_accepted_and_recorded(run, caplog):
    edit(run, "runs/tokenizer", "runs/moved")
    check_settings(pretrain.Config, run, changed_ok=True)
    keep_settings(run)
    check_settings(pretrain.Config, run)
    assert recorded(run)["tokenizer"] == "runs/moved"
    edit(run, "seed: 0", "seed: 1")
    with pytest.raises(ValueError, match=r"with: run.seed: 0 -> 1\. Undo"):
        check_settings(pretrain.Config, run, changed_ok=True)


def test_a_run_of_an_older_version_is_recorded_when_it_resumes(run):
    run.environment_file.write_text(json.dumps({"verb": "pretrain", "torch": "2.9"}))
    edit(run, "seed: 0", "seed: 1")
    check_settings(pretrain.Config, run)
    keep_settings(run)
    about = json.loads(run.environment_file.read_text())
    assert (about["torch"], about["settings"]["run"]["seed"]) == ("2.9", 1)
    edit(run, "seed: 1", "seed: 2")
    with pytest.raises(ValueError, match=r"run\.seed: 1 -> 2"):
        check_settings(pretrain.Config, run)


def test_differences_are_found_at_any_depth():
    before = {"a": {"b": 1, "c": None}, "run": {"log_every": 1}, "gone": 0}
    now = {"a": {"b": 2, "c": {"d": 3}}, "run": {"log_every": 2}}
    changes = weight_changes(before, now)
    assert list(map(str, changes)) == ["a.b: 1 -> 2", "gone: 0 -> null", "a.c.d: null -> 3"]


@pytest.mark.parametrize("verb", [train_tokenizer, pretrain])
def test_a_run_goes_on_with_the_teacher_it_began_with(
    tmp_path, tokenizer_config, pretrain_config, verb
):
    file = tmp_path / "teacher.safetensors"
    state = timm.create_model("test_efficientnet").state_dict()
    save_file(state, file)
    source, run = f"timm:test_efficientnet@{file}", tmp_path / "run"
    if verb is pretrain:
        config = pretrain_config(run, "", target=TargetConfig("features", source, image_size=32))
    else:
        config = tokenizer_config(run, teacher=TeacherConfig(source, image_size=32))
    verb.run(replace(config, run=replace(config.run, stop_after=1)))
    save_file(state | {"conv_stem.weight": torch.zeros_like(state["conv_stem.weight"])}, file)
    with pytest.raises(ValueError, match=r"teacher timm:.*teacher\.safetensors has other weights"):
        resume(verb, run)
    save_file(state, file)
    assert resume(verb, run).directory == run


@pytest.mark.parametrize("verb", [train_tokenizer, pretrain])
def test_a_run_goes_on_with_the_settings_beside_its_teacher(
    tmp_path, tokenizer_config, pretrain_config, verb
):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2}
    vit = transformers.ViTConfig(**sizes, intermediate_size=24, image_size=16, patch_size=8)
    folder, run = tmp_path / "vit", tmp_path / "run"
    transformers.ViTModel(vit).save_pretrained(folder)
    processor = folder / "preprocessor_config.json"
    processor.write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3}))
    if verb is pretrain:
        config = pretrain_config(run, "", target=TargetConfig("features", str(folder)))
    else:
        config = tokenizer_config(run, teacher=TeacherConfig(str(folder)))
    verb.run(replace(config, run=replace(config.run, stop_after=1)))
    processor.write_text(json.dumps({"image_mean": [0.4] * 3, "image_std": [0.5] * 3}))
    with pytest.raises(ValueError, match="or other settings in the JSON files beside them"):
        resume(verb, run)
