import unicodedata

import numpy as np
import pytest
import torch

from beit.data.classes import (
    Classes,
    Labelled,
    align,
    checked_classes,
    known_classes,
    read_classes,
    renumbered,
)
from beit.data.folders.listing import warn_once
from beit.nn.metrics import confusion_matrix, knn_accuracy


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
    return Labelled("--data", spec, Named(labels, names))


def validation(labels, names=None):
    return Labelled("--validation", "there", Named(labels, names))


def test_names_count_the_classes_and_else_the_largest_label(caplog):
    assert checked_classes(train([0, 2, 0], ["a", "b", "c"])) == (3, ("a", "b", "c"))
    assert "--data here: 1 of 3 classes has no image: b" in caplog.text
    assert checked_classes(train([0, 4])) == Classes(5, None)
    assert checked_classes(train([0, 4]), 9) == Classes(9, None)


def test_a_class_without_images_has_a_hint_only_if_it_is_likely_a_mistake(caplog):
    checked_classes(train([0, 2, 3, 4, 6], ["cats", "cat", "apple", "c1", "c2", "c3", "male"]))
    assert "2 of 7 classes have no image: cat (did you mean cats?), c3" in caplog.text
    names = ("male", "female", *"abcdef")
    renumbered(validation([0], ["female"]), Classes(8, names), "--data")
    assert "7 of 8 classes have no image: male, a, b, c, d and 2 more" in caplog.text


def test_classes_that_differ_in_case_only_are_said_once_for_a_set_and_its_parts(caplog):
    warn_once.cache_clear()
    names = ["Animals", "animals"]
    classes = checked_classes(train([0, 1], names, "a/case.csv[:80%]"))
    renumbered(Labelled("--test", "a/case.csv[80%:]", Named([1, 0], names)), classes, "--data")
    (said,) = [r.getMessage() for r in caplog.records if "case only" in r.getMessage()]
    assert said.startswith("a/case.csv: classes 'Animals' and 'animals' differ in case only; each")
    assert classes.number == 2  # and each stays one


@pytest.mark.parametrize(
    ("part", "count", "message"),
    [
        (train(None), None, "--data here: images without a label: .*; all need a class"),
        (train([0, 1, -1, -1]), None, r"without a label: 2 of 4, the first is 2.png; label or"),
        (train([0, 3], ["a", "b"]), None, "1.png has the label 3, but there are 2 classes"),
        (train([0, 3]), 3, "has the label 3, but there are 3 classes; expected 0 to 2"),
        (train([0, 1], ["a", "b"]), 3, "num_classes is 3, but --data here names 2"),
        (train([0, 0]), None, "has one class"),
        (train([0, 1], ["a", "pfl\udce4ume"]), None, r"class pfl\\udce4ume is not UTF-8"),
        (
            train([0, 1], ["\xe9", "e\u0301"]),
            None,
            r"here: two classes are named e\u0301: '\\xe9' and 'e\\u0301' \(composed",
        ),
        (train([0, 1], ["cat ", "cat"]), None, "two classes are named cat: 'cat ' and 'cat'"),
    ],
)
def test_training_sets_that_cannot_be_are_refused(part, count, message):
    with pytest.raises(ValueError, match=message):
        checked_classes(part, count)


def test_the_source_says_why_it_has_no_labels():
    part = train(None)
    part.source.why_unlabelled = "column 'label' holds lists; name another with ?label=COLUMN"
    with pytest.raises(ValueError, match=r"without a label: column 'label' holds lists; .*COLUMN"):
        known_classes(part)


def test_a_few_very_large_labels_are_no_count_of_classes():
    part = train([17, 3, 899_999])
    with pytest.raises(ValueError, match="largest label is 899999, but only 3 of the 900000"):
        known_classes(part)
    assert known_classes(part, 900_000).number == 900_000  # as the user says
    assert known_classes(train([17, 3, 21_840])).number == 21_841  # some images of a large set
    names = [f"n{number}" for number in range(150_000)]
    assert known_classes(train([17, 3], names)).number == 150_000


@pytest.mark.parametrize("part", ["", "[:90%]"])
def test_an_empty_class_folder_is_refused(tmp_path, part):
    for name in ("a", "b", "void", ".hidden"):
        (tmp_path / name).mkdir()
    for name in ("a", "b"):
        (tmp_path / name / "0.png").touch()
    with pytest.raises(ValueError, match=r"no image in the class folder 'void'; add images"):
        checked_classes(train([0, 1], ["a", "b"], f"{tmp_path}{part}"))
    listed = by_list(train([0, 1], ["a", "b"], f"{tmp_path}{part}"), ("a", "void", "b"))
    assert checked_classes(listed) == (3, ("a", "void", "b"))  # known to the list, as may be
    # Folders that are not the classes, as beside a list of labels, are not judged.
    assert checked_classes(train([0, 1], ["cat", "dog"], f"{tmp_path}{part}")).number == 2


