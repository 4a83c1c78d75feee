import json
import math
from pathlib import Path

import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn import functional as F

from beit.data.decoding import UnreadableImage
from beit.nn.vit import VisionTransformer, ViTConfig
from beit.recipes import probe
from beit.recipes.probe import Config
from beit.store.weights import save_weights
from beit.train.fabric import DeviceConfig


def clusters(count: int, spread: float, seed: int) -> tuple[Tensor, Tensor]:
    """Draw features (n, 5) around three corners, and the corner of each as its label."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (count,), generator=generator)
    noise = spread * torch.randn(count, 5, generator=generator)
    return torch.eye(3, 5)[labels] + noise, labels


# ── training ────────────────────────────────────────────────────────────────────────────────────


def test_first_step_by_hand() -> None:
    # Standardised these are -1 and 1, and from zero both classes have probability 1/2.
    features, labels = torch.tensor([[3.0], [5.0]]), torch.tensor([0, 1])
    probes = probe.train_probes(features, labels, [0.5, 2], 2, epochs=1, batch_size=2, seed=0)
    gradient = torch.tensor([[0.5], [-0.5]])  # mean of (p - target) x: (-1/2 * -1 + 1/2 * 1) / 2
    torch.testing.assert_close(probes.weight[0], -0.5 * gradient)
    torch.testing.assert_close(probes.weight[1], -2 * gradient)
    assert torch.equal(probes.bias, torch.zeros(2, 2))


def test_every_rate_is_trained_as_it_would_be_alone() -> None:
    features, labels = clusters(43, 0.7, seed=0)
    rates = [1e-3, 0.05, 0.4, 1e20]  # the last one overflows and must not touch the others
    together = probe.train_probes(features, labels, rates, 3, epochs=3, batch_size=8, seed=1)
    for r, rate in enumerate(rates[:3]):
        alone = probe.train_probes(features, labels, [rate], 3, epochs=3, batch_size=8, seed=1)
        torch.testing.assert_close(together.weight[r], alone.weight[0])
        torch.testing.assert_close(together.bias[r], alone.bias[0])


def test_training_is_plain_sgd_with_momentum_and_a_cosine() -> None:
    features, labels = clusters(20, 0.7, seed=2)
    rate, epochs, batch_size = 0.3, 2, 8
    probes = probe.train_probes(
        features, labels, [rate], 3, epochs=epochs, batch_size=batch_size, seed=3
    )
    linear = nn.Linear(5, 3)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    optimizer = torch.optim.SGD(linear.parameters(), lr=rate, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs * 3)
    standardised = (features - features.mean(0)) / features.std(0, correction=0)
    generator = torch.Generator().manual_seed(3)
    for _ in range(epochs):
        for batch in torch.randperm(20, generator=generator).split(batch_size):
            optimizer.zero_grad()
            F.cross_entropy(linear(standardised[batch]), labels[batch]).backward()
            optimizer.step()
            schedule.step()
    torch.testing.assert_close(probes.weight[0], linear.weight)
    torch.testing.assert_close(probes.bias[0], linear.bias)


# ── the protocol on features ────────────────────────────────────────────────────────────────────


def config(**changes: object) -> Config:
    settings: dict[str, object] = {
        "model": "none",
        "train": "none",
        "test": "none",
        "rates": (0.3, 0.003, 0.03),
        "epochs": 4,
        "batch_size": 16,
        "num_workers": 0,
        "device": DeviceConfig(accelerator="cpu"),
    }
    return Config(**(settings | changes))  # type: ignore[arg-type]


def test_separable_classes_are_told_apart() -> None:
    row = probe.probe_features(
        "mean", *clusters(90, 0.05, seed=0), *clusters(30, 0.05, seed=1), config(), 3
    )
    assert row["features"] == "mean"
    assert row["linear"] == 1.0
    assert row["knn"] == 1.0
    assert len(row["held_out"]) == 3


def test_test_images_have_no_say_in_the_choice() -> None:
    train, train_labels = clusters(120, 1.0, seed=0)
    test, test_labels = clusters(60, 1.0, seed=1)
    row = probe.probe_features("cls", train, train_labels, test, test_labels, config(), 3)
    other = probe.probe_features(
        "cls", train, train_labels, 100 * test, (test_labels + 1) % 3, config(), 3
    )
    assert (row["rate"], row["held_out"]) == (other["rate"], other["held_out"])
    # By rising rate, whatever the order they were given in.
    assert row["rate"] == [0.003, 0.03, 0.3][row["held_out"].index(max(row["held_out"]))]


def test_features_that_are_not_finite_are_refused() -> None:
    features, labels = clusters(40, 1.0, seed=0)
    broken = features.clone()
    broken[3, 1] = math.nan
    with pytest.raises(ValueError, match="features of the test images are not finite"):
        probe.probe_features("cls", features, labels, broken, labels, config(), 3)


def test_score_counts_hits_of_every_probe() -> None:
    probes = probe.LinearProbes(2, 2, 2)
    with torch.no_grad():
        probes.weight[0].copy_(torch.eye(2))  # the larger dimension is the class
        probes.weight[1].copy_(torch.eye(2).flip(0))
    features = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 1.0], [0.0, 3.0]])
    accuracies = probe.score(probes, features, torch.tensor([0, 1, 0, 0]), chunk=3)
    assert accuracies.tolist() == [0.75, 0.25]


def test_the_first_of_equals_is_chosen() -> None:
    assert probe.choose(torch.tensor([0.2, 0.7, 0.7, 0.1])) == 1


def test_split_parts_all_images_by_chance() -> None:
    fitted, held_out = probe.split(47, 0.2, seed=5)
    assert len(held_out) == 9
    assert torch.cat([fitted, held_out]).sort().values.tolist() == list(range(47))
    assert torch.equal(held_out, probe.split(47, 0.2, seed=5)[1])
    assert not torch.equal(held_out, probe.split(47, 0.2, seed=6)[1])


def test_a_split_without_held_out_images_is_refused() -> None:
    with pytest.raises(ValueError, match=r"held_out 0\.1 of 4 training images is 0"):
        probe.split(4, 0.1, seed=0)


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="rates must be one or more positive numbers"):
        config(rates=(0.1, -1.0))
    with pytest.raises(ValueError, match="epochs must be at least 1, got 0"):
        config(epochs=0)


# ── features ────────────────────────────────────────────────────────────────────────────────────


class Grey:
    """Seven images, each of one grey value; the third cannot be read."""

    labels = torch.arange(7) % 2
    class_names = None

    def __len__(self) -> int:
        return 7

    def name(self, index: int) -> str:
        return f"grey {index}"

    def image(self, index: int) -> Tensor:
        if index == 2:
            raise UnreadableImage(self.name(index), "truncated")
        return torch.full((3, 6, 8), 10 * index, dtype=torch.uint8)


def test_unreadable_images_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    frozen = probe.Frozen(lambda images: {"mean": images[:, :2, 0, 0].double()}, (4, 4))
    cached = probe.extract(
        frozen,
        Grey(),
        "test",
        config(images_per_batch=3, max_unreadable=0.2),
        Fabric(accelerator="cpu"),
    )
    assert cached.labels.tolist() == [0, 1, 1, 0, 1, 0]
    expected = [[value, value] for value in (0.0, 10.0, 30.0, 40.0, 50.0, 60.0)]
    assert torch.equal(cached.features["mean"], torch.tensor(expected))
    assert "left out, cannot be read: grey 2" in capsys.readouterr().err


# ── the whole command ───────────────────────────────────────────────────────────────────────────


@pytest.fixture
def weights(tmp_path: Path) -> str:
    torch.manual_seed(0)
    vit = ViTConfig(image_size=(8, 16), patch_size=4, width=12, depth=1, num_heads=3)
    path = tmp_path / "weights.safetensors"
    save_weights(path, VisionTransformer(vit))
    return str(path)


SHAPES = {"train": "shapes://40?size=16", "test": "shapes://20?size=16&seed=1"}


def test_run_writes_figures_and_report(
    weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "probes" / "first"
    settings = config(model=weights, output=str(output), **SHAPES)
    result = probe.run(settings)
    assert [row["features"] for row in result.rows] == ["cls", "mean"]
    assert all(0 <= row[key] <= 1 for row in result.rows for key in ("linear", "knn"))  # type: ignore[literal-required]
    assert result.table in capsys.readouterr().out
    record = json.loads((output / "probe.json").read_text())
    assert record["rows"] == result.rows
    assert record["rates"] == [0.003, 0.03, 0.3]
    assert record["sizes"] == {"train": 40, "test": 20, "classes": 10, "width": 12}
    assert record["config"]["model"] == weights
    assert "[CLS]" in (output / "report.html").read_text()
    with pytest.raises(FileExistsError, match="first exists and is not overwritten"):
        probe.run(settings)


def test_same_seed_same_figures(weights: str) -> None:
    first, second = (probe.run(config(model=weights, **SHAPES)) for _ in range(2))
    assert first == second


def test_features_are_those_of_the_backbone_in_eval_mode(weights: str) -> None:
    from beit.store.load import load_backbone

    frozen = probe._open_model(config(model=weights), torch.device("cpu"))
    assert frozen.image_size == (8, 16)
    images = torch.randint(256, (2, 3, 8, 16), dtype=torch.uint8)
    with torch.no_grad():
        pooled = frozen.embed(images)
        features = load_backbone(weights)(images)
    assert torch.equal(pooled["cls"], features.cls)
    assert torch.equal(pooled["mean"], features.patches.mean(dim=1))


def test_untrained_weights_come_from_the_seed_alone(weights: str) -> None:
    images = torch.randint(256, (2, 3, 8, 16), dtype=torch.uint8)

    def embedded(**changes: object) -> Tensor:
        before = torch.random.get_rng_state()
        frozen = probe._open_model(config(model=weights, **changes), torch.device("cpu"))
        assert torch.equal(torch.random.get_rng_state(), before)
        with torch.no_grad():
            return frozen.embed(images)["mean"]

    untrained = embedded(untrained=True, seed=4)
    assert torch.equal(untrained, embedded(untrained=True, seed=4))
    assert not torch.allclose(untrained, embedded(untrained=True, seed=5))
    assert not torch.allclose(untrained, embedded())


def test_a_teacher_has_the_mean_of_its_patches_only() -> None:
    settings = config(model="teacher:timm:test_vit.r160_in1k", untrained=True, image_size=32)
    frozen = probe._open_model(settings, torch.device("cpu"))
    assert frozen.image_size == (32, 32)
    pooled = frozen.embed(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
    assert {kind: tuple(vectors.shape) for kind, vectors in pooled.items()} == {"mean": (2, 64)}


def test_images_without_labels_are_refused(weights: str, tmp_path: Path) -> None:
    from PIL import Image

    flat = tmp_path / "flat"
    flat.mkdir()
    for place in range(3):
        Image.new("RGB", (8, 8), (place, 0, 0)).save(flat / f"{place}.png")
    with pytest.raises(ValueError, match=r"test .*flat: images without a label"):
        probe.run(config(model=weights, train=SHAPES["train"], test=str(flat)))


def test_other_classes_in_the_test_set_are_refused(weights: str, tmp_path: Path) -> None:
    from PIL import Image

    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "pets" / name / "0.png")
    with pytest.raises(ValueError, match="do not have the same classes"):
        probe.run(config(model=weights, train=SHAPES["train"], test=str(tmp_path / "pets")))


def test_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="probe runs in one process on one device, got 2"):
        probe.run(config())
