"""The life of alerts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

import pytest
from builders import make_assessment
from hypothesis import given
from hypothesis import strategies as st

from monitor.policy.alert import Alert, AlertState, JudgedTurn
from monitor.policy.engine import AlertEngine
from monitor.policy.schema import Policy, PolicyFile, TurnRule

RATE = 0.05
OVER, QUIET = 0.01, 0.5
NIGHT = {"start": "22:00", "end": "06:00"}
AT_NOON, AT_MIDNIGHT = (datetime(2025, 6, 15, hour, tzinfo=timezone.utc).timestamp() for hour in (12, 23))


def make_policy(name: str = "all", pending: int = 1, resolve: int = 2, stale: float = 60, **fields: Any) -> Policy:
    """A policy that alarms at RATE."""
    rule = TurnRule(false_alarm_rate=RATE, pending_turns=pending, resolve_turns=resolve, stale_minutes=stale)
    return Policy.model_validate({"name": name, "stance": "neutral", "turn": rule} | fields)


def file_of(*policies: Policy, runbooks: str = "") -> PolicyFile:
    """A policy file; of these policies every one but the last has a label of its own to match."""
    *others, last = policies
    named = [policy.model_copy(update={"match": {"route": policy.name}}) for policy in others]
    return PolicyFile(version=1, links={"runbooks": runbooks}, policies=(*named, last))  # type: ignore[arg-type]


class Watched:
    """An engine whose notifications, clocks and inhibition are at hand.

    Args:
        policies: What it begins with.
    """

    def __init__(self, *policies: Policy) -> None:
        self.now = AT_NOON
        self.seconds = 0.0
        self.inhibited = False
        self.groups: list[list[Alert]] = []
        self.turns = 0
        self.engine = self.make(file_of(*(policies or (make_policy(),))))

    def make(self, policies: PolicyFile) -> AlertEngine:
        """An engine that tells and asks this one."""
        return AlertEngine(
            policies, self._tell, lambda: self.inhibited, clock=lambda: self.now, timer=lambda: self.seconds
        )

    def _tell(self, group: Sequence[Alert]) -> None:
        self.groups.append([replace(alert) for alert in group])

    @property
    def policy(self) -> Policy:
        """The first policy in force."""
        return self.engine.policies.policies[0]

    @property
    def alerts(self) -> list[Alert]:
        """What was told, in order, as it was then."""
        return [alert for group in self.groups for alert in group]

    @property
    def told(self) -> list[tuple[str, str]]:
        """The same in short."""
        return [(alert.target, alert.state.value) for alert in self.alerts]

    @property
    def states(self) -> list[str]:
        """States of the alerts that are up."""
        return [alert.state.value for alert in self.engine.active]

    def see(self, *p_values: float, policy: Policy | None = None, over_index: float = 1.0, **families: float) -> Any:
        """Judged turns, one for each p-value; returns what the last one was over on."""
        over: list[str] = []
        for p_value in p_values:
            self.turns += 1
            self.now += 1
            self.seconds += 1
            assessment = make_assessment(p_value, over_index, **families)
            turn = JudgedTurn(f"turn-{self.turns}", assessment, "text_silent" if p_value <= RATE else "", 1.0, False)
            over = self.engine.observe(policy or self.policy, turn)
        return over

    def restart(self) -> None:
        """Goes on in another process."""
        state = json.loads(json.dumps(self.engine.state()))
        self.engine = self.make(self.engine.policies)
        self.engine.restore(state)


class TestLife:
    """Quiet, pending, firing, resolved."""

    def test_pending_firing_resolved(self) -> None:
        """An alert pends until enough turns in a row were over, fires, and resolves after enough quiet ones."""
        watched = Watched(make_policy(pending=3, resolve=2))
        watched.see(OVER, OVER)
        assert (watched.states, watched.told) == (["pending"], [])
        watched.see(OVER)
        assert (watched.states, watched.told) == (["firing"], [("affect", "firing")])
        watched.see(QUIET)
        assert watched.states == ["firing"]
        watched.see(QUIET)
        assert (watched.states, watched.told) == ([], [("affect", "firing"), ("affect", "resolved")])
        assert watched.alerts[-1].ended == watched.now
        assert "Resolved: within bounds for 2 turns in a row." in watched.alerts[-1].annotations["description"]

    def test_one_quiet_turn_ends_a_pending_alert(self) -> None:
        """Turns over must come in a row: a quiet one in between starts the count again, and nobody is told."""
        watched = Watched(make_policy(pending=2))
        watched.see(OVER, QUIET, OVER, QUIET, OVER, QUIET)
        assert (watched.states, watched.told) == ([], [])

    def test_a_turn_over_starts_the_quiet_count_again(self) -> None:
        """A firing alert resolves only after quiet turns in a row; one over in between keeps it firing, untold."""
        watched = Watched(make_policy(resolve=3))
        watched.see(OVER, QUIET, QUIET, OVER, QUIET, QUIET)
        assert (watched.states, watched.told) == (["firing"], [("affect", "firing")])
        watched.see(QUIET)
        assert watched.told[-1] == ("affect", "resolved")

    def test_the_rate_itself_is_over(self) -> None:
        """A p-value equal to the rate counts as over, as a conformal test at that level has it."""
        assert Watched().see(RATE) == ["affect"]

    def test_what_is_no_number_is_not_over(self) -> None:
        """A p-value that is NaN raises nothing."""
        watched = Watched()
        assert watched.see(float("nan")) == []
        assert watched.told == []

    def test_families_have_alerts_of_their_own(self) -> None:
        """Each rule of a policy has its own rate and its own alert; families without a rule have none."""
        watched = Watched(make_policy(families={"warmth": 0.2}))
        assert watched.see(QUIET, warmth=0.15, contagion=0.001) == ["warmth"]
        assert watched.told == [("warmth", "firing")]
        watched.see(OVER, warmth=0.5)
        assert sorted(watched.told) == [("affect", "firing"), ("warmth", "firing")]

    def test_policies_have_alerts_of_their_own(self) -> None:
        """Quiet turns of one policy do not resolve the alert of another."""
        one, two = make_policy("one"), make_policy("two")
        watched = Watched(one, two)
        watched.see(OVER, policy=one)
        watched.see(QUIET, QUIET, QUIET, policy=two)
        assert watched.states == ["firing"]

    def test_firings_are_counted(self) -> None:
        """Every start to fire counts once, however long the alert fires."""
        watched = Watched()
        watched.see(OVER, OVER, QUIET, QUIET, OVER)
        assert watched.engine.fired == {("all", "affect"): 2}

    def test_active_alerts_are_listed_oldest_first(self) -> None:
        """Alerts that are up come in the order in which they began."""
        policies = [make_policy(name) for name in ("b", "a", "c")]
        watched = Watched(*policies)
        for policy in policies:
            watched.see(OVER, policy=policy)
        assert [alert.policy for alert in watched.engine.active] == ["b", "a", "c"]

    @given(st.lists(st.booleans(), max_size=60), st.integers(1, 4), st.integers(1, 4))
    def test_any_course_of_turns(self, course: list[bool], pending: int, resolve: int) -> None:
        """Over any course of turns an alert is told exactly when it starts to fire and when it resolves."""
        watched, expected = Watched(make_policy(pending=pending, resolve=resolve)), []
        over = quiet = 0
        firing = False
        for is_over in course:
            watched.see(OVER if is_over else QUIET)
            over, quiet = (over + 1, 0) if is_over else (0, quiet + 1)
            if not firing and over >= pending:
                firing = True
                expected.append(("affect", "firing"))
            elif firing and quiet >= resolve:
                firing = False
                expected.append(("affect", "resolved"))
            assert watched.states == (["firing"] if firing else ["pending"] if over else [])
        assert watched.told == expected


class TestGroups:
    """What changes together is told together."""

    def test_one_turn_tells_of_all_targets_at_once(self) -> None:
        """Affect and families of a policy that fire, and resolve, in the same turn are one message."""
        watched = Watched(make_policy(resolve=1, families={"warmth": 0.1}))
        watched.see(OVER, warmth=OVER)
        watched.see(QUIET)
        assert [[(alert.target, alert.state.value) for alert in group] for group in watched.groups] == [
            [("affect", "firing"), ("warmth", "firing")],
            [("affect", "resolved"), ("warmth", "resolved")],
        ]

    def test_policies_are_told_of_apart(self) -> None:
        """Alerts of two policies that change at once are two messages."""
        one, two = make_policy("one"), make_policy("two")
        watched = Watched(one, two)
        watched.see(OVER, policy=one)
        watched.see(OVER, policy=two)
        watched.engine.keep_only(file_of(make_policy("other")))
        assert [[alert.policy for alert in group] for group in watched.groups[2:]] == [["one"], ["two"]]


class TestStaleness:
    """Routes on which nothing happens any more."""

    def test_an_alert_of_a_silent_route_resolves(self) -> None:
        """A firing alert whose route had no judged turn for the policy's time is resolved, and says why."""
        watched = Watched(make_policy(stale=30))
        watched.see(OVER)
        watched.seconds += 30 * 60 - 1
        watched.engine.sweep()
        assert watched.states == ["firing"]
        watched.seconds += 1
        watched.engine.sweep()
        assert (watched.states, watched.told[-1]) == ([], ("affect", "resolved"))
        said = watched.alerts[-1].annotations["description"]
        assert said.startswith("Resolved: no turn of its route was judged for 30 minutes.")

    def test_a_quiet_turn_is_a_sign_of_life(self) -> None:
        """Any judged turn of the route starts the time again."""
        watched = Watched(make_policy(stale=30, resolve=5))
        watched.see(OVER)
        watched.seconds += 29 * 60
        watched.see(QUIET)
        watched.seconds += 29 * 60
        watched.engine.sweep()
        assert watched.states == ["firing"]

    def test_a_clock_that_jumps_makes_nothing_stale(self) -> None:
        """Time is what passes, whatever is done to the clock."""
        watched = Watched()
        watched.see(OVER)
        watched.now += 86_400
        watched.engine.sweep()
        assert watched.states == ["firing"]


