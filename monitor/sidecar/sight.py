"""Whether the monitor sees: a monitor that cannot judge its turns must not look like a calm assistant."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection

from monitor.policy.marks import CANARY, SAMPLED_OUT, UNSEEN

_UNSEEN = frozenset(UNSEEN)
_ELSEWHERE = frozenset({SAMPLED_OUT, CANARY})
"""Marks of turns that were not meant to be judged, seen or not."""
_TURNS, _LEAST = 50, 20
_BLIND, _SEES = 0.5, 0.25
"""Shares of unseen turns from which the monitor is blind, and below which it sees again."""


class Sight:
    """Keeps the last turns that were meant to be judged, and says whether enough of them could be."""

    def __init__(self) -> None:
        self._turns: deque[frozenset[str]] = deque(maxlen=_TURNS)
        self._blind = False

    def turn(self, marks: Collection[str]) -> bool | None:
        """Takes in a turn that ended; returns whether the monitor is blind now, where that has changed.

        A turn that is short and was not seen may be short for what is missing of it: it counts.
        """
        unseen = _UNSEEN.intersection(marks)
        if _ELSEWHERE.intersection(marks) or ("short" in marks and not unseen):
            return None
        self._turns.append(unseen)
        share = sum(map(bool, self._turns)) / len(self._turns)
        before, self._blind = self._blind, share >= (_SEES if self._blind else _BLIND) and len(self._turns) >= _LEAST
        return None if self._blind == before else self._blind

    @property
    def description(self) -> str:
        """How many of the last turns were not seen, and by which mark; a turn may have several."""
        marks = Counter(mark for unseen in self._turns for mark in unseen)
        told = ", ".join(f"{count} {mark}" for mark, count in marks.most_common())
        return f"{sum(map(bool, self._turns))} of the last {len(self._turns)} turns could not be judged ({told})."
