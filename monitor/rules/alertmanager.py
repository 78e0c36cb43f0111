"""Alertmanager's part of a policy file: who is told, when nobody is, and which alerts keep others silent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from monitor.policy.schema import DAYS, MutingWindow, Policy, PolicyFile

RECEIVER = "affect-monitor"
"""Who is told where a policy has no owner, and of the monitor itself."""
COMPUTED = (
    "AffectBudgetBurnFast",
    "AffectBudgetBurnSlow",
    "AffectDrift",
    "AffectMirrorDrift",
    "AffectUsersShifted",
    "AffectVersionsDiffer",
)
"""Alerts about affect that Prometheus computes; the sidecar's own is AffectOverIndex."""
_DAY_NAMES = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_MIDNIGHT, _END_OF_DAY = "00:00", "24:00"


def fragment(policies: PolicyFile) -> dict[str, Any]:
    """Routes, inhibitions and muting windows of a policy file, for a configuration of Alertmanager.

    Receivers are named and empty: how each is reached is for the reader to fill in.
    """
    owners = list(dict.fromkeys(policy.owner for policy in policies.policies))
    muted = [policy for policy in policies.policies if policy.mute]
    config: dict[str, Any] = {
        "route": {
            "receiver": RECEIVER,
            "group_by": ["alertname", "policy"],
            "routes": [route for owner in owners if (route := _route(owner, muted))],
        },
        "inhibit_rules": _inhibitions(),
        "time_intervals": [_interval(policy) for policy in muted],
        "receivers": [{"name": name} for name in dict.fromkeys((RECEIVER, *filter(None, owners)))],
    }
    return {name: part for name, part in config.items() if part}


def _route(owner: str, muted: Sequence[Policy]) -> dict[str, Any]:
    """What becomes of an owner's alerts; empty where that is what becomes of all."""
    routes = [
        {"matchers": [f'policy="{policy.name}"'], "mute_time_intervals": [_interval_name(policy)]}
        for policy in muted
        if policy.owner == owner
    ]
    if not owner and not routes:
        return {}
    route: dict[str, Any] = {"matchers": [f"owner={_quoted(owner)}"], "receiver": owner or RECEIVER}
    return {**route, "routes": routes} if routes else route


def _inhibitions() -> list[dict[str, Any]]:
    computed = f'alertname=~"{"|".join(COMPUTED)}"'
    every = f'alertname=~"{"|".join(("AffectOverIndex", *COMPUTED))}"'
    return [
        # A sidecar that is blind holds back its own alerts itself; no part of the fleet silences the rest. Alerts of
        # sidecars reach Alertmanager without Prometheus.
        {
            "source_matchers": ['alertname=~"AffectTelemetryMissing|AffectEngineMissing"', 'severity="critical"'],
            "target_matchers": [computed],
        },
        {"source_matchers": ['alertname="AffectCoverageLow"'], "target_matchers": [every], "equal": ["policy"]},
        {
            "source_matchers": ['alertname="AffectBudgetBurnFast"'],
            "target_matchers": ['alertname="AffectBudgetBurnSlow"'],
            "equal": ["policy"],
        },
    ]


def _interval(policy: Policy) -> dict[str, Any]:
    return {
        "name": _interval_name(policy),
        "time_intervals": [part for window in policy.mute for part in _parts(window)],
    }


def _interval_name(policy: Policy) -> str:
    return f"mute-{policy.name}"


def _parts(window: MutingWindow) -> list[dict[str, Any]]:
    """A window as Alertmanager has it, which knows none beyond midnight."""
    start, end = (moment.strftime("%H:%M") for moment in (window.start, window.end))
    days = [DAYS.index(day) for day in window.days]
    if window.start < window.end:
        return [_part(days, start, end, window.timezone)]
    parts = [_part(days, start, _END_OF_DAY, window.timezone)]
    if end != _MIDNIGHT:
        parts.append(_part([(day + 1) % len(DAYS) for day in days], _MIDNIGHT, end, window.timezone))
    return parts


def _part(days: Sequence[int], start: str, end: str, timezone: str) -> dict[str, Any]:
    return {
        "weekdays": [_DAY_NAMES[day] for day in sorted(days)],
        "times": [{"start_time": start, "end_time": end}],
        "location": timezone,
    }


def _quoted(text: str) -> str:
    """A text as the value of a matcher."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