@pytest.mark.parametrize("name", ["images-000000.tar", "train.parquet"])
def test_a_folder_of_shards_has_no_class_folders(tmp_path, name):
    (tmp_path / name).touch()
    assert checked_classes(train([0, 1], ["a", "b"], str(tmp_path))).number == 2


def test_a_folder_named_like_a_home_directory_is_no_error():
    assert checked_classes(train([0, 1], ["a", "b"], "~nobody-of-this-name/set")).number == 2


# ── two sets ────────────────────────────────────────────────────────────────────────────────────


def aligned(part, names, count=None):
    return align(part, names, count or len(names), "--data here")


TWELVE = sorted(map(str, range(12)))  # as folders are: 0, 1, 10, 11, 2, ...


def test_numbers_as_names_match_numbers():
    labels, names, notes = aligned(validation(range(12)), TWELVE)
    assert [TWELVE[label] for label in labels.tolist()] == [str(number) for number in range(12)]
    assert notes == ["--data here names its classes by the numbers of --validation there"]
    # and the other way: folders for what was trained by numbers
    labels, names, notes = aligned(validation(range(12), TWELVE), None, 12)
    assert labels.tolist() == [0, 1, 10, 11, 2, 3, 4, 5, 6, 7, 8, 9]
    assert names == [str(number) for number in range(12)]
    padded = [f"{number:03d}" for number in range(12)]
    assert aligned(validation(range(12), padded), TWELVE).labels.tolist() == [
        TWELVE.index(str(number)) for number in range(12)
    ]


@pytest.mark.parametrize(
    ("labels", "names", "reference", "expected"),
    [
        ([0, 1, 0], ["b", "a"], ["a", "b"], [1, 0, 1]),
        ([1, -1], ["b", "a"], ["a", "b"], [0, -1]),
        ([0], ["e\u0301"], ["a", "\xe9"], [1]),  # decomposed and composed
        ([0], [" a"], ["b", "a "], [1]),
        ([0, 1], ["07", "8"], ["8", "7"], [1, 0]),
        ([0, 1], ["7", "07"], ["07", "x", "7"], [2, 0]),  # by their text, which differs
        ([0, 1], ["1", "10"], ["0", "1", "2", "10"], [1, 3]),
        ([2, 0], None, ["a", "b", "c"], [2, 0]),
        ([2, 10], None, ["1", "10", "2"], [2, 1]),
        ([2, 0], None, ["0", "1", "none"], [2, 0]),  # either way
        ([2, 0, -1], None, 3, [2, 0, -1]),
        ([0, 1], ["2", "10"], 11, [2, 10]),
        ([0, 1], ["x", "y"], 2, [0, 1]),
    ],
)
def test_classes_of_two_sets(labels, names, reference, expected):
    count, known = (reference, None) if isinstance(reference, int) else (len(reference), reference)
    assert aligned(validation(labels, names), known, count).labels.tolist() == expected


def test_numbers_taken_as_they_are_are_said():
    said = "{} has no class names: numbers are taken as those of {} (0 is a, 1 is b, ...)"
    sets = ("--validation there", "--data here")
    assert aligned(validation([1]), ["a", "b"]).notes == [said.format(*sets)]
    in_order = aligned(validation([1], ["a", "b"]), None, 2)
    assert in_order.notes == [said.format(*reversed(sets))]
    assert in_order.names == ["a", "b"]


@pytest.mark.parametrize(
    ("labels", "names", "reference", "message"),
    [
        (
            [0, 1],
            ["ant", "beee"],
            ["ant", "bee", "cat"],
            r"there has 1 class that .* lacks: beee; did you mean bee\?; the 3 classes of",
        ),
        (
            [0, 1],
            ["x", "y"],
            ["a", "b"],
            "have no class in common: x, y; the 2 classes of --data here are a, b",
        ),
        ([0, 1], ["\xe9", "e\u0301"], ["a", "\xe9"], "there: two classes are named"),
        ([0, 1], ["7", "07"], ["a", "7"], "has 1 class that --data here lacks: 07"),
        ([0, 1], ["7", "8"], ["07", "007", "8"], "has 1 class that --data here lacks: 7"),
        ([0], ["crane"], ["crane", "ant", "crane"], "here has two classes named crane"),
        ([0, 3], ["a", "b"], ["a", "b"], "1.png has the label 3, but there are 2"),
        ([1, 0], None, ["1", "2"], "lacks: 0; .* are 1, 2; --data here names its classes by"),
        ([1, 0], None, ["1", "2", "none"], "here has the class 1 as its number 0, so that"),
        ([1, 2], None, ["a", "b"], "has 1 class that --data here lacks: 2"),
        ([1, 2], None, 2, "1.png has the label 2, but there are 2 classes; expected 0 to 1"),
        (
            [0, 1],
            ["x", "y"],
            3,
            "no class names, and .* there has 2 classes, --data here 3",
        ),
        ([0, 1], ["1", "3"], 3, "lacks: 3; the 3 classes of --data here are 0, 1, 2"),
        ([0, 1], ["1", "x"], 2, "has the class 1 as its number 0"),
    ],
)
def test_classes_that_do_not_fit_are_named(labels, names, reference, message):
    count, known = (reference, None) if isinstance(reference, int) else (len(reference), reference)
    with pytest.raises(ValueError, match=message):
        aligned(validation(labels, names), known, count)


