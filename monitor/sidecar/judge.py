"""The end of a turn: its account of tokens, what may be said of it, and whom it is told to."""

from __future__ import annotations

import math
import time
from typing import Any, NamedTuple

from monitor.assess.overindex import TurnAssessment
from monitor.outputs.audit import AuditStore
from monitor.outputs.baseline import BaselineWriter
from monitor.outputs.metrics import Metrics
from monitor.policy.alert import JudgedTurn
from monitor.policy.engine import AlertEngine
from monitor.policy.faults import BLIND, Faults
from monitor.policy.marks import CANARY, MARKS, SAMPLED_OUT
from monitor.policy.schema import Policy
from monitor.probes.bank import Bank
from monitor.sidecar.drifts import Drifts
from monitor.sidecar.sessions import OpenTurn
from monitor.sidecar.sight import Sight
from monitor.turns.tracker import TurnStats
from monitor.wire.v1 import ingest_pb2

_VISIBLE_P = 0.05
"""The text twin sees an over-index when its own p-value is at most this."""
_VISIBILITY = {
    "": ingest_pb2.VISIBILITY_UNSPECIFIED,
    "text_visible": ingest_pb2.VISIBILITY_TEXT_VISIBLE,
    "text_silent": ingest_pb2.VISIBILITY_TEXT_SILENT,
}
VISIBILITIES = tuple(filter(None, _VISIBILITY))
"""What may be said of the words of a turn over on affect."""
_NO_NUMBERS: dict[str, Any] = dict.fromkeys(
    ("user_affect", "assistant_affect", "warranted", "over_index", "p_value", "twin_over_index"), math.nan
)
_SHOWN = {value: text for text, value in _VISIBILITY.items()}
UNTOLD, REFUSED = "untold", "refused"
"""Reasons for which tokens are missing: nobody said why; their request has no turn."""
OTHER = "other"
"""What families are counted as that the bank does not have: an engine may name any."""


def cappable(bank: Bank) -> tuple[str, ...]:
    """What interventions are counted under by name: affect as a whole, and the families of a bank."""
    return ("affect", *bank.card.families)


class Ending(NamedTuple):
    """How a turn ended."""

    request_id: str
    turn: OpenTurn
    total_tokens: int
    is_the_banks: bool
    abandoned: bool


