import torch

from beit.draw.classes import (
    class_items,
    class_table,
    confusion_picture,
    confusion_table,
    note_of_missed,
)

MATRIX = torch.tensor([[8, 2, 0], [0, 0, 0], [3, 1, 4]])
NAMES = ["cat", "dog", "bow & tie"]


def test_the_worst_classes_come_first_and_classes_without_images_are_left_out():
    table = class_table(MATRIX.diagonal(), MATRIX.sum(dim=1), NAMES)
    assert table.rows == [("bow & tie", "50.0", 8), ("cat", "80.0", 10)]
    many = class_table(torch.arange(60), torch.full((60,), 60), list(map(str, range(60))))
    assert many.caption.endswith("the 50 worst of 60")
    assert [row[0] for row in many.rows] == list(map(str, range(50)))


def test_classes_of_which_nothing_is_right_are_named():
    names = ["ant", "bee", "cat", "dog", "elk"]
    right, total = torch.tensor([0, 1, 0, 0, 0]), torch.tensor([5, 5, 2, 0, 90])
    note = note_of_missed(right, total, names, "image", "look")
    assert note == "no image of ant, elk is classified correctly (2 of 5 classes); look"
    assert note_of_missed(right + 1, total, names, "image", "look") == ""


def test_confusions_are_sorted_and_right_answers_none():
    table = confusion_table(MATRIX, NAMES, 2)
    assert table.rows == [("bow & tie", "cat", 3), ("cat", "dog", 2)]
    assert len(confusion_table(MATRIX, NAMES).rows) == 3


def test_the_matrix_is_drawn_cell_by_cell():
    picture = confusion_picture(MATRIX, NAMES)
    drawing = picture.data.decode()
    assert drawing.count("fill-opacity") == 5  # of nine cells four are empty
    assert all(f">{percent}</text>" in drawing for percent in (80, 20, 38, 12, 50))
    assert "bow &amp; tie" in drawing
    assert drawing.count(">no image</text>") == 1  # of dog, whose row is empty
    assert "mean accuracy of a class 65.0%" in picture.alt  # of 80 and 50; dog has no images
    assert confusion_picture(torch.eye(41), list(map(str, range(41)))) is None


def test_what_is_not_counted_or_too_large_is_not_shown():
    right, total = MATRIX.diagonal(), MATRIX.sum(dim=1)
    assert [type(item).__name__ for item in class_items(right, total, MATRIX, NAMES)] == [
        "Table",
        "Table",
        "Picture",
    ]
    perfect = class_items(total, total, torch.diag(total), NAMES)
    assert [type(item).__name__ for item in perfect] == ["Table", "Picture"]  # no confusion
    assert class_items(right, total, None, NAMES) == [class_table(right, total, NAMES)]
    many = torch.ones(41, 41, dtype=torch.int64)
    items = class_items(many.diagonal(), many.sum(dim=1), many, list(map(str, range(41))))
    assert len(items) == 2
