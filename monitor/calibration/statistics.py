"""The statistics figures are made of: AUROC, calibration error, and bootstrap intervals over clusters."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

DRAWS = 1000
"""Bootstrap samples of an interval."""
_BINS = 10
_CHUNK = 125


class Figure(NamedTuple):
    """A figure with its 95 % bootstrap interval; NaN where it is not defined."""

    value: float
    low: float
    high: float


def auroc(negative: Floats, positive: Floats) -> float:
    """Probability that a positive exceeds a negative, ties counted half (Mann & Whitney 1947); NaN without either."""
    if not len(negative) or not len(positive):
        return float("nan")
    ordered = np.sort(negative)
    below = np.searchsorted(ordered, positive, side="left") + np.searchsorted(ordered, positive, side="right")
    return float(below.mean() / (2 * len(negative)))


def weighted_auroc(scores: Floats, positive: Mask, weights: Floats) -> Floats:
    """AUROC of weighted samples, for many sets of weights at once.

    Args:
        scores: [N].
        positive: [N].
        weights: [B, N]; zeros leave a sample out.

    Returns:
        [B]; NaN where a set has no positive or no negative.
    """
    order = np.argsort(scores, kind="stable")
    ordered, truth, weights = scores[order], positive[order], weights[:, order]
    summed = np.concatenate([np.zeros((len(weights), 1)), np.cumsum(weights * ~truth, axis=1)], axis=1)
    first = np.searchsorted(ordered, ordered[truth], side="left")
    last = np.searchsorted(ordered, ordered[truth], side="right")
    wins = (weights[:, truth] * (summed[:, first] + summed[:, last])).sum(axis=1) / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        area: Floats = wins / (weights[:, truth].sum(axis=1) * summed[:, -1])
    return area


def cluster_weights(clusters: NDArray[np.generic], seed: int = 0, draws: int = DRAWS) -> Floats:
    """Bootstrap weights, [1 + draws, N]: whole clusters are drawn with replacement; row 0 is the sample itself."""
    names, index = np.unique(clusters, return_inverse=True)
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=draws)
    return np.concatenate([np.ones((1, len(index))), counts[:, index]])


def figure_of(draws: Floats) -> Figure:
    """A figure from its value on the sample (first) and on bootstrap samples, [1 + draws]."""
    value = float(draws[0])
    held = draws[1:][np.isfinite(draws[1:])]
    if not np.isfinite(value) or not len(held):
        return Figure(value, float("nan"), float("nan"))
    low, high = np.quantile(held, [0.025, 0.975])
    return Figure(value, float(low), float(high))


def mean_figure(values: Floats, weights: Floats | None = None) -> Figure:
    """Mean of values with its interval.

    Args:
        values: [N].
        weights: Bootstrap weights, [1 + draws, N], the first for the sample itself; by default each value is drawn.
    """
    weights = cluster_weights(np.arange(len(values))) if weights is None else weights
    with np.errstate(invalid="ignore"):
        return figure_of(weights @ values / weights.sum(axis=1))


def auroc_figure(scores: Floats, positive: Mask, clusters: NDArray[np.generic], chosen: Mask | None = None) -> Figure:
    """AUROC of some samples with its interval over clusters."""
    chosen = np.ones(len(scores), bool) if chosen is None else chosen
    if not chosen.any():
        return Figure(*[float("nan")] * 3)
    return figure_of(weighted_auroc(scores[chosen], positive[chosen], cluster_weights(clusters[chosen])))


def macro_auroc_draws(scores: Floats, truth: Mask, weights: Floats) -> Floats:
    """Mean over classes of each class's AUROC against all others, [B].

    Args:
        scores: [N, E].
        truth: [N, E].
        weights: [B, N].
    """
    held = [each for each in range(truth.shape[1]) if 0 < truth[:, each].sum() < len(truth)]
    chunks = [weights[begin : begin + _CHUNK] for begin in range(0, len(weights), _CHUNK)]
    return np.concatenate(
        [np.nanmean([weighted_auroc(scores[:, e], truth[:, e], chunk) for e in held], axis=0) for chunk in chunks]
    )


def share_figure(hits: Mask, clusters: NDArray[np.generic]) -> Figure:
    """Share of samples that are hit, with its interval over clusters.

    Where none or all are hit, so it is in all resamples: the other end is then that of Clopper & Pearson (1934) over
    clusters.
    """
    if not len(hits):
        return Figure(*[float("nan")] * 3)
    least = float(0.025 ** (1 / len(np.unique(clusters))))
    if not hits.any():
        return Figure(0.0, 0.0, 1 - least)
    if hits.all():
        return Figure(1.0, least, 1.0)
    weights = cluster_weights(clusters)
    return figure_of(weights @ hits / np.maximum(weights.sum(axis=1), 1e-12))


def calibration_errors(probability: Floats, truth: Mask, weights: Floats) -> Floats:
    """Mean distance of predicted and observed frequency over ten bins, weighted by their size (Guo et al. 2017), [B].

    Args:
        probability: [N].
        truth: [N].
        weights: [B, N].
    """
    member = np.minimum((probability * _BINS).astype(int), _BINS - 1)[:, None] == np.arange(_BINS)
    gaps = weights @ (member * (probability - truth)[:, None])
    errors: Floats = np.abs(gaps).sum(axis=1) / weights.sum(axis=1)
    return errors


class Bin(NamedTuple):
    """Samples whose probability lies in one of ten bins: their mean, what came true, and their share of all."""

    predicted: float
    observed: float
    share: float


def reliability(probability: Floats, truth: Mask) -> list[Bin]:
    """Bins of a reliability curve, empty ones left out."""
    bins = np.minimum((probability * _BINS).astype(int), _BINS - 1)
    held = [bins == chosen for chosen in np.unique(bins)]
    return [Bin(float(probability[b].mean()), float(truth[b].mean()), float(b.mean())) for b in held]
