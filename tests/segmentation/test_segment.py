from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from beit.data.shapes import KINDS
from beit.nn.mim import MaskedImageModel, MaskedImageModelConfig
from beit.nn.segmenter import SegmenterConfig, SemanticSegmenter
from beit.nn.sliding import MapViewConfig
from beit.run.device import DeviceConfig
from beit.run.directory import RunConfig, RunDirectory
from beit.run.journal import Journal, Result
from beit.run.launch import launch
from beit.run.resume import redraw, resume
from beit.segmentation import evaluate as evaluate_segments
from beit.segmentation import loop, segment
from beit.segmentation.config import Config, HeadConfig, SegmentDataConfig
from beit.segmentation.optim import StepOptimConfig
from beit.segmentation.report import report
from beit.segmentation.validation import Validated
from beit.segmentation.views import SegmentViewConfig
from beit.weights.file import save_weights
from beit.weights.formats.published import to_published
from beit.weights.open import load

CLASSES = ("ground", *KINDS)
OPTIM = StepOptimConfig(batch_size=6, steps=8, learning_rate=1e-3, warmup_steps=2)


@pytest.fixture(scope="module")
def config(vit):
    """Makes runs of eight steps: checkpoints and validations at 4 and 8, log lines at 3, 6, too."""

    def make(output, **changes):
        settings: dict[str, Any] = {
            "data": SegmentDataConfig(
                "shapes://15?size=24", "shapes://5?size=30&seed=1", num_workers=0
            ),
            "head": HeadConfig(channels=8, auxiliary_channels=8),
            "view": SegmentViewConfig(long_side=96, short_side=24),
            "optim": OPTIM,
            "validate_every": 4,
            "run": RunConfig(str(output), log_every=3, checkpoint_every=4),
            "device": DeviceConfig(accelerator="cpu"),
        }
        if "init" not in changes:
            settings["backbone"] = vit(depth=4, relative_bias="per_block")
        return Config(**(settings | changes))

    return make


@pytest.fixture(scope="module")
def finished(tmp_path_factory, config):
    """The directory of a finished run."""
    output = tmp_path_factory.mktemp("segment") / "run"
    segment.run(config(output))
    return output


def test_a_run_leaves_everything(finished, records):
    names = {file.name for file in finished.iterdir()}
    assert names == {
        *("config.yaml", "environment.json", "images.json.gz", "metrics.jsonl", "speed.jsonl"),
        *("weights.safetensors", "report.html", "checkpoints", "lock"),
    }
    report = (finished / "report.html").read_text()
    for words in ("Class by class", "half disc", "image, truth, prediction"):
        assert words in report
    log = records(finished)
    assert [r["step"] for r in log if "loss" in r] == [3, 4, 6, 8]
    assert [r["step"] for r in log if "val_miou" in r] == [4, 8]
    assert all("auxiliary_loss" in r for r in log if "loss" in r)
    assert all(0 <= r["val_miou"] <= r["val_pixel_accuracy"] <= 1 for r in log if "val_miou" in r)
    assert [r["epoch"] for r in log if "loss" in r] == [1.5, 2, 3, 4]  # of two steps


def test_the_weights_are_a_segmenter_that_knows_its_classes(finished):
    model = load(finished)
    assert isinstance(model, SemanticSegmenter)
    assert model.config.class_names == CLASSES
    assert len(model.config.palette) == 11
    assert model.config.layers == (1, 2, 3, 4)
    assert model.config.backbone.drop_path == 0.15
    with torch.no_grad():
        assert model.predict(torch.zeros(2, 3, 16, 24, dtype=torch.uint8)).shape == (2, 11, 16, 24)


@pytest.mark.parametrize("steps", [(3,), (5, 7)])
def test_a_resumed_run_is_the_uninterrupted_one(
    steps, tmp_path, finished, config, interrupt_at, same_bits
):
    made = config(tmp_path / "run")
    for number, step in enumerate(steps):
        interrupt_at(segment, made, step, resume=number > 0)
    resume(segment, tmp_path / "run")
    same_bits(finished, tmp_path / "run")


