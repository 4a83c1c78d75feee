"""Features of training views from kept maps: exact for whole images, stated error for crops."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from beit.data.batch import Batch
from beit.data.batches import DataConfig, TrainBatches
from beit.data.shapes import ShapesSource
from beit.data.source import UnreadableImage
from beit.data.views import TrainViews, ViewConfig
from beit.nn.losses import cosine_distance
from beit.run.device import DeviceConfig
from beit.run.launch import launch
from beit.run.resume import resume
from beit.tokenizer import vqkd
from beit.tokenizer.teacher_cache import CachedFeatures, compute_maps
from beit.weights.teachers import Teacher, TeacherConfig, load_teacher

SIZE, GRID = (16, 24), (2, 3)
# Images of 20 x 20: the ratio of a whole image to that of a view.
WHOLE = {"min_scale": 1.0, "min_ratio": 2 / 3, "max_ratio": 2 / 3, "color_jitter": 0.0}
CROPS = {"min_scale": 0.3, "color_jitter": 0.0}
NAME = "timm:test_efficientnet#stride8"  # a map of 4 x 5


class Holes:
    """Shapes, of which image 4 cannot be read."""

    def __init__(self, source: Any) -> None:
        self._source = source
        self.labels, self.class_names, self.why_unlabelled = None, None, ""

    def __len__(self) -> int:
        return len(self._source)

    def name(self, index: int) -> str:
        return f"{index}.png"

    def image(self, index: int) -> Tensor:
        if index == 4:
            raise UnreadableImage(self.name(index), "broken")
        return self._source.image(index)


class Setting:
    """A teacher, its cache and one batch of views."""

    def __init__(
        self, folder: Path, seed: int = 0, precision: Any = "32-true", **view: Any
    ) -> None:
        self.teacher: Teacher = load_teacher(NAME, (32, 40), pretrained=False)
        source = Holes(ShapesSource.from_spec(f"shapes://11?size=20&seed={seed}"))
        self.views, data = TrainViews(ViewConfig(**view), SIZE, SIZE), DataConfig(num_workers=0)
        self.fabric = launch(DeviceConfig(accelerator="cpu", precision=precision))
        data = replace(data, max_unreadable=0.1)
        named = TeacherConfig(NAME, cache=str(folder))
        self.maps = compute_maps(named, self.teacher, source, self.views, data, self.fabric)
        self.said: list[str] = []
        self.cached = CachedFeatures(self.maps, GRID, self.exact, self.said.append)
        steps = {"batch_size": 11, "seed": seed, "start_step": 0, "num_steps": 2}
        self.batches = list(TrainBatches(source, self.views, **steps))

    def exact(self, batch: Batch) -> Tensor:
        with self.fabric.autocast():
            return self.teacher.features(batch.images, GRID)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("flip", [0.0, 0.5, 1.0])
def test_whole_images_have_the_teachers_features(tmp_path: Path, seed: int, flip: float) -> None:
    setting = Setting(tmp_path, seed, flip=flip, **WHOLE)
    for batch in setting.batches:
        assert 4 not in batch.indices  # unreadable: another image instead
        exact = setting.exact(batch)
        found = setting.cached(batch)
        assert found.dtype == torch.float32
        # A map is rounded to bfloat16, 8 bits, before it is resized to the grid.
        torch.testing.assert_close(found, exact, rtol=0, atol=2**-8 * float(exact.abs().max()))
        assert cosine_distance(found, exact) < 1e-5
    start = "teacher.cache: features of crops differ from the teacher's by a cosine distance of "
    assert setting.said == [f"{start}0.0000 on 11 images"]


def test_under_bfloat16_nothing_is_rounded(tmp_path: Path) -> None:
    setting = Setting(tmp_path, precision="bf16-mixed", flip=0.0, **WHOLE)
    grid, batch = setting.teacher.grid, setting.batches[0]
    with setting.fabric.autocast():
        exact = setting.teacher.features(batch.images, grid)
        cached = CachedFeatures(setting.maps, grid, lambda batch: exact, print)
        assert torch.equal(cached(batch), exact)


@pytest.mark.parametrize("seed", range(3))
def test_crops_are_near_and_the_run_says_how_near(tmp_path: Path, seed: int) -> None:
    setting = Setting(tmp_path, seed, **CROPS)
    batch = setting.batches[0]
    found, exact = setting.cached(batch), setting.exact(batch)
    error = cosine_distance(found, exact)
    assert f"distance of {error:.4f} on 11 images" in setting.said[0]
    assert error < cosine_distance(found.roll(1, 0), exact)


def test_a_mirrored_view_takes_the_mirrored_box_of_the_mirror_images_map(tmp_path: Path) -> None:
    setting = Setting(tmp_path, **CROPS)
    batch = setting.batches[0]
    box = torch.tensor([0.25, 0.125, 0.5, 0.375])
    mirrored_box = torch.tensor([0.25, 0.5, 0.5, 0.375])
    crops = torch.stack(
        [torch.cat((box, torch.ones(1))), torch.cat((mirrored_box, torch.zeros(1)))]
    )
    shown = batch._replace(indices=torch.tensor([3, 3]), crops=crops, images=batch.images[:2])
    (row,) = setting.maps.rows([3])
    swapped = CachedFeatures(setting.maps, GRID, setting.exact, print)
    setting.maps.rows = lambda indices: iter([row, row.flip(0)])  # type: ignore[method-assign]
    first, second = swapped(shown)
    assert torch.equal(first, second)


def test_the_key_knows_images_precision_and_mirror_images(tmp_path: Path) -> None:
    settings = [
        Setting(tmp_path, **WHOLE),
        Setting(tmp_path, seed=1, **WHOLE),  # other images of the same names
        Setting(tmp_path, precision="bf16-mixed", **WHOLE),
        Setting(tmp_path, flip=0.0, **WHOLE),
    ]
    assert len({setting.maps.output for setting in settings}) == len(settings)
    assert Setting(tmp_path, **CROPS).maps.output == settings[0].maps.output


# ── runs ────────────────────────────────────────────────────────────────────────────────────────


def with_cache(config: vqkd.Config, folder: Path) -> vqkd.Config:
    return replace(config, teacher=replace(config.teacher, cache=str(folder)))


def test_a_run_with_a_cache_resumes_to_the_bit(
    tmp_path, tokenizer_config, trained_tokenizer, interrupt_at, same_bits, records, capsys
):
    cache = tmp_path / "cache"
    vqkd.run(with_cache(tokenizer_config(tmp_path / "whole"), cache))
    shown = capsys.readouterr().err
    assert shown.count("teacher.cache: features of crops differ") == 1
    assert "feature maps of 43 images" in shown
    for number, step in enumerate((5, 7)):
        config = with_cache(tokenizer_config(tmp_path / "run"), cache)
        interrupt_at(vqkd, config, step, resume=number > 0)
    shutil.rmtree(cache)  # computed again
    resume(vqkd, tmp_path / "run")
    same_bits(tmp_path / "whole", tmp_path / "run")
    exact = records(trained_tokenizer)
    assert records(tmp_path / "run")[0]["loss"] != exact[0]["loss"]
    assert "val_reconstruction" in exact[-1]


def test_a_run_on_whole_images_is_that_without_a_cache_to_rounding(
    tmp_path, tokenizer_config, records, same_to_rounding
):
    view = ViewConfig(**WHOLE)
    plain = tokenizer_config(tmp_path / "plain", view=view)
    vqkd.run(plain)
    cached = tokenizer_config(tmp_path / "cached", view=view)
    vqkd.run(with_cache(cached, tmp_path / "cache"))
    first, second = (records(tmp_path / name)[:1] for name in ("plain", "cached"))
    same_to_rounding(first, second, 1e-3)  # of the maps, to 8 bits


def test_a_cache_with_jitter_is_refused(tmp_path, tokenizer_config):
    config = tokenizer_config(tmp_path / "run", view=ViewConfig(color_jitter=0.4))
    with pytest.raises(ValueError, match=r"teacher\.cache .* view\.color_jitter is 0\.4; give 0"):
        with_cache(config, tmp_path)
