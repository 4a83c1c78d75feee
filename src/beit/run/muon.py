"""Muon: momentum whose matrix is made orthogonal, for the weight matrices of blocks.

Jordan et al. 2024 (kellerjordan.github.io/posts/muon), with the step size of Liu et al. 2025
(arXiv 2502.16982), which lets it share AdamW's learning rate and weight decay.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW

from beit.run.sharding import like, whole

MOMENTUM = 0.95
ITERATIONS = 5
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of x, x^3 and x^5: a steep slope at 0
UPDATE_SIZE = 0.2  # root mean square of an entry of AdamW's usual update


class Muon(AdamW):
    """Muon for the groups with `orthogonal`, all of matrices; AdamW for the others.

    A matrix W (m, n) with gradient G and momentum B has the step, at learning rate r,

        B <- 0.95 B + 0.05 G;    W <- (1 - r * weight_decay) W
        W <- W - r * 0.2 * sqrt(max(m, n)) * orthogonal(0.95 B + 0.05 G)

    Args:
        dtype: in which the matrices are made orthogonal; bfloat16 is enough
        settings: of AdamW; `step` takes the gradients of Muon's matrices away
    """

    def __init__(
        self, groups: Iterable[dict[str, Any]], dtype: torch.dtype, **settings: Any
    ) -> None:
        super().__init__(groups, **settings)
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update all parameters that have a gradient."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            if group["orthogonal"]:
                self._update(group)
        super().step()  # of the parameters that still have a gradient
        return loss

    def _update(self, group: dict[str, Any]) -> None:
        rate, decay = group["lr"], group["weight_decay"]
        for matrix in group["params"]:
            if matrix.grad is None:
                continue
            state = self.state[matrix]
            if not state:  # AdamW counts the steps of every parameter
                state["step"] = torch.zeros(())
                state["momentum"] = torch.zeros_like(matrix)
            state["step"] += 1
            momentum = state["momentum"].lerp_(matrix.grad, 1 - MOMENTUM)
            update = orthogonal(whole(matrix.grad.lerp(momentum, MOMENTUM).to(self.dtype)))
            size = UPDATE_SIZE * max(matrix.shape) ** 0.5
            matrix.mul_(1 - rate * decay).add_(like(update, matrix), alpha=-rate * size)
            matrix.grad = None


def orthogonal(matrix: Tensor) -> Tensor:
    """Bring the singular values of a matrix (m, n) near 1, within 0.7 to 1.2, unless nearly 0.

    Five Newton-Schulz iterations X <- a X + b (X X^T) X + c (X X^T)^2 X.
    """
    a, b, c = COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    X = matrix.mT if tall else matrix
    X = X / X.norm().clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = X @ X.mT
        X = torch.addmm(X, torch.addmm(gram, gram, gram, beta=b, alpha=c), X, beta=a)
    return X.mT if tall else X
