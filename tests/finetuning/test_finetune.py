import json
import math
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow
import pytest
import torch
from PIL import Image
from pyarrow import parquet
from safetensors.torch import load_file

from beit import cli
from beit.data.batches import DataConfig
from beit.data.classes import Classes, read_classes
from beit.data.order import seeded, step_generator
from beit.data.shapes import KINDS
from beit.data.sources import open_source
from beit.data.views import EvalView, ViewConfig
from beit.finetuning import finetune, loop, validation
from beit.finetuning.config import Config
from beit.finetuning.mixing import MixConfig
from beit.finetuning.report import report
from beit.finetuning.views import AugmentConfig, FinetuneViews
from beit.nn.heads import ImageClassifier, ImageClassifierConfig
from beit.nn.mim import MaskedImageModel, MaskedImageModelConfig
from beit.nn.position import resize_relative_bias
from beit.nn.vit import ViTConfig, vit_config
from beit.run.device import DeviceConfig
from beit.run.directory import RunConfig, RunDirectory
from beit.run.journal import Journal
from beit.run.launch import launch
from beit.run.reading import Reading
from beit.run.resume import redraw, resume
from beit.weights.file import save_weights
from beit.weights.formats.published import to_published
from beit.weights.formats.published_names import CLASSIFIER_ROWS, to_theirs
from beit.weights.open import load

GOLDENS = Path(__file__).parents[1] / "goldens"
OFF = MixConfig(mixup=0.0, cutmix=0.0, smoothing=0.0)


@pytest.fixture(scope="module")
def config(vit, optim):
    """Makes runs of ten steps: checkpoints at 4, 8, 10, log lines at these and at 3, 6, 9."""

    def make(output, **changes):
        settings = {
            "data": DataConfig(
                train="shapes://43?size=24", validation="shapes://13?size=24&seed=1", num_workers=0
            ),
            "drop_path": 0.1,
            "view": ViewConfig(min_scale=0.5, color_jitter=0.0),
            "optim": optim(clip=3.0),
            "layer_decay": 0.7,
            "run": RunConfig(str(output), log_every=3, checkpoint_every=4),
            "device": DeviceConfig(accelerator="cpu"),
        }
        if "init" not in changes:
            settings["backbone"] = vit(relative_bias="per_block")
        return Config(**(settings | changes))

    return make


@pytest.fixture(scope="module")
def finished(tmp_path_factory, config):
    """The directory of a finished run with everything on."""
    output = tmp_path_factory.mktemp("finetune") / "run"
    finetune.run(full(config)(output))
    return output


def full(config):
    augment = AugmentConfig(repeats=2)
    return partial(config, average=0.8, augment=augment)


def test_a_run_leaves_everything(finished, records):
    names = {file.name for file in finished.iterdir()}
    assert names == {
        *("config.yaml", "environment.json", "images.json.gz", "metrics.jsonl", "speed.jsonl"),
        *("weights.safetensors", "report.html", "checkpoints", "lock"),
    }
    report = (finished / "report.html").read_text()
    for words in ("Accuracy by class", "Confusion matrix", "chosen on the validation set"):
        assert words in report
    log = records(finished)
    assert [r["step"] for r in log if "loss" in r] == [3, 4, 6, 8, 9, 10]
    assert [r["step"] for r in log if "val_top1" in r] == [5, 10]
    assert all(0 <= r["val_top1"] <= r["val_top5"] <= 1 for r in log if "val_top1" in r)


def test_the_weights_are_a_classifier_that_knows_its_classes(finished):
    model = load(finished)
    assert isinstance(model, ImageClassifier)
    assert model.config.class_names == tuple(KINDS)
    with torch.no_grad():
        assert model(torch.zeros(2, 3, 16, 24, dtype=torch.uint8)).shape == (2, 10)


# The first checkpoint is that of step 4; a resumed run may be interrupted again.
@pytest.mark.parametrize("steps", [(3,), (4, 7), (10,)])
def test_a_resumed_run_is_the_uninterrupted_one(
    steps, tmp_path, finished, config, interrupt_at, same_bits
):
    made = full(config)(tmp_path / "run")
    for number, step in enumerate(steps):
        interrupt_at(finetune, made, step, resume=number > 0)
    resume(finetune, tmp_path / "run")
    same_bits(finished, tmp_path / "run")


def test_a_finished_run_may_be_resumed(tmp_path, finished, config, same_bits):
    result = finetune.run(full(config)(tmp_path / "run"))
    (tmp_path / "run" / "weights.safetensors").unlink()  # killed before it was written
    assert resume(finetune, tmp_path / "run") == result
    same_bits(finished, tmp_path / "run")


