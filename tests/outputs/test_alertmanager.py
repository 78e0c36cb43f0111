"""Tests of the way to Alertmanager, over real HTTP to a double that can be taken away."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from typing import Any

import pytest
from receivers import PATIENCE, STARTED, Double, alert, count, wait_for_count

from monitor.errors import SetupError
from monitor.outputs import delivery
from monitor.outputs.alertmanager import ALERTMANAGER, payload, to_alertmanager
from monitor.outputs.delivery import Delivery
from monitor.outputs.metrics import Metrics
from monitor.policy.alert import Alert

LONG = 3600.0
"""Seconds that never pass in a test."""
NOW = STARTED + 3600

pytestmark = pytest.mark.usefixtures("impatient")


@pytest.fixture
def sender(double: Double, metrics: Metrics) -> Iterator[Callable[..., Delivery]]:
    """Makes senders to the double."""
    made: list[Delivery] = []

    def make(firing: Callable[[], list[Alert]] = list, **options: Any) -> Delivery:
        made.append(to_alertmanager(double.url, metrics, firing, **{"resend_seconds": LONG, **options}))
        return made[-1]

    yield make
    double.hold.set()
    for each in made:
        each.close()


def targets(posted: list[dict[str, Any]]) -> list[str]:
    """What posted alerts are about."""
    return [each["labels"]["target"] for each in posted]


class TestPayload:
    """What is posted."""

    def test_of_a_firing_alert_has_labels_annotations_and_a_start(self) -> None:
        """A firing alert says what it is, why, and since when in RFC 3339; without an end Alertmanager keeps it up."""
        posted = payload(alert(), NOW)
        assert posted["labels"] == {
            "alertname": "AffectOverIndex", "policy": "desk", "target": "affect", "severity": "critical",
            "owner": "desk-team",
        }  # fmt: skip
        assert {"summary", "description", "turn_ids"} <= posted["annotations"].keys()
        assert posted["startsAt"] == "2025-06-15T15:06:40+00:00"
        assert "endsAt" not in posted

    def test_of_a_resolved_alert_has_an_end(self) -> None:
        """A resolved alert has the same labels and start, and an end."""
        posted = payload(alert(ended=STARTED + 60), NOW)
        assert posted["endsAt"] == "2025-06-15T15:07:40+00:00"
        assert {**posted, "endsAt": None} == {**payload(alert(), NOW), "endsAt": None}

    @pytest.mark.parametrize("ended", [None, STARTED - 600, STARTED + 600])
    def test_of_a_clock_that_was_put_back(self, ended: float | None) -> None:
        """Nothing begins or ends later than now or ends before it begins: Alertmanager refuses such alerts."""
        posted = payload(alert(ended=ended), STARTED - 300)
        ends = STARTED - 600 if ended == STARTED - 600 else STARTED - 300
        assert posted["startsAt"] == datetime.fromtimestamp(ends, timezone.utc).isoformat()
        assert posted.get("endsAt") == (None if ended is None else posted["startsAt"])

    def test_is_of_the_clock_at_the_time_of_posting(
        self, double: Double, sender: Callable[..., Delivery], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A clock that is put right while Alertmanager is away does not leave it with alerts that it refuses."""
        double.stop()
        to = sender()
        to.send([alert()])
        monkeypatch.setattr(delivery.time, "time", lambda: STARTED - 300)
        double.start()
        double.wait(lambda: bool(double.batches))
        assert double.taken[0]["startsAt"] == "2025-06-15T15:01:40+00:00"

    def test_is_the_state_at_the_time_of_sending(self, double: Double, sender: Callable[..., Delivery]) -> None:
        """What happens to an alert after it was queued does not change what was queued."""
        double.hold.clear()
        to, changing = sender(), alert()
        to.send([changing])
        changing.ended = STARTED + 1
        double.hold.set()
        double.wait(lambda: len(double.batches) == 1)
        assert "endsAt" not in double.taken[0]


