"""The life of alerts: quiet, pending, firing, resolved, with hysteresis and silence. One alert a policy and rule."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from pydantic import TypeAdapter

from monitor.assess.overindex import Excess
from monitor.policy.alert import Alert, AlertState, JudgedTurn, labels_of, over_on, rules_of, turns
from monitor.policy.schema import Policy, PolicyFile

MUTED, INHIBITED = "muted", "inhibited"
"""Why nobody is told of an alert: its policy says so at this time, or the monitor itself is at fault."""
_STORED = TypeAdapter(list[Alert])


class AlertEngine:
    """Keeps the alerts of all policies; told of every judged turn, tells of every change.

    Nobody is told of an alert that begins to fire in a silence; when that is over and the alert still fires, it is told
    then. What was told is resolved aloud, silence or not.

    Args:
        policies: The policy file in force.
        notify: Called with the alerts of one policy that changed together, when they begin to fire or resolve.
        inhibited: Whether the monitor is at fault in a way that makes affect alerts doubtful.
        clock: Seconds since the epoch.
        timer: Seconds that pass evenly, whatever is done to the clock.
    """

    def __init__(
        self,
        policies: PolicyFile,
        notify: Callable[[Sequence[Alert]], None],
        inhibited: Callable[[], bool] = lambda: False,
        *,
        clock: Callable[[], float] = time.time,
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        self.policies = policies
        self._notify = notify
        self._inhibited = inhibited
        self._clock = clock
        self._timer = timer
        self._active: dict[tuple[str, str], Alert] = {}
        self._judged: dict[str, float] = {}
        """When a turn of each policy was last judged."""
        self._resolved: list[Alert] = []
        """Alerts that are over and have yet to be told."""
        self.fired: dict[tuple[str, str], int] = {}

    @property
    def active(self) -> list[Alert]:
        """Pending and firing alerts, oldest first."""
        return sorted(self._active.values(), key=lambda alert: alert.started)

    @property
    def told(self) -> list[Alert]:
        """Firing alerts that people know of, oldest first."""
        return [alert for alert in self.active if alert.told]

    def observe(self, policy: Policy, turn: JudgedTurn) -> list[str]:
        """Takes a judged turn into account; returns the targets it was over on, for which an alert is up."""
        self._judged[policy.name] = self._timer()
        over = over_on(policy, turn.assessment)
        for target in rules_of(policy):
            if target in over:
                self._over(policy, target, turn, over[target])
            else:
                self._quiet(policy, target)
        self._tell()
        return list(over)

    def sweep(self) -> None:
        """Resolves firing alerts of routes that have gone silent, and tells of those whose silence is over."""
        for alert in self.active:
            stale = self._policy(alert.policy).turn.stale_minutes
            if alert.state is AlertState.FIRING and self._timer() - self._judged[alert.policy] >= 60 * stale:
                self._resolve(alert, f"no turn of its route was judged for {stale:g} minutes")
        self._tell()

    def keep_only(self, policies: PolicyFile) -> None:
        """Puts policies into force: moves alerts to them and resolves those whose policy or rule is gone.

        Receivers know an alert by its labels: a firing one whose labels change is resolved under the old ones and told
        again under the new.
        """
        self.policies = policies
        rules = {(policy.name, target): policy for policy in policies.policies for target in rules_of(policy)}
        for alert in self.active:
            policy = rules.get((alert.policy, alert.target))
            if policy is None:
                self._resolve(alert, "the policy file no longer has its rule")
                continue
            labels = labels_of(policy, alert.target)
            if alert.told and labels != alert.labels:
                self._resolved.append(self._ended(replace(alert), "it goes on under other labels"))
                alert.told = False
            alert.labels, alert.runbook_url = labels, policies.runbook(labels["alertname"])
        self._tell()

    def state(self) -> list[dict[str, Any]]:
        """Pending and firing alerts as JSON knows them."""
        stored: list[dict[str, Any]] = _STORED.dump_python(self.active, mode="json")
        return stored

    def restore(self, state: object) -> None:
        """Goes on with the alerts of an earlier process, under the policies of this one.

        Raises:
            ValueError: It is no state of alerts.
        """
        for alert in _STORED.validate_python(state):
            self._active[alert.policy, alert.target] = alert
            self._judged[alert.policy] = self._timer()
        self.keep_only(self.policies)

    def _over(self, policy: Policy, target: str, turn: JudgedTurn, excess: Excess) -> None:
        key = (policy.name, target)
        alert = self._active.get(key)
        if alert is None:
            labels = labels_of(policy, target)
            runbook = self.policies.runbook(labels["alertname"])
            alert = Alert(policy.name, target, labels, runbook, AlertState.PENDING, self._clock())
            self._active[key] = alert
        alert.add(turn, excess)
        if alert.state is AlertState.PENDING and alert.over_turns >= policy.turn.pending_turns:
            alert.state = AlertState.FIRING
            self.fired[key] = self.fired.get(key, 0) + 1

    def _quiet(self, policy: Policy, target: str) -> None:
        alert = self._active.get((policy.name, target))
        if alert is None:
            return
        alert.quiet_turns += 1
        within = policy.turn.resolve_turns
        if alert.state is AlertState.PENDING or alert.quiet_turns >= within:
            self._resolve(alert, f"within bounds for {turns(within)} in a row")

    def _resolve(self, alert: Alert, why: str) -> None:
        """Takes an alert off; only one that was told is told to be over."""
        del self._active[alert.policy, alert.target]
        if alert.told:
            self._resolved.append(self._ended(alert, why))

    def _ended(self, alert: Alert, why: str) -> Alert:
        alert.state, alert.ended, alert.ending = AlertState.RESOLVED, self._clock(), why
        return alert

    def _tell(self) -> None:
        """Tells of what is over and of what fires, where nothing speaks against it; each policy's in one call."""
        changed, self._resolved = self._resolved, []
        for alert in self._active.values():
            if alert.state is AlertState.FIRING and not alert.told:
                alert.silenced = self._silence(self._policy(alert.policy))
                alert.told = not alert.silenced
                if alert.told:
                    changed.append(alert)
        for policy in dict.fromkeys(alert.policy for alert in changed):
            self._notify([alert for alert in changed if alert.policy == policy])

    def _silence(self, policy: Policy) -> str:
        """Why nobody is to be told of a policy's alerts now; empty where nothing speaks against it."""
        if self._inhibited():
            return INHIBITED
        now = self._clock()
        return MUTED if any(window.holds(now) for window in policy.mute) else ""

    def _policy(self, name: str) -> Policy:
        return next(policy for policy in self.policies.policies if policy.name == name)
