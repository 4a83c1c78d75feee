"""Every export opens in its own library and equals the model; others are not kept."""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import timm
import torch
import transformers
from torch import Tensor, nn

import beit
from beit.data.views import EvalView
from beit.exporting import export, verification, weight_files
from beit.exporting.export import Config
from beit.exporting.verification import Difference, Reopened
from beit.nn.dalle import DalleConfig, DalleTokenizer
from beit.nn.dvae import DiscreteVAE, DiscreteVAEConfig
from beit.nn.heads import ImageClassifier, ImageClassifierConfig
from beit.nn.mim import MaskedImageModel, MaskedImageModelConfig
from beit.nn.segmenter import SegmenterConfig, SemanticSegmenter
from beit.nn.tokenizer import VQKD, VQKDConfig
from beit.nn.vit import VisionTransformer, ViTConfig
from beit.weights.assemble import config_of_vit
from beit.weights.crop import stated_crop
from beit.weights.file import save_weights

Vit = Callable[..., ViTConfig]


def drawn(model: nn.Module) -> nn.Module:
    """Fill every parameter, the position tables that start at zero too."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3, generator=generator)
    return model.eval()


@pytest.fixture
def models(vit: Vit, tmp_path: Path) -> Callable[..., Path]:
    """Writes a weights file of a kind of model, for images of 16 x 24 by default."""

    def build(kind: str, **changes: Any) -> nn.Module:
        if kind == "backbone":
            return VisionTransformer(vit(depth=1, relative_bias="per_block", **changes))
        if kind == "classifier":
            names = ("ant", "bee", "cat", "dog", "eel")
            config = vit(depth=1, relative_bias="per_block", **changes)
            return ImageClassifier(ImageClassifierConfig(config, 5, class_names=names))
        if kind == "tokenizer":
            encoder = vit(
                depth=1, absolute_positions=True, relative_bias="none", layer_scale=None, **changes
            )
            return VQKD(
                VQKDConfig(encoder, decoder_depth=1, num_codes=11, code_width=5, teacher_width=7)
            )
        if kind == "pretrained":
            return MaskedImageModel(
                MaskedImageModelConfig(vit(**changes), num_codes=11, early_layers=1, head_layers=1)
            )
        if kind == "segmenter":
            size = changes.pop("image_size", (40, 56))
            config = vit(
                image_size=size, depth=4, relative_bias="per_block", final_norm=False, **changes
            )
            return SemanticSegmenter(
                SegmenterConfig(config, 5, (1, 2, 3, 4), channels=12, auxiliary_channels=7)
            )
        if kind == "dvae":
            return DiscreteVAE(
                DiscreteVAEConfig((16, 24), 11, code_width=5, num_layers=3, hidden_width=6)
            )
        assert kind == "dalle"
        return DalleTokenizer(DalleConfig((16, 24), 11, width=8, blocks_per_group=1, code_width=7))

    def write(kind: str, **changes: Any) -> Path:
        file = tmp_path / f"{kind}.safetensors"
        torch.manual_seed(0)
        save_weights(file, drawn(build(kind, **changes)))
        return file

    return write


def images_of(model: Any, count: int) -> Tensor:
    """Draw images (B, 3, H, W) uint8 other than those of the verification."""
    generator = torch.Generator().manual_seed(17)
    size = (config_of_vit(model.config) or model.config).image_size
    return torch.randint(256, (count, 3, *size), generator=generator).byte()


def close(found: Any, target: Tensor) -> None:
    torch.testing.assert_close(torch.as_tensor(found), target, atol=1e-5, rtol=1e-5)


def written(config: Config) -> tuple[export.Result, Any]:
    """Export, check that differences are small, and open the result by its line of Python."""
    result = export.run(config)
    assert {difference.batch for difference in result.differences} == {1, 3, 8}
    assert max(difference.largest for difference in result.differences) < 1e-4
    assert [file.name for file in result.output.parent.iterdir() if file.name[0] == "."] == []
    names = {"beit": beit, "onnxruntime": onnxruntime, "timm": timm, "torch": torch}
    return result, eval(result.opened_by, names | {"transformers": transformers})


# ── graphs ──────────────────────────────────────────────────────────────────────────────────────

slow = pytest.mark.slow
KINDS = ["backbone", "classifier", "tokenizer"]
OTHERS = ["pretrained", "segmenter", "dvae", "dalle"]
ONNX = [*KINDS, *(pytest.param(kind, marks=slow) for kind in OTHERS)]
TORCH_EXPORT = ["tokenizer", *(pytest.param(kind, marks=slow) for kind in (*KINDS[:2], *OTHERS))]


def inputs_and_outputs(model: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Draw the inputs of a graph for 5 images, and run the model on them as uint8."""
    images = images_of(model, 5)
    inputs = {"images": images / 255}
    with torch.no_grad():
        if isinstance(model, VisionTransformer):
            cls, patches, _, _ = model(images)
            return inputs, {"cls": cls, "patches": patches}
        if isinstance(model, MaskedImageModel):
            inputs["masked"] = torch.tensor([[0, 2, 5], [1, 2, 3], [0, 1, 2], [3, 4, 5], [0, 4, 5]])
            return inputs, model(images, inputs["masked"])._asdict()
        if isinstance(model, ImageClassifier):
            return inputs, {"logits": model(images)}
        if isinstance(model, SemanticSegmenter):
            return inputs, {"logits": model(images).logits}
        codes = {"codes": model.encode(images)}
        return inputs, codes | ({"vectors": model.embed(images)} if type(model) is VQKD else {})