def test_classes_that_one_side_lacks_are_said(caplog):
    caplog.set_level("INFO")
    abc = Classes(3, ("a", "b", "c"))
    part = renumbered(validation([1, 1], ["a", "c", "x"]), abc, "--data")
    assert part.source.labels.tolist() == [2, 2]
    assert part.source.class_names == ["a", "b", "c"]
    assert (len(part.source), part.source.name(1)) == (2, "1.png")
    assert "there names 1 class without an image that --data lacks: x" in caplog.text
    assert "there: 2 of 3 classes have no image: a, b" in caplog.text
    with pytest.raises(ValueError, match=r"without a label: 1 of 2, the first is 0.png"):
        renumbered(validation([-1, 0]), Classes(3, None), "--data")


def spellings(name, generator):
    """A name as another system may write it, or the number that it is."""
    if name.isdecimal():
        return name.zfill(int(generator.integers(1, 4)))
    return unicodedata.normalize("NFD" if generator.integers(2) else "NFC", name)


@pytest.mark.parametrize("seed", range(40))
def test_figures_do_not_depend_on_order_subset_and_spelling(seed):
    """Any set has the metrics of the same images with the reference's numbers."""
    generator = np.random.default_rng(seed)
    words = ["\xe9t\xe9", "\xc5ngstr\xf6m", "cat", "a b", "\ud55c\uae00", "0x1"]
    words = [*map(str, range(15)), *(words if seed % 2 else [])]
    reference = generator.permutation(words)[: generator.integers(4, 14)].tolist()
    count, n = len(reference), 60
    truth = generator.integers(generator.integers(2, count), size=n)  # not of all classes
    wrong = generator.integers(count, size=n)
    predicted = torch.from_numpy(np.where(generator.integers(2, size=n), truth, wrong))
    # The set numbers its classes in another order, and has classes without an image.
    unknown = [word for word in words if word not in reference] if seed % 3 else []
    own = generator.permutation([*{reference[t] for t in truth}, *unknown]).tolist()
    number = {name: place for place, name in enumerate(own)}
    labels = [number[reference[t]] for t in truth]
    part = validation(labels, [spellings(name, generator) for name in own])
    sets = [align(part, [spellings(name, generator) for name in reference], count, "reference")]
    if not seed % 2:  # numbers are the names: one side may have no others
        numbers = [int(reference[t]) for t in truth]
        sets.append(align(validation(numbers), reference, count, "reference"))
        assert align(part, None, 15, "reference").labels.tolist() == numbers
    expected = confusion_matrix(torch.tensor(truth), predicted, count)
    features = torch.randn(n, 5, generator=torch.Generator().manual_seed(seed))
    for found in sets:
        assert torch.equal(confusion_matrix(found.labels, predicted, count), expected)
        nearest_neighbours = (features, torch.tensor(truth), features.flip(0))
        assert knn_accuracy(*nearest_neighbours, found.labels) == knn_accuracy(
            *nearest_neighbours, torch.tensor(truth)
        )


# ── a list of classes ───────────────────────────────────────────────────────────────────────────


def by_list(part, names):
    return renumbered(part, Classes(len(names), names), f"the list of {len(names)}")


def test_a_list_numbers_classes_by_its_lines(tmp_path):
    (tmp_path / "list").write_text("\ufeffcow \n\ngolden retriever\nant\n", encoding="utf-8")
    names = read_classes(str(tmp_path / "list"))
    assert names == ("cow", "golden retriever", "ant")
    part = by_list(train([0, 1, 0], ["ant", "cow"]), names)
    assert part.source.labels.tolist() == [2, 0, 2]
    assert part.source.class_names == list(names)
    # Without names a set has the numbers of the list already.
    assert by_list(train([1, 2]), names).source.labels.tolist() == [1, 2]
    with pytest.raises(ValueError, match="images without a label"):
        by_list(train(None), names)


def test_classes_of_a_list_without_images_are_said(caplog):
    part = by_list(train([0, 1], ["ant", "cow"]), ("cow", "dog", "ant", "bee"))
    assert checked_classes(part).number == 4
    assert "--data here: 2 of 4 classes have no image: dog, bee" in caplog.text


def test_classes_that_a_list_lacks_are_named_if_they_have_images():
    names = ("cow", "ant")
    assert by_list(train([0], ["ant", "dog"]), names).source.labels.tolist() == [1]
    with pytest.raises(ValueError, match="here has 2 classes that the list of 2 lacks: bee, dog"):
        by_list(train([0, 1, 2], ["ant", "bee", "dog"]), names)
    with pytest.raises(ValueError, match="here has 1 class that the list of 2 lacks: 2"):
        by_list(train([2, 0]), names)


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
        ("\xe9\ne\u0301".encode(), "lists the class \xe9 twice"),
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
