"""E-processes: evidence of a lasting change that may be looked at after every turn.

An e-process bets against "nothing has changed" and starts with capital 1; if nothing has changed, the chance that it
ever reaches 1/alpha is at most alpha, however often it is looked at (Ville 1939; Ramdas et al. 2023, Game-theoretic
statistics and safe anytime-valid inference). Bets are likelihood ratios of a shift of the normal score of a conformal
p-value (Vovk, Nouretdinov & Gammerman 2003, conformal test martingales), mixed over the size of the shift and the turn
at which it begins (Shin, Ramdas & Rinaldo 2023, E-detectors), so that a change after a long calm is still found soon.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]

SHIFTS = np.array([0.25, 0.5, 1.0, 2.0])
"""Sizes of a shift that are betted on, in standard deviations."""
_AT_ONCE = 0.5
"""Share of the capital that bets from the first turn; the rest is set turn by turn."""
_SLOWNESS = 100.0


class EProcesses:
    """K e-processes side by side, each for its own stream of normal scores.

    Args:
        sides: 1 for shifts upwards, -1 downwards, 0 for both, [K].
    """

    def __init__(self, sides: NDArray[np.int64]) -> None:
        self._bets = np.concatenate([SHIFTS, -SHIFTS])
        stakes = np.where(np.sign(self._bets) == sides[:, None], 1.0, 0.0)
        stakes[sides == 0] = 0.5
        with np.errstate(divide="ignore"):
            self._log_stakes = np.log(stakes / len(SHIFTS))
        self.restore(np.full(stakes.shape, -np.inf), np.zeros(len(sides), np.int64))

    def restore(self, log_capital: Floats, turns: NDArray[np.int64]) -> None:
        """Goes on from a state.

        Args:
            log_capital: What each bet has come to, over all beginnings, [K, bets].
            turns: Turns of the present runs, [K].
        """
        self.log_capital = log_capital
        self.turns = turns
        self._unspent = _unspent(turns)

    def update(self, scores: Floats, leverage: Floats) -> None:
        """Takes one turn into account.

        Args:
            scores: Normal scores of the turn, standard normal if nothing has changed, [K].
            leverage: How far a shift of size 1 moves each score, known before it is seen, [K].
        """
        before = self._unspent
        self.turns = self.turns + 1
        self._unspent = _unspent(self.turns)
        entering = np.log(before - self._unspent)
        shift = self._bets * leverage[:, None]
        betting = np.logaddexp(self.log_capital, self._log_stakes + entering[:, None])
        self.log_capital = betting + shift * scores[:, None] - shift**2 / 2

    def log_values(self) -> Floats:
        """Natural logarithms of the e-values, [K]."""
        return np.logaddexp(np.logaddexp.reduce(self.log_capital, axis=1), np.log(self._unspent))

    def leading_shift(self, process: int) -> float:
        """The shift that a process has won most with."""
        return float(self._bets[np.argmax(self.log_capital[process])])

    def restart(self, processes: slice) -> None:
        """Begins a new run with capital 1."""
        self.log_capital[processes] = -np.inf
        self.turns[processes] = 0
        self._unspent = _unspent(self.turns)


def _unspent(turns: NDArray[np.int64]) -> Floats:
    """Capital that is not yet set after so many turns; all of it before the first."""
    later = (1 - _AT_ONCE) * np.log(_SLOWNESS) / np.log(turns + _SLOWNESS)
    return np.where(turns, later, 1.0)
