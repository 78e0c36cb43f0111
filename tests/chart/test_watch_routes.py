"""The AlertmanagerConfig: who is told of what, and that Alertmanager takes it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import helm_python
import pytest
import yaml
from helm_engine import CI, Document, documents, read_values, rendered_files
from prometheus_tools import amtool

from monitor.policy.schema import SHIPPED, PolicyFile, read_policy
from monitor.rules.alertmanager import fragment
from monitor.rules.build import build
from monitor.rules.manifest import origin, write


def config(values: Document) -> Document:
    """The AlertmanagerConfig that values make."""
    (found,) = (each for each in documents(rendered_files(values)) if each["kind"] == "AlertmanagerConfig")
    return found


@pytest.fixture(scope="module")
def values() -> Document:
    """Values of the feature."""
    return read_values(CI["routes"])


@pytest.fixture(scope="module")
def spec(values: Document) -> dict[str, Any]:
    """What it says."""
    return config(values)["spec"]


def matcher(name: str, value: str, match: str = "=") -> dict[str, str]:
    """A matcher as the operator has it."""
    return {"name": name, "matchType": match, "value": value}


class TestRoutes:
    """Who is told."""

    def test_take_alerts_of_this_project_alone(self, spec: dict[str, Any]) -> None:
        """Without a namespace to match, other teams' alerts must not pass here."""
        route = spec["route"]
        assert route["matchers"] == [matcher("alertname", "Affect.+", "=~")]
        assert (route["receiver"], route["groupBy"]) == ("affect-monitor", ["alertname", "policy"])

    def test_go_by_severity_first(self, spec: dict[str, Any]) -> None:
        """The pager has critical alerts, whosever they are, but in muting windows."""
        muted = [{"matchers": [matcher("policy", "companion")], "muteTimeIntervals": ["mute-companion"]}]
        assert spec["route"]["routes"][0] == {
            "matchers": [matcher("severity", "critical")],
            "receiver": "pager",
            "routes": muted,
        }

    def test_then_go_by_owner(self, spec: dict[str, Any]) -> None:
        """An owner with a receiver is told; one without is told the way of all."""
        owners = [(route["matchers"], route["receiver"]) for route in spec["route"]["routes"][1:]]
        assert owners == [
            ([matcher("owner", "child-safety")], "child-safety"),
            ([matcher("owner", "companion")], "affect-monitor"),
        ]

    def test_receivers_are_those_given(self, spec: dict[str, Any], values: Document) -> None:
        """How each is reached goes through as it stands."""
        assert spec["receivers"] == values["alertmanagerConfig"]["receivers"]

    def test_carry_the_labels_of_an_alertmanager(self, values: Document) -> None:
        """It is chosen by them."""
        assert config(values)["metadata"]["labels"]["alertmanagerConfig"] == "main"


class TestRefusals:
    """What cannot be rendered, and what is said of it."""

    def changed(self, values: Document, **fields: Any) -> Document:
        """Values with other routes."""
        return {**values, "alertmanagerConfig": {**values["alertmanagerConfig"], **fields}}

    def test_nobody_is_told(self, values: Document) -> None:
        """A receiver for what nobody owns is asked for by name."""
        with pytest.raises(helm_python.HelmError, match="receivers: none is called affect-monitor"):
            config(self.changed(values, receivers=[{"name": "pager"}]))

    def test_a_severity_goes_nowhere(self, values: Document) -> None:
        """Its receiver has to be there."""
        with pytest.raises(helm_python.HelmError, match=r"severities\.info: nobody is none of"):
            config(self.changed(values, severities={"info": "nobody"}))

    @pytest.mark.parametrize("other", [build, fragment], ids=["rules", "alertmanager"])
    def test_routes_of_another_format(self, values: Document, other: Callable[[PolicyFile], Document]) -> None:
        """Rules, and what Alertmanager reads itself, hold no such route, and the message says how one is made."""
        policy = values["policy"]
        given = write(other(read_policy(SHIPPED / "companion.yaml")), "a test") + origin(policy)
        with pytest.raises(helm_python.HelmError, match=r"without spec\.route; .* --format alertmanagerconfig "):
            config(self.changed(values, routes=given))

    def test_a_policy_with_time_zones(self, values: Document) -> None:
        """No routes are packaged for one; the message says how others are made."""
        coach = (SHIPPED / "supportive-coach.yaml").read_text()
        with pytest.raises(helm_python.HelmError, match=r"alertmanagerConfig\.routes: .* --format alertmanagerconfig"):
            config({**values, "policy": coach})


@pytest.mark.servers
class TestAlertmanager:
    """The real one, by amtool, on what the operator would make of it."""

    @pytest.fixture
    def file(self, spec: dict[str, Any], tmp_path: Path) -> Path:
        """A configuration whose first route is that of the AlertmanagerConfig."""
        route = {**plain(spec["route"]), "continue": True}
        told = {
            "route": {"receiver": "null", "routes": [route]},
            "receivers": [{"name": each["name"]} for each in [{"name": "null"}, *spec["receivers"]]],
            "inhibit_rules": [plain(rule) for rule in spec["inhibitRules"]],
            "time_intervals": plain(spec["muteTimeIntervals"]),
        }
        path = tmp_path / "alertmanager.yaml"
        path.write_text(yaml.safe_dump(told))
        return path

    def test_takes_it(self, file: Path) -> None:
        """Routes, inhibitions and muting windows are what Alertmanager reads."""
        assert "3 inhibit rules" in amtool("check-config", file)

    @pytest.mark.parametrize(
        ("labels", "receiver"),
        [
            (["alertname=AffectDrift", "policy=companion", "owner=companion", "severity=warning"], "affect-monitor"),
            (
                ["alertname=AffectDrift", "policy=companion-minors", "owner=child-safety", "severity=info"],
                "child-safety",
            ),
            (
                ["alertname=AffectOverIndex", "policy=companion-minors", "owner=child-safety", "severity=critical"],
                "pager",
            ),
            (["alertname=AffectReloadFailed", "severity=warning"], "affect-monitor"),
            (["alertname=DiskFull", "severity=critical"], "null"),
        ],
    )
    def test_tells_whom_it_should(self, file: Path, labels: list[str], receiver: str) -> None:
        """By severity, else by owner, else the default; what is not ours goes the way it went."""
        assert amtool("config", "routes", "test", f"--config.file={file}", *labels).strip() == receiver


def plain(part: Any) -> Any:
    """A part of an AlertmanagerConfig in the words of Alertmanager's own configuration."""
    if isinstance(part, list):
        return [plain(each) for each in part]
    if not isinstance(part, dict):
        return part
    if "matchType" in part:
        return f'{part["name"]}{part["matchType"]}"{part["value"]}"'
    words = {"sourceMatch": "source_matchers", "targetMatch": "target_matchers"}
    return {words.get(name) or re.sub("[A-Z]", lambda c: f"_{c[0].lower()}", name): plain(part[name]) for name in part}
