"""Alerts to whoever is told of them, by HTTP, in order, from a bounded queue that outlasts the receiver's absence."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from http import HTTPStatus
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import httpx
import structlog

from monitor.errors import SetupError
from monitor.outputs.metrics import Metrics

_LOG = structlog.get_logger("delivery")
_FIRST_WAIT, _LAST_WAIT = 0.5, 30.0
_CALL_TIMEOUT = 5.0
_REFUSALS = (HTTPStatus.BAD_REQUEST, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, HTTPStatus.UNPROCESSABLE_ENTITY)
"""Answers that another try would not change."""
_RESULTS = ("sent", "failed", "rejected", "dropped")


class Notice(Protocol):
    """What can be told: an alert of a policy, or a fault of the monitor itself."""

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


class Change(NamedTuple):
    """What a notice said when it changed; an alert goes on to change while this waits."""

    labels: dict[str, str]
    annotations: dict[str, str]
    started: float
    ended: float | None


NO_LABELS: Mapping[str, str] = MappingProxyType({})
Group = tuple[Change, ...]
"""Notices that changed together."""


class Delivery:
    """Posts every change of alerts, and tries again for as long as the receiver cannot be reached.

    Args:
        receiver: Who is told, for metrics and the log.
        endpoint: Address that is posted to; it may hold a secret and is not logged.
        body: What is posted of some notices, given the time in seconds since the epoch; it becomes JSON.
        metrics: Where results are counted, alert by alert.
        at_once: Groups that go into one post at most.
        labels: Further labels of all that is told from here.
        firing: Gives what fires now, to be told again without having changed.
        resend_seconds: Time between such repetitions.
        queue: Groups that may wait; the oldest is given up for a newer one.

    Raises:
        SetupError: The environment names a proxy or certificates that cannot be used.
    """

    def __init__(
        self,
        receiver: str,
        endpoint: str,
        body: Callable[[Sequence[Notice], float], Any],
        metrics: Metrics,
        *,
        at_once: int,
        labels: Mapping[str, str] = NO_LABELS,
        firing: Callable[[], Sequence[Notice]] = tuple,
        resend_seconds: float = 60.0,
        queue: int = 1000,
    ) -> None:
        self._receiver = receiver
        self._endpoint = endpoint
        self._body = body
        self._metrics = metrics
        self._at_once = at_once
        self._labels = labels
        self._firing = firing
        self._resend_seconds = resend_seconds
        self._waiting: deque[Group] = deque(maxlen=queue)
        self._wake = threading.Condition()
        self._stopping = False
        self._http = _client()
        metrics.declare("affect_notifications_total", [(receiver, result) for result in _RESULTS])
        self._show_waiting()
        self._thread = threading.Thread(target=self._run, name=receiver, daemon=True)
        self._thread.start()

    def send(self, group: Sequence[Notice]) -> None:
        """Queues the present state of alerts that changed together."""
        changes = self._told(group)
        with self._wake:
            if len(self._waiting) == self._waiting.maxlen:
                self._count("dropped", len(self._waiting[0]))
            self._waiting.append(changes)
            self._show_waiting()
            self._wake.notify_all()

    def close(self, timeout: float = 5.0) -> None:
        """Sends what waits, once, and stops; what cannot be sent is given up."""
        with self._wake:
            self._stopping = True
            self._wake.notify_all()
        self._thread.join(timeout)
        with self._wake:
            if self._waiting:
                given_up = sum(map(len, self._waiting))
                _LOG.error("alerts_given_up", receiver=self._receiver, waiting=given_up)
                self._count("dropped", given_up)
                self._waiting.clear()
                self._show_waiting()

    def _told(self, notices: Sequence[Notice]) -> Group:
        """What notices say now, with the labels of this place."""
        return tuple(
            Change({**each.labels, **self._labels}, each.annotations, each.started, each.ended) for each in notices
        )

    def _run(self) -> None:
        wait = _FIRST_WAIT
        repeat = time.monotonic() + self._resend_seconds
        with self._http:
            while True:
                with self._wake:
                    self._wake.wait_for(lambda: self._waiting or self._stopping, max(0.0, repeat - time.monotonic()))
                    stopping, batch = self._stopping, list(self._waiting)[: self._at_once]
                due = not stopping and time.monotonic() >= repeat
                # After the changes: what fires now is newer than they are.
                again = self._told(self._firing()) if due else ()
                done = self._post(batch, again) if batch or again else True
                if stopping and not (done and batch):
                    return
                if done:
                    wait = _FIRST_WAIT
                    repeat = time.monotonic() + self._resend_seconds if due else repeat
                    continue
                with self._wake:
                    self._wake.wait_for(lambda: self._stopping, wait)
                wait = min(2 * wait, _LAST_WAIT)

    def _post(self, batch: Sequence[Group], again: Sequence[Notice]) -> bool:
        """Posts changes and repetitions; false where they have to be posted once more."""
        notices = [*(change for group in batch for change in group), *again]
        try:
            with self._http.stream("POST", self._endpoint, json=self._body(notices, time.time())) as response:
                # Of an answer that may never end, no more is read than is told.
                answer = "" if response.is_success else next(response.iter_text(), "")
        except httpx.HTTPError as error:
            return self._failed(len(notices), str(error))
        except Exception as error:  # noqa: BLE001 - what cannot be posted at all must not end all telling
            self._rejected(len(notices), error=type(error).__name__)
        else:
            if response.is_success:
                self._count("sent", len(notices))
            elif response.status_code in _REFUSALS:
                # Alertmanager keeps the valid ones of a batch; the others would stand in the way of every later alert.
                self._rejected(len(notices), status=response.status_code, answer=answer[:1000])
            else:
                return self._failed(len(notices), f"answered {response.status_code}")
        with self._wake:
            # Only what was posted leaves the queue; more may have come meanwhile, and pushed out the oldest.
            for sent in batch:
                if self._waiting and self._waiting[0] is sent:
                    self._waiting.popleft()
            self._show_waiting()
        return True

    def _failed(self, notices: int, error: str) -> bool:
        self._count("failed", notices)
        _LOG.warning("receiver_unreachable", receiver=self._receiver, alerts=notices, error=error)
        return False

    def _rejected(self, notices: int, **why: Any) -> None:
        self._count("rejected", notices)
        _LOG.error("receiver_rejects", receiver=self._receiver, **why)

    def _count(self, result: str, alerts: int) -> None:
        self._metrics.add("affect_notifications_total", alerts, self._receiver, result)

    def _show_waiting(self) -> None:
        self._metrics.set("affect_notifications_waiting", sum(map(len, self._waiting)), self._receiver)


def span(notice: Notice, now: float) -> tuple[str, str | None]:
    """When a notice began and ended, as RFC 3339 has it; None while it fires.

    Where the clock was put back since, it begins and ends now at the latest: Alertmanager refuses an alert that begins
    well ahead of its own clock or ends before it begins, and takes one that will end later for one that fires.
    """
    if notice.ended is None:
        return _timestamp(min(notice.started, now)), None
    ended = min(notice.ended, now)
    return _timestamp(min(notice.started, ended)), _timestamp(ended)


def checked_url(url: str, flag: str, example: str) -> str:
    """An address that can be posted to.

    Raises:
        SetupError: It is none.
    """
    fix = f"give its address, such as {example}"
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise SetupError(flag, f"{url!r} is no address ({error}); {fix}") from None
    if parsed.scheme not in {"http", "https"} or not parsed.host:
        raise SetupError(flag, f"{url!r} is no http address; {fix}")
    return url


def _client() -> httpx.Client:
    try:
        return httpx.Client(timeout=_CALL_TIMEOUT)
    except (ImportError, OSError, ValueError) as error:
        raise SetupError(
            "HTTP_PROXY, SSL_CERT_FILE",
            f"no alert can be posted with these ({error}); correct the environment, or put receivers on NO_PROXY",
        ) from None


def _timestamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat()
