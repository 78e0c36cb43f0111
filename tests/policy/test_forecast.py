"""What is forecast of false alarms: closed forms against simulation, against every sequence, and against the rules."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from builders import REFERENCE_TURNS, make_assessment

from monitor.assess.overindex import AFFECT, exceedance_bound
from monitor.policy.alert import JudgedTurn
from monitor.policy.engine import AlertEngine
from monitor.policy.forecast import alerts_per_turn, burns_per_turn, forecast, share_over
from monitor.policy.schema import Policy, PolicyFile
from monitor.probes.bank import Bank, Stance

TURNS = 20_000


def desk(**fields: Any) -> Policy:
    """A policy that fits the small bank."""
    return Policy.model_validate({"name": "desk", "stance": "neutral", "turn": {"false_alarm_rate": 0.05}} | fields)


class TestShare:
    """How many further turns a rule calls over."""

    @pytest.mark.parametrize(("stance", "rate"), [(Stance.NEUTRAL, 0.05), (Stance.SUPPORTIVE, 0.1)])
    def test_is_the_mean_of_a_rank(self, small_bank: Bank, stance: Stance, rate: float) -> None:
        """With k of n reference turns over, k + 1 of n + 1 further ones are."""
        turns = REFERENCE_TURNS[stance]
        over = max(count for count in range(turns) if exceedance_bound(count, turns) <= rate)
        assert share_over(small_bank, stance, AFFECT, rate) == (over + 1) / (turns + 1)

    def test_is_of_both_sides_in_a_crisis(self, small_bank: Bank) -> None:
        """Where too little counts as well, each side has half the rate."""
        turns = REFERENCE_TURNS[Stance.CRISIS]
        over = max(count for count in range(turns) if 2 * exceedance_bound(count, turns) <= 0.2)
        assert share_over(small_bank, Stance.CRISIS, "contagion", 0.2) == 2 * (over + 1) / (turns + 1)

    def test_is_below_the_certified_rate(self, small_bank: Bank) -> None:
        """A certified rate is conservative: what is expected lies below it."""
        for rate in (0.015, 0.05, 0.2, 0.5):
            assert share_over(small_bank, Stance.NEUTRAL, "warmth", rate) < rate


class TestAlertsOfTurns:
    """The chain of pending, firing and quiet turns."""

    @pytest.mark.parametrize(
        ("share", "pending", "resolve"), [(0.05, 1, 5), (0.1, 1, 1), (0.3, 2, 3), (0.5, 3, 2), (0.2, 2, 10)]
    )
    def test_are_those_of_the_alert_engine(self, share: float, pending: int, resolve: int) -> None:
        """The closed form is what the engine does with independent turns, within five standard errors."""
        policy = desk(turn={"false_alarm_rate": 0.05, "pending_turns": pending, "resolve_turns": resolve})
        engine = AlertEngine(PolicyFile(version=1, policies=(policy,)), lambda _alerts: None)
        for p_value in np.where(np.random.default_rng(1).random(TURNS) < share, 0.0, 1.0).tolist():
            engine.observe(policy, JudgedTurn("turn", make_assessment(p_value), "", 1.0, unvalidated=False))
        expected = TURNS * alerts_per_turn(share, pending, resolve)
        assert abs(engine.fired[policy.name, AFFECT] - expected) <= 5 * math.sqrt(expected)

    def test_of_one_turn_and_one_quiet_one(self) -> None:
        """Where one turn begins an alert and one ends it, alerts are the turns over after a quiet one."""
        assert alerts_per_turn(0.2, 1, 1) == pytest.approx(0.2 * 0.8)

    def test_are_none_where_they_cannot_be_counted(self) -> None:
        """A row of turns over that is too long to happen gives no alert and no error."""
        assert alerts_per_turn(1e-3, 500, 5) == 0


class TestBurns:
    """Alerts of the error budget."""

    @pytest.mark.parametrize(
        ("share", "threshold", "long", "short"),
        [(0.1, 0.3, 10, 3), (0.2, 0.5, 12, 4), (0.1, 0.05, 8, 8), (0.3, 0.25, 12, 1)],
    )
    def test_count_turns_over_that_fill_both_windows(
        self, share: float, threshold: float, long: int, short: int
    ) -> None:
        """The bound is the chance of that, summed over every sequence of turns."""
        chance = sum(
            share ** sum(turns) * (1 - share) ** (long - sum(turns))
            for turns in itertools.product((0, 1), repeat=long)
            if turns[-1] and sum(turns) > threshold * long and sum(turns[-short:]) > threshold * short
        )
        assert burns_per_turn(share, threshold, long, short) == pytest.approx(chance)

    def test_are_no_fewer_than_a_simulation_shows(self) -> None:
        """Alerts that begin in a long run of turns are at most the bound, and not far from it."""
        over = np.random.default_rng(2).random(1_000_000) < 0.1
        counts = np.concatenate([[0], np.cumsum(over)])
        long, short = ((counts[50:] - counts[50 - window : len(counts) - window]) > 0.2 * window for window in (50, 10))
        firing = long & short
        began = int(np.sum(firing[1:] & ~firing[:-1]))
        bound = len(over) * burns_per_turn(0.1, 0.2, 50, 10)
        assert 0.3 * bound < began <= bound


class TestForecast:
    """A policy's forecast."""

    def test_has_a_row_for_each_rule(self, small_bank: Bank) -> None:
        """Affect and each family, both windows of the budget, and the tests whose level holds for all time."""
        policy = desk(families={"warmth": 0.1}, rate={"budget": 0.06}, drift={"alpha": 0.02}, mirror={"alpha": 0.03})
        found = forecast(policy, small_bank, 10_000)
        assert [(each.target, each.rate) for each in found.turn] == [("affect", 0.05), ("warmth", 0.1)]
        assert [each.alert for each in found.burn] == ["AffectBudgetBurnFast", "AffectBudgetBurnSlow"]
        assert {each.alert: each.alpha for each in found.ever} == {
            "AffectDrift": 0.02, "AffectMirrorDrift": 0.03, "AffectUsersShifted": 0.02,
        }  # fmt: skip
        assert found.per_day == pytest.approx(sum(each.per_day for each in (*found.turn, *found.burn)))
        assert (found.reference_turns, found.turns_per_day) == (200, 10_000)

    def test_without_a_budget_has_no_burn(self, small_bank: Bank) -> None:
        """A policy without rate rule raises no budget alert."""
        assert forecast(desk(), small_bank, 10_000).burn == ()

    def test_grows_with_traffic(self, small_bank: Bank) -> None:
        """Twice the turns raise twice the alerts of turns."""
        once, twice = (forecast(desk(), small_bank, turns).turn[0] for turns in (5_000, 10_000))
        assert twice.per_day == pytest.approx(2 * once.per_day)
        assert twice.per_day_at_most == pytest.approx(2 * once.per_day_at_most)

    def test_most_is_no_less_than_at_any_share_up_to_the_rate(self, small_bank: Bank) -> None:
        """Where alerts hardly end the certified rate itself is not the worst case, and is not taken for it."""
        turn = {"false_alarm_rate": 0.9, "pending_turns": 1, "resolve_turns": 5}
        (found,) = forecast(desk(turn=turn), small_bank, 1).turn
        assert found.per_day_at_most == pytest.approx(max(share * (1 - share) ** 5 for share in (1 / 6, 0.9)), rel=1e-4)
        assert found.per_day <= found.per_day_at_most

    def test_windows_scale_with_the_period(self, small_bank: Bank) -> None:
        """A budget of fifteen days has windows half as long as one of thirty."""
        month, half = (
            forecast(desk(rate={"budget": 0.06, "period_days": days}), small_bank, 48_000).burn for days in (30, 15)
        )
        assert [each.long_hours for each in month] == [1, 6]
        assert [each.long_hours for each in half] == [0.5, 3]
        assert [each.long_turns for each in half] == [1000, 6000]

    def test_names_budgets_that_cannot_burn(self, small_bank: Bank) -> None:
        """A threshold above all turns never fires, and neither does a window with too few of them: each says why."""
        fast, slow = forecast(desk(rate={"budget": 0.08}), small_bank, 100).burn
        assert "smaller rate.budget" in fast.never
        assert "25 turns" in slow.never
        assert fast.per_day == slow.per_day_at_most == 0