class TestSending:
    """From the queue to Alertmanager."""

    def test_posts_to_the_v2_api(self, double: Double, metrics: Metrics, sender: Callable[..., Delivery]) -> None:
        """An alert arrives at /api/v2/alerts as a list, and is counted."""
        sender().send([alert()])
        wait_for_count(metrics, ALERTMANAGER, "sent", 1)
        assert double.batches == [[payload(alert(), NOW)]]
        assert double.paths == {"/api/v2/alerts"}
        assert metrics.value("affect_notifications_waiting", ALERTMANAGER) == 0

    def test_posts_what_changed_together_at_once(self, double: Double, sender: Callable[..., Delivery]) -> None:
        """Alerts of a group are in one post."""
        sender().send([alert("affect"), alert("warmth")])
        double.wait(lambda: bool(double.batches))
        assert [targets(batch) for batch in double.batches] == [["affect", "warmth"]]

    def test_keeps_a_path_in_the_address(self, double: Double, metrics: Metrics) -> None:
        """An Alertmanager behind a path prefix is posted to under it."""
        to = to_alertmanager(double.url + "/am/", metrics, list)
        to.send([alert()])
        to.close()
        assert double.paths == {"/am/api/v2/alerts"}

    @pytest.mark.parametrize("url", ["alertmanager:9093", "ftp://host", "http://", "http://host:port", "http://[::1"])
    def test_refuses_an_address_that_cannot_be_posted_to(self, url: str, metrics: Metrics) -> None:
        """An address that is none is an error at the start, and not of a thread later on."""
        with pytest.raises(SetupError, match="such as http://127") as caught:
            to_alertmanager(url, metrics, list)
        assert caught.value.field == "--alertmanager-url"

    def test_declares_every_result(self, metrics: Metrics, sender: Callable[..., Delivery]) -> None:
        """All results exist at zero before the first alert."""
        sender()
        shown = {
            each.labels["result"]: each.value
            for family in metrics.collect()
            if family.name == "affect_notifications"
            for each in family.samples
        }
        assert shown == {"sent": 0, "failed": 0, "rejected": 0, "dropped": 0}


class TestAbsence:
    """While Alertmanager is away."""

    @pytest.mark.parametrize("way", ["down", "erring"])
    def test_keeps_alerts_and_delivers_them_once_in_order(
        self, way: str, double: Double, metrics: Metrics, sender: Callable[..., Delivery]
    ) -> None:
        """Alerts of an outage arrive after it, in the order they were sent, none twice."""
        if way == "down":
            double.stop()
        else:
            double.status = 503
        to = sender()
        for number in range(5):
            to.send([alert(f"t{number}")])
        wait_for_count(metrics, ALERTMANAGER, "failed", 15)
        assert metrics.value("affect_notifications_waiting", ALERTMANAGER) == 5
        to.send([alert("t5")])
        double.status = 200
        if way == "down":
            double.start()
        wait_for_count(metrics, ALERTMANAGER, "sent", 6)
        to.send([alert("t6")])
        wait_for_count(metrics, ALERTMANAGER, "sent", 7)
        assert targets(double.taken) == [f"t{number}" for number in range(7)]
        assert metrics.value("affect_notifications_waiting", ALERTMANAGER) == 0
        assert count(metrics, ALERTMANAGER, "dropped") == 0

    def test_gives_up_the_oldest_for_the_newest_and_counts_them(
        self, double: Double, metrics: Metrics, sender: Callable[..., Delivery]
    ) -> None:
        """A full queue loses its oldest alerts, counted, and keeps the newest."""
        double.status = 500
        to = sender(queue=3)
        for number in range(8):
            to.send([alert(f"t{number}")])
        assert count(metrics, ALERTMANAGER, "dropped") == 5
        assert metrics.value("affect_notifications_waiting", ALERTMANAGER) == 3
        double.status = 200
        wait_for_count(metrics, ALERTMANAGER, "sent", 3)
        assert targets(double.taken) == ["t5", "t6", "t7"]

    def test_what_is_pushed_out_while_it_is_posted_takes_nothing_with_it(
        self, double: Double, metrics: Metrics, sender: Callable[..., Delivery]
    ) -> None:
        """Alerts that came during a post stay queued, though the post's own were pushed out meanwhile."""
        double.hold.clear()
        to = sender(queue=2)
        to.send([alert("t0")])
        assert double.arrived.wait(PATIENCE)
        for number in range(1, 4):
            to.send([alert(f"t{number}")])
        double.hold.set()
        double.wait(lambda: {"t2", "t3"} <= {each["labels"]["target"] for batch in double.batches for each in batch})
        wait_for_count(metrics, ALERTMANAGER, "sent", 3)
        assert targets(double.taken) == ["t0", "t2", "t3"]
        assert count(metrics, ALERTMANAGER, "dropped") == 2

    def test_does_not_try_a_rejected_alert_again(
        self, double: Double, metrics: Metrics, sender: Callable[..., Delivery]
    ) -> None:
        """An alert that Alertmanager calls invalid is counted and does not stand in the way of later ones."""
        double.status = 400
        to = sender()
        to.send([alert("bad")])
        wait_for_count(metrics, ALERTMANAGER, "rejected", 1)
        double.status = 200
        to.send([alert("good")])
        wait_for_count(metrics, ALERTMANAGER, "sent", 1)
        assert targets(double.taken) == ["good"]
        assert double.refused == 1
        assert count(metrics, ALERTMANAGER, "failed") == 0


