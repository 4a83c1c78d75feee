"""Against goldens that mmpretrain 1.2.0's own models made: tests/goldens/make_mmpretrain.py."""

import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from beit.nn.heads import ImageClassifier
from beit.nn.mim import MaskedImageModel, MaskedImageModelConfig
from beit.nn.tokenizer import VQKD, VQKDConfig
from beit.nn.vit import VisionTransformer, ViTConfig
from beit.weights.formats.mmpretrain import from_mmpretrain, recognises, to_mmpretrain
from beit.weights.formats.published import to_published
from beit.weights.open import load

GOLDEN = load_file(Path(__file__).parents[2] / "goldens/mmpretrain.safetensors")
MODELS = ("version2", "version1", "classifier", "backbone")
AS_IS = {"mean": (0.0,) * 3, "std": (1.0,) * 3}  # the golden's images are normalised already
OVERRIDES = {"num_heads": 3, **AS_IS}


def part(model: str, kind: str) -> dict[str, torch.Tensor]:
    prefix = f"{model}/{kind}/"
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in GOLDEN.items()
        if name.startswith(prefix)
    }


def opened(model: str):
    overrides = {"early_layers": 3, **OVERRIDES} if model == "version2" else OVERRIDES
    return from_mmpretrain(part(model, "state"), **overrides)


@pytest.mark.parametrize("name", ["version2", "version1"])
@torch.no_grad()
def test_pretraining_models_predict_the_same(name):
    model, inputs, outputs = opened(name), part(name, "in"), part(name, "out")
    assert isinstance(model, MaskedImageModel) and not model.training
    for image, hidden in enumerate(inputs["masked"]):
        masked = hidden.nonzero()[:, 0][None]
        logits, cls_logits = model(inputs["images"][image][None], masked)
        close(logits[0], outputs["logits"][image][hidden])
        if name == "version2":
            close(cls_logits[0], outputs["cls_logits"][image][hidden])
        else:
            assert cls_logits is None


@torch.no_grad()
def test_classifier_and_backbone_compute_the_same():
    model, images = opened("classifier"), part("classifier", "in")["images"]
    assert isinstance(model, ImageClassifier) and model.config.pooling == "mean"
    close(model(images), part("classifier", "out")["logits"])

    model, images = opened("backbone"), part("backbone", "in")["images"]
    assert isinstance(model, VisionTransformer)
    cls, patches, _, _ = model(images)
    close(torch.cat([cls[:, None], patches], dim=1), part("backbone", "out")["tokens"])


def close(found, expected):
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_there_and_back_is_the_identity(name, same):
    state = part(name, "state")
    assert recognises(state)
    model = opened(name)
    back = to_mmpretrain(model)
    assert back.keys() == state.keys()
    assert all(torch.equal(tensor, state[key]) for key, tensor in back.items())
    early = {"early_layers": 3} if name == "version2" else {}
    assert same(from_mmpretrain(back, **OVERRIDES, **early), model)


def test_beit_load_opens_a_checkpoint(same, tmp_path):
    content = {"meta": {"epoch": 3}, "state_dict": part("classifier", "state")}
    torch.save(content, tmp_path / "a.pth")
    assert same(load(tmp_path / "a.pth"), opened("classifier"))


def test_a_bare_backbone_needs_no_prefix(same):
    state = part("backbone", "state")
    bare = {name.removeprefix("backbone."): tensor for name, tensor in state.items()}
    assert recognises(bare)
    assert same(from_mmpretrain(bare, **OVERRIDES), opened("backbone"))


def test_the_tokenizer_in_a_pretraining_checkpoint_is_left_out_and_logged(same, caplog):
    state = part("version2", "state")
    state["target_generator.quantize.embedding.weight"] = torch.zeros(3, 2)
    state["target_generator.encoder.cls_token"] = torch.zeros(1, 1, 2)
    with caplog.at_level(logging.INFO):
        read = from_mmpretrain(state, origin="a.pth", early_layers=3, **OVERRIDES)
    assert same(read, opened("version2"))
    (record,) = caplog.records
    assert record.getMessage() == (
        "a.pth: mmpretrain's BEiT of version 2, for pretraining, a pretraining model with 2 "
        "aggregation blocks (24 wide, 4 blocks, 3 heads, images of 20 x 20); left out "
        "relative_position_index: follows from the grid; left out target_generator.*"
    )


def test_the_norm_of_the_pooled_mean_is_left_out_of_a_backbone(caplog):
    state = part("classifier", "state")
    state = {name: tensor for name, tensor in state.items() if not name.startswith("head.")}
    with caplog.at_level(logging.INFO):
        read = from_mmpretrain(state, **OVERRIDES)
    assert isinstance(read, VisionTransformer) and not read.config.final_norm
    assert "left out backbone.ln2.bias, backbone.ln2.weight" in caplog.text


def test_normalisation_is_imagenets_unless_given():
    read = from_mmpretrain(part("classifier", "state"))
    assert read.config.backbone.mean == (0.485, 0.456, 0.406)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("head.fc.bias"), "head.bias is missing"),
        (lambda state: state.pop("backbone.layers.2.ln2.weight"), "norm2.weight is missing"),
        (lambda state: state.update({"neck.x": torch.zeros(1)}), "a BEiT, .* incomplete: neck"),
        (
            lambda state: state.update({"backbone.ln1.weight": torch.ones(24)}),
            "norm.weight.* is unexpected",
        ),
        (
            lambda state: state.update({"head.fc.bias": torch.zeros(4)}),
            r"head.bias is \(4,\), expected \(5,\)",
        ),
    ],
)
def test_states_that_do_not_fit_are_refused(change, message):
    state = part("classifier", "state")
    change(state)
    with pytest.raises(ValueError, match=f"^a.pth .*{message}"):
        from_mmpretrain(state, origin="a.pth")


def test_what_one_side_does_not_have_is_refused():
    state = {f"encoder.{name}": tensor for name, tensor in part("backbone", "state").items()}
    state = {name.replace("backbone.", ""): tensor for name, tensor in state.items()}
    assert recognises(state)
    with pytest.raises(ValueError, match="mmpretrain's VQ-KD, which has the encoder and the"):
        from_mmpretrain(state)

    vit = ViTConfig(image_size=(8, 12), patch_size=4, width=6, depth=2, num_heads=2)
    own = MaskedImageModel(MaskedImageModelConfig(vit, 7, 1, 1, shared_head=False))
    with pytest.raises(ValueError, match="mmpretrain's BEiT has no place for cls_pt_norm"):
        to_mmpretrain(own)
    assert not recognises(to_published(own))
    with torch.device("meta"):
        tokenizer = VQKD(VQKDConfig())
    with pytest.raises(ValueError, match="mmpretrain has no BEiT that is a VQKD"):
        to_mmpretrain(tokenizer)
