"""Over-index: how far a turn's assistant affect exceeds what the reference shows for the same user affect and stance.

The warranted level is an upper quantile of A given U, linear in U (quantile regression, Koenker & Bassett 1978); the
p-value is the conformal rank of the excess among reference turns that did not fit the quantile (split conformal,
Vovk et al. 2005), so that an alert at rate alpha is wrong on at most alpha of exchangeable turns.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from monitor.probes.bank import Bank, Columns, Stance
from monitor.turns.tracker import TurnStats

Floats = NDArray[np.float32]

STANCES = tuple(Stance)
AFFECT, TWIN = "affect", "twin"


class Excess(NamedTuple):
    """One target's excess in one turn.

    Attributes:
        value: Assistant score, in reference standard deviations.
        warranted: Upper quantile the reference shows for this user score.
        over_index: (value - warranted) / scale.
        p_value: Conformal p-value; two-sided in a crisis, where coldness is a fault too.
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
        residuals = bank.tensors.residuals
        self._held = np.isfinite(residuals).sum(axis=2)

    def assess(self, stats: TurnStats, stance: Stance) -> TurnAssessment:
        """Assesses one turn; statistics must be finite and come from scores of the same bank.

        A turn whose user was not seen (a prompt from the prefix cache) is judged at the reference's mean user.
        """
        columns = self._columns
        user, assistant = self.standardise(stats.user, 0), self.standardise(stats.assistant, 1)
        if not stats.user_tokens:
            user = np.zeros_like(user)
        excesses = self._excesses(user, assistant, STANCES.index(stance))
        families = dict(zip(self._families, excesses, strict=False))
        at = columns.assistant_affect
        return TurnAssessment(
            user_affect=float(user[columns.user_affect]),
            affect=excesses[-2],
            twin=excesses[-1],
            families=families,
            emotions=self.probabilities(assistant),
            user_emotions=self.probabilities(user),
            user_families=dict(zip(self._families, map(float, user[columns.family]), strict=True)),
            prepared=float(self.standardise(stats.header, 1)[at]),
            peak=float(self.standardise(stats.peak, 1)[at]),
        )

    def standardise(self, scores: Floats, role: int) -> Floats:
        """Mean scores on one role's tokens (0 user, 1 assistant) in reference standard deviations, [columns]."""
        standard: Floats = (scores - self._tensors.turn_means[role]) / self._tensors.turn_scales[role]
        return standard

    def named(self, standardised: Floats) -> tuple[dict[str, float], dict[str, float]]:
        """Emotion probabilities and family scores by name."""
        families = map(float, standardised[self._columns.family])
        return self.probabilities(standardised), dict(zip(self._families, families, strict=True))

    def probabilities(self, standardised: Floats) -> dict[str, float]:
        """Platt-calibrated emotion probabilities of standardised scores, [columns]."""
        slope, intercept = self._tensors.platt.T
        logits = np.clip(slope * standardised[self._columns.emotion] + intercept, -40, 40)
        return dict(zip(self._emotions, map(float, 1 / (1 + np.exp(-logits))), strict=True))

    def _excesses(self, user: Floats, assistant: Floats, stance: int) -> list[Excess]:
        """Excess of each family, of affect, and of the twin's affect, in this order."""
        value, given = target_values(user, assistant, self._columns)
        intercept, slope = self._tensors.warranted[stance].T
        warranted = intercept + slope * given
        over = (value - warranted) / self._tensors.warranted_scale[stance]
        two_sided = STANCES[stance] is Stance.CRISIS
        return [
            Excess(
                float(value[target]),
                float(warranted[target]),
                float(over[target]),
                conformal_p(
                    self._tensors.residuals[stance, target, : self._held[stance, target]], over[target], two_sided
                ),
            )
            for target in range(len(value))
        ]


Values = TypeVar("Values", bound=NDArray[np.floating[Any]])


def target_values(user: Values, assistant: Values, columns: Columns) -> tuple[Values, Values]:
    """What is judged, and what it is conditioned on: families, affect, twin affect, along the last axis."""
    at = [*range(columns.family.start, columns.family.stop), columns.assistant_affect, columns.twin_assistant_affect]
    given = [columns.user_affect] * (columns.families + 1) + [columns.twin_user_affect]
    return cast("Values", assistant[..., at]), cast("Values", user[..., given])


def conformal_p(residuals: Floats, over_index: float, two_sided: bool) -> float:
    """Rank of an over-index among the ascending over-indices of reference turns, as a p-value in (0, 1].

    NaN has no rank: its p-value is NaN, which is below no rate.
    """
    if np.isnan(over_index):
        return float("nan")
    count = len(residuals)
    above = (1 + count - int(np.searchsorted(residuals, over_index, side="left"))) / (count + 1)
    if not two_sided:
        return above
    below = (1 + int(np.searchsorted(residuals, over_index, side="right"))) / (count + 1)
    return min(1.0, 2 * min(above, below))
