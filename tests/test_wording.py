import pytest

from beit.wording import an, nearest, some, some_names


def test_the_nearest_name_is_suggested_whatever_its_case():
    assert nearest("CAT", ["dog", "cat"]) == "; did you mean cat?"
    assert nearest("zebra", ["dog", "cat"]) == ""


def test_long_lists_of_names_are_cut():
    assert some("abcde") == "a, b, c, d, e"
    assert some("abcdefg") == "a, b, c, d, e and 2 more"


def test_a_name_with_a_comma_is_quoted():
    assert some_names(["Wälder, dunkel", "it's", "b"], 2) == "'Wälder, dunkel', it's and 1 more"


@pytest.mark.parametrize("noun", ["an ImageClassifier", "an int", "a list", "a uint8", "a VQKD"])
def test_a_noun_has_its_article(noun):
    assert an(noun.split()[1]) == noun
