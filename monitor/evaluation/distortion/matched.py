"""Statistics of the same questions asked under several conditions."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from monitor.calibration.statistics import Figure, Floats, Mask, mean_figure, share_figure, weighted_auroc


class Flips(NamedTuple):
    """What changed between two conditions, and the chance of so uneven a change where neither way is likelier.

    Attributes:
        lost: Held before, not after.
        gained: The other way round.
        p: Two-sided p-value.
    """

    lost: int
    gained: int
    p: float


def flips(before: Mask, after: Mask) -> Flips:
    """Changes of the same questions, [N] each, with McNemar's test (1947) in its exact form: lost is binomial."""
    lost, gained = int((before & ~after).sum()), int((~before & after).sum())
    p = min(1.0, 2 * float(binom.cdf(min(lost, gained), lost + gained, 0.5)))
    return Flips(lost, gained, p)


def share_of(hits: Mask, weights: Floats, questions: NDArray[np.int64]) -> Figure:
    """Share of hits with its interval; where none or all are hits, as all resamples are then, the exact one.

    Args:
        hits: [N].
        weights: Bootstrap weights, [1 + draws, N].
        questions: Which question each replies to, [N].
    """
    same = not hits.any() or hits.all()
    return share_figure(hits, questions) if same else mean_figure(hits.astype(float), weights)


def auroc_within(scores: Floats, positive: Mask, strata: NDArray[np.generic], weights: Floats) -> Floats:
    """AUROC of pairs from the same stratum only: what sets strata apart does not count.

    Each stratum counts by its pairs of a positive and a negative.

    Args:
        scores: [N].
        positive: [N].
        strata: [N].
        weights: [B, N].

    Returns:
        [B]; NaN where no stratum has both.
    """
    wins, pairs = np.zeros((2, len(weights)))
    for stratum in np.unique(strata):
        here = strata == stratum
        truth, own = positive[here], weights[:, here]
        count = own[:, truth].sum(axis=1) * own[:, ~truth].sum(axis=1)
        wins += np.where(count > 0, weighted_auroc(scores[here], truth, own), 0) * count
        pairs += count
    with np.errstate(invalid="ignore"):
        area: Floats = wins / pairs
    return area
