"""A tokenizer that starts from other weights: encoder, codebook, decoder; frozen codes."""

from dataclasses import replace

import pytest
import torch
from tests.conftest import scrambled

from beit.nn.tokenizer import VQKD
from beit.nn.vit import VisionTransformer
from beit.run.resume import resume
from beit.tokenizer import vqkd as train_tokenizer
from beit.tokenizer.start import start_from
from beit.tokenizer.vqkd import CodebookConfig
from beit.weights.file import save_weights
from beit.weights.formats.published import to_published
from beit.weights.open import load
from beit.weights.teachers import TeacherConfig

KEPT = CodebookConfig()  # no revival
OTHER_TEACHER = TeacherConfig("timm:test_vit", image_size=64, pretrained=False)


@pytest.fixture
def begun(tmp_path, trained_tokenizer, tokenizer_config):
    """The settings of a run that starts from the trained tokenizer."""

    def config(name="run", **changes):
        base = tokenizer_config(tmp_path / name, codebook=KEPT, init=str(trained_tokenizer))
        return replace(base, **changes)

    return config


def new(config, **changes):
    return VQKD(replace(config.model, **{"teacher_width": 5} | changes))


def test_a_codebook_is_taken_and_not_started_again(begun, trained_tokenizer, records, capsys):
    config = begun()
    config = replace(config, run=replace(config.run, log_every=1, stop_after=1))
    train_tokenizer.run(config)
    source = load(trained_tokenizer)
    directory = trained_tokenizer.parent / config.run.output
    first = records(directory)[0]
    last = [r for r in records(trained_tokenizer) if "reconstruction" in r][-1]
    assert first["loss"] < last["loss"] * 1.2  # a new one begins at twice that or more
    moved = load(directory).quantizer.codebook
    cosines = torch.nn.functional.cosine_similarity(moved, source.quantizer.codebook)
    assert cosines.min() > 0.9999  # one step of a moving average; k-means would choose others
    said = capsys.readouterr().err
    assert "codebook of 11 codes of 5 channels" in said
    assert "  new" not in said


def test_the_first_output_is_that_of_a_published_file(begun, tmp_path, vit):
    plain = vit(absolute_positions=True, relative_bias="none", layer_scale=None)
    config = begun(init=str(tmp_path / "vqkd.pth"))
    source = scrambled(VQKD(replace(config.model, encoder=plain, teacher_width=5)))
    torch.save(to_published(source), tmp_path / "vqkd.pth")
    vqkd = new(config).eval()
    start_from(config.init, vqkd)
    images = torch.rand(2, 3, 16, 24)
    with torch.no_grad():
        ours, theirs = vqkd(images), source(images)
    assert torch.equal(ours.codes, theirs.codes)
    assert torch.equal(ours.features, theirs.features)
    assert vqkd.quantizer.initialised


def test_only_an_encoder_is_taken_from_other_models(begun, tmp_path, vit):
    plain = vit(absolute_positions=True, relative_bias="none", layer_scale=None)
    source = scrambled(VisionTransformer(plain))
    save_weights(tmp_path / "vit.safetensors", source)
    config = begun(init=str(tmp_path / "vit.safetensors"))
    vqkd = new(config)
    text = start_from(config.init, vqkd)
    assert text.endswith("new: codebook, decoder (the source has none)")
    assert not vqkd.quantizer.initialised
    ours, theirs = vqkd.encoder.state_dict(), source.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_what_does_not_fit_is_new_and_told(begun, trained_tokenizer):
    config, source = begun(), load(trained_tokenizer)
    vqkd = new(config, decoder_depth=2, num_codes=7)
    text = start_from(config.init, vqkd)
    assert "new: codebook of 7 codes of 5 channels (the source's has num_codes 11)" in text
    assert "decoder (the source's has depth 1)" in text
    vqkd = new(config)
    text = start_from(config.init, vqkd)
    width = source.config.teacher_width
    assert f"new: output layer for 5 channels (the source's teacher has {width})" in text
    assert torch.equal(vqkd.decode_task[0].weight, source.decode_task[0].weight)
    vqkd = new(config, encoder=replace(config.model.encoder, image_size=(32, 24)))
    text = start_from(config.init, vqkd)
    for part in ("encoder", "decoder"):
        assert f"absolute positions of the {part}, from a grid of 2 x 3 to 4 x 3" in text


def test_frozen_codes_stay_and_only_a_new_decoder_learns(
    begun, trained_tokenizer, interrupt_at, same_bits
):
    frozen = {"freeze": "codes", "teacher": OTHER_TEACHER}
    train_tokenizer.run(begun("whole", **frozen))
    whole = trained_tokenizer.parent / begun("whole").run.output
    ours, theirs = (load(run).state_dict() for run in (whole, trained_tokenizer))
    for name, tensor in theirs.items():
        kept = name.startswith(("encoder.", "encode_task.")) or name == "quantizer.codebook"
        same = ours[name].shape == tensor.shape and torch.equal(ours[name], tensor)
        assert same == kept or name in ("quantizer.initialised",), name
    interrupt_at(train_tokenizer, begun("stopped", **frozen), 5)
    resume(train_tokenizer, begun("stopped").run.output)
    same_bits(whole, whole.parent / "stopped")


def test_a_frozen_codebook_lets_the_encoder_learn(begun, trained_tokenizer):
    config = begun(freeze="codebook")
    run = train_tokenizer.run(replace(config, run=replace(config.run, stop_after=2))).directory
    ours, theirs = load(run), load(trained_tokenizer)
    assert torch.equal(ours.quantizer.codebook, theirs.quantizer.codebook)
    name = "blocks.0.attn.qkv.weight"
    assert not torch.equal(ours.encoder.state_dict()[name], theirs.encoder.state_dict()[name])


def test_what_cannot_be_frozen_is_refused(begun, tmp_path, vit):
    with pytest.raises(ValueError, match="there is no codebook to keep; give the tokenizer"):
        begun(init=None, freeze="codes")
    with pytest.raises(ValueError, match=r"revive_every 5; use ema and 0"):
        begun(freeze="codes", codebook=CodebookConfig(revive_every=5))
    config = begun()
    with pytest.raises(ValueError, match=r"drop_path is 0\.1, which changes them at random"):
        encoder = replace(config.model.encoder, drop_path=0.1)
        begun(freeze="codes", model=replace(config.model, encoder=encoder))
    with pytest.raises(ValueError, match=r"init has no codebook for model\.num_codes 7"):
        train_tokenizer.run(begun(freeze="codebook", model=replace(config.model, num_codes=7)))
    vit = VisionTransformer(vit(width=24, depth=1))
    save_weights(tmp_path / "vit.safetensors", vit)
    with pytest.raises(ValueError, match=r"--model\.encoder\.width 24 --model\.encoder\.depth 1"):
        train_tokenizer.run(begun(init=str(tmp_path / "vit.safetensors")))
