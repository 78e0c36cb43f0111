"""The reference: warranted levels, their unit, and what new turns make of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.linear_model import QuantileRegressor

from monitor.assess.overindex import Warranted, certified_p, target_values
from monitor.calibration.reference import (
    QUANTILE,
    Reference,
    ReferenceTurns,
    fit_reference,
    quantile_line,
    stance_turns,
)
from monitor.probes.bank import Columns, Stance

Floats = NDArray[np.float64]
COLUMNS = Columns(emotions=1, families=1)
TARGETS = COLUMNS.families + 2
AFFECT, TWIN = -2, -1
NEUTRAL, SUPPORTIVE, CRISIS = range(3)


def pinball(features: Floats, values: Floats, level: float, line: Floats) -> float:
    """The loss a quantile regression minimises."""
    off = values - features @ line
    return float(np.maximum(level * off, (level - 1) * off).mean())


def turns_of(user: Floats, assistant: Floats, **fields: NDArray[np.int64]) -> ReferenceTurns:
    """Turns of one length, traffic and, unless told, on neutral routes alone."""
    count = len(user)
    default = {"tokens": np.full(count, 30), "stance": np.full(count, NEUTRAL), "group": np.zeros(count, np.int64)}
    return ReferenceTurns(user, assistant, **(default | fields))


def draw(rng: np.random.Generator, count: int, tokens: NDArray[np.int64] | None = None) -> ReferenceTurns:
    """Turns whose affect grows with their users', and scatters as means over few tokens do."""
    user, noise = rng.normal(size=(2, count, COLUMNS.total))
    tokens = rng.integers(4, 200, count) if tokens is None else tokens
    assistant = np.empty_like(user)
    # Every column an assistant is judged in grows with the column its user is judged by.
    values, given_ = target_columns()
    assistant[:] = noise
    assistant[:, values] = 0.5 * user[:, given_] + noise[:, values] * (0.2 + 3.0 * tokens[:, None] ** -0.5)
    return turns_of(user, assistant, tokens=tokens)


def target_columns() -> tuple[list[int], list[int]]:
    """Columns of what is judged, and of what it is judged by."""
    numbered = np.arange(COLUMNS.total, dtype=float)
    values, given_ = target_values(numbered, numbered, COLUMNS)
    return values.astype(int).tolist(), given_.astype(int).tolist()


def p_values(found: Reference, turns: ReferenceTurns, stance: int = NEUTRAL) -> Floats:
    """Certified p-values of turns by each target, [N, T], one-sided."""
    user, assistant = (
        (side - found.turn_means[role]) / found.turn_scales[role]
        for role, side in enumerate((turns.user, turns.assistant))
    )
    values, given_ = target_values(user, assistant, COLUMNS)
    lines = Warranted(found.warranted[stance], found.spread[stance])
    over = lines.excess(values, given_, turns.tokens[:, None])[1]
    held = [residuals[np.isfinite(residuals)] for residuals in found.residuals[stance]]
    return np.array([[certified_p(held[t], row[t], two_sided=False) for t in range(TARGETS)] for row in over])


class TestQuantileLine:
    """Linear quantile regression."""

    @settings(deadline=None, max_examples=40)
    @given(st.integers(0, 10_000), st.integers(12, 80), st.integers(1, 3), st.sampled_from([0.05, 0.5, 0.83, 0.95]))
    def test_is_sklearns(self, seed: int, count: int, width: int, level: float) -> None:
        """It loses no more than scikit-learn's line, and is that line wherever only one is best."""
        assume(abs(level * count - round(level * count)) > 1e-6)
        rng = np.random.default_rng(seed)
        features = np.column_stack([np.ones(count), rng.normal(size=(count, width))])
        values = features @ rng.normal(size=width + 1) + rng.standard_t(3, size=count)
        found = quantile_line(features, values, level)
        other = QuantileRegressor(quantile=level, alpha=0, fit_intercept=False, solver="highs").fit(features, values)
        assert pinball(features, values, level, found) == pytest.approx(
            pinball(features, values, level, other.coef_), rel=1e-7
        )
        np.testing.assert_allclose(found, other.coef_, atol=1e-5)

    @settings(deadline=None, max_examples=40)
    @given(st.integers(0, 10_000), st.floats(-3, 3))
    def test_rising_features_never_get_a_negative_coefficient(self, seed: int, slope: float) -> None:
        """The coefficient is the free one where that is positive, else the feature is left out."""
        rng = np.random.default_rng(seed)
        features = np.column_stack([np.ones(51), rng.uniform(0.1, 1, 51)])
        values = slope * features[:, 1] + rng.normal(size=51)
        found = quantile_line(features, values, 0.95, rising=(1,))
        free = quantile_line(features, values, 0.95)
        expected = free if free[1] > 0 else np.append(quantile_line(features[:, :1], values, 0.95), 0)
        assert found[1] >= -1e-9
        np.testing.assert_allclose(found, expected, atol=1e-7)


