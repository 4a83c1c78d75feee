from functools import partial

import pytest
import torch
from safetensors.torch import save_file
from timm.layers.mlp import SwiGLUPacked
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import nn

from beit.nn.patches import IMAGENET_MEAN, IMAGENET_STD
from beit.weights.formats.dino import from_dino
from beit.weights.teachers import load_teacher

D, SIDE, P = 64, 5, 7  # of the patch grid; patch size
GIANT = {"mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU, "mlp_ratio": 5.25}  # 336
REGISTERS = {"reg_tokens": 4, "no_embed_class": True}
VARIANTS = {
    "plain": {},
    "registers": REGISTERS,
    "giant": GIANT,
    "giant registers": GIANT | REGISTERS,
}


def published(registers: bool, gated: bool) -> dict[str, torch.Tensor]:
    """Random weights by the names and shapes of DINOv2's files, with two blocks."""
    hidden, inner = (336, 168) if gated else (4 * D, 4 * D)
    first, second = ("w12", "w3") if gated else ("fc1", "fc2")
    shapes = {"cls_token": (1, 1, D), "pos_embed": (1, 1 + SIDE**2, D), "mask_token": (1, D)}
    shapes |= {"register_tokens": (1, 4, D)} if registers else {}
    shapes |= {"patch_embed.proj.weight": (D, 3, P, P), "patch_embed.proj.bias": (D,)}
    for block in ("blocks.0.", "blocks.1."):
        shapes |= {f"{block}attn.qkv.weight": (3 * D, D), f"{block}attn.qkv.bias": (3 * D,)}
        shapes |= {f"{block}attn.proj.weight": (D, D), f"{block}attn.proj.bias": (D,)}
        shapes |= {f"{block}mlp.{first}.weight": (hidden, D), f"{block}mlp.{first}.bias": (hidden,)}
        shapes |= {f"{block}mlp.{second}.weight": (D, inner), f"{block}mlp.{second}.bias": (D,)}
        shapes |= {f"{block}norm{n}.{kind}": (D,) for n in "12" for kind in ("weight", "bias")}
        shapes |= {f"{block}ls{n}.gamma": (D,) for n in "12"}
    shapes |= {"norm.weight": (D,), "norm.bias": (D,)}
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) * 0.3 for name, shape in shapes.items()}


def timm_model(variant: str, image_size: tuple[int, int]) -> VisionTransformer:
    sizes = {"patch_size": P, "embed_dim": D, "depth": 2, "num_heads": 1, "init_values": 1e-5}
    norm = partial(nn.LayerNorm, eps=1e-6)
    options = {"num_classes": 0, "img_size": image_size, "norm_layer": norm}
    return VisionTransformer(**sizes, **options, **VARIANTS[variant]).eval()


@torch.no_grad()
@pytest.mark.parametrize("image_size", [(35, 35), (28, 42)])
@pytest.mark.parametrize("variant", VARIANTS)
def test_features_are_those_of_timm(variant, image_size, tmp_path):
    state = published("registers" in variant, "giant" in variant)
    torch.save(state, tmp_path / "dinov2_vits14_pretrain.pth")
    teacher = load_teacher(tmp_path / "dinov2_vits14_pretrain.pth", image_size)
    grid = (image_size[0] // P, image_size[1] // P)
    assert (teacher.width, teacher.grid, teacher.image_size) == (D, grid, image_size)

    model = timm_model(variant, image_size)
    model.load_state_dict(checkpoint_filter_fn(dict(state), model))
    images = torch.rand(2, 3, *image_size, generator=torch.Generator().manual_seed(1))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    tokens = model.forward_features((images - mean) / std)
    expected = tokens[:, model.num_prefix_tokens :]
    torch.testing.assert_close(teacher.features(images, grid), expected, atol=1e-5, rtol=1e-5)
    # timm saves it by its own names: then it is the same teacher.
    save_file(model.state_dict(), tmp_path / "timm.safetensors")
    if image_size == (35, 35):
        again = load_teacher(tmp_path / "timm.safetensors").features(images, grid)
        torch.testing.assert_close(again, expected, atol=1e-5, rtol=1e-5)


def test_the_default_size_is_that_of_the_positions_and_wrapped_files_are_read(tmp_path):
    state = published(registers=True, gated=False)
    inner = {f"backbone.{name}": tensor for name, tensor in state.items()}
    inner |= {"dino_head.mlp.0.weight": torch.zeros(2, 2), "ibot_head.last.weight": torch.zeros(1)}
    torch.save({"teacher": inner, "iteration": 9}, tmp_path / "teacher_checkpoint.pth")
    torch.save(state, tmp_path / "plain.pth")
    images = torch.rand(1, 3, 35, 35, generator=torch.Generator().manual_seed(1))
    wrapped, plain = (load_teacher(tmp_path / f"{n}.pth") for n in ("teacher_checkpoint", "plain"))
    assert plain.image_size == (35, 35)
    assert torch.equal(wrapped.features(images, (5, 5)), plain.features(images, (5, 5)))


@torch.no_grad()
@pytest.mark.parametrize("registers", [False, True])
@pytest.mark.parametrize("gated", [False, True])
def test_a_folder_of_transformers_is_a_teacher_with_the_same_features(registers, gated, tmp_path):
    transformers = pytest.importorskip("transformers")
    kind = "Dinov2WithRegisters" if registers else "Dinov2"
    sizes = {"hidden_size": D, "num_hidden_layers": 2, "num_attention_heads": 1}
    sizes |= {"image_size": SIDE * P, "patch_size": P, "use_swiglu_ffn": gated}
    config = getattr(transformers, f"{kind}Config")(**sizes)
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}Model")(config).eval()
    for values in model.parameters():
        nn.init.normal_(values, std=0.3)
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    images = torch.rand(2, 3, 35, 35, generator=torch.Generator().manual_seed(1))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    expected = model((images - mean) / std).last_hidden_state[:, 5 if registers else 1 :]
    found = load_teacher(tmp_path).features(images, (5, 5))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("blocks.1.ls2.gamma"), r"blocks\.1\.ls2\.gamma is missing"),
        (
            lambda s: s.update({"head.weight": torch.zeros(3, D)}),
            "head.weight is unexpected; for another model of timm give timm:NAME@FILE",
        ),
        (lambda s: s.pop("blocks.0.mlp.fc2.weight"), r"no blocks\.0\.mlp\.fc2\.weight"),
        (
            lambda s: s.update(pos_embed=torch.zeros(26 * D)),
            "pos_embed in the file is .*, expected 3 sizes",
        ),
        (
            lambda s: s.update(cls_token=torch.zeros(D)),
            "cls_token is .*, expected|register_tokens is unexpected",
        ),
        (
            lambda s: s.update(register_tokens=torch.zeros(D)),
            "reg_token .* is .*, expected 3",
        ),
        (
            lambda s: s.update({"blocks.0.mlp.fc1.weight": torch.zeros(D)}),
            r"blocks\.0\.mlp\.fc1\.weight in the file is \(64,\)",
        ),
    ],
)
def test_files_that_do_not_fit_are_refused(change, message, tmp_path):
    state = published(registers=True, gated=False)
    change(state)
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=message):
        load_teacher(tmp_path / "a.pth")


def test_rotary_positions_are_not_taken_for_it():
    """DINOv3 has no table of positions."""
    state = published(registers=False, gated=False)
    del state["pos_embed"]
    assert from_dino(state) is None
