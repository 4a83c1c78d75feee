import math

import numpy as np
import pytest
import torch
from torch import Tensor

from beit.draw.components import codebook_colours, components, directions, feature_colours


def cloud(n: int, seed: int = 0) -> Tensor:
    """Points whose extent is 3, 2 and 1 along the first three of five axes."""
    points = torch.randn(n, 5, generator=torch.Generator().manual_seed(seed))
    return points * torch.tensor([3.0, 2.0, 1.0, 0.01, 0.01])


def test_components_are_the_axes_of_the_cloud() -> None:
    found = components(cloud(4000) + 7)
    torch.testing.assert_close(found.axes, torch.eye(5).double()[:, :3], atol=0.05, rtol=0)
    expected = torch.tensor([9.0, 4.0, 1.0]).double() / 14
    torch.testing.assert_close(found.shares, expected, atol=0.02, rtol=0)
    singular = np.linalg.svd((cloud(50) - cloud(50).mean(0)).double().numpy())[1]
    shares = components(cloud(50)).shares.numpy()
    np.testing.assert_allclose(shares, (singular**2 / (singular**2).sum())[:3], rtol=1e-6)


def test_vectors_with_less_than_three_extents_have_zeros_there() -> None:
    line = torch.tensor([[0.0, 1.0], [0.0, 3.0], [0.0, 2.0]])
    found = components(line)
    assert found.shares.tolist() == [1, 0, 0]
    assert found.of(line).tolist() == [[-1, 0, 0], [1, 0, 0], [0, 0, 0]]
    same = codebook_colours(torch.ones(4, 3))
    assert (same == same[0]).all()
    diverged = torch.tensor([[math.nan, math.inf], [1.0, 2.0]])
    assert codebook_colours(diverged).shape == (2, 3)
    with pytest.raises(ValueError, match="all finite: False"):
        components(torch.tensor([[torch.nan]]))


def test_near_codes_have_near_colours_and_the_same_every_time() -> None:
    book = cloud(512)
    colours = codebook_colours(book).astype(float)
    assert (colours == codebook_colours(book.clone())).all()
    apart = torch.cdist(book, book).numpy()
    np.fill_diagonal(apart, np.inf)
    nearest = apart.argmin(axis=1)
    to_nearest = np.abs(colours - colours[nearest]).mean()
    to_any = np.abs(colours - colours[np.roll(np.arange(512), 1)]).mean()
    assert to_nearest < 0.35 * to_any
    assert len(np.unique(colours, axis=0)) > 500
    light = colours @ [0.299, 0.587, 0.114]  # the first component
    assert np.corrcoef(light, book[:, 0].numpy())[0, 1] > 0.85


def test_features_are_coloured_by_direction_alone_and_in_shared_components() -> None:
    features = cloud(30).view(5, 6, 5)
    scaled = features * torch.rand(5, 6, 1).add(0.5)
    assert feature_colours(features).shape == (5, 6, 3)
    assert (feature_colours(features) == feature_colours(scaled)).mean() > 0.97  # rounding
    fitted = components(directions(features))
    one = feature_colours(features[:1], fitted)
    assert (one[0] == feature_colours(features)[0]).all()
    other = fitted.spanning(directions(features[:2]))
    assert other.axes is fitted.axes
    assert not torch.equal(other.low, fitted.low)


def test_a_rotation_of_the_features_changes_the_signs_of_their_components_at_most() -> None:
    features = cloud(60).view(2, 30, 5)
    turn, _ = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(1)))
    rows, turned = directions(features), directions(features @ turn)
    before, after = components(rows).of(rows), components(turned).of(turned)
    signs = (before * after).sum(dim=0).sign()
    torch.testing.assert_close(after * signs, before, atol=1e-5, rtol=0)
    again = feature_colours(features.clone())
    assert (feature_colours(features) == again).all()


def test_equal_features_of_two_images_have_equal_colours() -> None:
    features = cloud(60).view(2, 30, 5)
    features[1, 7] = 3 * features[0, 2]
    colours = feature_colours(features)
    assert (colours[1, 7] == colours[0, 2]).all()
    alone = feature_colours(features[1:])  # on a scale of its own
    assert (alone[0] != colours[1]).any()
