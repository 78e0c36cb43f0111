"""Alertmanager's part as an AlertmanagerConfig of the Prometheus operator."""

from __future__ import annotations

import re
from typing import Any

import pytest

from monitor.errors import PolicyError
from monitor.policy.schema import PolicyFile
from monitor.rules.alertmanager_config import alertmanager_config

NIGHT = {"days": ["sat"], "start": "22:00", "end": "06:30"}


def config(**fields: Any) -> dict[str, Any]:
    """What becomes of a file with one policy."""
    policy = {"name": "desk", "stance": "neutral", "turn": {"false_alarm_rate": 0.01}} | fields
    return alertmanager_config(PolicyFile.model_validate({"version": 1, "policies": [policy]}), "affect")


def test_routes_are_those_of_the_fragment_in_the_operators_words() -> None:
    """Owners are told, muted policies are not, and other teams' alerts do not pass."""
    made = config(owner='the "desk"', mute=[NIGHT])
    assert (made["apiVersion"], made["kind"]) == ("monitoring.coreos.com/v1alpha1", "AlertmanagerConfig")
    assert made["metadata"] == {"name": "affect"}
    assert made["spec"]["route"] == {
        "receiver": "affect-monitor",
        "groupBy": ["alertname", "policy"],
        "matchers": [{"name": "alertname", "matchType": "=~", "value": "Affect.+"}],
        "routes": [
            {
                "receiver": 'the "desk"',
                "matchers": [{"name": "owner", "matchType": "=", "value": 'the "desk"'}],
                "routes": [
                    {
                        "matchers": [{"name": "policy", "matchType": "=", "value": "desk"}],
                        "muteTimeIntervals": ["mute-desk"],
                    }
                ],
            }
        ],
    }
    assert made["spec"]["receivers"] == [{"name": "affect-monitor"}, {"name": 'the "desk"'}]


def test_windows_are_those_of_the_policy() -> None:
    """A window beyond midnight is two intervals, as in Alertmanager's own configuration."""
    assert config(mute=[NIGHT])["spec"]["muteTimeIntervals"] == [
        {
            "name": "mute-desk",
            "timeIntervals": [
                {"weekdays": ["saturday"], "times": [{"startTime": "22:00", "endTime": "24:00"}]},
                {"weekdays": ["sunday"], "times": [{"startTime": "00:00", "endTime": "06:30"}]},
            ],
        }
    ]


def test_inhibitions_keep_their_labels() -> None:
    """What silences what, and on which labels both must agree."""
    blind, coverage, burn = config()["spec"]["inhibitRules"]
    assert blind["sourceMatch"][1] == {"name": "severity", "matchType": "=", "value": "critical"}
    assert "equal" not in blind
    assert coverage["sourceMatch"] == [{"name": "alertname", "matchType": "=", "value": "AffectCoverageLow"}]
    assert coverage["targetMatch"][0]["matchType"] == "=~"
    assert coverage["equal"] == burn["equal"] == ["policy"]


def test_a_time_zone_is_refused() -> None:
    """The resource has no field for one: muted at other hours than were meant is worse than an error."""
    told = "desk.mute.0.timezone: Europe/Berlin cannot be said in an AlertmanagerConfig, which knows UTC alone; put"
    with pytest.raises(PolicyError, match=re.escape(told)):
        config(mute=[{**NIGHT, "timezone": "Europe/Berlin"}])
