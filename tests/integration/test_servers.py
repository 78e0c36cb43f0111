"""The sidecar beside the real Prometheus and the real Alertmanager, with an engine that sends made-up hidden states."""

from __future__ import annotations

import queue
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from prometheus_tools import promtool
from servers import PATIENCE, Server, eventually, free_port

if TYPE_CHECKING:
    from monitor.wire.v1 import ingest_pb2

pytestmark = pytest.mark.servers

CALM, OVERSHOOT = 0.0, 8.0
LABELS = {
    "alertname": "AffectOverIndex", "policy": "desk", "target": "affect", "severity": "critical", "owner": "desk-team",
    "instance": "pod-1",
}  # fmt: skip
Notices = tuple[str, "queue.SimpleQueue[dict[str, Any]]"]


def moment(text: str) -> datetime:
    """A time of Alertmanager's API, without the digits Python does not know."""
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


class TestAlertmanager:
    """The real Alertmanager."""

    def test_is_told_of_an_alert_and_of_its_end(
        self, watch: Callable[..., Any], start_alertmanager: Callable[[int], Server], notices: Notices
    ) -> None:
        """Overshooting turns raise an alert with labels, reasons and evidence; quiet turns resolve it."""
        alertmanager = start_alertmanager(free_port())
        with watch(alertmanager_url=alertmanager.url) as (_, engine):
            assert list(engine.turn(CALM).alerts) == []
            over: list[ingest_pb2.Assessment] = [engine.turn(OVERSHOOT) for _ in range(2)]
            assert all(list(turn.alerts) == ["affect"] for turn in over)
            (shown,) = eventually(lambda: alertmanager.get("/api/v2/alerts"), alertmanager)
            assert shown["status"]["state"] == "active"
            assert shown["labels"] == LABELS
            told = shown["annotations"]
            assert told["turn_ids"] == ",".join(turn.turn_id for turn in over)
            assert told["runbook_url"] == "https://example.org/runbooks/AffectOverIndex.md"
            assert told["description"].startswith("2 turns over since ")
            assert told["description"].endswith("--file AUDIT_FILE")
            assert told["summary"].startswith("Route desk shows more affect than is warranted: ")

            firing = notices[1].get(timeout=PATIENCE)
            assert (firing["status"], firing["commonLabels"]) == ("firing", LABELS)

            for _ in range(3):
                assert list(engine.turn(CALM).alerts) == []
            resolved = notices[1].get(timeout=PATIENCE)
            assert (resolved["status"], resolved["commonLabels"]) == ("resolved", LABELS)
            (alert,) = resolved["alerts"]
            assert moment(alert["endsAt"]) > moment(alert["startsAt"])
            assert eventually(lambda: alertmanager.get("/api/v2/alerts") == [], alertmanager)

    def test_that_was_away_is_told_when_it_is_back(
        self, watch: Callable[..., Any], start_alertmanager: Callable[[int], Server]
    ) -> None:
        """An alert that fires while nobody listens is kept, and arrives when Alertmanager starts."""
        port = free_port()
        with watch(alertmanager_url=f"http://127.0.0.1:{port}") as (sidecar, engine):
            for _ in range(2):
                engine.turn(OVERSHOOT)
            eventually(lambda: sidecar.metrics.value("affect_notifications_total", "alertmanager", "failed"))
            assert sidecar.metrics.value("affect_notifications_waiting", "alertmanager") == 1
            alertmanager = start_alertmanager(port)
            (shown,) = eventually(lambda: alertmanager.get("/api/v2/alerts"), alertmanager)
            assert shown["labels"] == LABELS
            eventually(lambda: sidecar.metrics.value("affect_notifications_total", "alertmanager", "sent"))
            assert sidecar.metrics.value("affect_notifications_waiting", "alertmanager") == 0

    def test_is_told_what_waits_when_the_sidecar_stops(
        self, watch: Callable[..., Any], start_alertmanager: Callable[[int], Server]
    ) -> None:
        """A sidecar that ends right after an alert has told it."""
        alertmanager = start_alertmanager(free_port())
        with watch(alertmanager_url=alertmanager.url) as (_, engine):
            for _ in range(2):
                engine.turn(OVERSHOOT)
        (shown,) = alertmanager.get("/api/v2/alerts")
        assert shown["labels"] == LABELS


