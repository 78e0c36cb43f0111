"""The life of alerts."""

from __future__ import annotations

from typing import Any

import pytest
from builders import make_assessment
from hypothesis import given
from hypothesis import strategies as st

from monitor.policy.engine import Alert, AlertEngine, AlertState
from monitor.policy.schema import Policy, TurnRule

RATE = 0.05


def make_policy(name: str = "all", pending: int = 1, resolve: int = 2, **fields: Any) -> Policy:
    """A policy that alarms at RATE."""
    rule = TurnRule(false_alarm_rate=RATE, pending_turns=pending, resolve_turns=resolve)
    return Policy.model_validate({"name": name, "stance": "neutral", "turn": rule} | fields)


class Watched:
    """An engine whose notifications and clock are at hand."""

    def __init__(self) -> None:
        self.now = 100.0
        self.told: list[tuple[str, str]] = []
        self.alerts: list[Alert] = []
        self.turns = 0
        self.engine = AlertEngine(self._tell, lambda: self.now)

    def _tell(self, alert: Alert) -> None:
        self.told.append((alert.target, alert.state.value))
        self.alerts.append(alert)

    def see(self, policy: Policy, *p_values: float, over_index: float = 1.0, **families: float) -> list[str]:
        """Judged turns, one for each p-value; returns what the last one was over on."""
        over: list[str] = []
        for p_value in p_values:
            self.turns += 1
            self.now += 1
            assessment = make_assessment(p_value, over_index, **families)
            over = self.engine.observe(policy, f"turn-{self.turns}", assessment, "text_silent")
        return over

    @property
    def states(self) -> list[str]:
        """States of the alerts that are up."""
        return [alert.state.value for alert in self.engine.active]


@pytest.fixture
def watched() -> Watched:
    """An engine at rest."""
    return Watched()


OVER, QUIET = 0.01, 0.5


class TestLife:
    """Quiet, pending, firing, resolved."""

    def test_pending_firing_resolved(self, watched: Watched) -> None:
        """An alert pends until enough turns in a row were over, fires, and resolves after enough quiet ones."""
        policy = make_policy(pending=3, resolve=2)
        watched.see(policy, OVER, OVER)
        assert (watched.states, watched.told) == (["pending"], [])
        watched.see(policy, OVER)
        assert (watched.states, watched.told) == (["firing"], [("affect", "firing")])
        watched.see(policy, QUIET)
        assert watched.states == ["firing"]
        watched.see(policy, QUIET)
        assert (watched.states, watched.told) == ([], [("affect", "firing"), ("affect", "resolved")])
        assert watched.alerts[-1].ended == watched.now
        assert watched.alerts[-1].state is AlertState.RESOLVED

    def test_one_quiet_turn_ends_a_pending_alert(self, watched: Watched) -> None:
        """Turns over must come in a row: a quiet one in between starts the count again, and nobody is told."""
        policy = make_policy(pending=2)
        watched.see(policy, OVER, QUIET, OVER, QUIET, OVER, QUIET)
        assert (watched.states, watched.told) == ([], [])

    def test_a_turn_over_starts_the_quiet_count_again(self, watched: Watched) -> None:
        """A firing alert resolves only after quiet turns in a row; one over in between keeps it firing, untold."""
        policy = make_policy(resolve=3)
        watched.see(policy, OVER, QUIET, QUIET, OVER, QUIET, QUIET)
        assert (watched.states, watched.told) == (["firing"], [("affect", "firing")])
        watched.see(policy, QUIET)
        assert watched.told[-1] == ("affect", "resolved")

    def test_the_rate_itself_is_over(self, watched: Watched) -> None:
        """A p-value equal to the rate counts as over, as a conformal test at that level has it."""
        assert watched.see(make_policy(), RATE) == ["affect"]

    def test_what_is_no_number_is_not_over(self, watched: Watched) -> None:
        """A p-value that is NaN raises nothing."""
        assert watched.see(make_policy(), float("nan")) == []
        assert watched.told == []

    def test_families_have_alerts_of_their_own(self, watched: Watched) -> None:
        """Each rule of a policy has its own rate and its own alert; families without a rule have none."""
        policy = make_policy(families={"warmth": 0.2})
        assert watched.see(policy, QUIET, warmth=0.15, contagion=0.001) == ["warmth"]
        assert watched.told == [("warmth", "firing")]
        watched.see(policy, OVER, warmth=0.5)
        assert sorted(watched.told) == [("affect", "firing"), ("warmth", "firing")]

    def test_policies_have_alerts_of_their_own(self, watched: Watched) -> None:
        """Quiet turns of one policy do not resolve the alert of another."""
        watched.see(make_policy("one"), OVER)
        watched.see(make_policy("two"), QUIET, QUIET, QUIET)
        assert watched.states == ["firing"]

    def test_firings_are_counted(self, watched: Watched) -> None:
        """Every start to fire counts once, however long the alert fires."""
        watched.see(make_policy(), OVER, OVER, QUIET, QUIET, OVER)
        assert watched.engine.fired == {("all", "affect"): 2}

    def test_active_alerts_are_listed_oldest_first(self, watched: Watched) -> None:
        """Alerts that are up come in the order in which they began."""
        for name in ("b", "a", "c"):
            watched.see(make_policy(name), OVER)
        assert [alert.policy.name for alert in watched.engine.active] == ["b", "a", "c"]

    @given(st.lists(st.booleans(), max_size=60), st.integers(1, 4), st.integers(1, 4))
    def test_any_course_of_turns(self, course: list[bool], pending: int, resolve: int) -> None:
        """Over any course of turns an alert is told exactly when it starts to fire and when it resolves."""
        watched, expected = Watched(), []
        over = quiet = 0
        firing = False
        for is_over in course:
            watched.see(make_policy(pending=pending, resolve=resolve), OVER if is_over else QUIET)
            over, quiet = (over + 1, 0) if is_over else (0, quiet + 1)
            if not firing and over >= pending:
                firing = True
                expected.append(("affect", "firing"))
            elif firing and quiet >= resolve:
                firing = False
                expected.append(("affect", "resolved"))
            assert watched.states == (["firing"] if firing else ["pending"] if over else [])
        assert watched.told == expected


