import pytest
import torch
from torch import nn

from beit.exporting import graphs
from beit.exporting.graphs import inputs_of, open_onnx, traced, write_onnx
from beit.exporting.verification import outputs
from beit.nn.heads import ImageClassifier, ImageClassifierConfig
from beit.nn.mim import MaskedImageModel, MaskedImageModelConfig
from beit.nn.vit import VisionTransformer, ViTConfig

VIT = ViTConfig(image_size=(12, 20), patch_size=4, width=12, depth=1, num_heads=3)


def test_outputs_have_names():
    images = torch.rand(2, 3, 12, 20, generator=torch.Generator().manual_seed(0))
    masked = torch.tensor([[0, 4, 7], [1, 2, 14]])
    shapes = {
        name: tuple(tensor.shape)
        for model in (
            VisionTransformer(VIT),
            ImageClassifier(ImageClassifierConfig(VIT, 5)),
        )
        for name, tensor in outputs(model.eval(), images).items()
    }
    assert shapes == {"cls": (2, 12), "patches": (2, 15, 12), "logits": (2, 5)}
    for head_layers, names in ((0, ["logits"]), (1, ["logits", "cls_logits"])):
        config = MaskedImageModelConfig(VIT, 7, early_layers=1, head_layers=head_layers)
        found = outputs(MaskedImageModel(config).eval(), images, masked)
        assert {name: tuple(tensor.shape) for name, tensor in found.items()} == dict.fromkeys(
            names, (2, 3, 7)
        )
        assert list(inputs_of(MaskedImageModel(config), images, masked)) == ["images", "masked"]
    assert list(inputs_of(VisionTransformer(VIT), images, masked)) == ["images"]


def test_a_model_of_others_is_refused():
    with pytest.raises(ValueError, match="a Linear is not one of our models"):
        outputs(nn.Linear(3, 5), torch.rand(2, 3))


def test_a_graph_equals_the_model_for_any_batch():
    model = VisionTransformer(VIT).eval()
    images = torch.rand(7, 3, 12, 20, generator=torch.Generator().manual_seed(1))
    module = traced(model, {"images": images[:2]}).module()
    for batch in (1, 7):
        found = module(images[:batch])
        torch.testing.assert_close(found["patches"], model(images[:batch]).patches)


def test_other_sizes_are_refused_by_the_graph_too():
    module = traced(VisionTransformer(VIT).eval(), {"images": torch.rand(2, 3, 12, 20)}).module()
    with pytest.raises(AssertionError, match="== 12"):
        module(torch.rand(2, 3, 16, 20))


def test_a_graph_refuses_uint8_which_it_would_not_scale(tmp_path):
    images = torch.randint(256, (2, 3, 12, 20), dtype=torch.uint8)
    program = traced(VisionTransformer(VIT).eval(), {"images": images / 255})
    torch.export.save(program, tmp_path / "vit.pt2")
    with pytest.raises(RuntimeError, match=r"dtype mismatch! Expected: .*Float"):
        torch.export.load(tmp_path / "vit.pt2").module()(images)


def test_a_missing_package_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(graphs, "find_spec", lambda name: None if name == "onnxruntime" else name)
    expected = r'ONNX needs the package onnxruntime, .* pip install "beit\[onnx\]"'
    path = tmp_path / "model.onnx"
    with pytest.raises(ValueError, match=expected):
        write_onnx(VisionTransformer(VIT).eval(), path, {"images": torch.rand(2, 3, 12, 20)})
    with pytest.raises(ValueError, match=expected):
        open_onnx(path)
    assert not path.exists()
