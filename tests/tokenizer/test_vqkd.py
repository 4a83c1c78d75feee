import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from beit.nn.quantizer import Quantizer, scalar_codes, unit
from beit.nn.tokenizer import VQKD
from beit.run import checkpoint
from beit.run.device import DeviceConfig
from beit.run.directory import RunConfig, RunDirectory
from beit.run.launch import launch
from beit.run.resume import redraw, resume
from beit.tokenizer import vqkd as train_tokenizer
from beit.tokenizer import vqkd_loop
from beit.tokenizer.vqkd import CodebookConfig, match_teacher
from beit.tokenizer.vqkd_loop import CodeUse, revive
from beit.weights.file import read_safetensors
from beit.weights.open import load, load_backbone, load_tokenizer


def test_a_run_leaves_everything(trained_tokenizer, records):
    names = {file.name for file in trained_tokenizer.iterdir()}
    assert names == {
        *("config.yaml", "environment.json", "images.json.gz", "metrics.jsonl", "speed.jsonl"),
        *("weights.safetensors", "report.html", "checkpoints", "lock"),
    }
    kept = sorted(file.name for file in (trained_tokenizer / "checkpoints").iterdir())
    assert kept == ["step-000000008.pt", "step-000000010.pt"]
    assert json.loads((trained_tokenizer / "environment.json").read_text())["verb"] == (
        "train-tokenizer"
    )
    report = (trained_tokenizer / "report.html").read_text()
    assert report.lower().startswith("<!doctype html>")
    assert "codebook on the validation set" in report
    assert "http://" not in report.replace("http://www.w3.org", "")  # no network

    log = records(trained_tokenizer)
    assert [r["step"] for r in log if "loss" in r] == [3, 4, 6, 8, 9, 10]
    assert [r["step"] for r in log if "val_reconstruction" in r] == [5, 10]
    assert all(0 < r["usage"] <= 1 for r in log if "usage" in r)
    assert log[0]["rate"] == pytest.approx(1e-3 * 2 / 4)  # third of the five steps from 0 to 1e-3


def test_the_report_is_there_before_the_end(tmp_path, tokenizer_config, interrupt_at):
    interrupt_at(train_tokenizer, tokenizer_config(tmp_path / "run"), 7)
    assert "What the codes mean" in (tmp_path / "run/report.html").read_text()  # of epoch 1
    assert not (tmp_path / "run/weights.safetensors").exists()


def test_weights_load_by_every_name(trained_tokenizer):
    model = load(trained_tokenizer)
    assert isinstance(model, VQKD)
    assert not model.training
    assert model.config.teacher_width > 0  # taken from the teacher
    images = torch.randint(256, (2, 3, 16, 24), dtype=torch.uint8)
    with torch.no_grad():
        codes = load_tokenizer(trained_tokenizer).encode(images)
        features = load_backbone(trained_tokenizer)(images)
    assert codes.shape == (2, 6)
    assert features.patches.shape == (2, 6, 12)


def test_the_codebook_starts_at_the_data(tmp_path, tokenizer_config):
    config = tokenizer_config(tmp_path / "run")
    train_tokenizer.run(config)
    quantizer = load_tokenizer(tmp_path / "run").quantizer
    assert bool(quantizer.initialised)
    torch.testing.assert_close(quantizer.codebook.norm(dim=1), torch.ones(11))


def test_same_seed_same_bits(tmp_path, trained_tokenizer, tokenizer_config, same_bits):
    train_tokenizer.run(tokenizer_config(tmp_path / "again"))
    same_bits(trained_tokenizer, tmp_path / "again")


def test_gradient_checkpointing_changes_memory_not_results(
    tmp_path, trained_tokenizer, tokenizer_config, checkpointing, same_bits
):
    train_tokenizer.run(tokenizer_config(tmp_path / "run", device=checkpointing))
    same_bits(trained_tokenizer, tmp_path / "run")


