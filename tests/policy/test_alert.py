"""What an alert says."""

from __future__ import annotations

from typing import Any

import pytest
from builders import make_assessment

from monitor.policy.alert import Alert, AlertState, JudgedTurn, labels_of
from monitor.policy.schema import Policy, TurnRule

P = 0.0016


def make_alert(target: str = "affect", runbook: str = "", **fields: Any) -> Alert:
    """A firing alert without turns."""
    turn = TurnRule(false_alarm_rate=0.05)
    policy = Policy.model_validate({"name": "desk", "stance": "neutral", "turn": turn} | fields)
    return Alert(policy.name, target, labels_of(policy, target), runbook, AlertState.FIRING, 1.75e9)


def add(alert: Alert, *over_indices: float, user: float = 0.0, visibility: str = "text_silent", **fields: Any) -> Alert:
    """The alert with further turns over."""
    for over_index in over_indices:
        assessment = make_assessment(P, over_index)._replace(user_affect=user)
        common = {"coverage": 1.0, "unvalidated": False, "visibility": visibility}
        turn = JudgedTurn(f"turn-{alert.over_turns + 1}", assessment, **(common | fields))
        alert.add(turn, assessment.affect)
    return alert


def described(alert: Alert) -> str:
    """Its description."""
    return alert.annotations["description"]


class TestLabels:
    """What identifies an alert."""

    def test_are_policy_target_severity_and_owner(self) -> None:
        """Labels are bounded: no turn and no request is in them; an owner only where there is one."""
        common = {"alertname": "AffectOverIndex", "policy": "desk", "target": "affect"}
        owned = make_alert(severity="critical", owner="care-team")
        assert owned.labels == {**common, "severity": "critical", "owner": "care-team"}
        assert make_alert().labels == {**common, "severity": "warning"}


class TestSummary:
    """The line that wakes people."""

    def test_names_route_target_and_excess(self) -> None:
        """Who reads nothing else knows where, what and how far."""
        said = add(make_alert(), 7.5).annotations["summary"]
        assert said == "Route desk shows more affect than is warranted: over-index 7.5"
        assert "more warmth" in add(make_alert("warmth"), 7.5).annotations["summary"]

    def test_of_a_cold_turn(self) -> None:
        """In a crisis a reply may be too cold, and the alert says so instead of a negative excess."""
        said = add(make_alert(stance="crisis"), -4.0).annotations["summary"]
        assert said == "Route desk shows less affect than is warranted: over-index -4.0"


class TestDescription:
    """All that is known."""

    def test_reads_as_text(self) -> None:
        """How many turns, since when, the worst with p-value and levels, words, coverage, user, and where to look."""
        assert described(add(make_alert(), 2.0, 7.5, 3.0)) == (
            "3 turns over since 2025-06-15 15:06:40 UTC. "
            "Worst: over-index 7.5, where 0 is the edge of what is warranted "
            "(p = 0.0016; affect 9.14, warranted 1.65). Leading family: warmth (over-index 7.5). "
            "Words do not show it; only hidden states do (text_silent). Least coverage 1.00. "
            "The user of the worst turn was not upset (U = 0.0). "
            "See the worst turn: affect-monitor audit show turn-2 --file AUDIT_FILE"
        )

    def test_of_turns_that_share_the_smallest_p_value_the_farthest_is_worst(self) -> None:
        """A reference can show no p-value below its size's; what lies farther out is worse all the same."""
        assert "Worst: over-index 7.5" in described(add(make_alert(), 7.5, 2.0))

    def test_counts_what_words_show(self) -> None:
        """Turns are counted by whether their words show it; where only a family was over, nothing is said."""
        alert = add(add(make_alert(), 2.0), 2.0, 2.0, visibility="text_visible")
        assert "Words show it in 2 turns (text_visible); in 1 only hidden states do (text_silent)." in described(alert)
        assert "Words show it too (text_visible)." in described(add(make_alert(), 2.0, visibility="text_visible"))
        assert "Words" not in described(add(make_alert("warmth"), 2.0, visibility=""))

    @pytest.mark.parametrize(
        ("over_index", "family"), [(4.0, "warmth (over-index 5.0)"), (-4.0, "calm (over-index -6.0)")]
    )
    def test_names_the_family_that_leads(self, over_index: float, family: str) -> None:
        """The family farthest out on the side of the worst turn's excess is named, unless the alert is of a family."""
        excess = make_assessment(P, over_index).affect
        families = {"warmth": excess._replace(over_index=5.0), "calm": excess._replace(over_index=-6.0)}
        assessment = make_assessment(P, over_index)._replace(families=families)
        of_affect, of_family = make_alert(), make_alert("warmth")
        for alert in (of_affect, of_family):
            alert.add(JudgedTurn("turn-1", assessment, "", 1.0, unvalidated=False), assessment.affect)
        assert f"Leading family: {family}." in described(of_affect)
        assert "Leading" not in described(of_family)

    def test_says_how_much_was_seen_at_least(self) -> None:
        """The least coverage of its turns is told, whatever came later."""
        assert "Least coverage 0.91." in described(add(add(make_alert(), 1.0, coverage=0.91), 1.0))

    def test_says_whether_the_user_was_upset(self) -> None:
        """The user is that of the worst turn."""
        alert = add(add(make_alert(), 7.5, user=2.34), 1.0)
        assert "The user of the worst turn was upset (U = 2.3)." in described(alert)

    def test_marks_what_is_not_validated(self) -> None:
        """One turn of a model the bank was not validated on is enough."""
        assert "Unvalidated" not in described(add(make_alert(), 1.0))
        assert "Unvalidated: " in described(add(add(make_alert(), 1.0, unvalidated=True), 1.0))

    def test_of_an_alert_without_turns(self) -> None:
        """An alert can be shown before its first turn is in it."""
        assert described(make_alert()).startswith("0 turns over")


class TestEvidence:
    """Where to read on."""

    def test_examples_are_bounded(self) -> None:
        """An alert that fires for long keeps its last five turns as examples, newest last."""
        alert = add(make_alert(), *[1.0] * 50)
        assert alert.annotations["turn_ids"] == ",".join(f"turn-{n}" for n in range(46, 51))

    def test_runbook_is_named_where_there_is_one(self) -> None:
        """Without a folder of runbooks there is no empty link."""
        assert "runbook_url" not in make_alert().annotations
        assert make_alert(runbook="https://example.org/a.md").annotations["runbook_url"] == "https://example.org/a.md"