def test_gradient_checkpointing_changes_memory_not_results(
    tmp_path, finished, config, checkpointing, same_bits
):
    segment.run(config(tmp_path / "run", device=checkpointing))
    same_bits(finished, tmp_path / "run")


def test_a_run_stopped_in_its_last_validation_resumes_there(
    tmp_path, finished, config, interrupt_in_validation, same_bits
):
    interrupt_in_validation(segment, loop, config(tmp_path / "run"), 2)
    resume(segment, tmp_path / "run")
    same_bits(finished, tmp_path / "run")


def test_the_report_of_a_finished_run_is_drawn_again(finished):
    before = (finished / "report.html").read_text()
    (finished / "report.html").unlink()
    redraw(segment, finished)
    assert (finished / "report.html").read_text() == before


def test_a_class_with_an_iou_of_0_is_named(tmp_path, config, caplog):
    run = RunDirectory.create(tmp_path / "run", {}, {"verb": "segment"})
    run.metrics_file.write_text('{"step": 8, "loss": 1.0}\n')
    source, _ = segment.open_data(made := config(run.path))
    confusion = torch.eye(11, dtype=torch.int64) * 50
    confusion[3] = confusion[3].roll(1)
    report(run, made, source, "", 8, Validated({}, confusion, []))
    named = f"no validation pixel of {CLASSES[3]} is classified correctly (1 of 11 classes)"
    assert named in caplog.text
    assert named in run.report_file.read_text()


def test_the_next_command_reads_the_label_maps_as_the_run_did(tmp_path, config):
    data = SegmentDataConfig("a", "b", validation_maps="c", classes="d", reduce_zero_label=True)
    result = Result(tmp_path / "run", {"val_miou": 0.5}, [])
    views = MapViewConfig(scales=(0.5, 1.0), flip=True)
    made = config(tmp_path / "run", data=data, validation_views=views)
    then = segment.ending(made, result).then
    assert then[:2] == ["evaluate", "--model"]
    said = dict(zip(then[1::2], then[2::2], strict=True))
    assert (said["--maps"], said["--classes"], said["--reduce_zero_label"]) == ("c", "d", "true")
    assert (said["--views.scales"], said["--views.flip"]) == ("[0.5, 1.0]", "true")
    assert "--views.mode" not in said


def test_validation_images_that_are_trained_on_are_counted(tmp_path, config, finished):
    data = SegmentDataConfig("shapes://15?size=24", "shapes://5?size=24", num_workers=0)
    segment.run(config(tmp_path / "run", data=data))
    log = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert log.count("5 of the 5 images of --validation shapes://5?size=24 are in") == 1
    assert "images of --validation" not in (finished / "metrics.jsonl").read_text()


def test_the_best_weights_are_kept(tmp_path, config, monkeypatch):
    validate, scored = loop.validate, []

    def falling(*arguments):
        scored.append(0.9 - 0.1 * len(scored))
        validated = validate(*arguments)
        return validated._replace(metrics=validated.metrics | {"val_miou": scored[-1]})

    monkeypatch.setattr(loop, "validate", falling)
    segment.run(config(tmp_path / "best"))
    run = RunConfig(str(tmp_path / "cut"), stop_after=4)
    segment.run(config(tmp_path / "cut", run=run, keep="last"))
    kept, cut = (load_file(tmp_path / name / "weights.safetensors") for name in ("best", "cut"))
    assert not [name for name in cut if not torch.equal(kept[name], cut[name])]
    assert "those of step 4, chosen" in (tmp_path / "best" / "report.html").read_text()


# ── the step ────────────────────────────────────────────────────────────────────────────────────


