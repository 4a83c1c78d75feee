import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pyarrow import parquet

from beit.data.sources import open_source
from beit.data.views import EvalView
from beit.nn.heads import ImageClassifier, ImageClassifierConfig
from beit.nn.vit import ViTConfig
from beit.recipes import predict
from beit.recipes.predict import Config, likeliest
from beit.store.weights import save_weights
from beit.train.fabric import DeviceConfig

DATA = "shapes://7?size=24"
CLASSES = ("ant", "bee", "cat", "dog")


@pytest.fixture(scope="module")
def classifier(vit: Callable[..., ViTConfig]) -> ImageClassifier:
    torch.manual_seed(0)
    model = ImageClassifier(ImageClassifierConfig(vit(), 4, class_names=CLASSES))
    for parameter in model.parameters():  # as drawn, all images would look nearly alike
        torch.nn.init.normal_(parameter, std=0.4)
    return model.eval()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, classifier: ImageClassifier) -> str:
    path = tmp_path_factory.mktemp("predict") / "classifier.safetensors"
    save_weights(path, classifier)
    return str(path)


def config(model: str, output: Path, **changes: Any) -> Config:
    """Batches of 3, 3 and 1; a part each."""
    settings = {"data": DATA, "batch_size": 3, "part_size": 3, "num_workers": 0}
    device = DeviceConfig(accelerator="cpu")
    return Config(model=model, output=str(output), device=device, **(settings | changes))


def test_the_likeliest_classes_come_first() -> None:
    half = torch.tensor(0.5).log()
    logits = torch.tensor([[half, 0.0, half], [1.0, 1.0, 1.0]]).to(torch.bfloat16)
    found = likeliest(logits, 2)
    assert found["class_index"].tolist() == [[1, 0], [0, 1]]  # the first of equals
    torch.testing.assert_close(
        found["probability"], torch.tensor([[0.5, 0.25], [1 / 3, 1 / 3]]), rtol=0, atol=2e-3
    )
    assert found["probability"].dtype == torch.float32


def test_predictions_are_those_of_the_classifier(
    model: str, classifier: ImageClassifier, tmp_path: Path
) -> None:
    output = tmp_path / "classes.parquet"
    assert predict.run(config(model, output, top_k=3)) == (output, 7)
    source, view = open_source(DATA), EvalView((16, 24))
    images = torch.stack([view(source.image(index)) for index in range(7)])
    with torch.no_grad():
        best = classifier(images).softmax(dim=1).topk(3)
    rows = parquet.read_table(output)
    names = ["index", "path", "label", "class_index", "class_name", "probability"]
    assert rows.column_names == names
    indices = rows["class_index"].combine_chunks().to_numpy_ndarray()
    assert indices.dtype == np.uint8
    assert indices.tolist() == best.indices.tolist()
    assert len(np.unique(indices[:, 0])) > 1  # images do differ
    assert rows["class_name"].to_pylist() == [[CLASSES[i] for i in row] for row in indices]
    np.testing.assert_allclose(
        rows["probability"].combine_chunks().to_numpy_ndarray(), best.values.numpy(), atol=1e-6
    )
    about = json.loads(rows.schema.metadata[b"beit"])
    expected = {"verb": "predict", "kind": "ImageClassifier", "num_classes": 4, "grid": [2, 3]}
    assert about.items() >= (expected | {"class_names": [*CLASSES]}).items()


def test_a_model_with_fewer_classes_gives_all_and_without_names_none(
    vit: Callable[..., ViTConfig], tmp_path: Path
) -> None:
    nameless = ImageClassifier(ImageClassifierConfig(vit(), 2, pooling="cls"))
    save_weights(tmp_path / "classifier.safetensors", nameless)
    predict.run(config(str(tmp_path / "classifier.safetensors"), tmp_path / "classes.npz"))
    with np.load(tmp_path / "classes.npz") as arrays:
        assert "class_name" not in arrays
        assert np.sort(arrays["class_index"]).tolist() == [[0, 1]] * 7
        np.testing.assert_allclose(arrays["probability"].sum(axis=1), 1, atol=1e-6)


def test_another_image_size_has_another_grid(model: str, tmp_path: Path) -> None:
    output = tmp_path / "classes.npz"
    predict.run(config(model, output, image_size=(24, 32)))
    with np.load(output) as arrays:
        assert json.loads(str(arrays["about"]))["grid"] == [3, 4]
        assert arrays["class_index"].shape == (7, 4)


def test_interrupted_and_repeated_equals_undisturbed(
    model: str, tmp_path: Path, interrupt_at: Callable[..., None]
) -> None:
    for suffix in (".npz", ".parquet"):
        predict.run(config(model, tmp_path / f"one{suffix}"))
        again = config(model, tmp_path / f"two{suffix}")
        interrupt_at(predict, again, 2)
        predict.run(again)
        assert (tmp_path / f"two{suffix}").read_bytes() == (tmp_path / f"one{suffix}").read_bytes()


def test_what_names_no_classes_is_refused(classifier: ImageClassifier, tmp_path: Path) -> None:
    save_weights(tmp_path / "backbone.safetensors", classifier.backbone)
    with pytest.raises(ValueError, match="holds a VisionTransformer, which names no classes"):
        predict.run(config(str(tmp_path / "backbone.safetensors"), tmp_path / "classes.npz"))


def test_no_class_at_all_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="top_k must be at least 1, got 0"):
        config("none", tmp_path / "classes.npz", top_k=0)