class TestWebhook:
    """A receiver made for Alertmanager's webhook, which the sidecar posts to itself."""

    def test_is_told_what_alertmanager_would_tell(
        self, watch: Callable[..., Any], start_alertmanager: Callable[[int], Server], notices: Notices
    ) -> None:
        """The sidecar's message has every field of the real Alertmanager's, and names the same alert."""
        alertmanager = start_alertmanager(free_port())
        with watch(alertmanager_url=alertmanager.url, webhook_url=notices[0]) as (_, engine):
            for _ in range(2):
                engine.turn(OVERSHOOT)
            told = {notice["receiver"]: notice for notice in (notices[1].get(timeout=PATIENCE) for _ in range(2))}
        ours, theirs = told["affect-monitor"], told["test"]
        assert ours.keys() == theirs.keys()
        ((alert,), (other,)) = ours["alerts"], theirs["alerts"]
        assert alert.keys() == other.keys()
        assert (alert["status"], alert["labels"], alert["endsAt"]) == ("firing", LABELS, other["endsAt"])
        assert alert["annotations"] == other["annotations"]
        assert moment(alert["startsAt"]) - moment(other["startsAt"]) < timedelta(seconds=1)


class TestPrometheus:
    """The real Prometheus."""

    def test_scrapes_the_sidecar(self, watch: Callable[..., Any], start_prometheus: Callable[[str], Server]) -> None:
        """What the sidecar counted can be asked of Prometheus: tokens, turns, alerts, quantiles of histograms."""
        with watch() as (sidecar, engine):
            prometheus = start_prometheus(sidecar.http_url)

            def ask(query: str) -> list[float]:
                answer = prometheus.get("/api/v1/query", query=query)
                return [float(found["value"][1]) for found in answer["data"]["result"]]

            # Counters are there before anything happens, so that the first increase is seen as one.
            assert eventually(lambda: ask("affect_tokens_scored_total"), prometheus) == [0]
            assert ask('affect_turns_total{policy="desk"}') == [0]
            for affect in (CALM, OVERSHOOT, OVERSHOOT):
                engine.turn(affect)
            assert eventually(lambda: ask(f"affect_tokens_scored_total == {engine.tokens}"), prometheus)
            assert eventually(lambda: ask('affect_turns_total{policy="desk"} == 3'), prometheus)
            assert ask('affect_turns_over_total{policy="desk",target="affect"}') == [2]
            assert ask('affect_alerts_active{policy="desk",state="firing"}') == [1]
            assert ask("affect_turns_open") == [0]
            assert ask('histogram_quantile(0.99, affect_turn_coverage_ratio_bucket{policy="desk"})')[0] > 0.9
            assert ask('histogram_quantile(0.9, affect_turn_over_index_bucket{policy="desk"})')[0] > 0
            (target,) = prometheus.get("/api/v1/targets")["data"]["activeTargets"]
            assert (target["health"], target["lastError"]) == ("up", "")

    def test_tools_find_no_fault_with_the_live_page(self, watch: Callable[..., Any]) -> None:
        """The page of a sidecar that has judged turns and raised an alert passes promtool check metrics."""
        with watch() as (sidecar, engine):
            for affect in (CALM, OVERSHOOT, OVERSHOOT):
                engine.turn(affect)
            engine.turn(CALM, route="helpline")
            page = httpx.get(f"{sidecar.http_url}/metrics").raise_for_status().content
        for shown in (b'affect_alerts_active{policy="desk"', b'policy="helpline"', b"affect_turn_over_index_bucket"):
            assert shown in page
        assert promtool("check", "metrics", page=page) == ""
