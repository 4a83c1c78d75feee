"""Heads that probe frozen features: many classifiers at once, linear or attentive, each its own.

Linear probing: BEiT v2, section 3.2 (the published code has none for v2). Attentive probing: one
learned query that pools the patches, as in the probes of V-JEPA, CAPI and efficient probing.

The classifiers of a grid read the same features and share nothing else, so a whole grid of learning
rates is trained in one pass. Every parameter begins with the dimension `R` of the grid.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# A dimension whose deviation is under this share of its largest value holds float32 rounding only.
_CONSTANT = 1e-6
_BATCH_EPS = 1e-6  # of the variance, as in MAE's linear probe
_MOMENTUM = 0.1  # share of a new batch in the running statistics, torch's default


class Standardise(nn.Module):
    """Takes off the mean of each dimension and divides by its deviation, both of a whole set."""

    mean: Tensor
    inverse_std: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("inverse_std", torch.ones(width))

    @torch.no_grad()
    def measure(self, features: Tensor) -> None:
        """Take the statistics of features (n, D); constant dimensions are switched off."""
        std, mean = torch.std_mean(features, dim=0, correction=0)
        constant = std <= _CONSTANT * features.abs().amax(dim=0)
        self.mean.copy_(mean)
        self.inverse_std.copy_(torch.where(constant, 0.0, 1.0 / std))

    def forward(self, features: Tensor) -> Tensor:
        """Standardise features (B, D)."""
        return (features - self.mean) * self.inverse_std


class BatchStandardise(nn.Module):
    """Batch normalisation without scale and shift: statistics of the batch, running ones in eval.

    As the linear probes of MAE and its kin have it. A batch of one feature, which has no deviation,
    takes the running statistics in training too.
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
            features,
            self.mean,
            self.variance,
            training=by_batch,
            momentum=_MOMENTUM,
            eps=_BATCH_EPS,
        )


class LinearProbes(nn.Module):
    """`R` linear classifiers of the same features, after one norm that all of them share.

    They start at zero: logistic regression is convex, so this loses nothing and needs no random
    numbers.
    """

    def __init__(
        self, num_probes: int, width: int, num_classes: int, norm: nn.Module | None = None
    ) -> None:
        """Build them; ``norm`` maps (B, D) to (B, D) and has no parameters, None leaves it out."""
        super().__init__()
        _check_counts(num_probes=num_probes, width=width, num_classes=num_classes)
        self.norm = nn.Identity() if norm is None else norm
        self.weight = nn.Parameter(torch.zeros(num_probes, num_classes, width))  # (R, Y, D)
        self.bias = nn.Parameter(torch.zeros(num_probes, num_classes))  # (R, Y)

    def forward(self, features: Tensor) -> Tensor:
        """Give the logits of every probe.

        features: (B, D)
        Returns: (R, B, Y) logits
        """
        R, Y, D = self.weight.shape
        B = len(features)
        logits = F.linear(self.norm(features), self.weight.view(R * Y, D), self.bias.view(R * Y))
        return logits.view(B, R, Y).transpose(0, 1)  # (R, B, Y)


class AttentiveProbes(nn.Module):
    """`R` classifiers that learn where to look: a query of `h` heads attends to the patches.

    Tokens are normalised each by itself (LayerNorm without scale and shift). Every head weighs the
    patches by a softmax of query · token / sqrt(D) and takes its D/h channels of a value projection
    of the weighted mean; a linear layer reads all heads. A key projection would only turn the
    query, and value bias or output projection only the linear layer: the functions are those of
    multi-head cross-attention from one learned token, without their cost.

    It starts as the linear probe of the mean patch: queries and classifier at zero, values the
    identity. No random numbers are needed.
    """

    def __init__(self, num_probes: int, width: int, num_classes: int, num_heads: int) -> None:
        super().__init__()
        _check_counts(
            num_probes=num_probes, width=width, num_classes=num_classes, num_heads=num_heads
        )
        if width % num_heads:
            raise ValueError(f"width {width} is not a multiple of num_heads {num_heads}")
        R, D, h = num_probes, width, num_heads
        self.query = nn.Parameter(torch.zeros(R, h, D))
        values = torch.eye(D).view(1, h, D // h, D).repeat(R, 1, 1, 1)
        self.value = nn.Parameter(values)  # (R, h, D/h, D)
        self.weight = nn.Parameter(torch.zeros(R, num_classes, D))  # (R, Y, D)
        self.bias = nn.Parameter(torch.zeros(R, num_classes))  # (R, Y)

    def forward(self, tokens: Tensor) -> Tensor:
        """Give the logits of every probe.

        tokens: (B, N, D) of the patches
        Returns: (R, B, Y) logits
        """
        R, h, D = self.query.shape
        B = len(tokens)
        tokens = F.layer_norm(tokens, (D,))
        scores = self.query.view(R * h, D) @ tokens.transpose(1, 2)  # (B, R*h, N)
        attention = (scores * D**-0.5).softmax(dim=2)
        looked_at = (attention @ tokens).view(B, R, h, D)
        values = torch.einsum("brhd,rhcd->rbhc", looked_at, self.value)  # (R, B, h, D/h)
        return torch.baddbmm(self.bias[:, None], values.reshape(R, B, D), self.weight.mT)


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")
