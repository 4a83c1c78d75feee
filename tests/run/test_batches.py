from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from beit.data.batches import DataConfig
from beit.data.views import EvalView, TrainViews, ViewConfig
from beit.finetuning import finetune
from beit.finetuning.config import Config as FinetuneConfig
from beit.pretraining import pretrain
from beit.pretraining.config import CheckConfig
from beit.run.batches import open_set
from beit.tokenizer import vqkd


@pytest.fixture
def data(tmp_path):
    """Fourteen photos of two classes, larger than views need, and where they are kept shrunk."""
    generator = torch.Generator().manual_seed(3)
    for number in range(14):
        coarse = torch.randint(0, 256, (1, 3, 6, 9), generator=generator).float()
        pixels = torch.nn.functional.interpolate(coarse, (160, 240), mode="bilinear")[0]
        path = tmp_path / "photos" / "ab"[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.to(torch.uint8).permute(1, 2, 0).numpy()).save(path)
    photos, folder = str(tmp_path / "photos"), str(tmp_path / "kept")
    parts = f"{photos}[:60%]", f"{photos}[60%:]"  # 8 and 6
    return DataConfig(*parts, num_workers=0, shrink=True, shrink_cache=folder)


def kept(data):
    return sorted(path for path in Path(data.shrink_cache).rglob("*") if path.is_file())


def test_a_set_shrinks_to_the_largest_need_of_its_views(data, caplog):
    plain = ViewConfig(min_scale=0.25, min_ratio=1, max_ratio=1)
    training, view = TrainViews(plain, (8, 8), (16, 16)), EvalView((24, 36), 0.75)
    with caplog.at_level("INFO"):
        source = open_set(data, data.train, "train", view, limit=3)
        both = open_set(data, data.train, "train", view, training)
    assert len(source) == 3 and source.image(0).shape == both.image(0).shape == (3, 32, 48)
    assert open_set(data, data.train, "train", training).image(0).shape[1] in range(26, 30)
    shrunk = "images larger than the views need are shrunk, a square one to "
    assert f"{data.train}: training {shrunk}" in caplog.text
    with caplog.at_level("INFO"):
        open_set(data, data.validation, "test", view)
    assert f"{data.validation}: validation {shrunk}" in caplog.text
    assert f"kept in {data.shrink_cache}, at most 20 GB" in caplog.text
    off = open_set(replace(data, shrink=False), data.train, "train", view)
    assert off.image(0).shape == (3, 160, 240)


def test_nothing_is_kept_on_disk_without_room(data):
    view = EvalView((24, 36), 0.75)
    source = open_set(replace(data, shrink_gigabytes=0.0), data.train, "train", view)
    assert source.image(0).shape == (3, 32, 48) and not kept(data)
    with pytest.raises(ValueError, match="shrink_gigabytes must not be negative, got -1"):
        replace(data, shrink_gigabytes=-1.0)


def test_trainings_shrink_their_images_once(
    tmp_path, data, tokenizer_config, pretrain_config, vit, optim
):
    """A training with the views of an earlier one decodes nothing, nor does its k-NN check."""
    vqkd.run(tokenizer_config(tmp_path / "tok", data=data))
    first = kept(data)
    assert len(first) == 8 + 6
    check = CheckConfig(every=1)
    pretrain.run(pretrain_config(tmp_path / "pre", tmp_path / "tok", data=data, check=check))
    assert kept(data) == first
    settings = {"optim": optim(epochs=1), "device": pretrain_config(tmp_path, tmp_path).device}
    run = replace(pretrain_config(tmp_path, tmp_path).run, output=str(tmp_path / "fine"))
    finetune.run(FinetuneConfig(init=str(tmp_path / "pre"), data=data, run=run, **settings))
    assert len(kept(data)) == 14 + 8  # its crops are smaller, its validation is the same