class TurnJudge:
    """Judges finished turns and tells of them.

    Args:
        metrics: Where everything is counted.
        alerts: Life of alerts.
        baseline: Takes turns that are judged and raise no alert.
        audit: Takes turns that raise alerts or were held down, and a sample of the others.
        faults: Is told when too few turns are seen.
    """

    def __init__(
        self,
        metrics: Metrics,
        alerts: AlertEngine,
        baseline: BaselineWriter | None,
        audit: AuditStore | None,
        faults: Faults | None,
        drifts: Drifts,
    ) -> None:
        self._metrics = metrics
        self._alerts = alerts
        self._baseline = baseline
        self._audit = audit
        self._faults = faults
        self._drifts = drifts
        self._sight = Sight()

    def finish(self, ending: Ending) -> ingest_pb2.Assessment:
        """Closes a turn, judges it where that may be done, and tells everybody."""
        turn = ending.turn
        stats = turn.generation.tracker.close(turn.slot)
        account = self._account(ending, stats)
        marks = _marks(ending, stats, account["coverage"])
        self._look(turn, marks)
        message = self._judge(turn, stats, {**account, "marks": marks})
        self._keep(turn, stats, message)
        self._count(turn.policy, message)
        self._count_interventions(turn)
        return message

    def show_alerts(self) -> None:
        """Puts the state of alerts on the page."""
        active = self._alerts.active
        self._metrics.replace(
            "affect_alerts_active", {(alert.policy, alert.target, alert.state.value): 1.0 for alert in active}
        )
        self._metrics.replace(
            "affect_alerts_silenced",
            {(alert.policy, alert.target, alert.silenced): 1.0 for alert in active if alert.silenced},
        )
        for (policy, target), count in self._alerts.fired.items():
            self._metrics.set("affect_alerts_fired_total", count, policy, target)

    def _look(self, turn: OpenTurn, marks: list[str]) -> None:
        """Says whether the monitor sees; turns under way when the sidecar began could not be seen whole."""
        if self._faults is None or turn.start.resumes:
            return
        blind = self._sight.turn(marks)
        if blind is not None:
            self._faults.set(BLIND, blind, self._sight.description)

    def _account(self, ending: Ending, stats: TurnStats) -> dict[str, Any]:
        """What is told of every turn, above all where its tokens went: scored, not finite, or missing for a reason."""
        turn = ending.turn
        told = sum(turn.gaps.values())
        total = max(ending.total_tokens, stats.seen_tokens + stats.missing_tokens + told)
        untold = total - stats.seen_tokens - told
        if untold:
            turn.gaps[UNTOLD] = untold
            self._metrics.add("affect_tokens_missing_total", untold, UNTOLD)
        return {
            "request_id": ending.request_id,
            "turn_id": turn.turn_id,
            "policy": turn.policy.name,
            "coverage": stats.scored_tokens / total if total else 0.0,
            "labels": turn.start.labels,
            "ended_unix_ns": time.time_ns(),
            "assistant_tokens": stats.assistant_tokens,
            "user_tokens": stats.user_tokens,
            "external_id": turn.start.external_id,
            "total_tokens": total,
            "scored_tokens": stats.scored_tokens,
            "filled_tokens": stats.filled_tokens,
            "gaps": turn.gaps,
            "interventions": turn.interventions,
        }

    def _judge(self, turn: OpenTurn, stats: TurnStats, told: dict[str, Any]) -> ingest_pb2.Assessment:
        """Adds the numbers of a turn and, unless something keeps it from that, puts it before the policy."""
        if "nonfinite" in told["marks"] or not stats.assistant_tokens:
            return ingest_pb2.Assessment(**told, **_NO_NUMBERS)
        assessment = turn.generation.assessor.assess(stats, turn.policy.stance)
        over = assessment.affect.p_value <= turn.policy.turn.false_alarm_rate
        visibility = visibility_of(assessment) if over else ""
        message = ingest_pb2.Assessment(**told, **_numbers(assessment, visibility))
        if _judged(message):
            self._metrics.average("affect_emotion_probability", turn.policy.name, assessment.emotions)
            judged = JudgedTurn(turn.turn_id, assessment, visibility, told["coverage"], "unvalidated" in told["marks"])
            message.alerts.extend(self._alerts.observe(turn.policy, judged))
            # A model the bank was not made for differs from its reference from the first turn on.
            if not judged.unvalidated:
                self._drifts.observe(turn.policy.name, turn.generation.bank, assessment)
        return message

    def _keep(self, turn: OpenTurn, stats: TurnStats, message: ingest_pb2.Assessment) -> None:
        """Writes a turn down where that is wanted."""
        bank, stance = turn.generation.bank, turn.policy.stance
        # A turn whose user was not seen has no user scores to keep; one that was held down is not the model's own.
        changed = message.marks or message.alerts or any(each.touched for each in message.interventions)
        if self._baseline is not None and stats.user_tokens and not changed:
            self._baseline.add(stats, stance, bank)
        if self._audit is not None:
            trace = stats.trace
            if trace is not None and message.alerts:
                trace = trace._replace(affect=turn.generation.assessor.affect(trace.affect))
            self._audit.turn(message, bank_id=bank.card.bank_id, stance=stance.value, trace=trace)

    def _count(self, policy: Policy, turn: ingest_pb2.Assessment) -> None:
        metrics, name = self._metrics, policy.name
        metrics.add("affect_turns_total", 1, name)
        for mark in turn.marks:
            metrics.add("affect_turns_unjudged_total", 1, name, mark)
        # A turn left out on purpose, or brought about by ourselves, says nothing of how well users' turns are seen.
        if not {SAMPLED_OUT, CANARY} & set(turn.marks):
            metrics.observe("affect_turn_coverage_ratio", turn.coverage, name)
        if not _judged(turn):
            return
        metrics.add("affect_turns_judged_total", 1, name)
        metrics.observe("affect_turn_over_index", turn.over_index, name)
        metrics.observe("affect_turn_user_affect", turn.user_affect, name)
        metrics.observe("affect_turn_assistant_affect", turn.assistant_affect, name)
        for family, score in turn.families.items():
            metrics.observe("affect_turn_family_score", score, name, family)
        for target in turn.alerts:
            metrics.add("affect_turns_over_total", 1, name, target)
        if turn.visibility:
            metrics.add("affect_turns_visibility_total", 1, name, _SHOWN[turn.visibility])
        self.show_alerts()

    def _count_interventions(self, turn: OpenTurn) -> None:
        known = cappable(turn.generation.bank)
        for each in turn.interventions:
            if each.touched:
                self._metrics.add("affect_interventions_total", 1, each.family if each.family in known else OTHER)


def _marks(ending: Ending, stats: TurnStats, coverage: float) -> list[str]:
    """What keeps a turn from being judged."""
    turn, rule = ending.turn, ending.turn.policy.turn
    sampled_out = SAMPLED_OUT in turn.gaps and not stats.seen_tokens
    found = {
        CANARY: turn.canary,
        "unvalidated": not (ending.is_the_banks and turn.generation.bank.card.validated),
        SAMPLED_OUT: sampled_out,
        "partial": "restarted" in turn.gaps,
        "abandoned": ending.abandoned,
        "nonfinite": stats.scored_tokens < stats.seen_tokens,
        "low_coverage": not sampled_out and coverage < rule.min_coverage,
        "short": not sampled_out and stats.assistant_tokens < rule.min_assistant_tokens,
    }
    return [mark for mark in MARKS if found[mark]]


def _judged(turn: ingest_pb2.Assessment) -> bool:
    """Whether rules apply to a turn: an unvalidated model may raise alerts too, and the mark travels with them."""
    return not set(turn.marks) - {"unvalidated"}


def visibility_of(assessment: TurnAssessment) -> str:
    """Whether the words of an over-indexed turn show it."""
    return "text_visible" if assessment.twin.p_value <= _VISIBLE_P else "text_silent"


def _numbers(assessment: TurnAssessment, visibility: str) -> dict[str, Any]:
    """The numbers of an assessment as fields of a message."""
    return {
        "user_affect": assessment.user_affect,
        "assistant_affect": assessment.affect.value,
        "warranted": assessment.affect.warranted,
        "over_index": assessment.affect.over_index,
        "p_value": assessment.affect.p_value,
        "twin_over_index": assessment.twin.over_index,
        "visibility": _VISIBILITY[visibility],
        "prepared": assessment.prepared,
        "peak": assessment.peak,
        "families": {name: excess.value for name, excess in assessment.families.items()},
        "user_families": assessment.user_families,
        "emotions": assessment.emotions,
        "user_emotions": assessment.user_emotions,
    }
