"""What alarms now, a card each: alerts on turns, lasting changes of a route, and faults of the monitor itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from monitor.assess.overindex import AFFECT
from monitor.outputs.page.routes import RouteView
from monitor.outputs.page.snapshot import Snapshot
from monitor.outputs.page.wording import evalue, excess, of_things, percent, signed
from monitor.policy.alert import Alert, shown_by_words
from monitor.policy.faults import BLIND
from monitor.probes.bank import Stance
from monitor.wire.v1 import ingest_pb2

FAULT, ALERT, NOTE = "fault", "alert", "note"
_UNVALIDATED = "Some of these turns are of a model that the bank was not validated on."
_BLIND = "Quiet is not calm: nothing is known of turns that are not seen, and nobody is told of new alerts meanwhile."
_CHANGES = {
    "overfitting": (ALERT, "AffectDrift", "the assistant shows {more} affect than in the reference, given its users"),
    "mirror": (ALERT, "AffectMirrorDrift", "the assistant mirrors its users more than in the reference"),
    "users": (NOTE, "AffectUsersShifted", "users show another affect than those of the reference"),
}


class Card(NamedTuple):
    """Something that alarms.

    Attributes:
        key: Tells it from the others.
        kind: fault, alert or note.
        name: Name of the alert.
        policy: The route it is about; empty for the monitor itself.
        title: What is wrong.
        severity: How bad it is.
        owner: Who is told; empty for nobody in particular.
        silenced: Why nobody is; empty where somebody is.
        since: When it began, in seconds since the epoch; None where that is not known.
        sentences: What it means, most important first.
        facts: Figures, by name.
        turn_ids: Turns to look at, newest first.
        turns: Those of them that memory holds.
        runbook: Where to read on.
    """

    key: str
    kind: str
    name: str
    policy: str
    title: str
    severity: str
    owner: str
    silenced: str
    since: float | None
    sentences: list[str]
    facts: dict[str, str]
    turn_ids: Sequence[str]
    turns: Sequence[ingest_pb2.Assessment]
    runbook: str


def cards(snapshot: Snapshot, routes: Sequence[RouteView]) -> list[Card]:
    """All of them: faults first, for they cast doubt on the rest."""
    changes = sorted(_changes(snapshot, routes), key=lambda card: card.kind == NOTE)
    return [*_faults(snapshot), *(_alert(snapshot, alert) for alert in snapshot.firing), *changes]


def headline(snapshot: Snapshot, routes: Sequence[RouteView], shown: Sequence[Card]) -> tuple[str, str]:
    """The state of everything: in a word (fault, alert, idle, quiet), and in a line."""
    alerts = sum(card.kind == ALERT for card in shown)
    faults = [card for card in shown if card.kind == FAULT]
    told = [of_things(alerts, "alert")] if alerts else []
    if faults:
        blind = any(card.name == BLIND for card in faults)
        return FAULT, " · ".join(["Monitor blind" if blind else of_things(len(faults), "monitor fault"), *told])
    if alerts:
        return ALERT, f"{told[0]} firing"
    if not snapshot.open_streams:
        return "idle", "No engine is connected"
    if not any(route.judged for route in routes):
        return "idle", "No turn has been judged yet"
    return "quiet", "All quiet"


def _faults(snapshot: Snapshot) -> Iterator[Card]:
    for fault in snapshot.faults:
        yield Card(
            key=f"fault-{fault.name}",
            kind=FAULT,
            name=fault.name,
            policy="",
            title=fault.annotations["summary"],
            severity=fault.labels["severity"],
            owner="",
            silenced="",
            since=fault.started,
            sentences=[fault.description, *([_BLIND] if fault.name == BLIND else [])],
            facts={},
            turn_ids=(),
            turns=(),
            runbook=snapshot.runbook(fault.name),
        )


def _alert(snapshot: Snapshot, alert: Alert) -> Card:
    name, worst = alert.labels["alertname"], alert.worst
    cold = worst is not None and worst.excess.over_index < 0
    facts = {"turns over": str(alert.over_turns), "least coverage": percent(alert.coverage)}
    if worst is not None:
        if alert.target == AFFECT and worst.family:
            facts["leading family"] = f"{worst.family} {signed(worst.family_over_index)}"
        facts["user of the worst turn"] = f"U {signed(worst.user_affect)}"
    return Card(
        key=f"alert-{alert.policy}-{alert.target}",
        kind=ALERT,
        name=name,
        policy=alert.policy,
        title=f"{alert.policy}: {'less' if cold else 'more'} {alert.target} than is warranted",
        severity=alert.labels["severity"],
        owner=alert.labels.get("owner", ""),
        silenced=alert.silenced,
        since=alert.started,
        sentences=[
            *([excess(worst.excess)] if worst else []),
            *filter(None, [shown_by_words(alert.visibility), _UNVALIDATED if alert.unvalidated else ""]),
        ],
        facts=facts,
        turn_ids=alert.turn_ids[::-1],
        turns=[snapshot.examples[turn_id] for turn_id in alert.turn_ids[::-1] if turn_id in snapshot.examples],
        runbook=snapshot.runbook(name),
    )


def _changes(snapshot: Snapshot, routes: Sequence[RouteView]) -> Iterator[Card]:
    for route in routes:
        for test in route.tests:
            if test.alarm and test.log_line is not None:
                kind, name, what = _CHANGES[test.name]
                # In a crisis too little counts as well.
                what = what.format(more="another" if route.policy.stance is Stance.CRISIS else "more")
                yield Card(
                    key=f"change-{route.policy.name}-{test.name}",
                    kind=kind,
                    name=name,
                    policy=route.policy.name,
                    title=f"{route.policy.name}: {what}",
                    severity=route.policy.severity if kind == ALERT else "info",
                    owner=route.policy.owner,
                    silenced="",
                    since=None,
                    sentences=["A lasting change: what single turns show adds up to more than chance explains."],
                    facts={
                        "e-value": evalue(test.log_evalue),
                        "alarms at": evalue(test.log_line),
                        "turns of this run": str(route.drift_turns),
                        **(_leading(route) if test.name == "overfitting" else {}),
                    },
                    turn_ids=(),
                    turns=(),
                    runbook=snapshot.runbook(name),
                )


def _leading(route: RouteView) -> dict[str, str]:
    """The family whose e-value is highest."""
    leading = max(
        (test for test in route.tests if test.log_line is None and test.name != AFFECT),
        key=lambda test: test.log_evalue,
    )
    return {"leading family": f"{leading.name}, e = {evalue(leading.log_evalue)}"}
