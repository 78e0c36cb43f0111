"""E-processes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from monitor.assess.evalue import SHIFTS, EProcesses

scores = st.lists(st.floats(-4, 4), max_size=20)
sides = st.sampled_from([-1, 0, 1])
leverages = st.floats(-2, 2)


def make(count: int, side: int = 1) -> EProcesses:
    """So many processes of one side."""
    return EProcesses(np.full(count, side))


def play(processes: EProcesses, rows: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> None:
    """Shows normal scores, [turns, K]."""
    for row in rows:
        processes.update(row, np.ones(len(row)))


class TestEProcesses:
    """Evidence that may be looked at after every turn."""

    @given(scores, sides, leverages, leverages)
    def test_expect_no_gain_while_nothing_changes(
        self, before: list[float], side: int, first: float, second: float
    ) -> None:
        """After any past, the mean e-value two turns on is the present one: the integral over both scores says so."""
        nodes, weights = np.polynomial.hermite_e.hermegauss(24)
        one, two = (axis.ravel() for axis in np.meshgrid(nodes, nodes))
        processes = make(len(one), side)
        play(processes, np.tile(np.reshape(before, (-1, 1)), len(one)))
        present = processes.log_values()[0]
        processes.update(one, np.full(len(one), first))
        processes.update(two, np.full(len(one), second))
        expected = np.outer(weights, weights).ravel() / weights.sum() ** 2
        assert expected @ np.exp(processes.log_values() - present) == pytest.approx(1)

    @given(sides)
    def test_begin_with_capital_one(self, side: int) -> None:
        """Before the first turn nothing is known."""
        assert make(3, side).log_values() == pytest.approx([0] * 3)

    @pytest.mark.parametrize("side", [-1, 0, 1])
    def test_reach_a_line_by_chance_no_more_often_than_it_says(self, side: int) -> None:
        """Of 2,000 processes over 300 turns without a change, no more reach 1/alpha than alpha allows."""
        rng, highest = np.random.default_rng(4), np.zeros(2000)
        processes = make(2000, side)
        for _ in range(300):
            play(processes, rng.standard_normal((1, 2000)))
            highest = np.maximum(highest, processes.log_values())
        for alpha in (0.2, 0.05, 0.01):
            assert (highest >= -math.log(alpha)).sum() <= binom.ppf(0.999, 2000, alpha)

    @pytest.mark.parametrize(("side", "found"), [(1, {1}), (-1, {-1}), (0, {1, -1})])
    def test_bet_on_their_own_side(self, side: int, found: set[int]) -> None:
        """A one-sided process holds a move to the other side for no evidence; a two-sided one finds both."""
        for direction in (1, -1):
            processes = make(1, side)
            play(processes, np.full((200, 1), 0.5 * direction))
            value = processes.log_values()[0]
            assert value > 5 if direction in found else value < 0

    def test_find_a_small_change_soon_after_a_long_calm(self) -> None:
        """Half of 300 processes find half a standard deviation within 150 turns after 2,000 without."""
        rng = np.random.default_rng(5)
        processes = make(300)
        play(processes, rng.standard_normal((2000, 300)))
        play(processes, rng.standard_normal((150, 300)) + 0.5)
        assert np.median(processes.log_values()) > math.log(100)

    def test_learn_nothing_from_a_turn_that_no_shift_would_move(self) -> None:
        """Without leverage the e-value stays."""
        processes = make(2, 0)
        play(processes, np.array([[1.0, 2.0]]))
        before = processes.log_values()
        processes.update(np.array([9.0, -9.0]), np.zeros(2))
        assert processes.log_values() == pytest.approx(before)

    def test_win_by_leverage_of_either_sign(self) -> None:
        """A slope that rises shows in high scores where leverage is positive and low ones where it is negative."""
        processes = make(1)
        for leverage in (1.5, -1.5) * 30:
            processes.update(np.array([0.5 * leverage]), np.array([leverage]))
        assert processes.log_values()[0] > 5

    @pytest.mark.parametrize("shift", [*SHIFTS, *-SHIFTS])
    def test_tell_the_shift_that_won_most(self, shift: float) -> None:
        """That is the size and direction of the change, as near as the bets are apart."""
        processes = make(1, 0)
        play(processes, np.full((100, 1), shift))
        assert processes.leading_shift(0) == shift

    def test_begin_anew_one_by_one(self) -> None:
        """A restarted run has capital 1 and no turns, and goes on as a new one would; the others are left alone."""
        rows = np.random.default_rng(6).standard_normal((40, 3)) + 1
        processes, new = make(3), make(3)
        play(processes, rows)
        before = processes.log_values()
        processes.restart(slice(1, 2))
        assert processes.turns.tolist() == [40, 0, 40]
        assert processes.log_values() == pytest.approx([before[0], 0, before[2]])
        play(processes, rows)
        play(new, rows)
        assert processes.log_values()[1] == pytest.approx(new.log_values()[1])

    def test_go_on_from_a_state(self) -> None:
        """Capital and turns are all there is."""
        rows = np.random.default_rng(7).standard_normal((60, 2)) + 0.3
        kept, restored = make(2, 0), make(2, 0)
        play(kept, rows)
        restored.restore(kept.log_capital.copy(), kept.turns.copy())
        play(kept, rows)
        play(restored, rows)
        assert restored.log_values().tolist() == kept.log_values().tolist()
