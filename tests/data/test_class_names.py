from beit.data.class_names import match_classes, match_names


def test_names_are_matched_one_to_one():
    assert match_names(["b", "a", "x"], ["a", "b"]) == [1, 0, -1]
    assert match_names(["a", "a"], ["a", "a"]) == [0, 1]  # equal lists
    assert match_names(["a", "b"], ["a", "a", "b"]) == [-1, 2]
    assert match_names(["1" * 30], ["0" + "1" * 30]) == [-1]  # too long for a number
    assert match_names(["\u0661"], ["1"]) == [-1]  # another script's digit is text
    assert match_names(["Cat"], ["cat"]) == [-1]
    assert match_classes([5], None, None, 5, "a", "b").numbers == {}
