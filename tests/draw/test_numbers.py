import pytest

from beit.draw.numbers import aligned_numbers, cosine_words, short_number, tick_labels


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0.0, "0"),
        (0.31254, "0.3125"),
        (1.5e-4, "1.5e-4"),
        (48.0, "48"),
        (8192.0, "8192"),
        (12_345.0, "12345"),
        (12_500_000.0, "12.5M"),
        (-2.0e-5, "-2e-5"),
        (3e20, "3.000e+20"),
        (float("nan"), "nan"),
    ],
)
def test_figure_is_short(value: float, words: str) -> None:
    assert short_number(value) == words


def test_aligned_gives_a_column_the_same_decimals() -> None:
    assert aligned_numbers([32.11, 48.0, 5.5]) == ["32.11", "48.00", "5.50"]
    assert aligned_numbers([0.5, 1e-5]) == ["0.5", "1e-5"]  # too far apart for one notation
    assert aligned_numbers([]) == []


def test_tick_labels_are_alike_and_distinct() -> None:
    assert tick_labels([0, 0.0005, 0.001]) == ["0", "0.0005", "0.0010"]
    assert tick_labels([0, 5000.0, 10000.0]) == ["0", "5k", "10k"]
    assert tick_labels([0, 100.0, 200.0]) == ["0", "100", "200"]
    assert tick_labels([0, 1e6, 2e6]) == ["0", "1M", "2M"]
    assert tick_labels([0, 2e-6]) == ["0", "2e-6"]
    assert (tick_labels([]), tick_labels([0.3])) == ([], ["0.3"])
    assert len(set(tick_labels([10000.0, 10000.5, 10001.0]))) == 3


def test_cosines_are_told_from_each_other_and_from_1() -> None:
    assert cosine_words([0.25, 0.875, -0.5]) == ["0.25", "0.88", "-0.50"]
    assert cosine_words([0.951, 0.9846]) == ["0.951", "0.985"]
    assert cosine_words([0.99991, 0.99998]) == ["0.999910", "0.999980"]
    assert cosine_words([1.0, 0.9984, 0.3]) == ["1.000", "0.998", "0.300"]
    assert cosine_words([1.0, 1.0]) == ["1.00", "1.00"]
    assert cosine_words([]) == []
