"""Alerts of a running sidecar: told in groups, held back in a silence, taken back when they are stale."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from engine import Engine, Stream, make_frame, make_turn, whole
from receivers import Double

from monitor.wire.v1 import ingest_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from monitor.probes.bank import Bank
    from monitor.sidecar.server import Sidecar

POLICY = """
version: 1
links: {{runbooks: "https://example.org"}}
policies:
  - name: desk
    stance: neutral
    turn: {{false_alarm_rate: 0.02, resolve_turns: 2, stale_minutes: {stale}}}
    families: {{warmth: 0.9}}
    mute: [{mute}]
"""
ALWAYS = '{start: "00:00", end: "00:00"}'
CALM, OVER = 0.0, 8.0


@pytest.fixture
def pager() -> Iterator[Double]:
    """Who is told, by a webhook."""
    made = Double()
    yield made
    made.stop()


class Place:
    """A sidecar, an engine and a pager.

    Args:
        sidecar: The first.
        stream: A stream of the second.
        bank: What both are made for.
        pager: The third.
    """

    def __init__(self, sidecar: Sidecar, stream: Stream, bank: Bank, pager: Double) -> None:
        self.sidecar, self._stream, self._bank, self.pager = sidecar, stream, bank, pager
        self._turns = 0

    def turn(self, affect: float = CALM, *, lost: bool = False, resumes: bool = False) -> ingest_pb2.Assessment:
        """A turn whose reply shows so much affect, or never comes."""
        self._turns += 1
        turn = make_turn(self._bank, f"request-{self._turns}", assistant=affect)
        if not lost:
            return self._stream.send(whole(turn)).assessments[0]
        start = turn.start
        start.start.resumes = resumes
        gap = turn.gap(0, turn.length, ingest_pb2.GAP_REASON_RESTARTED)
        return self._stream.send(make_frame(events=[start, gap, turn.end])).assessments[0]

    def value(self, name: str, *labels: str) -> float:
        """A metric."""
        return self.sidecar.metrics.value(name, *labels)

    def told(self, count: int) -> list[tuple[str, list[str]]]:
        """So many messages to the pager: status, and names of targets or faults."""
        self.pager.wait(lambda: len(self.pager.batches) >= count)
        groups = [[each["labels"] for each in message["alerts"]] for message in self.pager.batches]
        named = [
            (message["status"], [labels.get("target", labels["alertname"]) for labels in group])
            for message, group in zip(self.pager.batches, groups, strict=True)
        ]
        assert len(named) == count
        return named


@pytest.fixture
def place(
    serve: Callable[..., Sidecar],
    connect: Callable[..., Engine],
    small_bank: Bank,
    tmp_path: Path,
    pager: Double,
) -> Callable[..., Place]:
    """Makes a place; a policy file may be written over."""

    def make(*, mute: str = "", stale: float = 60) -> Place:
        (tmp_path / "policy.yaml").write_text(POLICY.format(mute=mute, stale=stale))
        sidecar = serve(webhook_url=pager.url)
        return Place(sidecar, connect().stream(small_bank), small_bank, pager)

    return make


def reload_with(at: Place, tmp_path: Path, *, mute: str) -> None:
    """Writes the policy file anew and has it read."""
    (tmp_path / "policy.yaml").write_text(POLICY.format(mute=mute, stale=60))
    assert at.sidecar.reload()


class TestGroups:
    """What people get."""

    def test_one_message_for_all_targets_of_a_turn(self, place: Callable[..., Place]) -> None:
        """Affect and a family that fire together are one message, with evidence and runbook, and resolve together."""
        at = place()
        over = at.turn(OVER)
        assert sorted(over.alerts) == ["affect", "warmth"]
        assert at.told(1) == [("firing", ["affect", "warmth"])]
        told = at.pager.batches[0]["alerts"][0]["annotations"]
        assert told["turn_ids"] == over.turn_id
        assert f"affect-monitor audit show {over.turn_id}" in told["description"]
        assert told["runbook_url"] == "https://example.org/AffectOverIndex.md"


class TestSilence:
    """Times when nobody is told."""

    def test_muted_alerts_are_shown_and_told_when_it_is_over(self, place: Callable[..., Place], tmp_path: Path) -> None:
        """A policy's muting window holds alerts back, visibly; without it they are told."""
        at = place(mute=ALWAYS)
        at.turn(OVER)
        assert at.value("affect_alerts_active", "desk", "affect", "firing") == 1
        assert at.value("affect_alerts_silenced", "desk", "affect", "muted") == 1
        assert [alert.silenced for alert in at.sidecar.alerts.active] == ["muted", "muted"]
        assert at.pager.batches == []
        reload_with(at, tmp_path, mute="")
        assert at.told(1) == [("firing", ["affect", "warmth"])]
        assert at.value("affect_alerts_silenced", "desk", "affect", "muted") == 0

    def test_a_blind_monitor_holds_alerts_back(self, place: Callable[..., Place]) -> None:
        """Turns that cannot be seen raise AffectBlind, which inhibits affect alerts until enough are seen again."""
        at = place()
        for _ in range(20):
            assert set(at.turn(lost=True).marks) & {"partial", "low_coverage"}
        assert at.told(1) == [("firing", ["AffectBlind"])]
        assert at.value("affect_monitor_fault", "AffectBlind") == 1
        told = at.pager.batches[0]["alerts"][0]
        assert told["labels"]["severity"] == "critical"
        assert told["annotations"]["description"].startswith("20 of the last 20 turns could not be judged")
        assert told["annotations"]["runbook_url"] == "https://example.org/AffectBlind.md"
        at.turn(OVER)
        assert at.value("affect_alerts_silenced", "desk", "affect", "inhibited") == 1
        for _ in range(60):
            at.turn(OVER)
        assert at.told(3)[1:] == [("resolved", ["AffectBlind"]), ("firing", ["affect", "warmth"])]
        assert at.value("affect_monitor_fault", "AffectBlind") == 0

    def test_turns_of_before_the_start_are_no_blindness(self, place: Callable[..., Place]) -> None:
        """What was under way when the sidecar began is partial by nature, however much of it there is."""
        at = place()
        for _ in range(50):
            assert "partial" in at.turn(lost=True, resumes=True).marks
        assert at.sidecar.faults.active == []


class TestStaleness:
    """Routes on which nothing happens any more."""

    def test_a_silent_route_is_taken_back(self, place: Callable[..., Place]) -> None:
        """Without any turn, the sidecar resolves what fires, with the reason, and the metrics follow."""
        at = place(stale=0.0001)
        at.turn(OVER)
        assert at.told(2) == [("firing", ["affect", "warmth"]), ("resolved", ["affect", "warmth"])]
        assert "no turn of its route was judged" in at.pager.batches[1]["alerts"][0]["annotations"]["description"]
        assert at.value("affect_alerts_active", "desk", "affect", "firing") == 0
