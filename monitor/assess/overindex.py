"""Over-index: how far a turn's assistant affect exceeds what the reference shows for like users, stance and length.

The warranted level is an upper quantile of A, linear in the affect that the user's tokens lead to expect and in
tokens ** -1/2, for means over few tokens scatter more (quantile regression, Koenker & Bassett 1978). The excess is
ranked among reference turns that did not fit the quantile (conformalised quantile regression, Romano et al. 2019). Its
p-value is the 95 % upper bound of the share of like turns that lie as far out (Vovk 2012, conditional validity; Clopper
& Pearson 1934): with 95 % confidence a rule that alarms at rate alpha is wrong on at most alpha of exchangeable turns,
whatever the luck of the reference.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv, expit

from monitor.probes.bank import Bank, Columns, Stance
from monitor.turns.tracker import TurnStats

Floats = NDArray[np.float32]

STANCES = tuple(Stance)
AFFECT, TWIN = "affect", "twin"


class Excess(NamedTuple):
    """One target's excess in one turn.

    Attributes:
        value: Assistant score, in reference standard deviations.
        warranted: Upper quantile the reference shows for this user score and length.
        over_index: (value - warranted) / scale.
        p_value: Certified share of like turns as far out; two-sided in a crisis, where coldness is a fault too.
    """

    value: float
    warranted: float
    over_index: float
    p_value: float


class TurnAssessment(NamedTuple):
    """What one turn showed, in numbers.

    Attributes:
        user_affect: U, in reference standard deviations.
        affect: Excess of the assistant's affect.
        twin: The same by the text twin.
        families: Excess of each family.
        emotions: Probability of each emotion on the assistant's tokens.
        user_emotions: The same on the user's tokens.
        user_families: Family scores on the user's tokens, in reference standard deviations.
        prepared: Assistant affect at the token that opens its turn; NaN where it was not seen.
        peak: Highest assistant affect over a window of tokens; NaN for short turns.
    """

    user_affect: float
    affect: Excess
    twin: Excess
    families: dict[str, Excess]
    emotions: dict[str, float]
    user_emotions: dict[str, float]
    user_families: dict[str, float]
    prepared: float
    peak: float


class Assessor:
    """Turns the statistics of finished turns into assessments, by one bank."""

    def __init__(self, bank: Bank) -> None:
        self._tensors = bank.tensors
        self._columns = bank.columns
        self._emotions = [emotion.name for emotion in bank.card.emotions]
        self._families = list(bank.card.families)
        # As lists: a search in one takes a fifth of the time that numpy needs to begin.
        self._residuals = [
            [target[np.isfinite(target)].tolist() for target in stance] for stance in bank.tensors.residuals
        ]

    def assess(self, stats: TurnStats, stance: Stance) -> TurnAssessment:
        """Assesses one turn; statistics must be finite and come from scores of the same bank.

        A turn whose user was not seen (a prompt from the prefix cache) is judged at the reference's mean user.
        """
        columns = self._columns
        user, assistant = self.standardise(stats.user, 0), self.standardise(stats.assistant, 1)
        if not stats.user_tokens:
            user = np.zeros_like(user)
        excesses = self._excesses(user, assistant, stats.assistant_tokens, STANCES.index(stance))
        families = dict(zip(self._families, excesses, strict=False))
        return TurnAssessment(
            user_affect=float(user[columns.user_affect]),
            affect=excesses[-2],
            twin=excesses[-1],
            families=families,
            emotions=self.probabilities(assistant, 1),
            user_emotions=self.probabilities(user, 0),
            user_families=dict(zip(self._families, map(float, user[columns.family]), strict=True)),
            prepared=float(self.affect(np.asarray(stats.header))),
            peak=float(self.affect(np.asarray(stats.peak))),
        )

    def standardise(self, scores: Floats, role: int) -> Floats:
        """Mean scores on one role's tokens (0 user, 1 assistant) in reference standard deviations, [columns]."""
        standard: Floats = (scores - self._tensors.turn_means[role]) / self._tensors.turn_scales[role]
        return standard

    def affect(self, scores: Floats) -> Floats:
        """Assistant affect of single tokens or windows in reference standard deviations."""
        at = self._columns.assistant_affect
        standard: Floats = (scores - self._tensors.turn_means[1, at]) / self._tensors.turn_scales[1, at]
        return standard

    def named(self, standardised: Floats, role: int) -> tuple[dict[str, float], dict[str, float]]:
        """Emotion probabilities and family scores by name."""
        families = map(float, standardised[self._columns.family])
        return self.probabilities(standardised, role), dict(zip(self._families, families, strict=True))

    def probabilities(self, standardised: Floats, role: int) -> dict[str, float]:
        """Platt-calibrated emotion probabilities of scores standardised for the same role, [columns]."""
        slope, intercept = self._tensors.platt[role].T
        likely = expit(np.clip(slope * standardised[self._columns.emotion] + intercept, -40, 40))
        return dict(zip(self._emotions, likely.tolist(), strict=True))

    def _excesses(self, user: Floats, assistant: Floats, tokens: int, stance: int) -> list[Excess]:
        """Excess of each family, of affect, and of the twin's affect, in this order."""
        value, given = target_values(user, assistant, self._columns)
        lines = Warranted(self._tensors.warranted[stance], self._tensors.spread[stance])
        warranted, over = lines.excess(value, given, np.float32(tokens))
        two_sided = STANCES[stance] is Stance.CRISIS
        held = self._residuals[stance]
        return [
            Excess(each, level, beyond, certified_p(held[target], beyond, two_sided))
            for target, (each, level, beyond) in enumerate(
                zip(value.tolist(), warranted.tolist(), over.tolist(), strict=True)
            )
        ]


