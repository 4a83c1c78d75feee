import io
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from beit.codebook import map as code_map
from beit.codebook import style
from beit.codebook.map import free_cells, map_figure, principal_components, tsne
from beit.nn.quantizer import unit


def test_principal_components_are_those_of_the_covariance() -> None:
    vectors = torch.randn(20, 5, generator=torch.Generator().manual_seed(0))
    for on_sphere in (True, False):
        places, shares = principal_components(vectors, on_sphere)
        rows = (unit(vectors) if on_sphere else vectors).double()
        covariance = torch.cov(rows.T)
        values = torch.linalg.eigvalsh(covariance).flip(0)
        expected = (values / values.sum())[:2].float()
        torch.testing.assert_close(shares, expected)
        torch.testing.assert_close(
            torch.cov(places.T), torch.diag(values[:2]).float(), atol=1e-5, rtol=1e-4
        )
        assert places.mean(0).abs().max() < 1e-6


def test_one_code_is_at_the_origin() -> None:
    places, shares = principal_components(torch.ones(1, 3))
    assert places.tolist() == [[0, 0]]
    assert shares.tolist() == [0, 0]


def test_tsne_keeps_groups_together_and_repeats_itself() -> None:
    pytest.importorskip("sklearn")
    generator = torch.Generator().manual_seed(1)
    centres = 8 * torch.randn(3, 6, generator=generator)
    vectors = (centres[:, None] + torch.randn(3, 8, 6, generator=generator)).flatten(0, 1)
    places = tsne(vectors, seed=0)
    assert places.equal(tsne(vectors, seed=0))
    distance = torch.cdist(places, places).fill_diagonal_(float("inf"))
    nearest = distance.argmin(1)
    assert (nearest // 8).tolist() == [number // 8 for number in range(24)]


def test_tsne_needs_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    with pytest.raises(ModuleNotFoundError):
        tsne(torch.randn(9, 3), seed=0)


def test_every_point_gets_its_own_cell_nearby() -> None:
    places = np.random.default_rng(0).random((30, 2))
    places[5] = places[6]
    cells = free_cells(places, 8)
    assert len({tuple(cell) for cell in cells.tolist()}) == 30
    assert cells[0].tolist() == (places[0] * 7).round().tolist()  # the first gets the nearest
    assert np.abs(cells - places * 7).max() < 3


def test_a_map_shows_every_patch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code_map, "_SIDE", 300)
    monkeypatch.setitem(style._STYLE, "savefig.dpi", 60)
    colours = np.array([[200, 0, 0], [0, 200, 0], [0, 0, 200]], np.uint8)
    patches = np.broadcast_to(colours[:, None, None], (3, 2, 2, 3))
    places = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    drawn = map_figure(places, patches, "map", "Three codes", ("x", "y"))
    sheet = np.asarray(Image.open(io.BytesIO(drawn.drawing.png)))[..., :3]
    middles = []
    for colour in colours:
        found = np.argwhere((sheet == colour).all(axis=2))
        assert len(found) > 1000
        middles.append(found.mean(axis=0))
    assert middles[1][1] > middles[0][1]  # to the right
    assert middles[2][0] < middles[0][0]  # above