class TestWhatAnAlertSays:
    """Labels and annotations."""

    def test_labels_identify_it(self, watched: Watched) -> None:
        """Labels are bounded: policy, target, severity and owner; no turn and no request."""
        watched.see(make_policy(severity="critical", owner="care-team"), OVER)
        assert watched.alerts[0].labels == {
            "alertname": "AffectOverIndex",
            "policy": "all",
            "target": "affect",
            "severity": "critical",
            "owner": "care-team",
        }
        watched.see(make_policy("bare"), OVER)
        assert "owner" not in watched.alerts[1].labels
        assert "runbook_url" not in watched.alerts[1].annotations

    def test_annotations_name_the_worst_turn(self, watched: Watched) -> None:
        """Of turns that share the smallest p-value the one with most over-index is the worst."""
        policy = make_policy(pending=3, runbook_url="https://example.org/runbook")
        for over_index in (2.0, 7.5, 3.0):
            watched.see(policy, OVER, over_index=over_index)
        said = watched.alerts[0].annotations
        assert "3 turn(s) over: worst turn 7.5 scales beyond what was warranted (p = 0.0100)" in said["description"]
        assert "text_silent" in said["description"]
        assert said["turn_ids"] == "turn-1,turn-2,turn-3"
        assert said["runbook_url"] == "https://example.org/runbook"

    def test_a_cold_turn_is_said_to_be_below(self, watched: Watched) -> None:
        """In a crisis a reply may be too cold, and the alert says so instead of a negative excess."""
        watched.see(make_policy(stance="crisis"), OVER, over_index=-4.0)
        assert "4.0 scales below what was warranted" in watched.alerts[0].annotations["description"]

    def test_examples_are_bounded(self, watched: Watched) -> None:
        """An alert that fires for long keeps its last five turns as examples."""
        watched.see(make_policy(), *[OVER] * 50)
        assert watched.alerts[0].annotations["turn_ids"] == ",".join(f"turn-{n}" for n in range(46, 51))


class TestReload:
    """Alerts across a reload of the policies."""

    def test_an_alert_lives_on_under_the_new_policy(self, watched: Watched) -> None:
        """An alert whose policy and rule are still there keeps its state, untold, and obeys the new numbers."""
        watched.see(make_policy(resolve=5), OVER)
        watched.engine.keep_only([make_policy(resolve=1)])
        assert (watched.states, watched.told) == (["firing"], [("affect", "firing")])
        watched.see(make_policy(resolve=1), QUIET)
        assert watched.told[-1] == ("affect", "resolved")

    def test_an_alert_whose_policy_is_gone_resolves(self, watched: Watched) -> None:
        """Firing alerts of a policy that is gone resolve and are told; pending ones vanish."""
        watched.see(make_policy("firing"), OVER)
        watched.see(make_policy("pending", pending=3), OVER)
        watched.engine.keep_only([make_policy("other")])
        assert (watched.states, watched.told) == ([], [("affect", "firing"), ("affect", "resolved")])

    def test_an_alert_whose_rule_is_gone_resolves(self, watched: Watched) -> None:
        """A family's alert resolves when its policy no longer has a rule for it; that of affect stays."""
        watched.see(make_policy(families={"warmth": 0.1}), OVER, warmth=OVER)
        watched.engine.keep_only([make_policy()])
        assert watched.told[-1] == ("warmth", "resolved")
        assert [alert.target for alert in watched.engine.active] == ["affect"]

    def test_an_alert_with_new_labels_is_resolved_under_the_old_ones(self) -> None:
        """Receivers know alerts by labels: a new severity resolves the old alert and tells the same one anew."""
        told: list[tuple[str, str]] = []
        engine = AlertEngine(lambda alert: told.append((alert.labels["severity"], alert.state.value)), lambda: 1.0)
        engine.observe(make_policy(), "turn", make_assessment(OVER), "")
        engine.keep_only([make_policy(severity="critical")])
        assert told == [("warning", "firing"), ("warning", "resolved"), ("critical", "firing")]
        assert [alert.state for alert in engine.active] == [AlertState.FIRING]
        assert engine.fired == {("all", "affect"): 1}