Values = TypeVar("Values", bound=NDArray[np.floating[Any]])


def target_values(user: Values, assistant: Values, columns: Columns) -> tuple[Values, Values]:
    """What is judged, and what it is judged by: families, affect, twin affect, along the last axis.

    Affect is judged by what the user's tokens lead to expect, families and the twin by the user's affect.
    """
    at = [*range(columns.family.start, columns.family.stop), columns.assistant_affect, columns.twin_assistant_affect]
    given = [columns.user_affect] * columns.families + [columns.expected_affect, columns.twin_user_affect]
    return cast("Values", assistant[..., at]), cast("Values", user[..., given])


class Warranted(NamedTuple):
    """Warranted levels of T targets under one stance.

    Attributes:
        level: The upper quantile of A: intercept, slope on what the target is judged by, slope on tokens ** -1/2,
            [T, 3].
        spread: Intercept and slope on tokens ** -1/2 of the unit of the over-index, [T, 2].
    """

    level: NDArray[Any]
    spread: NDArray[Any]

    def excess(self, value: Values, given: Values, tokens: Any) -> tuple[Values, Values]:
        """Warranted level and over-index of scores.

        Args:
            value: What is judged, [..., T].
            given: What it is judged by, [..., T].
            tokens: Assistant tokens, a number or [..., 1]; none counts as one.
        """
        brevity = np.maximum(tokens, 1) ** -0.5
        level = self.level[:, 0] + self.level[:, 1] * given + self.level[:, 2] * brevity
        over = (value - level) / (self.spread[:, 0] + self.spread[:, 1] * brevity)
        return cast("Values", level), cast("Values", over)


CONFIDENCE = 0.95
"""Confidence of a certified false-alarm rate."""


def certified_p(residuals: Sequence[float] | Floats, over_index: float, two_sided: bool) -> float:
    """Upper bound of the share of turns like the reference's that lie at least as far out, in (0, 1].

    With k of n reference turns as far out it is the CONFIDENCE quantile of Beta(k + 1, n - k). It is never below
    1 - (1 - CONFIDENCE) ** (1 / n), about 3 / n: what n turns can certify. NaN has no rank: its p-value is NaN, which
    is below no rate.

    Args:
        residuals: Over-indices of the reference turns, ascending, [n].
        over_index: The turn's.
        two_sided: Whether lying far below is as remarkable.
    """
    if math.isnan(over_index):
        return math.nan
    count = len(residuals)
    above = exceedance_bound(count - bisect_left(residuals, over_index), count)
    if not two_sided:
        return above
    below = exceedance_bound(bisect_right(residuals, over_index), count)
    return min(1.0, 2 * min(above, below))


@lru_cache(maxsize=1 << 16)
def exceedance_bound(exceeding: int, turns: int) -> float:
    """Upper confidence bound of a rate of which ``exceeding`` of ``turns`` were seen (Clopper & Pearson 1934)."""
    if exceeding >= turns:
        return 1.0
    return float(betaincinv(exceeding + 1, turns - exceeding, CONFIDENCE))


def finest_rate(stance: Stance, turns: int) -> float:
    """The smallest p-value, and so the finest false-alarm rate, that so many reference turns of a stance certify."""
    return min(1.0, (2 if stance is Stance.CRISIS else 1) * exceedance_bound(0, turns))