def test_another_seed_another_run(tmp_path, trained_tokenizer, tokenizer_config, records):
    config = tokenizer_config(tmp_path / "run")
    train_tokenizer.run(replace(config, run=replace(config.run, seed=1)))
    assert records(tmp_path / "run")[0]["loss"] != records(trained_tokenizer)[0]["loss"]


# The first checkpoint is that of step 4: at 2 there is none, nor a log line; at 3 there is one.
@pytest.mark.parametrize("steps", [(2,), (3,), (5,), (10,), (4, 7)])
def test_a_resumed_run_is_the_uninterrupted_one(
    steps, tmp_path, trained_tokenizer, tokenizer_config, interrupt_at, same_bits
):
    config = tokenizer_config(tmp_path / "run")
    for number, step in enumerate(steps):
        interrupt_at(train_tokenizer, config, step, resume=number > 0)
    resume(train_tokenizer, tmp_path / "run")
    same_bits(trained_tokenizer, tmp_path / "run")


def test_a_run_stopped_in_its_last_validation_resumes_there(
    tmp_path, trained_tokenizer, tokenizer_config, interrupt_in_validation, same_bits
):
    interrupt_in_validation(train_tokenizer, vqkd_loop, tokenizer_config(tmp_path / "run"), 2)
    assert (tmp_path / "run" / "checkpoints" / "step-000000010.pt").exists()
    resume(train_tokenizer, tmp_path / "run")
    same_bits(trained_tokenizer, tmp_path / "run")


def test_the_report_of_a_finished_run_is_drawn_again(trained_tokenizer):
    before = (trained_tokenizer / "report.html").read_text()
    (trained_tokenizer / "report.html").unlink()
    redraw(train_tokenizer, trained_tokenizer)
    assert (trained_tokenizer / "report.html").read_text() == before


def test_a_finished_run_may_be_resumed(tmp_path, trained_tokenizer, tokenizer_config, same_bits):
    result = train_tokenizer.run(tokenizer_config(tmp_path / "run"))
    (tmp_path / "run" / "weights.safetensors").unlink()  # killed before it was written
    assert resume(train_tokenizer, tmp_path / "run") == result
    same_bits(trained_tokenizer, tmp_path / "run")


def test_micro_steps_change_memory_not_results(
    tmp_path, trained_tokenizer, tokenizer_config, optim, records, same_to_rounding
):
    train_tokenizer.run(tokenizer_config(tmp_path / "two", optim=optim(accumulate=2)))
    # Sums of float32 in another order, over ten steps; k-means start and three revivals included.
    same_to_rounding(records(trained_tokenizer), records(tmp_path / "two"), 2e-5)
    one, two = load_tokenizer(trained_tokenizer), load_tokenizer(tmp_path / "two")
    torch.testing.assert_close(one.quantizer.codebook, two.quantizer.codebook, rtol=0, atol=2e-5)


def test_without_a_validation_set(tmp_path, tokenizer_config):
    config = tokenizer_config(tmp_path / "run")
    result = train_tokenizer.run(replace(config, data=replace(config.data, validation="")))
    assert result.metrics == {}
    assert "codebook on the validation set" not in (tmp_path / "run/report.html").read_text()


def test_validation_images_that_are_trained_on_are_counted(
    tmp_path, tokenizer_config, trained_tokenizer
):
    config = tokenizer_config(tmp_path / "run")
    data = replace(config.data, validation="shapes://9?size=24")
    train_tokenizer.run(replace(config, data=data, run=replace(config.run, stop_after=1)))
    log = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert log.count("9 of the 9 images of --validation shapes://9?size=24 are in") == 1
    assert "images of --validation" not in (trained_tokenizer / "metrics.jsonl").read_text()


# ── what goes wrong ─────────────────────────────────────────────────────────────────────────────


