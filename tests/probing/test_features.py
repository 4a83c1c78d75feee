from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor

from beit.data.source import UnreadableImage
from beit.data.sources import open_source
from beit.data.views import EvalView
from beit.nn.pooling import Kind, kinds_of
from beit.nn.vit import ViTConfig
from beit.probing.features import FeatureReader
from beit.weights.frozen import FrozenModel, open_frozen_model
from beit.weights.open import load_backbone

CLS, MEAN = Kind(None, "cls"), Kind(None, "mean")
VIT = ViTConfig(image_size=(8, 16), patch_size=4, width=12, depth=2, num_heads=3)


class Grey:
    """Seven images, each of one grey value; the third cannot be read."""

    labels = torch.arange(7) % 2
    class_names = None
    why_unlabelled = ""

    def __len__(self) -> int:
        return 7

    def name(self, index: int) -> str:
        return f"grey {index}"

    def image(self, index: int) -> Tensor:
        if index == 2:
            raise UnreadableImage(self.name(index), "truncated")
        return torch.full((3, 6, 8), 10 * index, dtype=torch.uint8)


def test_unreadable_images_are_left_out(capsys: pytest.CaptureFixture[str], config: Any) -> None:
    frozen = FrozenModel(lambda images, _: {MEAN: images[:, :2, 0, 0].float()}, (4, 4), width=2)
    settings = config(images_per_batch=3, max_unreadable=0.2)
    cached = FeatureReader(frozen, settings, Fabric(accelerator="cpu")).cache(
        [MEAN], Grey(), "test"
    )
    assert cached.labels.tolist() == [0, 1, 1, 0, 1, 0]
    assert cached.indices.tolist() == [0, 1, 3, 4, 5, 6]
    assert cached.unreadable == ["grey 2"]
    expected = [[value, value] for value in (0.0, 10.0, 30.0, 40.0, 50.0, 60.0)]
    assert torch.equal(cached.of(MEAN), torch.tensor(expected))
    assert "unreadable, left out: grey 2: truncated" in capsys.readouterr().err


def test_one_pass_gives_every_layer_and_pooling(
    weights: str, monkeypatch: pytest.MonkeyPatch, config: Any
) -> None:
    frozen = open_frozen_model(weights)
    shown = []

    def read(images: Tensor, kinds: list[Kind]) -> dict[Kind, Tensor]:
        shown.append(len(images))
        return frozen.read(images, kinds)

    kinds = kinds_of("all", ("both", "mean"), frozen.depth, True)
    source = open_source("shapes://7?size=16")
    settings = config(images_per_batch=4, crop_ratio=1.0, dtype="float16")
    reader = FeatureReader(frozen._replace(read=read), settings, Fabric(accelerator="cpu"))
    cached = reader.cache(kinds, source, "test")
    assert shown == [4, 3]
    view = EvalView((8, 16), 1.0)
    images = torch.stack([view(source.image(index)) for index in range(7)])
    with torch.no_grad():
        features = load_backbone(weights)(images, layers=(1, 2))
    for layer, tokens in features.layers.items():
        both = torch.cat([tokens[:, 0], tokens[:, 1:].mean(dim=1)], dim=1)
        stored = cached.of(Kind(layer, "both"))
        assert stored.dtype == torch.float16
        torch.testing.assert_close(stored.float(), both, rtol=1e-3, atol=1e-3)
        assert torch.equal(cached.of(Kind(layer, "mean")), stored[:, 12:])
    final = features.patches.mean(dim=1)
    torch.testing.assert_close(cached.of(MEAN).float(), final, rtol=1e-3, atol=1e-3)


def test_features_of_each_pass_are_those_of_new_views_without_the_held_out_part(
    config: Any,
) -> None:
    def means(images: Tensor, kinds: list[Kind]) -> dict[Kind, Tensor]:
        return {MEAN: images.float().mean(dim=(2, 3))}

    source = open_source("shapes://10?size=16")
    frozen = FrozenModel(means, (8, 8), width=3)
    fabric = Fabric(accelerator="cpu")

    def drawn(**changes: object) -> list[Tensor]:
        settings = config(**{"batch_size": 5, "images_per_batch": 2, "augment": True} | changes)
        stream = FeatureReader(frozen, settings, fabric).read_epochs([MEAN], source, 4)
        passes = [(features[MEAN], batch.labels) for features, batch in stream]
        assert len(passes) == 4
        for part in (passes[:2], passes[2:]):  # every image once in each pass
            labels = torch.cat([truth for _, truth in part])
            assert labels.sort().values.tolist() == source.labels.sort().values.tolist()
        return [torch.cat([f for f, _ in part]).sort(0).values for part in (passes[:2], passes[2:])]

    first, second = drawn()
    assert not torch.allclose(first, second)
    assert all(map(torch.equal, drawn(), (first, second)))
    assert not torch.allclose(drawn(seed=1)[0], first)
    still, again = drawn(augment=False)
    assert torch.equal(still, again)
    cached = FeatureReader(frozen, config(), fabric).cache([MEAN], source, "test")
    torch.testing.assert_close(still, cached.of(MEAN).sort(0).values)
