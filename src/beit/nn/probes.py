"""Heads that probe frozen features: many independent classifiers at once, linear or attentive.

Linear probing: BEiT v2, section 3.2 (the published code has none for v2). Attentive probing: one
learned query that pools the patches, as in the probes of V-JEPA, CAPI and efficient probing.

The classifiers of a grid read the same features and share nothing else, so a whole grid of learning
rates is trained in one pass. `R`, the size of the grid, is the first dimension of every parameter.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Dimensions whose deviation is below this share of their largest value are only float32 rounding.
_CONSTANT = 1e-6
_BATCH_EPS = 1e-6  # of the variance, as in MAE's linear probe
_MOMENTUM = 0.1  # share of a new batch in the running statistics, torch's default


class Standardise(nn.Module):
    """Subtracts the mean of each dimension and divides by its deviation, both of a whole set."""

    mean: Tensor
    inverse_std: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("inverse_std", torch.ones(width))

    @torch.no_grad()
    def measure(self, features: Tensor) -> None:
        """Compute the statistics of features (n, D); constant dimensions become zero."""
        std, mean = torch.std_mean(features, dim=0, correction=0)
        constant = std <= _CONSTANT * features.abs().amax(dim=0)
        self.mean.copy_(mean)
        self.inverse_std.copy_(torch.where(constant, 0.0, 1.0 / std))

    def forward(self, features: Tensor) -> Tensor:
        """Standardise features (B, D)."""
        return (features - self.mean) * self.inverse_std


class BatchStandardise(nn.Module):
    """Batch normalisation without scale and shift, as in MAE's linear probe.

    A batch of one feature has no deviation; it takes the running statistics in train mode too.
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("variance", torch.ones(width))

    def forward(self, features: Tensor) -> Tensor:
        """Standardise features (B, D)."""
        by_batch = self.training and len(features) > 1
        return F.batch_norm(
            features, self.mean, self.variance, None, None, by_batch, _MOMENTUM, _BATCH_EPS
        )


class LinearProbes(nn.Module):
    """`R` linear classifiers on the same features, after one shared norm.

    Weights are initialised to zero: logistic regression is convex and needs no random numbers.
    """

    def __init__(
        self, num_probes: int, width: int, num_classes: int, norm: nn.Module | None = None
    ) -> None:
        """Build them; ``norm`` maps (B, D) to (B, D) and has no parameters; None for no norm."""
        super().__init__()
        _check_counts(num_probes=num_probes, width=width, num_classes=num_classes)
        self.norm = nn.Identity() if norm is None else norm
        self.weight = nn.Parameter(torch.zeros(num_probes, num_classes, width))  # (R, Y, D)
        self.bias = nn.Parameter(torch.zeros(num_probes, num_classes))  # (R, Y)

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits (R, B, Y) of every probe for features (B, D)."""
        (R, Y, D), B = self.weight.shape, len(features)
        logits = F.linear(self.norm(features), self.weight.view(R * Y, D), self.bias.view(R * Y))
        return logits.view(B, R, Y).transpose(0, 1)  # (R, B, Y)


class AttentiveProbes(nn.Module):
    """`R` attention-pooling classifiers: a learned query of `h` heads attends to the patches.

    Each token passes a LayerNorm without scale and shift. Each head weights the patches by a
    softmax of query · token / sqrt(D), and projects the weighted mean to its D/h value channels. A
    linear layer reads all heads. A key projection would only transform the query, and a value bias
    or output projection only the linear layer, so they are left out: the functions are those of
    multi-head cross-attention from one learned token, at less cost. Queries and classifier are
    initialised to zero, values to the identity: at first the linear probe of the mean patch.
    """

    def __init__(self, num_probes: int, width: int, num_classes: int, num_heads: int) -> None:
        super().__init__()
        R, Y, D, h = num_probes, num_classes, width, num_heads
        _check_counts(num_probes=R, width=D, num_classes=Y, num_heads=h)
        if D % h:
            raise ValueError(f"width {D} is not a multiple of num_heads {h}")
        self.query = nn.Parameter(torch.zeros(R, h, D))
        self.value = nn.Parameter(torch.eye(D).view(1, h, D // h, D).repeat(R, 1, 1, 1))
        self.weight = nn.Parameter(torch.zeros(R, Y, D))
        self.bias = nn.Parameter(torch.zeros(R, Y))

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits (R, B, Y) of every probe for the tokens (B, N, D) of patches."""
        (R, h, D), B = self.query.shape, len(tokens)
        tokens = F.layer_norm(tokens, (D,))
        scores = self.query.view(R * h, D) @ tokens.transpose(1, 2)  # (B, R*h, N)
        attention = (scores * D**-0.5).softmax(dim=2)
        pooled = (attention @ tokens).view(B, R, h, D)
        values = torch.einsum("brhd,rhcd->rbhc", pooled, self.value)  # (R, B, h, D/h)
        return torch.baddbmm(self.bias[:, None], values.reshape(R, B, D), self.weight.mT)


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")
