"""Streams of turns like those of a bank's reference, unchanged or changed in a known way."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from monitor.assess.overindex import Excess, TurnAssessment, Warranted, target_values
from monitor.probes.bank import Bank

Floats = NDArray[np.floating[Any]]


class Turns(NamedTuple):
    """Turns under the neutral stance, as far as drift looks at them.

    Attributes:
        user: User affect, [N].
        affect: Assistant affect, [N].
        over_index: Of families and affect, [N, F + 1].
        unit: Assistant affect that an over-index of 1 stands for, [N].
    """

    user: Floats
    affect: Floats
    over_index: Floats
    unit: Floats

    @classmethod
    def of(cls, bank: Bank, user: Floats, assistant: Floats, tokens: NDArray[np.int32]) -> Turns:
        """Turns of standardised scores, [N, C], and replies of so many tokens, [N]."""
        columns, tensors = bank.columns, bank.tensors
        values, given = target_values(user, assistant, columns)
        over = Warranted(tensors.warranted[0], tensors.spread[0]).excess(values, given, tokens[:, None])[1]
        spread = tensors.spread[0, columns.families]
        return cls(
            user[:, columns.user_affect],
            assistant[:, columns.assistant_affect],
            over[:, : columns.families + 1].astype(np.float32),
            spread[0] + spread[1] * tokens**-0.5,
        )

    def part(self, chosen: Any) -> Turns:
        """Some of the turns."""
        return Turns(*(column[chosen] for column in self))

    def risen(self, by: Floats | float) -> Turns:
        """The same turns, their assistant affect alone higher by so much over-index."""
        over = self.over_index.copy()
        over[:, -1] += by
        return self._replace(affect=self.affect + by * self.unit, over_index=over)

    def assessments(self, families: tuple[str, ...]) -> Iterator[TurnAssessment]:
        """What a sidecar would hand to the watch."""
        for user, affect, over in zip(self.user.tolist(), self.affect.tolist(), self.over_index.tolist(), strict=True):
            *excesses, last = [Excess(0.0, 0.0, each, 1.0) for each in over]
            yield TurnAssessment(
                user, last._replace(value=affect), last, dict(zip(families, excesses, strict=True)),
                {}, {}, {}, 0.0, 0.0,
            )  # fmt: skip


class Population:
    """All the turns that a route could see: those of a bank's reference, made smooth.

    Args:
        bank: Where the turns come from.
        bandwidth: Standard deviation of the noise that every score of a drawn turn gets; 0 draws the turns themselves.
    """

    def __init__(self, bank: Bank, bandwidth: float = 0.0) -> None:
        self._bank = bank
        self._bandwidth = bandwidth
        self.turns = self._of(np.arange(len(bank.tensors.reference_tokens)), np.random.default_rng(0))

    def draw(self, rng: np.random.Generator, count: int, weights: Floats | None = None) -> Turns:
        """Draws turns with replacement, each with what belongs to it kept together."""
        return self._of(rng.choice(len(self._bank.tensors.reference_tokens), count, p=weights), rng)

    def bank(self, rng: np.random.Generator, count: int) -> Bank:
        """The same bank with a fresh draw of so many turns as its reference."""
        tensors = self._bank.tensors
        index = rng.integers(len(tensors.reference_tokens), size=count)
        user, assistant = self._scores(index, rng)
        return Bank(
            self._bank.card,
            replace(
                tensors,
                reference_user=user,
                reference_assistant=assistant,
                reference_tokens=tensors.reference_tokens[index],
                reference_stance=tensors.reference_stance[index],
            ),
        )

    def towards(self, shift: float) -> Floats:
        """Chances of the turns under which user affect is higher by so much on average, and A given U as before."""
        user = self.turns.user.astype(float)

        def tilted(strength: float) -> Floats:
            weights = np.exp(strength * user)
            return weights / weights.sum()

        return tilted(brentq(lambda strength: tilted(strength) @ user - user.mean() - shift, -10, 10))

    def wider(self) -> Floats:
        """Chances under which user affect scatters more."""
        weights = np.exp(0.2 * self.turns.user.astype(float) ** 2)
        return weights / weights.sum()

    def _of(self, index: NDArray[np.int64], rng: np.random.Generator) -> Turns:
        return Turns.of(self._bank, *self._scores(index, rng), self._bank.tensors.reference_tokens[index])

    def _scores(self, index: NDArray[np.int64], rng: np.random.Generator) -> tuple[Floats, Floats]:
        """User and assistant scores of turns, with fresh noise."""
        tensors = self._bank.tensors
        user, assistant = (
            (scores[index] + self._bandwidth * rng.standard_normal((len(index), scores.shape[1]), np.float32)).astype(
                np.float32
            )
            for scores in (tensors.reference_user, tensors.reference_assistant)
        )
        return user, assistant
