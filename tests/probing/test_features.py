from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor

from beit.data.source import UnreadableImage
from beit.data.sources import open_source
from beit.data.views import EvalView
from beit.nn.mim import MaskedImageModel, MaskedImageModelConfig
from beit.nn.pooling import Kind, kinds_of
from beit.nn.vit import ViTConfig
from beit.probing.features import FeatureReader, FrozenModel, open_frozen_model
from beit.weights.file import save_weights
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


# ── the frozen model ────────────────────────────────────────────────────────────────────────────


def test_features_are_those_of_the_backbone_in_eval_mode(weights: str) -> None:
    frozen = open_frozen_model(weights)
    assert (frozen.image_size, frozen.width, frozen.depth) == ((8, 16), 12, 2)
    images = torch.randint(256, (2, 3, 8, 16), dtype=torch.uint8)
    kinds = [CLS, MEAN, Kind(1, "cls"), Kind(2, "attentive")]
    with torch.no_grad():
        read = frozen.read(images, kinds)
        features = load_backbone(weights)(images, layers=(1, 2))
    assert list(read) == kinds
    assert torch.equal(read[CLS], features.cls)
    assert torch.equal(read[MEAN], features.patches.mean(dim=1))
    assert torch.equal(read[Kind(1, "cls")], features.layers[1][:, 0])
    assert torch.equal(read[Kind(2, "attentive")], features.layers[2][:, 1:])


def test_untrained_weights_come_from_the_seed_alone(weights: str) -> None:
    images = torch.randint(256, (2, 3, 8, 16), dtype=torch.uint8)

    def embedded(untrained: int | None) -> Tensor:
        before = torch.random.get_rng_state()
        frozen = open_frozen_model(weights, untrained=untrained)
        assert torch.equal(torch.random.get_rng_state(), before)
        with torch.no_grad():
            return frozen.read(images, [MEAN])[MEAN]

    assert torch.equal(embedded(4), embedded(4))
    assert not torch.allclose(embedded(4), embedded(5))
    assert not torch.allclose(embedded(4), embedded(None))


def test_positions_are_carried_to_another_size(weights: str) -> None:
    frozen = open_frozen_model(weights, image_size=16)
    assert frozen.image_size == (16, 16)
    with torch.no_grad():
        read = frozen.read(torch.zeros(1, 3, 16, 16), [Kind(None, "attentive")])
    assert read[Kind(None, "attentive")].shape == (1, 16, 12)
    with pytest.raises(ValueError, match=r"weights.safetensors: .*patch"):
        open_frozen_model(weights, image_size=15)


def test_a_teacher_has_the_mean_of_its_patches_only() -> None:
    frozen = open_frozen_model("teacher:timm:test_vit.r160_in1k", 32, untrained=0)
    assert (frozen.image_size, frozen.width, frozen.depth) == ((32, 32), 64, 0)
    assert not frozen.has_cls
    assert frozen.paper is None
    read = frozen.read(torch.zeros(2, 3, 32, 32, dtype=torch.uint8), [MEAN])
    assert read[MEAN].shape == (2, 64)


@pytest.mark.parametrize(("head_layers", "expected"), [(0, "mean"), (1, "cls")])
def test_the_paper_reads_cls_after_patch_aggregation(
    tmp_path: Path, head_layers: int, expected: str
) -> None:
    numbers = MaskedImageModelConfig(VIT, 5, early_layers=1, head_layers=head_layers)
    save_weights(tmp_path / "pretrained.safetensors", MaskedImageModel(numbers))
    assert open_frozen_model(str(tmp_path / "pretrained.safetensors")).paper == expected
