from dataclasses import replace

import pytest
import torch
from PIL import Image
from torch import Tensor

from beit.nn.mim import MaskedImageModel
from beit.recipes import pretrain
from beit.recipes.pretrain import CheckConfig, MaskConfig
from beit.store.load import load, load_backbone
from beit.store.weights import save_weights


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory, trained_tokenizer):
    """The directory of a finished run; its validation set and k-NN check are on."""
    from_conftest = tmp_path_factory.getbasetemp()
    assert from_conftest.is_dir()
    return tmp_path_factory.mktemp("pretrain") / "run"


CHECK = CheckConfig(every=1, limit=20)


@pytest.fixture
def finished(pretrained, trained_tokenizer, pretrain_config):
    if not pretrained.exists():
        pretrain.run(pretrain_config(pretrained, trained_tokenizer, check=CHECK))
    return pretrained
