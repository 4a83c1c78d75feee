"""Weights that come with the package: whole, as their card says, and of use."""

import hashlib
import re

import pytest
import torch

import beit
from beit.nn.tokenizer import VQKD
from beit.nn.vit import VisionTransformer
from beit.weights.crop import crop_ratio
from beit.weights.hub import SHIPPED_FILES

KINDS = {"cifar10-small": VisionTransformer, "cifar10-small-tokenizer": VQKD}


def test_the_card_has_the_checksum_of_every_file():
    card = (SHIPPED_FILES / "README.md").read_text("utf-8")
    said = dict(re.findall(r"`(\S+\.safetensors)`.*`([0-9a-f]{64})`", card))
    files = {file.name: file.read_bytes() for file in SHIPPED_FILES.glob("*.safetensors")}
    assert said == {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    assert {name.removesuffix(".safetensors") for name in files} == KINDS.keys()
    assert sum(map(len, files.values())) < 10 * 2**20


@pytest.mark.parametrize("name", KINDS)
def test_they_open_by_name(name, caplog):
    model = beit.load(f"beit:{name}")
    assert type(model) is KINDS[name] and model.image_size == (32, 32)
    assert next(model.parameters()).dtype == torch.float32
    assert crop_ratio(f"beit:{name}", None) == 1.0


def test_images_of_one_class_are_nearer_than_others():
    """Drawn: discs on one background, stripes on another; colours vary within a kind."""
    rows, columns = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    disc, stripes = (rows - 16) ** 2 + (columns - 16) ** 2 < 90, (columns // 4) % 2 == 0
    images = torch.zeros(4, 3, 32, 32, dtype=torch.uint8)
    for number, (shape, colour) in enumerate(
        [(disc, 200), (disc, 160), (stripes, 200), (stripes, 160)]
    ):
        images[number, :, shape] = colour
    with torch.inference_mode():
        features = beit.load_backbone("beit:cifar10-small")(images).cls
    near = torch.cosine_similarity(features[:, None], features[None], dim=2)
    assert min(near[0, 1], near[2, 3]) > near[:2, 2:].max()


def test_an_unknown_name_lists_those_that_exist():
    with pytest.raises(ValueError, match="no weights called 'x'; expected beit: and one of cifar"):
        beit.load("beit:x")
    with pytest.raises(ValueError, match=r"^beit:cifar10-small: takes no override num_classes"):
        beit.load("beit:cifar10-small", num_classes=10)
