"""The text twin: the same labels from token ids alone, as weights that average over tokens like a probe's scores."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int32]

_MIN_TEXTS = 2
_PRIOR = 0.5


def vocabulary(texts: Sequence[Ids]) -> Ids:
    """Token ids that occur in at least two texts, ascending."""
    seen, counts = np.unique(np.concatenate([np.unique(ids) for ids in texts]), return_counts=True)
    return seen[counts >= _MIN_TEXTS].astype(np.int32)


def count_tokens(texts: Sequence[Ids], tokens: Ids) -> NDArray[np.float64]:
    """How often each text holds each token, [texts, tokens]."""
    counts = np.zeros((len(texts), len(tokens)))
    for row, ids in enumerate(texts):
        known = ids[np.isin(ids, tokens)]
        np.add.at(counts[row], np.searchsorted(tokens, known), 1)
    return counts


def log_odds(
    counts: NDArray[np.float64], positive: NDArray[np.bool_], negative: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Naive Bayes log odds of every token between two groups of texts, [tokens] (multinomial, Laplace-smoothed)."""
    ratios = []
    for chosen in (positive, negative):
        mass = counts[chosen].sum(axis=0) + _PRIOR
        ratios.append(np.log(mass / mass.sum()))
    odds: NDArray[np.float64] = ratios[0] - ratios[1]
    return odds
