from beit.data.class_names import match_classes
from beit.data.imagenet_names import imagenet_words, in_one_language, wordnet_ids


def test_the_lists_are_those_of_timm() -> None:
    from timm.data.imagenet_info import ImageNetInfo

    info = ImageNetInfo()
    pairs = sorted(zip(info.label_names(), info.label_descriptions(), strict=True))
    assert list(zip(wordnet_ids(), imagenet_words(), strict=True)) == pairs
    assert pairs[0] == ("n01440764", "tench, Tinca tinca")


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
