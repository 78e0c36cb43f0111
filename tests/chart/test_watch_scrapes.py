"""What the chart gives the Prometheus operator and Grafana: scrapes, rules, dashboards."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import helm_python
import pytest
import yaml
from helm_engine import CI, Document, Render, documents, read_values, rendered_files
from prometheus_tools import promtool
from watch_files import COMMAND, DASHBOARDS, kept_files, made_files

from monitor.policy.schema import SHIPPED, PolicyFile, read_policy
from monitor.rules.alertmanager import fragment
from monitor.rules.build import build
from monitor.rules.manifest import origin, prometheus_rule, write

VERSIONS = Path(__file__).parents[2] / "alerts" / "tests" / "versions.yaml"
OWN = Path(__file__).parents[1] / "rules" / "policy.yaml"
RELEASED = {"release": "kube-prometheus-stack"}


def made(objects: list[Document], kind: str) -> list[Document]:
    """The objects of a kind."""
    return [each for each in objects if each["kind"] == kind]


def one(objects: list[Document], kind: str) -> Document:
    """The only object of a kind."""
    (found,) = made(objects, kind)
    return found


def with_rules(policy: str, rules: str = "") -> Document:
    """Values that ask for the rules of a policy."""
    return {"policy": policy, "prometheusRule": {"enabled": True, "rules": rules}}


def own_rules() -> str:
    """What rules build makes of the policy file of the rules' tests."""
    return write(build(read_policy(OWN)), "a test") + origin(OWN.read_text())


@pytest.fixture(scope="module")
def watched() -> list[Document]:
    """Everything that watches, as rendered."""
    return documents(rendered_files(read_values(CI["watch"])))


def test_copies_are_what_the_package_makes() -> None:
    """Rules, routes and dashboards within the chart are those of the package, none more, none fewer."""
    assert kept_files() == made_files(), f"run {COMMAND}"


def test_nothing_watches_unless_asked(render: Render) -> None:
    """No custom resource is made for a cluster that may not know it."""
    assert not [each for each in render("demo") if "monitoring.coreos.com" in each["apiVersion"]]


class TestPodMonitor:
    """Which pods are scraped, and how their series are called."""

    def test_takes_every_port_of_a_sidecar(self, watched: list[Document]) -> None:
        """The port's name finds sidecars of the demo, of injection and of attach alike, in the namespaces named."""
        spec = one(watched, "PodMonitor")["spec"]
        assert spec["selector"] == {}
        assert spec["namespaceSelector"] == {"matchNames": ["inference", "staging"]}
        (endpoint,) = spec["podMetricsEndpoints"]
        assert (endpoint["port"], endpoint["path"], endpoint["interval"]) == ("affect-http", "/metrics", "15s")

    def test_names_job_and_instance_as_the_rules_have_them(self, watched: list[Document]) -> None:
        """The job is the one that rules select; the instance tells pods of one name in two namespaces apart."""
        ((job, instance),) = (each["relabelings"] for each in one(watched, "PodMonitor")["spec"]["podMetricsEndpoints"])
        assert job == {"action": "replace", "targetLabel": "job", "replacement": "affect-monitor"}
        assert instance == {
            "action": "replace",
            "sourceLabels": ["__meta_kubernetes_namespace", "__meta_kubernetes_pod_name"],
            "separator": "/",
            "targetLabel": "instance",
        }

    def test_the_port_is_the_sidecars(self, render: Render) -> None:
        """The container that the chart puts into pods has a port of that name."""
        pod = one(render("demo"), "Deployment")["spec"]["template"]["spec"]
        (sidecar,) = (each for each in pod["initContainers"] if each["name"] == "affect-monitor")
        assert [port["name"] for port in sidecar["ports"]] == ["affect-http"]

    def test_is_found_by_labels(self, watched: list[Document]) -> None:
        """It carries the labels by which a Prometheus chooses, and so do the rules."""
        for kind in ("PodMonitor", "PrometheusRule"):
            assert RELEASED.items() <= one(watched, kind)["metadata"]["labels"].items()

    def test_is_of_the_releases_namespace_alone_by_default(self, render: Render) -> None:
        """Other namespaces have to be named."""
        selected = one(render("canary"), "PodMonitor")["spec"]["namespaceSelector"]
        assert selected == {"matchNames": ["inference"]}


