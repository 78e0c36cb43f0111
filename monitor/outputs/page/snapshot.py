"""What the status page is made from, at one moment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from monitor.outputs.metrics import Metrics
from monitor.policy.alert import Alert, AlertState
from monitor.policy.faults import MonitorFault
from monitor.policy.schema import PolicyFile
from monitor.probes.bank import BankCard
from monitor.wire.v1 import ingest_pb2


class Snapshot(NamedTuple):
    """The state of a sidecar.

    Attributes:
        started: When it began to watch, in seconds since the epoch.
        now: When this was taken.
        validated: Whether the bank is validated on the model of every engine that is connected.
        open_streams: Streams of engines.
        open_turns: Turns under way.
        finished_turns: Turns finished since the start.
        card: What is known of the bank.
        policies: What each route may show.
        alerts: Alerts pending and firing, oldest first.
        faults: Faults of the monitor itself, oldest first.
        turns: Recent turns of each policy, oldest first.
        examples: Turns that alerts name and memory holds, by id.
        metrics: Everything that is counted.
    """

    started: float
    now: float
    validated: bool
    open_streams: int
    open_turns: int
    finished_turns: int
    card: BankCard
    policies: PolicyFile
    alerts: Sequence[Alert]
    faults: Sequence[MonitorFault]
    turns: Mapping[str, Sequence[ingest_pb2.Assessment]]
    examples: Mapping[str, ingest_pb2.Assessment]
    metrics: Metrics

    @property
    def firing(self) -> list[Alert]:
        """Alerts that people are told of."""
        return [alert for alert in self.alerts if alert.state is AlertState.FIRING]

    def runbook(self, alert: str) -> str:
        """Where an alert's runbook is: where the policy file says, or here."""
        return self.policies.runbook(alert) or f"/runbooks/{alert}"
