"""Slopes, the trend test and the window of doses, on effects whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from monitor.evaluation.interventions.dose_response import (
    DoseCost,
    affordable,
    complaints,
    off_target,
    slopes,
    trend_p,
    window_of,
)

DOSES = np.array([-0.2, -0.1, -0.05, 0.0, 0.05, 0.1, 0.2])
PROMPTS = 30


def effects(slope: float, noise: float = 1.0, seed: int = 0) -> NDArray[np.float64]:
    """Effects of a slope on prompts of very different levels, [D, N]."""
    rng = np.random.default_rng(seed)
    level = 10 * rng.standard_normal(PROMPTS)
    return level + slope * DOSES[:, None] + noise * rng.standard_normal((len(DOSES), PROMPTS))


def costs(**by_dose: float) -> list[DoseCost]:
    """Costs of all doses: within the bars but for the KL of some, named ``plus_0.1`` or ``minus_0.1``."""
    kl = {float(name.split("_")[1]) * (1 if name.startswith("plus") else -1): kl for name, kl in by_dose.items()}
    return [DoseCost(float(dose), kl.get(float(dose), 0.01), 0.0, 0.1) for dose in DOSES if dose]


def test_slopes_are_those_of_lines() -> None:
    """Without noise each prompt's slope is the planted one, whatever its level."""
    np.testing.assert_allclose(slopes(DOSES, effects(3.0, noise=0.0)), 3.0)


def test_trend_is_found_and_not_invented() -> None:
    """A rising effect has a small p, a falling one a large, and without effect p is small as seldom as it says."""
    rng = np.random.default_rng(1)
    assert trend_p(DOSES, effects(6.0), rng) < 0.001
    assert trend_p(DOSES, effects(-6.0), rng) > 0.99
    null = [trend_p(DOSES, effects(0.0, seed=seed), rng, permutations=199) for seed in range(100)]
    assert np.mean(np.array(null) < 0.05) < 0.12


def test_replies_that_do_not_change_show_no_trend() -> None:
    """Doses too small to change a word are ties, not a trend."""
    same = np.repeat(effects(0.0)[:1], len(DOSES), axis=0)
    assert trend_p(DOSES, same, np.random.default_rng(2), permutations=199) == 1.0


def test_off_target_counts_what_chance_does_not_give() -> None:
    """Others that only scatter are no drift; one that moves with the target is; a target that stays has no share."""
    rng = np.random.default_rng(3)
    changes = rng.standard_normal((400, 4))
    changes[:, 0] += 1.0
    assert off_target(changes, 0) < 0.1
    changes[:, 1] += 1.0
    assert off_target(changes, 0) == pytest.approx(0.5**0.5, abs=0.15)
    assert off_target(changes, 3) == 0.0 or np.isnan(off_target(changes, 3))
    assert np.isnan(off_target(-np.abs(changes), 0))


@pytest.mark.parametrize(
    ("cost", "word"),
    [
        (DoseCost(0.1, 0.06, 0.0, 0.1), "KL"),
        (DoseCost(0.1, 0.01, -0.02, 0.1), "facts"),
        (DoseCost(0.1, 0.01, 0.0, 0.3), "off-target"),
        (DoseCost(0.1, 0.01, 0.0, float("nan")), "off-target"),
    ],
)
def test_each_bar_is_complained_of(cost: DoseCost, word: str) -> None:
    """A dose beyond a bar, or without a figure for it, says which."""
    assert len(complaints(cost)) == 1
    assert word in complaints(cost)[0]
    assert not complaints(DoseCost(0.1, 0.05, -0.01, 0.25))


def test_range_ends_at_the_first_dose_that_costs_too_much() -> None:
    """A good dose beyond a bad one does not count, and both sides are judged apart."""
    assert affordable(costs()) == (-0.2, 0.2)
    assert affordable(costs(**{"plus_0.1": 0.09})) == (-0.2, 0.05)
    assert affordable(costs(**{"plus_0.05": 0.09, "minus_0.05": 0.09})) == (0.0, 0.0)


class TestWindow:
    """``window_of``."""

    def test_holds_where_effect_and_costs_do(self) -> None:
        """A clear slope above weak nulls keeps the affordable range; what bounds it is said."""
        nulls = [effects(1.0, seed=seed) for seed in range(5)]
        window = window_of(DOSES, effects(9.0), nulls, costs(**{"plus_0.2": 0.09}), np.random.default_rng(0))
        assert window.safe
        assert (window.low, window.high, window.working) == (-0.2, 0.1, -0.2)
        assert "KL 0.090" in window.why

    def test_none_where_a_null_does_as_much(self) -> None:
        """A null of either sign that is as steep takes the window away."""
        nulls = [effects(-12.0)]
        window = window_of(DOSES, effects(9.0), nulls, costs(), np.random.default_rng(0))
        assert not window.safe
        assert "null" in window.why

    def test_none_without_a_trend(self) -> None:
        """An effect that does not follow the dose is said to."""
        window = window_of(DOSES, effects(0.0), [], costs(), np.random.default_rng(0))
        assert not window.safe
        assert "does not follow the dose" in window.why

    def test_none_where_the_smallest_doses_cost_too_much(self) -> None:
        """Then no trend helps, and each dose's cost is named."""
        dear = costs(**{"plus_0.05": 0.09, "minus_0.05": 0.09})
        window = window_of(DOSES, effects(9.0), [], dear, np.random.default_rng(0))
        assert not window.safe
        assert "+0.05: KL" in window.why
