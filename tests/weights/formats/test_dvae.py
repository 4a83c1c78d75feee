import json
import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from beit.nn.dvae import DiscreteVAE
from beit.nn.patches import unchecked
from beit.weights.file import save_weights
from beit.weights.formats.dvae import from_dvae, recognises, to_dvae
from beit.weights.open import load, load_tokenizer

GOLDENS = Path(__file__).parents[2] / "goldens"


@pytest.fixture(scope="module")
def golden():
    """Sizes, and tensors by part: state, in, out."""
    parts = {}
    for path, tensor in load_file(GOLDENS / "dvae.safetensors").items():
        part, key = path.split("/")
        parts.setdefault(part, {})[key] = tensor
    return json.loads((GOLDENS / "dvae.json").read_text()), parts


def assert_close(value, expected):
    """Within 1e-5 of the largest value: the tolerance that the goldens ask for."""
    assert (value - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_computes_what_the_published_class_computes(golden):
    sizes, parts = golden
    model = from_dvae(parts["state"], image_size=32)
    config = model.config
    assert (config.num_codes, config.code_width) == (sizes["vocab_size"], sizes["code_dim"])
    assert (config.num_layers, config.hidden_width) == (sizes["num_layers"], sizes["hidden_dim"])
    assert (model.vocab_size, model.grid, model.training) == (64, (4, 4), False)
    images, expected = parts["in"]["images"], parts["out"]
    with torch.no_grad():
        assert_close(model.logits(images), expected["logits"])
        codes = model.encode(images)
        assert torch.equal(codes, expected["tokens"].flatten(1))
        assert_close(model.decode_images(codes), expected["decoded"])
        output = model(images, torch.Generator().manual_seed(0))
    assert_close(output.kl.view(1), expected["kl_to_uniform"])
    assert torch.equal(output.pixels, images)


def test_published_to_ours_to_published_is_the_identity(golden):
    state = golden[1]["state"]
    back = to_dvae(from_dvae(state))
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize("container", [None, "weights"])
def test_published_files_are_loaded(golden, container, tmp_path):
    state, images = golden[1]["state"], golden[1]["in"]["images"]
    content = state if container is None else {container: state, "hparams": {"num_layers": 3}}
    torch.save(content, tmp_path / "pytorch_model.bin")
    model = load_tokenizer(tmp_path / "pytorch_model.bin", image_size=(32, 48))
    assert isinstance(model, DiscreteVAE)
    assert model.grid == (4, 6)
    assert torch.equal(model.encode(images), golden[1]["out"]["tokens"].flatten(1))


def test_our_own_file_keeps_the_model(golden, tmp_path):
    model = from_dvae(golden[1]["state"], image_size=(32, 48), mean=(0.1, 0.2, 0.3), std=(0.5,) * 3)
    save_weights(tmp_path / "weights.safetensors", model)
    read = load(tmp_path / "weights.safetensors")
    assert isinstance(read, DiscreteVAE)
    assert read.config == model.config
    images = golden[1]["in"]["images"]
    assert torch.equal(read.encode(images), model.encode(images))


def test_normalisation_is_as_given_and_its_absence_is_logged(golden, caplog):
    state, images = golden[1]["state"], golden[1]["in"]["images"]
    with caplog.at_level(logging.INFO, "beit"):
        bare = from_dvae(state, origin="d.bin")
        assert "d.bin: images in [0, 1] are not normalised" in caplog.text
        caplog.clear()
        model = from_dvae(state, mean=(0.5,) * 3, std=(0.5,) * 3)
        assert "as they are" not in caplog.text
    assert bare.config.mean is None
    assert bare.image_size == (112, 112)
    with torch.no_grad(), unchecked():
        assert torch.equal(model.logits(images), bare.logits((images - 0.5) / 0.5))


def test_recognised_by_its_names(golden):
    state = golden[1]["state"]
    assert recognises(state)
    assert not recognises({name: state[name] for name in state if name != "codebook.weight"})


@pytest.mark.parametrize(
    ("change", "overrides", "message"),
    [
        ({"decoder.6.bias": None}, {}, r"d\.bin does not fit .*: decoder\.6\.bias is missing"),
        ({"noise": torch.zeros(2)}, {}, r"d\.bin .* noise is unexpected"),
        (
            {"codebook.weight": torch.zeros(64, 25)},
            {},
            r"decoder\.0\.0\.weight is \(24, 16",
        ),
        ({"codebook.weight": torch.zeros(64)}, {}, r"codebook\.weight in d\.bin is \(64,\)"),
        ({"encoder.0.0.weight": None}, {}, r"d\.bin is not a discrete VAE: expected codebook"),
        ({}, {"image_size": 36}, r"d\.bin: image size \(36, 36\) is not a multiple .* 8"),
        ({}, {"num_heads": 4}, r"d\.bin takes no override num_heads; expected image_size, mean"),
        ({}, {"mean": (0.5,) * 3}, r"d\.bin: mean and std go together"),
    ],
)
def test_what_does_not_fit_is_refused(golden, change, overrides, message):
    state = golden[1]["state"] | change
    state = {name: tensor for name, tensor in state.items() if tensor is not None}
    with pytest.raises(ValueError, match=message):
        from_dvae(state, origin="d.bin", **overrides)


def test_forged_sizes_are_refused_before_anything_is_built(golden):
    state = dict(golden[1]["state"])
    for number in range(7, 200):
        state[f"encoder.{number}.0.weight"] = torch.zeros(1)
    with pytest.raises(ValueError, match=r"num_layers must be in 1\.\.16, got 196"):
        from_dvae(state)
