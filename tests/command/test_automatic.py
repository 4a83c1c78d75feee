"""What is chosen from images and machine, by hand; and that options and held-out images count."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from tests.conftest import tokenizer_config

from beit.command import presets
from beit.command.options import parse
from beit.command.rules import Geometry, Given, fitted
from beit.command.survey import Images, Machine, Options
from beit.finetuning import finetune
from beit.finetuning.config import Config as FinetuneConfig
from beit.nn.vit import ViTConfig
from beit.pretraining import pretrain
from beit.pretraining.config import Config as PretrainConfig
from beit.tokenizer import vqkd
from beit.weights.file import save_weights
from beit.weights.start import FOLLOWING

CPU, GPU = Machine(2, 16.0, 0.0), Machine(16, 128.0, 80.0)
PHOTOS = Images("photos[:90%]", "photos[90%:]", 2700, 3000)


def chosen(images=PHOTOS, has=CPU, options=None, verb="train-tokenizer", given=None):
    kind = "gpu" if has.gpu else "cpu"
    preset = presets.read_yaml(presets.path_of(f"photos-{kind}"))[verb]
    return fitted(verb, preset, images, has, Options(options or {}), given)[0]


def folder(path: Path, counts: dict[str, int], size: int = 40) -> str:
    """Write random images into class folders; "" is the folder itself."""
    generator = np.random.default_rng(0)
    for name, count in counts.items():
        (path / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            pixels = generator.integers(0, 256, (size, size + 3, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path / name / f"{number}.png")
    return str(path)


def test_usual_photos_get_the_numbers_of_the_preset():
    preset = presets.read_yaml(presets.path_of("photos-cpu"))["train-tokenizer"]
    values = chosen()
    encoder = values["model"]["encoder"]
    assert encoder["image_size"] == preset["model"]["encoder"]["image_size"] == [96, 96]
    assert values["model"]["num_codes"] == preset["model"]["num_codes"]
    assert values["teacher"]["image_size"] == preset["teacher"]["image_size"]
    assert values["optim"]["batch_size"] == 64
    assert values["optim"]["epochs"] == pytest.approx(preset["optim"]["epochs"], abs=5)
    large = chosen(has=GPU)["model"]["encoder"]
    assert (large["image_size"], large["width"], large["depth"]) == ([224, 224], 384, 12)


def test_few_images_get_small_batches_few_codes_and_no_more_than_so_many_epochs():
    values = chosen(PHOTOS._replace(number=50))
    assert values["optim"]["batch_size"] == 16  # three steps an epoch
    assert values["model"]["num_codes"] == 32  # 50 * 36 patches, 64 for a code, but 32 at least
    assert values["optim"]["epochs"] == 300
    assert chosen(PHOTOS._replace(number=1000))["model"]["num_codes"] == 512


def test_small_images_are_not_enlarged():
    sizes = [chosen(PHOTOS._replace(side=side))["model"]["encoder"] for side in (32, 64, 95, 96)]
    assert [(e["image_size"][0], e["patch_size"]) for e in sizes] == [
        (32, 8),
        (64, 16),
        (64, 16),
        (96, 16),
    ]


def test_a_budget_sets_the_most_epochs_and_a_long_one_a_larger_model():
    assert chosen(options={"run": {"budget": "30m"}})["optim"]["epochs"] == 300
    encoder = chosen(options={"run": {"budget": "8h"}})["model"]["encoder"]
    assert (encoder["image_size"], encoder["depth"]) == ([128, 128], 12)


def test_a_budget_needs_a_unit(tmp_path):
    arguments = ["--data", folder(tmp_path / "photos", {"": 40}), "--budget", "10"]
    with pytest.raises(ValueError, match="for minutes write 10m"):
        parse("train-tokenizer", vqkd.Config, [*arguments, "--output", str(tmp_path / "run")])


def test_what_is_told_decides_what_follows():
    values = chosen(options={"model": {"encoder": {"image_size": [64, 128]}}})
    encoder = values["model"]["encoder"]
    assert (encoder["image_size"], encoder["patch_size"]) == ([64, 128], 16)
    values = chosen(options={"optim": {"epochs": 10, "batch_size": 8}})
    assert values["optim"] == {"batch_size": 8, "epochs": 10, "warmup_epochs": 0.5}
    assert values["model"]["num_codes"] == 64  # of 8 * 36 patches


def test_a_batch_larger_than_the_set_is_refused():
    with pytest.raises(ValueError, match=r"batch_size is 512, but there are 50 training images"):
        chosen(PHOTOS._replace(number=50), options={"optim": {"batch_size": 512}})


def test_pretraining_has_the_tokenizers_grid():
    values = chosen(verb="pretrain", given=Given("", Geometry((64, 96), 16)))
    assert values["model"]["backbone"]["image_size"] == [64, 96]
    assert values["mask"] == {"count": 9, "min_block": 2}
    assert values["check"]["every"] > 0
    assert chosen(PHOTOS._replace(unchecked="none"), verb="pretrain")["check"]["every"] == 0


@pytest.mark.parametrize(("labels", "epochs"), [(500, 100), (5_000, 20), (50_000, 8)])
def test_fine_tuning_is_as_long_as_was_measured(labels, epochs):
    vit = {"width": 192, "depth": 6}
    given = Given("runs/mine", Geometry((32, 32), 8), vit)
    values = chosen(PHOTOS._replace(number=labels), verb="finetune", given=given)
    assert (values["optim"]["batch_size"], values["optim"]["epochs"]) == (128, epochs)
    assert "backbone" not in values  # it is the model's
    fresh = chosen(verb="finetune", options={"backbone": {"depth": 2}})["backbone"]
    assert (fresh["image_size"], fresh["width"], fresh["depth"]) == ([96, 96], 192, 2)
    assert "backbone" not in chosen(verb="finetune")  # no network that nobody asked for


def test_fine_tuning_follows_model_and_labels(tmp_path):
    run = vqkd.run(replace(tokenizer_config(tmp_path / "tok"), crop_ratio=0.9)).directory
    photos = folder(tmp_path / "photos", {"a": 12, "b": 4})  # fewer than pretraining needs
    words = ["--data", photos, "--model", str(run), "--output", str(tmp_path / "classifier")]
    config = parse("finetune", FinetuneConfig, [*words, "--optim.epochs", "1"])
    assert (config.data.train, config.data.validation) == (f"{photos}[:75%]", f"{photos}[75%:]")
    assert (config.optim.batch_size, config.crop_ratio) == (4, 0.9)  # the crop of the run
    assert any(f"as {run}" in line for line in config.run.chosen)
    assert "val_top1" in finetune.run(config).metrics


def test_held_out_images_are_not_trained_on(tmp_path):
    data = folder(tmp_path / "photos", {"": 40})
    config = parse("train-tokenizer", vqkd.Config, ["--data", data, "--output", "runs/x"])
    assert (config.data.train, config.data.validation) == (f"{data}[:75%]", f"{data}[75%:]")
    assert config.model.encoder.image_size == (32, 32)
    assert any("held out" in line for line in config.run.chosen)


def test_of_a_mixture_nothing_is_held_out(tmp_path):
    data = f"{{{folder(tmp_path / 'a', {'': 30})}: 1, {folder(tmp_path / 'b', {'': 20})}: 2}}"
    config = parse("train-tokenizer", vqkd.Config, ["--data", data, "--output", "runs/x"])
    assert (config.data.train, config.data.validation) == (data, "")
    assert any("a mixture is for training" in line for line in config.run.chosen)


def test_a_split_of_the_data_is_taken(tmp_path):
    data = folder(tmp_path / "photos", {"train": 30, "val": 12})
    config = parse("train-tokenizer", vqkd.Config, ["--data", data, "--output", "runs/x"])
    assert (config.data.train, config.data.validation) == (data, data)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--optim.epochs=drei", "epochs is 'drei'; expected a number above 0"),
        ("--optim.batch_size=0", "batch_size is 0; expected a number above 0"),
        ("--model.encoder.patch_size=x", "patch_size is 'x'; expected a number"),
        ("--data.limit=x", "limit is 'x'; expected a number"),
        ("--model.encoder.image_size=[96]", r"image_size is \[96\]; expected one side or \[height"),
        ("--model.encoder.image_size=big", "image_size is 'big'; expected one side"),
    ],
)
def test_other_values_are_named(tmp_path, option, message):
    data = folder(tmp_path / "photos", {"": 30})
    with pytest.raises(ValueError, match=message):
        parse("train-tokenizer", vqkd.Config, ["--data", data, "--output", "runs/x", option])


def test_too_few_images_are_refused(tmp_path):
    data = folder(tmp_path / "photos", {"": 5})
    with pytest.raises(ValueError, match=r"has 5 images, too few .* it needs 20"):
        parse("train-tokenizer", vqkd.Config, ["--data", data, "--output", "runs/x"])


def test_finetune_without_labels_is_refused_before_images_are_decoded(tmp_path, pretrained):
    data = folder(tmp_path / "photos", {"": 30})
    source = str(tmp_path / "source.safetensors")
    save_weights(source, pretrained)
    with pytest.raises(ValueError, match="all need a class here, from class folders or a table"):
        parse("finetune", FinetuneConfig, ["--data", data, "--model", source, "--output", "x"])


def test_options_and_presets_override(tmp_path):
    data = folder(tmp_path / "photos", {"": 30})
    options = ["--data", data, "--validation", "", "--model.encoder.image_size", "64"]
    config = parse("train-tokenizer", vqkd.Config, [*options, "--data.num_workers=7"])
    assert (config.data.train, config.data.validation) == (data, "")
    assert config.model.encoder.image_size == (64, 64)
    assert config.data.num_workers == 7
    config = parse("train-tokenizer", vqkd.Config, ["--preset", "shapes-tiny", "--data", data])
    assert (config.data.train, config.run.chosen) == (data, ())


def test_a_model_has_the_channels_of_the_images(tmp_path):
    for number in range(30):
        pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 5), np.uint8)
        np.save(tmp_path / f"{number}.npy", pixels)
    options = ["--data", f"{tmp_path}?bands=1-5", "--teacher.channels=[1,2,3]"]
    encoder = parse("train-tokenizer", vqkd.Config, options).model.encoder
    assert (encoder.in_channels, encoder.mean) == (5, (0.5,) * 5)
    backbone = chosen(PHOTOS._replace(channels=5), verb="pretrain")["model"]["backbone"]
    assert (backbone["in_channels"], backbone["std"]) == (5, [0.5] * 5)


def test_pretraining_takes_data_and_crops_from_the_tokenizers_run(tmp_path):
    run = vqkd.run(tokenizer_config(tmp_path / "tok")).directory
    config = parse("pretrain", PretrainConfig, ["--tokenizer", str(run), "--output", "runs/x"])
    assert config.data.train.startswith("shapes://43")
    assert config.data.validation.startswith("shapes://13")
    assert (config.model.backbone.image_size, config.model.backbone.patch_size) == ((16, 24), 8)
    assert config.view.min_scale == 0.5
    pretrain.all_sets(config)  # they can be opened


@pytest.mark.parametrize(
    ("counts", "checked"), [({"": 30}, False), ({"a": 30}, False), ({"a": 20, "b": 20}, True)]
)
def test_a_presets_check_is_left_out_if_images_lack_labels(counts, checked, tmp_path):
    data = folder(tmp_path / "photos", counts)
    options = ["--preset", "cifar10-gpu", "--data", f"{data}[:80%]"]
    options += ["--validation", f"{data}[80%:]"]
    config = parse("pretrain", PretrainConfig, options)
    assert bool(config.check.every) == checked
    told = parse("pretrain", PretrainConfig, [*options, "--check.every=3"])
    assert told.check.every == 3


@pytest.mark.parametrize("verb", ["train-tokenizer", "finetune"])
def test_validation_images_of_a_preset_are_named_if_the_data_are_not_its_own(verb, caplog):
    caplog.set_level("INFO")
    preset = {"train-tokenizer": "cifar10-cpu", "finetune": "cifar10-ft-cpu-scratch"}[verb]
    own = ["--preset", preset, "--data", "photos"]
    kind = {"train-tokenizer": vqkd.Config, "finetune": FinetuneConfig}[verb]
    for words, notes in ((own, 1), ([*own, "--validation", ""], 0), (own[:2], 0)):
        caplog.clear()
        parse(verb, kind, words)
        assert caplog.text.count(f"test.parquet, of preset {preset}") == notes


# ── training that starts from other weights ─────────────────────────────────────────────────────


def test_a_network_follows_the_weights_unless_it_is_set(tmp_path, pretrained):
    source = str(tmp_path / "source.safetensors")
    save_weights(source, pretrained)
    words = ["--preset", "shapes-tiny", "--tokenizer", "runs/tok", "--init", source]
    model = parse("pretrain", PretrainConfig, words).model
    theirs = pretrained.config.backbone
    followed = {name: getattr(theirs, name) for name in FOLLOWING}
    kept = {"image_size": (32, 32), "drop_path": 0.0, "init_bound": 0.02}  # those of the preset
    assert model.backbone == replace(ViTConfig(), **(followed | kept))
    assert (model.early_layers, model.head_layers, model.shared_head) == (2, 1, False)
    (tmp_path / "mine.yaml").write_text("model: {backbone: {width: 48}, head_layers: 3}\n")
    words += ["--config", str(tmp_path / "mine.yaml"), "--model.backbone.num_heads", "4"]
    config = parse("pretrain", PretrainConfig, words)
    vit = config.model.backbone
    assert (vit.width, vit.num_heads, vit.depth) == (48, 4, 3)  # the run refuses the first two
    assert (config.model.head_layers, config.model.early_layers) == (3, 2)
    assert config.run.chosen[-1].startswith(f"as {source}, unless set: patch_size 4, ")
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(asdict(config)))))
    assert parse("pretrain", PretrainConfig, ["--config", str(tmp_path / "again.yaml")]) == config


def test_a_tokenizer_follows_another_one(tmp_path, tokenizer):
    source = str(tmp_path / "source.safetensors")
    save_weights(source, tokenizer)
    words = ["--preset", "cifar10-cpu", "--init", source]
    config = parse("train-tokenizer", vqkd.Config, words)
    theirs = tokenizer.config
    assert replace(config.model, encoder=theirs.encoder, teacher_width=7) == theirs
    assert config.model.encoder.width == theirs.encoder.width
    assert (config.codebook.start_after, config.codebook.revive_every) == (0, 10)
    frozen = parse("train-tokenizer", vqkd.Config, [*words, "--freeze", "codes"])
    assert (frozen.codebook.start_after, frozen.codebook.revive_every) == (0, 0)
    other = parse("train-tokenizer", vqkd.Config, [*words, "--model.num_codes", "64"])
    assert (other.model.num_codes, other.codebook.start_after) == (64, 60)  # a new codebook
    encoder = parse("train-tokenizer", vqkd.Config, [*words[:2], "--init", source])
    assert encoder == config


def test_without_a_preset_the_weights_and_the_tokenizer_decide(tmp_path, tokenizer, pretrained):
    for name, model in (("tok", tokenizer), ("vit", pretrained)):
        save_weights(tmp_path / f"{name}.safetensors", model)
    photos = folder(tmp_path / "photos", {"": 40})
    words = ["--data", photos, "--init", str(tmp_path / "vit.safetensors")]
    codes = ["--tokenizer", str(tmp_path / "tok.safetensors")]
    model = parse("pretrain", PretrainConfig, [*words, *codes]).model
    assert model.backbone.grid == tokenizer.grid == (3, 5)
    assert (model.backbone.patch_size, model.backbone.width) == (4, 24)
    pixels = parse("pretrain", PretrainConfig, [*words, "--target.kind", "pixels"]).model
    assert pixels.backbone.image_size == (16, 16)
    encoder = parse("train-tokenizer", vqkd.Config, words).model.encoder
    assert (encoder.image_size, encoder.width, encoder.depth) == ((16, 16), 24, 3)
