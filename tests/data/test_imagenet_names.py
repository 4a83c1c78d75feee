import pytest

from beit.data.class_names import match_classes
from beit.data.imagenet_names import imagenet_words, in_one_language, wordnet_ids


@pytest.mark.parametrize(
    ("subset", "classes", "first"),
    [("imagenet-1k", 1000, "tench, Tinca tinca"), ("imagenet-22k", 21_841, "organism, being")],
)
def test_the_lists_are_those_of_timm(subset: str, classes: int, first: str) -> None:
    from timm.data.imagenet_info import ImageNetInfo

    info = ImageNetInfo(subset)
    pairs = sorted(zip(info.label_names(), info.label_descriptions(), strict=True))
    words = imagenet_words(classes)
    assert words == tuple(word for _, word in pairs) and words[0] == first
    if classes == 1000:
        assert wordnet_ids() == [name for name, _ in pairs]


def test_other_numbers_of_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="classes is 7; expected 1000 or 21841"):
        imagenet_words(7)


def test_folders_of_ids_are_classes_of_words() -> None:
    ids, words = wordnet_ids(), imagenet_words()
    folders = [ids[517], ids[3], "n99999999"]  # 517 is one of two classes called crane
    match = match_classes(range(3), folders, words, 1000, "the data", "the model")
    assert match.numbers == {0: 517, 1: 3}
    match = match_classes([0, 134], words, folders, 3, "the model", "the data")
    assert match.numbers == {}
    assert match_classes([517], words, folders, 3, "the model", "the data").numbers == {517: 0}


def test_other_names_stay_as_they_are() -> None:
    ids, words = wordnet_ids(), imagenet_words()
    turned = words[1:] + words[:1]
    for names in (["crane"], turned, [*map(str, range(1000))]):
        assert in_one_language(ids, names) == (ids, names)
    assert in_one_language(words, ["tench"]) == (words, ["tench"])
