"""Alertmanager's part of a policy file as an AlertmanagerConfig, which the Prometheus operator merges into its own."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from monitor.errors import PolicyError
from monitor.policy.schema import PolicyFile
from monitor.rules.alertmanager import fragment

_UTC = "UTC"
_MATCHER = re.compile(r'(\w+)(=~|=)(".*")')
_OURS = {"name": "alertname", "matchType": "=~", "value": "Affect.+"}
"""Alerts of other teams may pass here as well: the operator only adds a namespace, where it adds anything."""


def alertmanager_config(
    policies: PolicyFile, name: str, namespace: str = "", labels: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Routes, inhibitions and muting windows of a policy file as a resource of the Prometheus operator.

    Args:
        policies: The policy file.
        name: Name of the resource.
        namespace: Where it goes; empty: wherever it is applied.
        labels: Labels by which an Alertmanager chooses its configurations.

    Raises:
        PolicyError: A muting window is in another time zone than UTC, for which the resource has no field.
    """
    for policy in policies.policies:
        for number, window in enumerate(policy.mute):
            if window.timezone != _UTC:
                raise PolicyError(
                    f"{policy.name}.mute.{number}.timezone",
                    f"{window.timezone} cannot be said in an AlertmanagerConfig, which knows UTC alone; put the window "
                    "in UTC, or merge what --format alertmanager writes into Alertmanager's own configuration",
                )
    told = fragment(policies)
    spec = {
        "route": {**_route(told["route"]), "matchers": [_OURS]},
        "inhibitRules": [_inhibition(rule) for rule in told["inhibit_rules"]],
        "muteTimeIntervals": [_interval(each) for each in told.get("time_intervals", [])],
        "receivers": told["receivers"],
    }
    metadata = {"name": name, "namespace": namespace, "labels": dict(labels or {})}
    return {
        "apiVersion": "monitoring.coreos.com/v1alpha1",
        "kind": "AlertmanagerConfig",
        "metadata": {key: value for key, value in metadata.items() if value},
        "spec": {key: value for key, value in spec.items() if value},
    }


def _route(route: Mapping[str, Any]) -> dict[str, Any]:
    written = {
        "receiver": route.get("receiver"),
        "groupBy": route.get("group_by"),
        "matchers": _matchers(route.get("matchers", ())),
        "muteTimeIntervals": route.get("mute_time_intervals"),
        "routes": [_route(below) for below in route.get("routes", ())],
    }
    return {key: value for key, value in written.items() if value}


def _inhibition(rule: Mapping[str, Any]) -> dict[str, Any]:
    written = {
        "sourceMatch": _matchers(rule["source_matchers"]),
        "targetMatch": _matchers(rule["target_matchers"]),
        "equal": rule.get("equal"),
    }
    return {key: value for key, value in written.items() if value}


def _interval(interval: Mapping[str, Any]) -> dict[str, Any]:
    parts = [
        {
            "weekdays": part["weekdays"],
            "times": [{"startTime": time["start_time"], "endTime": time["end_time"]} for time in part["times"]],
        }
        for part in interval["time_intervals"]
    ]
    return {"name": interval["name"], "timeIntervals": parts}


def _matchers(written: Sequence[str]) -> list[dict[str, str]]:
    """Matchers in their parts: values are quoted as JSON has it."""
    found = [_MATCHER.fullmatch(matcher) for matcher in written]
    return [{"name": part[1], "matchType": part[2], "value": json.loads(part[3])} for part in found if part]
