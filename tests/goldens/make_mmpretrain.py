"""Make mmpretrain.safetensors: what OpenMMLab mmpretrain 1.2.0's own BEiT computes, in small.

mmpretrain as a whole does not import beside today's libraries. Its BEiT does, without the files
that import everything else:

    pip install --target SITE --no-deps mmpretrain==1.2.0 mmengine==0.10.7 mmcv-lite==2.2.0 \
        addict einops opencv-python-headless platformdirs "setuptools<80" termcolor yapf
    PYTHONPATH=SITE python tests/goldens/make_mmpretrain.py

Tensors are `MODEL/state/NAME`, `MODEL/in/NAME` and `MODEL/out/NAME` for `version2` and `version1`
(pretraining), `classifier` and `backbone`; images are as after normalisation.
"""

import sys
import types
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

ARCH = {
    "embed_dims": 24,
    "num_layers": 4,
    "depth": 4,
    "num_heads": 3,
    "feedforward_channels": 40,
}
SIDE, CODES, CLASSES = 20, 11, 5
IMAGE = {"arch": ARCH, "img_size": SIDE, "patch_size": 4}  # grid 5 x 5
PACKAGES = ("", ".models", ".models.backbones", ".models.necks", ".models.selfsup", ".models.utils")
UTILS = ("helpers", "embed", "norm", "attention", "swiglu_ffn", "vector_quantizer")


def imported(*names: str) -> list[types.ModuleType]:
    """Import modules of mmpretrain past the `__init__` of its packages."""
    spec = find_spec("mmpretrain")
    assert spec is not None and spec.origin is not None
    for package in PACKAGES:
        module = types.ModuleType(f"mmpretrain{package}")
        module.__path__ = [str(Path(spec.origin).parent.joinpath(*package.split(".")))]
        sys.modules[module.__name__] = module
    utils = sys.modules["mmpretrain.models.utils"]
    for name in UTILS:
        module = import_module(f"{utils.__name__}.{name}")
        own = {key: value for key, value in vars(module).items() if _is_from(module, value)}
        vars(utils).update(own)
    backbones = sys.modules["mmpretrain.models.backbones"]
    backbones.BEiTViT = import_module(f"{backbones.__name__}.beit").BEiTViT
    for name, member in (
        ("models.selfsup.base", "BaseSelfSupervisor"),
        ("structures", "DataSample"),
    ):
        module = types.ModuleType(f"mmpretrain.{name}")
        setattr(module, member, nn.Module)
        sys.modules[module.__name__] = module
    return [import_module(f"mmpretrain.models.{name}") for name in names]


def _is_from(module: types.ModuleType, value: object) -> bool:
    return getattr(value, "__module__", None) == module.__name__


def filled(model: nn.Module, generator: torch.Generator) -> nn.Module:
    """Give every tensor values of its own, of a size that keeps sums in bounds."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            noise = torch.randn(tensor.shape, generator=generator)
            if tensor.ndim < 2:
                one = name.endswith("weight")  # of a norm
                tensor.copy_(float(one) + 0.3 * noise)
            elif "table" in name or tensor.ndim == 3:
                tensor.copy_(0.5 * noise)
            else:
                tensor.copy_(noise * tensor[0].numel() ** -0.5)
    model.eval()  # which mmpretrain's own do not return
    return model


def main() -> None:
    """Write the file beside this one."""
    selfsup, neck_file, backbone_file = imported(
        "selfsup.beit", "necks.beitv2_neck", "backbones.beit"
    )
    generator = torch.Generator().manual_seed(5)
    images = torch.randn(2, 3, SIDE, SIDE, generator=generator)
    masked = torch.rand(2, 25, generator=generator) < 0.4
    found: dict[str, Tensor] = {}

    def keep(model: str, parts: dict[str, nn.Module], **tensors: Tensor) -> None:
        for part, module in parts.items():
            for name, tensor in module.state_dict().items():
                found[f"{model}/state/{part}.{name}"] = tensor.clone()
        for name, tensor in tensors.items():
            found[f"{model}/{name.replace('_', '/', 1)}"] = tensor.clone()

    head = nn.ModuleDict({"cls_head": nn.Linear(24, CODES)})

    backbone = selfsup.BEiTPretrainViT(**IMAGE, out_indices=[2, 3], final_norm=False)
    neck = neck_file.BEiTV2Neck(num_layers=2, early_layers=3, backbone_arch=ARCH)
    parts = {"backbone": backbone, "neck": neck, "head": head}
    for module in parts.values():
        filled(module, generator)
    patches, early = neck(backbone(images, masked), backbone.shared_rel_pos_bias)
    logits, cls_logits = head["cls_head"](patches), head["cls_head"](early)
    keep(
        "version2",
        parts,
        in_images=images,
        in_masked=masked,
        out_logits=logits,
        out_cls_logits=cls_logits,
    )

    backbone = selfsup.BEiTPretrainViT(**IMAGE, final_norm=True, layer_scale_init_value=0)
    parts = {"backbone": backbone, "head": head}
    for module in parts.values():
        filled(module, generator)
    (tokens,) = backbone(images, masked)
    logits = head["cls_head"](tokens[:, 1:])
    keep("version1", parts, in_images=images, in_masked=masked, out_logits=logits)

    backbone = filled(backbone_file.BEiTViT(**IMAGE), generator)
    linear = nn.ModuleDict({"fc": filled(nn.Linear(24, CLASSES), generator)})
    logits = linear["fc"](backbone(images)[0])
    keep("classifier", {"backbone": backbone, "head": linear}, in_images=images, out_logits=logits)

    options = {"final_norm": True, "out_type": "raw", "use_abs_pos_emb": True}
    backbone = filled(backbone_file.BEiTViT(**IMAGE, **options), generator)
    keep("backbone", {"backbone": backbone}, in_images=images, out_tokens=backbone(images)[0])

    save_file(found, Path(__file__).with_name("mmpretrain.safetensors"))


if __name__ == "__main__":
    with torch.no_grad():
        main()
