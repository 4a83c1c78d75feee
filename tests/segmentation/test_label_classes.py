import pytest

from beit.segmentation.label_classes import (
    ade20k_classes,
    default_palette,
    label_classes,
    read_label_classes,
)


def test_ade20k_as_published():
    classes = ade20k_classes()
    assert len(classes.names) == len(classes.palette) == 150
    assert len(set(classes.names)) == 150
    assert [classes.names[i] for i in (0, 7, 12, 149)] == ["wall", "bed", "person", "flag"]
    assert [classes.palette[i] for i in (0, 2, 149)] == [
        (120, 120, 120), (6, 230, 230), (92, 0, 255)
    ]  # fmt: skip
    assert classes.palette[6] == classes.palette[48]  # road and skyscraper, as published
    # 0 (other) does not count, c is class c - 1.
    assert [classes.table[value] for value in (0, 1, 150, 151, 255)] == [255, 0, 149, -1, 255]
    assert not classes.colours
    assert classes.expected() == "1 to 150, or 0, 255 where ignored"


def test_pascal_voc_classes_and_palette():
    classes = read_label_classes("voc")
    assert classes.names[0] == "background"
    assert classes.names[20] == "tvmonitor"
    # The published colours of background, aeroplane, bicycle, person and tvmonitor.
    assert [classes.palette[i] for i in (0, 1, 2, 15, 20)] == [
        (0, 0, 0), (128, 0, 0), (0, 128, 0), (192, 128, 128), (0, 64, 128)
    ]  # fmt: skip
    assert len(set(default_palette(255))) == 255


def test_a_number_a_text_file_and_a_list_of_names(tmp_path):
    assert read_label_classes("3").names == ("0", "1", "2")
    assert read_label_classes("3").table[:4] == (0, 1, 2, -1)
    (tmp_path / "names.txt").write_text("sky\n\ngreen grass\n")
    found = read_label_classes(str(tmp_path / "names.txt"), reduce_zero_label=True)
    assert found.names == ("sky", "green grass")
    assert found.table[:4] == (255, 0, 1, -1)
    (tmp_path / "names.yaml").write_text("[sky, green grass]")
    assert read_label_classes(str(tmp_path / "names.yaml")).names == found.names


def test_values_and_colours_of_a_yaml_file(tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text("classes: [ground, crack]\nvalues: [0, 255]\nignored: [7]\n")
    found = read_label_classes(str(file))
    assert [found.table[value] for value in (0, 1, 7, 255)] == [0, -1, 255, 1]
    file.write_text("ground: [0, 0, 0]\ncrack: [255, 0, 9]\n")
    found = read_label_classes(str(file))
    assert found.palette == ((0, 0, 0), (255, 0, 9))
    assert found.colours == {(0, 0, 0): 0, (255, 0, 9): 1}
    file.write_text("classes: {a: [1, 1, 1], b: [2, 2, 2]}\nignored: [5, [9, 9, 9]]\n")
    found = read_label_classes(str(file))
    assert found.colours == {(1, 1, 1): 0, (2, 2, 2): 1, (9, 9, 9): 255}
    assert found.table[5] == 255


def test_classes_take_the_numbers_of_a_list():
    own = label_classes(["cat", "dog"], [(1, 1, 1), (2, 2, 2)], ignored=[9])
    moved = own.renumbered(["bed ", "dog", "cat "])
    assert moved.names == ("bed ", "dog", "cat ")
    assert [moved.table[value] for value in (0, 1, 2, 9)] == [2, 1, -1, 255]
    assert moved.palette[1:] == ((2, 2, 2), (1, 1, 1))
    assert own.renumbered(own.names) == own
    with pytest.raises(
        ValueError, match=r"1 of the 2 classes .* unknown to the 2 expected .*: dog"
    ):
        own.renumbered(["cat", "cow"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("classes: [a, b]\nvalues: [0, 0]", r"own\.yaml: expected a different value for each"),
        ("classes: [a, b]\nvalues: [0, 256]", "a value of a label map is 0 to 255, got 256"),
        ("classes: [a, b]\ncolors: [1]", "unknown keys colors; expected the key 'classes'"),
        ("classes: [a, yes]", r"the class names are not strings \(quote them\)"),
        ("[a, a]", r"own\.yaml: the class a is listed twice"),
        ("{a: [1, 1, 1], b: [1, 1, 1]}", r"the colour \[1, 1, 1\] is listed twice"),
        ("{a: [1, 1, 1], b: [1, 1, 300]}", r"a colour is \[red, green, blue\]"),
        ("{a: [", "is not valid YAML"),
        ("", "the class names are not strings"),
    ],
)
def test_lists_that_cannot_be_are_refused(tmp_path, text, message):
    file = tmp_path / "own.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_label_classes(str(file))


def test_other_refusals():
    with pytest.raises(FileNotFoundError, match=r"classes nowhere: no such file; .* ade20k, voc"):
        read_label_classes("nowhere")
    with pytest.raises(ValueError, match="1 to 255 classes, got 256"):
        read_label_classes("256")
    with pytest.raises(ValueError, match="reduce_zero_label or a list of values, not both"):
        label_classes(["a"], values=[0], reduce_zero_label=True)
