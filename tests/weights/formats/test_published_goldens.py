"""Models read from published checkpoints compute what the published code computed.

Tolerances are those of the goldens' own description: codes equal, the rest within 1e-5 of the
largest value.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from beit.nn.losses import cosine_distance, masked_losses
from beit.nn.mim import MaskedImageModel, MaskedImageModelConfig
from beit.nn.quantizer import unit
from beit.nn.vit import ViTConfig
from beit.weights.formats.published import from_published, to_published
from beit.weights.open import load

GOLDENS = Path(__file__).parents[2] / "goldens"


def golden(name):
    """Sizes, and tensors by part: state, in, out, grad, train."""
    parts = {}
    for path, tensor in load_file(GOLDENS / f"{name}.safetensors").items():
        part, key = path.split("/")
        parts.setdefault(part, {})[key] = tensor
    return json.loads((GOLDENS / f"{name}.json").read_text()), parts


def assert_close(value, expected, tolerance=1e-5):
    value = value.detach().reshape(expected.shape)
    assert (value - expected).abs().max() <= tolerance * expected.abs().max()


def gradients(model):
    """Gradients by published name."""
    ours = {name: parameter.grad for name, parameter in model.named_parameters()}
    held = {tensor.data_ptr(): name for name, tensor in model.named_parameters()}
    return {
        published: ours[held[tensor.data_ptr()]]
        for published, tensor in to_published(model).items()
        if tensor.data_ptr() in held
    }


@pytest.fixture
def opened(tmp_path):
    """Opens a golden's state as a user does: from a checkpoint file."""

    def open_state(parts, **overrides):
        torch.save({"model": parts["state"]}, tmp_path / "checkpoint.pth")
        return load(tmp_path / "checkpoint.pth", **overrides)

    return open_state


@pytest.fixture(scope="module")
def vqkd():
    return golden("vqkd")


def test_vqkd_inference(vqkd, opened):
    sizes, parts = vqkd
    model = opened(parts, num_heads=sizes["num_heads"])
    images = parts["in"]["images"]
    with torch.no_grad():
        vectors = model.embed(images)
        output = model(images)
        decoded = model.decode(model.encode(images))
    expected = parts["out"]
    assert_close(vectors, expected["features"])
    assert torch.equal(model.encode(images), expected["tokens"])
    assert torch.equal(output.codes, expected["tokens"])
    quantized = model.quantizer.codebook[output.codes].transpose(1, 2)  # (B, C, N)
    assert_close(quantized.reshape(expected["quantized"].shape), expected["quantized"])
    assert_close(output.commitment, expected["commit_loss"])
    assert_close(output.features, expected["decoded"])
    assert_close(decoded, expected["decoded"])
    assert_close(
        cosine_distance(output.features, parts["in"]["target"]), expected["reconstruction_loss"]
    )


def test_vqkd_training_steps(vqkd):
    sizes, parts = vqkd
    expected = parts["train"]
    model = from_published(parts["state"], num_heads=sizes["num_heads"]).train()
    images = parts["in"]["images"]

    output = model(images)
    model.quantizer.update(model.quantizer.statistics(output.vectors, output.codes))
    reconstruction = cosine_distance(output.features, parts["in"]["target"])
    loss = reconstruction + sizes["beta"] * output.commitment
    loss.backward()
    assert_close(reconstruction, expected["reconstruction_loss"])
    assert_close(output.commitment, expected["commit_loss"])
    assert_close(loss, expected["loss"])
    found = gradients(model)
    assert parts["grad"].keys() <= found.keys()
    for name, gradient in parts["grad"].items():
        assert_close(found[name], gradient)
    assert_close(model.quantizer.codebook, expected["codebook_after_1"])
    assert_close(model.quantizer.counts, expected["usage_after_1"])

    with torch.no_grad():
        for _ in range(2):
            output = model(images.flip(-1))
            model.quantizer.update(model.quantizer.statistics(output.vectors, output.codes))
    assert_close(model.quantizer.codebook, expected["codebook_after_3"])
    assert_close(model.quantizer.codebook, unit(model.quantizer.codebook))


