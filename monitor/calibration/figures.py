"""Figures of a bank on data its probes were not fitted on; they stand in ``bank.json``, explained in the README."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
_BINS = 10


def emotion_figures(scores: Floats, probability: Floats, emotion: NDArray[np.int64]) -> dict[str, float]:
    """How well emotion probes tell texts apart, and how well their probabilities are calibrated.

    Where each emotion is rare the base rate alone has a small calibration error: the Brier skill says what the
    probabilities know beyond it (1 all, 0 nothing; Brier 1950).

    Args:
        scores: Standardised scores of held-out texts, [N, E].
        probability: Probabilities of the same, neither fitted nor calibrated on them, [N, E].
        emotion: Index of each text's emotion; E and above: none, [N].
    """
    truth = emotion[:, None] == np.arange(scores.shape[1])
    aurocs = [_auroc(column[~held], column[held]) for column, held in zip(scores.T, truth.T, strict=True)]
    errors = [_calibration_error(given, held) for given, held in zip(probability.T, truth.T, strict=True)]
    return {
        "emotion_macro_auroc": float(np.mean(aurocs)),
        "emotion_ece": float(np.mean(errors)),
        "emotion_brier_skill": 1 - float(((probability - truth) ** 2).mean() / truth.var(axis=0).mean()),
    }


def excess_figures(
    over: Floats, twin: Floats, strength: NDArray[np.int64], lexical: NDArray[np.bool_]
) -> dict[str, float]:
    """How well the over-index tells excessive replies from warranted ones to the same users, beside the text twin.

    Args:
        over: Over-index of the neutral, warranted and excessive reply to each held-out user turn, [G, 3].
        twin: Scores of the same by the text twin, each way of reading it, [ways, G, 3]; the best one counts.
        strength: Strength of the user's affect, [G].
        lexical: Whether the excess uses emotion words, [G].

    Returns:
        The figures; one that compares with a group the grid lacks is left out.
    """
    found = over[:, 2] > np.quantile(over[:, :2], 0.99)
    figures = {
        "excess_auroc": _auroc(over[:, 1], over[:, 2]),
        "excess_auroc_twin": max(_auroc(way[:, 1], way[:, 2]) for way in twin),
        "excess_found_at_1_percent": float(found.mean()),
    }
    if not lexical.all():
        figures["excess_auroc_without_emotion_words"] = _auroc(over[~lexical, 1], over[~lexical, 2])
    if strength.min() == 0 < strength.max():
        upset, plain = over[strength == strength.max()], over[strength == 0]
        figures["user_strength_alone_auroc"] = _auroc(plain[:, 0], upset[:, 0])
    return figures


def _auroc(negative: Floats, positive: Floats) -> float:
    """Probability that a positive exceeds a negative, ties counted half (Mann & Whitney 1947)."""
    ordered = np.sort(negative)
    below = np.searchsorted(ordered, positive, side="left") + np.searchsorted(ordered, positive, side="right")
    return float(below.mean() / (2 * len(negative)))


def _calibration_error(probability: Floats, truth: NDArray[np.bool_]) -> float:
    """Mean distance of predicted and observed frequency over ten bins, weighted by their size (Guo et al. 2017)."""
    bins = np.minimum((probability * _BINS).astype(int), _BINS - 1)
    gaps = [
        abs(probability[bins == chosen].mean() - truth[bins == chosen].mean()) * (bins == chosen).mean()
        for chosen in np.unique(bins)
    ]
    return float(np.sum(gaps))
