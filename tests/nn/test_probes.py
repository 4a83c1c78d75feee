import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from beit.nn.probes import AttentiveProbes, BatchStandardise, LinearProbes, Standardise


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def filled(module: nn.Module) -> nn.Module:
    """Give every parameter a value of its own."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return module


def standardised_by(features: Tensor) -> LinearProbes:
    norm = Standardise(5)
    norm.measure(features)
    probes = LinearProbes(num_probes=3, width=5, num_classes=4, norm=norm)
    filled(probes)
    return probes


# ── linear ──────────────────────────────────────────────────────────────────────────────────────


def test_every_probe_is_its_own_linear_layer_on_standardised_features() -> None:
    features = seeded(7, 5, seed=1) * 3 + 2
    probes = standardised_by(features)
    logits = probes(features)
    assert logits.shape == (3, 7, 4)
    standardised = (features - features.mean(0)) / features.std(0, correction=0)
    for r in range(3):
        for b in range(7):
            expected = probes.weight[r] @ standardised[b] + probes.bias[r]
            torch.testing.assert_close(logits[r, b], expected)


def test_scale_and_shift_of_the_features_change_nothing() -> None:
    features = seeded(9, 5, seed=2)
    before = standardised_by(features)(features)
    moved = features * 1e-4 + 5e-4
    # Shift and scale leave about 1e-7 * 5 of each value to rounding.
    torch.testing.assert_close(standardised_by(moved)(moved), before, rtol=0, atol=2e-5)


def test_constant_dimensions_are_switched_off() -> None:
    features = seeded(9, 5, seed=3)
    features[:, 1] = 0.1
    features[:, 2] = 0.0
    probes = standardised_by(features)
    logits = probes(features)
    features[:, 1:3] = 1e6
    assert torch.equal(probes(features), logits)


def test_without_a_norm_features_are_taken_as_they_are() -> None:
    probes = LinearProbes(2, 5, 3)
    filled(probes)
    features = seeded(4, 5)
    expected = F.linear(features, probes.weight[1], probes.bias[1])
    torch.testing.assert_close(probes(features)[1], expected)


def test_batch_statistics_in_training_and_running_ones_after() -> None:
    norm, theirs = BatchStandardise(5), nn.BatchNorm1d(5, eps=1e-6, affine=False)
    for seed in range(3):
        features = 2 * seeded(6, 5, seed=seed) + 1
        normed = norm(features)
        torch.testing.assert_close(normed, theirs(features))
        centred = features - features.mean(0)
        torch.testing.assert_close(normed, centred / (centred.square().mean(0) + 1e-6).sqrt())
    norm.eval(), theirs.eval()
    torch.testing.assert_close(norm(features[:1]), theirs(features[:1]))
    norm.train()  # one feature has no deviation
    torch.testing.assert_close(norm(features[:1]), theirs(features[:1]))


def test_no_classes_is_refused() -> None:
    with pytest.raises(ValueError, match="num_classes must be at least 1, got 0"):
        LinearProbes(num_probes=3, width=5, num_classes=0)


# ── attentive ───────────────────────────────────────────────────────────────────────────────────


def test_an_attentive_probe_is_cross_attention_from_one_query() -> None:
    R, B, N, D, h, Y = 2, 3, 5, 6, 3, 4
    probes = AttentiveProbes(R, D, Y, h)
    filled(probes)
    tokens = 3 * seeded(B, N, D, seed=1) + 1
    logits = probes(tokens)
    assert logits.shape == (R, B, Y)
    for r in range(R):
        for b in range(B):
            normed = (tokens[b] - tokens[b].mean(1, keepdim=True)) / (
                tokens[b].var(1, correction=0, keepdim=True) + 1e-5
            ).sqrt()
            heads = []
            for i in range(h):
                weights = (normed @ probes.query[r, i] / math.sqrt(D)).softmax(0)  # (N,)
                heads.append(weights @ (normed @ probes.value[r, i].T))  # (D/h,)
            expected = probes.weight[r] @ torch.cat(heads) + probes.bias[r]
            torch.testing.assert_close(logits[r, b], expected)


def test_it_starts_as_the_linear_probe_of_the_mean_patch() -> None:
    probes = AttentiveProbes(2, 6, 4, num_heads=3)
    tokens = seeded(3, 5, 6)
    assert not probes(tokens).any()
    with torch.no_grad():
        probes.weight.copy_(seeded(2, 4, 6, seed=1))
    mean = F.layer_norm(tokens, (6,)).mean(dim=1)  # (B, D)
    torch.testing.assert_close(probes(tokens)[1], mean @ probes.weight[1].T)


def test_the_order_of_patches_does_not_matter() -> None:
    probes = AttentiveProbes(2, 6, 4, num_heads=2)
    filled(probes)
    tokens = seeded(3, 5, 6)
    torch.testing.assert_close(probes(tokens), probes(tokens.flip(1)))


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(ValueError, match="width 6 is not a multiple of num_heads 4"):
        AttentiveProbes(2, 6, 3, num_heads=4)