class TestSilence:
    """Alerts nobody is to be told of."""

    @pytest.fixture(params=["muted", "inhibited"])
    def silenced(self, request: pytest.FixtureRequest) -> Watched:
        """A silence of either kind."""
        watched = Watched(make_policy(mute=[NIGHT]))
        watched.now = AT_MIDNIGHT if request.param == "muted" else AT_NOON
        watched.inhibited = request.param == "inhibited"
        watched.reason = request.param  # type: ignore[attr-defined]
        return watched

    def test_an_alert_is_tracked_and_not_told(self, silenced: Watched) -> None:
        """An alert that fires in a silence is up, says why nobody knows of it, and is not repeated to anybody."""
        silenced.see(OVER)
        (alert,) = silenced.engine.active
        assert (alert.state, alert.silenced) == (AlertState.FIRING, silenced.reason)  # type: ignore[attr-defined]
        assert (silenced.told, silenced.engine.told) == ([], [])

    def test_an_alert_that_lasts_is_told_when_the_silence_is_over(self, silenced: Watched) -> None:
        """Without a further turn, a sweep tells of it; its beginning is the true one."""
        silenced.see(OVER)
        began = silenced.now
        silenced.now, silenced.inhibited = AT_NOON + 86_400, False
        silenced.engine.sweep()
        assert silenced.told == [("affect", "firing")]
        assert [alert.started for alert in silenced.engine.told] == [began]
        assert silenced.engine.active[0].silenced == ""

    def test_an_alert_that_is_over_by_then_is_never_told(self, silenced: Watched) -> None:
        """Nobody hears the end of what they never heard of."""
        silenced.see(OVER, QUIET, QUIET)
        silenced.now, silenced.inhibited = AT_NOON + 86_400, False
        silenced.engine.sweep()
        assert (silenced.states, silenced.told) == ([], [])

    def test_an_alert_told_before_is_resolved_aloud(self) -> None:
        """Who knows that it fires is told that it is over, in a silence too."""
        watched = Watched()
        watched.see(OVER)
        watched.inhibited = True
        watched.see(QUIET)
        assert [alert.target for alert in watched.engine.told] == ["affect"]
        watched.see(QUIET)
        assert watched.told == [("affect", "firing"), ("affect", "resolved")]

    def test_one_silence_may_follow_another(self) -> None:
        """The reason that is shown is the one that holds now."""
        watched = Watched(make_policy(mute=[NIGHT]))
        watched.inhibited = True
        watched.see(OVER)
        watched.now, watched.inhibited = AT_MIDNIGHT, False
        watched.engine.sweep()
        assert [alert.silenced for alert in watched.engine.active] == ["muted"]
        assert watched.told == []


