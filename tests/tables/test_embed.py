import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from pyarrow import parquet
from safetensors.torch import save_file
from torch import Tensor

from beit.data.sources import open_source
from beit.data.views import EvalView
from beit.nn.vit import Features, VisionTransformer, ViTConfig
from beit.run.device import DeviceConfig
from beit.tables import embed
from beit.tables.embed import Config
from beit.weights.file import save_weights
from beit.weights.teachers import load_teacher

DATA = "shapes://7?size=24"
N, D = 6, 12


@pytest.fixture(scope="module")
def backbone(vit: Callable[..., ViTConfig]) -> VisionTransformer:
    torch.manual_seed(0)
    model = VisionTransformer(vit(layer_scale=1.0))
    for parameter in model.parameters():  # as drawn, all images would look nearly alike
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, backbone: VisionTransformer) -> str:
    path = tmp_path_factory.mktemp("embed") / "backbone.safetensors"
    save_weights(path, backbone)
    return str(path)


def config(model: str, output: Path, **changes: Any) -> Config:
    """Batches of 3, 3 and 1 images; one per part."""
    settings = {"data": DATA, "batch_size": 3, "part_size": 3, "num_workers": 0}
    device = DeviceConfig(accelerator="cpu")
    return Config(model=model, output=str(output), device=device, **(settings | changes))


@torch.no_grad()
def reference(backbone: VisionTransformer) -> Features:
    """The features of all images, computed at once."""
    source, view = open_source(DATA), EvalView((16, 24))
    images = torch.stack([view(source.image(index)) for index in range(len(source))])
    return backbone(images, layers=(1, 2))


def assert_near(values: "np.ndarray[Any, Any]", expected: Tensor, rounding: float) -> None:
    """To float32's rounding, which changes with the size of a batch, or to float16's."""
    assert values.shape == tuple(expected.shape)
    np.testing.assert_allclose(
        values.astype(np.float32), expected.numpy(), rtol=rounding, atol=rounding
    )


def test_features_are_those_of_the_backbone(
    model: str, backbone: VisionTransformer, tmp_path: Path
) -> None:
    output = tmp_path / "features.parquet"
    assert embed.run(config(model, output)) == (output, 7)
    rows, features = parquet.read_table(output), reference(backbone)
    assert rows.column_names == ["index", "path", "label", "cls", "mean"]
    arrays = {name: rows[name].combine_chunks().to_numpy_ndarray() for name in ("cls", "mean")}
    assert {array.dtype for array in arrays.values()} == {np.dtype("float32")}
    assert_near(arrays["cls"], features.cls, 1e-5)
    assert_near(arrays["mean"], features.patches.mean(dim=1), 1e-5)
    assert np.ptp(arrays["cls"], axis=0).max() > 0.1  # images do differ
    about = json.loads(rows.schema.metadata[b"beit"])
    expected = {"verb": "embed", "kind": "VisionTransformer", "layer": None, "normed": True}
    assert about.items() >= (expected | {"grid": [2, 3], "num_heads": 3}).items()


def test_patches_in_half_precision(model: str, backbone: VisionTransformer, tmp_path: Path) -> None:
    output = tmp_path / "features.npz"
    embed.run(config(model, output, features=("patches", "cls"), dtype="float16"))
    features = reference(backbone)
    with np.load(output) as arrays:
        assert [*arrays] == ["index", "path", "label", "patches", "cls", "about"]
        assert arrays["patches"].dtype == np.float16
        assert arrays["patches"].shape == (7, N, D)
        assert_near(arrays["patches"], features.patches, 2e-3)
        assert_near(arrays["cls"], features.cls, 2e-3)


def test_a_layer_gives_its_raw_output(
    model: str, backbone: VisionTransformer, tmp_path: Path
) -> None:
    output = tmp_path / "features.npz"
    embed.run(config(model, output, layer=1, features=("cls", "mean", "patches")))
    tokens = reference(backbone).layers[1]
    with np.load(output) as arrays:
        assert_near(arrays["cls"], tokens[:, 0], 1e-5)
        assert_near(arrays["mean"], tokens[:, 1:].mean(dim=1), 1e-5)
        assert_near(arrays["patches"], tokens[:, 1:], 1e-5)
        about = json.loads(str(arrays["about"]))
    assert (about["layer"], about["normed"]) == (1, False)


