"""Alerts to Alertmanager's v2 API, in order, from a bounded queue that outlasts its absence."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

import httpx
import structlog

from monitor.outputs.metrics import Metrics
from monitor.policy.engine import Alert

_LOG = structlog.get_logger("alertmanager")
_FIRST_WAIT, _LAST_WAIT = 0.5, 30.0
_CALL_TIMEOUT = 5.0


class AlertmanagerSender:
    """Posts every change of an alert, and firing ones again in time that Alertmanager does not resolve them by itself.

    Args:
        url: Base address of Alertmanager, such as ``http://127.0.0.1:9093``.
        metrics: Where results are counted.
        firing: Gives the alerts that fire now.
        resend_seconds: Time between repetitions; Alertmanager's own ``resolve_timeout`` is five minutes.
        queue: Changes that may wait; the oldest is given up for a newer one.
    """

    def __init__(
        self,
        url: str,
        metrics: Metrics,
        firing: Callable[[], list[Alert]],
        *,
        resend_seconds: float = 60.0,
        queue: int = 1000,
    ) -> None:
        self._endpoint = url.rstrip("/") + "/api/v2/alerts"
        self._metrics = metrics
        self._firing = firing
        self._resend_seconds = resend_seconds
        self._waiting: deque[dict[str, Any]] = deque(maxlen=queue)
        self._wake = threading.Condition()
        self._stopping = False
        metrics.declare("affect_notifications_total", [("sent",), ("failed",)])
        self._thread = threading.Thread(target=self._run, name="alertmanager", daemon=True)
        self._thread.start()

    def send(self, alert: Alert) -> None:
        """Queues the present state of an alert."""
        with self._wake:
            self._waiting.append(payload(alert))
            self._metrics.set("affect_notifications_waiting", len(self._waiting))
            self._wake.notify_all()

    def close(self, timeout: float = 5.0) -> None:
        """Sends what waits, once, and stops."""
        with self._wake:
            self._stopping = True
            self._wake.notify_all()
        self._thread.join(timeout)

    def _run(self) -> None:
        wait = _FIRST_WAIT
        with httpx.Client(timeout=_CALL_TIMEOUT) as http:
            while True:
                with self._wake:
                    if not self._waiting and not self._stopping:
                        self._wake.wait(self._resend_seconds)
                    batch = list(self._waiting)
                    stopping = self._stopping
                batch = batch or ([] if stopping else [payload(alert) for alert in self._firing()])
                if batch and not self._post(http, batch):
                    if stopping:
                        return
                    with self._wake:
                        self._wake.wait_for(lambda: self._stopping, wait)
                    wait = min(2 * wait, _LAST_WAIT)
                    continue
                wait = _FIRST_WAIT
                if stopping:
                    return

    def _post(self, http: httpx.Client, batch: list[dict[str, Any]]) -> bool:
        try:
            http.post(self._endpoint, json=batch).raise_for_status()
        except httpx.HTTPError as error:
            self._metrics.add("affect_notifications_total", 1, "failed")
            _LOG.warning("alertmanager_unreachable", endpoint=self._endpoint, error=str(error), waiting=len(batch))
            return False
        self._metrics.add("affect_notifications_total", 1, "sent")
        with self._wake:
            # Only what was posted leaves the queue; more may have come meanwhile.
            for sent in batch:
                if self._waiting and self._waiting[0] is sent:
                    self._waiting.popleft()
            self._metrics.set("affect_notifications_waiting", len(self._waiting))
        return True


def payload(alert: Alert) -> dict[str, Any]:
    """An alert as Alertmanager's v2 API takes it (``postableAlert`` of its OpenAPI description)."""
    posted: dict[str, Any] = {
        "labels": alert.labels,
        "annotations": alert.annotations,
        "startsAt": _timestamp(alert.started),
    }
    if alert.ended is not None:
        posted["endsAt"] = _timestamp(alert.ended)
    return posted


def _timestamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat()