def test_gradient_checkpointing_changes_memory_not_results(
    tmp_path, finished, config, checkpointing, same_bits
):
    finetune.run(full(config)(tmp_path / "run", device=checkpointing))
    same_bits(finished, tmp_path / "run")


def test_micro_steps_change_memory_not_results(tmp_path, config, optim, records, same_to_rounding):
    for name, accumulate in (("one", 1), ("two", 2)):
        # Without mixing and drop path, which are by micro-step.
        settings = {"optim": optim(clip=3.0, accumulate=accumulate), "drop_path": 0.0}
        finetune.run(config(tmp_path / name, mix=replace(OFF, smoothing=0.1), **settings))
    # Sums of float32 in another order, over ten steps.
    same_to_rounding(records(tmp_path / "one"), records(tmp_path / "two"), 2e-5)
    assert all("accuracy" in r for r in records(tmp_path / "one") if "loss" in r)


# ── which weights are kept ──────────────────────────────────────────────────────────────────────


def test_a_finished_run_tells_the_accuracy_of_the_weights_it_kept(tmp_path, finished):
    """Also where it is the result of --resume auto: not that of the last validation."""
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    lines = (run / "metrics.jsonl").read_text().splitlines()
    first = next(place for place, line in enumerate(lines) if "val_top1" in line)
    lines[first] = json.dumps(json.loads(lines[first]) | {"val_top1": 0.99, "val_loss": 0.01})
    (run / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    words = ["--config", str(run / "config.yaml"), "--output", str(run), "--resume", "auto"]
    module, config, result = cli.run_verb("finetune", words)
    assert (result.metrics["val_top1"], result.metrics["val_loss"]) == (0.99, 0.01)
    assert module.ending(config, result).figure.startswith("top-1 accuracy 99.0%")


def test_a_run_stopped_in_its_last_validation_resumes_there(
    tmp_path, finished, config, interrupt_in_validation, same_bits
):
    interrupt_in_validation(finetune, loop, full(config)(tmp_path / "run"), 2)
    assert (tmp_path / "run" / "checkpoints" / "step-000000010.pt").exists()
    resume(finetune, tmp_path / "run")
    same_bits(finished, tmp_path / "run")


def test_validation_images_that_are_trained_on_are_counted(tmp_path, config, finished):
    data = DataConfig("shapes://43?size=24", "shapes://13?size=24", num_workers=0)
    finetune.run(config(tmp_path / "run", data=data))
    log = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert log.count("13 of the 13 images of --validation shapes://13?size=24 are in") == 1
    assert "images of --validation" not in (finished / "metrics.jsonl").read_text()


def test_the_report_of_a_finished_run_is_drawn_again(finished):
    before = (finished / "report.html").read_text()
    (finished / "report.html").unlink()
    redraw(finetune, finished)
    assert (finished / "report.html").read_text() == before


def test_a_class_that_is_never_right_is_named(tmp_path, config, caplog):
    run, counts = (
        RunDirectory.create(tmp_path / "run", {}, {"verb": "finetune"}),
        torch.tensor([0, 3]),
    )
    run.metrics_file.write_text('{"step": 10, "loss": 1.0}\n')
    metrics = {"val_top1": 3 / 16, "val_chance": 0.5}
    validated = validation.Validated(metrics, counts, torch.tensor([8, 8]), None)
    draw = (run, config(run.path), Classes(2, ("ant", "bee")), "", 10, validated)
    report(*draw)
    assert "no validation image of ant is classified correctly (1 of 2 classes)" in caplog.text
    assert "no validation image of ant" in run.report_file.read_text()


@pytest.mark.parametrize(("keep", "step"), [("best", 5), ("last", 10)])
def test_the_best_weights_are_kept_across_an_interruption(
    keep, step, tmp_path, config, optim, interrupt_at, monkeypatch
):
    validate = loop.validate

    def falling(fabric, classifier, *rest):  # worse with every validation of a training run
        validated = validate(fabric, classifier, *rest)
        scored.append(0.9 - 0.1 * len(scored))
        return validated._replace(metrics=validated.metrics | {"val_top1": scored[-1]})

    scored = []
    monkeypatch.setattr(loop, "validate", falling)
    interrupt_at(finetune, config(tmp_path / "run", keep=keep), 9)
    resume(finetune, tmp_path / "run")
    assert len(scored) == (3 if keep == "best" else 2)  # the best are judged once more
    cut = RunConfig(str(tmp_path / "cut"), log_every=3, checkpoint_every=4, stop_after=step)
    finetune.run(config(tmp_path / "cut", keep="last", run=cut))
    kept, expected = (load_file(tmp_path / n / "weights.safetensors") for n in ("run", "cut"))
    assert all(torch.equal(kept[name], expected[name]) for name in expected)
    assert f"those of step {step}" in (tmp_path / "run" / "report.html").read_text()


def test_the_average_is_what_is_judged_and_kept(tmp_path, config):
    run = RunConfig(str(tmp_path / "still"), stop_after=2)
    finetune.run(config(tmp_path / "still", run=run, average=0.0))
    run = replace(run, output=str(tmp_path / "plain"))
    finetune.run(config(tmp_path / "plain", run=run))
    run = replace(run, output=str(tmp_path / "slow"))
    finetune.run(config(tmp_path / "slow", run=run, average=0.99))
    still, plain, slow = (
        load_file(tmp_path / name / "weights.safetensors") for name in ("still", "plain", "slow")
    )
    assert all(torch.equal(still[name], plain[name]) for name in plain)
    assert not torch.equal(slow["head.weight"], plain["head.weight"])


# ── the step ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_a_step_by_hand(kind, tmp_path, config, optim, records, monkeypatch):
    """Mixing, smoothing, layer decay, clipping, AdamW and the average, written out."""
    shares = {"mixup": MixConfig(cutmix=0.0), "cutmix": MixConfig(mixup=0.0)}
    run = RunConfig(str(tmp_path / "run"), seed=4, stop_after=1)
    decay, rate, clip, eps = 0.7, 0.02, 0.05, 1e-3  # so large an eps that Adam sees the clipping
    settings = optim(learning_rate=rate, warmup_epochs=0, weight_decay=0.05, clip=clip, eps=eps)
    made = config(
        tmp_path / "run", mix=shares[kind], run=run, optim=settings, drop_path=0.0, average=0.25
    )
    made = replace(made, data=replace(made.data, validation=""), layer_decay=decay, init_scale=1.0)
    finetune.run(made)

    fabric = launch(made.device)
    source, _, classes = finetune.open_data(made)
    torch.manual_seed(4)
    model, _ = finetune.build_classifier(made, classes)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    journal = Journal(finetune.VERB, made, fabric, made.optim.schedule(len(source)), None)
    batches = finetune.training_batches(made, source, model.config.backbone, journal)
    batch = next(iter(batches))
    images = batch.images.double() / 255  # (8, 3, 16, 24)
    targets = torch.full((8, 10), 0.1 / 10, dtype=torch.float64)
    targets[range(8), batch.labels] += 0.9
    with seeded(step_generator(4, 1, "mix 0 0")):
        np.random.rand()  # whether to mix at all: always
        alpha = {"mixup": 0.8, "cutmix": 1.0}[kind]
        share = np.random.beta(alpha, alpha)
        partners = images.flip(0)
        if kind == "mixup":
            images = share * images + (1 - share) * partners
        else:
            side = math.sqrt(1 - share)
            height, width = int(16 * side), int(24 * side)
            row, column = np.random.randint(16), np.random.randint(24)
            top, bottom = max(row - height // 2, 0), min(row + (height + 1) // 2, 16)
            left, right = max(column - width // 2, 0), min(column + (width + 1) // 2, 24)
            images[:, :, top:bottom, left:right] = partners[:, :, top:bottom, left:right]
            share = 1 - (bottom - top) * (right - left) / (16 * 24)
    assert 0.02 < share < 0.98  # the seed gives a case worth testing
    targets = share * targets + (1 - share) * targets.flip(0)
    logits = model(images.float())
    loss = -(targets.float() * logits.log_softmax(dim=1)).sum(dim=1).mean()
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    norm = math.sqrt(sum(float(g.double().square().sum()) for g in gradients.values()))
    assert norm > clip
    after = load_file(tmp_path / "run" / "weights.safetensors")
    for name, gradient in gradients.items():
        gradient = gradient * clip / (norm + 1e-6)
        layer = 3  # of two blocks: fc_norm and the head
        if "blocks." in name:
            layer = 1 + int(name.split("blocks.")[1].split(".")[0])
        elif name.startswith(("backbone.cls", "backbone.patch")):
            layer = 0
        scaled = rate * decay ** (3 - layer)
        weight_decay = 0.05 if gradient.ndim > 1 and "cls_token" not in name else 0.0
        expected = before[name] * (1 - scaled * weight_decay)
        expected -= scaled * gradient / (gradient.abs() + eps)  # Adam's first step
        expected = 0.25 * before[name] + 0.75 * expected
        # Of a step at most `scaled` long; weights of 1 are stored to 6e-8.
        torch.testing.assert_close(after[name], expected, rtol=0, atol=1e-4 * scaled, msg=name)
    line = records(tmp_path / "run")[0]
    assert "accuracy" not in line  # of mixed images there is none
    assert line["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert line["grad_norm"] == pytest.approx(norm, rel=1e-4)


def test_golden_layer_decay_through_the_optimiser_of_the_run(tmp_path, config, optim, monkeypatch):
    golden = json.loads((GOLDENS / "layer_decay.json").read_text("utf-8"))
    state = {
        name.removeprefix("state/"): tensor
        for name, tensor in load_file(GOLDENS / "classifier_cls.safetensors").items()
        if name.startswith("state/")
    }
    torch.save({"model": state}, tmp_path / "published.pth")
    built = {}
    build = finetune.build_optimizer
    trained = finetune.build_classifier

    def building(*arguments):
        built["model"], head = trained(*arguments)
        return built["model"], head

    def optimising(*arguments, **options):
        built["optimizer"] = build(*arguments, **options)
        return built["optimizer"]

    monkeypatch.setattr(finetune, "build_classifier", building)
    monkeypatch.setattr(finetune, "build_optimizer", optimising)
    finetune.run(
        config(
            tmp_path / "run",
            init=str(tmp_path / "published.pth"),
            num_heads=4,
            pooling="cls",
            optim=optim(weight_decay=golden["weight_decay"]),
            layer_decay=golden["layer_decay"],
            run=RunConfig(str(tmp_path / "run"), stop_after=1),
        )
    )
    held = {p: group for group in built["optimizer"].param_groups for p in group["params"]}
    published = to_theirs(dict(built["model"].named_parameters()), CLASSIFIER_ROWS)
    assert published.keys() == golden["parameters"].keys()
    for name, parameter in published.items():
        for figure, expected in golden["parameters"][name].items():
            assert held[parameter][figure] == expected, (name, figure)


# ── starts ──────────────────────────────────────────────────────────────────────────────────────


def test_from_a_tokenizer_its_encoder_is_taken(tmp_path, config, trained_tokenizer):
    made = config(tmp_path / "run", init=str(trained_tokenizer), image_size=(24, 32))
    built, _ = finetune.build_classifier(made, Classes(3, None))
    encoder = load(trained_tokenizer).encoder
    assert torch.equal(built.backbone.blocks[1].mlp.fc1.weight, encoder.blocks[1].mlp.fc1.weight)
    assert built.backbone.pos_embed.shape == (1, 13, 12)
    assert built.backbone.config.drop_path == 0.1
    assert built.backbone.blocks[1].drop_rate == 0.1
    result = finetune.run(replace(made, run=replace(made.run, stop_after=1)))
    assert 0 <= result.metrics["val_top1"] <= 1


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_from_a_published_pretrained_file(pooling, tmp_path, config, vit):
    numbers = MaskedImageModelConfig(vit(image_size=(24, 24)), 7, early_layers=1, head_layers=0)
    model = MaskedImageModel(numbers)
    torch.nn.init.normal_(model.backbone.rel_pos_bias.table)
    torch.nn.init.normal_(model.backbone.norm.weight)
    torch.save({"model": to_published(model)}, tmp_path / "published.pth")
    made = config(
        tmp_path / "run", init=str(tmp_path / "published.pth"), num_heads=3, pooling=pooling
    )
    built, _ = finetune.build_classifier(made, Classes(5, None))
    for block in built.backbone.blocks:  # each has the bias that all shared
        assert torch.equal(block.attn.rel_pos_bias.table, model.backbone.rel_pos_bias.table)
    assert built.backbone.rel_pos_bias is None
    images = torch.rand(2, 3, 24, 24)
    with torch.no_grad():
        built.eval()
        model.eval()
        if pooling == "cls":
            expected = model.backbone(images).cls
            torch.testing.assert_close(built.backbone(images).cls, expected)
        else:  # before the final norm, which is left out
            expected = model.backbone(images, layers=[2]).layers[2][:, 1:]
            torch.testing.assert_close(built.backbone(images).patches, expected)
    assert built.head.weight.abs().max() <= 0.02 * 0.001


def test_from_a_tokenizer_its_last_norm_is_that_of_the_mean(tmp_path, config, trained_tokenizer):
    model = load(trained_tokenizer)
    torch.nn.init.normal_(model.encoder.norm.weight)
    save_weights(tmp_path / "tokenizer.safetensors", model)
    made = config(tmp_path / "run", init=str(tmp_path / "tokenizer.safetensors"))
    built, head = finetune.build_classifier(made, Classes(3, None))
    assert torch.equal(built.fc_norm.weight, model.encoder.norm.weight)  # as published
    assert head == ""


def test_a_run_on_more_classes_then_one_on_some_of_them(tmp_path, config, finished, capsys):
    """As from ImageNet-21k to ImageNet-1k: the first run has a list and no validation set."""
    names = ["void", *reversed(KINDS), "nothing"]
    (tmp_path / "classes.txt").write_text("\n".join(names) + "\n\n")
    run = RunConfig(str(tmp_path / "many"), stop_after=2)
    made = config(tmp_path / "many", classes=str(tmp_path / "classes.txt"), run=run)
    result = finetune.run(replace(made, data=replace(made.data, validation="")))
    assert result.metrics == {}
    many = load(tmp_path / "many")
    assert many.config.class_names == tuple(names)
    made = replace(made, data=replace(made.data, validation=""))
    source, _, _ = finetune.open_data(made)
    assert [names[label] for label in source.labels[:10].tolist()] == list(KINDS)

    few = config(tmp_path / "few", init=str(tmp_path / "many"), run=replace(run, output="few"))
    fresh, description = finetune.build_classifier(few, Classes(10, tuple(KINDS)))
    assert "its head for 12 classes was left out; that for 10 is new" in description
    assert torch.equal(fresh.fc_norm.weight, many.fc_norm.weight)
    assert fresh.head.weight.abs().max() <= 0.02 * 0.001
    assert not fresh.head.bias.any()
    kept, description = finetune.build_classifier(
        replace(few, carry_classes=True), Classes(10, tuple(KINDS))
    )
    assert "10 of 10 rows were copied from its head for 12 classes" in description
    places = [names.index(kind) for kind in KINDS]
    assert torch.equal(kept.head.weight, many.head.weight[places])
    assert torch.equal(kept.head.bias, many.head.bias[places])

    run = replace(run, output=str(tmp_path / "few"))
    finetune.run(replace(few, run=run))
    assert "was left out; that for 10 is new" in capsys.readouterr().err
    assert "that for 10 is new" in (tmp_path / "few" / "report.html").read_text()


def test_a_larger_image_by_resized_positions(tmp_path, config, finished):
    made = config(tmp_path / "run", init=str(finished), image_size=(40, 48))
    built, _ = finetune.build_classifier(made, Classes(10, tuple(KINDS)))
    table = load(finished).backbone.blocks[0].attn.rel_pos_bias.table
    expected = resize_relative_bias(table, (2, 3), (5, 6))
    assert torch.equal(built.backbone.blocks[0].attn.rel_pos_bias.table, expected)
    run = replace(made.run, stop_after=1)
    result = finetune.run(replace(made, run=run, data=replace(made.data, validation="")))
    with torch.no_grad():
        assert load(result.directory)(torch.rand(2, 3, 40, 48)).shape == (2, 10)


@pytest.mark.parametrize(
    ("size", "crop_ratio", "expected"),
    [
        ((224, 224), None, 0.875),
        ((512, 320), None, 0.875),
        ((384, 384), None, 1.0),
        ((512, 512), None, 1.0),
        ((384, 384), 0.95, 0.95),
    ],
)
def test_validation_crops_nothing_from_384_pixels_on(size, crop_ratio, expected, tmp_path, config):
    view = finetune.validation_view(config(tmp_path / "run", crop_ratio=crop_ratio), size)
    assert (view.size, view.crop_ratio) == (size, expected)


@pytest.mark.parametrize(
    ("size", "preset", "pixels", "classes", "parameters"),
    [  # docs/reference/finetuning.md, "Model"
        ("B", "ft-b16-1k", 224, 1000, 86_530_984),
        ("L", "ft-l16-1k", 224, 1000, 304_430_568),
        ("B", "ft-b16-21k", 224, None, 102_557_713),
        ("L", "ft-l16-21k", 224, None, 325_792_593),
        ("B", "beit1-ft-b16-22kto1k", 384, 1000, 86_744_104),
        ("L", "beit1-ft-l16-22kto1k", 384, 1000, 304_998_888),
        ("L", "beit1-ft-l16-22kto1k", 512, 1000, 305_674_728),
    ],
)
def test_published_sizes(size, preset, pixels, classes, parameters):
    options = ["--preset", preset, "--init", "file.pth", "--image_size", f"[{pixels},{pixels}]"]
    made = cli.parse("finetune", Config, options)
    vit = replace(vit_config(size, relative_bias="per_block"), image_size=made.image_size)
    classes = classes or len(read_classes(made.classes))
    with torch.device("meta"):
        model = ImageClassifier(ImageClassifierConfig(vit, classes, made.pooling))
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.slow  # writes half a gigabyte, or two
@pytest.mark.parametrize(
    ("size", "preset", "parameters"),
    [("B", "ft-b16-1k", 86_530_984), ("L", "ft-l16-1k", 304_430_568)],
)
def test_published_presets_start_from_the_published_layout(size, preset, parameters, tmp_path):
    numbers = MaskedImageModelConfig(vit_config(size), 8192, early_layers=9, head_layers=2)
    torch.save({"model": to_published(MaskedImageModel(numbers))}, tmp_path / "random.pth")
    names = [*KINDS, *(f"n{number:08}" for number in range(990))]
    (tmp_path / "classes.txt").write_text("\n".join(names))
    options = ["--preset", preset, "--init", str(tmp_path / "random.pth")]
    options += ["--data.train", "shapes://4?size=64", "--data.validation", ""]
    options += ["--data.num_workers", "0", "--optim.batch_size", "2", "--run.stop_after", "2"]
    options += ["--device.accelerator", "cpu", "--device.devices", "1"]
    options += ["--classes", str(tmp_path / "classes.txt"), "--run.output", str(tmp_path / "run")]
    assert cli.main(["finetune", *options]) == 0
    tensors = load_file(tmp_path / "run" / "weights.safetensors")
    assert sum(tensor.numel() for tensor in tensors.values()) == parameters
    for file in tmp_path.rglob("*.*"):
        if file.is_file():
            file.unlink()  # pytest keeps the folders of three sessions


# ── how good it is ──────────────────────────────────────────────────────────────────────────────


def test_validation_is_by_true_labels_however_it_trains(tmp_path, config):
    """Mixing, smoothing, augmentation and balance do not reach it."""
    data = DataConfig(
        train="shapes://24?size=24", validation="shapes://13?size=24&seed=1", num_workers=0
    )
    made = config(tmp_path / "run", data=data, mix=MixConfig(smoothing=0.4), balance=1.0)
    figures = finetune.run(made).metrics
    model, source = load(tmp_path / "run"), open_source(data.validation)
    view = EvalView((16, 24), 0.875)
    with torch.no_grad():
        logits = model(torch.stack([view(source.image(index)) for index in range(13)]))
    right = (logits.argmax(dim=1) == source.labels).double()
    loss = -logits.log_softmax(dim=1)[range(13), source.labels].mean()
    shares = [right[source.labels == label].mean() for label in range(10)]  # one or two of each
    assert figures["val_loss"] == pytest.approx(float(loss), rel=1e-5)
    assert figures["val_top1"] == pytest.approx(float(right.mean()))
    assert figures["val_balanced"] == pytest.approx(float(sum(shares)) / 10)


@pytest.mark.parametrize("most", [10, 9])
def test_classes_are_counted_with_and_without_a_matrix(most, tmp_path, config, monkeypatch):
    monkeypatch.setattr(validation, "MATRIX", most)
    made = config(tmp_path / "run")
    _, held_out, classes = finetune.open_data(made)
    torch.manual_seed(5)
    model, _ = finetune.build_classifier(replace(made, init_scale=100.0), classes)
    fabric = launch(made.device)
    batches = finetune.validation_batches(made, held_out, model.config.backbone, fabric)
    validated = validation.validate(fabric, model, Reading(batches, fabric, 0.0, print))
    assert validated.total.tolist() == [2, 2, 2] + [1] * 7
    assert validated.metrics["val_top1"] == pytest.approx(int(validated.right.sum()) / 13)
    assert (validated.confusion is None) == (most == 9)


def test_an_imbalanced_set_is_sampled_in_balance(tmp_path, config, optim, monkeypatch):
    counts = {"ant": 12, "bee": 3, "cow": 1}
    train = folder(tmp_path / "train", counts)
    drawn = []
    views = FinetuneViews.__call__

    def viewing(self, image, generator):
        drawn.append((int(image[0, 0, 0]) // 40, generator.initial_seed()))
        return views(self, image, generator)

    monkeypatch.setattr(FinetuneViews, "__call__", viewing)
    data = DataConfig(train=train, num_workers=0, cache_gigabytes=0)
    for balance, expected in ((0.0, [12, 3, 1]), (1.0, [5, 5, 5])):
        drawn.clear()
        name = str(tmp_path / str(balance))
        run, brief = RunConfig(name), optim(batch_size=16, epochs=1)
        finetune.run(config(name, data=data, balance=balance, run=run, optim=brief))
        shown = [[label for label, _ in drawn].count(number) for number in range(3)]
        assert all(abs(one - other) <= 1 for one, other in zip(shown, expected, strict=True))
        assert len({seed for _, seed in drawn}) == 16  # each time a view of its own


# ── what goes wrong ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init": None}, "as in --model runs/pretrained or .*, got none"),
        ({"init": "a", "backbone": ViTConfig()}, "got both"),
        ({"image_size": (16, 24)}, "image_size is for --model; use backbone.image_size"),
        ({"backbone": ViTConfig(drop_path=0.1)}, "use drop_path instead"),
        ({"layer_decay": 0.0}, "layer_decay is 0.0"),
        ({"average": 1.0}, "average is 1.0"),
        ({"num_classes": 1}, "num_classes is 1"),
        ({"validate_every": 0}, "validate_every is 0"),
        ({"balance": 1.5}, "balance is 1.5; expected 0"),
        ({"carry_classes": True}, "init_classes and carry_classes are for --model"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes, message, tmp_path, config):
    with pytest.raises(ValueError, match=message):
        config(tmp_path / "run", **changes)


def folder(path, classes):
    """Class folders of four images each, or of as many as a dict says."""
    counts = classes if isinstance(classes, dict) else dict.fromkeys(classes, 4)
    for place, (name, count) in enumerate(counts.items()):
        (path / name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (24, 24), (40 * place, number, 0)).save(path / name / f"{number}.png")
    return str(path)


def test_images_without_labels_are_refused_before_they_are_decoded(tmp_path, config, monkeypatch):
    flat = folder(tmp_path / "flat", ["ant"]) + "/ant"
    labelled, decoded = folder(tmp_path / "labelled", ["ant", "bee"]), []
    monkeypatch.setattr(
        finetune, "cached", lambda source, *_, **__: decoded.append(len(source)) or source
    )
    settings = {"train": flat, "validation": "", "num_workers": 0, "cache_gigabytes": 1.0}
    for data, sizes in ((settings, []), ({**settings, "train": labelled, "validation": flat}, [8])):
        with pytest.raises(ValueError, match=r"flat/ant: images without a label"):
            finetune.run(config(tmp_path / "run", data=DataConfig(**data)))
        assert decoded == sizes


def test_data_that_cannot_be_are_refused_before_a_run_begins(tmp_path, config, optim):
    train = folder(tmp_path / "train", ["ant", "bee", "cow"])
    other = folder(tmp_path / "other", ["ant", "bee", "dog"])
    empty = folder(tmp_path / "empty", {"ant": 1, "bee": 9, "elk": 0, "cow": 3})
    numbers = tmp_path / "numbers.parquet"
    image = {"bytes": (tmp_path / "train" / "ant" / "0.png").read_bytes(), "path": None}
    rows = pyarrow.table({"image": [image] * 12, "label": [0, 1, 2] * 3 + [0, 3, 1]})
    parquet.write_table(rows, numbers)
    (tmp_path / "list").write_text("cow\nbee\n")
    few = optim(batch_size=16)
    odd = optim(batch_size=6, accumulate=2)
    alone = {"validation": ""}
    for data, changes, message in (
        ({"train": ""}, {}, "no training images given"),
        (
            {"train": train, "validation": other},
            {},
            "--validation .*other has 1 class that --data .*: dog",
        ),
        ({"train": empty} | alone, {}, "--data .*empty: no image in the class folder 'elk'"),
        (
            {"train": str(numbers)} | alone,
            {"num_classes": 3},
            r"numbers.parquet\[10\] has the label 3, but there are 3 classes; expected 0 to 2",
        ),
        (
            {"train": train} | alone,
            {"classes": str(tmp_path / "list")},
            "train has 1 class that the list of 2 lacks: ant",
        ),
        ({"train": train} | alone, {"optim": few}, "there are only 12; give a smaller"),
        ({"train": train} | alone, {"num_classes": 4}, "names 3 classes"),
        ({}, {"optim": odd}, "a process has 3 in a micro-step; choose an even number"),
        ({}, {"augment": AugmentConfig(repeats=3)}, "step of 8 images does not divide into 3"),
    ):
        made = config(tmp_path / "run", **changes)
        with pytest.raises(ValueError, match=message):
            finetune.run(replace(made, data=replace(made.data, **data)))
        assert not (tmp_path / "run").exists()


def test_validation_has_the_class_numbers_of_the_training_set(tmp_path, config, caplog):
    # Folders are sorted as text, 0, 1, 10, 11, 2, ...; the table has numbers only.
    train = folder(tmp_path / "train", dict.fromkeys(map(str, range(12)), 1))
    images = [{"bytes": file.read_bytes()} for file in sorted((tmp_path / "train").glob("*/*"))]
    labels = [int(file.parent.name) for file in sorted((tmp_path / "train").glob("*/*"))]
    rows = pyarrow.table({"image": images, "label": labels})
    parquet.write_table(rows, tmp_path / "numbers.parquet")
    data = DataConfig(train=train, validation=str(tmp_path / "numbers.parquet"))
    source, held_out, classes = finetune.open_data(config(tmp_path / "run", data=data))
    assert classes.names == tuple(sorted(map(str, range(12))))
    assert held_out.labels.tolist() == source.labels.tolist() == list(range(12))
    assert all(torch.equal(held_out.image(n), source.image(n)) for n in range(12))
    # A training set without names gets a validation set by the numbers of its folders.
    data = DataConfig(train=data.validation, validation=train)
    source, held_out, _ = finetune.open_data(config(tmp_path / "run", data=data))
    assert held_out.labels.tolist() == source.labels.tolist() == labels
    # Fewer classes, with accents as another system stores them: é decomposed.
    train = folder(tmp_path / "whole", ["caf\xe9", "the", "x"])
    data = DataConfig(train=train, validation=folder(tmp_path / "part", ["the", "cafe\u0301"]))
    _, held_out, classes = finetune.open_data(config(tmp_path / "run", data=data))
    assert held_out.labels.tolist() == [0] * 4 + [1] * 4
    assert "part: 1 of 3 classes has no image: x" in caplog.text


def test_heads_that_cannot_be_carried_are_refused(tmp_path, config, finished, trained_tokenizer):
    (tmp_path / "nine").write_text("\n".join(KINDS[:9]))
    (tmp_path / "others").write_text("\n".join(reversed(KINDS)))
    carry, ours = {"carry_classes": True}, Classes(2, ("ant", "bee"))
    for init, changes, classes, message in (
        (finished, carry, ours, "no class of the data is one of .*run, such as"),
        (finished, carry, Classes(2, None), "that of the data is unknown"),
        (finished, {"init_classes": str(tmp_path / "nine")}, ours, "names 9 classes, but the head"),
        (finished, {"init_classes": str(tmp_path / "others")}, ours, "contradicts .*run"),
        (trained_tokenizer, carry, ours, "holds a VQKD, which has no classes to carry over"),
    ):
        made = config(tmp_path / "new", init=str(init), **changes)
        with pytest.raises(ValueError, match=message):
            finetune.build_classifier(made, classes)


def test_an_existing_directory_is_refused_before_anything_is_read(finished, config, monkeypatch):
    monkeypatch.setattr(finetune, "open_set", None)
    with pytest.raises(FileExistsError, match=r"exists and is not overwritten.*--resume"):
        finetune.run(config(finished))


def test_unreadable_validation_images_are_left_out(tmp_path, config, optim, records, capsys):
    train = folder(tmp_path / "train", ["ant", "bee"])
    readable, holed = (folder(tmp_path / name, ["ant", "bee"]) for name in ("some", "test"))
    for number in (1, 2):
        (tmp_path / "test" / "bee" / f"{number}.png").write_bytes(b"broken")
        (tmp_path / "some" / "bee" / f"{number}.png").unlink()
    metrics = {}
    for name, validation_set in (("six", readable), ("eight", holed)):
        data = DataConfig(train, validation_set, num_workers=0, max_unreadable=0.25)
        run = RunConfig(str(tmp_path / name), stop_after=1)
        made = config(tmp_path / name, data=data, run=run, optim=optim(batch_size=4))
        metrics[name] = finetune.run(made).metrics
    counts = {"val_images": 6, "val_unreadable": 2}
    assert metrics["eight"] == metrics["six"] | counts
    assert records(tmp_path / "eight")[-1] == records(tmp_path / "six")[-1] | counts
    assert "unreadable, left out: bee/1.png: not an image" in capsys.readouterr().err
    few = replace(data, max_unreadable=0.2)
    run = replace(run, output=str(tmp_path / "few"))
    with pytest.raises(ValueError, match=r"2 of 8 images cannot be read.*raise max_unreadable"):
        finetune.run(replace(made, data=few, run=run))
    assert (tmp_path / "few" / "checkpoints" / "step-000000001.pt").exists()
