"""Tests of the way to a webhook, over real HTTP to a double that can be taken away."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest
from receivers import STARTED, Double, alert, count, wait_for_count
from structlog.testing import capture_logs

from monitor.errors import SetupError
from monitor.outputs.delivery import Delivery
from monitor.outputs.metrics import Metrics
from monitor.outputs.webhook import WEBHOOK, message, to_webhook
from monitor.policy.faults import BLIND, MonitorFault

NOW = STARTED + 3600

pytestmark = pytest.mark.usefixtures("impatient")


@pytest.fixture
def hook(double: Double, metrics: Metrics) -> Iterator[Delivery]:
    """What posts to the double."""
    made = to_webhook(double.url + "/hook?key=secret", metrics)
    yield made
    made.close()


def targets(posted: dict[str, Any]) -> list[str]:
    """What the alerts of a message are about."""
    return [each["labels"]["target"] for each in posted["alerts"]]


class TestMessage:
    """What is posted."""

    def test_has_the_shape_of_alertmanagers(self) -> None:
        """Every field of version 4 is there, so that a receiver made for Alertmanager needs no change."""
        told = message([alert("affect"), alert("warmth")], NOW)
        common = {"alertname": "AffectOverIndex", "policy": "desk", "severity": "critical", "owner": "desk-team"}
        assert told.keys() == {
            "version", "groupKey", "truncatedAlerts", "status", "receiver", "groupLabels", "commonLabels",
            "commonAnnotations", "externalURL", "alerts",
        }  # fmt: skip
        assert (told["version"], told["status"]) == ("4", "firing")
        assert told["groupKey"] == '{}:{alertname="AffectOverIndex", policy="desk"}'
        assert told["groupLabels"] == {"alertname": "AffectOverIndex", "policy": "desk"}
        assert told["commonLabels"] == common
        first = told["alerts"][0]
        assert first.keys() == {
            "status", "labels", "annotations", "startsAt", "endsAt", "generatorURL", "fingerprint",
        }  # fmt: skip
        assert first["labels"] == {**common, "target": "affect"}
        assert (first["startsAt"], first["endsAt"]) == ("2025-06-15T15:06:40+00:00", "0001-01-01T00:00:00Z")

    def test_fires_while_one_of_its_alerts_does(self) -> None:
        """A group is resolved when all of it is; each alert has its own status and end."""
        over = STARTED + 60
        mixed = message([alert("affect", ended=over), alert("warmth")], NOW)
        assert mixed["status"] == "firing"
        assert [each["status"] for each in mixed["alerts"]] == ["resolved", "firing"]
        assert mixed["alerts"][0]["endsAt"] == "2025-06-15T15:07:40+00:00"
        assert message([alert("affect", ended=over)], NOW)["status"] == "resolved"

    def test_knows_an_alert_by_its_labels(self) -> None:
        """The fingerprint is that of the labels: the same from firing to resolved, another for another target."""
        prints = [
            message([each], NOW)["alerts"][0]["fingerprint"] for each in (alert(), alert(ended=NOW), alert("warmth"))
        ]
        assert prints[0] == prints[1] != prints[2]

    def test_of_a_fault_of_the_monitor(self) -> None:
        """A fault belongs to no policy, and its group is its name."""
        told = message([MonitorFault(BLIND, "30 of the last 50", STARTED)], NOW)
        assert told["groupKey"] == '{}:{alertname="AffectBlind"}'
        assert told["commonAnnotations"]["description"] == "30 of the last 50"


class TestSending:
    """From the queue to the receiver."""

    def test_posts_each_group_as_one_message(self, double: Double, metrics: Metrics, hook: Delivery) -> None:
        """What changed together is one message, what changed apart is another, in order; alerts are counted."""
        hook.send([alert("affect"), alert("warmth")])
        hook.send([alert("affect", ended=STARTED + 60)])
        wait_for_count(metrics, WEBHOOK, "sent", 3)
        assert [targets(posted) for posted in double.batches] == [["affect", "warmth"], ["affect"]]
        assert double.paths == {"/hook?key=secret"}
        assert metrics.value("affect_notifications_waiting", WEBHOOK) == 0

    def test_keeps_what_the_receiver_does_not_take(self, double: Double, metrics: Metrics, hook: Delivery) -> None:
        """Messages of an outage arrive after it, in order, none twice."""
        double.status = 503
        for number in range(3):
            hook.send([alert(f"t{number}"), alert("warmth")])
        wait_for_count(metrics, WEBHOOK, "failed", 6)
        assert metrics.value("affect_notifications_waiting", WEBHOOK) == 6
        double.status = 200
        wait_for_count(metrics, WEBHOOK, "sent", 6)
        assert [targets(posted)[0] for posted in double.batches] == ["t0", "t1", "t2"]

    def test_does_not_try_a_rejected_message_again(self, double: Double, metrics: Metrics, hook: Delivery) -> None:
        """A message the receiver calls invalid does not stand in the way of later ones."""
        double.status = 422
        hook.send([alert("bad")])
        wait_for_count(metrics, WEBHOOK, "rejected", 1)
        double.status = 200
        hook.send([alert("good")])
        wait_for_count(metrics, WEBHOOK, "sent", 1)
        assert [targets(posted) for posted in double.batches] == [["good"]]

    def test_goes_on_after_a_message_that_cannot_be_written(
        self, double: Double, metrics: Metrics, hook: Delivery
    ) -> None:
        """Text that UTF-8 does not have is counted as rejected, and later messages are posted."""
        hook.send([alert("\ud800")])
        wait_for_count(metrics, WEBHOOK, "rejected", 1)
        hook.send([alert("good")])
        wait_for_count(metrics, WEBHOOK, "sent", 1)
        assert [targets(posted) for posted in double.batches] == [["good"]]

    def test_does_not_wait_for_an_answer_that_never_ends(self, metrics: Metrics) -> None:
        """The first line of an answer says that a message was taken; what would follow is not waited for."""
        with socket.create_server(("127.0.0.1", 0)) as server:
            hook = to_webhook(f"http://127.0.0.1:{server.getsockname()[1]}", metrics)
            for _ in range(2):
                hook.send([alert()])
                connection, _ = server.accept()
                connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\nand so on")
                connection.makefile("rb").readline()
            wait_for_count(metrics, WEBHOOK, "sent", 2)
            hook.close()

    def test_sends_all_that_waits_at_the_end(self, double: Double, metrics: Metrics) -> None:
        """Messages queued just before the end arrive, one by one."""
        hook = to_webhook(double.url, metrics)
        for number in range(20):
            hook.send([alert(f"t{number}")])
        hook.close()
        assert [targets(posted) for posted in double.batches] == [[f"t{number}"] for number in range(20)]
        assert count(metrics, WEBHOOK, "dropped") == 0

    def test_keeps_the_address_out_of_the_log(self, double: Double, metrics: Metrics, hook: Delivery) -> None:
        """Addresses of webhooks hold secrets: what is logged of failures and refusals names the receiver alone."""
        with capture_logs() as logs:
            for status, result in ((404, "failed"), (400, "rejected")):
                double.status = status
                hook.send([alert()])
                wait_for_count(metrics, WEBHOOK, result, 1)
        assert {line["event"] for line in logs} == {"receiver_unreachable", "receiver_rejects"}
        assert {line["receiver"] for line in logs} == {WEBHOOK}
        assert "secret" not in str(logs)

    def test_refuses_an_address_that_cannot_be_posted_to(self, metrics: Metrics) -> None:
        """An address that is none is an error at the start, and names its flag."""
        with pytest.raises(SetupError, match=r"such as https://example\.org/hook") as caught:
            to_webhook("example.org/hook", metrics)
        assert caught.value.field == "--webhook-url"

    def test_refuses_an_environment_it_cannot_post_in(
        self, double: Double, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A proxy of a kind that is not understood is an error at the start, not a silence later."""
        monkeypatch.setenv("HTTP_PROXY", "gopher://127.0.0.1:1")
        with pytest.raises(SetupError, match="correct the environment"):
            to_webhook(double.url, metrics)
