"""The reference: what approved turns show, and from it the warranted level of A and the ranks of its excess."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from monitor.assess.overindex import STANCES, Warranted, target_values
from monitor.probes.bank import Columns, Stance

Floats = NDArray[np.float64]

QUANTILE = 0.95
"""Level of the warranted quantile: a turn at it is as affective as the reference's top twentieth for like users."""
_FOLDS = 5
_NORMAL_95 = 1.6448536
_LEAST_SPREAD = 0.05
"""In standard deviations of the reference: no unit of the over-index is smaller."""


class ReferenceTurns(NamedTuple):
    """Turns that are as they should be.

    Attributes:
        user: Mean user scores, not standardised, [N, C].
        assistant: Mean assistant scores, not standardised, [N, C].
        tokens: Assistant tokens, [N].
        stance: Index of the last stance that allows each turn, [N].
    """

    user: Floats
    assistant: Floats
    tokens: NDArray[np.int64]
    stance: NDArray[np.int64]


class Reference(NamedTuple):
    """What a bank keeps of its reference turns; shapes as in ``Tensors``."""

    turn_means: Floats
    turn_scales: Floats
    reference_user: Floats
    reference_assistant: Floats
    reference_tokens: NDArray[np.int32]
    reference_stance: NDArray[np.int32]
    warranted: Floats
    spread: Floats
    residuals: Floats


def fit_reference(turns: ReferenceTurns, columns: Columns) -> Reference:
    """Standardises reference turns and fits the warranted level of every target for every stance.

    Residuals come from folds that did not fit the quantile they are ranked against (cross-conformal, Vovk 2015).
    """
    scores = np.stack([turns.user, turns.assistant])
    means, scales = scores.mean(axis=1), np.maximum(scores.std(axis=1), 1e-6)
    user, assistant = (scores - means[:, None]) / scales[:, None]
    values, given = target_values(user, assistant, columns)
    most = int((turns.stance >= 0).sum())
    shape = (len(STANCES), values.shape[1])
    warranted, spread = np.zeros((*shape, 3)), np.ones((*shape, 2))
    residuals = np.full((*shape, most), np.nan)
    for row in range(len(STANCES)):
        allowed = turns.stance >= row
        count = int(allowed.sum())
        for target in range(values.shape[1]):
            at = (given[allowed, target], turns.tokens[allowed], values[allowed, target])
            line = _fit_line(*at)
            warranted[row, target], spread[row, target] = line.level[0], line.spread[0]
            residuals[row, target, :count] = np.sort(_held_out(line, *at))
    return Reference(
        means, scales, user, assistant, turns.tokens.astype(np.int32), turns.stance.astype(np.int32),
        warranted, spread, residuals,
    )  # fmt: skip


def stance_turns(stance: NDArray[np.int64]) -> dict[Stance, int]:
    """How many reference turns each stance allows."""
    return {name: int((stance >= row).sum()) for row, name in enumerate(STANCES)}


def _held_out(line: Warranted, given: Floats, tokens: NDArray[np.int64], values: Floats) -> Floats:
    """Over-index of each turn by a level the turns of its fold did not fit, in the unit all turns gave."""
    folds = np.arange(len(values)) % _FOLDS
    found = np.empty(len(values))
    for fold in range(_FOLDS):
        held = folds == fold
        rest = _fit_line(given[~held], tokens[~held], values[~held])._replace(spread=line.spread)
        found[held] = rest.excess(values[held, None], given[held, None], tokens[held, None])[1][:, 0]
    return found


def _fit_line(given: Floats, tokens: NDArray[np.int64], values: Floats) -> Warranted:
    """Level and spread of one target.

    Neither slope of the level is negative: no user's affect forbids warmth, and short replies scatter more. The spread
    is the distance of the upper quantile from the median, which takes the upper line's slope on U.
    """
    if not len(values):
        return Warranted(np.zeros((1, 3)), np.array([[1.0, 0.0]]))
    brevity = tokens**-0.5
    ones = np.ones(len(values))
    upper = quantile_line(np.column_stack([ones, given, brevity]), values, QUANTILE, rising=(1, 2))
    middle = quantile_line(np.column_stack([ones, brevity]), values - upper[1] * given, 0.5)
    apart = np.array([upper[0] - middle[0], upper[2] - middle[1]]) / _NORMAL_95
    least = max(_LEAST_SPREAD, 0.25 * float(np.mean(apart[0] + apart[1] * brevity)))
    # Linear in brevity, so positive between both ends: endless replies (0) and a single token (1).
    ends = np.maximum([apart[0], apart.sum()], least)
    return Warranted(upper[None], np.array([[ends[0], ends[1] - ends[0]]]))


def quantile_line(features: Floats, values: Floats, level: float, rising: tuple[int, ...] = ()) -> Floats:
    """Linear quantile regression (Koenker & Bassett 1978), by its dual linear programme.

    The dual has one constraint a feature however many rows there are, and is some ten times faster than the primal.

    Args:
        features: [N, K], the intercept among them.
        values: [N].
        level: The quantile, in (0, 1).
        rising: Features whose coefficient must not be negative.

    Returns:
        Coefficients, [K].
    """
    from scipy.optimize import linprog

    free = [feature for feature in range(features.shape[1]) if feature not in rising]
    found = linprog(
        -values,
        A_eq=features[:, free].T,
        b_eq=np.zeros(len(free)),
        A_ub=features[:, list(rising)].T if rising else None,
        b_ub=np.zeros(len(rising)) if rising else None,
        bounds=(level - 1, level),
        method="highs",
    )
    line = np.zeros(features.shape[1])
    line[free] = -found.eqlin.marginals
    if rising:
        line[list(rising)] = -found.ineqlin.marginals
    return line
