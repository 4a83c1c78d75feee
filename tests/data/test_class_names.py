import pytest

from beit.data.class_names import an, match_classes, match_names, nearest, some


def test_names_are_matched_one_to_one():
    assert match_names(["b", "a", "x"], ["a", "b"]) == [1, 0, -1]
    assert match_names(["a", "a"], ["a", "a"]) == [0, 1]  # equal lists
    assert match_names(["a", "b"], ["a", "a", "b"]) == [-1, 2]
    assert match_names(["1" * 30], ["0" + "1" * 30]) == [-1]  # too long for a number
    assert match_names(["\u0661"], ["1"]) == [-1]  # another script's digit is text
    assert match_names(["Cat"], ["cat"]) == [-1]
    assert match_classes([5], None, None, 5, "a", "b").numbers == {}


def test_the_nearest_name_is_suggested_whatever_its_case():
    assert nearest("CAT", ["dog", "cat"]) == "; did you mean cat?"
    assert nearest("zebra", ["dog", "cat"]) == ""


def test_long_lists_of_names_are_cut():
    assert some("abcde") == "a, b, c, d, e"
    assert some("abcdefg") == "a, b, c, d, e and 2 more"


@pytest.mark.parametrize("noun", ["an ImageClassifier", "an int", "a list", "a uint8", "a VQKD"])
def test_a_noun_has_its_article(noun):
    assert an(noun.split()[1]) == noun
