import pytest
import torch

from beit.nn.heads import LinearProbes


def seeded_probes() -> LinearProbes:
    probes = LinearProbes(num_rates=3, width=5, num_classes=4)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        probes.weight.copy_(torch.randn(3, 4, 5, generator=generator))
        probes.bias.copy_(torch.randn(3, 4, generator=generator))
    return probes


def test_every_probe_is_its_own_linear_layer_on_standardised_features() -> None:
    probes = seeded_probes()
    features = torch.randn(7, 5, generator=torch.Generator().manual_seed(1)) * 3 + 2
    probes.standardise_by(features)
    logits = probes(features)
    assert logits.shape == (3, 7, 4)
    standardised = (features - features.mean(0)) / features.std(0, correction=0)
    for r in range(3):
        for b in range(7):
            expected = probes.weight[r] @ standardised[b] + probes.bias[r]
            torch.testing.assert_close(logits[r, b], expected)


def test_scale_and_shift_of_the_features_change_nothing() -> None:
    probes = seeded_probes()
    features = torch.randn(9, 5, generator=torch.Generator().manual_seed(2))
    probes.standardise_by(features)
    before = probes(features)
    probes.standardise_by(features * 1e-4 + 5e-4)
    # Shift and scale leave about 1e-7 * 5 of each value to rounding.
    torch.testing.assert_close(probes(features * 1e-4 + 5e-4), before, rtol=0, atol=2e-5)


def test_constant_dimensions_are_switched_off() -> None:
    probes = seeded_probes()
    features = torch.randn(9, 5, generator=torch.Generator().manual_seed(3))
    features[:, 1] = 0.1
    features[:, 2] = 0.0
    probes.standardise_by(features)
    logits = probes(features)
    features[:, 1:3] = 1e6
    assert torch.equal(probes(features), logits)


def test_no_classes_is_refused() -> None:
    with pytest.raises(ValueError, match="num_classes must be at least 1, got 0"):
        LinearProbes(num_rates=3, width=5, num_classes=0)