def test_a_step_by_hand(tmp_path, config, records):
    """Both losses over all pixels, layer decay, the warm-up's rate and AdamW, written out."""
    rate, decay, eps = 0.02, 0.7, 1e-4
    optim = replace(
        OPTIM, learning_rate=rate, weight_decay=0.05, eps=eps, warmup_steps=4, warmup_ratio=0.25
    )
    made = config(
        tmp_path / "run",
        head=HeadConfig(channels=8, auxiliary_channels=8, dropout=0.0),
        run=RunConfig(str(tmp_path / "run"), seed=4, stop_after=1),
        optim=optim,
        drop_path=0.0,
        layer_decay=decay,
    )
    made = replace(made, data=replace(made.data, validation=""))
    segment.run(made)

    source, _ = segment.open_data(made)
    torch.manual_seed(4)
    model, _ = segment.build_segmenter(made, source)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    fabric = launch(made.device)
    journal = Journal(segment.VERB, made, fabric, made.optim.schedule(len(source)), None)
    (batch,) = segment.training_batches(made, source, model.config.backbone, journal)
    labels = batch.label_maps.long()
    assert (labels == 255).any()  # smaller images are padded
    outputs = model.train()(batch.images)
    losses = []
    for logits in outputs:
        fine = F.interpolate(logits, size=(16, 24), mode="bilinear", align_corners=False)
        right = fine.log_softmax(dim=1).gather(1, labels.where(labels != 255, 0)[:, None])[:, 0]
        losses.append(-(right * (labels != 255)).sum() / labels.numel())
    (losses[0] + 0.4 * losses[1]).backward()
    after = load_file(tmp_path / "run" / "weights.safetensors")
    for name, parameter in model.named_parameters():
        gradient = parameter.grad
        layer = 5  # of four blocks: pyramid, decoder and auxiliary head
        if "blocks." in name:
            layer = 1 + int(name.split("blocks.")[1].split(".")[0])
        elif name.startswith(("backbone.cls", "backbone.patch")):
            layer = 0
        scaled = 0.25 * rate * decay ** (5 - layer)
        weight_decay = 0.05 if gradient.ndim > 1 and "cls_token" not in name else 0.0
        expected = before[name] * (1 - scaled * weight_decay)
        expected -= scaled * gradient / (gradient.abs() + eps)  # Adam's first step
        # Of a step at most `scaled` long; sums of float32 in another order, small gradients.
        torch.testing.assert_close(after[name], expected, rtol=0, atol=2e-3 * scaled, msg=name)
    line = records(tmp_path / "run")[0]
    assert line["rate"] == pytest.approx(0.25 * rate)
    assert line["loss"] == pytest.approx(losses[0].item(), rel=1e-5)
    assert line["auxiliary_loss"] == pytest.approx(losses[1].item(), rel=1e-5)


def test_micro_steps_change_memory_not_results(tmp_path, config, records, same_to_rounding):
    """Of a linear head, which has no batch statistics."""
    for name, accumulate in (("one", 1), ("two", 2)):
        settings = {"optim": replace(OPTIM, accumulate=accumulate), "drop_path": 0.0}
        head = HeadConfig("linear", dropout=0.0)
        segment.run(config(tmp_path / name, head=head, **settings))
    same_to_rounding(records(tmp_path / "one"), records(tmp_path / "two"), 2e-5)
    assert not any("auxiliary_loss" in record for record in records(tmp_path / "one"))


# ── starts ──────────────────────────────────────────────────────────────────────────────────────


