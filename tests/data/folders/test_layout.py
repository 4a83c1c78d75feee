"""Folders as splits, classes, or images beside masks: what is taken for which purpose."""

import pytest

from beit.data.folders.layout import find_layout

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
            "takes its folder images",
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
        under("with_mask", "without_mask", "mask_weared_incorrect", of=FLAT),
        under("test1", "test2", of=FLAT),
        under("bullet_train", "car", of=FLAT),
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
        (under("training_set", "test_set", "cat"), "train", r"splits \(test_set, training_set\)"),
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


PAIR = ("images/0.png", "masks/0.png")


@pytest.mark.parametrize(
    ("images", "taken", "base", "note"),
    [
        (under("sick", "well", of=PAIR), under("sick", "well", of=PAIR[:1]), "", "not masks"),
        (
            under("train/cat", "train/dog", "val/cat", of=PAIR),
            under("train/cat", "train/dog", of=PAIR[:1]),
            "train/",
            "takes images, not masks (3 images)",
        ),
        (
            under("VOC2007", "VOC2012", of=("JPEGImages/0.png", "SegmentationClass/0.png")),
            under("VOC2007", "VOC2012", of=("JPEGImages/0.png",)),
            "",
            "takes JPEGImages, not SegmentationClass (2 images)",
        ),
        (
            under("nut", "fig", of=("Data/Images/good/0.png", "Data/Masks/bad/0.png")),
            under("nut", "fig", of=("Data/Images/good/0.png",)),
            "",
            "takes Images, not Masks",
        ),
        (under("a", "b", of=("0.png", "masks/0.png")), ["a/0.png", "b/0.png"], "", "not masks"),
        (["0.png", "masks/0.png"], ["0.png"], "", "not masks (1 images)"),
        (under("Photos", "Masks"), under("Photos"), "Photos/", "takes Photos, not Masks"),
        (under("train_images", "train_masks"), under("train_images"), "train_images/", "not train"),
        (
            under("train_images", "train_masks", "test_images"),
            under("train_images"),
            "train_images/",
            "takes train_images, not train_masks",
        ),
        (
            under("imagesTr", "labelsTr", "imagesTs", of=FLAT),
            under("imagesTr", of=FLAT),
            "imagesTr/",
            "takes imagesTr, not labelsTr",
        ),
        (
            under("benign", "well", of=("b (1).png", "b (1)_mask.png", "b (1)_mask_1.png")),
            under("benign", "well", of=("b (1).png",)),
            "",
            "leaves out 4 masks by their names, as benign/b (1)_mask.png beside benign/b (1).png",
        ),
    ],
)
def test_masks_are_left_out(images, taken, base, note):
    layout = find_layout(sorted(images), "train", "root")
    assert (layout.images, layout.base) == (sorted(taken), base)
    assert any(note in said for said in layout.notes), layout.notes


def test_a_name_of_masks_alone_is_no_mask():
    images = ["a/0_mask.png", "a/cat_1.png", "b/mask.png"]
    assert find_layout(images, "train", "root") == (images, "", "", ())


@pytest.mark.parametrize("split", ["train", "test", None])
@pytest.mark.parametrize(
    ("folders", "odd"),
    [
        (("cat", "dog", "test"), "test"),
        (("with_mask", "without_mask", "test"), "test"),
        (("mask", "no_mask", "test"), "test"),
        (("good", "missing_label"), "missing_label"),
        (("fig", "lime", "Masks"), "Masks"),
    ],
)
def test_classes_with_other_names_are_noted(folders, odd, split):
    images = sorted(under(*folders, of=FLAT))
    assert find_layout(images, split, "root") == (images, "", "", (f"takes {odd} as a class",))


SPLITS = under("apple", "lime", of=("train/0.png", "test/1.png"))


@pytest.mark.parametrize(
    "images",
    [
        [*SPLITS, "apple/extra.png"],
        [*SPLITS, "apple/raw/extra.png"],
        [*SPLITS, "cover.png"],
        [*SPLITS, "fig/0.png"],
        [*MVTEC, "split_csv/fig.png"],
        under("apple/red", "lime/green", of=("train/0.png", "test/1.png")),
        under("a/b/c/d/e/apple", "a/b/c/d/e/lime", of=("train/0.png", "test/1.png", "raw/2.png")),
        under("apple/red", "lime", of=("train_set/0.png", "test_set/1.png")),
    ],
)
def test_splits_among_other_folders_do_not_leak(images):
    images = sorted(images)
    for split in ("train", "test"):
        with pytest.raises(ValueError, match=r"holds splits \(.* name the folder .*/train"):
            find_layout(images, split, "root")
    everything = find_layout(images, None, "root")
    assert everything.images == images
    assert "holds splits" in everything.why_unlabelled


@pytest.mark.parametrize(
    ("train", "test", "others"),
    [
        ("training_set", "test_set", ()),
        ("trainset", "testset", ()),
        ("seg_train", "seg_test", ("seg_pred",)),
        ("seg_train/seg_train", "seg_test/seg_test", ("seg_pred/seg_pred",)),
        ("signs_train/signs_train", "signs_test", ()),
        ("train_images", "val_images", ()),
        ("fruit-360/Training", "fruit-360/Test", ()),
    ],
)
def test_splits_with_longer_names_are_splits(train, test, others):
    images = sorted([*under(train, test), *under(*others, of=FLAT)])
    for split, folder in (("train", train), ("test", test)):
        layout = find_layout(images, split, "root")
        assert (layout.images, layout.base) == (under(folder), f"{folder}/")
    assert "holds splits" in find_layout(images, None, "root").why_unlabelled
