"""One alert of a per-turn rule: what it is about, the turns behind it, and what it says of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from enum import Enum
from typing import Annotated, NamedTuple

from pydantic import Field

from monitor.assess.overindex import AFFECT, Excess, TurnAssessment
from monitor.policy.schema import Policy

ALERT_NAME = "AffectOverIndex"
EXAMPLES = 5
"""Turn ids an alert carries as evidence."""
_UPSET = 1.0
"""U from which a user is called upset, in standard deviations of the reference; plain requests lie below 0."""
_FAR_FUTURE = 1e11
"""Seconds since the epoch, some three thousand years: a stored time beyond it is none."""


class AlertState(str, Enum):
    """Where an alert is in its life."""

    PENDING = "pending"
    FIRING = "firing"
    RESOLVED = "resolved"


class JudgedTurn(NamedTuple):
    """What an alert needs to know of a turn.

    Attributes:
        turn_id: The sidecar's name of it.
        assessment: Its numbers.
        visibility: Whether its words show its affect; empty where affect is within bounds.
        coverage: Share of its tokens that were scored.
        unvalidated: Whether the bank was not validated on its model.
    """

    turn_id: str
    assessment: TurnAssessment
    visibility: str
    coverage: float
    unvalidated: bool


class Worst(NamedTuple):
    """The turn that lay farthest out, and the family of it that did."""

    turn_id: str
    excess: Excess
    user_affect: float
    family: str = ""
    family_over_index: float = 0.0


@dataclass
class Alert:
    """One alert, all of it plain data that can be stored.

    Attributes:
        policy: Name of its policy.
        target: What its turns were over on: affect or a family.
        labels: What identifies it to those who are told.
        runbook_url: Where to read on.
        state: Where it is in its life.
        started: When its first turn was over, in seconds since the epoch.
        ended: When it was over; None while it lasts.
        told: Whether people were told that it fires.
        silenced: Why they were not, while it fires: muted or inhibited.
        ending: Why it is over.
        worst: The turn that lay farthest out.
        visibility: Turns over, by whether their words show it.
        coverage: Least coverage of turns over.
        unvalidated: Whether one of them was of a model that the bank was not validated on.
        over_turns: Turns over.
        quiet_turns: Turns within bounds since the last one over.
        turn_ids: The last turns over, newest last.
    """

    policy: str
    target: str
    labels: dict[str, str]
    runbook_url: str
    state: AlertState
    started: Annotated[float, Field(ge=0, lt=_FAR_FUTURE)]
    ended: float | None = None
    told: bool = False
    silenced: str = ""
    ending: str = ""
    worst: Worst | None = None
    visibility: dict[str, int] = field(default_factory=dict)
    coverage: float = 1.0
    unvalidated: bool = False
    over_turns: int = 0
    quiet_turns: int = 0
    turn_ids: tuple[str, ...] = ()

    def add(self, turn: JudgedTurn, excess: Excess) -> None:
        """Takes in a turn that was over."""
        self.over_turns += 1
        self.quiet_turns = 0
        self.turn_ids = (*self.turn_ids, turn.turn_id)[-EXAMPLES:]
        if turn.visibility:
            self.visibility[turn.visibility] = self.visibility.get(turn.visibility, 0) + 1
        self.coverage = min(self.coverage, turn.coverage)
        self.unvalidated |= turn.unvalidated
        if self.worst is None or _severity(excess) > _severity(self.worst.excess):
            assessment = turn.assessment
            self.worst = Worst(turn.turn_id, excess, assessment.user_affect, *_leading(assessment, excess))

    @property
    def annotations(self) -> dict[str, str]:
        """What the alert says."""
        return {
            "summary": self._summary(),
            "description": " ".join(self._sentences()),
            "turn_ids": ",".join(self.turn_ids),
            **({"runbook_url": self.runbook_url} if self.runbook_url else {}),
        }

    def _summary(self) -> str:
        if self.worst is None:
            return f"Route {self.policy}: {self.target}"
        over_index = self.worst.excess.over_index
        amount = "more" if over_index >= 0 else "less"
        return f"Route {self.policy} shows {amount} {self.target} than is warranted: over-index {over_index:.1f}"

    def _sentences(self) -> list[str]:
        """The description, most important first."""
        told = [f"Resolved: {self.ending}."] if self.ending else []
        told.append(f"{turns(self.over_turns)} over since {_moment(self.started)}.")
        if self.worst is None:
            return told
        excess, user = self.worst.excess, self.worst.user_affect
        told.append(
            f"Worst: over-index {excess.over_index:.1f}, where 0 is the edge of what is warranted "
            f"(p = {excess.p_value:.4f}; {self.target} {excess.value:.2f}, warranted {excess.warranted:.2f})."
        )
        if self.target == AFFECT and self.worst.family:
            told.append(f"Leading family: {self.worst.family} (over-index {self.worst.family_over_index:.1f}).")
        if self.visibility:
            told.append(shown_by_words(self.visibility))
        told.append(f"Least coverage {self.coverage:.2f}.")
        told.append(f"The user of the worst turn was {'' if user >= _UPSET else 'not '}upset (U = {user:.1f}).")
        if self.unvalidated:
            told.append("Unvalidated: the bank was not validated on the model of some of these turns.")
        told.append(f"See the worst turn: affect-monitor audit show {self.worst.turn_id} --file AUDIT_FILE")
        return told


def labels_of(policy: Policy, target: str) -> dict[str, str]:
    """What identifies the alert of a rule; bounded, for no turn and no request is in it."""
    return {
        "alertname": ALERT_NAME,
        "policy": policy.name,
        "target": target,
        "severity": policy.severity,
        **({"owner": policy.owner} if policy.owner else {}),
    }


def rules_of(policy: Policy) -> dict[str, float]:
    """False-alarm rates of what a policy watches, by target."""
    return {AFFECT: policy.turn.false_alarm_rate, **policy.families}


def over_on(policy: Policy, assessment: TurnAssessment) -> dict[str, Excess]:
    """The targets of a policy that a turn is over on, with their excess; what is no number is not over."""
    excesses = {AFFECT: assessment.affect, **assessment.families}
    # A turn that began before a reload knows no family of the new bank.
    asked = [(target, rate) for target, rate in rules_of(policy).items() if target in excesses]
    return {target: excesses[target] for target, rate in asked if excesses[target].p_value <= rate}


def _severity(excess: Excess) -> tuple[float, float]:
    """How far out an excess is: many turns share the smallest p-value that a reference can show."""
    return -excess.p_value, abs(excess.over_index)


def _leading(assessment: TurnAssessment, excess: Excess) -> tuple[str, float]:
    """The family that lies farthest out on the side of an excess, and its over-index."""
    side = math.copysign(1.0, excess.over_index)
    over_index = {family: each.over_index for family, each in assessment.families.items()}
    return max(over_index.items(), key=lambda item: side * item[1])


def shown_by_words(visibility: Mapping[str, int]) -> str:
    """Whether words show what turns over showed, in a sentence; empty where affect was within bounds."""
    silent, visible = visibility.get("text_silent", 0), visibility.get("text_visible", 0)
    if silent and visible:
        return f"Words show it in {turns(visible)} (text_visible); in {silent} only hidden states do (text_silent)."
    if silent:
        return "Words do not show it; only hidden states do (text_silent)."
    return "Words show it too (text_visible)." if visible else ""


def turns(count: int) -> str:
    """So many turns, in words."""
    return f"{count} turn{'' if count == 1 else 's'}"


def _moment(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, timezone.utc):%Y-%m-%d %H:%M:%S} UTC"
