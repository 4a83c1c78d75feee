from beit.data.class_names import alike, match_classes, match_names


def test_names_are_matched_one_to_one():
    assert match_names(["b", "a", "x"], ["a", "b"]) == [1, 0, -1]
    assert match_names(["a", "a"], ["a", "a"]) == [0, 1]  # equal lists
    assert match_names(["a", "b"], ["a", "a", "b"]) == [-1, 2]
    assert match_names(["1" * 30], ["0" + "1" * 30]) == [-1]  # too long for a number
    assert match_names(["\u0661"], ["1"]) == [-1]  # another script's digit is text
    assert match_names(["Cat"], ["cat"]) == [-1]
    assert match_classes([5], None, None, 5, "a", "b").numbers == {}


def test_names_that_differ_in_case_or_blanks_only_are_said():
    names = ["bee", "Animals", "animals", "ANIMALS", "B", "b"]
    assert alike(names) == (
        "classes 'ANIMALS' and 'Animals' and 'animals', 'B' and 'b' differ in case only"
    )
    assert alike(["a cat", "A_cat"]) == (
        "classes 'A_cat' and 'a cat' differ in case, blanks, - or _ only"
    )
    assert alike(["ant", "ants", "1", "01"]) == ""
