import pytest
import torch

from beit.data.shapes import KINDS, ShapesSource


def test_scene_is_a_function_of_seed_and_index():
    few, many = ShapesSource(4, (24, 40), seed=3), ShapesSource(30, (24, 40), seed=3)
    assert few.image(2).shape == (3, 24, 40)
    assert few.image(2).dtype == torch.uint8
    assert torch.equal(few.image(2), many.image(2))
    assert not torch.equal(few.image(2), few.image(3))
    assert not torch.equal(few.image(2), ShapesSource(4, (24, 40), seed=4).image(2))


def test_label_is_the_kind_of_the_largest_shape():
    source = ShapesSource(60, (48, 64), seed=1)
    assert source.labels.tolist() == [index % 10 for index in range(60)]
    assert source.class_names == KINDS
    for index, label in enumerate(source.labels.tolist()):
        kinds = source.label_map(index)
        assert kinds.shape == (48, 64)
        areas = torch.bincount(kinds.flatten().long(), minlength=len(KINDS) + 1)
        assert areas[1:].argmax() == label
        assert 0.03 < areas[label + 1] / kinds.numel() < 0.6


def test_disc_has_the_area_of_a_disc():
    source = ShapesSource(1, (200, 200), seed=5)
    disc = (source.label_map(0) == 1).nonzero().float()
    height, width = (disc.max(0).values - disc.min(0).values + 1).tolist()
    assert height == pytest.approx(width, abs=2)
    assert len(disc) == pytest.approx(torch.pi / 4 * height * width, rel=0.1)  # less what covers it


def test_shapes_are_seen_against_the_ground():
    source = ShapesSource(20, (64, 64))
    for index in range(20):
        image, kinds = source.image(index).float(), source.label_map(index)
        shape = image[:, kinds == index % 10 + 1].mean(1)
        assert (shape - image[:, kinds == 0].mean(1)).abs().max() > 8


def test_spec():
    source = ShapesSource.from_spec("shapes://12?size=32x48&seed=9")
    assert (len(source), source.size, source.seed) == (12, (32, 48), 9)
    assert ShapesSource.from_spec("shapes://5").size == (64, 64)
    assert source.name(3) == "shapes://3?size=32x48&seed=9"


@pytest.mark.parametrize(
    "spec",
    [
        "shapes://",
        "shapes://x",
        "shapes://5?size=big",
        "shapes://5?colour=1",
        "shapes://5?look=red",
    ],
)
def test_wrong_spec_is_refused(spec):
    with pytest.raises(ValueError, match="not understood; expected shapes://COUNT"):
        ShapesSource.from_spec(spec)


def test_wrong_numbers_are_refused():
    with pytest.raises(ValueError, match="at least 1, got 0"):
        ShapesSource(0)
    with pytest.raises(ValueError, match="from 8 to 4096 pixels"):
        ShapesSource(3, (4, 64))
