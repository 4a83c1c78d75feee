"""The model of a step against what PyTorch counts, on the published computation of small models."""

import importlib
from argparse import Namespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

SIZE, IMAGE_SIZE, B = "Ti", 64, 2


@pytest.fixture
def built():
    """The pretraining model and tokenizer of a size, and masks."""
    from beit.nn.mim import MaskedImageModel, MaskedImageModelConfig
    from beit.nn.tokenizer import VQKD
    from beit.nn.vit import vit_config

    trainings = importlib.import_module("trainings")
    side = (IMAGE_SIZE, IMAGE_SIZE)
    config = MaskedImageModelConfig(vit_config(SIZE, image_size=side), early_layers=9)
    hidden = torch.zeros(B, config.backbone.num_patches, dtype=torch.bool)
    hidden[:, : round(trainings.MASKED_SHARE * hidden.shape[1])] = True
    return Namespace(
        mim=MaskedImageModel(config),
        vqkd=VQKD(trainings.tokenizer_of(SIZE, IMAGE_SIZE)),
        hidden=hidden,
        images=torch.rand(B, 3, *side),
    )


def test_flops_are_those_that_are_counted(built):
    model, reference = (importlib.import_module(name) for name in ("step_model", "reference"))
    parts = model.forward_flops(SIZE, IMAGE_SIZE)
    with FlopCounterMode(display=False) as counted:
        logits, cls_logits = reference.mim_forward(built.mim, built.images, built.hidden)
    forward = sum(parts[name] for name in ("embedding", "blocks", "aggregation", "heads"))
    assert counted.get_total_flops() == B * forward

    with FlopCounterMode(display=False) as tokenizing:
        reference.tokenize(built.vqkd, built.images)
    one_hot = parts["codebook"]  # the published product of assignments and vectors
    assert tokenizing.get_total_flops() == B * (parts["tokenizer"] + parts["codebook"] + one_hot)

    with FlopCounterMode(display=False) as backward:
        (logits.sum() + cls_logits.sum()).backward()
    total = counted.get_total_flops() + backward.get_total_flops()
    step = model.step_of(SIZE, IMAGE_SIZE, B)
    assert step.flops == total + B * (parts["tokenizer"] + parts["codebook"])


def test_weights_are_counted(built):
    model = importlib.import_module("step_model")
    expected = sum(parameter.numel() for parameter in built.mim.parameters())
    assert model.num_weights(SIZE, IMAGE_SIZE) == expected


def test_a_block_of_which_all_is_asked_is_a_whole_block():
    model = importlib.import_module("step_model")
    assert model.block_flops(5, 12, asked=5) == model.block_flops(5, 12)
    assert model.block_flops(5, 12, asked=2) < model.block_flops(5, 12)
