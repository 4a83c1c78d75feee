import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from beit.data.sources import open_source
from beit.draw.numbers import cosine_words
from beit.nn.heads import ImageClassifier, ImageClassifierConfig
from beit.nn.tokenizer import VQKD, VQKDConfig
from beit.nn.vit import VisionTransformer, ViTConfig
from beit.pictures import features as visualise_features
from beit.pictures.features import Config, chosen_patches, patch_cosines, patch_features
from beit.run.device import DeviceConfig
from beit.weights.file import save_weights
from beit.weights.frozen import open_frozen_model

CPU = DeviceConfig(accelerator="cpu")
DATA = "shapes://3?size=24"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, vit: Callable[..., ViTConfig]) -> Path:
    """A folder of small models with random weights, on a grid of 2 x 3."""
    folder = tmp_path_factory.mktemp("features")
    torch.manual_seed(0)
    encoder = vit(absolute_positions=True, relative_bias="none", layer_scale=None)
    vqkd = VQKDConfig(encoder, decoder_depth=1, num_codes=11, code_width=5, teacher_width=7)
    broken = VisionTransformer(vit())
    torch.nn.init.constant_(broken.norm.weight, 3e38)
    models = {
        "vqkd": VQKD(vqkd),
        "classifier": ImageClassifier(ImageClassifierConfig(vit(), 4)),
        "broken": broken,
    }
    for name, model in models.items():
        save_weights(folder / f"{name}.safetensors", model.eval())
    return folder


def config(files: Path, model: str, output: Path, **changes: Any) -> Config:
    settings = {"data": DATA, "output": str(output), "device": CPU}
    return Config(model=str(files / f"{model}.safetensors"), **(settings | changes))


@pytest.mark.parametrize("model", ["vqkd", "classifier"])
def test_features_and_each_chosen_patch_have_a_figure(
    files: Path, tmp_path: Path, model: str
) -> None:
    patches = ((2, 3), (1, 1), (2, 3))
    settings = config(files, model, tmp_path / "out", patches=patches)
    report, images = visualise_features.run(settings)
    names = sorted(path.name for path in report.parent.glob("*.png"))
    assert names == ["features.png", "similar-row01-col01.png", "similar-row02-col03.png"]
    assert images == 3
    page = report.read_text()
    assert page.count("most like patch (2, 3)") == page.count("most like patch (1, 1)") == 1


def test_cosines_are_those_with_the_patch_of_the_first_image(files: Path) -> None:
    model = open_frozen_model(str(files / "vqkd.safetensors"))
    source = open_source("shapes://2?size=16x24")
    images = torch.stack([source.image(n) for n in range(2)])
    with torch.no_grad():
        features = patch_features(model, images, None, torch.device("cpu"))
        expected = model.network(images).patches
    torch.testing.assert_close(features, expected)
    cosines = patch_cosines(features, 4)
    for image in range(2):
        for patch in range(6):
            cosine = F.cosine_similarity(features[image, patch], features[0, 4], dim=0)
            assert abs(float(cosines[image, patch]) - float(cosine)) < 1e-6


def test_a_layer_is_its_raw_output(files: Path) -> None:
    model = open_frozen_model(str(files / "classifier.safetensors"))
    images = torch.randint(256, (2, 3, 16, 24), dtype=torch.uint8)
    with torch.no_grad():
        found = patch_features(model, images, 1, torch.device("cpu"))
        expected = model.network(images, layers=[1]).layers[1][:, 1:]
    torch.testing.assert_close(found, expected)


def test_all_images_are_on_one_scale_whose_ends_are_cosines(files: Path, tmp_path: Path) -> None:
    data = "shapes://8?size=16x24"  # two figures
    settings = config(files, "vqkd", tmp_path / "out", data=data, patches=((1, 2),), limit=8)
    page = visualise_features.run(settings).report.read_text()
    model, source = open_frozen_model(settings.model), open_source(data)
    images = torch.stack([source.image(n) for n in range(8)])
    with torch.no_grad():
        cosines = patch_cosines(patch_features(model, images, None, torch.device("cpu")), 1)
    others = cosines.flatten()[torch.arange(8 * 6) != 1]
    for end in cosine_words([float(others.min()), float(others.max())]):
        assert len(re.findall(f">{re.escape(end)}</text>", page)) >= 2, end


def test_rows_and_columns_are_counted_from_1() -> None:
    found = chosen_patches([(1, 1), (2, 3), (1, 1)], (2, 3))
    assert [one.patch for one in found] == [0, 5]
    with pytest.raises(ValueError, match="sees an image as one patch; leave it out"):
        chosen_patches([(1, 1)], (1, 1))


@pytest.mark.parametrize(
    ("model", "changes", "message"),
    [
        ("vqkd", {"patches": ((0, 1),)}, r"patches has \[0, 1\]; expected a row in 1\.\.2 and"),
        ("vqkd", {"patches": ((1, 4),)}, r"patches has \[1, 4\]; .* a column in 1\.\.3"),
        ("vqkd", {"layer": 3}, r"layer is 3; the blocks of .* are 1 to 2"),
        ("vqkd", {"image_size": (20, 24)}, "not a multiple of patch size 8"),
        ("broken", {}, r"the features of .* are not finite, first for shapes.*32-true"),
    ],
)
def test_what_cannot_be_drawn_is_refused_and_nothing_is_written(
    files: Path, tmp_path: Path, model: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        visualise_features.run(config(files, model, tmp_path / "out", **changes))
    assert not (tmp_path / "out").exists()


def test_an_existing_folder_is_kept(files: Path, tmp_path: Path) -> None:
    (tmp_path / "kept.txt").touch()
    with pytest.raises(FileExistsError, match="exists and is not overwritten"):
        visualise_features.run(config(files, "vqkd", tmp_path))
