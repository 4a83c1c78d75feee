"""How near predictions of codes are: the rank of the true code, the cosine of a wrong one to it."""

import torch
from torch import Tensor
from torch.nn import functional as F


def code_ranks(logits: Tensor, codes: Tensor) -> Tensor:
    """Rank the true codes (B, M) among logits (B, M, K): (B, M) int64, 0 for the most probable.

    Half of the codes that are as probable as the true one rank before it.
    """
    true = logits.gather(2, codes[..., None])
    return (logits > true).sum(2) + ((logits == true).sum(2) - 1) // 2


class CodeRanks:
    """Counts predictions by rank, and summarises the counts, for a codebook `vectors` (K, C)."""

    def __init__(self, vectors: Tensor) -> None:
        self.units = F.normalize(vectors.detach().float(), dim=1)

    def count(self, logits: Tensor, codes: Tensor, weights: Tensor | None = None) -> Tensor:
        """Count predictions: (4, K) float32; counts of batches and of processes add up.

        Rows: patches by the rank of their true code; patches by their true code; of those that are
        predicted wrongly, the same, and the sums of the cosines of the predicted to the true code.

        Args:
            logits: (B, M, K)
            codes: (B, M) int64, the true codes
            weights: (B, M) of the patches; None for equal weights
        """
        units, guesses = self.units.to(logits.device), logits.argmax(2)
        kept = torch.ones_like(codes, dtype=torch.float32) if weights is None else weights.float()
        wrong = kept * (guesses != codes)
        cosines = wrong * (units[guesses] * units[codes]).sum(2)
        rows = ((code_ranks(logits, codes), kept), (codes, kept), (codes, wrong), (codes, cosines))
        counts = logits.new_zeros(len(rows), logits.shape[2], dtype=torch.float32)
        for row, (index, amount) in zip(counts, rows, strict=True):
            row.index_add_(0, index.flatten(), amount.flatten())
        return counts

    def figures(self, counts: Tensor) -> dict[str, float]:
        """Summarise counts (4, K).

        Returns: `rank`, the median rank of the true code, from 1; `first5`, the share of patches
            whose true code is among the five most probable; `chance` and `first5_chance`, accuracy
            and first5 of always predicting the most frequent codes; `wrong_cosine`, the mean cosine
            of a wrong code to the true one; `random_cosine`, that of two different codes drawn by
            their frequency
        """
        ranks, codes, wrong, cosines = counts.cpu().double()
        share, units = codes / codes.sum().clamp(min=1), self.units.cpu().double()
        alike = (share.square() * units.square().sum(1)).sum()
        different = (1 - share.square().sum()).clamp(min=1e-9)
        return {
            "chance": float(share.max()),
            "rank": 1.0 + int((ranks.cumsum(0) < ranks.sum() / 2).sum()),
            "first5": float(ranks[:5].sum() / ranks.sum().clamp(min=1)),
            "first5_chance": float(share.sort(descending=True).values[:5].sum()),
            "wrong_cosine": float(cosines.sum() / wrong.sum().clamp(min=1)),
            "random_cosine": float(((share @ units).square().sum() - alike) / different),
        }