class TestReload:
    """Alerts across a reload of the policies."""

    def test_an_alert_lives_on_under_the_new_policy(self) -> None:
        """An alert whose policy and rule are still there keeps its state, untold, and obeys the new numbers."""
        watched = Watched(make_policy(resolve=5))
        watched.see(OVER)
        watched.engine.keep_only(file_of(make_policy(resolve=1), runbooks="https://example.org"))
        assert (watched.states, watched.told) == (["firing"], [("affect", "firing")])
        watched.see(QUIET)
        assert watched.told[-1] == ("affect", "resolved")
        assert watched.alerts[-1].annotations["runbook_url"] == "https://example.org/AffectOverIndex.md"

    def test_an_alert_whose_policy_is_gone_resolves(self) -> None:
        """Firing alerts of a policy that is gone resolve and are told, with the reason; pending ones vanish."""
        firing, pending = make_policy("firing"), make_policy("pending", pending=3)
        watched = Watched(firing, pending)
        watched.see(OVER, policy=firing)
        watched.see(OVER, policy=pending)
        watched.engine.keep_only(file_of(make_policy("other")))
        assert (watched.states, watched.told) == ([], [("affect", "firing"), ("affect", "resolved")])
        assert "the policy file no longer has its rule" in watched.alerts[-1].annotations["description"]

    def test_a_turn_of_a_bank_without_the_family_is_judged_on_the_rest(self) -> None:
        """A turn that began before the reload says nothing of a family that only the new bank has."""
        watched = Watched()
        watched.engine.keep_only(file_of(make_policy(families={"envy": 0.1})))
        watched.see(OVER)
        assert watched.told == [("affect", "firing")]

    def test_an_alert_whose_rule_is_gone_resolves(self) -> None:
        """A family's alert resolves when its policy no longer has a rule for it; that of affect stays."""
        watched = Watched(make_policy(families={"warmth": 0.1}))
        watched.see(OVER, warmth=OVER)
        watched.engine.keep_only(file_of(make_policy()))
        assert watched.told[-1] == ("warmth", "resolved")
        assert [alert.target for alert in watched.engine.active] == ["affect"]

    def test_an_alert_with_new_labels_is_resolved_under_the_old_ones(self) -> None:
        """Receivers know alerts by labels: a new severity resolves the old alert and tells the same one anew."""
        watched = Watched()
        watched.see(OVER)
        watched.engine.keep_only(file_of(make_policy(severity="critical")))
        told = [(alert.labels["severity"], alert.state.value) for alert in watched.alerts]
        assert told == [("warning", "firing"), ("warning", "resolved"), ("critical", "firing")]
        assert watched.states == ["firing"]
        assert watched.engine.fired == {("all", "affect"): 1}

    def test_new_labels_are_not_told_in_a_silence(self) -> None:
        """In a silence the old labels are resolved aloud, and the new ones wait for its end."""
        watched = Watched()
        watched.see(OVER)
        watched.inhibited = True
        watched.engine.keep_only(file_of(make_policy(severity="critical")))
        assert watched.told == [("affect", "firing"), ("affect", "resolved")]
        watched.inhibited = False
        watched.engine.sweep()
        assert [alert.labels["severity"] for alert in watched.alerts] == ["warning", "warning", "critical"]


