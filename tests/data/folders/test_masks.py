"""Masks among images: which folders and files are left out."""

import pytest

from beit.data.folders.masks import masks_among, without_masks


def test_masks_are_left_out_at_any_depth():
    images = ["a/b/images/0.png", "a/b/masks/0.png", "c/1.png", "c/1_mask.png"]
    kept, pictures, notes = without_masks(images)
    assert (kept, pictures) == (["a/b/images/0.png", "c/1.png"], {"images"})
    assert notes == [
        "takes images, not masks (3 images)",
        "leaves out 1 masks by their names, as c/1_mask.png beside c/1.png",
    ]
    assert without_masks(kept) == (kept, set(), [])


@pytest.mark.parametrize(
    ("names", "masks"),
    [
        (["photos", "masks"], ["masks"]),
        (["train", "train_masks", "ground_truth"], ["train_masks", "ground_truth"]),
        (["mask", "no_mask", "hat"], []),
        (["masks", "labels"], []),
        (["seg_train", "seg_test"], []),
    ],
)
def test_folders_of_masks_are_known_by_their_names(names, masks):
    assert masks_among(names) == masks
