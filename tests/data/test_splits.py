"""Names of splits."""

import pytest

from beit.data.splits import are_splits, choose_split, is_split, split_word, split_words


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("Train", "train"),
        ("train2017", "train"),
        ("training_set", "training"),
        ("testset", "test"),
        ("test_images", "test"),
        ("seg_train", "train"),
        ("imagesTs", "test"),
        ("bullet_train", ""),
        ("contest", ""),
        ("train_masks", ""),
        ("valley", ""),
    ],
)
def test_the_word_of_a_name(name, word):
    assert split_word(name) == word
    assert is_split(name) == bool(word)


def test_words_within_names_count_beside_one_another():
    assert split_words(["fruit_train", "fruit-Test", "cat"]) == {
        "fruit_train": "train",
        "fruit-Test": "test",
    }
    assert split_words(["bullet_train", "car"]) == {}
    assert split_words(["test_tube", "val"]) == {"val": "val"}
    assert split_words(["train", "train_test"]) == {"train": "train"}
    assert not are_splits(["val", "test"])


def test_a_split_is_chosen_by_its_word():
    names = ["fruit_train", "fruit_val", "fruit_test"]
    assert choose_split(names, "train", "root") == "fruit_train"
    assert choose_split(names, "test", "root") == "fruit_val"
    with pytest.raises(ValueError, match="several of them for training; name one"):
        choose_split([*names, "train"], "train", "root")
