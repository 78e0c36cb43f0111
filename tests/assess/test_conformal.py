"""Ranks among like turns."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import kstest

from monitor.assess.conformal import ConditionalRanks, bin_edges

Floats = NDArray[np.float64]

few_values = st.integers(-3, 3).map(float)
turns = st.lists(st.tuples(few_values, few_values, few_values), max_size=60)


def make_ranks(given: Floats, scores: Floats, seed: int = 0) -> ConditionalRanks:
    """Ranks in bins of a reference."""
    return ConditionalRanks(bin_edges(given), given, scores, np.random.default_rng(seed))


def play(ranks: ConditionalRanks, given: Floats, scores: Floats, *, learn: bool = True) -> Floats:
    """Ranks of turns, each among the reference and those before, [turns, T]."""
    found = []
    for user, row in zip(given.tolist(), scores, strict=True):
        found.append(ranks.rank(user, row))
        if learn:
            ranks.learn(user, row)
    return np.array(found)


class TestBinEdges:
    """Bins of like users."""

    def test_part_the_reference_evenly(self) -> None:
        """Eight bins at most, each with as many reference turns."""
        given = np.random.default_rng(0).normal(size=1600)
        edges = bin_edges(given)
        assert np.bincount(np.searchsorted(edges, given, side="right")).tolist() == [200] * 8

    @pytest.mark.parametrize(("count", "bins"), [(1, 1), (119, 1), (120, 2), (479, 7), (5000, 8)])
    def test_of_few_turns_are_few(self, count: int, bins: int) -> None:
        """A bin is not made for fewer than sixty turns."""
        assert len(bin_edges(np.arange(count, dtype=float))) == bins - 1


class TestConditionalRanks:
    """Ranks that are uniform while nothing changes."""

    @pytest.mark.parametrize("distinct", [False, True])
    def test_are_uniform_and_independent(self, *, distinct: bool) -> None:
        """On turns exchangeable with a small reference, through many times its size, with ties or without."""
        rng = np.random.default_rng(1)
        given, scores = rng.normal(size=3120), rng.normal(size=(3120, 2))
        scores += given[:, None]
        if not distinct:
            scores = scores.round()
        found = play(make_ranks(given[:120], scores[:120]), given[120:], scores[120:])
        assert found.min() > 0
        assert found.max() <= 1
        for column in found.T:
            assert kstest(column, "uniform").pvalue > 0.001
            assert abs(np.corrcoef(column[1:], column[:-1])[0, 1]) < 4 / np.sqrt(len(column))

    def test_that_learn_do_not_find_the_luck_of_the_reference(self) -> None:
        """The mean rank of a long stream scatters as if turns were independent; without learning, much more."""

        def means(*, learn: bool) -> Floats:
            rng = np.random.default_rng(2)
            drawn = rng.normal(size=(120, 460, 1))
            users = np.zeros(460)
            return np.array(
                [play(make_ranks(users[:60], run[:60]), users[60:], run[60:], learn=learn).mean() for run in drawn]
            )

        independent = 1 / 12 / 400
        assert 0.6 < means(learn=True).var() / independent < 1.6
        assert means(learn=False).var() / independent > 3

    def test_of_equal_scores_are_uniform(self) -> None:
        """Ties are broken by lot."""
        users, scores = np.zeros(1000), np.ones((1000, 1))
        found = play(make_ranks(users[:100], scores[:100]), users[100:], scores[100:])
        assert kstest(found[:, 0], "uniform").pvalue > 0.001

    def test_are_among_like_users(self) -> None:
        """The same score is high where users leave the assistant calm, and low where they do not."""
        given = np.linspace(-1, 1, 200)
        ranks = make_ranks(given, 10 * np.sign(given)[:, None])
        assert ranks.rank(-0.9, np.array([5.0]))[0] < 0.05
        assert ranks.rank(0.9, np.array([5.0]))[0] > 0.95
        assert [ranks.place(user) for user in (-2.0, -0.9, 0.9, 2.0)] == [0, 0, 2, 2]

    def test_of_users_beyond_the_reference_are_among_the_outermost(self) -> None:
        """A user such as was never seen has the outermost bin."""
        given = np.linspace(-1, 1, 200)
        ranks = make_ranks(given, given[:, None])
        assert ranks.rank(99.0, np.array([2.0]))[0] < 0.05

    @given(turns, turns, st.integers(0, 9))
    def test_are_those_among_the_turns_held(
        self, reference: list[tuple[float, ...]], later: list[tuple[float, ...]], seed: int
    ) -> None:
        """Whatever came and made room, a rank lies between the shares of held turns above, and at least as high."""
        held, came = np.reshape(reference, (-1, 3)), np.reshape(later, (-1, 3))
        ranks = ConditionalRanks([0.0], held[:, 0], held[:, 1:], np.random.default_rng(seed))
        play(ranks, came[:, 0], came[:, 1:])
        state = ranks.state()
        for user, rows in zip((-1.0, 1.0), np.split(state["scores"], state["counts"][:1]), strict=True):
            for score in (-3.0, 0.0, 1.5):
                for rank, column in zip(ranks.rank(user, np.array([score, score])), rows.T, strict=True):
                    above, equal = (column > score).sum(), (column == score).sum()
                    assert above / (len(column) + 1) < rank <= (above + equal + 1) / (len(column) + 1)

    @pytest.mark.parametrize(("reference", "most"), [(1, 60), (10, 60), (50, 200)])
    def test_hold_a_bounded_number_of_turns(self, reference: int, most: int) -> None:
        """Four times the reference's, or sixty; turns seen late are among them like turns seen early."""
        scores = np.arange(5000, dtype=float)[:, None]
        users = np.zeros(5000)
        ranks = make_ranks(users[:reference], scores[:reference])
        play(ranks, users[reference:], scores[reference:])
        state = ranks.state()
        assert state["counts"].tolist() == [most] == [len(state["scores"])]
        assert len(np.unique(state["scores"])) == most

    def test_go_on_from_a_state(self) -> None:
        """What was restored ranks and learns like what was kept, but for the lots."""
        rng = np.random.default_rng(3)
        given, scores = rng.normal(size=600), rng.normal(size=(600, 2))
        kept = make_ranks(given[:300], scores[:300])
        play(kept, given[300:], scores[300:])
        restored = make_ranks(given[:300], scores[:300], seed=1)
        restored.restore(kept.state())
        for name, value in kept.state().items():
            assert np.array_equal(restored.state()[name], value)
        ahead = rng.normal(size=50), rng.normal(size=(50, 2))
        assert play(restored, *ahead) == pytest.approx(play(kept, *ahead), abs=0.05)
