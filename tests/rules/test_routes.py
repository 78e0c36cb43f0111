"""Alertmanager's part: who is told, when nobody is, what keeps what silent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from prometheus_tools import amtool

from monitor.policy.schema import PolicyFile, read_policy
from monitor.rules.alertmanager import fragment
from monitor.rules.manifest import write

POLICY = Path(__file__).parent / "policy.yaml"
TURN = {"false_alarm_rate": 0.01}


def config(**fields: Any) -> dict[str, Any]:
    """What becomes of a file with one policy."""
    policy = {"name": "desk", "stance": "neutral", "turn": TURN} | fields
    return fragment(PolicyFile.model_validate({"version": 1, "policies": [policy]}))


def parts(*windows: dict[str, Any]) -> list[dict[str, Any]]:
    """Time intervals of a policy's muting windows."""
    found: list[dict[str, Any]] = config(mute=windows)["time_intervals"][0]["time_intervals"]
    return found


class TestMuting:
    """Windows as Alertmanager has them."""

    def test_a_window_within_a_day_is_one(self) -> None:
        """Days, times and time zone are those of the policy."""
        assert parts({"days": ["wed"], "start": "12:00", "end": "13:30", "timezone": "Asia/Tokyo"}) == [
            {
                "weekdays": ["wednesday"],
                "times": [{"start_time": "12:00", "end_time": "13:30"}],
                "location": "Asia/Tokyo",
            }
        ]

    def test_a_window_beyond_midnight_ends_on_the_next_day(self) -> None:
        """Sunday's ends on Monday: Alertmanager knows no interval beyond midnight."""
        evening, morning = parts({"days": ["sat", "sun"], "start": "22:00", "end": "06:30"})
        assert evening["weekdays"] == ["saturday", "sunday"]
        assert evening["times"] == [{"start_time": "22:00", "end_time": "24:00"}]
        assert morning["weekdays"] == ["monday", "sunday"]
        assert morning["times"] == [{"start_time": "00:00", "end_time": "06:30"}]

    def test_a_window_until_midnight_has_no_next_day(self) -> None:
        """An interval from midnight to midnight would be empty."""
        assert len(parts({"start": "22:00", "end": "00:00"})) == 1

    def test_a_whole_day_is_both_sides_of_its_start(self) -> None:
        """A window that ends when it starts lasts a day."""
        assert len(parts({"days": ["fri"], "start": "08:00", "end": "08:00"})) == 2


class TestRoutes:
    """Who is told."""

    def test_owners_are_told_and_muted_policies_are_not(self) -> None:
        """A route for each owner, and below it one for each policy with windows."""
        route = config(owner='the "desk"', mute=[{"start": "12:00", "end": "13:00"}])["route"]
        assert route["routes"] == [
            {
                "matchers": ['owner="the \\"desk\\""'],
                "receiver": 'the "desk"',
                "routes": [{"matchers": ['policy="desk"'], "mute_time_intervals": ["mute-desk"]}],
            }
        ]

    def test_without_owner_and_windows_there_is_one_receiver(self) -> None:
        """Everything goes the default way."""
        found = config()
        assert found["route"]["routes"] == []
        assert found["receivers"] == [{"name": "affect-monitor"}]
        assert "time_intervals" not in found

    def test_muting_needs_no_owner(self) -> None:
        """Alerts without an owner are muted on their way to the default receiver."""
        (route,) = config(mute=[{"start": "12:00", "end": "13:00"}])["route"]["routes"]
        assert (route["matchers"], route["receiver"]) == (['owner=""'], "affect-monitor")


@pytest.mark.servers
class TestAlertmanager:
    """The real one, by amtool."""

    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        """A configuration made of the fragment alone."""
        path = tmp_path / "alertmanager.yaml"
        path.write_text(write(fragment(read_policy(POLICY)), "a test"))
        return path

    def test_takes_the_fragment(self, file: Path) -> None:
        """It is a configuration as it stands."""
        assert "3 inhibit rules" in amtool("check-config", file)

    @pytest.mark.parametrize(
        ("labels", "receiver"),
        [
            (["policy=desk", "owner=desk-team", "alertname=AffectDrift"], "desk-team"),
            (["policy=rest", "alertname=AffectDrift"], "affect-monitor"),
            (["alertname=AffectTelemetryMissing", "severity=critical"], "affect-monitor"),
        ],
    )
    def test_routes_alerts(self, file: Path, labels: list[str], receiver: str) -> None:
        """An alert goes to the owner of its policy, and to the default receiver where there is none."""
        assert amtool("config", "routes", "test", f"--config.file={file}", *labels).strip() == receiver


def matches(matcher: str, labels: dict[str, str]) -> bool:
    """Whether a matcher of an inhibition, as this package writes them, fits an alert."""
    name, regex, value = matcher.partition("=~") if "=~" in matcher else matcher.partition("=")
    return labels.get(name, "") in (json.loads(value).split("|") if regex == "=~" else [json.loads(value)])


class TestInhibitions:
    """What keeps what silent."""

    @pytest.mark.parametrize(
        ("source", "target", "expected"),
        [
            ({"alertname": "AffectBlind"}, {"alertname": "AffectOverIndex", "policy": "a"}, False),
            ({"alertname": "AffectBankUnvalidated"}, {"alertname": "AffectDrift", "policy": "a"}, False),
            (
                {"alertname": "AffectTelemetryMissing", "severity": "critical"},
                {"alertname": "AffectBudgetBurnFast", "policy": "a"},
                True,
            ),
            (
                {"alertname": "AffectTelemetryMissing", "severity": "warning"},
                {"alertname": "AffectBudgetBurnFast", "policy": "a"},
                False,
            ),
            (
                {"alertname": "AffectTelemetryMissing", "severity": "critical"},
                {"alertname": "AffectOverIndex", "policy": "a"},
                False,
            ),
            ({"alertname": "AffectCoverageLow", "policy": "a"}, {"alertname": "AffectOverIndex", "policy": "a"}, True),
            ({"alertname": "AffectCoverageLow", "policy": "b"}, {"alertname": "AffectOverIndex", "policy": "a"}, False),
            (
                {"alertname": "AffectBudgetBurnFast", "policy": "a"},
                {"alertname": "AffectBudgetBurnSlow", "policy": "a"},
                True,
            ),
            (
                {"alertname": "AffectBudgetBurnFast", "policy": "b"},
                {"alertname": "AffectBudgetBurnSlow", "policy": "a"},
                False,
            ),
            ({"alertname": "AffectBlind"}, {"alertname": "AffectCanaryShifted"}, False),
        ],
    )
    def test_monitor_faults_silence_what_they_make_doubtful(
        self, source: dict[str, str], target: dict[str, str], expected: bool
    ) -> None:
        """What is computed where nothing is seen, one policy where its turns go unseen, nothing for one sidecar."""
        found = any(
            all(matches(matcher, source) for matcher in rule["source_matchers"])
            and all(matches(matcher, target) for matcher in rule["target_matchers"])
            and all(source.get(name) == target.get(name) for name in rule.get("equal", []))
            for rule in config()["inhibit_rules"]
        )
        assert found is expected
