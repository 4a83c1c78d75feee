import pytest

from beit.draw.axes import Scale, scale_over, text, tick_labels
from beit.draw.numbers import aligned_numbers, short_number


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


def test_scale_ends_on_round_numbers_and_places_by_hand() -> None:
    scale = scale_over([0.31, 1.9])
    assert scale == Scale(0.0, 2.0)
    assert scale.ticks() == [0.0, 0.5, 1.0, 1.5, 2.0]
    assert scale.position(0.5) == 0.25
    assert scale_over([3, 17], rounded=False) == Scale(3, 17)
    assert Scale(1.0, 100.0, log=True).position(10.0) == pytest.approx(0.5)


@pytest.mark.parametrize("values", [[5.0], [0.0, 0.0], [-3.0, -3.0], [1e-12], []])
@pytest.mark.parametrize("log", [False, True])
def test_scale_of_one_value_has_room(values: list[float], log: bool) -> None:
    if log and min(values, default=1) <= 0:
        with pytest.raises(ValueError, match="needs positive values"):
            scale_over(values, log=True)
        return
    scale = scale_over(values, log=log)
    assert scale.low < scale.high
    assert len(scale.ticks()) >= 2
    assert all(0 <= scale.position(value) <= 1 for value in values)


@pytest.mark.parametrize("low", [1e-7, 0.003, 1.0, 9000.0])
@pytest.mark.parametrize("ratio", [1.5, 7.0, 1e3, 1e9])
def test_log_ticks_are_inside_in_order_and_few(low: float, ratio: float) -> None:
    scale = scale_over([low, low * ratio], log=True)
    ticks = scale.ticks()
    assert ticks == sorted(set(ticks))
    assert 2 <= len(ticks) <= 8
    assert all(-1e-3 <= scale.position(tick) <= 1 + 1e-3 for tick in ticks)


def test_tick_labels_are_alike_and_distinct() -> None:
    assert tick_labels([0, 0.0005, 0.001]) == ["0", "0.0005", "0.0010"]
    assert tick_labels([0, 5000.0, 10000.0]) == ["0", "5k", "10k"]
    assert tick_labels([0, 100.0, 200.0]) == ["0", "100", "200"]
    assert tick_labels([1.0, 10.0, 100.0], log=True) == ["1", "10", "100"]
    assert len(set(tick_labels([10000.0, 10000.5, 10001.0]))) == 3


def test_text_is_escaped() -> None:
    assert "&lt;b&gt; &amp;" in text(0, 0, "<b> &")
