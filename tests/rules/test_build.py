"""Rules as they are written: times that scale, what every alert tells, what is committed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from commands import runner

from monitor.errors import PolicyError, SetupError
from monitor.outputs.metrics import METRICS
from monitor.policy.schema import PolicyFile, read_policy
from monitor.rules.build import build
from monitor.rules.check import lacking
from monitor.rules.windows import Windows, duration

ROOT = Path(__file__).parents[2]
POLICY = Path(__file__).parent / "policy.yaml"
BUILD = "rules build --policy alerts/policies/service-desk.yaml"
COMMITTED = {
    "service-desk.yaml": BUILD,
    "service-desk.prometheusrule.yaml": f"{BUILD} --format prometheusrule",
}


def policies(**fields: Any) -> PolicyFile:
    """A file with one policy."""
    policy = {"name": "desk", "stance": "neutral", "turn": {"false_alarm_rate": 0.01}} | fields
    return PolicyFile.model_validate({"version": 1, "policies": [policy]})


def alert(file: PolicyFile, name: str) -> dict[str, Any]:
    """The first rule of an alert."""
    rules = [rule for group in build(file)["groups"] for rule in group["rules"]]
    return next(rule for rule in rules if rule.get("alert") == name)


def selections(rules: dict[str, Any]) -> dict[str, list[str]]:
    """Label matchers by the metric they stand at; what rules record is no metric of a sidecar."""
    texts = [
        text
        for group in rules["groups"]
        for rule in group["rules"]
        for text in (rule["expr"], rule.get("annotations", {}).get("description", ""))
    ]
    found: dict[str, list[str]] = {}
    for name, labels in re.findall(r"(?<![:\w])(up|affect_\w+)(?:\{([^}]*)\}|(?![:\w]))", " ".join(texts)):
        found.setdefault(name, []).append(labels)
    return found


class TestWindows:
    """Times of the rules."""

    @pytest.mark.parametrize(
        ("days", "spans"),
        [(30, ["5m", "30m", "1h", "6h"]), (0.5, ["5s", "30s", "1m", "6m"]), (7, ["1m10s", "7m", "14m", "1h24m"])],
    )
    def test_scale_with_the_period_of_the_budget(self, days: float, spans: list[str]) -> None:
        """An hour of a month is a minute of half a day, and is written as Prometheus reads it."""
        policy = policies(rate={"budget": 0.02, "period_days": days}).policies[0]
        assert [duration(seconds) for seconds in Windows.of(policy).spans] == spans

    def test_holding_scales_as_well(self) -> None:
        """An alert of a short period resolves within a short time."""
        short = policies(rate={"budget": 0.02, "period_days": 0.5})
        assert alert(policies(), "AffectDrift")["keep_firing_for"] == "10m"
        assert alert(short, "AffectDrift")["keep_firing_for"] == "10s"
        assert alert(short, "AffectBudgetBurnFast")["for"] == "1s"

    def test_never_vanish(self) -> None:
        """The shortest window is a second: Prometheus takes no empty one."""
        policy = policies(rate={"budget": 0.02, "period_days": 0.001}).policies[0]
        assert min(Windows.of(policy).spans) == 1


class TestAlerts:
    """What alerts carry."""

    def test_tell_everything(self) -> None:
        """Severity, summary, description, runbook and dashboard, and the owner where a policy has one."""
        file = read_policy(POLICY)
        assert lacking(build(file)) == []
        fast = alert(file, "AffectBudgetBurnFast")
        assert fast["labels"] == {"policy": "desk", "owner": "desk-team", "severity": "critical"}
        assert fast["annotations"]["runbook_url"] == "https://runbooks.example.org/AffectBudgetBurnFast.md"
        assert fast["annotations"]["dashboard_url"] == "https://grafana.example.org/d/affect-route?var-policy=desk"

    def test_have_no_links_where_the_policy_names_none(self) -> None:
        """No annotation stands empty."""
        assert set(alert(policies(), "AffectDrift")["annotations"]) == {"summary", "description"}

    def test_users_who_change_page_nobody(self) -> None:
        """A shift of users is for information, however severe the policy."""
        assert alert(policies(severity="critical"), "AffectUsersShifted")["labels"]["severity"] == "info"

    def test_no_budget_no_burn(self) -> None:
        """A policy without a rate rule has no alerts on it."""
        with pytest.raises(StopIteration):
            alert(policies(), "AffectBudgetBurnFast")

    def test_a_budget_must_be_small_enough_to_be_spent_too_fast(self) -> None:
        """14.4 times 0.07 is more than all turns: such an alert could not fire, and is refused."""
        with pytest.raises(PolicyError, match=r"desk\.rate\.budget: 0\.07 cannot .* less than 0\.069"):
            build(policies(rate={"budget": 0.07}))
        assert alert(policies(rate={"budget": 0.069}), "AffectBudgetBurnFast")


class TestSelector:
    """Which sidecars the rules are about."""

    ONLY = 'job="other",cluster=~"eu.*"'

    def test_stands_in_every_selection_of_a_metric(self) -> None:
        """Records, alerts and their texts read metrics of the chosen sidecars alone."""
        selected = selections(build(read_policy(POLICY), self.ONLY))
        assert {"up", "affect_turns_judged_total", "affect_canary_shift"} <= selected.keys()
        for name, found in selected.items():
            assert all(labels.replace("'", '"').startswith(self.ONLY) for labels in found), name

    @pytest.mark.parametrize("bad", ["", "affect", 'job=affect"', '{job="a"}', 'job="a" or vector(1)', 'job="it\'s"'])
    def test_that_is_none_is_refused(self, bad: str) -> None:
        """The error shows how one is written."""
        with pytest.raises(SetupError, match=r"^--selector: .* write it as in"):
            build(policies(), bad)

    def test_rules_read_what_sidecars_export(self) -> None:
        """Every metric that is selected is one that the sidecar declares."""
        known = set(METRICS) | {f"{name}{end}" for name in METRICS for end in ("_bucket", "_count")} | {"up"}
        assert selections(build(read_policy(POLICY))).keys() <= known


@pytest.mark.parametrize("name", COMMITTED)
def test_committed_rules_are_those_of_the_policy(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Building anew makes the file that is committed."""
    monkeypatch.chdir(ROOT)
    done = runner(monkeypatch, capsys)(*COMMITTED[name].split())
    path = ROOT / "alerts" / "rules" / name
    assert done.code == 0
    assert done.out == path.read_text(), f"affect-monitor {COMMITTED[name]} > alerts/rules/{name}"