def test_from_a_published_pretrained_file(tmp_path, config, vit):
    numbers = MaskedImageModelConfig(
        vit(image_size=(24, 24), depth=4), 7, early_layers=1, head_layers=0
    )
    model = MaskedImageModel(numbers)
    nn.init.normal_(model.backbone.rel_pos_bias.table)
    torch.save({"model": to_published(model)}, tmp_path / "published.pth")
    made = config(
        tmp_path / "run", init=str(tmp_path / "published.pth"), num_heads=3, image_size=(16, 32)
    )
    source, _ = segment.open_data(made)
    built, carried = segment.build_segmenter(made, source)
    assert carried == ""
    assert built.backbone.config.image_size == (16, 32)
    for ours, theirs in zip(built.backbone.blocks, model.backbone.blocks, strict=True):
        assert torch.equal(ours.attn.qkv.weight, theirs.attn.qkv.weight)
        assert ours.attn.rel_pos_bias.table.shape == (3 * 7 + 3, 3)
    assert isinstance(built.backbone.norm, nn.Identity)
    linear = replace(made, head=HeadConfig("linear"))
    built, _ = segment.build_segmenter(linear, source)
    assert torch.equal(built.backbone.norm.weight, model.backbone.norm.weight)


@pytest.mark.parametrize(
    ("names", "kept"), [(CLASSES, True), (CLASSES[::-1], False), ("ab", False)]
)
def test_from_a_segmenter_its_decoder_comes_along(names, kept, tmp_path, config, vit):
    numbers = SegmenterConfig(
        vit(depth=5, relative_bias="per_block"),
        len(names),
        (1, 2, 4, 5),
        channels=8,
        auxiliary_channels=8,
        class_names=tuple(names),
    )
    model = SemanticSegmenter(numbers)
    save_weights(tmp_path / "start.safetensors", model)
    made = config(tmp_path / "run", init=str(tmp_path / "start.safetensors"))
    source, _ = segment.open_data(made)
    built, carried = segment.build_segmenter(made, source)
    assert built.config.layers == (1, 2, 4, 5)
    assert torch.equal(built.decoder.fuse.conv.weight, model.decoder.fuse.conv.weight)
    same = built.decoder.head.weight.shape == model.decoder.head.weight.shape
    assert (same and torch.equal(built.decoder.head.weight, model.decoder.head.weight)) is kept
    assert ("copied, with" in carried) is kept
    other = replace(made, head=HeadConfig(channels=4))
    assert "was left out" in segment.build_segmenter(other, source)[1]


def test_ade20k_from_its_layout_to_figures_at_several_scales(tmp_path, config):
    """150 classes, of which 0 in the files does not count; images of several sizes."""
    generator = np.random.default_rng(2)
    root = tmp_path / "ADEChallengeData2016"
    for split, count in (("training", 7), ("validation", 3)):
        for folder in ("images", "annotations"):
            (root / folder / split).mkdir(parents=True)
        for number in range(count):
            height, width = generator.integers(20, 45, 2).tolist()
            pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
            labels = generator.integers(0, 151, (height, width), dtype=np.uint8)
            name = f"ADE_{split}_{number:08d}"
            Image.fromarray(pixels).save(root / "images" / split / f"{name}.jpg")
            Image.fromarray(labels).save(root / "annotations" / split / f"{name}.png")
    made = config(
        tmp_path / "run",
        data=SegmentDataConfig(str(root), str(root), classes="ade20k", num_workers=0),
        optim=replace(OPTIM, steps=2),
    )
    result = segment.run(made)
    model = load(tmp_path / "run")
    assert model.config.class_names[:2] == ("wall", "building")
    assert model.config.palette[0] == (120, 120, 120)
    settings = {"num_workers": 0, "device": DeviceConfig(accelerator="cpu")}
    plain = evaluate_segments.run(
        evaluate_segments.Config(str(tmp_path / "run"), str(root), **settings)
    )
    assert plain.record["images"] == {"evaluated": 3, "unreadable": []}
    figures = {f"val_{name}": value for name, value in plain.record["figures"].items()}
    assert figures == pytest.approx(result.metrics)  # validation sees images as evaluation does
    views = MapViewConfig(scales=(0.5, 1.25), flip=True)
    several = evaluate_segments.run(
        evaluate_segments.Config(str(tmp_path / "run"), str(root), views=views, **settings)
    )
    assert 0 <= several.record["figures"]["miou"] < 0.1


