"""A line of a baseline file: what one turn of approved traffic scored, and not a word of what was said."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat

from monitor.probes.bank import Bank, Stance
from monitor.turns.tracker import TurnStats

_DIGITS = 6


def _rounded(scores: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(float(f"{score:.{_DIGITS}g}") for score in scores)


Scores = Annotated[tuple[FiniteFloat, ...], AfterValidator(_rounded)]


class BaselineLine(BaseModel):
    """One turn.

    Attributes:
        bank: Id of the bank that scored it.
        probes: ``Bank.probes``: scores of the same probes are in the same unit, whatever their reference.
        stance: Stance of the policy it was judged by.
        tokens: Assistant tokens.
        user: Mean scores of the user's tokens, not standardised, to six digits, [columns].
        assistant: The same of the assistant's.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    bank: str
    probes: str
    stance: Stance
    tokens: int = Field(gt=0)
    user: Scores
    assistant: Scores


def baseline_line(bank: Bank, stats: TurnStats, stance: Stance) -> BaselineLine:
    """The line of a turn; its statistics must be finite and come from scores of the bank."""
    return BaselineLine(
        bank=bank.card.bank_id,
        probes=bank.probes,
        stance=stance,
        tokens=stats.assistant_tokens,
        user=_listed(stats.user),
        assistant=_listed(stats.assistant),
    )


def _listed(scores: NDArray[np.float32]) -> tuple[float, ...]:
    return tuple(scores.tolist())
