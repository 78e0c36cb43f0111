"""Alerts to Alertmanager's v2 API."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from monitor.outputs.delivery import NO_LABELS, Delivery, Notice, checked_url, span
from monitor.outputs.metrics import Metrics

ALERTMANAGER = "alertmanager"
"""Label of what is counted of it."""
_AT_ONCE = 1000
"""Groups in one post: whatever waits."""


def to_alertmanager(
    url: str,
    metrics: Metrics,
    firing: Callable[[], Sequence[Notice]],
    *,
    labels: Mapping[str, str] = NO_LABELS,
    resend_seconds: float = 60.0,
    queue: int = _AT_ONCE,
) -> Delivery:
    """Posts changes of alerts, and firing ones again in time that Alertmanager does not resolve them by itself.

    Args:
        url: Base address of Alertmanager, such as ``http://127.0.0.1:9093``.
        metrics: Where results are counted.
        firing: Gives the alerts that fire now and that people were told of.
        labels: Further labels of every alert.
        resend_seconds: Time between repetitions; Alertmanager's own ``resolve_timeout`` is five minutes.
        queue: Groups of changes that may wait; the oldest is given up for a newer one.

    Raises:
        SetupError: The address is none that can be posted to.
    """
    base = checked_url(url, "--alertmanager-url", "http://127.0.0.1:9093").rstrip("/")
    return Delivery(
        ALERTMANAGER, f"{base}/api/v2/alerts", _body, metrics,
        at_once=_AT_ONCE, labels=labels, firing=firing, resend_seconds=resend_seconds, queue=queue,
    )  # fmt: skip


def payload(alert: Notice, now: float) -> dict[str, Any]:
    """An alert as Alertmanager's v2 API takes it (``postableAlert`` of its OpenAPI description)."""
    started, ended = span(alert, now)
    posted = {"labels": alert.labels, "annotations": alert.annotations, "startsAt": started}
    return posted | ({"endsAt": ended} if ended is not None else {})


def _body(alerts: Sequence[Notice], now: float) -> list[dict[str, Any]]:
    return [payload(alert, now) for alert in alerts]