class TestRules:
    """The PrometheusRule, and how it stays in step with the policy."""

    @pytest.mark.parametrize("policy", sorted(SHIPPED.glob("*.yaml")), ids=lambda file: file.stem)
    def test_are_packaged_for_shipped_policies(self, policy: Path) -> None:
        """A shipped policy's rules are those that the package builds of it."""
        rules = one(documents(rendered_files(with_rules(policy.read_text()))), "PrometheusRule")
        assert rules["spec"] == build(read_policy(policy))

    def test_are_packaged_for_the_default_policy(self, watched: list[Document]) -> None:
        """They watch the policies of the ConfigMap beside them."""
        policy = yaml.safe_load(one(made_config(watched), "ConfigMap")["data"]["policy.yaml"])
        groups = [group["name"] for group in one(watched, "PrometheusRule")["spec"]["groups"]]
        assert groups == [
            "affect-record",
            *(f"affect-policy-{each['name']}" for each in policy["policies"]),
            "affect-health",
        ]

    def test_of_an_own_policy_are_given(self) -> None:
        """What rules build made of it goes into the cluster as it is."""
        rules = one(documents(rendered_files(with_rules(OWN.read_text(), own_rules()))), "PrometheusRule")
        assert rules["spec"] == build(read_policy(OWN))

    def test_of_an_own_policy_must_be_given(self) -> None:
        """Without them the render fails, and says how they are made."""
        with pytest.raises(helm_python.HelmError, match=r"prometheusRule.rules: .* affect-monitor rules build"):
            rendered_files(with_rules(OWN.read_text()))

    def test_of_another_policy_are_refused(self) -> None:
        """A policy that was changed since needs its rules made anew, even if its names are the same."""
        changed = OWN.read_text().replace("budget: 0.02", "budget: 0.03")
        with pytest.raises(helm_python.HelmError, match="was made of another policy"):
            rendered_files(with_rules(changed, own_rules()))

    @pytest.mark.parametrize(
        "other",
        [lambda policies: prometheus_rule(build(policies), "a"), fragment],
        ids=["prometheusrule", "alertmanager"],
    )
    def test_of_another_format_are_refused(self, other: Callable[[PolicyFile], Document]) -> None:
        """A resource of the operator's, or routes, hold no groups, and the message says how such are made."""
        given = write(other(read_policy(OWN)), "a test") + origin(OWN.read_text())
        with pytest.raises(helm_python.HelmError, match=r"another format, without groups; .* --format rules "):
            rendered_files(with_rules(OWN.read_text(), given))

    @pytest.mark.parametrize("rules", ["", own_rules()], ids=["packaged", "own"])
    def test_are_of_a_policy_with_line_ends_of_windows(self, rules: str) -> None:
        """A policy file is the same one with them."""
        policy = OWN if rules else SHIPPED / "service-desk.yaml"
        windows = policy.read_text().replace("\n", "\r\n")
        rule = one(documents(rendered_files(with_rules(windows, rules))), "PrometheusRule")
        assert rule["spec"] == build(read_policy(policy))

    @pytest.mark.servers
    @pytest.mark.parametrize("name", ["watch", "canary"])
    def test_pass_promtool(self, name: str, render: Render, tmp_path: Path) -> None:
        """Prometheus takes the groups, and its lint has nothing against them."""
        (tmp_path / "rules.yaml").write_text(yaml.safe_dump(one(render(name), "PrometheusRule")["spec"]))
        promtool("check", "rules", "--lint-fatal", tmp_path / "rules.yaml")

    @pytest.mark.servers
    def test_alert_as_those_of_a_file_do(self, tmp_path: Path) -> None:
        """Texts of alerts have templates too, which Helm must leave alone: cases come out as they do without it."""
        rules = one(documents(rendered_files(with_rules(OWN.read_text(), own_rules()))), "PrometheusRule")
        (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rules["spec"]))
        shutil.copy(VERSIONS, tmp_path)
        promtool("test", "rules", tmp_path / VERSIONS.name)


class TestDashboards:
    """ConfigMaps for Grafana's sidecar."""

    def test_are_those_of_the_package(self, watched: list[Document]) -> None:
        """Each is one file, valid JSON and the same as in alerts/dashboards."""
        found = {name: json.loads(text) for each in boards(watched) for name, text in each["data"].items()}
        assert found == {file.name: json.loads(file.read_text()) for file in DASHBOARDS.glob("*.json")}
        assert len(found) == len(boards(watched)) == 4

    def test_are_found_by_grafana(self, watched: list[Document]) -> None:
        """They carry its label, and the folder that was asked for."""
        for each in boards(watched):
            assert each["metadata"]["labels"]["grafana_dashboard"] == "1"
            assert each["metadata"]["annotations"] == {"grafana_folder": "affect"}

    def test_may_go_without_the_label(self) -> None:
        """Where Grafana's sidecar goes by something else, its label is taken away by null."""
        values = {"dashboards": {"enabled": True, "labels": {"grafana_dashboard": None}}}
        labels = [each["metadata"]["labels"] for each in documents(rendered_files(values))]
        assert all(each == labels[0] for each in labels)

    def test_fit_into_a_config_map(self, watched: list[Document]) -> None:
        """Kubernetes takes a mebibyte, and kubectl apply a quarter of it, as it repeats them in an annotation."""
        assert max(len(json.dumps(each)) for each in boards(watched)) < 256 * 1024


def boards(objects: list[Document]) -> list[Document]:
    """ConfigMaps of dashboards."""
    return [each for each in made(objects, "ConfigMap") if "grafana_dashboard" in each["metadata"]["labels"]]


def made_config(objects: list[Document]) -> list[Document]:
    """Objects without the dashboards."""
    return [each for each in objects if each not in boards(objects)]
