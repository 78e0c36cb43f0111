"""What every alert does on made-up metrics: promtool plays the files of alerts/tests on rules built for them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml
from prometheus_tools import promtool

from monitor.policy.schema import read_policy
from monitor.rules.build import build
from monitor.rules.manifest import write

POLICY = Path(__file__).parent / "policy.yaml"
FILES = sorted((Path(__file__).parents[2] / "alerts" / "tests").glob("*.yaml"))
KINDS = {"positive", "negative", "boundary", "missing"}


@pytest.mark.servers
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_alerts_fire_when_they_should_and_else_do_not(file: Path, tmp_path: Path) -> None:
    """Every case of a file comes out as it says, texts of the alerts included."""
    (tmp_path / "rules.yaml").write_text(write(build(read_policy(POLICY)), "a test"))
    shutil.copy(file, tmp_path)
    promtool("test", "rules", tmp_path / file.name)


def test_every_alert_has_cases_of_every_kind() -> None:
    """An alert is tested for firing, for not firing, at its boundary and where series are missing.

    The name of a case begins with the alert and the kind.
    """
    names = [case["name"].split()[:2] for file in FILES for case in yaml.safe_load(file.read_text())["tests"]]
    tested = {alert: {kind.rstrip(":") for name, kind in names if name == alert} for alert, _ in names}
    groups = build(read_policy(POLICY))["groups"]
    alerts = {rule["alert"] for group in groups for rule in group["rules"] if "alert" in rule}
    assert tested == dict.fromkeys(alerts, KINDS)