# ── what cannot be ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": None}, "not neither"),
        ({"init": "somewhere"}, "not both"),
        ({"image_size": (16, 24)}, "image_size is for --model; use backbone.image_size"),
        ({"drop_path": 1.0}, r"drop_path is 1.0"),
        ({"layer_decay": 0.0}, r"layer_decay is 0.0"),
        ({"validate_every": 0}, "validate_every is 0"),
        ({"validation_batch": 0}, "validation_batch is 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes, message, tmp_path, config, vit):
    settings = {"backbone": vit(depth=4)} if "init" in changes else {}
    with pytest.raises(ValueError, match=message):
        config(tmp_path / "run", **settings, **changes)


def test_parts_that_do_not_fit_are_refused_before_anything_is_written(tmp_path, config, vit):
    small = replace(OPTIM, batch_size=6, accumulate=6)
    for changes, message in (
        ({"head": HeadConfig(layers=(1, 2, 3))}, "four backbone blocks"),
        ({"backbone": vit(depth=5)}, ""),
        ({"head": HeadConfig(layers=(1, 2, 3, 4)), "backbone": vit(depth=5)}, "must be 5"),
        ({"backbone": vit(depth=3)}, r"four backbone blocks in ascending order"),
        ({"optim": small}, "batch normalisation needs 2 images or more at a time"),
        ({"optim": replace(OPTIM, batch_size=16)}, "a step takes 16 images .* only 15"),
        ({"data": SegmentDataConfig()}, "no training images given"),
    ):
        made = config(tmp_path / "run", **changes)
        if not message:
            assert segment.chosen_layers(made, 5, None) == (2, 3, 4, 5)
            continue
        with pytest.raises(ValueError, match=message):
            segment.run(made)
        assert not (tmp_path / "run").exists()
    model = SemanticSegmenter(SegmenterConfig(vit(depth=4), 11, (1, 2, 3, 4), channels=8))
    save_weights(tmp_path / "start.safetensors", model)
    made = config(tmp_path / "run", init=str(tmp_path / "start.safetensors"), image_size=(20, 24))
    with pytest.raises(ValueError, match=r"\(20, 24\) is not a multiple of patch size 8"):
        segment.run(made)


class Processes:
    """A fabric of several processes, as far as batch normalisation is concerned."""

    def __init__(self, world_size: int, device: str) -> None:
        self.world_size, self.device = world_size, torch.device(device)


def test_batch_statistics_are_of_all_processes(vit):
    numbers = SegmenterConfig(vit(depth=4), 3, (1, 2, 3, 4), channels=8)
    model = SemanticSegmenter(numbers)
    names = list(model.state_dict())
    held = model.decoder.fuse.norm.weight
    assert segment.synchronised(model, Processes(1, "cpu"), 2) is model
    with pytest.raises(ValueError, match="over 2 processes needs GPUs"):
        segment.synchronised(model, Processes(2, "cpu"), 2)
    linear = SemanticSegmenter(replace(numbers, head="linear"))
    assert segment.synchronised(linear, Processes(2, "cpu"), 1) is linear
    whole = segment.synchronised(model, Processes(2, "cuda"), 1)
    norms = [m for m in whole.modules() if isinstance(m, nn.SyncBatchNorm)]
    assert len(norms) == 1 + 4 + 1 + 3 + 3 + 1 + 1
    assert not any(isinstance(m, nn.BatchNorm2d) for m in whole.modules())
    assert whole.decoder.fuse.norm.weight is held
    assert list(whole.state_dict()) == names
    assert type(whole).__name__ == "SemanticSegmenter"


def test_the_data_name_the_classes_of_validation(tmp_path, config):
    made = config(tmp_path / "run")
    source, validation = segment.open_data(made)
    assert source.class_names == validation.class_names == CLASSES
    assert Path(made.run.output).exists() is False