@pytest.mark.parametrize("name", ["mim_shared", "mim_unshared", "mim_plain"])
def test_masked_image_model(name, opened):
    sizes, parts = golden(name)
    overrides = {"early_layers": sizes["early_layers"]} if "early_layers" in sizes else {}
    model = opened(
        parts,
        num_heads=sizes["num_heads"],
        mean=(0, 0, 0),  # the golden's images are normalised already
        std=(1, 1, 1),
        **overrides,
    )
    masked = parts["in"]["mask"].nonzero()[:, 1].view(len(parts["in"]["mask"]), -1)  # (B, M)
    prediction = model(parts["in"]["images"], masked)
    assert_close(prediction.logits, parts["out"]["logits"])
    if name == "mim_plain":
        assert prediction.cls_logits is None
        return
    assert_close(prediction.cls_logits, parts["out"]["cls_logits"])
    targets = parts["in"]["labels"].gather(1, masked)
    loss, cls_loss = masked_losses(prediction, targets)
    (loss + cls_loss).backward()
    assert_close(loss, parts["out"]["loss"])  # of the patches; the gradients are of the sum
    assert_close(cls_loss, parts["out"]["cls_loss"])
    found = gradients(model)
    assert parts["grad"].keys() <= found.keys()
    for key, gradient in parts["grad"].items():
        assert_close(found[key], gradient)


@pytest.mark.parametrize("name", ["classifier_mean", "classifier_cls"])
def test_classifier(name, opened):
    _, parts = golden(name)
    model = opened(parts, mean=(0, 0, 0), std=(1, 1, 1))  # its images are normalised already
    assert model.config.pooling == name.removeprefix("classifier_")
    assert_close(model(parts["in"]["images"]), parts["out"]["logits"])


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("vqkd", {}),
        ("mim_shared", {"early_layers": 2}),
        ("mim_unshared", {"early_layers": 2}),
        ("mim_plain", {}),
        ("classifier_mean", {}),
        ("classifier_cls", {}),
    ],
)
def test_published_to_ours_to_published_is_the_identity(name, overrides):
    state = golden(name)[1]["state"]
    back = to_published(from_published(state, num_heads=4, **overrides))
    assert back.keys() == state.keys()
    for key, tensor in state.items():
        assert back[key].dtype == tensor.dtype, key
        assert torch.equal(back[key], tensor), key


def test_initial_weights_are_distributed_as_published():
    """Mean, deviation and range of every fresh parameter, within sampling error."""
    statistics = json.loads((GOLDENS / "init_statistics.json").read_text())
    parameters = statistics["parameters"]
    config = MaskedImageModelConfig(
        backbone=ViTConfig(
            image_size=(64, 64),
            width=statistics["embed_dim"],
            depth=statistics["depth"],
            num_heads=3,
        ),
        num_codes=statistics["vocab_size"],
        early_layers=statistics["early_layers"],
        head_layers=statistics["head_layers"],
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = to_published(MaskedImageModel(config))
    state = {name: tensor for name, tensor in state.items() if not name.endswith("index")}
    assert {name: list(tensor.shape) for name, tensor in state.items()} == {
        name: expected["shape"] for name, expected in parameters.items()
    }
    for name, expected in parameters.items():
        tensor, count = state[name].double(), state[name].numel()
        if expected["std"] < 1e-7:  # a constant
            assert torch.allclose(tensor, torch.full_like(tensor, expected["mean"])), name
            continue
        # Both are samples: 5 standard errors of a difference. The deviation of a cut normal or a
        # uniform sample has a relative error below 1/sqrt(2 count).
        error = 5 * 2**0.5
        assert abs(tensor.mean() - expected["mean"]) < error * expected["std"] / count**0.5, name
        assert abs(tensor.std() / expected["std"] - 1) < error / (2 * count) ** 0.5, name
        # The bounds are hard; in a sample the largest of `count` values comes within a few
        # hundredths of them even for the smallest tensors.
        assert tensor.max() < expected["max"] * 1.06, name
        assert tensor.max() > expected["max"] * 0.94, name
        assert tensor.min() > expected["min"] * 1.06, name
        assert tensor.min() < expected["min"] * 0.94, name