def test_a_collapse_is_called_one(tmp_path, tokenizer_config, records, capsys):
    config = tokenizer_config(tmp_path / "run", codebook=CodebookConfig(kmeans=False))
    fast = replace(config.optim, learning_rate=1e-2)  # far below the limit, whatever the machine
    train_tokenizer.run(replace(config, model=replace(config.model, num_codes=300), optim=fast))
    warned = [record for record in records(tmp_path / "run") if "warning" in record]
    assert warned[0]["step"] == 4
    assert "codebook is collapsing: perplexity" in warned[0]["warning"]
    assert (
        "of 300 codes; restart dead codes with --codebook.revive_every 10"
        in capsys.readouterr().err
    )


def test_a_healthy_codebook_is_not(trained_tokenizer, records):
    assert not [record for record in records(trained_tokenizer) if "warning" in record]


def test_losses_that_are_not_finite_stop_the_run(tmp_path, tokenizer_config, monkeypatch):
    calls = iter(range(1, 100))

    def distance(features: Tensor, targets: Tensor) -> Tensor:
        return features.mean() * (float("nan") if next(calls) >= 5 else 1.0)

    config = tokenizer_config(tmp_path / "run")
    monkeypatch.setattr(vqkd_loop, "cosine_distance", distance)
    with pytest.raises(ValueError, match=r"loss is nan at step 7, .*rate.*step-000000004\.pt"):
        train_tokenizer.run(replace(config, data=replace(config.data, validation="")))
    assert not (tmp_path / "run" / "weights.safetensors").exists()


def test_another_teacher_width_is_refused(trained_tokenizer, tokenizer_config, tmp_path):
    config = tokenizer_config(tmp_path / "run")
    with pytest.raises(ValueError, match=r"model\.teacher_width is 7, but .* have \d+ channels"):
        train_tokenizer.run(replace(config, model=replace(config.model, teacher_width=7)))
    assert not (tmp_path / "run").exists()


def test_the_teachers_width_is_filled_in(tokenizer_config, tmp_path):
    from beit.weights.teachers import load_teacher

    config = tokenizer_config(tmp_path / "run")
    teacher = load_teacher(config.teacher.source, image_size=32, pretrained=False)
    assert match_teacher(config.model, teacher).teacher_width == teacher.width


def test_an_existing_directory_is_refused_before_anything_is_loaded(
    trained_tokenizer, tokenizer_config, monkeypatch
):
    monkeypatch.setattr(train_tokenizer, "load_teacher", None)
    before = (trained_tokenizer / "metrics.jsonl").read_bytes()
    with pytest.raises(FileExistsError, match=r"exists and is not overwritten.*--resume"):
        train_tokenizer.run(tokenizer_config(trained_tokenizer))
    assert (trained_tokenizer / "metrics.jsonl").read_bytes() == before


def test_a_revival_that_never_comes_is_refused():
    with pytest.raises(ValueError, match=r"revive_below in \[0, 1\), got 3 and 1"):
        CodebookConfig(revive_every=3, revive_below=1)


LATE = CodebookConfig(start_after=5, revive_every=3)


def test_a_codebook_starts_late(
    tmp_path, tokenizer_config, optim, interrupt_at, records, same_bits, capsys
):
    def config(name):
        run = RunConfig(str(tmp_path / name), log_every=1, checkpoint_every=4)
        return tokenizer_config(
            tmp_path / name, codebook=LATE, run=run, optim=optim(kind="muon", muon_rate=2.0)
        )

    train_tokenizer.run(config("whole"))
    assert "no validation: the codebook starts after step 5" in capsys.readouterr().err
    trained = [record for record in records(tmp_path / "whole") if "loss" in record]
    for record in trained[:5]:
        assert "usage" not in record
        assert record["loss"] == record["reconstruction"]
    assert all(record["loss"] > record["reconstruction"] for record in trained[5:])
    assert all(record["usage"] > 0 for record in trained[5:])
    interrupt_at(train_tokenizer, config("run"), 5)
    resume(train_tokenizer, tmp_path / "run")
    same_bits(tmp_path / "whole", tmp_path / "run")


