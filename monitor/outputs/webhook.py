"""Alerts to a webhook, in the shape of Alertmanager's own (version 4), so that receivers made for it understand them.

https://prometheus.io/docs/alerting/latest/configuration/#webhook_config
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from monitor.outputs.delivery import NO_LABELS, Delivery, Notice, checked_url, span
from monitor.outputs.metrics import Metrics

WEBHOOK = "webhook"
"""Label of what is counted of it."""
_NEVER = "0001-01-01T00:00:00Z"
"""The end of an alert that has none, as Go writes it."""


def to_webhook(url: str, metrics: Metrics, labels: Mapping[str, str] = NO_LABELS) -> Delivery:
    """Posts every change of alerts, those that changed together in one message; repeats nothing.

    Args:
        url: Address that is posted to.
        metrics: Where results are counted.
        labels: Further labels of every alert.

    Raises:
        SetupError: The address is none that can be posted to.
    """
    endpoint = checked_url(url, "--webhook-url", "https://example.org/hook")
    return Delivery(WEBHOOK, endpoint, message, metrics, at_once=1, labels=labels)


def message(alerts: Sequence[Notice], now: float) -> dict[str, Any]:
    """A group of alerts as Alertmanager posts it; it fires while one of them does."""
    common = _common([alert.labels for alert in alerts])
    grouped = {name: common[name] for name in ("alertname", "policy") if name in common}
    return {
        "version": "4",
        "groupKey": "{}:{" + ", ".join(f'{name}="{value}"' for name, value in grouped.items()) + "}",
        "truncatedAlerts": 0,
        "status": "firing" if any(alert.ended is None for alert in alerts) else "resolved",
        "receiver": "affect-monitor",
        "groupLabels": grouped,
        "commonLabels": common,
        "commonAnnotations": _common([alert.annotations for alert in alerts]),
        "externalURL": "",
        "alerts": [_alert(alert, now) for alert in alerts],
    }


def _alert(alert: Notice, now: float) -> dict[str, Any]:
    started, ended = span(alert, now)
    return {
        "status": "firing" if ended is None else "resolved",
        "labels": alert.labels,
        "annotations": alert.annotations,
        "startsAt": started,
        "endsAt": ended or _NEVER,
        "generatorURL": "",
        "fingerprint": _fingerprint(alert.labels),
    }


def _common(maps: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """What all maps agree on."""
    return {name: value for name, value in maps[0].items() if all(other.get(name) == value for other in maps)}


def _fingerprint(labels: Mapping[str, str]) -> str:
    """A short name of an alert: the same for the same labels."""
    return hashlib.sha256(json.dumps(labels, sort_keys=True).encode()).hexdigest()[:16]
