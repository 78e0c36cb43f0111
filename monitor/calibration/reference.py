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
        group: Which traffic each turn is of, [N]: what sets one apart from another is not put down to users.
    """

    user: Floats
    assistant: Floats
    tokens: NDArray[np.int64]
    stance: NDArray[np.int64]
    group: NDArray[np.int64]


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
            at = _Target(given[allowed, target], values[allowed, target], turns.tokens[allowed], turns.group[allowed])
            line = _fit_line(at)
            warranted[row, target], spread[row, target] = line.level[0], line.spread[0]
            residuals[row, target, :count] = np.sort(_held_out(line, at))
    return Reference(
        means, scales, user, assistant, turns.tokens.astype(np.int32), turns.stance.astype(np.int32),
        warranted, spread, residuals,
    )  # fmt: skip


def stance_turns(stance: NDArray[np.int64]) -> dict[Stance, int]:
    """How many reference turns each stance allows."""
    return {name: int((stance >= row).sum()) for row, name in enumerate(STANCES)}


class _Target(NamedTuple):
    """Turns of one stance, by what one target is and is judged by, [N] each."""

    given: Floats
    values: Floats
    tokens: NDArray[np.int64]
    group: NDArray[np.int64]

    def part(self, chosen: NDArray[np.bool_]) -> _Target:
        """Some of the turns."""
        return _Target(self.given[chosen], self.values[chosen], self.tokens[chosen], self.group[chosen])


def _held_out(line: Warranted, turns: _Target) -> Floats:
    """Over-index of each turn by a level the turns of its fold did not fit, in the unit all turns gave."""
    folds = np.arange(len(turns.values)) % _FOLDS
    found = np.empty(len(turns.values))
    for fold in range(_FOLDS):
        held = folds == fold
        rest = _fit_line(turns.part(~held))._replace(spread=line.spread)
        here = turns.part(held)
        found[held] = rest.excess(here.values[:, None], here.given[:, None], here.tokens[:, None])[1][:, 0]
    return found


def _fit_line(turns: _Target) -> Warranted:
    """Level and spread of one target.

    The slope on what it is judged by is that of the mean within each traffic; intercept and slope on brevity are those
    of the upper quantile of what is left, and the spread is its distance from the median. Neither slope is negative:
    no user's affect forbids warmth, and short replies scatter more.
    """
    if not len(turns.values):
        return Warranted(np.zeros((1, 3)), np.array([[1.0, 0.0]]))
    slope = _slope_within(turns)
    rest = turns.values - slope * turns.given
    brevity = turns.tokens**-0.5
    features = np.column_stack([np.ones(len(rest)), brevity])
    upper = quantile_line(features, rest, QUANTILE, rising=(1,))
    apart = (upper - quantile_line(features, rest, 0.5)) / _NORMAL_95
    least = max(_LEAST_SPREAD, 0.25 * float(np.mean(features @ apart)))
    # Linear in brevity, so positive between both ends: endless replies (0) and a single token (1).
    ends = np.maximum([apart[0], apart.sum()], least)
    return Warranted(np.array([[upper[0], slope, upper[1]]]), np.array([[ends[0], ends[1] - ends[0]]]))


def _slope_within(turns: _Target) -> float:
    """Least-squares slope of values on what they are judged by, each traffic about its own mean; never negative."""
    given, values = turns.given.copy(), turns.values.copy()
    for group in np.unique(turns.group):
        here = turns.group == group
        given[here] -= given[here].mean()
        values[here] -= values[here].mean()
    return max(0.0, float(given @ values / max(float(given @ given), 1e-12)))


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