def test_without_quantization_the_decoder_gets_the_vectors(trained_tokenizer):
    vqkd = load_tokenizer(trained_tokenizer)
    images = torch.rand(2, 3, *vqkd.image_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        output = vqkd(images, quantize=False)
        assert torch.equal(output.features, vqkd.rebuild(output.vectors))
    assert output.commitment == output.attraction == 0


def test_a_codebook_that_never_starts_is_refused(tmp_path, tokenizer_config):
    with pytest.raises(ValueError, match=r"start_after is 10, but the run has 10 steps"):
        train_tokenizer.run(
            tokenizer_config(tmp_path / "run", codebook=CodebookConfig(start_after=10))
        )
    with pytest.raises(ValueError, match=r"codebook.start_after is -1; expected 0 or more"):
        CodebookConfig(start_after=-1)


# ── variants for ablations ──────────────────────────────────────────────────────────────────────

GRADIENT = CodebookConfig(learn="gradient", revive_every=3)


def test_a_codebook_learned_by_gradients_goes_on_where_it_was_broken_off(
    tmp_path, trained_tokenizer, tokenizer_config, interrupt_at, same_bits
):
    train_tokenizer.run(tokenizer_config(tmp_path / "whole", codebook=GRADIENT))
    interrupt_at(train_tokenizer, tokenizer_config(tmp_path / "run", codebook=GRADIENT), 6)
    resume(train_tokenizer, tmp_path / "run")
    same_bits(tmp_path / "whole", tmp_path / "run")
    learned, averaged = load_tokenizer(tmp_path / "run"), load_tokenizer(trained_tokenizer)
    codebook = learned.quantizer.codebook
    torch.testing.assert_close(codebook.norm(dim=1), torch.ones(11))
    assert not torch.equal(codebook, averaged.quantizer.codebook)
    assert not codebook.requires_grad  # in a file it is as any other
    state = checkpoint.latest(RunDirectory(tmp_path / "run"))[1]
    groups = state["optimizer"]["param_groups"]
    assert (groups[-1]["names"], groups[-1]["weight_decay"]) == (["quantizer.codebook"], 0.0)
    assert all("quantizer.codebook" not in group["names"] for group in groups[:-1])


def test_micro_steps_change_no_results_of_gradients(
    tmp_path, tokenizer_config, optim, records, same_to_rounding
):
    for name, accumulate in (("one", 1), ("two", 2)):
        config = tokenizer_config(tmp_path / name, optim=optim(accumulate=accumulate))
        train_tokenizer.run(replace(config, codebook=GRADIENT))
    same_to_rounding(records(tmp_path / "one"), records(tmp_path / "two"), 2e-5)


def test_revived_codes_lose_what_adam_remembers_of_them():
    quantizer = Quantizer(5, 3)
    codebook = quantizer.use_gradients()
    optimizer = torch.optim.AdamW([codebook], lr=0.1)
    codebook.grad = torch.ones_like(codebook)
    optimizer.step()
    dead = torch.tensor([False, True, False, False, True])
    vectors = torch.randn(2, 4, 3)
    use = CodeUse(5, torch.device("cpu"))
    use.since_revival += ~dead
    parts = SimpleNamespace(
        fabric=launch(DeviceConfig(accelerator="cpu")),
        vqkd=SimpleNamespace(quantizer=quantizer),
        optimizer=optimizer,
        use=use,
        seed=0,
        revive_below=0.5,
    )
    revive(parts, [vectors], 1)
    for moment in ("exp_avg", "exp_avg_sq"):
        assert (optimizer.state[codebook][moment] == 0).all(dim=1).tolist() == dead.tolist()
    rows = unit(vectors).flatten(0, 1)
    assert all((code == rows).all(dim=1).any() for code in codebook[dead])


def first_step(config, records):
    config = replace(config, run=replace(config.run, log_every=1, stop_after=1))
    config = replace(config, data=replace(config.data, validation=""))
    train_tokenizer.run(config)
    record = records(Path(config.run.output))[0]
    return record["reconstruction"], record["loss"] - record["reconstruction"]


def test_terms_of_the_loss(tmp_path, tokenizer_config, records):
    terms = {}
    for learn in ("ema", "gradient"):
        for commitment in ("mean", "sum"):
            codebook = CodebookConfig(learn=learn, commitment=commitment)
            config = tokenizer_config(tmp_path / f"{learn}-{commitment}", codebook=codebook)
            terms[learn, commitment] = first_step(config, records)
    reconstruction, published = terms["ema", "mean"]
    assert published > 1e-4
    factors = {("ema", "sum"): 5, ("gradient", "mean"): 2, ("gradient", "sum"): 2 * 5}
    for case, factor in factors.items():
        assert terms[case][0] == pytest.approx(reconstruction)
        assert terms[case][1] == pytest.approx(factor * published, rel=1e-3), case


def test_codes_of_any_length_are_learned(tmp_path, tokenizer_config):
    config = tokenizer_config(tmp_path / "run")
    model = replace(config.model, l2_normalised=False)
    result = train_tokenizer.run(replace(config, model=model))
    vqkd = load_tokenizer(tmp_path / "run")
    assert not vqkd.config.l2_normalised
    assert vqkd.quantizer.codebook.norm(dim=1).std() > 1e-4
    assert result.metrics["val_usage"] > 0.2


def test_a_tokenizer_of_grey_images_is_trained(tmp_path, tokenizer_config):
    config = tokenizer_config(tmp_path / "run")
    grey = replace(config.model.encoder, in_channels=1)
    train_tokenizer.run(replace(config, model=replace(config.model, encoder=grey)))
    tokenizer = load_tokenizer(tmp_path / "run")
    images = torch.randint(256, (2, 3, 16, 24), dtype=torch.uint8)
    assert tokenizer.encoder.patch_embed.proj.weight.shape[1] == 1
    assert tokenizer.encode(images).shape == (2, 6)


def test_a_grid_of_levels_is_trained_around(tmp_path, tokenizer_config, records):
    config = tokenizer_config(tmp_path / "run", codebook=CodebookConfig())
    sizes = {"levels": (3, 2, 4), "num_codes": 24, "code_width": 3, "l2_normalised": False}
    train_tokenizer.run(replace(config, model=replace(config.model, **sizes)))
    vqkd = load_tokenizer(tmp_path / "run")
    assert vqkd.config.levels == (3, 2, 4)
    assert torch.equal(vqkd.quantizer.codebook, scalar_codes((3, 2, 4)))
    logged = [record for record in records(tmp_path / "run") if "loss" in record]
    assert all(record["loss"] == record["reconstruction"] for record in logged)


def test_a_file_from_before_these_options_opens(trained_tokenizer, tmp_path):
    tensors, metadata = read_safetensors(trained_tokenizer / "weights.safetensors")
    about = json.loads(metadata["beit"])
    for field in ("l2_normalised", "levels"):
        del about["config"][field]
    save_file(tensors, tmp_path / "old.safetensors", {"beit": json.dumps(about)})
    assert load(tmp_path / "old.safetensors").config == load(trained_tokenizer).config


@pytest.mark.parametrize("codebook", [GRADIENT, CodebookConfig(revive_every=2)])
def test_a_grid_of_levels_that_should_move_is_refused(tokenizer_config, tmp_path, codebook):
    config = tokenizer_config(tmp_path / "run", codebook=CodebookConfig())
    sizes = {"levels": (3, 2), "num_codes": 6, "code_width": 2, "l2_normalised": False}
    config = replace(config, model=replace(config.model, **sizes))
    with pytest.raises(ValueError, match=r"model\.levels \(3, 2\) fix the codes, but codebook\."):
        replace(config, codebook=codebook)