def test_another_image_size_has_another_grid(model: str, tmp_path: Path) -> None:
    output = tmp_path / "features.npz"
    embed.run(config(model, output, image_size=(32, 24), features=("patches",)))
    with np.load(output) as arrays:
        assert arrays["patches"].shape == (7, 12, D)
        assert json.loads(str(arrays["about"]))["grid"] == [4, 3]


def test_a_resumed_run_equals_an_undisturbed_one(
    model: str, tmp_path: Path, interrupt_at: Callable[..., None]
) -> None:
    settings = {"features": ("cls", "mean", "patches"), "dtype": "float16"}
    embed.run(config(model, tmp_path / "one.parquet", **settings))
    again = config(model, tmp_path / "two.parquet", **settings)
    interrupt_at(embed, again, 2)
    embed.run(again)
    assert (tmp_path / "two.parquet").read_bytes() == (tmp_path / "one.parquet").read_bytes()


@pytest.mark.parametrize("layer", [0, 3])
def test_an_unknown_block_is_refused(model: str, tmp_path: Path, layer: int) -> None:
    with pytest.raises(ValueError, match=rf"layer is {layer}; the blocks of .* are 1 to 2"):
        embed.run(config(model, tmp_path / "features.npz", layer=layer))


def test_a_teacher_gives_the_mean_of_its_patches(tmp_path: Path) -> None:
    file = tmp_path / "vit.safetensors"
    save_file(timm.create_model("test_vit").state_dict(), file)
    model, output = f"teacher:timm:test_vit@{file}", tmp_path / "features.npz"
    embed.run(config(model, output, image_size=32))
    with np.load(output) as arrays:
        assert [*arrays] == ["index", "path", "label", "mean", "about"]
        source, view = open_source(DATA), EvalView((32, 32))
        teacher = load_teacher(model.removeprefix("teacher:"), 32)
        images = torch.stack([view(source.image(index)) for index in range(7)])
        assert_near(arrays["mean"], teacher.features(images, teacher.grid).mean(dim=1), 1e-4)
        about = json.loads(str(arrays["about"]))
        assert (about["kind"], about["grid"]) == ("Teacher", [2, 2])
    for changes, error in (
        ({"features": ("cls",)}, r"cls, but teacher:.* has no \[CLS\] token; expected mean"),
        ({"layer": 1}, "layer is 1; teacher:.* gives its final features only"),
    ):
        with pytest.raises(ValueError, match=error):
            embed.run(config(model, tmp_path / "other.npz", image_size=32, **changes))


@pytest.mark.parametrize("features", [(), ("cls", "cls")])
def test_features_must_be_named_once(tmp_path: Path, features: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="features must name one or more of cls, mean, patches"):
        config("none", tmp_path / "features.npz", features=features)


def test_a_model_is_embedded_with_the_crop_of_its_training(
    backbone: VisionTransformer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_weights(tmp_path / "m.safetensors", backbone, crop_ratio=1.0)
    rows = {}
    for name, crop in (("own", None), ("whole", 1.0), ("cut", 0.875)):
        output = tmp_path / f"{name}.npz"
        with caplog.at_level("INFO", logger="beit"):
            embed.run(
                Config(
                    str(tmp_path / "m.safetensors"),
                    "shapes://3?size=40",
                    str(output),
                    crop_ratio=crop,
                    num_workers=0,
                    device=DeviceConfig(accelerator="cpu"),
                )
            )
        rows[name] = np.load(output)["cls"]
    assert np.array_equal(rows["own"], rows["whole"])
    assert not np.array_equal(rows["own"], rows["cut"])
    assert "crop_ratio" not in caplog.text


@pytest.mark.parametrize(
    "module",
    [
        *("tables.embed", "tables.tokenize", "tables.predict", "probing.probe"),
        *("evaluation.evaluate", "codebook.visualise", "pictures.tokens", "pictures.attention"),
    ],
)
def test_every_verb_that_reads_a_model_takes_its_crop(module: str) -> None:
    assert import_module(f"beit.{module}").Config.__dataclass_fields__["crop_ratio"].default is None