class TestRestart:
    """Alerts across processes."""

    def test_a_firing_alert_goes_on(self) -> None:
        """It is not told again, remembers its turns and resolves by its rule, quiet turns of before counted."""
        watched = Watched(make_policy(resolve=3))
        watched.see(OVER, OVER, QUIET)
        before = watched.engine.active
        watched.restart()
        assert watched.engine.active == before
        watched.see(QUIET, QUIET)
        assert watched.told == [("affect", "firing"), ("affect", "resolved")]
        assert watched.alerts[-1].turn_ids == ("turn-1", "turn-2")

    def test_a_pending_alert_goes_on(self) -> None:
        """Turns over before and after the restart are in a row."""
        watched = Watched(make_policy(pending=2))
        watched.see(OVER)
        watched.restart()
        watched.see(OVER)
        assert watched.told == [("affect", "firing")]

    def test_a_silenced_alert_is_told_by_the_next_process(self) -> None:
        """What nobody was told is still to be told, as soon as nothing speaks against it."""
        watched = Watched()
        watched.inhibited = True
        watched.see(OVER)
        watched.restart()
        assert watched.told == []
        watched.inhibited = False
        watched.restart()
        assert watched.told == [("affect", "firing")]

    def test_an_alert_whose_policy_went_meanwhile_is_resolved(self) -> None:
        """Who was told by the process before is told of the end by this one, under the labels of then."""
        watched = Watched(make_policy(severity="critical"))
        watched.see(OVER)
        state = watched.engine.state()
        watched.make(file_of(make_policy("other"))).restore(state)
        assert watched.told == [("affect", "firing"), ("affect", "resolved")]
        assert watched.alerts[-1].labels == watched.alerts[0].labels

    def test_the_time_of_silence_starts_again(self) -> None:
        """How long nothing was judged is counted from the restart on."""
        watched = Watched(make_policy(stale=30))
        watched.see(OVER)
        watched.seconds += 29 * 60
        watched.restart()
        watched.seconds += 29 * 60
        watched.engine.sweep()
        assert watched.states == ["firing"]
        watched.seconds += 60
        watched.engine.sweep()
        assert watched.states == []

    @pytest.mark.parametrize("state", [None, {}, [{}], [{"policy": "all"}], ["firing"]])
    def test_what_is_no_state_is_refused(self, state: object) -> None:
        """Something else than a state is an error of values, and leaves no alert behind."""
        watched = Watched()
        with pytest.raises(ValueError, match="validation error"):
            watched.engine.restore(state)
        assert watched.states == []