@pytest.mark.parametrize("kind", ONNX)
def test_onnx_runtime_equals_the_model(
    kind: str, models: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = models(kind), tmp_path / "out" / f"{kind}.onnx"
    result, session = written(Config(str(source), str(output), "onnx"))
    assert output.is_file()
    inputs, expected = inputs_and_outputs(beit.load(source))
    assert [entry.name for entry in session.get_inputs()] == list(inputs)
    assert [entry.name for entry in session.get_outputs()] == list(expected)
    assert {entry.shape[0] for entry in session.get_inputs()} == {"batch"}
    found = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
    for array, target in zip(found, expected.values(), strict=True):
        close(array, target)
    assert result.differences[0].equal == (1.0 if "codes" in expected else None)
    about = session.get_modelmeta()
    assert "float32 in [0, 1]" in about.description
    described = json.loads(about.custom_metadata_map["beit"])
    assert described["kind"] == type(beit.load(source)).__name__
    assert (described["config"].get("class_names") is not None) == (kind == "classifier")
    # It says nothing of the machine that made it.
    assert str(Path(export.__file__).parents[2]).encode() not in output.read_bytes()
    shown = capsys.readouterr().out
    assert "batch 8: " in shown


@pytest.mark.slow
def test_another_opset(models: Callable[..., Path], tmp_path: Path) -> None:
    source = str(models("classifier"))
    written(Config(source, str(tmp_path / "a.onnx"), "onnx", opset=18))
    assert [entry.version for entry in onnx.load(tmp_path / "a.onnx").opset_import] == [18]
    for opset, message in (
        (5, "opset is 5, but the graph needs 18"),
        (99, r"expected \d\d, the new"),
    ):
        with pytest.raises(ValueError, match=message):
            written(Config(source, str(tmp_path / "b.onnx"), "onnx", opset=opset))
    assert [file.name for file in tmp_path.glob("b.onnx*")] == []


@pytest.mark.parametrize("kind", TORCH_EXPORT)
def test_a_torch_export_equals_the_model(
    kind: str, models: Callable[..., Path], tmp_path: Path
) -> None:
    source, output = models(kind), tmp_path / f"{kind}.pt2"
    _, module = written(Config(str(source), str(output), "torch-export"))
    inputs, expected = inputs_and_outputs(beit.load(source))
    found = module(*inputs.values())
    assert list(found) == list(expected)
    for name, target in expected.items():
        close(found[name], target)


def test_a_graph_of_the_vision_transformer_alone(
    models: Callable[..., Path], tmp_path: Path
) -> None:
    source, output = models("tokenizer"), tmp_path / "encoder.pt2"
    config = Config(str(source), str(output), "torch-export", "backbone", image_size=(24, 32))
    _, module = written(config)
    images = torch.rand(2, 3, 24, 32, generator=torch.Generator().manual_seed(1))
    backbone = beit.load_backbone(source, image_size=(24, 32))
    close(module(images)["patches"], backbone(images).patches)


# ── files of weights ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", [*KINDS, *OTHERS])
def test_our_own_files(kind: str, models: Callable[..., Path], tmp_path: Path) -> None:
    source, output = models(kind), tmp_path / "out.safetensors"
    result, model = written(Config(str(source), str(output), "safetensors"))
    assert result.output == output
    assert model.config == beit.load(source).config
    assert {difference.largest for difference in result.differences} == {0.0}
    assert result.figures == {"largest_difference": 0.0} | (
        {"equal_codes": 1.0} if hasattr(model, "encode") else {}
    )


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("kind", [*KINDS, "pretrained", "segmenter"])
def test_published_files_and_how_to_open_them(
    kind: str, suffix: str, models: Callable[..., Path], tmp_path: Path
) -> None:
    source, output = models(kind, mean=(0.4, 0.5, 0.6)), tmp_path / f"out{suffix}"
    result, model = written(Config(str(source), str(output), "published"))
    assert "image_size=(" in result.opened_by  # not square, which shapes cannot tell
    assert "mean=(0.4, 0.5, 0.6)" in result.opened_by
    _, expected = inputs_and_outputs(beit.load(source))
    for name, tensor in inputs_and_outputs(model)[1].items():
        assert torch.equal(tensor, expected[name])
    if suffix == ".pth":
        content = torch.load(output, weights_only=True)
        expected = {"state_dict", "meta"} if kind == "segmenter" else {"model"}
        assert content.keys() == expected


def test_only_settings_that_the_file_lacks_are_required(
    models: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = models("classifier", image_size=(24, 24))
    result, _ = written(Config(str(source), str(tmp_path / "a.pth"), "published"))
    assert result.opened_by == f'beit.load("{tmp_path / "a.pth"}")'
    assert ".export" not in caplog.text  # the hidden folder, whose files say no mean and std
    source = models("pretrained", image_size=(24, 24))
    result, _ = written(Config(str(source), str(tmp_path / "b.pth"), "published"))
    assert result.opened_by.endswith('b.pth", num_heads=3, image_size=(24, 24), early_layers=1)')


@pytest.mark.parametrize("size", [(24, 24), (16, 24)])
def test_timm_opens_a_classifier(
    size: tuple[int, int], models: Callable[..., Path], tmp_path: Path
) -> None:
    source = models("classifier", image_size=size, mean=(0.4, 0.5, 0.6))
    _, theirs = written(Config(str(source), str(tmp_path / "folder"), "timm"))
    assert theirs.pretrained_cfg["mean"] == [0.4, 0.5, 0.6]
    assert theirs.pretrained_cfg["crop_pct"] == 0.875  # no crop is stated: as beit reads it
    assert theirs.pretrained_cfg["label_names"] == ["ant", "bee", "cat", "dog", "eel"]
    model = beit.load(source)
    beit.save(model, tmp_path / "cropped.safetensors", crop_ratio=0.95)
    cropped = Config(str(tmp_path / "cropped.safetensors"), str(tmp_path / "cropped"), "timm")
    assert written(cropped)[1].pretrained_cfg["crop_pct"] == 0.95
    images = images_of(model, 2)
    mean, std = (torch.tensor(theirs.pretrained_cfg[n]).view(3, 1, 1) for n in ("mean", "std"))
    with torch.no_grad():
        close(theirs.eval()((images / 255 - mean) / std), model(images))


@pytest.mark.parametrize("format", ["published", "timm", "transformers", "torch-export"])
def test_a_grey_model_is_exported(format: Any, models: Callable[..., Path], tmp_path: Path) -> None:
    source = models("classifier", image_size=(24, 24), in_channels=1)
    suffix = {"published": ".pth", "torch-export": ".pt2"}.get(format, "")
    _, theirs = written(Config(str(source), str(tmp_path / f"grey{suffix}"), format))
    model = beit.load(source)
    images = images_of(model, 2)[:, :1].expand(-1, 3, -1, -1)
    with torch.no_grad():
        expected = model(images)
        if format == "published":
            close(theirs(images), expected)
        elif format == "torch-export":
            close(theirs(images / 255)["logits"], expected)
        else:  # they take one channel, and their caller normalises it
            found = theirs.eval()((images[:, :1] / 255 - model.backbone.mean) / model.backbone.std)
            close(found if format == "timm" else found.logits, expected)


def test_timm_opens_the_backbone_of_a_pretrained_model(
    models: Callable[..., Path], tmp_path: Path
) -> None:
    source = models("pretrained")
    with pytest.raises(ValueError, match=r"MaskedImageModel; timm has .* --part backbone"):
        export.run(Config(str(source), str(tmp_path / "folder"), "timm"))
    _, theirs = written(Config(str(source), str(tmp_path / "folder"), "timm", part="backbone"))
    backbone = beit.load_backbone(source)
    images = images_of(backbone, 2)
    with torch.no_grad():
        pixels = (images / 255 - backbone.mean) / backbone.std
        close(theirs.eval().forward_features(pixels)[:, 1:], backbone(images).patches)


@pytest.mark.parametrize("kind", ["backbone", "classifier", "pretrained", "segmenter"])
def test_transformers_opens_a_folder_with_its_processor(
    kind: str, models: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    side = 48 if kind == "segmenter" else 24
    source, output = models(kind, image_size=(side, side), std=(0.2, 0.3, 0.4)), tmp_path / "folder"
    _, theirs = written(Config(str(source), str(output), "transformers"))
    assert ("without the patch aggregation" in capsys.readouterr().out) == (kind == "pretrained")
    processor = transformers.AutoImageProcessor.from_pretrained(output)
    model = beit.load(source)
    images = images_of(model, 2)
    as_they_are = {"do_resize": False, "do_center_crop": False}
    pixels = processor(images=list(images), return_tensors="pt", **as_they_are)
    assert processor(images=list(images), return_tensors="pt")["pixel_values"].shape[-1] == side
    stated = stated_crop(str(output))
    assert stated is not None
    assert stated[0] == (1.0 if kind == "segmenter" else 24 / 27)  # 0.875, of whole pixels
    with torch.no_grad():
        if kind == "backbone":
            close(theirs(**pixels).last_hidden_state[:, 0], model(images).cls)
        elif kind == "pretrained":
            hidden = torch.zeros(2, 9, dtype=torch.bool)
            hidden[:, [3, 7]] = True
            logits = theirs(**pixels, bool_masked_pos=hidden).logits[:, [3, 7]]
            close(logits, model(images, torch.tensor([[3, 7], [3, 7]])).logits)
        elif kind == "segmenter":
            target = model(images).logits
            torch.testing.assert_close(theirs(**pixels).logits, target, atol=1e-4, rtol=1e-5)
        else:
            close(theirs(**pixels).logits, model(images))
            assert theirs.config.id2label[2] == "cat"


# ── exports that are not kept ─────────────────────────────────────────────────────────────────────


def test_what_exists_is_not_overwritten(models: Callable[..., Path], tmp_path: Path) -> None:
    output = tmp_path / "precious.safetensors"
    output.write_text("mine")
    with pytest.raises(
        FileExistsError, match=r"precious.safetensors exists and is not overwritten"
    ):
        export.run(Config(str(models("backbone")), str(output), "safetensors"))
    assert output.read_text() == "mine"


@pytest.mark.parametrize("wrong", [2e-3, float("nan")])
def test_an_export_that_differs_is_removed_and_refused_with_the_figure(
    wrong: float, models: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    to_timm = weight_files.to_timm

    def careless(model: nn.Module) -> dict[str, Tensor]:
        state = to_timm(model)
        return state | {"head.bias": state["head.bias"] + wrong}

    monkeypatch.setattr(weight_files, "to_timm", careless)
    source, output = models("classifier"), tmp_path / "new" / "folder"
    expected = r"folder is not kept: .* more than .*: batch 1: logits (2.0e-03|nan), in values up"
    with pytest.raises(ValueError, match=expected):
        export.run(Config(str(source), str(output), "timm"))
    assert list(output.parent.iterdir()) == []
    if wrong == 2e-3:
        assert export.run(Config(str(source), str(output), "timm", atol=1e-2)).output == output


def test_unused_weights_are_compared_too(
    models: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    to_published = weight_files.to_published

    def careless(model: nn.Module) -> dict[str, Tensor]:
        state = to_published(model)
        return state | {"decode_task_layer.2.bias": state["decode_task_layer.2.bias"] + 1}

    monkeypatch.setattr(weight_files, "to_published", careless)
    output = tmp_path / "out.pth"
    with pytest.raises(ValueError, match=r"out.pth is not kept: its decode_task.2.bias differs"):
        export.run(Config(str(models("tokenizer")), str(output), "published"))
    assert not output.exists()


def test_a_format_without_such_a_model(models: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds a VQKD; transformers has MaskedImageModel, Image"):
        export.run(Config(str(models("tokenizer")), str(tmp_path / "folder"), "transformers"))
    with pytest.raises(ValueError, match="16 x 24, and transformers"):
        export.run(Config(str(models("classifier")), str(tmp_path / "folder"), "transformers"))
    assert [file.name for file in tmp_path.iterdir() if file.is_dir()] == []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"output": "model.pt"}, r"'model.pt'; expected a name ending in .onnx for format onnx"),
        ({"format": "published"}, r"ending in .pth or .safetensors for format published"),
        ({"format": "tensorflow"}, r"no format 'tensorflow'; expected one of safetensors, pub"),
        ({"atol": 0.0}, "atol must be above 0, got 0.0"),
        ({"format": "timm", "opset": 18}, "opset is for format onnx, not for timm"),
    ],
)
def test_options_that_cannot_be(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        Config(**({"source": "runs/x", "output": "model.onnx", "format": "onnx"} | changes))


# ── comparing with the model ──────────────────────────────────────────────────────────────────────


def test_shortfall_by_hand() -> None:
    scores = torch.tensor([[[0.5, 0.9, 0.8], [0.1, 0.3, 0.2]]])  # (1, 2, 3)
    assert verification.shortfall(scores, torch.tensor([[1, 1]])) == 0.0
    assert verification.shortfall(scores, torch.tensor([[2, 1]])) == pytest.approx(0.1)
    assert verification.shortfall(scores, torch.tensor([[2, 0]])) == pytest.approx(0.2)


@pytest.mark.parametrize("l2_normalised", [True, False])
@torch.no_grad()
def test_the_highest_score_is_the_code(vit: Vit, l2_normalised: bool) -> None:
    encoder = vit(depth=1, absolute_positions=True, relative_bias="none", layer_scale=None)
    config = VQKDConfig(encoder, 1, 11, 5, teacher_width=7, l2_normalised=l2_normalised)
    model = drawn(VQKD(config))
    model.quantizer.codebook.normal_(generator=torch.Generator().manual_seed(1))
    model.quantizer.codebook.copy_(model.quantizer.project(model.quantizer.codebook))
    images = images_of(model, 2)
    assert torch.equal(verification.scores(model, images).argmax(dim=2), model.encode(images))


def test_another_code_passes_only_as_a_near_tie(
    models: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = beit.load(models("tokenizer"))
    with torch.no_grad():
        model.quantizer.codebook[7] = model.quantizer.codebook[4]  # a tie, and argmax takes 4

    def run(images: Tensor, masked: Tensor) -> dict[str, Tensor]:
        codes = model.encode(images)
        return {"codes": torch.where(codes == 4, 7, codes)}

    exact = verification.compare(model, Reopened(run, ""))
    assert [difference.name for difference in exact] == ["codes"] * 3
    assert exact[2].equal is not None
    assert exact[2].equal < 1
    assert exact[2].largest < 1e-6

    def wrong(images: Tensor, masked: Tensor) -> dict[str, Tensor]:
        return {"codes": (model.encode(images) + 1) % 11}

    assert verification.compare(model, Reopened(wrong, ""))[0].largest > 1e-2


def test_an_export_with_a_fixed_batch_is_refused(models: Callable[..., Path]) -> None:
    model = beit.load(models("classifier"))
    stuck = Reopened(lambda images, masked: {"logits": torch.zeros(8, 5)}, "")
    with pytest.raises(
        ValueError, match=r"logits of shape \(8, 5\) for 1 images, the model \(1, 5"
    ):
        verification.compare(model, stuck)


def test_the_batch_is_fixed_and_what_uint8_can_hold(models: Callable[..., Path]) -> None:
    model = beit.load(models("pretrained"))
    images, masked = verification.example(model)
    again = verification.example(model)
    assert torch.equal(again[0], images)
    assert torch.equal(again[1], masked)
    assert (images.shape, masked.shape) == ((8, 3, 16, 24), (8, 2))
    assert torch.equal((images * 255).round().byte() / 255, images)
    assert (masked[:, 0] < masked[:, 1]).all()
    assert not torch.equal(images[0], images[1])


def test_a_difference_in_words() -> None:
    line = str(Difference(3, "logits", 2.5e-7, 4.25))
    assert line == "batch 3: logits 2.5e-07, in values up to 4.25"
    line = str(Difference(8, "codes", 3e-6, 1.0, equal=0.9995))
    assert line == "batch 8: codes 99.950% equal, the others rated 3.0e-06 below the best at most"


# ── the hidden folder ─────────────────────────────────────────────────────────────────────────────


def test_companion_files_are_moved_and_leftovers_deleted(tmp_path: Path) -> None:
    output = tmp_path / "large.onnx"
    killed = tmp_path / ".large.onnx.export"
    killed.mkdir()
    (killed / "half").write_text("written")
    with export.staged(output) as path:
        assert list(path.parent.iterdir()) == []
        path.write_text("graph")
        path.with_name("large.onnx.data").write_text("weights")
        assert not output.exists()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["large.onnx", "large.onnx.data"]
    assert output.read_text() == "graph"


def test_a_companion_that_exists_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "large.onnx.data").write_text("mine")
    with (
        pytest.raises(FileExistsError, match=r"large.onnx.data exists and is not overwritten"),
        export.staged(tmp_path / "large.onnx") as path,
    ):
        path.write_text("graph")
        path.with_name("large.onnx.data").write_text("weights")
    assert [file.read_text() for file in tmp_path.iterdir()] == ["mine"]


def test_an_interrupted_export_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), export.staged(tmp_path / "folder") as path:
        path.mkdir()
        (path / "config.json").write_text("{}")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_the_command(
    models: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from beit import cli

    source, output = models("classifier"), tmp_path / "out.safetensors"
    command = ["export", str(source), "--format", "safetensors", "--output", str(output)]
    assert cli.main(command) == 0
    shown = capsys.readouterr().out
    assert f"{source}: ImageClassifier as safetensors ..." in shown
    assert f"made    {output}, the model as safetensors\n" in shown
    assert "figure  largest difference from the model 0.0e+00\n" in shown
    assert f"""python -c 'import beit; print(beit.load("{output}"))'""" in shown
    done = subprocess.run(
        [sys.executable, *shlex.split(shown.splitlines()[-1].removeprefix("next"))[1:]],
        env={**os.environ, "PYTHONPATH": str(Path(beit.__file__).parents[1])},
        capture_output=True,
        text=True,
    )
    assert done.stdout.startswith("ImageClassifier("), done.stderr
    assert cli.main(command) == 2
    assert "exists and is not overwritten" in capsys.readouterr().err


def test_the_processor_of_transformers_crops_square_images_as_beit_does(
    models: Callable[..., Path], tmp_path: Path
) -> None:
    source, output = models("classifier", image_size=(32, 32)), tmp_path / "folder"
    export.run(Config(str(source), str(output), "transformers"))
    processor = transformers.AutoImageProcessor.from_pretrained(output)
    image = torch.randint(256, (3, 50, 50), generator=torch.Generator().manual_seed(5)).byte()
    pixels = processor(images=[image], return_tensors="pt")["pixel_values"][0]
    backbone = beit.load_backbone(source)
    crop = EvalView((32, 32), 0.875)(image) / 255  # of 36 x 36: 36.57 is rounded down
    close(pixels, (crop - backbone.mean) / backbone.std)
    stated = stated_crop(str(output))
    assert stated is not None
    assert stated[0] == 32 / 36