class TestLevel:
    """Warranted levels."""

    def test_a_planted_slope_within_groups_is_found(self) -> None:
        """Traffics that differ in level and in users do not bend the slope that holds within each of them."""
        rng, count = np.random.default_rng(1), 600
        group = np.arange(count) % 3
        user, assistant = rng.normal(size=(2, count, COLUMNS.total))
        values, given_ = target_columns()
        user += 2.0 * group[:, None]
        # Between traffics affect falls as users' rises; within them it rises by 0.5.
        assistant[:, values] += 0.5 * user[:, given_] - 3.0 * group[:, None]
        for groups, slope in ((group, 0.5), (np.zeros(count, np.int64), 0.0)):
            found = fit_reference(turns_of(user, assistant, group=groups), COLUMNS)
            scale = found.turn_scales[0, given_] / found.turn_scales[1, values]
            np.testing.assert_allclose(found.warranted[NEUTRAL, :, 1], slope * scale, atol=0.1)

    def test_each_stance_has_the_line_of_the_turns_it_allows(self) -> None:
        """A later stance's level comes from its own turns, an earlier one's from these and others."""
        rng, count = np.random.default_rng(2), 900
        user, assistant = rng.normal(size=(2, count, COLUMNS.total))
        stance = np.arange(count) % 3
        assistant += 4.0 * stance[:, None]
        found = fit_reference(turns_of(user, assistant, stance=stance, group=stance), COLUMNS)
        mean, scale = (part[1, COLUMNS.assistant_affect] for part in (found.turn_means, found.turn_scales))
        warm = (8.0 + 1.645 - mean) / scale
        levels = found.warranted[:, AFFECT, 0] + found.warranted[:, AFFECT, 2] * 30**-0.5
        assert levels[CRISIS] == pytest.approx(warm, abs=0.15)
        assert levels[NEUTRAL] < levels[CRISIS]
        assert np.isfinite(found.residuals).sum(axis=2).tolist() == [[900] * 3, [600] * 3, [300] * 3]
        assert stance_turns(stance) == {Stance.NEUTRAL: 900, Stance.SUPPORTIVE: 600, Stance.CRISIS: 300}

    def test_a_twentieth_of_the_reference_lies_above(self) -> None:
        """The level is the quantile it says: about five in a hundred held-out turns exceed it."""
        found = fit_reference(draw(np.random.default_rng(3), 600), COLUMNS)
        assert (found.residuals[NEUTRAL] > 0).mean() == pytest.approx(1 - QUANTILE, abs=0.02)

    def test_the_unit_is_a_standard_deviation_of_what_is_left(self) -> None:
        """Over-indices of a reference with normal scatter have spread 1 at every length."""
        turns = draw(np.random.default_rng(4), 1500)
        found = fit_reference(turns, COLUMNS)
        brevity = turns.tokens**-0.5
        unit = found.spread[NEUTRAL, AFFECT] @ [np.ones(1500), brevity] * found.turn_scales[1, COLUMNS.assistant_affect]
        np.testing.assert_allclose(unit / (0.2 + 3.0 * brevity), 1, atol=0.2)

    @settings(max_examples=12, deadline=None)
    @given(st.integers(0, 10_000), st.floats(-3, 3), st.integers(2, 30))
    def test_any_small_reference_gives_finite_lines(self, seed: int, slope: float, turns: int) -> None:
        """From two turns on, lines are finite, no slope is negative and units are positive at every length."""
        rng = np.random.default_rng(seed)
        user, assistant = rng.normal(size=(2, turns, COLUMNS.total))
        assistant += slope * user[:, [COLUMNS.user_affect]]
        lengths, stance = rng.integers(1, 90, turns), np.full(turns, CRISIS)
        found = fit_reference(turns_of(user, assistant, tokens=lengths, stance=stance), COLUMNS)
        assert np.isfinite(found.warranted).all()
        assert (found.warranted[..., 1:] >= -1e-9).all()
        assert (found.spread[..., 0] > 0).all()
        assert (found.spread.sum(axis=2) > 0).all()

    def test_a_stance_without_turns_is_left_plain(self) -> None:
        """Where no turn is allowed the level is 0, the unit 1, and there are no residuals."""
        found = fit_reference(draw(np.random.default_rng(5), 40), COLUMNS)
        assert (found.warranted[SUPPORTIVE:] == 0).all()
        assert (found.spread[SUPPORTIVE:] == [1, 0]).all()
        assert np.isnan(found.residuals[SUPPORTIVE:]).all()

    def test_users_who_never_vary_have_no_slope(self) -> None:
        """Equal users explain nothing, and no value becomes infinite."""
        rng = np.random.default_rng(6)
        found = fit_reference(turns_of(np.ones((50, COLUMNS.total)), rng.normal(size=(50, COLUMNS.total))), COLUMNS)
        assert (found.warranted[NEUTRAL, :, 1] == 0).all()
        assert np.isfinite(found.reference_user).all()


