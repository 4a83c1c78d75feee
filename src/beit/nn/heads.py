"""Linear probes: linear classifiers on the same frozen features, one for each learning rate.

All `R` probes read the same features and each has its own weight and bias, so a whole grid of
learning rates is trained in one pass, with one matrix product a step. (Linear probing: BEiT v2,
section 3.3; the published code has none for v2.)
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# A dimension whose deviation is under this share of its largest value holds float32 rounding only.
_CONSTANT = 1e-6


class LinearProbes(nn.Module):
    """Standardisation by stored statistics, then `R` linear classifiers that all start at zero.

    Logistic regression is convex: a start at zero needs no random numbers and loses nothing.
    """

    mean: Tensor
    inverse_std: Tensor

    def __init__(self, num_rates: int, width: int, num_classes: int) -> None:
        super().__init__()
        for name, value in (
            ("num_rates", num_rates),
            ("width", width),
            ("num_classes", num_classes),
        ):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.weight = nn.Parameter(torch.zeros(num_rates, num_classes, width))  # (R, Y, D)
        self.bias = nn.Parameter(torch.zeros(num_rates, num_classes))  # (R, Y)
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("inverse_std", torch.ones(width))

    @torch.no_grad()
    def standardise_by(self, features: Tensor) -> None:
        """Take the mean and deviation of each dimension from `features` (n, D), the training part.

        What a batch normalisation without scale and shift does, with the statistics of the whole
        part instead of a batch's. Constant dimensions are switched off.
        """
        std, mean = torch.std_mean(features, dim=0, correction=0)
        constant = std <= _CONSTANT * features.abs().amax(dim=0)
        self.mean.copy_(mean)
        self.inverse_std.copy_(torch.where(constant, 0.0, 1.0 / std))

    def forward(self, features: Tensor) -> Tensor:
        """Give the logits of every probe.

        features: (B, D)
        Returns: (R, B, Y) logits
        """
        R, Y, D = self.weight.shape
        B = features.shape[0]
        standardised = (features - self.mean) * self.inverse_std  # (B, D)
        logits = F.linear(standardised, self.weight.view(R * Y, D), self.bias.view(R * Y))
        return logits.view(B, R, Y).transpose(0, 1)  # (R, B, Y)
