import pytest
import torch

from beit.data.classes import Classes, Labelled, checked_classes, read_classes, renumbered


class Named:
    """A source that knows labels and class names only."""

    def __init__(self, labels, class_names=None):
        self.labels = None if labels is None else torch.tensor(labels)
        self.class_names = class_names
        self.why_unlabelled = ""

    def name(self, index):
        return f"{index}.png"

    def __len__(self):
        return len(self.labels)


def train(labels, names=None, spec="here"):
    return Labelled("data.train", spec, Named(labels, names))


def validation(labels, names=None):
    return Labelled("data.validation", "there", Named(labels, names))


def test_names_count_the_classes_and_else_the_largest_label():
    assert checked_classes(train([0, 2, 0], ["a", "b", "c"])) == (3, ("a", "b", "c"))
    assert checked_classes(train([0, 4]), validation([3, 3])) == Classes(5, None)
    assert checked_classes(train([0, 4]), None, 9) == Classes(9, None)


@pytest.mark.parametrize(
    ("part", "other", "count", "message"),
    [
        (train(None), None, None, "data.train here: images without a label; the class"),
        (train([0, 1, -1]), None, None, "without a label, the first is 2.png"),
        (train([0, 3], ["a", "b"]), None, None, "1.png has the label 3, but there are 2 classes"),
        (train([0, 3]), None, 3, "has the label 3, but there are 3 classes; expected 0 to 2"),
        (train([0, 1], ["a", "b"]), None, 3, "num_classes is 3, but data.train here names 2"),
        (train([0, 0]), None, None, "has one class"),
        (train([0, 1]), validation([2]), None, "data.validation there: 0.png has the label 2"),
        (train([0, 1]), validation(None), None, "data.validation there: images without a label"),
        (
            train([0, 1], ["a", "b"]),
            validation([0], ["b", "c"]),
            None,
            "only in data.train here: a; only in data.validation there: c",
        ),
        (
            train([0, 1], ["a", "b"]),
            validation([0], ["b", "a"]),
            None,
            "in their order: a, b and b",
        ),
    ],
)
def test_what_does_not_fit_is_named(part, other, count, message):
    with pytest.raises(ValueError, match=message):
        checked_classes(part, other, count)


@pytest.mark.parametrize("part", ["", "[:90%]"])
def test_an_empty_class_folder_is_refused(tmp_path, part):
    for name in ("a", "b", "void", ".hidden"):
        (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match=r"no image in the class folder void; add images"):
        checked_classes(train([0, 1], ["a", "b"], f"{tmp_path}{part}"))
    listed = renumbered(train([0, 1], ["a", "b"], f"{tmp_path}{part}"), ("a", "void", "b"))
    assert checked_classes(listed) == (3, ("a", "void", "b"))  # known to the list, as may be


# ── a list of classes ───────────────────────────────────────────────────────────────────────────


def test_a_list_numbers_classes_by_its_lines(tmp_path):
    (tmp_path / "list").write_text("\ufeffcow \n\ngolden retriever\nant\n", encoding="utf-8")
    names = read_classes(str(tmp_path / "list"))
    assert names == ("cow", "golden retriever", "ant")
    part = renumbered(train([0, 1, 0, -1], ["ant", "cow"]), names)
    assert part.source.labels.tolist() == [2, 0, 2, -1]
    assert part.source.class_names == list(names)
    assert (len(part.source), part.source.name(1)) == (4, "1.png")
    # Without names a set has the numbers of the list already.
    assert renumbered(train([1, 2]), names).source.labels.tolist() == [1, 2]
    assert renumbered(train(None), names).source.labels is None


def test_classes_of_a_list_without_images_are_said(caplog):
    part = renumbered(train([0, 1], ["ant", "cow"]), ("cow", "dog", "ant", "bee"))
    other = renumbered(validation([0], ["bee"]), ("cow", "dog", "ant", "bee"))
    assert checked_classes(part, other).number == 4
    assert "data.train here: 2 of 4 classes have no image: dog, bee" in caplog.text


def test_classes_that_a_list_lacks_are_named_if_they_have_images():
    names = ("cow", "ant")
    assert renumbered(train([0], ["ant", "dog"]), names).source.labels.tolist() == [1]
    with pytest.raises(ValueError, match="here has 2 classes that the list of 2 lacks: bee, dog"):
        renumbered(train([0, 1, 2], ["ant", "bee", "dog"]), names)
    with pytest.raises(ValueError, match=r"0\.png has the label 2, but there are 2 classes"):
        checked_classes(renumbered(train([2, 0]), names))


def test_the_lists_of_timm():
    names = read_classes("timm:imagenet-22k")
    assert len(names) == 21841  # docs/reference/finetuning.md, "Intermediate fine-tuning"
    assert list(names) == sorted(names)  # as folders are
    thousand = read_classes("timm:imagenet-1k")
    # One of the thousand, the teddy bear, is not among the folders of ImageNet-22k.
    assert set(thousand) - set(names) == {"n04399382"}
    with pytest.raises(ValueError, match="timm:imagenet-7k: timm has no such list"):
        read_classes("timm:imagenet-7k")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\n \n", "the list is empty"),
        (b"a\nb\na\n", "lists the class a twice"),
        (b"\x89PNG\xff", "is not a text file"),
    ],
)
def test_lists_that_cannot_be_are_refused(content, message, tmp_path):
    (tmp_path / "list").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_classes(str(tmp_path / "list"))


def test_a_missing_list_is_an_error_of_its_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent"):
        read_classes(str(tmp_path / "absent"))
