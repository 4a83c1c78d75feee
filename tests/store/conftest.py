"""Small models of every kind that a weights file can hold; all sizes differ."""

import pytest
import torch

from beit.nn.mim import MaskedImageModel, MaskedImageModelConfig
from beit.nn.tokenizer import VQKD, VQKDConfig
from beit.nn.vit import VisionTransformer, ViTConfig

TOKENIZER = VQKDConfig(
    encoder=ViTConfig(
        image_size=(12, 20),
        patch_size=4,
        width=24,
        depth=3,
        num_heads=2,
        absolute_positions=True,
        relative_bias="none",
        layer_scale=None,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        init_bound=2.0,
    ),
    decoder_depth=1,
    num_codes=11,
    code_width=6,
    teacher_width=7,
)
TRUNK = ViTConfig(image_size=(16, 16), patch_size=4, width=24, depth=3, num_heads=2)


def scrambled(model: torch.nn.Module) -> torch.nn.Module:
    """Give every tensor values of its own, so that no two could be mistaken for each other."""
    generator = torch.Generator().manual_seed(1)
    for tensor in model.state_dict().values():
        if tensor.dtype == torch.bool:
            tensor.fill_(True)
        else:
            tensor.copy_(torch.rand(tensor.shape, generator=generator))
    return model.eval()


@pytest.fixture
def tokenizer() -> VQKD:
    return scrambled(VQKD(TOKENIZER))


@pytest.fixture
def pretrained() -> MaskedImageModel:
    config = MaskedImageModelConfig(
        backbone=TRUNK, num_codes=11, early_layers=2, head_layers=1, shared_head=False
    )
    return scrambled(MaskedImageModel(config))


@pytest.fixture
def backbone() -> VisionTransformer:
    return scrambled(VisionTransformer(TRUNK))
