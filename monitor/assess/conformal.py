"""Conformal p-values: the rank of a turn's excess among like turns, those of the reference and those seen since.

Under a stream that is exchangeable with the reference, smoothed ranks among everything seen before are independent and
uniform (Vovk, Gammerman & Shafer 2005, theorem 8.2), whatever the size of the reference: a rank against the reference
alone would in the long run find the luck of its draw. Ranks are taken within bins of what the user showed (Mondrian,
ibid. 4.5), so that other users alone move none.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]

_MIN_BIN, _MAX_BINS = 60, 8
"""Reference turns that a bin should have, and bins at most."""
_GROWTH = 4
"""A bin holds at most this many times its reference turns; beyond, a turn chosen by lot makes room for a new one."""


def bin_edges(given: Floats) -> list[float]:
    """Edges between bins of equally many reference turns, ascending; few turns make few bins."""
    bins = min(_MAX_BINS, len(given) // _MIN_BIN)
    # Quantiles of nothing are an error, even none of them.
    edges: list[float] = np.quantile(given, np.arange(1, bins) / bins).tolist() if bins else []
    return edges


class ConditionalRanks:
    """Ranks of scores among turns with like users.

    A turn that makes room is chosen among all that the bin holds, so that ranks stay uniform.

    Args:
        edges: Edges between the bins; none: all turns are alike.
        given: What the user of each reference turn showed, [N].
        scores: Scores of the reference turns, [N, T].
        rng: Breaks ties and draws lots.
    """

    def __init__(self, edges: list[float], given: Floats, scores: Floats, rng: np.random.Generator) -> None:
        self._edges = edges
        self._rng = rng
        places = np.searchsorted(edges, given, side="right")
        self._bins = [_Bin(scores[places == number]) for number in range(len(edges) + 1)]

    def rank(self, given: float, scores: Floats) -> list[float]:
        """Smoothed p-values of a turn's scores, [T]: the share of like turns that lie at least as high, in (0, 1]."""
        columns = self._bin(given).columns
        lots = self._rng.random(len(columns)).tolist()
        ranks = []
        for held, score, lot in zip(columns, scores.tolist(), lots, strict=True):
            above = len(held) - bisect_right(held, score)
            equal = len(held) - above - bisect_left(held, score)
            ranks.append((above + (1 - lot) * (equal + 1)) / (len(held) + 1))
        return ranks

    def learn(self, given: float, scores: Floats) -> None:
        """Takes a turn in among those that later ones are ranked with."""
        held = self._bin(given)
        held.put(scores, int(self._rng.integers(held.count + 1)))

    def state(self) -> dict[str, Floats]:
        """What it holds: scores of the turns of all bins, [sum of counts, T], and how many each bin has."""
        return {
            "scores": np.concatenate([held.scores[: held.count] for held in self._bins]),
            "counts": np.array([held.count for held in self._bins]),
        }

    def fits(self, state: Mapping[str, Floats]) -> bool:
        """Whether a state may be that of ranks with the same reference: finite scores, in bins that have room."""
        scores, counts = state["scores"], state["counts"]
        room = [len(held.scores) for held in self._bins]
        within = (counts >= 0).all() and (counts <= room).all() and counts.sum() == len(scores)
        return bool(within and np.isfinite(scores).all())

    def restore(self, state: Mapping[str, Floats]) -> None:
        """Goes on from a state that fits."""
        parts = np.split(state["scores"], np.cumsum(state["counts"])[:-1])
        for held, scores in zip(self._bins, parts, strict=True):
            held.fill(scores)

    def place(self, given: float) -> int:
        """Which bin a turn with such a user falls into."""
        return bisect_right(self._edges, given)

    def _bin(self, given: float) -> _Bin:
        return self._bins[self.place(given)]


class _Bin:
    """Turns with like users: as they came, and every target's scores in order."""

    def __init__(self, scores: Floats) -> None:
        self.scores = np.empty((max(_MIN_BIN, _GROWTH * len(scores)), scores.shape[1]), np.float32)
        self.fill(scores)

    def fill(self, scores: Floats) -> None:
        """Holds these turns and no others."""
        self.count = len(scores)
        self.scores[: self.count] = scores
        self.columns: list[list[float]] = np.sort(self.scores[: self.count], axis=0).T.tolist()

    def put(self, scores: Floats, lot: int) -> None:
        """Adds a turn; in a full bin the one at the lot makes room, which may be the new one."""
        if self.count < len(self.scores):
            lot, self.count = self.count, self.count + 1
        elif lot == self.count:
            return
        else:
            for column, score in zip(self.columns, self.scores[lot].tolist(), strict=True):
                del column[bisect_left(column, score)]
        self.scores[lot] = scores
        for column, score in zip(self.columns, self.scores[lot].tolist(), strict=True):
            insort(column, score)
