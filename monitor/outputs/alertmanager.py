"""Alerts to Alertmanager's v2 API, in order, from a bounded queue that outlasts its absence."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from http import HTTPStatus
from typing import Any, NamedTuple, Protocol

import httpx
import structlog

from monitor.errors import SetupError
from monitor.outputs.metrics import Metrics

_LOG = structlog.get_logger("alertmanager")
_FIRST_WAIT, _LAST_WAIT = 0.5, 30.0
_CALL_TIMEOUT = 5.0
_REFUSALS = (HTTPStatus.BAD_REQUEST, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, HTTPStatus.UNPROCESSABLE_ENTITY)
"""Answers that another try would not change."""
_RESULTS = ("sent", "failed", "rejected", "dropped")


class Notice(Protocol):
    """What can be posted: an alert of a policy, or a fault of the monitor itself."""

    @property
    def labels(self) -> dict[str, str]:
        """What identifies it."""

    @property
    def annotations(self) -> dict[str, str]:
        """What it says."""

    @property
    def started(self) -> float:
        """When it began, in seconds since the epoch."""

    @property
    def ended(self) -> float | None:
        """When it ended; None while it fires."""


class _Change(NamedTuple):
    """What a notice said when it changed; an alert goes on to change while this waits."""

    labels: dict[str, str]
    annotations: dict[str, str]
    started: float
    ended: float | None


class AlertmanagerSender:
    """Posts every change of an alert, and firing ones again in time that Alertmanager does not resolve them by itself.

    Args:
        url: Base address of Alertmanager, such as ``http://127.0.0.1:9093``.
        metrics: Where results are counted.
        firing: Gives the alerts that fire now.
        resend_seconds: Time between repetitions; Alertmanager's own ``resolve_timeout`` is five minutes.
        queue: Changes that may wait; the oldest is given up for a newer one.

    Raises:
        SetupError: The address is none that can be posted to.
    """

    def __init__(
        self,
        url: str,
        metrics: Metrics,
        firing: Callable[[], Sequence[Notice]],
        *,
        resend_seconds: float = 60.0,
        queue: int = 1000,
    ) -> None:
        self._endpoint = _endpoint(url)
        self._metrics = metrics
        self._firing = firing
        self._resend_seconds = resend_seconds
        self._waiting: deque[_Change] = deque(maxlen=queue)
        self._wake = threading.Condition()
        self._stopping = False
        metrics.declare("affect_notifications_total", [(result,) for result in _RESULTS])
        self._thread = threading.Thread(target=self._run, name="alertmanager", daemon=True)
        self._thread.start()

    def send(self, alert: Notice) -> None:
        """Queues the present state of an alert."""
        change = _Change(alert.labels, alert.annotations, alert.started, alert.ended)
        with self._wake:
            if len(self._waiting) == self._waiting.maxlen:
                self._count("dropped", 1)
            self._waiting.append(change)
            self._metrics.set("affect_notifications_waiting", len(self._waiting))
            self._wake.notify_all()

    def close(self, timeout: float = 5.0) -> None:
        """Sends what waits, once, and stops; what cannot be sent is given up."""
        with self._wake:
            self._stopping = True
            self._wake.notify_all()
        self._thread.join(timeout)
        with self._wake:
            if self._waiting:
                _LOG.error("alerts_given_up", endpoint=self._endpoint, waiting=len(self._waiting))
                self._count("dropped", len(self._waiting))
                self._waiting.clear()
                self._metrics.set("affect_notifications_waiting", 0)

    def _run(self) -> None:
        wait = _FIRST_WAIT
        repeat = time.monotonic() + self._resend_seconds
        with httpx.Client(timeout=_CALL_TIMEOUT) as http:
            while True:
                with self._wake:
                    self._wake.wait_for(lambda: self._waiting or self._stopping, max(0.0, repeat - time.monotonic()))
                    stopping, batch = self._stopping, list(self._waiting)
                due = not stopping and time.monotonic() >= repeat
                # After the changes: what fires now is newer than they are.
                again = self._firing() if due else []
                done = self._post(http, batch, again) if batch or again else True
                if stopping:
                    return
                if done:
                    wait = _FIRST_WAIT
                    repeat = time.monotonic() + self._resend_seconds if due else repeat
                    continue
                with self._wake:
                    self._wake.wait_for(lambda: self._stopping, wait)
                wait = min(2 * wait, _LAST_WAIT)

    def _post(self, http: httpx.Client, batch: Sequence[_Change], again: Sequence[Notice]) -> bool:
        """Posts changes and repetitions; false where they have to be posted once more."""
        now = time.time()
        posted = [payload(alert, now) for alert in (*batch, *again)]
        count = len(posted)
        try:
            response = http.post(self._endpoint, json=posted)
            if response.status_code not in _REFUSALS:
                response.raise_for_status()
        except httpx.HTTPError as error:
            self._count("failed", count)
            _LOG.warning("alertmanager_unreachable", endpoint=self._endpoint, error=str(error), waiting=len(batch))
            return False
        if response.is_success:
            self._count("sent", count)
        else:
            # Alertmanager keeps the valid ones of a batch; the others would stand in the way of every later alert.
            self._count("rejected", count)
            _LOG.error(
                "alertmanager_rejects", endpoint=self._endpoint, status=response.status_code, answer=response.text
            )
        with self._wake:
            # Only what was posted leaves the queue; more may have come meanwhile, and pushed out the oldest.
            for sent in batch:
                if self._waiting and self._waiting[0] is sent:
                    self._waiting.popleft()
            self._metrics.set("affect_notifications_waiting", len(self._waiting))
        return True

    def _count(self, result: str, alerts: int) -> None:
        self._metrics.add("affect_notifications_total", alerts, result)


def payload(alert: Notice, now: float) -> dict[str, Any]:
    """An alert as Alertmanager's v2 API takes it (``postableAlert`` of its OpenAPI description).

    Where the clock was put back since, an alert begins and ends now at the latest: Alertmanager refuses one that begins
    well ahead of its own clock or ends before it begins, and takes one that will end later for one that fires.
    """
    ended = None if alert.ended is None else min(alert.ended, now)
    posted: dict[str, Any] = {
        "labels": alert.labels,
        "annotations": alert.annotations,
        "startsAt": _timestamp(min(alert.started, now if ended is None else ended)),
    }
    if ended is not None:
        posted["endsAt"] = _timestamp(ended)
    return posted


def _endpoint(url: str) -> str:
    fix = "give its base address, such as http://127.0.0.1:9093"
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise SetupError("--alertmanager-url", f"{url!r} is no address ({error}); {fix}") from None
    if parsed.scheme not in {"http", "https"} or not parsed.host:
        raise SetupError("--alertmanager-url", f"{url!r} is no http address; {fix}")
    return url.rstrip("/") + "/api/v2/alerts"


def _timestamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat()
