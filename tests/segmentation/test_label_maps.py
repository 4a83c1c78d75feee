import logging
import shutil
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from beit.data.shapes import KINDS, ShapesSource
from beit.data.source import UnreadableImage
from beit.segmentation.label_classes import default_palette
from beit.segmentation.label_decoding import encode_label_map
from beit.segmentation.label_maps import image_spec, open_label_maps, read_pair


def save_image(path, value, size=(4, 6)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size[::-1], (value, 2, 3)).save(path)


def save_map(path, values, palette=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.asarray(values, dtype=np.uint8)
    if palette is None:
        Image.fromarray(values).save(path)
    else:
        path.write_bytes(encode_label_map(torch.from_numpy(values), palette))


def grid(first, size=(4, 6)):
    return np.full(size, first, dtype=np.uint8)


@pytest.fixture
def ade20k(tmp_path):
    root = tmp_path / "ADEChallengeData2016"
    for split, short, count in (("training", "train", 3), ("validation", "val", 2)):
        for number in range(count):
            name = f"ADE_{short}_{number + 1:08}"
            save_image(root / "images" / split / f"{name}.jpg", 100 * number)
            values = grid(number * 70)
            values[0, :2] = 150, 0
            save_map(root / "annotations" / split / f"{name}.png", values)
    (root / "objectInfo150.txt").write_text("text")
    return root


@pytest.fixture
def pairs(tmp_path):
    for number, name in enumerate(["a", "deep/b", "c"]):
        save_image(tmp_path / "photos" / f"{name}.png", 10 * number)
        values = grid(number)
        values[3, 5] = 255
        save_map(tmp_path / "drawn" / f"{name}.png", values, [(9, 9, 9), (8, 0, 0), (0, 7, 0)])
    return f"{tmp_path}/photos?maps={tmp_path}/drawn"


def names(source):
    return [source.name(index) for index in range(len(source))]


def contents(source):
    return [
        (source.name(i), *(t.tolist() for t in read_pair(source, i))) for i in range(len(source))
    ]


def test_deep_images_are_read_by_their_range_and_bands(pairs, tmp_path):
    for name in ("a", "deep/b", "c"):
        values = np.full((4, 6), 1000, dtype=np.uint16)
        Image.fromarray(values).save(tmp_path / "photos" / f"{name}.png")
    with pytest.raises(UnreadableImage, match=r"SOURCE\?range="):
        open_label_maps(pairs).image(0)
    deep = open_label_maps(f"{pairs}&range=0:2000[:99%]")
    assert deep.image(0).unique().tolist() == [128]
    assert image_spec(f"{pairs}&range=0:2000[:99%]", deep) == f"{tmp_path}/photos?range=0:2000"
    assert image_spec(pairs, open_label_maps(pairs)) == f"{tmp_path}/photos"
    with pytest.raises(ValueError, match=r"4 bands, and segmentation is of RGB only; name three"):
        open_label_maps(f"{pairs}&bands=1-4")


# ── layouts ─────────────────────────────────────────────────────────────────────────────────────


def test_ade20k_as_a_folder(ade20k):
    source = open_label_maps(str(ade20k))
    assert names(source) == [f"ADE_train_0000000{i}.jpg" for i in (1, 2, 3)]
    assert len(source.class_names) == len(source.palette) == 150
    image, label_map = read_pair(source, 1)
    assert (image.shape, image.dtype) == ((3, 4, 6), torch.uint8)
    assert (label_map.shape, label_map.dtype) == ((4, 6), torch.uint8)
    assert label_map[0].tolist() == [149, 255, 69, 69, 69, 69]
    assert len(open_label_maps(str(ade20k), role="validation")) == 2
    assert names(open_label_maps(f"{ade20k}?split=validation"))[0] == "ADE_val_00000001.jpg"
    assert len(open_label_maps(str(ade20k.parent))) == 3  # the folder above


def test_other_sets_in_the_folders_of_ade20k_keep_their_classes(tmp_path):
    for split in ("training", "validation"):
        for number in (0, 1):
            save_image(tmp_path / "images" / split / f"{number}_manual1.png", number)
            save_map(tmp_path / "annotations" / split / f"{number}_manual1.png", grid(number))
    source = open_label_maps(str(tmp_path))  # DRIVE: background and vessels
    assert source.class_names == ("0", "1")
    assert [source.label_map(i).unique().tolist() for i in (0, 1)] == [[0], [1]]


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_the_zip_equals_the_folder(ade20k, method):
    archive = ade20k.parent / "ADEChallengeData2016.zip"
    with zipfile.ZipFile(archive, "w", method) as file:
        for path in sorted(ade20k.rglob("*.*")):
            file.write(path, path.relative_to(ade20k.parent))
    for role in ("train", "validation"):
        whole = contents(open_label_maps(str(ade20k), role=role))
        assert contents(open_label_maps(str(archive), role=role)) == whole


def test_pascal_voc(tmp_path):
    root = tmp_path / "VOCdevkit" / "VOC2012"
    for number, name in enumerate(["2007_1", "2007_2", "2007_3", "no_map"]):
        save_image(root / "JPEGImages" / f"{name}.jpg", number)
        if number < 3:
            values = grid(number)
            values[1] = 255, 20, 0, 0, 0, 0
            save_map(root / "SegmentationClass" / f"{name}.png", values, default_palette(21))
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("2007_3\n2007_1\n")
    (lists / "val.txt").write_text("2007_2\n")
    source = open_label_maps(str(root.parent))
    assert names(source) == ["2007_3.jpg", "2007_1.jpg"]  # in the order of the list
    assert source.class_names[15] == "person"
    with pytest.raises(ValueError, match="ignores 0, which is the class background here; leave"):
        open_label_maps(f"{root}?reduce_zero_label=true")
    assert source.label_map(0)[1:3].tolist() == [[255, 20, 0, 0, 0, 0], [2] * 6]
    assert names(open_label_maps(str(root), role="validation")) == ["2007_2.jpg"]
    with pytest.raises(ValueError, match=r"no ImageSets/Segmentation/trainval\.txt"):
        open_label_maps(f"{root}?split=trainval")
    (root / "labelmap.txt").write_text("# label:color_rgb:parts:actions\ncrack:128,0,0::\n")
    with pytest.raises(ValueError, match="hold 3 values up to 20"):  # counted: CVAT's own
        open_label_maps(str(root), role="validation")
    assert len(open_label_maps(str(root), classes="21").class_names) == 21
    (root / "labelmap.txt").unlink()
    (lists / "val.txt").write_text("2007_2\nno_map\ngone\n")
    with pytest.raises(ValueError, match="1 images of the list are missing: gone"):
        open_label_maps(str(root), role="validation")
    (lists / "val.txt").write_text("2007_2\nno_map\n")
    with pytest.raises(ValueError, match=r"1 of 2 images have no label map .*: no_map\.jpg"):
        open_label_maps(str(root), role="validation")


def test_two_folders_with_classes_counted_and_the_palette_of_the_files(pairs):
    source = open_label_maps(pairs)
    assert names(source) == ["a.png", "c.png", "deep/b.png"]
    assert source.class_names == ("0", "1", "2")
    assert source.palette == ((9, 9, 9), (8, 0, 0), (0, 7, 0))
    assert source.label_map(2).unique().tolist() == [1, 255]
    assert source.image(2)[0, 0, 0] == 10
    reduced = open_label_maps(pairs, reduce_zero_label=True)
    assert reduced.class_names == ("0", "1")
    assert reduced.palette == ((8, 0, 0), (0, 7, 0))
    assert reduced.label_map(0).unique().tolist() == [255]
    assert reduced.label_map(1).unique().tolist() == [1, 255]


def test_a_folder_with_images_and_masks(tmp_path, caplog):
    save_image(tmp_path / "images" / "a.jpg", 1)
    save_map(tmp_path / "masks" / "a.png", [[0, 255, 0, 0, 0, 0]] * 4)
    save_map(tmp_path / "masks" / "spare.png", [[0, 255, 0, 0, 0, 0]] * 4)
    (tmp_path / "classes.yaml").write_text("{classes: [ground, crack], values: [0, 255]}")
    source = open_label_maps(str(tmp_path), classes=str(tmp_path / "classes.yaml"))
    assert source.label_map(0)[0].tolist() == [0, 1, 0, 0, 0, 0]
    assert source.class_names == ("ground", "crack")
    assert "label maps without an image: 1" in caplog.text
    with pytest.raises(ValueError, match=r"one class, .* If 255 is a class, .* values: \[0, 255\]"):
        open_label_maps(str(tmp_path))
    caplog.clear()
    caplog.set_level(logging.WARNING)
    open_label_maps(f"{tmp_path}?classes=2")
    assert "hold only 0 and 255, and 255 is ignored" in caplog.text
    caplog.clear()
    open_label_maps(str(tmp_path), names=source.class_names)  # those of a model
    assert "hold only 0 and 255, and 255 is ignored" in caplog.text


@pytest.mark.parametrize(("reduced", "count"), [(False, 129), (True, 128)])
def test_greys_that_are_no_numbers_of_classes_are_refused(tmp_path, reduced, count):
    save_image(tmp_path / "images" / "a.jpg", 1)
    save_map(tmp_path / "masks" / "a.png", [[0, 128, 255, 64, 0, 0]] * 4)
    message = rf"values up to 128 \(.*64, 128\), so most of {count} classes have no pixel. Give"
    with pytest.raises(ValueError, match=message):
        open_label_maps(str(tmp_path), reduce_zero_label=reduced)
    counted = open_label_maps(str(tmp_path), classes="129")
    assert counted.label_map(0)[0].tolist() == [0, 128, 255, 64, 0, 0]


def test_drawn_shapes():
    source = open_label_maps("shapes://20?size=24x32&seed=3")
    scenes = ShapesSource(20, (24, 32), seed=3)
    assert source.class_names == ("ground", *KINDS)
    assert len(source.palette) == 11
    for index in (4, 5, 4):
        image, label_map = read_pair(source, index)
        assert torch.equal(image, scenes.image(index))
        assert torch.equal(label_map, scenes.label_map(index))
    assert source.name(4) == scenes.name(4)


def test_parts_and_limits_do_not_overlap():
    whole = names(open_label_maps("shapes://10"))
    first, rest = (
        names(open_label_maps("shapes://10[:70%]")),
        names(open_label_maps("shapes://10[70%:]")),
    )
    assert (len(first), len(rest)) == (7, 3)
    assert sorted(first + rest) == sorted(whole)
    few = open_label_maps("shapes://10[:70%]", limit=2)
    assert set(names(few)) < set(first)
    scenes = ShapesSource(10)
    index = whole.index(few.name(1))
    assert torch.equal(few.label_map(1), scenes.label_map(index))
    assert torch.equal(few.image(1), scenes.image(index))
    assert few.class_names == ("ground", *KINDS)


def test_classes_of_a_model_number_those_of_the_data(pairs, tmp_path):
    (tmp_path / "classes.txt").write_text("ground\ncat\ndog\n")
    spec = f"{pairs}&classes={tmp_path}/classes.txt"
    source = open_label_maps(spec, names=["dog", "sky", "ground", "cat "])
    assert source.class_names == ("dog", "sky", "ground", "cat ")
    assert [source.label_map(i)[0, 0].item() for i in range(3)] == [2, 0, 3]
    with pytest.raises(
        ValueError, match=r"1 of the 3 classes of the label maps are unknown .*: cat"
    ):
        open_label_maps(spec, names=["dog", "ground"])
    # Data that do not name their classes take the names.
    assert open_label_maps(pairs, names=["x", "y", "z"]).class_names == ("x", "y", "z")
    with pytest.raises(
        ValueError, match=r"shapes://4: 1 of the 11 classes of the label maps are unknown .*: ring"
    ):
        open_label_maps("shapes://4", names=["ground", *(kind for kind in KINDS if kind != "ring")])


# ── bad input ───────────────────────────────────────────────────────────────────────────────────


def test_an_image_without_its_map_is_named(ade20k, pairs, tmp_path):
    (ade20k / "annotations" / "training" / "ADE_train_00000002.png").unlink()
    message = r"training: 1 of 3 images have no label map in .*: ADE_train_00000002\.jpg; a map has"
    with pytest.raises(ValueError, match=message):
        open_label_maps(str(ade20k))
    save_map(tmp_path / "drawn" / "a.bmp", grid(0))
    with pytest.raises(ValueError, match=r"drawn: a\.bmp and a\.png differ only in"):
        open_label_maps(pairs)


def test_sizes_that_differ_are_named(pairs, tmp_path):
    save_map(tmp_path / "drawn" / "c.png", grid(1, (6, 4)))
    source = open_label_maps(pairs, classes="3")
    with pytest.raises(
        ValueError, match=r"c\.png: the image is 4 x 6 .* its label map 6 x 4; they"
    ):
        read_pair(source, 1)


def test_maps_that_are_not_of_these_classes_are_named(pairs, tmp_path):
    source = open_label_maps(pairs, classes="2")
    message = r"drawn/c\.png: value 2 at row 0, column 0 .* expected 0 to 1, or 255"
    with pytest.raises(ValueError, match=message):
        source.label_map(1)
    save_image(tmp_path / "drawn" / "a.png", 1)
    with pytest.raises(ValueError, match=r"drawn/a\.png: a map with 3 channels"):
        source.label_map(0)
    with pytest.raises(ValueError, match=r"drawn/a\.png: a map with 3 channels"):
        open_label_maps(pairs)
    (tmp_path / "drawn" / "deep" / "b.png").write_text("text")
    with pytest.raises(UnreadableImage, match=r"drawn/deep/b\.png: not an image"):
        source.label_map(2)


def test_a_split_or_layout_that_is_missing_is_told(ade20k, tmp_path):
    shutil.rmtree(ade20k / "images" / "validation")
    message = r"the folder images has no split validation or val \(it has training\)"
    with pytest.raises(ValueError, match=message):
        open_label_maps(str(ade20k), role="validation")
    with pytest.raises(ValueError, match="has no split test"):
        open_label_maps(f"{ade20k}?split=test")
    (ade20k / "images" / "validation").mkdir()
    with pytest.raises(ValueError, match="validation: no images in this folder"):
        open_label_maps(str(ade20k), role="validation")
    (tmp_path / "else" / "pictures").mkdir(parents=True)
    with pytest.raises(
        ValueError, match=r"else: no images with label maps \(pictures\); expected AD"
    ):
        open_label_maps(str(tmp_path / "else"))
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as file:
        file.writestr("train2017/a.jpg", b"")
    with pytest.raises(ValueError, match=r"other\.zip: no images with label maps \(train2017\)"):
        open_label_maps(str(tmp_path / "other.zip"))
    shutil.copytree(ade20k, tmp_path / "twice" / "one")
    shutil.copytree(ade20k, tmp_path / "twice" / "two")
    with pytest.raises(ValueError, match=r"twice: holds several sets \(one, two\); name one"):
        open_label_maps(str(tmp_path / "twice"))


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        ("", {}, "no data given: expected ADE20K"),
        ("photos?mask=x", {}, "unknown option mask; expected split=.*, maps="),
        ("photos?reduce_zero_label=yes", {}, "reduce_zero_label is 'yes'; expected true or false"),
        ("shapes://4", {"classes": "3"}, "drawn scenes have their own maps and classes"),
        ("shapes://4", {"reduce_zero_label": True}, "leave out maps, classes and reduce_zero"),
        ("shapes://4", {"limit": 0}, "limit must be at least 1 image, got 0"),
        ("shapes://4[:10%]", {}, "none of the 4 images is in this part"),
    ],
)
def test_what_is_not_understood_is_refused(spec, options, message):
    with pytest.raises(ValueError, match=message):
        open_label_maps(spec, **options)
