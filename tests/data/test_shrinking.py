import logging
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from PIL import Image
from pyarrow import parquet, table

from beit.data.order import sample_generator
from beit.data.shrinking import Need, Shrinking, ShrunkImages
from beit.data.sources import open_source
from beit.data.views import EvalView, TrainViews, ViewConfig, crop_box, resized

NEED = Need(0, 8, 12)


def save_photo(path, seed, size=(60, 90)):
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, 256, (1, 3, 5, 7), generator=generator).float()
    pixels = torch.nn.functional.interpolate(coarse, size, mode="bilinear")[0].to(torch.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(path, "JPEG")


@pytest.fixture
def photos(tmp_path):
    for number in range(5):
        save_photo(tmp_path / "photos" / f"{number}.jpg", number)
    return tmp_path / "photos"


@pytest.fixture
def store(tmp_path):
    return ShrunkImages(str(tmp_path / "kept"), 1.0)


def images(photos, store, need=NEED, **options):
    source = open_source(str(photos), shrinking=Shrinking(need, store), **options)
    return [source.image(index) for index in range(len(source))]


def kept(store):
    return sorted(path for path in store.folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("ratios", [(0.75, 4 / 3), (0.5, 0.8), (1.0, 3.0)])
@pytest.mark.parametrize("shape", [(300, 400), (400, 300), (300, 300), (300, 2000), (2000, 300)])
@pytest.mark.parametrize("size", [(16, 16), (16, 24), (24, 16)])
def test_no_crop_of_a_shrunk_image_has_fewer_pixels_than_its_view(size, shape, ratios):
    config = ViewConfig(min_scale=0.1, min_ratio=ratios[0], max_ratio=ratios[1])
    height, width = TrainViews(config, size, (size[0] // 2, size[1] // 2)).need.size_for(*shape)
    assert height < shape[0] and abs(height / width - shape[0] / shape[1]) < 0.1 * height / width
    generator = torch.Generator().manual_seed(5)
    for _ in range(200):
        draws = torch.rand(40, generator=generator, dtype=torch.float64).tolist()
        *_, box_height, box_width = crop_box(height, width, config, draws, size[1] / size[0])
        assert box_height >= size[0] and box_width >= size[1]


def test_the_size_is_that_of_the_larger_view_and_no_more():
    config = ViewConfig(min_scale=0.25, min_ratio=1.0, max_ratio=1.0)
    need = TrainViews(config, (10, 10), (20, 20)).need
    assert need == Need(1600, 20, 20) == TrainViews(config, (20, 20), (10, 10)).need
    assert need.size_for(400, 400) == (40, 40)
    assert need.size_for(100, 400) == (20, 80)
    assert need.size_for(40, 40) == (40, 40) and need.size_for(39, 41) == (39, 41)


@pytest.mark.parametrize("shape", [(60, 90), (90, 60), (61, 67)])
def test_the_view_of_a_shrunk_image_for_evaluation_is_the_same(shape):
    view = EvalView((14, 21), 0.7)
    generator = torch.Generator().manual_seed(1)
    image = torch.randint(0, 256, (3, *shape), generator=generator, dtype=torch.uint8)
    small = resized(image[None], view.need.size_for(*shape))[0]
    assert small.shape[1] < shape[0] and torch.equal(view(small), view(image))


def test_views_of_shrunk_images_show_the_same_crops(photos):
    views = TrainViews(ViewConfig(color_jitter=0), (12, 12), (12, 12))
    whole = open_source(str(photos))
    small = open_source(str(photos), shrinking=Shrinking(views.need))
    for index in range(5):
        image, shrunk = whole.image(index), small.image(index)
        exact = resized(image[None], shrunk.shape[-2:])[0]
        before, after, same = (
            views.sample(each, sample_generator(0, 1, index)) for each in (image, shrunk, exact)
        )
        crops = torch.tensor(before.crops), torch.tensor(after.crops)
        assert torch.allclose(*crops, atol=1 / min(shrunk.shape[-2:]))
        assert (same.images.float() - after.images.float()).abs().mean() < 1


def test_kept_images_are_the_same_and_the_next_run_decodes_none(photos, store, monkeypatch):
    first = images(photos, None)
    assert all(torch.equal(*pair) for pair in zip(first, images(photos, store), strict=True))
    assert len(kept(store)) == 5
    monkeypatch.setattr("beit.data.folders.image_files.decode_reduced", None)
    again = images(photos, ShrunkImages(str(store.folder), 1.0), cache_gigabytes=0.001)
    assert all(torch.equal(*pair) for pair in zip(first, again, strict=True))


def test_a_changed_file_is_seen(photos, store):
    before = images(photos, store)
    save_photo(photos / "3.jpg", 33)
    after = images(photos, store)
    assert not torch.equal(before[3], after[3])
    assert torch.equal(after[3], images(photos, None)[3])
    assert torch.equal(before[2], after[2])


def test_needs_and_readings_do_not_mix(photos, store):
    small, larger = images(photos, store), images(photos, store, Need(0, 20, 20))
    assert small[0].shape == (3, 8, 12) and larger[0].shape == (3, 20, 30)
    ranged = images(f"{photos}?range=50:200", store)
    assert not torch.equal(ranged[0], small[0])
    assert len(kept(store)) == 15


def test_small_images_are_not_kept(photos, store):
    whole = open_source(str(photos))
    same = images(photos, store, Need(0, 60, 60))
    assert all(torch.equal(image, whole.image(index)) for index, image in enumerate(same))
    assert not kept(store)


@pytest.mark.parametrize(
    "damage", [lambda c: c[:-1], lambda c: b"", lambda c: c[:99] + b"!" + c[100:]]
)
def test_a_damaged_image_is_decoded_again(photos, store, damage):
    before = images(photos, store)
    whole = kept(store)[2].read_bytes()
    kept(store)[2].write_bytes(damage(whole))
    after = images(photos, store)
    assert all(torch.equal(*pair) for pair in zip(before, after, strict=True))
    assert kept(store)[2].read_bytes() == whole


FILL = """
import sys
from beit.data.shrinking import Need, Shrinking, ShrunkImages
from beit.data.sources import open_source
shrinking = Shrinking(Need(0, 8, 12), ShrunkImages(sys.argv[2], 1.0))
source = open_source(sys.argv[1], shrinking=shrinking)
print("begin", flush=True)
while True:
    for index in range(len(source)):
        source.image(index)
    for path in shrinking.images.folder.rglob("*"):
        path.is_file() and path.unlink()
"""


def test_killed_while_filling(photos, store):
    expected = images(photos, None)
    for pause in (0.0, 0.003, 0.011):
        command = [sys.executable, "-c", FILL, str(photos), str(store.folder)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            process.stdout.readline()
            time.sleep(pause)
            process.send_signal(signal.SIGKILL)
        whole = [path for path in kept(store) if not path.name.endswith(".partial")]
        assert all(store.read(path) is not None for path in whole)
        assert all(torch.equal(*pair) for pair in zip(images(photos, store), expected, strict=True))


def test_the_folder_is_bounded_and_gives_up_what_was_unused_for_longest(photos, tmp_path, caplog):
    one = 16 + 3 * 8 * 12
    bound = 3.5 * one / 1e9
    store = ShrunkImages(str(tmp_path / "kept"), bound)
    with caplog.at_level(logging.WARNING):
        images(photos, store)  # of this run, so none is deleted
    assert len(kept(store)) == 3 and "is full" in caplog.text and caplog.text.count("\n") == 1
    for age, path in enumerate(kept(store)):
        os.utime(path, (1e9 - age, 1e9 - age))
    newest = kept(store)[0]
    save_photo(tmp_path / "others" / "a.jpg", 9)
    later = ShrunkImages(str(tmp_path / "kept"), bound)
    assert later.read(newest) is not None and newest.stat().st_mtime > 1e9
    images(tmp_path / "others", later)
    assert newest in kept(later) and len(kept(later)) <= 3


def test_a_full_disk_is_said_once_and_changes_no_image(photos, store, monkeypatch, caplog):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("beit.data.kept.replacing", full)
    same = zip(images(photos, store), images(photos, None), strict=True)
    assert all(torch.equal(*pair) for pair in same)
    assert caplog.text.count("no longer kept: [Errno 28] No space left") == 1


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"file/kept: no folder .*--data.shrink_cache FOLDER"):
        ShrunkImages(str(tmp_path / "file" / "kept"), 1.0)


def test_the_folder_lies_in_the_users_caches(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    assert ShrunkImages("", 1.0).folder == tmp_path / "caches" / "beit" / "images"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert ShrunkImages("", 1.0).folder == tmp_path / ".cache" / "beit" / "images"


def test_images_in_rows_shrink_too(photos, tmp_path):
    rows = table({"image": [path.read_bytes() for path in sorted(photos.iterdir())]})
    parquet.write_table(rows, tmp_path / "rows.parquet")
    same = zip(images(tmp_path / "rows.parquet", None), images(photos, None), strict=True)
    assert all(torch.equal(*pair) for pair in same)
    part = open_source(f"{photos}[:40%]", shrinking=Shrinking(NEED))
    assert len(part) == 2 and part.image(0).shape == (3, 8, 12)


def test_shrinking_is_no_option_of_the_string(photos):
    with pytest.raises(ValueError, match="unknown option 'shrinking'"):
        open_source(f"{photos}?shrinking=3")


def test_a_set_too_large_for_memory_says_what_it_costs_and_what_to_do(photos, store, caplog):
    with caplog.at_level(logging.INFO):
        images(photos, store, cache_gigabytes=1e-6)
        open_source(str(photos), cache_gigabytes=1e-6)
    small, whole = "shrunk 1.44e-06 GB", "decoded 8.1e-05 GB"
    costs = "more than cache_gigabytes 1e-06: each is read for every view; raise it"
    assert [record.message for record in caplog.records if "more than" in record.message] == [
        f"5 images are {small}, {costs}",
        f"5 images are {whole}, {costs}, or let a training shrink them: --data.shrink true",
    ]
