import pytest

from beit.command.messages import did_you_mean, in_plain_words, one_line
from beit.command.options import parse
from beit.tables import embed

OPTIONS = ["--optim.epochs", "--optim.learning_rate", "--optim.warmup_epochs", "--seed"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("--epochs", "; did you mean --optim.epochs?"),  # the last part of a dotted name
        ("--lr", "; did you mean --optim.learning_rate?"),  # its initials
        ("--learning_rat", "; did you mean --optim.learning_rate?"),
        ("--seeds", "; did you mean --seed?"),
        ("--xyzzy", "."),
    ],
)
def test_the_nearest_name_is_suggested(name, expected):
    assert did_you_mean(name, OPTIONS) == expected


def test_a_lower_cutoff_suggests_more():
    assert did_you_mean("tyni", ["tiny", "large"]) == "."
    assert did_you_mean("tyni", ["tiny", "large"], cutoff=0.4) == "; did you mean tiny?"


def test_errors_are_one_line():
    assert one_line(ValueError("two\n  lines")) == "two lines"
    assert one_line(KeyError()) == "KeyError"
    assert one_line(FileNotFoundError(2, "No such file", "a.yaml")) == "a.yaml: No such file"
    assert one_line(OSError(24, "Too many open files")).endswith("fewer workers (num_workers)")


def test_types_lose_their_python_names():
    message = "Parser key \"optim.epochs\":\n  Expected a <class 'int'>. Got value: many"
    assert in_plain_words(message) == "optim.epochs: Expected int. Got value: many"


def test_several_numbers_are_shown_as_a_list():
    with pytest.raises(ValueError, match=r"image_size: expected a number, or several, as in \["):
        parse("embed", embed.Config, ["--model=x", "--data=y", "--image_size=224x224"])


def test_a_value_for_a_group_says_how_to_give_one_of_its_options():
    message = r"device is a group of options, got cuda; .* as in --device\.accelerator cuda$"
    words = ["--model=x", "--data=y", "--output=z.npz", "--device=cuda"]
    with pytest.raises(ValueError, match=message):
        parse("embed", embed.Config, words)
