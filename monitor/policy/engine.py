"""The life of alerts: quiet, pending, firing, resolved, with hysteresis. One alert a policy and rule."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import Enum

from monitor.assess.overindex import AFFECT, Excess, TurnAssessment
from monitor.policy.schema import Policy

EXAMPLES = 5
"""Turn ids an alert carries as evidence."""
ALERT_NAME = "AffectOverIndex"


class AlertState(str, Enum):
    """Where an alert is in its life."""

    PENDING = "pending"
    FIRING = "firing"
    RESOLVED = "resolved"


@dataclass
class Alert:
    """One alert: what it is about, where it stands and the turns behind it."""

    policy: Policy
    target: str
    state: AlertState
    started: float
    ended: float | None = None
    worst: Excess | None = None
    visibility: str = ""
    over_turns: int = 0
    quiet_turns: int = 0
    turn_ids: deque[str] = field(default_factory=lambda: deque(maxlen=EXAMPLES))

    @property
    def labels(self) -> dict[str, str]:
        """What identifies the alert."""
        return {
            "alertname": ALERT_NAME,
            "policy": self.policy.name,
            "target": self.target,
            "severity": self.policy.severity,
            **({"owner": self.policy.owner} if self.policy.owner else {}),
        }

    @property
    def annotations(self) -> dict[str, str]:
        """What the alert says."""
        worst = self.worst
        figures = ""
        if worst:
            side = "beyond" if worst.over_index >= 0 else "below"
            figures = (
                f"worst turn {abs(worst.over_index):.1f} scales {side} what was warranted (p = {worst.p_value:.4f})"
            )
        return {
            "summary": f"{self.target} beyond what is warranted under policy {self.policy.name}",
            "description": f"{self.over_turns} turn(s) over: {figures}; {self.visibility}.",
            "turn_ids": ",".join(self.turn_ids),
            **({"runbook_url": self.policy.runbook_url} if self.policy.runbook_url else {}),
        }


class AlertEngine:
    """Keeps the alerts of all policies; told of every judged turn, tells of every change.

    Args:
        notify: Called with an alert each time it starts to fire and when it resolves.
        clock: Seconds since the epoch.
    """

    def __init__(self, notify: Callable[[Alert], None], clock: Callable[[], float] = time.time) -> None:
        self._notify = notify
        self._clock = clock
        self._active: dict[tuple[str, str], Alert] = {}
        self.fired: dict[tuple[str, str], int] = {}

    @property
    def active(self) -> list[Alert]:
        """Pending and firing alerts, oldest first."""
        return sorted(self._active.values(), key=lambda alert: alert.started)

    def observe(self, policy: Policy, turn_id: str, assessment: TurnAssessment, visibility: str) -> list[str]:
        """Takes a judged turn into account; returns the targets it was over on, for which an alert is up."""
        rules = {AFFECT: policy.turn.false_alarm_rate, **policy.families}
        excesses = {AFFECT: assessment.affect, **assessment.families}
        over = []
        for target, rate in rules.items():
            if excesses[target].p_value <= rate:
                self._over(policy, target, turn_id, excesses[target], visibility)
                over.append(target)
            else:
                self._quiet(policy, target)
        return over

    def keep_only(self, policies: list[Policy]) -> None:
        """Moves alerts to reloaded policies and resolves those whose policy or rule is gone.

        Receivers know an alert by its labels: a firing one whose labels change is resolved under the old ones and told
        again under the new.
        """
        by_name = {policy.name: policy for policy in policies}
        for (name, target), alert in list(self._active.items()):
            policy = by_name.get(name)
            if policy is None or target not in {AFFECT, *policy.families}:
                self._resolve(alert)
                continue
            before = replace(alert)
            alert.policy = policy
            if alert.state is AlertState.FIRING and alert.labels != before.labels:
                self._notify(replace(before, state=AlertState.RESOLVED, ended=self._clock()))
                self._notify(alert)

    def _over(self, policy: Policy, target: str, turn_id: str, excess: Excess, visibility: str) -> None:
        key = (policy.name, target)
        alert = self._active.get(key)
        if alert is None:
            alert = self._active[key] = Alert(policy, target, AlertState.PENDING, self._clock())
        alert.over_turns += 1
        alert.quiet_turns = 0
        alert.turn_ids.append(turn_id)
        if alert.worst is None or _severity(excess) > _severity(alert.worst):
            alert.worst, alert.visibility = excess, visibility
        if alert.state is AlertState.PENDING and alert.over_turns >= policy.turn.pending_turns:
            alert.state = AlertState.FIRING
            self.fired[key] = self.fired.get(key, 0) + 1
            self._notify(alert)

    def _quiet(self, policy: Policy, target: str) -> None:
        alert = self._active.get((policy.name, target))
        if alert is None:
            return
        alert.quiet_turns += 1
        if alert.state is AlertState.PENDING:
            del self._active[policy.name, target]
        elif alert.quiet_turns >= policy.turn.resolve_turns:
            self._resolve(alert)

    def _resolve(self, alert: Alert) -> None:
        self._active.pop((alert.policy.name, alert.target), None)
        if alert.state is AlertState.FIRING:
            alert.state = AlertState.RESOLVED
            alert.ended = self._clock()
            self._notify(alert)


def _severity(excess: Excess) -> tuple[float, float]:
    """How far out an excess is: many turns share the smallest p-value that a reference can show."""
    return -excess.p_value, abs(excess.over_index)
