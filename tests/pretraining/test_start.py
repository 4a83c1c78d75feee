"""Pretraining that starts from other weights: the first loss is the source's, the rest is told."""

from dataclasses import replace

import pytest
import torch
from tests.conftest import scrambled

from beit.data.batches import TrainBatches
from beit.data.order import step_generator
from beit.data.views import TrainViews, ViewConfig
from beit.nn.masking import draw_masks
from beit.nn.mim import MaskedImageModel
from beit.nn.vit import VisionTransformer
from beit.pretraining import pretrain
from beit.pretraining.start import start_from
from beit.pretraining.targets import TargetConfig
from beit.run.batches import open_train
from beit.run.launch import launch
from beit.run.resume import resume
from beit.weights.file import save_weights
from beit.weights.formats.published import to_published
from beit.weights.formats.timm_beit import to_timm
from beit.weights.open import load


@pytest.fixture
def begun(tmp_path, trained_tokenizer, pretrain_config, vit):
    """The settings of a run of one step, without random depth and colours."""

    def config(init, name="run", **changes):
        base = pretrain_config(tmp_path / name, trained_tokenizer, init=str(init))
        model = replace(base.model, backbone=vit())
        view = ViewConfig(min_scale=0.5, color_jitter=0.0)
        run = replace(base.run, log_every=1, stop_after=1)
        return replace(base, **{"model": model, "view": view, "run": run} | changes)

    return config


@pytest.fixture(scope="module")
def source_run(tmp_path_factory, trained_tokenizer, pretrain_config, vit):
    """A finished run with an own head of the aggregation."""
    output = tmp_path_factory.mktemp("source") / "run"
    config = pretrain_config(output, trained_tokenizer)
    pretrain.run(replace(config, model=replace(config.model, backbone=vit(), shared_head=False)))
    return output


def first_loss(config, model):
    """The loss of a model on the images and masks of a run's first step."""
    target, _ = pretrain.build(config, launch(config.device))
    views = TrainViews(config.view, model.image_size, target.image_size, target.lanczos)
    data, size = open_train(config, views), config.optim.batch_size
    (batch,) = TrainBatches(data, views, batch_size=size, seed=0, start_step=0, num_steps=1)
    generator = step_generator(config.run.seed, 1, "masks")
    masked = draw_masks(config.mask, size, model.config.backbone.grid, generator)
    with torch.no_grad():
        codes = target.of(batch.target_images, masked)
        losses = model(batch.images, masked, codes=codes)
    return float(losses.patch_loss + losses.cls_loss)


def own_head(config):
    return replace(config, model=replace(config.model, shared_head=False))


def test_from_a_run_the_first_loss_is_that_of_its_weights(begun, source_run, records, capsys):
    config = own_head(begun(source_run))
    pretrain.run(config)
    (line,) = [r for r in records(source_run.parent / config.run.output) if "loss" in r]
    assert line["loss"] == pytest.approx(first_loss(config, load(source_run)), rel=1e-6)
    assert "head for 11 codes (of the same tokenizer)" in capsys.readouterr().err


def test_from_a_published_file_the_first_loss_is_that_of_its_weights(
    begun, tmp_path, vit, records, capsys
):
    model = begun("").model
    model = scrambled(MaskedImageModel(replace(model, num_codes=11)))
    torch.save({"model": to_published(model)}, tmp_path / "pt.pth")
    config = begun(tmp_path / "pt.pth")
    with pytest.raises(ValueError, match="early_layers"):  # the file does not say which block
        load(tmp_path / "pt.pth", image_size=(16, 24))
    pretrain.run(config)
    (line,) = [r for r in records(tmp_path / "run") if "loss" in r]
    assert line["loss"] == pytest.approx(first_loss(config, model), rel=1e-6)
    assert "as many as the source's, which does not name its tokenizer" in capsys.readouterr().err


def test_from_timm_the_backbone_is_taken_and_the_head_is_new(begun, tmp_path, vit):
    source = scrambled(VisionTransformer(vit()))
    torch.save(to_timm(source), tmp_path / "timm.pth")
    config = begun(tmp_path / "timm.pth")
    target, mim = pretrain.build(config, launch(config.device))
    fresh = {name: tensor.clone() for name, tensor in mim.state_dict().items()}
    text = start_from(config.init, config, mim, target)
    for name, tensor in mim.state_dict().items():
        own = name.removeprefix("backbone.")
        expected = source.state_dict()[own] if own != name else fresh[name]
        assert torch.equal(tensor, expected), name
    assert text.endswith("new: mask token, aggregation, head (the source has none)")


def test_what_does_not_fit_is_new_and_told(begun, tmp_path, source_run, trained_tokenizer, vit):
    def account(config):
        target, mim = pretrain.build(config, launch(config.device))
        fresh = mim.head.weight.clone()
        text = start_from(config.init, config, mim, target)
        return text, torch.equal(mim.head.weight, fresh)

    shared = account(begun(source_run))
    assert "left out: cls_norm (the head is shared); cls_head (the head is shared)" in shared[0]
    assert not shared[1]
    config = begun(source_run)
    deeper = replace(config.model, early_layers=2, backbone=vit(image_size=(32, 24)))
    codes = load(trained_tokenizer)
    other = scrambled(
        type(codes)(
            replace(codes.config, encoder=replace(codes.config.encoder, image_size=(32, 24)))
        )
    )
    save_weights(tmp_path / "other.safetensors", other)
    text, fresh = account(
        replace(config, model=deeper, tokenizer=str(tmp_path / "other.safetensors"))
    )
    assert "resized: relative bias of the backbone, from a grid of 2 x 3 to 4 x 3" in text
    assert "aggregation of 1 blocks after block 2 (the source's has 1 blocks after block 1)" in text
    assert f"(the source's are of another tokenizer, {trained_tokenizer})" in text
    assert fresh
    text, fresh = account(replace(config, tokenizer="", target=TargetConfig("pixels")))
    assert "head for 192 values, pixels (that of the source: predicts tokens, head_width 11" in text
    assert fresh


def test_a_backbone_that_cannot_fit_is_refused(begun, source_run, vit):
    config = begun(source_run)
    config = replace(config, model=replace(config.model, backbone=vit(width=24)))
    with pytest.raises(ValueError, match=r"width 12, but .* width 24.*--model.backbone.width 12"):
        pretrain.run(config)


@pytest.mark.slow
def test_a_resumed_run_does_not_need_its_source(
    begun, tmp_path, source_run, interrupt_at, same_bits
):
    run = {"log_every": 3, "checkpoint_every": 4, "stop_after": None}
    save_weights(tmp_path / "source.safetensors", load(source_run))
    for name in ("whole", "stopped"):
        config = own_head(begun(tmp_path / "source.safetensors", name))
        config = replace(config, run=replace(config.run, **run))
        if name == "whole":
            pretrain.run(config)
        else:
            interrupt_at(pretrain, config, 5)
    (tmp_path / "source.safetensors").unlink()
    resume(pretrain, tmp_path / "stopped")
    same_bits(tmp_path / "whole", tmp_path / "stopped")
