"""Tests of ``affect-monitor rules``: what the commands write and print, and with which exit code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import needs
import pytest
import yaml
from commands import Run, runner

from monitor.policy.schema import SHIPPED
from monitor.rules.manifest import origin

POLICY = Path(__file__).parent / "rules" / "policy.yaml"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a rules command in this process."""
    return runner(monkeypatch, capsys, "rules")


class TestBuild:
    """rules build."""

    def test_prints_rules_or_writes_them(self, run: Run, tmp_path: Path) -> None:
        """The same rules either way, and the same each time."""
        printed, again = run("build", "--policy", POLICY), run("build", "--policy", POLICY)
        run("build", "--policy", POLICY, "--out", tmp_path / "rules.yaml")
        assert printed == again
        assert yaml.safe_load(printed.out) == yaml.safe_load((tmp_path / "rules.yaml").read_text())
        assert printed.out.startswith(f"# Made by: affect-monitor rules build --policy {POLICY}\n")
        assert printed.out.endswith(origin(POLICY.read_text()))

    def test_takes_a_selector(self, run: Run) -> None:
        """Sidecars are selected as told."""
        done = run("build", "--policy", POLICY, "--selector", 'job="x"')
        assert 'absent(affect_build_info{job="x"})' in done.out

    def test_wraps_them_for_the_operator(self, run: Run) -> None:
        """A PrometheusRule has the name, namespace and labels that are given."""
        flags = ("--name", "mine", "--namespace", "ours", "--label", "release=a", "--label", "team=b")
        done = run("build", "--policy", POLICY, "--format", "prometheusrule", *flags)
        labels = {"release": "a", "team": "b"}
        assert yaml.safe_load(done.out)["metadata"] == {"name": "mine", "namespace": "ours", "labels": labels}

    def test_writes_routes(self, run: Run) -> None:
        """Alertmanager's part has routes and inhibitions."""
        done = run("build", "--policy", POLICY, "--format", "alertmanager")
        assert {"route", "inhibit_rules", "time_intervals", "receivers"} == yaml.safe_load(done.out).keys()

    def test_writes_routes_for_the_operator(self, run: Run) -> None:
        """An AlertmanagerConfig has the name, namespace and labels that are given."""
        flags = ("--name", "mine", "--namespace", "ours", "--label", "alertmanager=main")
        desk = SHIPPED / "service-desk.yaml"
        done = run("build", "--policy", desk, "--format", "alertmanagerconfig", *flags)
        made = yaml.safe_load(done.out)
        assert made["kind"] == "AlertmanagerConfig"
        assert made["metadata"] == {"name": "mine", "namespace": "ours", "labels": {"alertmanager": "main"}}

    @pytest.mark.parametrize(
        ("flags", "told"),
        [
            (["--policy", "missing.yaml"], "name a policy file that can be read"),
            (["--policy", POLICY, "--selector", "nothing"], "is no list of label matchers"),
            (["--policy", POLICY, "--label", "nothing"], "write it as in release=prometheus"),
            (["--policy", POLICY, "--out", "/nowhere/rules.yaml"], "name a file that can be written"),
        ],
    )
    def test_says_what_is_wrong(self, run: Run, flags: list[Any], told: str) -> None:
        """A fault is a line that names the flag and the fix, and exit code 2."""
        done = run("build", *flags)
        assert done.code == 2
        assert told in done.err


class TestCheck:
    """rules check."""

    @pytest.fixture
    def rules(self, run: Run, tmp_path: Path) -> Path:
        """Rules that are in order."""
        path = tmp_path / "rules.yaml"
        run("build", "--policy", POLICY, "--out", path)
        return path

    def edited(self, path: Path, edit: Callable[[dict[str, Any]], object]) -> Path:
        """The file with its last alert changed."""
        document = yaml.safe_load(path.read_text())
        edit(document["groups"][-1]["rules"][-1])
        path.write_text(yaml.safe_dump(document))
        return path

    @pytest.mark.servers
    def test_passes_what_build_writes(self, run: Run, rules: Path, tmp_path: Path) -> None:
        """Both formats of rules are in order."""
        needs.server("promtool")
        run("build", "--policy", POLICY, "--format", "prometheusrule", "--out", tmp_path / "wrapped.yaml")
        done = run("check", rules, tmp_path / "wrapped.yaml")
        assert (done.code, done.out.count("every alert tells what it must")) == (0, 2)

    @pytest.mark.servers
    def test_finds_expressions_that_do_not_parse(self, run: Run, rules: Path) -> None:
        """What promtool says is shown."""
        needs.server("promtool")
        done = run("check", self.edited(rules, lambda alert: alert.update(expr="sum(")))
        assert done.code == 1
        assert "promtool refuses it" in done.out
        assert "parse error" in done.out

    @pytest.mark.servers
    @pytest.mark.parametrize(
        ("part", "name"),
        [("labels", "severity"), ("annotations", "summary"), ("annotations", "description"),
         ("annotations", "runbook_url")],
    )  # fmt: skip
    def test_finds_alerts_that_tell_too_little(self, run: Run, rules: Path, part: str, name: str) -> None:
        """The alert and what it lacks are named; exit code 1."""
        needs.server("promtool")
        done = run("check", self.edited(rules, lambda alert: alert[part].pop(name)))
        assert (done.code, f"AffectCredentialsRefused: {part}.{name} is missing" in done.out) == (1, True)

    def test_says_how_to_get_promtool(self, run: Run, rules: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without promtool the check cannot be done."""
        monkeypatch.setenv("PATH", "")
        done = run("check", rules)
        assert done.code == 2
        assert "apt-get install prometheus" in done.err

    @pytest.mark.parametrize("text", ["groups: 3", "[]", "kind: PrometheusRule", "a: [", None])
    def test_refuses_what_holds_no_rules(self, run: Run, tmp_path: Path, text: str | None) -> None:
        """A file that is no rule file, or is not there, is a fault of the call."""
        path = tmp_path / "other.yaml"
        if text is not None:
            path.write_text(text)
        assert run("check", path).code == 2