class TestRepetition:
    """Alertmanager resolves what it does not hear of."""

    def test_tells_firing_alerts_again(self, double: Double, sender: Callable[..., Delivery]) -> None:
        """What fires is posted again and again without having changed; what no longer fires is not."""
        firing = [alert("a"), alert("b")]
        sender(lambda: list(firing), resend_seconds=0.01)
        double.wait(lambda: len(double.batches) >= 3)
        assert all(targets(batch) == ["a", "b"] for batch in double.batches)
        firing.pop()
        seen = len(double.batches)
        double.wait(lambda: len(double.batches) >= seen + 3)
        assert targets(double.batches[-1]) == ["a"]

    def test_goes_on_beside_a_stream_of_changes(self, double: Double, sender: Callable[..., Delivery]) -> None:
        """Changes that come more often than repetitions are due do not put the repetitions off."""
        to = sender(lambda: [alert("steady")], resend_seconds=0.05)
        stop = threading.Event()

        def change() -> None:
            while not stop.wait(0.001):
                to.send([alert("busy")])

        thread = threading.Thread(target=change)
        thread.start()
        try:
            double.wait(lambda: sum("steady" in targets(batch) for batch in double.batches) >= 3)
        finally:
            stop.set()
            thread.join()
        assert {"busy", "steady"} <= set(targets(double.taken))

    def test_says_nothing_when_nothing_fires(
        self, double: Double, metrics: Metrics, sender: Callable[..., Delivery]
    ) -> None:
        """Without alerts there are no posts."""
        asked = threading.Semaphore(0)

        def none() -> list[Alert]:
            asked.release()
            return []

        sender(none, resend_seconds=0.001)
        for _ in range(5):
            assert asked.acquire(timeout=PATIENCE)
        assert double.batches == []
        assert count(metrics, ALERTMANAGER, "sent") == 0


class TestClosing:
    """The end."""

    def test_sends_what_waits(self, double: Double, metrics: Metrics) -> None:
        """Alerts queued just before the end arrive."""
        to = to_alertmanager(double.url, metrics, list)
        for number in range(20):
            to.send([alert(f"t{number}")])
        to.close()
        assert targets(double.taken) == [f"t{number}" for number in range(20)]

    def test_does_not_wait_for_an_absent_alertmanager(
        self, double: Double, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """In the middle of a long wait between retries, one last try is made, and what is lost is counted."""
        monkeypatch.setattr(delivery, "_FIRST_WAIT", LONG)
        monkeypatch.setattr(delivery, "_LAST_WAIT", LONG)
        double.status = 503
        to = to_alertmanager(double.url, metrics, list)
        to.send([alert()])
        double.wait(lambda: double.refused == 1)
        to.close(timeout=LONG)
        assert double.refused == 2
        assert count(metrics, ALERTMANAGER, "dropped") == 1
        assert metrics.value("affect_notifications_waiting", ALERTMANAGER) == 0

    def test_does_not_wait_longer_than_it_may(self, double: Double, metrics: Metrics) -> None:
        """An Alertmanager that takes the call and never answers does not hold up the end."""
        double.hold.clear()
        to = to_alertmanager(double.url, metrics, list)
        to.send([alert()])
        to.close(timeout=0.1)
        assert count(metrics, ALERTMANAGER, "dropped") == 1
        double.hold.set()

    def test_ends_a_sender_that_has_nothing_to_do(self, metrics: Metrics) -> None:
        """An idle sender ends at once, whether or not anybody listens."""
        to = to_alertmanager("http://127.0.0.1:9", metrics, lambda: [alert()], resend_seconds=LONG)
        to.close(timeout=LONG)
        assert count(metrics, ALERTMANAGER, "failed") == 0

    def test_may_be_asked_for_twice(self, double: Double, metrics: Metrics) -> None:
        """A second end changes nothing."""
        to = to_alertmanager(double.url, metrics, list)
        to.send([alert()])
        to.close()
        to.close()
        assert targets(double.taken) == ["affect"]
