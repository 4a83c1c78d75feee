"""Folders as splits, classes, or images beside masks: what is taken for which purpose."""

import pytest

from beit.data.layout import find_layout

FRUIT = ("apple/0.png", "lime/1.png")


def under(*folders, of=FRUIT):
    return sorted(f"{folder}/{path}" for folder in folders for path in of)


FLAT = ("0.png", "1.png")
MASKS = [*under("images", of=FLAT), *under("masks", of=FLAT)]
MVTEC = under("nut", "bolt", of=("train/good/0.png", "test/bad/1.png", "ground_truth/bad/1.png"))


@pytest.mark.parametrize(
    ("images", "split", "taken", "base", "note"),
    [
        (
            under("train", "val"),
            "train",
            under("train"),
            "train/",
            "splits train, val: takes train",
        ),
        (under("Train", "TEST", "val"), "test", under("val"), "val/", "takes val"),
        (
            under("train2017", "val2017"),
            "train",
            under("train2017"),
            "train2017/",
            "takes train2017",
        ),
        (under("train"), "train", under("train"), "train/", "splits train: takes train"),
        ([*under("train", "test"), "cover.jpg"], "test", under("test"), "test/", "takes test"),
        (under("set/train", "set/val"), "test", under("set/val"), "set/val/", "takes val"),
        (
            under("images/train", "images/val"),
            "train",
            under("images/train"),
            "images/train/",
            "takes images",
        ),
        (under("train/images", "val/images"), "test", under("val/images"), "val/images/", "images"),
        (MASKS, "train", under("images", of=FLAT), "images/", "takes images, not masks"),
        (MASKS, None, under("images", of=FLAT), "images/", "takes images, not masks"),
        ([*MASKS, "edges/0.png"], "train", under("images", of=FLAT), "images/", "not edges, masks"),
        (
            under("VOC/JPEGImages", "VOC/SegmentationClass", of=FLAT),
            "train",
            under("VOC/JPEGImages", of=FLAT),
            "VOC/JPEGImages/",
            "not SegmentationClass",
        ),
        (
            [*under("train", "train_masks", "test", of=FLAT)],
            "train",
            under("train", of=FLAT),
            "train/",
            "takes train, not train_masks",
        ),
        (
            MVTEC,
            "train",
            ["bolt/train/good/0.png", "nut/train/good/0.png"],
            "",
            "each folder has the splits test, train: takes train",
        ),
        (under("train", "car", of=FLAT), "train", under("train", "car", of=FLAT), "", "as a class"),
    ],
)
def test_splits_and_masks_are_recognised(images, split, taken, base, note):
    layout = find_layout(sorted(images), split, "root")
    assert layout.images == sorted(taken)
    assert layout.base == base
    assert any(note in said for said in layout.notes), layout.notes


@pytest.mark.parametrize(
    "images",
    [
        list(FRUIT),
        under("fruit"),
        under("apple", "lime"),
        under("mask", "no_mask", of=FLAT),
        under("test1", "test2", of=FLAT),
    ],
)
@pytest.mark.parametrize("split", ["train", "test", None])
def test_other_folders_are_classes(images, split):
    assert find_layout(sorted(images), split, "root") == (sorted(images), "", "", ())


def test_all_splits_together_have_no_labels():
    layout = find_layout([*under("train", "val"), "x.png"], None, "root")
    assert layout.images == [*under("train", "val"), "x.png"]
    assert layout.why_unlabelled == "root holds splits (train, val); name one, as in root/train"
    masks = under("train", "val", of=("images/0.png", "masks/0.png"))
    taken = find_layout(masks, None, "root").images
    assert taken == ["train/images/0.png", "val/images/0.png"]


@pytest.mark.parametrize(
    ("images", "split", "message"),
    [
        (under("train"), "test", "root has the splits train, none of them for validation"),
        (under("test", "val"), "train", "splits test, val, none of them for training"),
        (under("train2014", "train2017"), "train", "several of them for training; name one"),
        (under("cat", "train", "val"), "train", r"splits \(train, val\) and .* \(cat\); name the"),
        (under("cat", "train"), "train", r"splits \(train\) and other .* as in root/train"),
        (under("train", "test", "extra", of=FLAT), "test", r"folders of images \(extra\)"),
    ],
)
def test_what_is_ambiguous_or_missing_is_refused(images, split, message):
    with pytest.raises(ValueError, match=message):
        find_layout(sorted(images), split, "root")
    everything = find_layout(sorted(images), None, "root")
    assert everything.images == sorted(images)
    assert everything.why_unlabelled.startswith("root holds splits")


def test_images_outside_of_class_folders_are_named():
    why = find_layout([*FRUIT, "cover.jpg"], "train", "root").why_unlabelled
    assert why.startswith("cover.jpg lies outside of the class folders of root; move")
    loose = [f"{number}.jpg" for number in range(7)]
    layout = find_layout([*loose, *FRUIT], "train", "root")
    assert layout.why_unlabelled.startswith("0.jpg, 1.jpg, 2.jpg, 3.jpg, 4.jpg and 2 more lie")
    assert layout.images == [*loose, *FRUIT]
    assert find_layout(loose, "train", "root").why_unlabelled == "root has no class folders"
    flat = find_layout(under("train", "val", of=FLAT), "test", "root")
    assert flat.why_unlabelled == "root/val has no class folders"
