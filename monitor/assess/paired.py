"""Whether scores that were taken twice moved in one direction: an exact test of signs and ranks."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

Floats = NDArray[np.floating[Any]]


def signed_rank_p(differences: Floats) -> float:
    """Two-sided p-value of the signed-rank sum (Wilcoxon 1945), exact with ties too; 1 where there is no difference.

    It holds where noise alone has no direction: given how far pairs moved, each is as likely to have gone up as down.
    All 2^N such flips are counted.

    Args:
        differences: Second score of each pair less the first, [N]; none of them 0.
    """
    # Twice the ranks: those that tie share a mean, which may be a half.
    ranks = np.rint(2 * rankdata(np.abs(differences))).astype(int)
    chances = np.ones(1)
    for rank in ranks.tolist():
        flipped = np.pad(chances, (0, rank))
        flipped[rank:] += chances
        chances = flipped / 2
    risen = int(ranks[differences > 0].sum())
    return min(1.0, 2 * min(float(chances[: risen + 1].sum()), float(chances[risen:].sum())))


def least_p(pairs: int) -> float:
    """The least p-value that so many pairs can have: all move to one side."""
    return min(1.0, 2.0 ** (1 - pairs))