class TestReference:
    """What a bank keeps of its turns."""

    def test_scores_are_standardised_on_either_side(self) -> None:
        """Reference scores have mean 0 and spread 1; means and scales are those of the turns."""
        turns = draw(np.random.default_rng(7), 80)
        found = fit_reference(turns._replace(user=3 * turns.user + 5), COLUMNS)
        for scores in (found.reference_user, found.reference_assistant):
            np.testing.assert_allclose(scores.mean(axis=0), 0, atol=1e-9)
            np.testing.assert_allclose(scores.std(axis=0), 1)
        user = found.reference_user * found.turn_scales[0] + found.turn_means[0]
        np.testing.assert_allclose(user, 3 * turns.user + 5)
        np.testing.assert_array_equal(found.reference_tokens, turns.tokens)

    def test_residuals_ascend_and_are_padded(self) -> None:
        """A stance has as many residuals as turns, ascending, with NaN after them."""
        stance = np.repeat([CRISIS, SUPPORTIVE, NEUTRAL], [7, 18, 35])
        found = fit_reference(draw(np.random.default_rng(8), 60)._replace(stance=stance), COLUMNS)
        assert found.residuals.shape == (3, TARGETS, 60)
        for row, count in enumerate((60, 25, 7)):
            held, rest = np.split(found.residuals[row], [count], axis=1)
            assert (np.diff(held) >= 0).all()
            assert np.isnan(rest).all()

    def test_residuals_come_from_turns_that_were_not_fitted(self) -> None:
        """Held-out turns exceed the level more often than fitted ones where there are few: nothing is flattered."""
        above = [
            (fit_reference(draw(np.random.default_rng(seed), 20), COLUMNS).residuals[NEUTRAL] > 0).mean()
            for seed in range(10)
        ]
        assert np.mean(above) > 1.5 * (1 - QUANTILE)


class TestAlarms:
    """What new turns make of a reference."""

    def test_the_certified_rate_holds(self) -> None:
        """Of references drawn anew at most about one in twenty lets more than alpha of new turns through."""
        rng, alpha, worse, rates = np.random.default_rng(9), 0.05, 0, []
        fresh = draw(rng, 800)
        for _ in range(25):
            found = fit_reference(draw(rng, 160), COLUMNS)
            shares = (p_values(found, fresh) <= alpha).mean(axis=0)
            rates += shares.tolist()
            # What 800 turns can show of a rate: two standard errors.
            worse += int((shares > alpha + 2 * np.sqrt(alpha * (1 - alpha) / 800)).sum())
        assert worse / len(rates) <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / len(rates))
        assert 0.005 < np.mean(rates) < alpha

    def test_short_turns_do_not_alarm_more(self) -> None:
        """Replies of few tokens scatter more, and are allowed more for it: they alarm at the rate of long ones."""
        rng, alpha = np.random.default_rng(10), 0.05
        short, long = (draw(rng, 1500, np.full(1500, tokens)) for tokens in (5, 150))
        rates = []
        for _ in range(6):
            found = fit_reference(draw(rng, 400), COLUMNS)
            rates.append([(p_values(found, turns) <= alpha).mean() for turns in (short, long)])
        assert np.mean(rates, axis=0)[0] <= alpha
        # Without length in the level, one threshold for both would let five times as many short ones through.
        left = [turns.assistant - 0.5 * turns.user[:, [COLUMNS.expected_affect]] for turns in (short, long)]
        threshold = np.quantile(np.concatenate(left)[:, COLUMNS.assistant_affect], 1 - alpha)
        by_one = [(each[:, COLUMNS.assistant_affect] > threshold).mean() for each in left]
        assert by_one[0] > 5 * by_one[1]