ANYTHING = st.lists(
    st.sampled_from(["over", "warm", "both", "quiet", "night", "day", "fault", "mended", "sweep", "restart", "stale"])
    | st.builds(
        make_policy,
        st.sampled_from(["all", "other"]),
        st.integers(1, 3),
        st.integers(1, 3),
        severity=st.sampled_from(["warning", "critical"]),
        families=st.sampled_from([{}, {"warmth": 0.1}]),
        mute=st.sampled_from([[], [NIGHT]]),
    ),
    max_size=80,
)
SEEN = {"over": (OVER, QUIET), "warm": (QUIET, OVER), "both": (OVER, OVER), "quiet": (QUIET, QUIET)}


class TestAnything:
    """Whatever happens, in whatever order."""

    @given(ANYTHING)
    def test_nobody_is_misled(self, course: list[str | Policy]) -> None:
        """Firing is told before resolved and once, never in a silence; at the end people know what fires."""
        watched = Watched(make_policy(families={"warmth": 0.1}, mute=[NIGHT]))
        known: set[tuple[str, ...]] = set()
        for happening in course:
            told = len(watched.alerts)
            self._happen(watched, happening)
            muted = any(window.holds(watched.now) for window in watched.policy.mute)
            for alert in watched.alerts[told:]:
                labels = tuple(alert.labels.values())
                assert (alert.state is AlertState.FIRING) == (labels not in known)
                assert alert.state is AlertState.RESOLVED or not (muted or watched.inhibited)
                known ^= {labels}
            assert known == {tuple(alert.labels.values()) for alert in watched.engine.told}
            for alert in watched.engine.active:
                assert (alert.state is AlertState.FIRING) == (alert.told or alert.silenced in {"muted", "inhibited"})
                assert not (alert.told and alert.silenced)

    @given(ANYTHING)
    def test_state_survives_as_it_is(self, course: list[str | Policy]) -> None:
        """State that goes through JSON into another engine is that engine's state."""
        watched = Watched(make_policy(families={"warmth": 0.1}, mute=[NIGHT]))
        for happening in course:
            self._happen(watched, happening)
        watched.engine.sweep()
        state, told = watched.engine.state(), len(watched.told)
        watched.restart()
        assert watched.engine.state() == state
        assert len(watched.told) == told

    def _happen(self, watched: Watched, happening: str | Policy) -> None:
        if isinstance(happening, Policy):
            watched.engine.keep_only(file_of(happening))
        elif happening in SEEN:
            affect, warmth = SEEN[happening]
            watched.see(affect, warmth=warmth)
        elif happening in {"night", "day"}:
            watched.now = AT_MIDNIGHT if happening == "night" else AT_NOON
        elif happening in {"fault", "mended"}:
            watched.inhibited = happening == "fault"
        elif happening == "restart":
            watched.restart()
        else:
            watched.seconds += 3600 * (happening == "stale")
            watched.engine.sweep()
