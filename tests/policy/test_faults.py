"""Faults of the monitor itself: told once when they come up, once when they are over."""

from __future__ import annotations

import threading

import pytest

from monitor.outputs.alertmanager import payload
from monitor.policy import faults as module
from monitor.policy.faults import AUDIT_NOT_WRITTEN, BLIND, FaultKind, Faults, MonitorFault


class Kept:
    """Faults with a clock that ticks once a reading, and what they told."""

    def __init__(self) -> None:
        self.told: list[MonitorFault] = []
        self._now = 0.0
        self.faults = Faults(self.told.append, clock=self._tick)

    def _tick(self) -> float:
        self._now += 1
        return self._now


@pytest.fixture
def kept() -> Kept:
    """No fault yet."""
    return Kept()


class TestFaults:
    """Faults that come and go."""

    def test_are_told_when_they_come_up_and_when_they_are_over(self, kept: Kept) -> None:
        """Both changes are told, with the times of both, and only a fault that lasts is active."""
        kept.faults.set(AUDIT_NOT_WRITTEN, True, "the disk is full")
        assert kept.faults.active == kept.told == [MonitorFault(AUDIT_NOT_WRITTEN, "the disk is full", 1.0)]
        kept.faults.set(AUDIT_NOT_WRITTEN, False)
        assert kept.told[1:] == [MonitorFault(AUDIT_NOT_WRITTEN, "the disk is full", 1.0, 2.0)]
        assert kept.faults.active == []

    def test_are_told_once(self, kept: Kept) -> None:
        """What is known already is not told again: neither that one lasts nor that there is none."""
        kept.faults.set(AUDIT_NOT_WRITTEN, False)
        for reason in ("first", "second"):
            kept.faults.set(AUDIT_NOT_WRITTEN, True, reason)
        assert [fault.description for fault in kept.told] == ["first"]

    def test_come_up_again_as_new_ones(self, kept: Kept) -> None:
        """A fault that returns has a beginning of its own."""
        for failing in (True, False, True):
            kept.faults.set(AUDIT_NOT_WRITTEN, failing, "again")
        assert [(fault.started, fault.ended) for fault in kept.told] == [(1.0, None), (1.0, 2.0), (3.0, None)]

    def test_are_listed_oldest_first(self, kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
        """Several that last are listed in the order in which they came up."""
        monkeypatch.setitem(module.FAULTS, "AffectAardvark", FaultKind("critical", "Another", inhibits=False))
        kept.faults.set(AUDIT_NOT_WRITTEN, True)
        kept.faults.set("AffectAardvark", True)
        assert [fault.name for fault in kept.faults.active] == [AUDIT_NOT_WRITTEN, "AffectAardvark"]

    def test_inhibit_where_they_make_affect_doubtful(self, kept: Kept) -> None:
        """A monitor that sees too little makes affect alerts doubtful; one that cannot write its audit does not."""
        kept.faults.set(AUDIT_NOT_WRITTEN, True)
        assert not kept.faults.inhibit()
        kept.faults.set(BLIND, True)
        assert kept.faults.inhibit()
        kept.faults.set(BLIND, False)
        assert not kept.faults.inhibit()

    def test_carry_their_runbook(self) -> None:
        """The link is that of the policy file in force when the fault comes up; without one there is none."""
        told: list[MonitorFault] = []
        faults = Faults(told.append, lambda alert: f"https://example.org/{alert}.md")
        for failing in (True, False):
            faults.set(BLIND, failing)
        assert [fault.annotations["runbook_url"] for fault in told] == ["https://example.org/AffectBlind.md"] * 2
        assert "runbook_url" not in MonitorFault(BLIND, "", 1.0).annotations

    def test_of_other_names_are_a_mistake_of_the_caller(self, kept: Kept) -> None:
        """An unknown name raises, and nothing is told."""
        with pytest.raises(KeyError):
            kept.faults.set("AffectUnheardOf", True)
        assert (kept.told, kept.faults.active) == ([], [])

    def test_are_told_once_by_many_threads(self, kept: Kept) -> None:
        """However many threads see the same fault at once, it is told once."""
        start = threading.Barrier(8)

        def see() -> None:
            start.wait()
            kept.faults.set(AUDIT_NOT_WRITTEN, True)

        threads = [threading.Thread(target=see) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(kept.told) == 1


class TestPayload:
    """Faults on their way to Alertmanager."""

    def test_are_alerts_like_others(self) -> None:
        """A fault is posted with name, severity, summary and description; when it is over, with its end."""
        lasting = payload(MonitorFault(AUDIT_NOT_WRITTEN, "the disk is full", 1.75e9), 2e9)
        assert lasting["labels"] == {"alertname": "AffectAuditNotWritten", "severity": "warning"}
        assert lasting["annotations"]["description"] == "the disk is full"
        assert lasting["annotations"]["summary"].startswith("The audit store cannot be written")
        assert "endsAt" not in lasting
        over = payload(MonitorFault(AUDIT_NOT_WRITTEN, "the disk is full", 1.75e9, 1.75e9 + 60), 2e9)
        assert over["labels"] == lasting["labels"]
        assert over["endsAt"] > over["startsAt"] == lasting["startsAt"]
